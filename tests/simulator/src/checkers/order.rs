//! Order: every voter executes order after order without a gap, and the primary's times rise.

use std::collections::BTreeMap;

use ordering::identifiers::{MachineId, Order};

use super::{Checker, Observation};
use crate::violation::Violation;

/// The next order of each voter, and all times.
#[derive(Default)]
pub(super) struct OrderWithoutGaps {
    executed: BTreeMap<MachineId, Order>,
    times: BTreeMap<Order, u64>,
}

impl OrderWithoutGaps {
    fn time(&mut self, order: Order, time_us: u64) -> Result<(), Violation> {
        self.times.insert(order, time_us);
        let before = self.times.range(..order).next_back();
        let after = self.times.range(order.next()..).next();
        let rises = before.is_none_or(|(_, before_us)| *before_us < time_us)
            && after.is_none_or(|(_, after_us)| time_us < *after_us);
        if rises {
            return Ok(());
        }
        Err(Violation::safety(
            "order",
            format!("the time of order {order}, {time_us} us, is not between its neighbours': {before:?}, {after:?}"),
        ))
    }
}

impl Checker for OrderWithoutGaps {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        match observation {
            Observation::Delivered { entry, .. } => self.time(entry.order, entry.time_us),
            Observation::Restarted { machine, executed } => {
                self.executed.insert(*machine, *executed);
                Ok(())
            }
            Observation::Executed { machine, order, .. } => {
                let last = self.executed.entry(*machine).or_default();
                if *order != last.next() {
                    let description = format!("the voter of m{machine} executes order {order} after {last}");
                    return Err(Violation::safety("order", description));
                }
                *last = *order;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn forget_below(&mut self, order: Order) {
        self.times = self.times.split_off(&order);
    }
}
