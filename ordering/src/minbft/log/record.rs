//! The records that a machine writes to its log.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{Digest, GroupId, Order, View};
use crate::ledger::{CertifiedCheckpoint, HistoryEntry, LogRecord, Written};
use crate::message::CommitDbEntry;
use crate::minbft::log::provenance::{Fetched, ViewBase};
use crate::minbft::wire::ordered::{Commit, Prepare};
use crate::minbft::wire::outcome::{LiveProof, Outcome};

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Record {
    /// A PREPARE that was followed in counter order.
    Prepare(Arc<Prepare>),
    /// An own COMMIT, before it is sent, with the whole operations that it covers.
    Commit {
        /// The COMMIT with its warrant.
        commit: Arc<Commit>,
        /// The group's share of its batches.
        share: Vec<CommitDbEntry>,
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
    /// Operations that a start takes over, before it is acknowledged.
    TakenOver {
        /// The start's view.
        view: View,
        /// [`Outcome::digest`]: under a faulty primary, another outcome of the view may be the one that goes live.
        outcome: Digest,
        /// The operations and their groups.
        entries: Vec<(GroupId, CommitDbEntry)>,
    },
    /// A start that is going to be acknowledged; `TakenOver` records of its view stand before it.
    Start(Arc<Outcome>),
    /// The start of this view was acknowledged by all: the machine takes part in it from here on.
    Live(Arc<LiveProof>),
    /// What older records said and is still needed: everything before it may be cut off, but for operations from
    /// `first` on and what is not decided.
    Resume(Arc<Resume>),
}

/// See [`Record::Resume`].
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Resume {
    /// The last stable checkpoint; none on a machine without history.
    pub checkpoint: Option<Arc<CertifiedCheckpoint>>,
    /// The first order that can be read from the log.
    pub first: Order,
    /// The highest view that was mentioned.
    pub view: Option<View>,
    /// The last view that the machine took part in.
    pub live: Option<Arc<LiveProof>>,
    /// The orders at which those views began whose operations can be read.
    pub(crate) views: Vec<ViewBase>,
    /// The orders among them that were fetched.
    pub(crate) fetched: Fetched,
}

impl LogRecord for Record {
    fn last_order(&self) -> Option<Order> {
        match self {
            Record::Commit { share, .. } => share.last().map(|entry| entry.order),
            Record::History { first, entries } => {
                (!entries.is_empty()).then(|| Order(first.0 + entries.len() as u64 - 1))
            }
            Record::TakenOver { entries, .. } => entries.last().map(|(_, entry)| entry.order),
            // Not decided perhaps, and needed until it is.
            Record::Prepare(prepare) => Some(prepare.last()),
            Record::Stable(_) | Record::Start(_) | Record::Live(_) | Record::Resume(_) => None,
        }
    }

    fn is_foundation(&self) -> bool {
        matches!(self, Record::Resume(_))
    }
}

impl From<Written> for Record {
    fn from(written: Written) -> Self {
        match written {
            Written::Stable(checkpoint) => Record::Stable(checkpoint),
            Written::History { first, entries } => Record::History { first, entries },
        }
    }
}
