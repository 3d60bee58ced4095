//! Whether the checkers find what they must find: the canary (a trusted counter that certifies two digests at one
//! value), more adversaries than are tolerated, and mutants of the protocols.

use crate::campaign;
use crate::options::Overrides;
use crate::protocol::Protocol;
use crate::run::{Outcome, run};

/// Something that is broken on purpose.
#[derive(Clone, Copy, Debug)]
pub struct Prey {
    /// What is broken.
    pub name: &'static str,
    /// The options under which it shows.
    pub options: &'static str,
    /// Seeds within which a checker must report it.
    pub seeds_max: u64,
}

/// Broken trusted counters: what MinBFT stands on.
pub const MINBFT_CANARIES: &[Prey] = &[Prey {
    name: "canary: the counters of two machines certify twice at one value",
    options: "faults=2 counters=Broken adversaries=m0:equivocating,m1:equivocating crashes=0 primary_cuts=0 power_cuts=0",
    seeds_max: 10,
}];

/// One Byzantine machine more than PBFT bears.
pub const PBFT_CANARIES: &[Prey] = &[Prey {
    name: "canary: f+1 machines equivocate",
    options: "faults=1 adversaries=m0:equivocating,m1:equivocating crashes=0 primary_cuts=0 power_cuts=0 corrupted_ms=0 requests=15",
    seeds_max: 10,
}];

/// The options as overrides.
pub fn overrides(options: &str) -> Overrides {
    let pairs = options.split(' ').filter_map(|part| part.split_once('='));
    Overrides(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// The first seed that catches it, counted from 0, with what was violated; none within the bound: the hunt failed.
pub fn hunt<P: Protocol>(prey: &Prey) -> Result<Option<(u64, Outcome)>, String> {
    hunt_with::<P>(&overrides(prey.options), prey.seeds_max)
}

/// As [`hunt`], with any options and bound.
pub fn hunt_with<P: Protocol>(overrides: &Overrides, seeds_max: u64) -> Result<Option<(u64, Outcome)>, String> {
    for seed in 0..seeds_max {
        let options = campaign::options::<P>(seed, overrides)?;
        let outcome = run::<P>(&options, None);
        if outcome.violation.is_some() {
            return Ok(Some((seed, outcome)));
        }
    }
    Ok(None)
}
