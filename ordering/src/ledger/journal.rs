//! The numbers of the log's records, and what waits until one of them is durable.

use std::collections::VecDeque;

/// `T`: what follows when a record is durable.
#[derive(Debug)]
pub(crate) struct Journal<T> {
    next_sequence: u64,
    waiting: VecDeque<(u64, T)>,
}

impl<T> Journal<T> {
    pub(crate) fn new() -> Self {
        Journal {
            next_sequence: 1,
            waiting: VecDeque::new(),
        }
    }

    /// The number of the next record.
    pub(crate) fn number(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence - 1
    }

    /// Something waits for the record that is numbered next.
    pub(crate) fn wait(&mut self, then: T) {
        self.waiting.push_back((self.next_sequence, then));
    }

    /// The next thing that waited for a record up to this one.
    pub(crate) fn persisted(&mut self, sequence: u64) -> Option<T> {
        let (waited, _) = self.waiting.front()?;
        if *waited > sequence || sequence >= self.next_sequence {
            return None;
        }
        self.waiting.pop_front().map(|(_, then)| then)
    }

    /// Whether anything waits.
    pub(crate) fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Numbers ascend.
    pub(crate) fn check_invariants(&self) {
        assert!(self.waiting.iter().is_sorted_by(|left, right| left.0 < right.0));
    }
}
