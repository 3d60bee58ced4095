//! Answers from the log: what the shell reads, this collects; bounded, and without the machine's state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::identifiers::{Digest, GroupId, MachineId, Order};
use crate::message::{CommitDbEntry, Request};
use crate::minbft::history::{ANSWER_ENTRIES_MAX, by_group, bytes_of, to_history};
use crate::minbft::{ANSWER_BYTES_MAX, History, LogAnswer, StableCheckpoint};
use crate::pbft::messages::{Batch, Message};
use crate::pbft::record::Record;
use crate::pbft::window::operations;

/// What the answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Purpose {
    /// A voter's fetch.
    Voter,
    /// A peer that lags: with the proof if the piece reaches one.
    Peer { stable: Option<StableCheckpoint> },
}

/// A batch and its bodies.
type Accepted = (Arc<Batch>, Vec<Arc<Request>>);

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
    /// Batches that were accepted and whose decision has not been read.
    accepted: BTreeMap<(u64, Digest), Accepted>,
    /// Operations without gap from `from` on.
    operations: Vec<(GroupId, CommitDbEntry)>,
    bytes: usize,
    /// The highest stable checkpoint within what was collected.
    proof: Option<StableCheckpoint>,
}

impl LogReader {
    pub(crate) fn for_voter(to: MachineId, from: Order, through: Order) -> Self {
        Self::new(to, Purpose::Voter, from, through)
    }

    pub(crate) fn for_peer(to: MachineId, from: Order, through: Order, stable: Option<StableCheckpoint>) -> Self {
        Self::new(to, Purpose::Peer { stable }, from, through)
    }

    fn new(to: MachineId, purpose: Purpose, from: Order, through: Order) -> Self {
        LogReader {
            to,
            purpose,
            from,
            through,
            accepted: BTreeMap::new(),
            operations: Vec::new(),
            bytes: 0,
            proof: None,
        }
    }

    /// The first order that is wanted.
    pub fn from(&self) -> Order {
        self.from
    }

    /// Whether nothing more is needed.
    pub fn is_full(&self) -> bool {
        self.has_no_room() || self.next() > self.through
    }

    fn has_no_room(&self) -> bool {
        self.operations.len() >= ANSWER_ENTRIES_MAX || self.bytes >= ANSWER_BYTES_MAX
    }

    /// The order after the last one that was collected.
    fn next(&self) -> Order {
        Order(self.from.0 + self.operations.len() as u64)
    }

    /// Takes the next record of the log.
    pub fn push(&mut self, record: Record) {
        match record {
            Record::Accepted { batch, requests, .. } => {
                if batch.last() >= self.from {
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
                    operations(&batch, &bodies).for_each(|(group, operation)| self.take(group, operation));
                }
                self.accepted.retain(|(accepted, _), _| *accepted > number);
            }
            Record::History { first, entries } => {
                for (index, entry) in (0..).zip(entries) {
                    let operation = CommitDbEntry {
                        order: Order(first.0 + index),
                        time_us: entry.time_us,
                        digest: entry.digest,
                        request: entry.request,
                    };
                    self.take(entry.group, operation);
                }
            }
            Record::Stable(checkpoint) => self.take_proof(&checkpoint.stable),
            Record::Resume(resume) => self.take_proof(&resume.checkpoint.stable),
            Record::AcceptedAgain { .. } | Record::Prepared { .. } | Record::ViewChange { .. } => {}
        }
    }

    fn take(&mut self, group: GroupId, operation: CommitDbEntry) {
        let is_wanted = operation.order == self.next() && operation.order <= self.through;
        if is_wanted && !self.has_no_room() {
            self.bytes += bytes_of(&operation.request);
            self.operations.push((group, operation));
        }
    }

    fn take_proof(&mut self, stable: &StableCheckpoint) {
        let order = stable.point.order;
        let is_within = order >= self.from && order < self.next();
        if is_within && self.proof.as_ref().is_none_or(|proof| proof.point.order < order) {
            self.proof = Some(stable.clone());
        }
    }

    /// The answer.
    pub fn finish(mut self) -> LogAnswer<Message> {
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
                let entries = self.operations.into_iter();
                let history = History {
                    first: self.from,
                    entries: entries.map(|(group, operation)| to_history(group, operation)).collect(),
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
