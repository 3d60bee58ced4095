//! Proposals: a correct primary orders each request once in its view, whoever sends it how often (DESIGN.md section 4,
//! rule 8). Voters run a repetition once anyway; orders are spent on it all the same.

use std::collections::{BTreeMap, HashMap};

use ordering::identifiers::{Digest, MachineId};

use super::{Checker, Observation};
use crate::violation::Violation;

/// Batches of a view that are remembered: more than can be in flight.
const PLACES_MAX: u64 = 10_000;

/// Where each correct primary has put each request of its last view.
#[derive(Default)]
pub(super) struct Proposals {
    views: BTreeMap<MachineId, View>,
}

#[derive(Default)]
struct View {
    number: u64,
    places: HashMap<Digest, (u64, usize)>,
}

impl Checker for Proposals {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        let Observation::Proposed { machine, proposal } = observation else {
            return Ok(());
        };
        let view = self.views.entry(*machine).or_default();
        if view.number != proposal.view {
            (view.number, view.places) = (proposal.view, HashMap::new());
        }
        for (index, digest) in proposal.digests.iter().enumerate() {
            let place = (proposal.place, index);
            let known = *view.places.entry(*digest).or_insert(place);
            if known != place {
                return Err(Violation::safety(
                    "proposals",
                    format!(
                        "m{machine} orders a request at {known:?} and at {place:?} of view {}",
                        view.number
                    ),
                ));
            }
        }
        if view.places.len() as u64 > 2 * PLACES_MAX {
            let first = proposal.place.saturating_sub(PLACES_MAX);
            view.places.retain(|_, (place, _)| *place >= first);
        }
        Ok(())
    }
}
