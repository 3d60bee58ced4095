//! The bounded outgoing queue of one link.
//!
//! Nobody ever waits to send: when a peer is slow, the oldest frames go, and the protocols re-send what
//! mattered. A peer that is away gets a short queue only, so that it is not met with stale news.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::frame::EncodedFrame;

/// How much waits for a connected peer, in bytes.
pub const CONNECTED_BYTES_MAX: usize = 64 << 20;
/// How much waits for a peer that is away, in bytes.
pub const AWAY_BYTES_MAX: usize = 4 << 20;

#[derive(Default)]
struct State {
    frames: VecDeque<EncodedFrame>,
    bytes: usize,
    connected: bool,
}

/// Frames that wait for the writer of one link.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Notify,
}

impl Queue {
    /// Adds a frame; returns how many old ones had to go. A single frame of any size always fits.
    pub(super) fn push(&self, frame: EncodedFrame) -> usize {
        let mut state = self.lock();
        let bytes_max = if state.connected {
            CONNECTED_BYTES_MAX
        } else {
            AWAY_BYTES_MAX
        };
        let mut dropped = 0;
        while state.bytes + frame.len() > bytes_max {
            let Some(oldest) = state.frames.pop_front() else { break };
            state.bytes -= oldest.len();
            dropped += 1;
        }
        state.bytes += frame.len();
        state.frames.push_back(frame);
        drop(state);
        self.filled.notify_one();
        dropped
    }

    /// Waits until there is something, then moves frames into `batch`, up to about `bytes_max` bytes.
    pub(super) async fn pop(&self, batch: &mut Vec<EncodedFrame>, bytes_max: usize) {
        loop {
            if self.try_pop(batch, bytes_max) {
                return;
            }
            self.filled.notified().await;
        }
    }

    /// As [`Queue::pop`], without waiting; whether anything was moved.
    pub(super) fn try_pop(&self, batch: &mut Vec<EncodedFrame>, bytes_max: usize) -> bool {
        let mut state = self.lock();
        let mut moved_bytes = 0;
        while moved_bytes < bytes_max {
            let Some(frame) = state.frames.pop_front() else { break };
            moved_bytes += frame.len();
            state.bytes -= frame.len();
            batch.push(frame);
        }
        moved_bytes > 0
    }

    /// Whether the peer is there: sets the bound.
    pub(super) fn set_connected(&self, connected: bool) {
        self.lock().connected = connected;
    }

    /// What waits, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frame(bytes: usize) -> EncodedFrame {
        EncodedFrame(Bytes::from(vec![0; bytes]))
    }

    #[test]
    fn the_oldest_go_first_when_full() {
        let queue = Queue::default();
        assert_eq!(queue.push(frame(AWAY_BYTES_MAX / 2)), 0);
        assert_eq!(queue.push(frame(AWAY_BYTES_MAX / 2)), 0);
        assert_eq!(queue.push(frame(10)), 1);
        assert_eq!(queue.bytes(), AWAY_BYTES_MAX / 2 + 10);
    }

    #[test]
    fn one_large_frame_always_fits() {
        let queue = Queue::default();
        queue.push(frame(1));
        assert_eq!(queue.push(frame(AWAY_BYTES_MAX * 2)), 1);
        let mut batch = Vec::new();
        assert!(queue.try_pop(&mut batch, usize::MAX));
        assert_eq!((batch.len(), queue.bytes()), (1, 0));
    }

    #[test]
    fn a_batch_is_bounded() {
        let queue = Queue::default();
        (0..10).for_each(|_| assert_eq!(queue.push(frame(100)), 0));
        let mut batch = Vec::new();
        assert!(queue.try_pop(&mut batch, 250));
        assert_eq!(batch.len(), 3);
    }
}
