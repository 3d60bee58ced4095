//! The primary: gives numbers and orders to requests, in batches with one signature each. It sends digests only.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::agreement::To;
use crate::identifiers::Digest;
use crate::ledger::PrepareEntry;
use crate::pbft::core::Core;
use crate::pbft::live::Live;
use crate::pbft::wire::message::Message;
use crate::pbft::wire::ordered::{Batch, PrePrepare, WINDOW};

/// Entries of the queue beyond those that wait, before it is cleaned.
const QUEUE_SLACK: usize = 1024;

/// The leader's part of a view.
#[derive(Debug, Default)]
pub(crate) struct Primary {
    /// That we lead is in the log: a restart gives the view up, so nothing is proposed twice differently.
    pub(crate) is_ready: bool,
    /// Requests in the order in which they came; those that do not wait any more are skipped.
    queue: VecDeque<Digest>,
    /// What the queue holds: a request that was given up and came again stands in it once (rule OnceOnly).
    queued: HashSet<Digest>,
}

impl Primary {
    pub(crate) fn new(queue: impl Iterator<Item = Digest>) -> Self {
        let queue: VecDeque<Digest> = queue.collect();
        Primary {
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

    /// The requests that are proposed next.
    fn next_entries(&mut self, core: &Core) -> Vec<PrepareEntry> {
        let configuration = &core.ledger.configuration;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some(digest) = self.queue.front() {
            let Some(request) = core.ledger.bodies.pending(digest) else {
                self.pop();
                continue;
            };
            bytes += request.operation.len();
            let is_full = entries.len() == configuration.batch_entries_max
                || (!entries.is_empty() && bytes > configuration.batch_bytes_max);
            if is_full {
                break;
            }
            let name = configuration.name_of(&core.window.next.assignment, request);
            entries.push(PrepareEntry {
                group: name,
                digest: *digest,
            });
            self.pop();
            if name.asked().is_some() {
                // One assignment is in force for all entries of a batch.
                break;
            }
        }
        entries
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.queue.len(), self.queued.len());
    }
}

impl Live {
    /// Proposes what waits, as far as there is room in flight.
    pub(crate) fn propose(&mut self, core: &mut Core) {
        while self.has_room(core) {
            let Some(batch) = self.next_batch(core) else { return };
            let (batch, view) = (Arc::new(batch), self.view);
            let digest = batch.digest();
            let signature = core.ledger.sign(&PrePrepare::signed(view, batch.number, &digest));
            let proposal = Arc::new(PrePrepare { view, batch, signature });
            core.ledger.send(To::Others, Message::PrePrepare(Arc::clone(&proposal)));
            self.on_pre_prepare(core, &proposal, digest);
            self.accept_proposals(core);
        }
    }

    fn has_room(&self, core: &Core) -> bool {
        let next = core.window.next.number;
        let in_flight = next.saturating_sub(core.ledger.history.point.value + 1);
        !self.proposals.contains_key(&next)
            && in_flight < core.ledger.configuration.batches_in_flight_max as u64
            && next.saturating_sub(core.window.low_point().value) <= WINDOW
    }

    fn next_batch(&mut self, core: &Core) -> Option<Batch> {
        let leading = self.leading.as_mut().filter(|leading| leading.is_ready)?;
        let entries = leading.next_entries(core);
        let next = core.window.next;
        (!entries.is_empty()).then(|| Batch {
            number: next.number,
            first: next.order,
            time_us: core.ledger.now.wall_us.max(next.time_us + 1),
            entries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_comes_again_is_queued_once() {
        let mut primary = Primary::new([[1; 32], [2; 32]].into_iter());
        primary.queue([2; 32], 2, |_| true);
        primary.queue([3; 32], 3, |_| true);
        assert_eq!(primary.queue, [[1; 32], [2; 32], [3; 32]]);
        primary.pop();
        primary.queue([1; 32], 3, |_| true);
        assert_eq!(primary.queue, [[2; 32], [3; 32], [1; 32]]);
        primary.check_invariants();
    }
}
