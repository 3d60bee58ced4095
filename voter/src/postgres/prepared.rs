//! Prepared statements of one backend, by text, parameter types and settings; least recently used ones go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// How many statements one backend keeps prepared.
pub const PREPARED_MAX: usize = 256;

/// What makes two statements the same: what Postgres looked at when it parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PreparedKey {
    /// The text that runs.
    pub text: Arc<str>,
    /// The declared parameter types.
    pub parameter_types: Vec<u32>,
    /// Hash of the session's settings (`'...'::timestamptz` is read under the time zone of Parse).
    pub settings: u64,
}

/// The cache.
#[derive(Debug, Default)]
pub struct Prepared {
    names: HashMap<PreparedKey, (u64, u64)>,
    by_use: BTreeMap<u64, PreparedKey>,
    clock: u64,
    last_name: u64,
    /// Names of statements that another one of the same text has replaced.
    replaced: Vec<u64>,
}

impl Prepared {
    /// The name of a statement that is prepared.
    pub fn find(&mut self, key: &PreparedKey) -> Option<String> {
        let (name, used) = self.names.get_mut(key)?;
        self.clock += 1;
        if let Some(key) = self.by_use.remove(used) {
            self.by_use.insert(self.clock, key);
        }
        *used = self.clock;
        Some(name_of(*name))
    }

    /// A name that no statement of this backend ever had.
    pub fn new_name(&mut self) -> String {
        self.last_name += 1;
        name_of(self.last_name)
    }

    /// Notes that the server has prepared `name` (of [`Prepared::new_name`]).
    pub fn insert(&mut self, key: PreparedKey, name: &str) {
        let Some(number) = name.strip_prefix('s').and_then(|number| number.parse().ok()) else {
            return;
        };
        self.clock += 1;
        if let Some((before, used)) = self.names.insert(key.clone(), (number, self.clock)) {
            self.by_use.remove(&used);
            self.replaced.push(before);
        }
        self.by_use.insert(self.clock, key);
    }

    /// Statements that are to be closed, so that no more than [`PREPARED_MAX`] stay.
    pub fn evict(&mut self) -> Vec<String> {
        let mut closed: Vec<_> = self.replaced.drain(..).map(name_of).collect();
        while self.names.len() > PREPARED_MAX {
            let Some((_, key)) = self.by_use.pop_first() else { break };
            closed.extend(self.names.remove(&key).map(|(name, _)| name_of(name)));
        }
        closed
    }

    /// Forgets all statements (the catalog has changed); returns their names.
    pub fn clear(&mut self) -> Vec<String> {
        self.by_use.clear();
        let mut names: Vec<_> = self.names.drain().map(|(_, (name, _))| name).collect();
        names.append(&mut self.replaced);
        names.sort_unstable();
        names.into_iter().map(name_of).collect()
    }
}

fn name_of(number: u64) -> String {
    format!("s{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> PreparedKey {
        PreparedKey {
            text: format!("select {number}").into(),
            parameter_types: Vec::new(),
            settings: 0,
        }
    }

    #[test]
    fn the_least_recently_used_statement_goes() {
        let mut prepared = Prepared::default();
        for number in 0..PREPARED_MAX {
            let name = prepared.new_name();
            prepared.insert(key(number), &name);
        }
        assert!(prepared.find(&key(0)).is_some());
        let name = prepared.new_name();
        prepared.insert(key(PREPARED_MAX), &name);
        assert_eq!(prepared.evict(), vec!["s2"]);
        assert!(prepared.find(&key(0)).is_some());
        assert!(prepared.find(&key(1)).is_none());
        assert_eq!(prepared.clear().len(), PREPARED_MAX);
        assert!(prepared.find(&key(0)).is_none());
    }
}
