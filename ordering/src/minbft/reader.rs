//! Answers from the log: what the shell reads, this collects; bounded, and without the machine's state.

use std::collections::BTreeMap;
use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::configuration::WATERMARK_ORDERS;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::message::{CommitDb, CommitDbEntry};
use crate::minbft::history::{ANSWER_BYTES_MAX, ANSWER_ENTRIES_MAX, by_group, bytes_of, to_history};
use crate::minbft::messages::{History, Message, StableCheckpoint};
use crate::minbft::record::Record;

/// What the answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Purpose {
    /// A voter's fetch.
    Voter,
    /// A peer that lags: with the proof if the piece reaches one.
    Peer { stable: Option<StableCheckpoint> },
}

/// An answer that was collected from the log; `M` is what machines send each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogAnswer<M = Message> {
    /// Decided operations for the voter on that machine; may be none.
    Voter {
        /// The voter's machine (may be this one).
        to: MachineId,
        /// One for each group.
        messages: Vec<CommitDb>,
    },
    /// A message to the machine's peer.
    Peer {
        /// The machine.
        to: MachineId,
        /// What to send.
        message: M,
    },
}

/// Where a view's operations begin, for those that went live: everything up to `base` was decided before, and stands
/// in older records of this log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ViewBase {
    pub(crate) view: View,
    pub(crate) base: Order,
    /// How it began: [`crate::minbft::Outcome::digest`].
    pub(crate) outcome: Digest,
}

/// Forgets views none of whose operations from `first` on stand: a later one began below.
pub(crate) fn forget_views(views: &mut Vec<ViewBase>, first: Order) {
    let last = views.iter().rposition(|view| view.base < first).unwrap_or(0);
    views.drain(..last);
}

/// Which orders stand in `History` records of the log. Those are proven; what other records say of the same orders
/// may come from a view that this machine left before they were decided, and counts for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Fetched {
    /// First and last order; ascending, neither overlapping nor adjacent.
    ranges: Vec<(Order, Order)>,
}

impl Fetched {
    /// A record holds these orders.
    pub(crate) fn add(&mut self, first: Order, count: usize) {
        let Some(more) = (count as u64).checked_sub(1) else {
            return;
        };
        let mut range = (first, Order(first.0.saturating_add(more)));
        let touches = |other: &(Order, Order)| other.0 <= range.1.next() && range.0 <= other.1.next();
        let touched: Vec<_> = self.ranges.iter().copied().filter(touches).collect();
        for (low, high) in &touched {
            range = (range.0.min(*low), range.1.max(*high));
        }
        self.ranges.retain(|other| !touched.contains(other));
        let place = self.ranges.partition_point(|other| other.0 < range.0);
        self.ranges.insert(place, range);
    }

    /// Forgets orders below this one.
    pub(crate) fn forget_below(&mut self, first: Order) {
        self.ranges.retain(|(_, last)| *last >= first);
    }

    fn holds(&self, order: Order) -> bool {
        let behind = self.ranges.partition_point(|(first, _)| *first <= order);
        let last = behind.checked_sub(1).and_then(|index| self.ranges.get(index));
        last.is_some_and(|(_, last)| *last >= order)
    }
}

/// Collects decided operations from an order on.
///
/// Feed it the log's records from [`crate::minbft::LogIndex::offset`]`(reader.from())` on until
/// [`LogReader::is_full`] or the end of the log, then call [`LogReader::finish`].
#[derive(Clone, Debug)]
pub struct LogReader {
    to: MachineId,
    purpose: Purpose,
    from: Order,
    through: Order,
    views: Vec<ViewBase>,
    fetched: Fetched,
    /// Operations without gap from `from` on.
    operations: Vec<(GroupId, CommitDbEntry)>,
    bytes: usize,
    /// Operations ahead of a gap.
    ahead: BTreeMap<Order, (GroupId, CommitDbEntry)>,
    /// The highest stable checkpoint within what was collected.
    proof: Option<StableCheckpoint>,
}

impl LogReader {
    pub(crate) fn for_voter(
        to: MachineId,
        from: Order,
        through: Order,
        views: Vec<ViewBase>,
        fetched: Fetched,
    ) -> Self {
        Self::new(to, Purpose::Voter, (from, through), views, fetched)
    }

    pub(crate) fn for_peer(
        to: MachineId,
        from: Order,
        through: Order,
        (views, fetched): (Vec<ViewBase>, Fetched),
        stable: Option<StableCheckpoint>,
    ) -> Self {
        Self::new(to, Purpose::Peer { stable }, (from, through), views, fetched)
    }

    fn new(
        to: MachineId,
        purpose: Purpose,
        (from, through): (Order, Order),
        views: Vec<ViewBase>,
        fetched: Fetched,
    ) -> Self {
        LogReader {
            to,
            purpose,
            from,
            through,
            views,
            fetched,
            operations: Vec::new(),
            bytes: 0,
            ahead: BTreeMap::new(),
            proof: None,
        }
    }

    /// The first order that is wanted.
    pub fn from(&self) -> Order {
        self.from
    }

    /// Whether nothing more is needed.
    pub fn is_full(&self) -> bool {
        let has_everything = self.next() > self.through;
        self.operations.len() >= ANSWER_ENTRIES_MAX || self.bytes >= ANSWER_BYTES_MAX || has_everything
    }

    /// The order after the last one that was collected.
    fn next(&self) -> Order {
        Order(self.from.0 + self.operations.len() as u64)
    }

    /// Takes the next record of the log.
    pub fn push(&mut self, record: Record) {
        match record {
            Record::Commit { commit, share } => {
                for operation in share {
                    if self.is_valid(commit.view, operation.order) {
                        self.take(commit.group, operation);
                    }
                }
            }
            Record::TakenOver { view, outcome, entries } => {
                let went_live = self
                    .views
                    .iter()
                    .any(|known| (known.view, known.outcome) == (view, outcome));
                for (group, operation) in entries.into_iter().filter(|_| went_live) {
                    if self.is_valid(view, operation.order) {
                        self.take(group, operation);
                    }
                }
            }
            Record::History { first, entries } => {
                for (index, entry) in entries.into_iter().enumerate() {
                    let order = Order(first.0 + index as u64);
                    let operation = CommitDbEntry {
                        order,
                        time_us: entry.time_us,
                        digest: entry.digest,
                        request: entry.request,
                    };
                    self.take(entry.group, operation);
                }
            }
            Record::Stable(checkpoint) => self.take_proof(&checkpoint.stable),
            Record::Resume(resume) => {
                if let Some(checkpoint) = &resume.checkpoint {
                    self.take_proof(&checkpoint.stable);
                }
            }
            Record::Prepare(_) | Record::Start(_) | Record::Live(_) => {}
        }
        self.drain();
    }

    /// Whether an operation that was prepared in this view stands: the view went live, no later one replaced the
    /// order, and it was not fetched from a peer.
    fn is_valid(&self, view: View, order: Order) -> bool {
        if self.fetched.holds(order) {
            return false;
        }
        let went_live = self.views.iter().any(|entry| entry.view == view);
        went_live && !self.views.iter().any(|entry| entry.view > view && entry.base < order)
    }

    fn take(&mut self, group: GroupId, operation: CommitDbEntry) {
        let is_wanted = operation.order >= self.next() && operation.order <= self.through;
        if is_wanted && operation.order.0 - self.from.0 < WATERMARK_ORDERS {
            self.ahead.entry(operation.order).or_insert((group, operation));
        }
    }

    fn take_proof(&mut self, stable: &StableCheckpoint) {
        let is_within = stable.point.order >= self.from && stable.point.order < self.next();
        if is_within
            && self
                .proof
                .as_ref()
                .is_none_or(|proof| proof.point.order < stable.point.order)
        {
            self.proof = Some(stable.clone());
        }
    }

    fn drain(&mut self) {
        while let Some((_, (group, operation))) = self.ahead.remove_entry(&self.next()) {
            if self.operations.len() >= ANSWER_ENTRIES_MAX || self.bytes >= ANSWER_BYTES_MAX {
                break;
            }
            self.bytes += bytes_of(&operation.request);
            self.operations.push((group, operation));
        }
    }

    /// The answer.
    pub fn finish(mut self) -> LogAnswer {
        match std::mem::replace(&mut self.purpose, Purpose::Voter) {
            Purpose::Voter => LogAnswer::Voter {
                to: self.to,
                messages: by_group(self.operations.into_iter()),
            },
            Purpose::Peer { stable } => {
                if let Some(stable) = stable {
                    self.take_proof(&stable);
                }
                if let Some(proof) = &self.proof {
                    let count = usize::try_from(proof.point.order.0 + 1 - self.from.0).unwrap_or(usize::MAX);
                    self.operations.truncate(count);
                }
                let entries = self
                    .operations
                    .into_iter()
                    .map(|(group, operation)| to_history(group, operation))
                    .collect();
                let history = History {
                    first: self.from,
                    entries,
                    proof: self.proof,
                };
                LogAnswer::Peer {
                    to: self.to,
                    message: Message::GiveHistory(Arc::new(history)),
                }
            }
        }
    }
}
