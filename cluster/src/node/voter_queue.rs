//! The queue into this machine's voter: bounded for each sender, in messages and in bytes.
//!
//! A voter that is stuck must not hold up the agreement on the same link, so nobody waits here: what exceeds a sender's share
//! is dropped and counted. What was decided is fetched again from the logs, and clients ask again. A sender that floods the
//! voter takes nothing from the others.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ordering::identifiers::MachineId;
use ordering::message::CommitDb;
use tokio::sync::mpsc;
use voter::VoterInput;

use crate::link::Peer;

/// Bytes of one peer that may wait for the voter.
const PEER_BYTES_MAX: usize = 64 << 20;
/// Bytes of this machine itself that may wait for the voter: decisions with their bodies.
const OWN_BYTES_MAX: usize = 256 << 20;
/// How many messages of one sender may wait, if the queue is shared by many.
const SENDER_MESSAGES_MIN: usize = 1024;
/// Bytes that a message counts beside its content.
const MESSAGE_BYTES: usize = 128;

#[derive(Clone, Copy, Default)]
struct Share {
    messages: usize,
    bytes: usize,
}

#[derive(Default)]
struct State {
    /// Senders and sizes of what is in the channel, oldest first. (It may still have some that the voter has taken: they are
    /// removed before anything is added.)
    waiting: VecDeque<(Peer, usize)>,
    /// Invariant: the sums of `waiting`.
    shares: BTreeMap<Peer, Share>,
}

/// The only way into the voter's channel.
pub(super) struct VoterQueue {
    me: Peer,
    voter: mpsc::Sender<VoterInput>,
    sender_messages_max: usize,
    state: Mutex<State>,
}

impl VoterQueue {
    /// The queue of machine `me`, which `peers` peers can fill. Nobody else may send on `voter`.
    pub(super) fn new(me: MachineId, voter: mpsc::Sender<VoterInput>, peers: usize) -> Self {
        let equal_share = voter.max_capacity() / (peers + 1);
        Self {
            me: Peer::Machine(me),
            sender_messages_max: equal_share.max(SENDER_MESSAGES_MIN).min(voter.max_capacity()),
            voter,
            state: Mutex::default(),
        }
    }

    /// Hands something of this machine itself to the voter, unless too much waits.
    pub(super) fn offer_own(&self, input: VoterInput) {
        let bytes = match &input {
            VoterInput::CommitDb { message, .. } => commit_bytes(message),
            _ => 0,
        };
        self.offer(self.me, bytes, input);
    }

    /// Hands something of a peer to the voter, unless too much of that peer waits. `bytes` is its size on the wire.
    pub(super) fn offer(&self, from: Peer, bytes: usize, input: VoterInput) {
        if !self.try_offer(from, bytes + MESSAGE_BYTES, input) {
            metrics::counter!("cloudbft_voter_input_dropped_total", "peer" => from.to_string()).increment(1);
        }
    }

    fn try_offer(&self, from: Peer, bytes: usize, input: VoterInput) -> bool {
        // Locked until it is in the channel: the two have the same order.
        let mut state = self.lock();
        let in_channel = self.voter.max_capacity() - self.voter.capacity();
        state.forget_taken(in_channel);
        let bytes_max = if from == self.me { OWN_BYTES_MAX } else { PEER_BYTES_MAX };
        let share = state.shares.get(&from).copied().unwrap_or_default();
        if share.messages >= self.sender_messages_max || share.bytes + bytes > bytes_max {
            return false;
        }
        if self.voter.try_send(input).is_err() {
            return false;
        }
        state.add(from, bytes);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, from: Peer, bytes: usize) {
        let share = self.shares.entry(from).or_default();
        share.messages += 1;
        share.bytes += bytes;
        self.waiting.push_back((from, bytes));
    }

    /// Forgets the oldest but for so many.
    fn forget_taken(&mut self, left: usize) {
        while self.waiting.len() > left
            && let Some((from, bytes)) = self.waiting.pop_front()
        {
            if let Some(share) = self.shares.get_mut(&from) {
                share.messages -= 1;
                share.bytes -= bytes;
            }
        }
    }
}

/// The bytes of decisions with their bodies.
fn commit_bytes(message: &CommitDb) -> usize {
    let body = |entry: &ordering::message::CommitDbEntry| {
        MESSAGE_BYTES + entry.request.as_ref().map_or(0, |request| request.operation.len())
    };
    message.entries.iter().map(body).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use ordering::identifiers::{ClientId, GroupId, Order};
    use ordering::message::{CommitDbEntry, Request};

    use super::*;

    const ME: MachineId = MachineId(1);
    const M2: Peer = Peer::Machine(MachineId(2));
    const CLIENT: Peer = Peer::Client(ClientId(0));

    fn queue(messages: usize, peers: usize) -> (VoterQueue, mpsc::Receiver<VoterInput>) {
        let (sender, receiver) = mpsc::channel(messages);
        (VoterQueue::new(ME, sender, peers), receiver)
    }

    fn input() -> VoterInput {
        VoterInput::KeepAlive(ClientId(0))
    }

    fn waiting(voter: &mut mpsc::Receiver<VoterInput>) -> usize {
        std::iter::from_fn(|| voter.try_recv().ok()).count()
    }

    #[test]
    fn one_peer_cannot_take_more_than_its_bytes_and_the_others_have_theirs() {
        let (queue, mut voter) = queue(8192, 4);
        (0..100).for_each(|_| queue.offer(CLIENT, 30 << 20, input()));
        queue.offer(M2, 30 << 20, input());
        assert_eq!(waiting(&mut voter), 3);
    }

    #[test]
    fn one_peer_cannot_take_all_places_and_the_others_have_theirs() {
        let (queue, mut voter) = queue(8192, 4);
        (0..10_000).for_each(|_| queue.offer(CLIENT, 1, input()));
        (0..100).for_each(|_| queue.offer(M2, 1, input()));
        queue.offer_own(VoterInput::Decided(Order(1)));
        assert_eq!(waiting(&mut voter), 8192 / 5 + 101);
    }

    #[test]
    fn what_the_voter_has_taken_makes_room() {
        let (queue, mut voter) = queue(8192, 4);
        for _ in 0..10 {
            (0..3).for_each(|_| queue.offer(CLIENT, 30 << 20, input()));
            queue.offer(M2, 60 << 20, input());
            assert_eq!(waiting(&mut voter), 3);
        }
        (0..2).for_each(|_| queue.offer(CLIENT, 30 << 20, input()));
        assert!(voter.try_recv().is_ok());
        queue.offer(CLIENT, 30 << 20, input());
        assert_eq!(waiting(&mut voter), 2);
    }

    #[test]
    fn decisions_of_this_machine_are_bounded_by_their_bodies() {
        let (queue, mut voter) = queue(8192, 4);
        let operation = Bytes::from(vec![0; 16 << 20]);
        let decision = |order| {
            let request = Request {
                client: ClientId(0),
                number: order,
                floor: 0,
                home: 0,
                operation: operation.clone(),
                signature: [0; 64],
            };
            let entry = CommitDbEntry {
                order: Order(order),
                time_us: order,
                digest: [0; 32],
                request: Some(Arc::new(request)),
            };
            let message = CommitDb {
                group: GroupId(0),
                entries: vec![entry],
            };
            VoterInput::CommitDb { from: ME, message }
        };
        (1..100).for_each(|order| queue.offer_own(decision(order)));
        queue.offer(CLIENT, 1, input());
        assert_eq!(waiting(&mut voter), 16);
    }
}
