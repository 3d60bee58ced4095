//! How a shell finds its way in the log of any protocol.

use std::collections::VecDeque;

use crate::identifiers::Order;

/// A record of any protocol's log.
pub trait LogRecord {
    /// The highest order whose operation stands in this record.
    ///
    /// An operation that may be needed after [`crate::agreement::Output::CutLog`] stands in a record that says so.
    fn last_order(&self) -> Option<Order>;

    /// Whether the log may begin with this record: it says again what is needed of all that was before it.
    fn is_foundation(&self) -> bool;
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

    enum Record {
        Operation(u64),
        Foundation,
    }

    impl LogRecord for Record {
        fn last_order(&self) -> Option<Order> {
            match self {
                Record::Operation(order) => Some(Order(*order)),
                Record::Foundation => None,
            }
        }

        fn is_foundation(&self) -> bool {
            matches!(self, Record::Foundation)
        }
    }

    #[test]
    fn a_log_is_cut_below_what_is_needed_and_below_a_durable_foundation() {
        let mut index = LogIndex::with_marks_every(1);
        for order in 1..=4 {
            index.add(order * 10, &Record::Operation(order));
        }
        assert_eq!(index.cut(Order(3), 1_000), None, "no foundation");
        index.add(50, &Record::Foundation);
        index.add(60, &Record::Operation(5));
        assert_eq!(index.cut(Order(3), 50), None, "it is not durable");
        assert_eq!(index.cut(Order(3), 51), Some(30));
        assert_eq!(index.offset(Order(3)), 30);
        assert_eq!(index.cut(Order(9), 100), Some(50), "never above the foundation");
        index.add(70, &Record::Foundation);
        assert_eq!(index.cut(Order(9), 70), Some(50));
        assert_eq!(index.cut(Order(9), 71), Some(70));
    }
}
