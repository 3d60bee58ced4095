//! What a machine writes to its log, and how the shell finds its way in it.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{Digest, GroupId, Order, View};
use crate::message::CommitDbEntry;
use crate::minbft::messages::{Commit, HistoryEntry, Prepare, StableCheckpoint};
use crate::minbft::start_messages::{LiveProof, Outcome};

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
    Stable(StableCheckpoint),
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
}

/// A record of any protocol's log.
pub trait LogRecord {
    /// The highest order whose operation stands in this record.
    fn last_order(&self) -> Option<Order>;
}

impl LogRecord for Record {
    fn last_order(&self) -> Option<Order> {
        match self {
            Record::Commit { share, .. } => share.last().map(|entry| entry.order),
            Record::History { first, entries } => {
                (!entries.is_empty()).then(|| Order(first.0 + entries.len() as u64 - 1))
            }
            Record::TakenOver { entries, .. } => entries.last().map(|(_, entry)| entry.order),
            Record::Prepare(_) | Record::Stable(_) | Record::Start(_) | Record::Live(_) => None,
        }
    }
}

/// Bytes of log between two marks of a [`LogIndex`].
const MARK_BYTES: u64 = 64 << 10;

/// A sparse index of the log: from which offset to read to find everything from an order on. Kept in memory by
/// the shell (16 bytes for each 64 KiB of log).
#[derive(Clone, Debug, Default)]
pub struct LogIndex {
    /// (offset, highest order before it): ascending in both.
    marks: Vec<(u64, Order)>,
    highest: Order,
}

impl LogIndex {
    /// Tells the index of a record that begins at this offset; offsets ascend.
    pub fn add<R: LogRecord>(&mut self, offset: u64, record: &R) {
        let due = self.marks.last().is_none_or(|(last, _)| offset >= last + MARK_BYTES);
        if due {
            self.marks.push((offset, self.highest));
        }
        if let Some(order) = record.last_order() {
            self.highest = self.highest.max(order);
        }
    }

    /// Where to begin to read: all operations from `order` on stand at or after this offset.
    pub fn offset(&self, order: Order) -> u64 {
        let behind = self.marks.partition_point(|(_, highest)| *highest < order);
        behind
            .checked_sub(1)
            .and_then(|index| self.marks.get(index))
            .map_or(0, |(offset, _)| *offset)
    }
}
