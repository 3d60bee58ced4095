//! What must reach a transaction's task at once, also while a statement runs in its backend.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::ending::End;
use crate::transactions::History;

#[derive(Debug, Default)]
struct State {
    /// Cancels that the task has not come to yet: what is listed ends before these.
    cancels: VecDeque<u32>,
    end: Option<End>,
}

/// Wishes to stop what runs.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    state: Mutex<State>,
    changed: Notify,
}

/// Cancels that are on their way to one transaction's task, at most.
pub(super) const CANCELS_MAX: usize = 64;

impl Signal {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client gives up what comes after these many listed exchanges; false when it says so too often.
    pub(super) fn cancel(&self, writes_before: u32) -> bool {
        let mut state = self.state();
        if state.cancels.len() >= CANCELS_MAX {
            return false;
        }
        state.cancels.push_back(writes_before);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// The task has come to the oldest cancel.
    pub(super) fn cancelled(&self) {
        self.state().cancels.pop_front();
    }

    /// The end is ordered.
    pub(super) fn end(&self, end: End) {
        self.state().end = Some(end);
        self.changed.notify_one();
    }

    /// Whether the end is ordered.
    pub(super) fn is_ending(&self) -> bool {
        self.state().end.is_some()
    }

    /// Whether a statement that runs after what has run here must stop: a read, or the listed exchange `next`.
    pub(super) fn stops(&self, history: &History, next: Option<&Bytes>, short: bool) -> bool {
        let state = self.state();
        if state.cancels.iter().any(|before| *before <= history.len()) {
            return true;
        }
        state.end.as_ref().is_some_and(|end| end.stops(history, next, short))
    }

    /// Whether listed exchanges that run after what has run here must stop.
    pub(super) fn stops_replay(&self, history: &History, exchanges: &[Bytes]) -> bool {
        let state = self.state();
        let count = u32::try_from(exchanges.len()).unwrap_or(u32::MAX);
        let after = history.len().saturating_add(count);
        let is_cancelled = state.cancels.iter().any(|before| *before < after);
        is_cancelled
            || state
                .end
                .as_ref()
                .is_some_and(|end| end.stops_replay(history, exchanges))
    }

    /// Whether what is deferred, which runs for the sake of a word, must stop.
    pub(super) fn stops_word(&self, history: &History) -> bool {
        let state = self.state();
        let is_cancelled = state.cancels.iter().any(|before| *before <= history.len());
        is_cancelled || state.end.as_ref().is_some_and(|end| end.stops_word(history))
    }

    /// Waits until something has changed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn what_is_not_listed_stops_and_what_is_listed_ends_by_itself() {
        let signal = Signal::default();
        let mut history = History::default();
        history.push(bytes("a"), [0; 32]);
        assert!(!signal.stops(&history, Some(&bytes("b")), false));
        signal.end(End::Commit {
            listed: vec![bytes("a"), bytes("b")],
            certified: true,
        });
        assert!(!signal.stops(&history, Some(&bytes("b")), false));
        assert!(signal.stops(&history, Some(&bytes("c")), true));
        assert!(signal.stops(&history, None, true), "a read is not listed");
        signal.end(End::Commit {
            listed: vec![bytes("a"), bytes("b")],
            certified: false,
        });
        assert!(signal.stops(&history, Some(&bytes("b")), false));
        assert!(!signal.stops(&history, Some(&bytes("b")), true));
        signal.end(End::Abort);
        assert!(signal.stops(&history, Some(&bytes("b")), true));
    }

    #[test]
    fn a_word_goes_on_for_the_commit_of_what_it_is_on() {
        let mut history = History::default();
        history.push(bytes("a"), [0; 32]);
        let ends = |listed: &[&str], certified| {
            let signal = Signal::default();
            let listed = listed.iter().copied().map(bytes).collect();
            signal.end(End::Commit { listed, certified });
            signal.stops_word(&history)
        };
        assert!(!ends(&["a"], true));
        assert!(ends(&["a"], false), "nobody may have seen its end");
        assert!(ends(&["a", "b"], true) && ends(&[], true) && ends(&["b"], true));
        let signal = Signal::default();
        signal.end(End::Abort);
        assert!(signal.stops_word(&history));
        let cancelled = Signal::default();
        assert!(!cancelled.stops_word(&history) && cancelled.cancel(0));
        assert!(cancelled.stops_word(&history));
    }

    #[test]
    fn a_cancel_stops_what_is_beyond_it_until_the_task_has_come_to_it() {
        let signal = Signal::default();
        let mut history = History::default();
        history.push(bytes("a"), [0; 32]);
        assert!(signal.cancel(2));
        assert!(!signal.stops(&history, Some(&bytes("b")), false));
        history.push(bytes("b"), [0; 32]);
        assert!(signal.stops(&history, Some(&bytes("c")), false));
        signal.cancelled();
        assert!(!signal.stops(&history, Some(&bytes("c")), false));
        assert!((0..CANCELS_MAX).all(|_| signal.cancel(9)));
        assert!(!signal.cancel(9), "bounded");
    }
}
