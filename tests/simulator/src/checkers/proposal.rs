//! Proposals: a correct primary orders each request once in its view, whoever sends it how often (`docs/protocol.md`,
//! rule OnceOnly). Voters run a repetition once anyway; orders are spent on it all the same.
//!
//! A batch that another view has left is proposed again as it is, whatever its primary had put into it.

use std::collections::{BTreeMap, HashMap};

use ordering::identifiers::{Digest, MachineId};

use super::{Checker, Observation};
use crate::protocol::Proposal;
use crate::violation::Violation;

/// Batches that are remembered: more than can be in flight.
const BATCHES_MAX: u64 = 10_000;

/// Where each correct primary has put each request of its last view, and in which view each batch came up.
#[derive(Default)]
pub(super) struct Proposals {
    views: BTreeMap<MachineId, View>,
    batches: HashMap<(u64, Vec<Digest>), u64>,
}

#[derive(Default)]
struct View {
    number: u64,
    places: HashMap<Digest, (u64, usize)>,
}

impl Checker for Proposals {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        let Observation::Proposed {
            machine,
            is_byzantine,
            proposal,
        } = observation
        else {
            return Ok(());
        };
        let is_new = self.note_batch(proposal);
        if *is_byzantine {
            return Ok(());
        }
        let view = self.views.entry(*machine).or_default();
        match view.add(proposal).filter(|_| is_new) {
            None => Ok(()),
            Some((known, place)) => Err(Violation::safety(
                "proposals",
                format!(
                    "m{machine} orders a request at {known:?} and at {place:?} of view {}",
                    proposal.view
                ),
            )),
        }
    }
}

impl Proposals {
    /// Whether a batch has first come up in this view.
    fn note_batch(&mut self, proposal: &Proposal) -> bool {
        if self.batches.len() as u64 > 2 * BATCHES_MAX {
            let first = proposal.place.saturating_sub(BATCHES_MAX);
            self.batches.retain(|(place, _), _| *place >= first);
        }
        let batch = (proposal.place, proposal.digests.clone());
        *self.batches.entry(batch).or_insert(proposal.view) == proposal.view
    }
}

impl View {
    /// Notes where requests are; tells of the first that is elsewhere too.
    fn add(&mut self, proposal: &Proposal) -> Option<((u64, usize), (u64, usize))> {
        if self.number != proposal.view {
            (self.number, self.places) = (proposal.view, HashMap::new());
        }
        if self.places.len() as u64 > 2 * BATCHES_MAX {
            let first = proposal.place.saturating_sub(BATCHES_MAX);
            self.places.retain(|_, (place, _)| *place >= first);
        }
        let mut twice = None;
        for (index, digest) in proposal.digests.iter().enumerate() {
            let place = (proposal.place, index);
            let known = *self.places.entry(*digest).or_insert(place);
            if known != place {
                twice = twice.or(Some((known, place)));
            }
        }
        twice
    }
}
