//! What a checker found.

use std::fmt;

/// The phase of a run in which something was found; the exit code of the command says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Something happened that must never happen.
    Safety,
    /// Something did not happen in time although the network was timely and the correct machines were up.
    Liveness,
}

impl Phase {
    /// What the command exits with.
    pub fn exit_code(self) -> u8 {
        match self {
            Phase::Safety => 2,
            Phase::Liveness => 3,
        }
    }
}

/// A property that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The phase.
    pub phase: Phase,
    /// The property.
    pub property: &'static str,
    /// What happened.
    pub description: String,
}

impl Violation {
    /// A property of the safety phase.
    pub fn safety(property: &'static str, description: String) -> Self {
        Violation {
            phase: Phase::Safety,
            property,
            description,
        }
    }

    /// A property of the liveness phase.
    pub fn liveness(property: &'static str, description: String) -> Self {
        Violation {
            phase: Phase::Liveness,
            property,
            description,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:?} phase: {}: {}",
            self.phase, self.property, self.description
        )
    }
}
