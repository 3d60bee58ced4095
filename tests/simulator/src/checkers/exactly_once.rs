//! Exactly once: no (client, number) has its effect at two orders, on any voter, in whatever life.

use std::collections::BTreeMap;

use ordering::identifiers::{ClientId, Digest, Order};

use super::{Checker, Observation};
use crate::violation::Violation;

/// Where each request had its effect.
#[derive(Default)]
pub(super) struct ExactlyOnce {
    effects: BTreeMap<(ClientId, u64), (Order, Digest)>,
}

impl Checker for ExactlyOnce {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        let Observation::Executed {
            machine,
            order,
            request: Some(request),
            digest,
            has_effect: true,
            ..
        } = observation
        else {
            return Ok(());
        };
        let effect = (*order, *digest);
        let known = *self.effects.entry((request.client, request.number)).or_insert(effect);
        if known == effect {
            return Ok(());
        }
        Err(Violation::safety(
            "exactly once",
            format!(
                "number {} of client {} had its effect at order {}, and on m{machine} at order {order}",
                request.number, request.client, known.0
            ),
        ))
    }

    /// A number that runs a second time does so while its client may still want it.
    fn forget_below(&mut self, order: Order) {
        self.effects.retain(|_, (effect, _)| *effect >= order);
    }
}
