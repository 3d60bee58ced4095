//! Agreement: no two correct machines ever decide differently at one order, in whatever life.

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
        let Observation::Delivered { machine, group, entry } = observation else {
            return Ok(());
        };
        let decision = (*group, entry.time_us, entry.digest, *machine);
        let known = *self.decided.entry(entry.order).or_insert(decision);
        if (known.0, known.1, known.2) == (decision.0, decision.1, decision.2) {
            return Ok(());
        }
        Err(Violation::safety(
            "agreement",
            format!(
                "at order {} m{} decided {} of group {} at {} us, m{machine} decided {} of group {group} at {} us",
                entry.order,
                known.3,
                short(&known.2),
                known.0,
                known.1,
                short(&entry.digest),
                entry.time_us
            ),
        ))
    }
}

fn short(digest: &Digest) -> String {
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}
