//! The abstract database server of one voter: a backend holds the ordered list of the exchanges that it ran, a commit appends a list
//! to the committed state together with its position, and a crash loses a suffix of the commits that nothing has flushed.
//!
//! An answer is a digest of everything that could have been seen: of all that is committed on the tables that an exchange names,
//! of what its own backend has run on them, and of its clock. So two servers that differ anywhere answer differently.

use std::collections::BTreeMap;

use bytes::Bytes;
use ordering::identifiers::Digest;
use voter::lock_table::Position;

/// One commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    /// The order of the operation that committed it.
    pub order: u64,
    /// What ran, oldest first.
    pub list: Vec<Ran>,
    /// The home and position that are recorded with it.
    pub applied: Option<(String, Position)>,
}

/// An exchange as a backend ran it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// The encoded exchange.
    pub exchange: Bytes,
    /// The tables that it names.
    pub tables: Vec<String>,
    /// What it was given for `now()` and `random()`.
    pub clock: String,
    /// What it answered.
    pub answer: Digest,
}

/// An open transaction in a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backend {
    ran: Vec<Ran>,
}

/// A server with its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Database {
    /// In the order of their commits.
    commits: Vec<Committed>,
    /// So many commits survive every crash.
    flushed: usize,
    /// The floor, which is written durably.
    floor: Option<(u64, Vec<u8>)>,
    /// What any life has ever committed on each table: what a crash has lost must be committed again alike.
    ever: BTreeMap<String, Vec<(u64, Digest)>>,
    /// Whether something that was lost was committed otherwise, or in another order.
    pub changed_its_mind: bool,
}

impl Backend {
    /// Runs an exchange.
    pub(crate) fn run(&mut self, database: &Database, exchange: Bytes, tables: Vec<String>, clock: String) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&exchange);
        hasher.update(clock.as_bytes());
        for table in &tables {
            hasher.update(table.as_bytes());
            let committed = database.commits.iter().flat_map(|commit| &commit.list);
            for ran in committed.chain(&self.ran).filter(|ran| ran.tables.contains(table)) {
                hasher.update(&ran.digest());
            }
        }
        let answer = *hasher.finalize().as_bytes();
        self.ran.push(Ran {
            exchange,
            tables,
            clock,
            answer,
        });
        answer
    }
}

impl Ran {
    fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.exchange);
        hasher.update(self.clock.as_bytes());
        *hasher.finalize().as_bytes()
    }
}

impl Database {
    /// Commits what a backend has run, with its position, at an order.
    pub(crate) fn commit(&mut self, order: u64, backend: Backend, applied: Option<(String, Position)>) {
        self.commits.push(Committed {
            order,
            list: backend.ran,
            applied,
        });
        for table in self.tables() {
            let now = self.on(&table);
            let ever = self.ever.entry(table).or_default();
            let is_prefix = |shorter: &[(u64, Digest)], longer: &[(u64, Digest)]| longer.starts_with(shorter);
            if is_prefix(ever, &now) {
                *ever = now;
            } else if !is_prefix(&now, ever) {
                self.changed_its_mind = true;
            }
        }
    }

    /// The server crashes: the last commits are lost.
    pub(crate) fn crash(&mut self, lost: usize) {
        let kept = self.commits.len().saturating_sub(lost).max(self.flushed);
        self.commits.truncate(kept);
    }

    /// How many commits a crash can lose.
    pub(crate) fn unflushed(&self) -> usize {
        self.commits.len() - self.flushed
    }

    /// Writes the floor; everything before is flushed with it.
    pub(crate) fn write_floor(&mut self, order: u64, state: Vec<u8>) {
        self.floor = Some((order, state));
        self.flushed = self.commits.len();
    }

    /// The floor that was written last.
    pub(crate) fn floor(&self) -> Option<&(u64, Vec<u8>)> {
        self.floor.as_ref()
    }

    /// The last position of each home.
    pub(crate) fn applied(&self) -> BTreeMap<String, Position> {
        let applied = self.commits.iter().filter_map(|commit| commit.applied.clone());
        applied.collect()
    }

    /// All commits.
    pub(crate) fn commits(&self) -> &[Committed] {
        &self.commits
    }

    /// What was ever committed on each table.
    pub(crate) fn ever(&self) -> &BTreeMap<String, Vec<(u64, Digest)>> {
        &self.ever
    }

    fn tables(&self) -> Vec<String> {
        let ran = self.commits.iter().flat_map(|commit| &commit.list);
        let mut tables: Vec<_> = ran.flat_map(|ran| ran.tables.clone()).collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// What is committed on a table: exchanges with the orders that committed them.
    fn on(&self, table: &str) -> Vec<(u64, Digest)> {
        let commits = self.commits.iter();
        let ran = commits.flat_map(|commit| commit.list.iter().map(|ran| (commit.order, ran)));
        ran.filter(|(_, ran)| ran.tables.iter().any(|named| named == table))
            .map(|(order, ran)| (order, ran.digest()))
            .collect()
    }
}
