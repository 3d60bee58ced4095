//! What the database had when this life of the voter began: the last position of each home (`docs/design.md#exactly-once`). Pure.

use std::collections::BTreeMap;

use sql::footprint::Resource;

use crate::lock_table::Position;
use crate::outcome::Outcome;

/// The last positions that survived, by home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survived {
    positions: BTreeMap<String, Position>,
}

impl Survived {
    /// What was found in `cloudbft.applied`.
    pub fn new(positions: BTreeMap<String, Position>) -> Self {
        Self { positions }
    }

    /// Whether the operation at a position was over before this life of the voter began, and must not run: something later on
    /// its home has survived, or something later on everything, before which all else had ended.
    pub fn includes(&self, home: &str, position: Position) -> bool {
        let everything = Resource::Everything.to_string();
        let later = |home: &str| self.positions.get(home).is_some_and(|survived| *survived >= position);
        later(home) || later(&everything)
    }

    /// What can be said of an operation that was over before this life of the voter began: if it is the last of its home, it
    /// was committed; else it may have been refused.
    pub fn outcome(&self, home: &str, position: Position) -> Outcome {
        if self.positions.get(home) == Some(&position) {
            Outcome::Executed
        } else {
            Outcome::Unavailable
        }
    }

    /// The highest order of which something has survived; 0 if nothing has.
    pub fn newest(&self) -> u64 {
        let positions = self.positions.values();
        positions
            .map(|position| position.granted.max(position.order))
            .max()
            .unwrap_or(0)
    }

    /// Whether an ordered read would see what came after its order.
    pub fn is_past(&self, order: u64) -> bool {
        self.newest() > order
    }
}
