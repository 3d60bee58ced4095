//! Resources, lock modes and footprints (`docs/design.md#locks`).
//!
//! Resources form a tree: [`Resource::Everything`] is the root, partitions, tables that no partition rule
//! names and sequences are its children. Locking a resource implies an intention lock on its parents.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};

/// One value of the partition key of one partition family, for example warehouse 7 (`docs/design.md#words`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct PartitionKey {
    /// The family's name in the cluster file, for example `warehouse`.
    pub family: String,
    /// The value of the key column.
    pub value: PartitionValue,
}

/// A partition key's value in its canonical form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum PartitionValue {
    /// A value of an integer column.
    Integer(i64),
    /// A value of a text column, exactly as compared by the `C` collation.
    Text(String),
}

/// Something that an operation can lock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum Resource {
    /// The root of the tree: the whole database.
    Everything,
    /// All rows of one partition, in all tables of its family.
    Partition(PartitionKey),
    /// A table that no partition rule names, as `schema.name`.
    Table(String),
    /// A sequence, as `schema.name`.
    Sequence(String),
}

impl Resource {
    /// The resource that contains this one; `None` for the root.
    pub fn parent(&self) -> Option<Resource> {
        match self {
            Resource::Everything => None,
            Resource::Partition(_) | Resource::Table(_) | Resource::Sequence(_) => Some(Resource::Everything),
        }
    }

    /// The number by which operations on this resource are assigned to a group: 0 for the root (first
    /// group), consecutive for consecutive integer partition keys, a hash otherwise.
    pub fn home_number(&self) -> u64 {
        match self {
            Resource::Everything => 0,
            Resource::Partition(PartitionKey {
                value: PartitionValue::Integer(value),
                ..
            }) => 1 + (value.unsigned_abs() & 0xffff_ffff),
            other => hash_number(&other.to_string()),
        }
    }
}

fn hash_number(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    let mut first = [0_u8; 8];
    first.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(first) | 1
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Everything => write!(formatter, "everything"),
            Resource::Partition(key) => match &key.value {
                PartitionValue::Integer(value) => write!(formatter, "partition:{}={value}", key.family),
                PartitionValue::Text(value) => write!(formatter, "partition:{}='{value}'", key.family),
            },
            Resource::Table(name) => write!(formatter, "table:{name}"),
            Resource::Sequence(name) => write!(formatter, "sequence:{name}"),
        }
    }
}

/// How a footprint holds a resource. (Intention modes are derived by the lock table.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum Mode {
    /// Read: others may read too.
    Shared,
    /// Write: nobody else.
    Exclusive,
}

/// The set of resources that an operation touches, each shared or exclusive.
///
/// Invariant: sorted by resource, each resource at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Footprint {
    entries: Vec<(Resource, Mode)>,
}

impl Footprint {
    /// The empty footprint.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The footprint of what cannot be derived: everything, exclusively.
    pub fn everything() -> Self {
        Self {
            entries: vec![(Resource::Everything, Mode::Exclusive)],
        }
    }

    /// A footprint of one resource.
    pub fn of(resource: Resource, mode: Mode) -> Self {
        Self {
            entries: vec![(resource, mode)],
        }
    }

    /// Adds a resource; a resource that is there keeps the stronger mode.
    pub fn add(&mut self, resource: Resource, mode: Mode) {
        match self.entries.binary_search_by(|(held, _)| held.cmp(&resource)) {
            Ok(at) => {
                if let Some(entry) = self.entries.get_mut(at) {
                    entry.1 = entry.1.max(mode);
                }
            }
            Err(at) => self.entries.insert(at, (resource, mode)),
        }
    }

    /// Adds all of another footprint.
    pub fn extend(&mut self, other: &Footprint) {
        for (resource, mode) in &other.entries {
            self.add(resource.clone(), *mode);
        }
    }

    /// The resources in ascending order, with their modes.
    pub fn entries(&self) -> &[(Resource, Mode)] {
        &self.entries
    }

    /// Whether nothing is touched.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether holding `self` suffices for `needed`: each needed resource, or an ancestor of it, is held in
    /// the needed mode or a stronger one.
    pub fn covers(&self, needed: &Footprint) -> bool {
        needed
            .entries
            .iter()
            .all(|(resource, mode)| self.holds(resource, *mode))
    }

    fn holds(&self, resource: &Resource, mode: Mode) -> bool {
        let own = self
            .entries
            .binary_search_by(|(held, _)| held.cmp(resource))
            .ok()
            .and_then(|at| self.entries.get(at));
        own.is_some_and(|(_, held)| *held >= mode) || resource.parent().is_some_and(|parent| self.holds(&parent, mode))
    }

    /// The home: the smallest exclusively locked resource, or the smallest of all when none is exclusive.
    pub fn home(&self) -> Resource {
        let exclusive = self.entries.iter().find(|(_, mode)| *mode == Mode::Exclusive);
        exclusive
            .or(self.entries.first())
            .map_or(Resource::Everything, |(resource, _)| resource.clone())
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.entries.iter().map(|(resource, mode)| match mode {
            Mode::Shared => format!("{resource} shared"),
            Mode::Exclusive => format!("{resource} exclusive"),
        });
        write!(formatter, "{{{}}}", words.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warehouse(value: i64) -> Resource {
        Resource::Partition(PartitionKey {
            family: "warehouse".into(),
            value: PartitionValue::Integer(value),
        })
    }

    #[test]
    fn everything_covers_every_partition() {
        assert!(Footprint::everything().covers(&Footprint::of(warehouse(7), Mode::Exclusive)));
        assert!(!Footprint::of(warehouse(7), Mode::Exclusive).covers(&Footprint::everything()));
    }

    #[test]
    fn shared_does_not_cover_exclusive() {
        let shared = Footprint::of(warehouse(1), Mode::Shared);
        assert!(!shared.covers(&Footprint::of(warehouse(1), Mode::Exclusive)));
        assert!(Footprint::of(warehouse(1), Mode::Exclusive).covers(&shared));
    }

    #[test]
    fn home_is_the_smallest_exclusive_resource() {
        let mut footprint = Footprint::of(warehouse(1), Mode::Shared);
        footprint.add(warehouse(9), Mode::Exclusive);
        footprint.add(warehouse(4), Mode::Exclusive);
        assert_eq!(footprint.home(), warehouse(4));
    }
}
