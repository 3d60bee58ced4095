//! Checkpoints: a stable checkpoint never goes back within a life nor beyond what is decided, and two correct
//! machines whose histories have got equally far have the same hash.

use std::collections::BTreeMap;

use ordering::identifiers::{Digest, MachineId, Order};

use super::{Checker, Observation};
use crate::violation::Violation;

/// The stable checkpoint of each machine, and the history's hash at each order that was seen.
#[derive(Default)]
pub(super) struct Checkpoint {
    stable: BTreeMap<MachineId, Order>,
    hashes: BTreeMap<Order, Digest>,
}

impl Checker for Checkpoint {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        match observation {
            Observation::Restarted { machine, .. } => {
                self.stable.remove(machine);
            }
            Observation::Stepped {
                machine,
                status,
                history,
                ..
            } => {
                let last = self.stable.entry(*machine).or_default();
                if status.stable < *last || status.stable > status.decided {
                    let description = format!(
                        "the stable checkpoint of m{machine} is {} after {last}, with {} decided",
                        status.stable, status.decided
                    );
                    return Err(Violation::safety("checkpoint", description));
                }
                *last = status.stable;
                let known = *self.hashes.entry(history.order).or_insert(history.hash);
                if history.order > Order(0) && known != history.hash {
                    let description = format!("m{machine} has another history up to order {}", history.order);
                    return Err(Violation::safety("checkpoint", description));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn forget_below(&mut self, order: Order) {
        self.hashes = self.hashes.split_off(&order);
    }
}
