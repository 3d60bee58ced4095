//! What waits for the trusted counter or for the log, and what follows when the answer comes.

use std::collections::VecDeque;
use std::sync::Arc;

use trusted_counter::UniqueWarrant;

use crate::identifiers::{Digest, GroupId, Order, View};
use crate::message::{CommitDbEntry, Request};
use crate::minbft::Output;
use crate::minbft::messages::{Commit, PrepareEntry};
use crate::minbft::record::Record;
use crate::minbft::start_messages::{Admission, LiveProof, Outcome};

/// What a warrant is for.
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

/// What follows when a record is durable.
#[derive(Debug)]
pub(crate) enum Persisting {
    /// Send the COMMIT: persist before COMMIT, so that f+1 COMMITs are f+1 durable copies.
    Commit(Arc<Commit>),
    /// Acknowledge the start.
    Start(Arc<Outcome>),
    /// Endorse this outcome of the view.
    Change(View, Digest),
    /// Take part in the view.
    Live(Arc<LiveProof>),
    /// The log may begin with that record: cut what is below this order.
    Cut(Order),
}

/// Tickets and sequence numbers.
#[derive(Debug)]
pub(crate) struct Journal {
    next_ticket: u64,
    certifying: VecDeque<(u64, u32, Certifying)>,
    next_sequence: u64,
    persisting: VecDeque<(u64, Persisting)>,
    /// The own counter: its epoch, and the last value of each slot whose warrant has come back.
    pub(crate) counter: Admission,
}

impl Journal {
    pub(crate) fn new(counter: Admission) -> Self {
        Journal {
            next_ticket: 1,
            certifying: VecDeque::new(),
            next_sequence: 1,
            persisting: VecDeque::new(),
            counter,
        }
    }

    /// Asks for a warrant.
    pub(crate) fn certify(&mut self, slot: u32, digest: Digest, purpose: Certifying, out: &mut Vec<Output>) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.certifying.push_back((ticket, slot, purpose));
        out.push(Output::Certify { slot, digest, ticket });
    }

    /// Takes a warrant; none when it is not the next one of its slot in our epoch: the counter has failed.
    pub(crate) fn certified(&mut self, ticket: u64, warrant: &UniqueWarrant, may_skip: bool) -> Option<Certifying> {
        let (expected, slot, purpose) = self.certifying.pop_front()?;
        let position = self.counter.positions.get_mut(usize::try_from(slot).ok()?)?;
        let is_next =
            warrant.slot == slot && warrant.epoch == self.counter.epoch && warrant.value == position.saturating_add(1);
        if expected != ticket || !(is_next || may_skip) {
            return None;
        }
        *position = warrant.value;
        Some(purpose)
    }

    /// Whether anything is with the counter.
    pub(crate) fn is_certifying(&self) -> bool {
        !self.certifying.is_empty()
    }

    /// Whether anything waits for the counter or for the log.
    pub(crate) fn is_busy(&self) -> bool {
        !self.certifying.is_empty() || !self.persisting.is_empty()
    }

    /// Appends a record that nothing waits for.
    pub(crate) fn write(&mut self, record: Record, out: &mut Vec<Output>) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        out.push(Output::Persist { sequence, record });
    }

    /// Appends a record that something waits for.
    pub(crate) fn persist(&mut self, record: Record, then: Persisting, out: &mut Vec<Output>) {
        self.persisting.push_back((self.next_sequence, then));
        self.write(record, out);
    }

    /// The next thing that waited for a record up to this one.
    pub(crate) fn persisted(&mut self, sequence: u64) -> Option<Persisting> {
        let (waited, _) = self.persisting.front()?;
        if *waited > sequence || sequence >= self.next_sequence {
            return None;
        }
        self.persisting.pop_front().map(|(_, then)| then)
    }

    /// Tickets and sequence numbers ascend.
    pub(crate) fn check_invariants(&self) {
        assert!(self.certifying.iter().is_sorted_by(|left, right| left.0 < right.0));
        assert!(self.persisting.iter().is_sorted_by(|left, right| left.0 < right.0));
    }
}
