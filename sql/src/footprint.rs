//! Resources, lock modes and footprints (`docs/design.md#locks`).
//!
//! Resources form a tree: [`Resource::Everything`] is the root; partitions, tables that no partition rule names and sequences
//! are its children. Below a table are its rows and the values of its unique keys, both by hash bucket (`docs/decisions/0046`).
//! Locking a resource implies an intention lock on its parents.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;

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
    /// All values of a unique key of a table that is not its row key.
    Key {
        /// The table, as `schema.name`.
        table: String,
        /// The columns of the key, by commas.
        key: String,
    },
    /// The rows of a table whose row key has a hash in one bucket. The row key of a table is one for all its statements.
    Row {
        /// The table, as `schema.name`.
        table: String,
        /// The bucket.
        bucket: u16,
    },
    /// The values of such a key whose hash is in one bucket.
    Value {
        /// The table, as `schema.name`.
        table: String,
        /// The columns of the key, by commas.
        key: String,
        /// The bucket.
        bucket: u16,
    },
}

/// A footprint with more rows of one table holds the table; with more values of one key, the key.
pub const ROWS_MAX: usize = 256;

/// A footprint with more rows and values in all holds their tables.
pub const ALL_ROWS_MAX: usize = 4096;

/// A footprint of more resources holds everything: what a client declares must not cost a voter more than its bytes.
pub const RESOURCES_MAX: usize = 65_536;

/// Resources that are added one by one; more are put in order together.
const FEW_MAX: usize = 16;

/// The bucket of a row or a unique value, from the canonical bytes of its key. There are 65,536 for each table and key: more would cost
/// `cloudbft.applied`, fewer would make strangers wait for each other.
pub fn bucket(canonical: &[u8]) -> u16 {
    let hash = blake3::hash(canonical);
    let [first, second, ..] = hash.as_bytes();
    u16::from_le_bytes([*first, *second])
}

impl Resource {
    /// The resource that contains this one; `None` for the root.
    pub fn parent(&self) -> Option<Resource> {
        match self {
            Resource::Everything => None,
            Resource::Partition(_) | Resource::Table(_) | Resource::Sequence(_) => Some(Resource::Everything),
            Resource::Row { table, .. } | Resource::Key { table, .. } => Some(Resource::Table(table.clone())),
            Resource::Value { table, key, .. } => Some(Resource::Key {
                table: table.clone(),
                key: key.clone(),
            }),
        }
    }

    /// Whether this is the other resource, or contains it.
    pub fn contains(&self, other: &Resource) -> bool {
        match (self, other) {
            (Resource::Everything, _) => true,
            (Resource::Table(own), _) => other.table() == Some(own),
            (
                Resource::Key { table, key },
                Resource::Value {
                    table: of, key: under, ..
                },
            ) => table == of && key == under,
            _ => self == other,
        }
    }

    /// The table that this is, or is a part of.
    pub fn table(&self) -> Option<&String> {
        match self {
            Resource::Table(table)
            | Resource::Row { table, .. }
            | Resource::Key { table, .. }
            | Resource::Value { table, .. } => Some(table),
            Resource::Everything | Resource::Partition(_) | Resource::Sequence(_) => None,
        }
    }

    /// Whether operations that write it run one after the other, on every voter in the same order: a table's do unless rows of it are
    /// locked.
    pub fn is_serial(&self, lock_rows: bool) -> bool {
        match self {
            Resource::Partition(_) | Resource::Sequence(_) | Resource::Row { .. } | Resource::Value { .. } => true,
            Resource::Table(_) => !lock_rows,
            Resource::Everything | Resource::Key { .. } => false,
        }
    }

    /// Whether it is one of the buckets, of which a footprint has a bounded number.
    fn is_bucket(&self) -> bool {
        matches!(self, Resource::Row { .. } | Resource::Value { .. })
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
            Resource::Row { table, bucket } => write!(formatter, "row:{table}#{bucket}"),
            Resource::Key { table, key } => write!(formatter, "key:{table}({key})"),
            Resource::Value { table, key, bucket } => write!(formatter, "value:{table}({key})#{bucket}"),
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
/// Invariant: sorted by resource, each resource at most once, and no more rows and values than [`ROWS_MAX`] of one table or
/// key and [`ALL_ROWS_MAX`] in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, BorshSerialize)]
pub struct Footprint {
    entries: Vec<(Resource, Mode)>,
}

/// What a stranger sent is put in order: the invariant holds for it too.
impl BorshDeserialize for Footprint {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let entries = Vec::<(Resource, Mode)>::deserialize_reader(reader)?;
        let is_sorted = entries
            .windows(2)
            .all(|pair| matches!(pair, [(one, _), (next, _)] if one < next));
        let has_parts = entries
            .iter()
            .any(|(resource, _)| resource.parent() > Some(Resource::Everything));
        Ok(match is_sorted && !has_parts && entries.len() <= RESOURCES_MAX {
            true => Self { entries },
            false => Self::in_order(entries),
        })
    }
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

    /// Adds a resource; a resource that is there keeps the stronger mode. Rows, values and keys are left out where their table or
    /// key is held as strongly. Where there are too many rows or values, what contains them takes their place.
    pub fn add(&mut self, resource: Resource, mode: Mode) {
        let above = resource.parent().filter(|parent| *parent != Resource::Everything);
        if above.as_ref().is_some_and(|above| self.holds_below_root(above, mode)) {
            return;
        }
        self.leave_out_parts(&resource, mode);
        match self.entries.binary_search_by(|(held, _)| held.cmp(&resource)) {
            Ok(at) => {
                if let Some(entry) = self.entries.get_mut(at) {
                    entry.1 = entry.1.max(mode);
                }
            }
            Err(at) => {
                let is_bucket = resource.is_bucket();
                self.entries.insert(at, (resource, mode));
                if let Some(above) = above.filter(|_| is_bucket) {
                    self.bound(at, &above);
                }
                self.bound_all();
            }
        }
    }

    /// The footprint of these entries, in time that grows little more than with their number.
    fn in_order(entries: Vec<(Resource, Mode)>) -> Self {
        let mut footprint = Self { entries };
        loop {
            // Of one resource the strongest mode comes first, and stays.
            let entries = &mut footprint.entries;
            entries.sort_unstable_by(|(one, held), (other, mode)| one.cmp(other).then(mode.cmp(held)));
            entries.dedup_by(|next, kept| next.0 == kept.0);
            let above = |resource: &Resource| resource.parent().filter(|parent| *parent != Resource::Everything);
            let is_part = |(resource, mode): &(Resource, Mode)| {
                above(resource).is_some_and(|above| footprint.holds_below_root(&above, *mode))
            };
            let mut parts: VecDeque<_> = footprint.entries.iter().map(is_part).collect();
            footprint.entries.retain(|_| parts.pop_front() != Some(true));
            let mut counts: BTreeMap<Resource, usize> = BTreeMap::new();
            let buckets = footprint.entries.iter().filter(|(resource, _)| resource.is_bucket());
            buckets
                .filter_map(|(resource, _)| resource.parent())
                .for_each(|parent| *counts.entry(parent).or_default() += 1);
            let all = counts.values().sum::<usize>() > ALL_ROWS_MAX && counts.values().all(|count| *count <= ROWS_MAX);
            counts.retain(|_, count| all || *count > ROWS_MAX);
            if counts.is_empty() {
                footprint.bound_all();
                return footprint;
            }
            for (resource, _) in &mut footprint.entries {
                if let Some(parent) = resource
                    .parent()
                    .filter(|parent| resource.is_bucket() && counts.contains_key(parent))
                {
                    *resource = parent;
                }
            }
        }
    }

    /// Keeps the number of resources bounded.
    fn bound_all(&mut self) {
        if self.entries.len() > RESOURCES_MAX {
            let strongest = self.entries.iter().map(|(_, mode)| *mode).max();
            self.entries = strongest.map(|mode| (Resource::Everything, mode)).into_iter().collect();
        }
    }

    /// Whether a table or key, or the table of a key, is held.
    fn holds_below_root(&self, resource: &Resource, mode: Mode) -> bool {
        let own = self.entries.binary_search_by(|(held, _)| held.cmp(resource)).ok();
        let held = own.and_then(|at| self.entries.get(at)).map(|(_, held)| *held);
        let above = || resource.parent().filter(|parent| *parent != Resource::Everything);
        held >= Some(mode) || above().is_some_and(|above| self.holds_below_root(&above, mode))
    }

    /// Keeps the number of rows and values bounded, after one below `parent` was added at a place.
    fn bound(&mut self, at: usize, parent: &Resource) {
        // Buckets come last, those of one table or key together; only a long footprint can have too many.
        if self.entries.len() <= ROWS_MAX {
            return;
        }
        let is_below = |entry: &&(Resource, Mode)| entry.0.is_bucket() && parent.contains(&entry.0);
        let after = self.entries.iter().skip(at).take_while(is_below).count();
        let before = self.entries.iter().take(at).rev().take_while(is_below).count();
        let first = self.entries.partition_point(|(resource, _)| !resource.is_bucket());
        if self.entries.len() - first > ALL_ROWS_MAX {
            self.raise(first, |_| true);
        } else if before + after > ROWS_MAX {
            self.raise(first, |resource| parent.contains(resource));
        }
    }

    /// Puts what contains some buckets in their place; buckets begin at `first`.
    fn raise(&mut self, first: usize, is_raised: impl Fn(&Resource) -> bool) {
        let mut parents = Self::empty();
        let buckets = self.entries.split_off(first.min(self.entries.len()));
        for (resource, mode) in buckets {
            match resource.parent().filter(|_| is_raised(&resource)) {
                Some(parent) => parents.add(parent, mode),
                None => self.entries.push((resource, mode)),
            }
        }
        self.extend(&parents);
    }

    /// Leaves out what a table or key contains that is held no more strongly.
    fn leave_out_parts(&mut self, of: &Resource, mode: Mode) {
        let first = |least: Resource| self.entries.partition_point(move |(resource, _)| *resource < least);
        let starts = match of {
            Resource::Table(table) => {
                let (key, bucket) = (String::new(), 0);
                let keys = Resource::Key {
                    table: table.clone(),
                    key: key.clone(),
                };
                let rows = Resource::Row {
                    table: table.clone(),
                    bucket,
                };
                let values = Resource::Value {
                    table: table.clone(),
                    key,
                    bucket,
                };
                vec![first(keys), first(rows), first(values)]
            }
            Resource::Key { table, key } => vec![first(Resource::Value {
                table: table.clone(),
                key: key.clone(),
                bucket: 0,
            })],
            _ => return,
        };
        let is_part = |at: usize| {
            self.entries
                .get(at)
                .is_some_and(|(resource, _)| resource != of && of.contains(resource))
        };
        if starts.into_iter().any(is_part) {
            self.entries
                .retain(|(resource, held)| resource == of || *held > mode || !of.contains(resource));
        }
    }

    /// What must be locked in addition to `self` to hold this too: itself, and what takes the place of rows that become too many.
    #[must_use]
    pub fn needed_for(&self, footprint: &Footprint) -> Footprint {
        let mut joint = self.clone();
        joint.extend(footprint);
        joint.entries.retain(|(resource, mode)| !self.holds(resource, *mode));
        let mut needed = footprint.clone();
        needed.extend(&joint);
        needed
    }

    /// Whether the two have a resource in common, or one has something that contains a resource of the other.
    pub fn overlaps(&self, other: &Footprint) -> bool {
        self.entries.iter().any(|(own, _)| {
            let mut others = other.entries.iter();
            others.any(|(other, _)| own.contains(other) || other.contains(own))
        })
    }

    /// Adds all of another footprint.
    pub fn extend(&mut self, other: &Footprint) {
        if other.entries.len() > FEW_MAX {
            let mut entries = std::mem::take(&mut self.entries);
            entries.extend_from_slice(&other.entries);
            *self = Self::in_order(entries);
            return;
        }
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

    /// Whether equal answers of all voters prove a state that was (rule OneResourceFastPath): at most one resource is touched, and
    /// all voters write it in the same order. Voters that are behind on different rows of a table could agree on a table that never was.
    pub fn is_serial(&self, lock_rows: bool) -> bool {
        match self.entries.as_slice() {
            [] => true,
            [(resource, _)] => resource.is_serial(lock_rows),
            _ => false,
        }
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
mod tests;
