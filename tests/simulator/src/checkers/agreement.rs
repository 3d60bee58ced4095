//! Agreement: no two correct machines ever decide, and no two of their voters execute, differently at one order, in
//! whatever life.

use std::collections::BTreeMap;

use ordering::identifiers::{Digest, GroupId, MachineId, Order};

use super::{Checker, Observation};
use crate::violation::Violation;

/// What was first decided at each order.
#[derive(Default)]
pub(super) struct Agreement {
    decided: BTreeMap<Order, (GroupId, u64, Digest, MachineId)>,
}

impl Checker for Agreement {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        match observation {
            Observation::Delivered { machine, group, entry } => {
                self.decide(entry.order, (*group, entry.time_us, entry.digest, *machine))
            }
            Observation::Executed {
                machine,
                order,
                group,
                time_us,
                digest,
                ..
            } => self.decide(*order, (*group, *time_us, *digest, *machine)),
            _ => Ok(()),
        }
    }

    fn forget_below(&mut self, order: Order) {
        self.decided = self.decided.split_off(&order);
    }
}

impl Agreement {
    fn decide(&mut self, order: Order, decision: (GroupId, u64, Digest, MachineId)) -> Result<(), Violation> {
        let known = *self.decided.entry(order).or_insert(decision);
        if (known.0, known.1, known.2) == (decision.0, decision.1, decision.2) {
            return Ok(());
        }
        let describe = |(group, time_us, digest, machine): (GroupId, u64, Digest, MachineId)| {
            format!("m{machine} has {} of group {group} at {time_us} us", short(&digest))
        };
        let description = format!("at order {order} {}, {}", describe(known), describe(decision));
        Err(Violation::safety("agreement", description))
    }
}

fn short(digest: &Digest) -> String {
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}
