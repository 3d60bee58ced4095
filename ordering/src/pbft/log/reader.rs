//! Answers from the log: what the shell reads, this collects; bounded, and without the machine's state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::identifiers::{Digest, Order};
use crate::ledger::LogAnswer;
use crate::ledger::answer::{Collected, Question};
use crate::message::Request;
use crate::pbft::log::record::Record;
use crate::pbft::window::operations;
use crate::pbft::wire::message::Message;
use crate::pbft::wire::ordered::Batch;

/// A batch and its bodies.
type Accepted = (Arc<Batch>, Vec<Arc<Request>>);

/// Collects decided operations from an order on.
///
/// Feed it the log's records from [`crate::ledger::LogIndex::offset`]`(reader.from())` on until
/// [`LogReader::is_full`] or the end of the log, then call [`LogReader::finish`].
#[derive(Clone, Debug)]
pub struct LogReader {
    collected: Collected,
    /// Batches that were accepted and whose decision has not been read.
    accepted: BTreeMap<(u64, Digest), Accepted>,
}

impl LogReader {
    pub(crate) fn new(question: Question) -> Self {
        LogReader {
            collected: Collected::new(question),
            accepted: BTreeMap::new(),
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
            Record::Accepted { batch, requests, .. } => {
                if batch.last() >= self.from() {
                    let key = (batch.number, batch.digest());
                    self.accepted.insert(key, (batch, requests));
                }
            }
            Record::Entered { batches, .. } => {
                // Batches that the view does not begin with were given up.
                let stay: BTreeSet<_> = batches.iter().map(|batch| (batch.number, batch.digest())).collect();
                self.accepted.retain(|key, _| stay.contains(key));
            }
            Record::Decided { number, digest } => {
                if let Some((batch, requests)) = self.accepted.remove(&(number, digest)) {
                    let bodies: Vec<_> = requests.into_iter().map(Some).collect();
                    operations(&batch, &bodies).for_each(|(group, operation)| self.collected.take(group, operation));
                }
                self.accepted.retain(|(accepted, _), _| *accepted > number);
            }
            Record::History { first, entries } => {
                for (entry, order) in entries.iter().zip((first.0..).map(Order)) {
                    self.collected.take(entry.group, entry.at(order));
                }
            }
            Record::Stable(checkpoint) => self.collected.take_proof(&checkpoint.stable),
            Record::Resume(resume) => self.collected.take_proof(&resume.checkpoint.stable),
            Record::AcceptedAgain { .. } | Record::Prepared { .. } | Record::ViewChange { .. } => {}
        }
    }

    /// The answer.
    pub fn finish(self) -> LogAnswer<Message> {
        self.collected.finish()
    }
}
