//! Durability: what any correct machine has decided, or any voter executed, is there for ever: through crashes,
//! power cuts of everything, and logs that lost their unsynced end.
//!
//! That it is not replaced by something else is [`super::agreement`]'s business; here it must not disappear.

use ordering::identifiers::Order;

use super::{Checker, Observation};
use crate::violation::Violation;

/// The last order that was ever decided.
#[derive(Default)]
pub(super) struct Durability {
    decided: Order,
}

impl Checker for Durability {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        match observation {
            Observation::Delivered { entry, .. } => {
                self.decided = self.decided.max(entry.order);
                Ok(())
            }
            Observation::Executed { machine, order, .. } if *order > self.decided => {
                let description = format!("the voter of m{machine} executes order {order}, which nobody has decided");
                Err(Violation::safety("durability", description))
            }
            Observation::Ended {
                machine,
                history,
                executed,
            } => {
                let last = executed.unwrap_or(self.decided).min(history.order);
                if last >= self.decided {
                    return Ok(());
                }
                let description = format!(
                    "m{machine} ends at order {} (its voter at {executed:?}), but {} was decided",
                    history.order, self.decided
                );
                Err(Violation::safety("durability", description))
            }
            _ => Ok(()),
        }
    }
}
