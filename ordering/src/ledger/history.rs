//! The decided history at one machine: its end, its hash, and a bounded tail of it in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::assignment::Assignment;
use crate::identifiers::{Digest, GroupId, Order, View};
use crate::ledger::bodies::Bodies;
use crate::ledger::piece::{History, HistoryEntry};
use crate::ledger::point::{HistoryPoint, extend_history};
use crate::message::{CommitDb, CommitDbEntry, Request};

/// Most operations in one answer to a voter.
pub(crate) const ANSWER_ENTRIES_MAX: usize = 1024;

/// Bytes of bodies after which an answer is full.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What the history itself weighs in memory for each operation, beside its body.
pub(crate) const ENTRY_BYTES: usize = 256;

/// The decided history.
#[derive(Debug)]
pub(crate) struct DecidedHistory {
    /// Its end. Invariant: everything up to it is decided, and in this machine's log.
    pub(crate) point: HistoryPoint,
    /// The last operations; the last one is at `point.order`.
    tail: VecDeque<HistoryEntry>,
    tail_bytes: usize,
}

impl DecidedHistory {
    pub(crate) fn new(point: HistoryPoint) -> Self {
        DecidedHistory {
            point,
            tail: VecDeque::new(),
            tail_bytes: 0,
        }
    }

    /// Continues the history, and forgets where the bodies are that have to leave the tail for it. What is above the stable
    /// checkpoint stays: a view change may need it.
    pub(crate) fn append(
        &mut self,
        bodies: &mut Bodies,
        operations: impl Iterator<Item = HistoryEntry>,
        view: View,
        value: u64,
        (bytes_max, stable): (usize, Order),
    ) {
        for operation in operations {
            let bytes = bytes_of(&operation.request);
            let order = self.point.order.next();
            self.point = HistoryPoint {
                order,
                time_us: operation.time_us,
                history: extend_history(
                    &self.point.history,
                    operation.group,
                    operation.time_us,
                    &operation.digest,
                ),
                bytes: self.point.bytes + bytes as u64,
                view,
                value,
                assignment: after(self.point.assignment, order, &operation),
            };
            self.tail_bytes += bytes + ENTRY_BYTES;
            self.tail.push_back(operation);
        }
        while self.tail_bytes > bytes_max && self.first() <= stable {
            let order = self.first();
            let Some(operation) = self.tail.pop_front() else { break };
            self.tail_bytes -= bytes_of(&operation.request) + ENTRY_BYTES;
            bodies.forget_location(&operation.digest, order);
        }
    }

    /// Jumps to a proven point; the operations up to it are only in the log.
    pub(crate) fn jump(&mut self, bodies: &mut Bodies, point: HistoryPoint) {
        for (operation, order) in self.tail.iter().zip((self.first().0..).map(Order)) {
            bodies.forget_location(&operation.digest, order);
        }
        self.tail.clear();
        self.tail_bytes = 0;
        self.point = point;
    }

    /// The operations in the tail above an order.
    pub(crate) fn tail_above(&self, order: Order) -> impl Iterator<Item = (Order, &HistoryEntry)> {
        let first = self.first().0;
        let begin = usize::try_from(order.0.saturating_add(1).saturating_sub(first)).unwrap_or(usize::MAX);
        let begin = begin.min(self.tail.len());
        let above = self.tail.range(begin..);
        above
            .zip(first + begin as u64..)
            .map(|(operation, number)| (Order(number), operation))
    }

    /// The order of the first operation in the tail (one after the end, when it is empty).
    pub(crate) fn first(&self) -> Order {
        Order(self.point.order.0 + 1 - self.tail.len() as u64)
    }

    /// The digest at an order, if it is in the tail.
    pub(crate) fn digest_at(&self, order: Order) -> Option<Digest> {
        let index = order.0.checked_sub(self.first().0)?;
        Some(self.tail.get(usize::try_from(index).ok()?)?.digest)
    }

    /// The body at an order.
    pub(crate) fn body(&self, order: Order) -> Option<&Arc<Request>> {
        let index = order.0.checked_sub(self.first().0)?;
        self.tail.get(usize::try_from(index).ok()?)?.request.as_ref()
    }

    /// Operations from an order on, for a voter: one message for each group, a bounded piece. None when the tail
    /// does not go back so far.
    pub(crate) fn answer(&self, from: Order, through: Order) -> Option<Vec<CommitDb>> {
        let first = self.first();
        let skip = usize::try_from(from.0.checked_sub(first.0)?).ok()?;
        let mut bytes = 0;
        let operations = self
            .tail
            .iter()
            .enumerate()
            .skip(skip)
            .map(|(index, operation)| (Order(first.0 + index as u64), operation));
        let piece = operations
            .take_while(|(order, _)| *order <= through)
            .take(ANSWER_ENTRIES_MAX)
            .take_while(|(_, operation)| {
                let has_room = bytes <= ANSWER_BYTES_MAX;
                bytes += bytes_of(&operation.request);
                has_room
            });
        Some(by_group(
            piece.map(|(order, operation)| (operation.group, operation.at(order))),
        ))
    }
}

/// The same operation, without its order.
pub(crate) fn to_history(group: GroupId, operation: CommitDbEntry) -> HistoryEntry {
    HistoryEntry {
        group,
        time_us: operation.time_us,
        digest: operation.digest,
        request: operation.request,
    }
}

/// Sorts operations into one message for each group.
pub(crate) fn by_group(operations: impl Iterator<Item = (GroupId, CommitDbEntry)>) -> Vec<CommitDb> {
    let mut groups = std::collections::BTreeMap::<GroupId, Vec<CommitDbEntry>>::new();
    for (group, operation) in operations {
        groups.entry(group).or_default().push(operation);
    }
    groups
        .into_iter()
        .map(|(group, entries)| CommitDb { group, entries })
        .collect()
}

/// The assignment after an operation.
fn after(assignment: Assignment, order: Order, operation: &HistoryEntry) -> Assignment {
    let request = operation.request.as_ref();
    request.map_or(assignment, |request| assignment.after(order, request))
}

/// Bytes of a body.
pub(crate) fn bytes_of(request: &Option<Arc<Request>>) -> usize {
    request.as_ref().map_or(0, |request| request.operation.len())
}

/// The end of a history after these pieces, all of them following `point`.
pub(crate) fn extend_over(point: HistoryPoint, pieces: &[Arc<History>]) -> HistoryPoint {
    let mut end = point;
    for operation in pieces.iter().flat_map(|piece| &piece.entries) {
        end.history = extend_history(&end.history, operation.group, operation.time_us, &operation.digest);
        end.order = end.order.next();
        end.assignment = after(end.assignment, end.order, operation);
        end.time_us = operation.time_us;
        end.bytes += bytes_of(&operation.request) as u64;
    }
    end
}
