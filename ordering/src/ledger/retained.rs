//! Cutting the log (rule CutBelowFlushed): what is stable, and flushed in every live database, is not needed.
//!
//! A dead database would hold the log back for ever. So when the log is too large, the f slowest databases do not
//! count: at most f are faulty, and a database that is that far behind is repaired from the others. Both protocols use this.

use std::collections::{BTreeMap, VecDeque};

use crate::configuration::Configuration;
use crate::identifiers::{MachineId, Order};
use crate::ledger::point::HistoryPoint;

/// What the log holds for each operation beside its body, in bytes: estimated, to bound the log without asking the shell.
pub(crate) const LOG_ENTRY_BYTES: u64 = 512;

/// Places that are remembered, at most: the oldest are forgotten, and the log is then cut at a later one.
const PLACES_MAX: usize = 16_384;

/// The weight of the log up to a place.
fn weight(point: &HistoryPoint) -> u64 {
    point
        .bytes
        .saturating_add(point.order.0.saturating_mul(LOG_ENTRY_BYTES))
}

/// The stable checkpoints at which the log may be cut: their orders, and what the log up to there weighs in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retained {
    /// Where the log begins.
    begin: (Order, u64),
    /// Ascending.
    places: VecDeque<(Order, u64)>,
}

impl Retained {
    /// A stable checkpoint.
    pub(crate) fn push(&mut self, point: &HistoryPoint) {
        let last = self.places.back().copied().unwrap_or(self.begin);
        if point.order > last.0 {
            self.places.push_back((point.order, weight(point)));
        }
        if self.places.len() > PLACES_MAX {
            self.places.pop_front();
        }
    }

    /// The log begins with this order.
    pub(crate) fn forget_below(&mut self, first: Order) {
        while let Some(place) = self.places.front().copied().filter(|place| place.0 < first) {
            self.begin = place;
            self.places.pop_front();
        }
    }

    /// The last order up to which the log is to be cut now; none: what would go is not worth it.
    ///
    /// `flushed`: what each voter has reported.
    pub(crate) fn due(
        &self,
        flushed: &BTreeMap<MachineId, Order>,
        stable: &HistoryPoint,
        configuration: &Configuration,
    ) -> Option<Order> {
        let silent = usize::from(configuration.voters()).saturating_sub(flushed.len());
        let mut reports: Vec<Order> = std::iter::repeat_n(Order(0), silent)
            .chain(flushed.values().copied())
            .collect();
        reports.sort_unstable();
        let all = *reports.first()?;
        let live = *reports.get(usize::from(configuration.faults.0))?;
        let heavy = weight(stable).saturating_sub(configuration.log_bytes_max);
        let too_heavy = |place: &(Order, u64)| place.1 < heavy && place.0 <= live;
        let is_free = |place: &(Order, u64)| place.0 <= all || too_heavy(place);
        let place = self.places.iter().rev().find(|place| is_free(place))?;
        let is_worth = place.1.saturating_sub(self.begin.1) >= configuration.cut_bytes;
        is_worth.then_some(place.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Faults;

    fn point(order: u64) -> HistoryPoint {
        HistoryPoint {
            order: Order(order),
            bytes: order * 488,
            ..HistoryPoint::GENESIS
        }
    }

    /// One operation weighs 1,000 bytes.
    fn due(flushed: &[u64], stable: u64) -> Option<u64> {
        let mut configuration = Configuration::new(MachineId(1), Faults(1), 1);
        (configuration.log_bytes_max, configuration.cut_bytes) = (500_000, 50_000);
        let mut retained = Retained::default();
        (1..=stable / 100).for_each(|place| retained.push(&point(place * 100)));
        let flushed = (1..).map(MachineId).zip(flushed.iter().copied().map(Order)).collect();
        Some(retained.due(&flushed, &point(stable), &configuration)?.0)
    }

    #[test]
    fn what_every_database_has_flushed_is_cut_at_a_stable_checkpoint() {
        assert_eq!(due(&[399, 350, 300], 400), Some(300));
        assert_eq!(due(&[399, 350, 299], 400), Some(200));
        assert_eq!(due(&[399, 350, 99], 400), None);
    }

    #[test]
    fn a_database_that_has_not_reported_holds_the_log_until_it_is_too_large() {
        assert_eq!(due(&[400, 400], 500), None);
        assert_eq!(due(&[1_000, 1_000], 1_000), Some(400));
        assert_eq!(due(&[1_000, 1_000, 20], 1_000), Some(400));
    }

    #[test]
    fn no_more_than_f_databases_are_left_behind() {
        assert_eq!(due(&[1_000, 250, 20], 1_000), Some(200));
        assert_eq!(due(&[1_000], 1_000), None);
    }

    #[test]
    fn what_is_cut_off_is_not_cut_again() {
        let configuration = Configuration {
            cut_bytes: 150_000,
            ..Configuration::new(MachineId(1), Faults(1), 1)
        };
        let flushed: BTreeMap<_, _> = (1..=3).map(|machine| (MachineId(machine), Order(300))).collect();
        let mut retained = Retained::default();
        (1..=3).for_each(|place| retained.push(&point(place * 100)));
        assert_eq!(retained.due(&flushed, &point(300), &configuration), Some(Order(300)));
        retained.forget_below(Order(201));
        assert_eq!(retained.due(&flushed, &point(300), &configuration), None);
    }
}
