//! What a machine writes to its log, and what waits until it is durable.

use std::collections::VecDeque;
use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{Digest, MachineId, Order, View};
use crate::message::Request;
use crate::minbft::{CertifiedCheckpoint, HistoryEntry, LogRecord, StableCheckpoint};
use crate::pbft::Output;
use crate::pbft::messages::{Batch, RequestViewChange};

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Record {
    /// A view that the machine takes part in from here on. Batches above the outcome that were accepted in earlier
    /// views are void.
    Entered {
        /// The view.
        view: View,
        /// The stable checkpoint with which it begins; none: genesis.
        stable: Option<StableCheckpoint>,
        /// The batches above it with which it begins.
        batches: Vec<Arc<Batch>>,
    },
    /// A batch that was accepted, with all its bodies, before the own PREPARE is sent.
    Accepted {
        /// The view.
        view: View,
        /// The batch.
        batch: Arc<Batch>,
        /// Its bodies.
        requests: Vec<Arc<Request>>,
    },
    /// A batch was accepted again, in a later view: its bodies stand in the log or in the history.
    AcceptedAgain {
        /// The view.
        view: View,
        /// The batch.
        batch: Arc<Batch>,
    },
    /// A prepared certificate, before the own COMMIT is sent.
    Prepared {
        /// The view.
        view: View,
        /// The number.
        number: u64,
        /// The batch's digest.
        digest: Digest,
        /// The PREPAREs.
        signatures: Vec<(MachineId, [u8; 64])>,
    },
    /// A batch was decided. Nothing waits for it: what is lost of these is decided again.
    Decided {
        /// The number.
        number: u64,
        /// The batch's digest.
        digest: Digest,
    },
    /// A stable checkpoint.
    Stable(Arc<CertifiedCheckpoint>),
    /// Decided operations that were fetched from a peer, and proven by the checkpoint record that follows.
    History {
        /// The order of the first entry.
        first: Order,
        /// The operations.
        entries: Vec<HistoryEntry>,
    },
    /// The machine takes part in no view below this one any more, before its VIEW-CHANGE is sent.
    ViewChange {
        /// The view that it wants.
        view: View,
        /// Why.
        requests: Vec<RequestViewChange>,
    },
    /// What older records said and is still needed: everything before it may be cut off, but for operations from
    /// `first` on and batches that are not decided.
    Resume(Arc<Resume>),
}

/// See [`Record::Resume`].
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Resume {
    /// The last stable checkpoint.
    pub checkpoint: Arc<CertifiedCheckpoint>,
    /// The low end of the window, when it is above that.
    pub low: Option<StableCheckpoint>,
    /// The first order that can be read from the log.
    pub first: Order,
    /// The view that the machine is in, or wants.
    pub view: View,
    /// Whether it takes part in that view.
    pub is_active: bool,
    /// The batches with which that view began, above the checkpoint.
    pub outcome: Vec<Arc<Batch>>,
    /// Why it wants that view.
    pub requests: Vec<RequestViewChange>,
}

impl LogRecord for Record {
    fn last_order(&self) -> Option<Order> {
        match self {
            Record::Accepted { batch, .. } => Some(batch.last()),
            Record::History { first, entries } => {
                (!entries.is_empty()).then(|| Order(first.0 + entries.len() as u64 - 1))
            }
            _ => None,
        }
    }

    fn is_foundation(&self) -> bool {
        matches!(self, Record::Resume(_))
    }
}

/// What follows when a record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Send the PREPARE.
    Prepare { view: View, number: u64, digest: Digest },
    /// Send the COMMIT.
    Commit { view: View, number: u64, digest: Digest },
    /// Send the VIEW-CHANGE.
    ViewChange(View),
    /// Lead the view.
    Lead(View),
    /// The log may begin with that record: cut what is below this order.
    Cut(Order),
}

/// Sequence numbers of records, and what waits for them.
#[derive(Debug)]
pub(crate) struct Journal {
    next_sequence: u64,
    waiting: VecDeque<(u64, Then)>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Journal {
            next_sequence: 1,
            waiting: VecDeque::new(),
        }
    }

    /// Appends a record that nothing waits for.
    pub(crate) fn write(&mut self, record: Record, out: &mut Vec<Output>) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        out.push(Output::Persist { sequence, record });
    }

    /// Appends a record that something waits for.
    pub(crate) fn persist(&mut self, record: Record, then: Then, out: &mut Vec<Output>) {
        self.waiting.push_back((self.next_sequence, then));
        self.write(record, out);
    }

    /// The next thing that waited for a record up to this one.
    pub(crate) fn persisted(&mut self, sequence: u64) -> Option<Then> {
        let (waited, _) = self.waiting.front()?;
        if *waited > sequence || sequence >= self.next_sequence {
            return None;
        }
        self.waiting.pop_front().map(|(_, then)| then)
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.waiting.iter().is_sorted_by(|left, right| left.0 < right.0));
    }
}
