//! What a machine writes to its log, and what waits until it is durable.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::{CertifiedCheckpoint, HistoryEntry, LogRecord, StableCheckpoint, Written};
use crate::message::Request;
use crate::pbft::wire::change::RequestViewChange;
use crate::pbft::wire::ordered::Batch;

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

impl From<Written> for Record {
    fn from(written: Written) -> Self {
        match written {
            Written::Stable(checkpoint) => Record::Stable(checkpoint),
            Written::History { first, entries } => Record::History { first, entries },
        }
    }
}
