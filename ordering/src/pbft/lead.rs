//! The primary: gives numbers and orders to requests, in batches with one signature each. It sends digests only.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::agreement::To;
use crate::identifiers::Digest;
use crate::ledger::PrepareEntry;
use crate::pbft::Machine;
use crate::pbft::messages::{Batch, Message, PrePrepare};
use crate::pbft::window::WINDOW;

/// Entries of the queue beyond those that wait, before it is cleaned.
const QUEUE_SLACK: usize = 1024;

/// The leader's part of a view.
#[derive(Debug, Default)]
pub(crate) struct Leader {
    /// That we lead is in the log: a restart gives the view up, so nothing is proposed twice differently.
    pub(crate) is_ready: bool,
    /// Requests in the order in which they came; those that do not wait any more are skipped.
    queue: VecDeque<Digest>,
    /// What the queue holds: a request that was given up and came again stands in it once (rule OnceOnly).
    queued: HashSet<Digest>,
}

impl Leader {
    pub(crate) fn new(queue: impl Iterator<Item = Digest>) -> Self {
        let queue: VecDeque<Digest> = queue.collect();
        Leader {
            is_ready: false,
            queued: queue.iter().copied().collect(),
            queue,
        }
    }

    /// Appends a request; `waits` tells whether one still waits, `waiting` how many do.
    pub(crate) fn queue(&mut self, digest: Digest, waiting: usize, waits: impl Fn(&Digest) -> bool) {
        if self.queued.insert(digest) {
            self.queue.push_back(digest);
        }
        if self.queue.len() > waiting + QUEUE_SLACK {
            self.queue.retain(&waits);
            self.queued.retain(waits);
        }
    }

    fn pop(&mut self) {
        if let Some(digest) = self.queue.pop_front() {
            self.queued.remove(&digest);
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.queue.len(), self.queued.len());
    }
}

impl Machine {
    /// Proposes what waits, as far as there is room in flight.
    pub(crate) fn propose(&mut self) {
        while self.view.is_active && self.has_room() {
            let Some(batch) = self.next_batch() else { return };
            let (batch, view) = (Arc::new(batch), self.view.view);
            let digest = batch.digest();
            let signature = self.ledger.sign(&PrePrepare::signed(view, batch.number, &digest));
            let proposal = Arc::new(PrePrepare { view, batch, signature });
            self.ledger.send(To::Others, Message::PrePrepare(Arc::clone(&proposal)));
            self.on_pre_prepare(self.ledger.configuration.machine, &proposal, digest);
            self.accept_proposals();
        }
    }

    fn has_room(&self) -> bool {
        let next = self.view.next.number;
        let in_flight = next.saturating_sub(self.ledger.history.point.value + 1);
        let is_waiting = self.window.waiting.contains_key(&next);
        !is_waiting
            && in_flight < self.ledger.configuration.batches_in_flight_max as u64
            && next.saturating_sub(self.low_point().value) <= WINDOW
    }

    fn next_batch(&mut self) -> Option<Batch> {
        let leader = self.view.leading.as_mut().filter(|leader| leader.is_ready)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some(digest) = leader.queue.front() {
            let Some(request) = self.ledger.bodies.pending(digest) else {
                leader.pop();
                continue;
            };
            bytes += request.operation.len();
            let is_full = entries.len() == self.ledger.configuration.batch_entries_max
                || (!entries.is_empty() && bytes > self.ledger.configuration.batch_bytes_max);
            if is_full {
                break;
            }
            entries.push(PrepareEntry {
                group: self.ledger.configuration.group_of(request.home),
                digest: *digest,
            });
            leader.pop();
        }
        let next = self.view.next;
        (!entries.is_empty()).then(|| Batch {
            number: next.number,
            first: next.order,
            time_us: self.ledger.now.wall_us.max(next.time_us + 1),
            entries,
        })
    }

    /// How many requests wait to be proposed.
    pub(crate) fn queued(&self) -> usize {
        let is_leading = self.view.leading.is_some();
        if is_leading {
            self.ledger.bodies.pending_count()
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_comes_again_is_queued_once() {
        let mut leader = Leader::new([[1; 32], [2; 32]].into_iter());
        leader.queue([2; 32], 2, |_| true);
        leader.queue([3; 32], 3, |_| true);
        assert_eq!(leader.queue, [[1; 32], [2; 32], [3; 32]]);
        leader.pop();
        leader.queue([1; 32], 3, |_| true);
        assert_eq!(leader.queue, [[2; 32], [3; 32], [1; 32]]);
        leader.check_invariants();
    }
}
