//! An answer that is collected from the log beside the owner task: bounded, and without the machine's state.

use std::sync::Arc;

use crate::identifiers::{GroupId, MachineId, Order};
use crate::ledger::Said;
use crate::ledger::checkpoint_message::StableCheckpoint;
use crate::ledger::history::{ANSWER_BYTES_MAX, ANSWER_ENTRIES_MAX, by_group, bytes_of, to_history};
use crate::ledger::piece::History;
use crate::message::{CommitDb, CommitDbEntry};

/// An answer that was collected from the log; `M` is what machines send each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogAnswer<M> {
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
        /// The message that is sent.
        message: M,
    },
}

/// The machines that an answer goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// A voter.
    Voter,
    /// A peer that lags: with the proof if the piece reaches one; this is the highest.
    Peer(Option<StableCheckpoint>),
}

/// A part of the log that is asked for, and the machine that it is given to.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) to: MachineId,
    pub(crate) audience: Audience,
    /// The first order that is wanted.
    pub(crate) from: Order,
    /// The last one that may be told.
    pub(crate) through: Order,
}

/// Collects decided operations in their order.
#[derive(Clone, Debug)]
pub(crate) struct Collected {
    pub(crate) question: Question,
    /// Operations without gap from the first that is wanted.
    operations: Vec<(GroupId, CommitDbEntry)>,
    bytes: usize,
    /// The highest stable checkpoint within what was collected.
    proof: Option<StableCheckpoint>,
}

impl Collected {
    pub(crate) fn new(question: Question) -> Self {
        Collected {
            question,
            operations: Vec::new(),
            bytes: 0,
            proof: None,
        }
    }

    /// Whether nothing more is needed.
    pub(crate) fn is_full(&self) -> bool {
        self.has_no_room() || self.next() > self.question.through
    }

    fn has_no_room(&self) -> bool {
        self.operations.len() >= ANSWER_ENTRIES_MAX || self.bytes >= ANSWER_BYTES_MAX
    }

    /// The order after the last one that was collected.
    pub(crate) fn next(&self) -> Order {
        Order(self.question.from.0 + self.operations.len() as u64)
    }

    /// Takes an operation if it is the next one.
    pub(crate) fn take(&mut self, group: GroupId, operation: CommitDbEntry) {
        let is_wanted = operation.order == self.next() && operation.order <= self.question.through;
        if is_wanted && !self.has_no_room() {
            self.bytes += bytes_of(&operation.request);
            self.operations.push((group, operation));
        }
    }

    /// Takes a stable checkpoint if it lies within what was collected.
    pub(crate) fn take_proof(&mut self, stable: &StableCheckpoint) {
        let order = stable.point.order;
        let is_within = order >= self.question.from && order < self.next();
        if is_within && self.proof.as_ref().is_none_or(|proof| proof.point.order < order) {
            self.proof = Some(stable.clone());
        }
    }

    /// The answer.
    pub(crate) fn finish<M: From<Said>>(mut self) -> LogAnswer<M> {
        let to = self.question.to;
        let Audience::Peer(stable) = std::mem::replace(&mut self.question.audience, Audience::Voter) else {
            let messages = by_group(self.operations.into_iter());
            return LogAnswer::Voter { to, messages };
        };
        if let Some(stable) = stable {
            self.take_proof(&stable);
        }
        let first = self.question.from;
        if let Some(proof) = &self.proof {
            let count = usize::try_from(proof.point.order.0 + 1 - first.0).unwrap_or(usize::MAX);
            self.operations.truncate(count);
        }
        let operations = self.operations.into_iter();
        let history = History {
            first,
            entries: operations
                .map(|(group, operation)| to_history(group, operation))
                .collect(),
            proof: self.proof,
        };
        let message = Said::GiveHistory(Arc::new(history)).into();
        LogAnswer::Peer { to, message }
    }
}
