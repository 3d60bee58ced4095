//! An ordered map in pieces. A copy shares all pieces with its original until one of the two changes them: so a new state of the
//! catalog costs what is new in it, however many tables there are.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Pieces of a map.
const SHARDS: usize = 256;

/// The map. Its iteration has a fixed order, which is not that of the keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shards<Key, Value> {
    shards: Vec<Arc<BTreeMap<Key, Value>>>,
}

impl<Key: Ord + Hash + Clone, Value: Clone> Shards<Key, Value> {
    /// An empty map.
    pub(super) fn new() -> Self {
        Self {
            shards: vec![Arc::default(); SHARDS],
        }
    }

    pub(super) fn get<Wanted>(&self, key: &Wanted) -> Option<&Value>
    where
        Key: Borrow<Wanted>,
        Wanted: Ord + Hash + ?Sized,
    {
        self.shards.get(shard(key))?.get(key)
    }

    /// Sets a value; the one before, if there was one.
    pub(super) fn insert(&mut self, key: Key, value: Value) -> Option<Value> {
        let shard = self.shards.get_mut(shard(&key))?;
        Arc::make_mut(shard).insert(key, value)
    }

    pub(super) fn remove<Wanted>(&mut self, key: &Wanted) -> Option<Value>
    where
        Key: Borrow<Wanted>,
        Wanted: Ord + Hash + ?Sized,
    {
        let shard = self.shards.get_mut(shard(key))?;
        match shard.contains_key(key) {
            true => Arc::make_mut(shard).remove(key),
            false => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

fn shard<Wanted: Hash + ?Sized>(key: &Wanted) -> usize {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    key.hash(&mut hasher);
    usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or(0)
}

/// FNV-1a: the pieces are the same in every process.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_what_neither_has_changed() {
        let mut one: Shards<String, u32> = Shards::new();
        for number in 0..1000 {
            one.insert(format!("t_{number}"), number);
        }
        let mut other = one.clone();
        other.insert("t_7".into(), 0);
        other.remove("t_8");
        other.remove("nothing");
        let shared = one
            .shards
            .iter()
            .zip(&other.shards)
            .filter(|(one, other)| Arc::ptr_eq(one, other));
        assert!((SHARDS - 2..SHARDS).contains(&shared.count()));
        assert_eq!((one.get("t_7"), one.get("t_8")), (Some(&7), Some(&8)));
        assert_eq!((other.get("t_7"), other.get("t_8")), (Some(&0), None));
        assert_eq!((one.iter().count(), other.iter().count()), (1000, 999));
        let largest = one.shards.iter().map(|shard| shard.len()).max().unwrap();
        assert!(largest < 20, "{largest} of 1000 in one piece");
    }
}
