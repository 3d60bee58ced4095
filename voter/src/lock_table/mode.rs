//! Lock modes on the tree of resources, and which exclude each other.

use std::collections::BTreeMap;

use sql::footprint::{Footprint, Mode, Resource};

/// The usual modes of hierarchical locking (Gray et al., 1976); a resource that is held shared and has a child that is
/// held exclusively counts as exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum LockMode {
    /// A child is held shared.
    IntentShared,
    /// A child is held exclusively.
    IntentExclusive,
    /// Read.
    Shared,
    /// Written.
    Exclusive,
}

impl LockMode {
    /// All modes.
    pub(super) const ALL: [LockMode; 4] = [
        LockMode::IntentShared,
        LockMode::IntentExclusive,
        LockMode::Shared,
        LockMode::Exclusive,
    ];

    /// Whether two holders exclude each other.
    pub(super) fn conflicts(self, other: LockMode) -> bool {
        use LockMode::{Exclusive, IntentExclusive, IntentShared, Shared};
        match (self, other) {
            (Exclusive, _) | (_, Exclusive) => true,
            (Shared, IntentExclusive) | (IntentExclusive, Shared) => true,
            (IntentShared | IntentExclusive, _) | (Shared, IntentShared | Shared) => false,
        }
    }

    /// The weakest mode that is as strong as both.
    pub(super) fn join(self, other: LockMode) -> LockMode {
        use LockMode::{Exclusive, IntentExclusive, Shared};
        match (self, other) {
            (Shared, IntentExclusive) | (IntentExclusive, Shared) => Exclusive,
            _ => self.max(other),
        }
    }
}

/// A set of locks, ascending by resource.
pub(super) type Locks = Vec<(Resource, LockMode)>;

/// The locks of a footprint, with the intentions on its resources' parents. Always names the root, so that whatever
/// holds everything excludes every operation.
pub(super) fn locks_of(footprint: &Footprint) -> Locks {
    let mut locks: BTreeMap<Resource, LockMode> = BTreeMap::new();
    let mut add = |resource: Resource, mode: LockMode| {
        locks
            .entry(resource)
            .and_modify(|held| *held = held.join(mode))
            .or_insert(mode);
    };
    add(Resource::Everything, LockMode::IntentShared);
    for (resource, mode) in footprint.entries() {
        let (own, intent) = match mode {
            Mode::Shared => (LockMode::Shared, LockMode::IntentShared),
            Mode::Exclusive => (LockMode::Exclusive, LockMode::IntentExclusive),
        };
        let mut parent = resource.parent();
        while let Some(above) = parent {
            parent = above.parent();
            add(above, intent);
        }
        add(resource.clone(), own);
    }
    locks.into_iter().collect()
}

/// Four values, one for each mode.
#[derive(Clone, Debug, Default)]
pub(super) struct ByMode<T> {
    slots: [T; 4],
}

impl<T> ByMode<T> {
    /// The slot of a mode.
    pub(super) fn of(&mut self, mode: LockMode) -> &mut T {
        let [intent_shared, intent_exclusive, shared, exclusive] = &mut self.slots;
        match mode {
            LockMode::IntentShared => intent_shared,
            LockMode::IntentExclusive => intent_exclusive,
            LockMode::Shared => shared,
            LockMode::Exclusive => exclusive,
        }
    }

    /// The slots of the modes that conflict with `mode`.
    pub(super) fn conflicting(&self, mode: LockMode) -> impl Iterator<Item = &T> {
        let pairs = LockMode::ALL.into_iter().zip(&self.slots);
        pairs
            .filter(move |(other, _)| mode.conflicts(*other))
            .map(|(_, slot)| slot)
    }

    /// All slots.
    pub(super) fn slots(&self) -> &[T; 4] {
        &self.slots
    }
}
