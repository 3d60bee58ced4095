//! The own counter: a machine whose counter was spent on something that it did not ask for takes part no longer
//! (`docs/protocol.md`, rule NoLateCommit): what it certifies from then on nobody can follow, and nobody knows what is
//! missing.

use ordering::agreement::Phase;

use super::{Checker, Observation};
use crate::violation::Violation;

/// Remembers nothing.
pub(super) struct OwnCounter;

impl Checker for OwnCounter {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        match observation {
            Observation::CounterSkipped { machine, phase } if *phase != Phase::Stopped => Err(Violation::safety(
                "own counter",
                format!("m{machine} is {phase:?} although its counter was spent on something else"),
            )),
            _ => Ok(()),
        }
    }
}
