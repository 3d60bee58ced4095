//! Answers from the log: what the shell reads, this collects; bounded, and without the machine's state.

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::configuration::WATERMARK_ORDERS;
use crate::identifiers::{Digest, GroupId, Order, View};
use crate::ledger::LogAnswer;
use crate::ledger::answer::{Collected, Question};
use crate::message::CommitDbEntry;
use crate::minbft::messages::Message;
use crate::minbft::record::Record;

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
/// Feed it the log's records from [`crate::ledger::LogIndex::offset`]`(reader.from())` on until
/// [`LogReader::is_full`] or the end of the log, then call [`LogReader::finish`].
#[derive(Clone, Debug)]
pub struct LogReader {
    collected: Collected,
    views: Vec<ViewBase>,
    fetched: Fetched,
    /// Operations ahead of a gap.
    ahead: BTreeMap<Order, (GroupId, CommitDbEntry)>,
}

impl LogReader {
    pub(crate) fn new(question: Question, views: Vec<ViewBase>, fetched: Fetched) -> Self {
        LogReader {
            collected: Collected::new(question),
            views,
            fetched,
            ahead: BTreeMap::new(),
        }
    }

    /// The first order that is wanted.
    pub fn from(&self) -> Order {
        self.collected.question.from
    }

    /// Whether nothing more is needed.
    pub fn is_full(&self) -> bool {
        self.collected.is_full()
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
                for (entry, order) in entries.iter().zip((first.0..).map(Order)) {
                    self.take(entry.group, entry.at(order));
                }
            }
            Record::Stable(checkpoint) => self.collected.take_proof(&checkpoint.stable),
            Record::Resume(resume) => {
                if let Some(checkpoint) = &resume.checkpoint {
                    self.collected.take_proof(&checkpoint.stable);
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
        let (question, order) = (&self.collected.question, operation.order);
        let is_wanted = order >= self.collected.next() && order <= question.through;
        if is_wanted && order.0 - question.from.0 < WATERMARK_ORDERS {
            self.ahead.entry(order).or_insert((group, operation));
        }
    }

    fn drain(&mut self) {
        while let Some((group, operation)) = self.ahead.remove(&self.collected.next()) {
            self.collected.take(group, operation);
        }
    }

    /// The answer.
    pub fn finish(self) -> LogAnswer<Message> {
        self.collected.finish()
    }
}
