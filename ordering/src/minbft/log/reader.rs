//! Answers from the log: what the shell reads, this collects; bounded, and without the machine's state.

use std::collections::BTreeMap;

use crate::configuration::WATERMARK_ORDERS;
use crate::identifiers::{GroupId, Order, View};
use crate::ledger::LogAnswer;
use crate::ledger::answer::{Collected, Question};
use crate::message::CommitDbEntry;
use crate::minbft::log::provenance::{Fetched, ViewBase};
use crate::minbft::log::record::Record;
use crate::minbft::wire::message::Message;

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
