//! What a machine writes to its log, and how the shell finds its way in it.

use std::collections::VecDeque;
use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{Digest, GroupId, Order, View};
use crate::message::CommitDbEntry;
use crate::minbft::messages::{CertifiedCheckpoint, Commit, HistoryEntry, Prepare};
use crate::minbft::reader::{Fetched, ViewBase};
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
    /// Where views began whose operations can be read.
    pub(crate) views: Vec<ViewBase>,
    /// Which of them were fetched.
    pub(crate) fetched: Fetched,
}

/// A record of any protocol's log.
pub trait LogRecord {
    /// The highest order whose operation stands in this record.
    ///
    /// An operation that may be needed after [`crate::agreement::Output::CutLog`] stands in a record that says so.
    fn last_order(&self) -> Option<Order>;

    /// Whether the log may begin with this record: it says again what is needed of all that was before it.
    fn is_foundation(&self) -> bool;
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

/// Bytes of log between two marks of a [`LogIndex`].
const MARK_BYTES: u64 = 64 << 10;

/// A sparse index of the log: from which offset to read to find everything from an order on. Kept in memory by
/// the shell (16 bytes for each 64 KiB of log).
#[derive(Clone, Debug)]
pub struct LogIndex {
    mark_bytes: u64,
    /// (offset, highest order before it): ascending in both.
    marks: VecDeque<(u64, Order)>,
    highest: Order,
    /// Where the log may begin: records that are foundations, ascending.
    foundations: VecDeque<u64>,
}

impl Default for LogIndex {
    fn default() -> Self {
        Self::with_marks_every(MARK_BYTES)
    }
}

impl LogIndex {
    /// An index with a mark for so many bytes of log.
    pub fn with_marks_every(mark_bytes: u64) -> Self {
        LogIndex {
            mark_bytes,
            marks: VecDeque::new(),
            highest: Order(0),
            foundations: VecDeque::new(),
        }
    }

    /// Tells the index of a record that begins at this offset; offsets ascend.
    pub fn add<R: LogRecord>(&mut self, offset: u64, record: &R) {
        let due = self
            .marks
            .back()
            .is_none_or(|(last, _)| offset >= last + self.mark_bytes);
        if due {
            self.marks.push_back((offset, self.highest));
        }
        if record.is_foundation() {
            self.foundations.push_back(offset);
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

    /// Where the log may be cut when operations from `first` on are needed, and everything below the offset `durable`
    /// is durable; none: nowhere yet. Forgets what is below.
    pub fn cut(&mut self, first: Order, durable: u64) -> Option<u64> {
        let passed = self.foundations.partition_point(|offset| *offset < durable);
        let foundation = *self.foundations.get(passed.checked_sub(1)?)?;
        self.foundations.drain(..passed - 1);
        let offset = foundation.min(self.offset(first));
        let below = self.marks.partition_point(|(mark, _)| *mark < offset);
        self.marks.drain(..below);
        Some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(order: u64) -> Record {
        Record::TakenOver {
            view: View(0),
            outcome: [0; 32],
            entries: vec![(
                GroupId(0),
                CommitDbEntry {
                    order: Order(order),
                    time_us: 0,
                    digest: [0; 32],
                    request: None,
                },
            )],
        }
    }

    fn foundation() -> Record {
        Record::Resume(Arc::new(Resume {
            checkpoint: None,
            first: Order(1),
            view: None,
            live: None,
            views: Vec::new(),
            fetched: Fetched::default(),
        }))
    }

    #[test]
    fn a_log_is_cut_below_what_is_needed_and_below_a_durable_foundation() {
        let mut index = LogIndex::with_marks_every(1);
        for order in 1..=4 {
            index.add(order * 10, &operation(order));
        }
        assert_eq!(index.cut(Order(3), 1_000), None, "no foundation");
        index.add(50, &foundation());
        index.add(60, &operation(5));
        assert_eq!(index.cut(Order(3), 50), None, "it is not durable");
        assert_eq!(index.cut(Order(3), 51), Some(30));
        assert_eq!(index.offset(Order(3)), 30);
        assert_eq!(index.cut(Order(9), 100), Some(50), "never above the foundation");
        index.add(70, &foundation());
        assert_eq!(index.cut(Order(9), 70), Some(50));
        assert_eq!(index.cut(Order(9), 71), Some(70));
    }
}
