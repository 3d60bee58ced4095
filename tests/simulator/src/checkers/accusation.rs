//! Accusations: what a correct machine says is never refused by another one, nor called a breach of the rules; and no correct
//! machine finds its own state broken. A machine that says what it may not say (an acknowledgement without the endorsements
//! that it needs, say) is seen here, also where no harm comes of it.

use super::{Checker, Observation};
use crate::violation::Violation;

/// Remembers nothing.
pub(super) struct Accusations;

impl Checker for Accusations {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        let description = match observation {
            Observation::Accused { by, machine, kind } => format!("m{by} accuses m{machine} of {kind:?}"),
            Observation::Refused {
                by,
                machine,
                kind,
                rejection,
            } => format!("m{by} refuses a {kind} of m{machine}: {rejection:?}"),
            _ => return Ok(()),
        };
        Err(Violation::safety("accusations", description))
    }
}
