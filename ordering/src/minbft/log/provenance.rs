//! Which of the operations in the log stand: a log also holds what was prepared in views and then given up.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{Digest, Order, View};

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

    pub(super) fn holds(&self, order: Order) -> bool {
        let behind = self.ranges.partition_point(|(first, _)| *first <= order);
        let last = behind.checked_sub(1).and_then(|index| self.ranges.get(index));
        last.is_some_and(|(_, last)| *last >= order)
    }
}
