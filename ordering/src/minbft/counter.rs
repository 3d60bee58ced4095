//! This machine's trusted counter: what waits for its warrants.

use std::collections::VecDeque;
use std::sync::Arc;

use trusted_counter::UniqueWarrant;

use crate::identifiers::{Digest, GroupId, Order, View};
use crate::ledger::PrepareEntry;
use crate::message::{CommitDbEntry, Request};
use crate::minbft::wire::admission::Admission;

/// The purpose of a warrant.
#[derive(Debug)]
pub(crate) enum Certifying {
    /// A PREPARE.
    Prepare {
        view: View,
        first: Order,
        time_us: u64,
        entries: Vec<PrepareEntry>,
        requests: Vec<Arc<Request>>,
    },
    /// A COMMIT, with what the log must hold before it is sent.
    Commit {
        view: View,
        group: GroupId,
        batches: Vec<(u64, Digest)>,
        share: Vec<CommitDbEntry>,
    },
    /// A VIEW-CHANGE, for one group's slot.
    ViewChange {
        view: View,
        group: GroupId,
        content: Digest,
    },
    /// An endorsement of an outcome.
    Endorse { view: View, outcome: Digest },
    /// An acknowledgement of an outcome.
    AcknowledgeView { view: View, outcome: Digest },
}

/// The own counter.
#[derive(Debug)]
pub(crate) struct OwnCounter {
    next_ticket: u64,
    waiting: VecDeque<(u64, u32, Certifying)>,
    /// Its epoch, and the last value of each slot whose warrant has come back.
    pub(crate) position: Admission,
}

impl OwnCounter {
    pub(crate) fn new(position: Admission) -> Self {
        OwnCounter {
            next_ticket: 1,
            waiting: VecDeque::new(),
            position,
        }
    }

    /// A warrant is asked for; returns the ticket.
    pub(crate) fn ask(&mut self, slot: u32, purpose: Certifying) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back((ticket, slot, purpose));
        ticket
    }

    /// Takes a warrant; none when it is not the next one of its slot in our epoch: the counter has failed.
    pub(crate) fn certified(&mut self, ticket: u64, warrant: &UniqueWarrant, may_skip: bool) -> Option<Certifying> {
        let (expected, slot, purpose) = self.waiting.pop_front()?;
        let position = self.position.positions.get_mut(usize::try_from(slot).ok()?)?;
        let is_next =
            warrant.slot == slot && warrant.epoch == self.position.epoch && warrant.value == position.saturating_add(1);
        if expected != ticket || !(is_next || may_skip) {
            return None;
        }
        *position = warrant.value;
        Some(purpose)
    }

    /// Whether it owes a warrant.
    pub(crate) fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tickets ascend.
    pub(crate) fn check_invariants(&self) {
        assert!(self.waiting.iter().is_sorted_by(|left, right| left.0 < right.0));
    }
}
