//! What one transaction has changed, as a digest that does not depend on the order of its changes. Pure.
//!
//! Only what is left at the end counts: a row that a transaction writes twice counts as it was written last. What lies
//! between may differ on correct servers: a trigger that adds to a sum runs for the rows of a statement as they lie. A table
//! without a primary key does not say which rows it wrote twice: where it may have, only the numbers of its changes count.
//!
//! The digest is over the sorted hashes of what is left. A sum of hashes would do with less memory, and does not stand
//! against who chooses rows (see `spool::sorted`).

use std::collections::{BTreeMap, BTreeSet};

use ordering::identifiers::Digest;

use super::change::{Columns, OWN_SCHEMA, RowChange, RowKind, SEQUENCES, TableName};

/// The digest of a transaction that has changed nothing.
pub(crate) const NOTHING: Digest = [0; 32];

/// Changes of one transaction that are kept: 10 MiB. Of one that has more only the numbers of changes of each table count.
const CHANGES_MAX: usize = 131_072;

/// Tables of one transaction that are told apart. Changes of the others count together.
const TABLES_MAX: usize = 4_096;

/// Tables and keys that are named when servers differ.
const NAMED_MAX: usize = 8;

/// Bytes of a name, or a key, that is shown.
const SHOWN_BYTES_MAX: usize = 128;

/// What is shown of a transaction when servers differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Tables that it has changed, with the number of changes, and keys of rows.
    text: String,
}

impl std::fmt::Display for Shown {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// The columns of a table's primary key; `None` without one.
pub(crate) type KeyColumns = Option<Vec<String>>;

/// What is known of a table's key at an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyAt {
    /// This.
    Known(KeyColumns),
    /// The order is older than what this process has read of the catalog.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Insert,
    Update,
    Delete,
    /// What an update told of the row before: it stands before the update. It is gone unless it has the same key.
    Moved,
}

struct Change {
    table: u32,
    kind: Kind,
    key: Option<Digest>,
    row: Digest,
}

#[derive(Default)]
struct Table {
    schema: String,
    name: String,
    /// By which its rows were told apart.
    key: KeyColumns,
    /// Since it was emptied last.
    inserted: u64,
    updated: u64,
    deleted: u64,
    /// It was emptied: with these flags, before this change.
    emptied: Option<(String, usize)>,
    /// An update told what the row was before: its key may be another one now.
    has_moved: bool,
    /// A change of it did not tell the key.
    keyless: bool,
}

/// What a transaction has changed so far.
#[derive(Default)]
pub(crate) struct Effect {
    tables: Vec<Table>,
    numbers: BTreeMap<(String, String), u32>,
    changes: Vec<Change>,
    is_bulk: bool,
    keys: Vec<String>,
}

/// A transaction's effect, complete.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// `None`: it cannot be told, since a key was another one at the transaction's order than when it was read.
    pub(crate) digest: Option<Digest>,
    /// What is shown of it.
    pub(crate) shown: Shown,
    /// Only the numbers of changes count.
    pub(crate) is_bulk: bool,
}

impl Effect {
    /// Changes that are kept.
    pub(crate) fn changes(&self) -> usize {
        self.changes.len()
    }

    /// Whether nothing has been changed, unless it was noted where sequences stand, as voters do at their start too.
    pub(crate) fn only_notes_sequences(&self) -> bool {
        let is_note = |table: &Table| (table.schema.as_str(), table.name.as_str()) == (OWN_SCHEMA, SEQUENCES);
        self.tables.iter().all(is_note)
    }

    /// Adds a change of a row. `key_columns` is asked for a table that is met for the first time.
    pub(crate) fn row(&mut self, change: &RowChange<'_>, key_columns: impl FnOnce() -> KeyColumns) {
        let number = self.number(&change.table, key_columns);
        let Some(table) = self.tables.get_mut(number as usize) else {
            return;
        };
        let kind = match change.kind {
            RowKind::Insert => Kind::Insert,
            RowKind::Update => Kind::Update,
            RowKind::Delete => Kind::Delete,
        };
        match kind {
            Kind::Insert => table.inserted += 1,
            Kind::Update | Kind::Moved => table.updated += 1,
            Kind::Delete => table.deleted += 1,
        }
        if self.is_bulk {
            return;
        }
        let columns = change.new.or(change.old);
        let key_of = |columns: Option<Columns<'_>>| columns.and_then(|columns| columns.key(table.key.as_deref()?));
        let (key, old_key) = (key_of(columns), change.new.and(key_of(change.old)));
        table.keyless |= key.is_none();
        let row = row_hash(columns);
        let key_digest = key.as_ref().map(|key| hash("key", &[key.as_bytes()]));
        if self.keys.len() < NAMED_MAX {
            let key = key.unwrap_or_else(|| "(no primary key)".into());
            let shown = format!("{}.{} {key}", table.schema, table.name);
            if self.keys.last() != Some(&shown) {
                self.keys.push(shown);
            }
        }
        if let (RowKind::Update, Some(old)) = (change.kind, change.old) {
            table.has_moved = true;
            self.changes.push(Change {
                table: number,
                kind: Kind::Moved,
                key: old_key.map(|key| hash("key", &[key.as_bytes()])),
                row: row_hash(Some(old)),
            });
        }
        let (table, key) = (number, key_digest);
        self.changes.push(Change { table, kind, key, row });
        self.bound();
    }

    /// Adds a change whose line was too long to be read.
    pub(crate) fn unread(&mut self) {
        let table = TableName {
            schema: "".into(),
            name: "(a row that is too long to be compared)".into(),
        };
        let number = self.number(&table, || None);
        let row = hash("unread", &[]);
        if let Some(table) = self.tables.get_mut(number as usize) {
            (table.inserted, table.keyless) = (table.inserted + 1, true);
        }
        if !self.is_bulk {
            let (table, kind, key) = (number, Kind::Insert, None);
            self.changes.push(Change { table, kind, key, row });
            self.bound();
        }
    }

    /// Empties a table.
    pub(crate) fn truncate(&mut self, table: &TableName<'_>, flags: &str, key_columns: impl FnOnce() -> KeyColumns) {
        let number = self.number(table, key_columns);
        let before = self.changes.len();
        if let Some(table) = self.tables.get_mut(number as usize) {
            table.emptied = Some((flags.to_owned(), before));
            (table.inserted, table.updated, table.deleted, table.keyless) = (0, 0, 0, false);
        }
    }

    fn bound(&mut self) {
        if self.changes.len() > CHANGES_MAX {
            self.is_bulk = true;
            self.changes = Vec::new();
        }
    }

    fn number(&mut self, table: &TableName<'_>, key_columns: impl FnOnce() -> KeyColumns) -> u32 {
        let mut name = (table.schema.to_string(), table.name.to_string());
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        let mut key = None;
        if self.numbers.len() >= TABLES_MAX {
            name = (String::new(), String::from("(further tables)"));
            if let Some(number) = self.numbers.get(&name) {
                return *number;
            }
        } else {
            key = key_columns();
        }
        let number = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        self.tables.push(Table {
            schema: name.0.clone(),
            name: name.1.clone(),
            key,
            ..Table::default()
        });
        self.numbers.insert(name, number);
        number
    }

    /// Completes it. `key_columns` says a table's key at the transaction's order.
    pub(crate) fn finish(self, key_columns: impl Fn(&str, &str) -> KeyAt) -> Summary {
        let shown = self.shown();
        let is_bulk = self.is_bulk;
        let digest = match is_bulk {
            true => Some(digest_of(self.tables.iter().map(Table::counted).collect())),
            false => self.digest(key_columns),
        };
        Summary { digest, shown, is_bulk }
    }

    fn digest(self, key_columns: impl Fn(&str, &str) -> KeyAt) -> Option<Digest> {
        let mut parts = Vec::with_capacity(self.changes.len());
        let mut rules = Vec::with_capacity(self.tables.len());
        for table in &self.tables {
            // Only the key that is valid at the order tells rows apart alike on all servers.
            let rule = match key_columns(&table.schema, &table.name) {
                KeyAt::Known(None) => table.rule(false),
                KeyAt::Known(key) if key == table.key => table.rule(true),
                _ if table.is_plain() && !table.has_moved => Rule::Listed,
                _ => return None,
            };
            parts.extend((rule == Rule::Counted).then(|| table.counted()));
            parts.extend(table.emptied.as_ref().map(|(flags, _)| {
                let tag = [table.schema.as_bytes(), table.name.as_bytes(), flags.as_bytes()];
                hash("emptied", &tag)
            }));
            rules.push(rule);
        }
        let mut done = BTreeSet::new();
        for (at, change) in self.changes.iter().enumerate().rev() {
            let number = change.table as usize;
            let (Some(table), Some(rule)) = (self.tables.get(number), rules.get(number)) else {
                continue;
            };
            if table.emptied.as_ref().is_some_and(|(_, before)| at < *before) {
                continue;
            }
            let name = [table.schema.as_bytes(), table.name.as_bytes()];
            let [schema, name] = name;
            let counts = match (rule, change.key) {
                (Rule::Keyed, Some(key)) => done.insert((change.table, key)),
                (Rule::Listed, _) => true,
                _ => false,
            };
            let tag = match change.kind {
                Kind::Insert | Kind::Update => "is",
                Kind::Delete | Kind::Moved => "gone",
            };
            parts.extend(counts.then(|| hash(tag, &[schema, name, &change.row])));
        }
        Some(digest_of(parts))
    }

    fn shown(&self) -> Shown {
        let mut text = String::new();
        let mut add = |part: &str| {
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.extend(part.chars().scan(0, |bytes, character| {
                *bytes += character.len_utf8();
                (*bytes <= SHOWN_BYTES_MAX).then_some(if character.is_control() { ' ' } else { character })
            }));
        };
        for table in self.tables.iter().take(NAMED_MAX) {
            let Table { schema, name, .. } = table;
            let changes = table.inserted + table.updated + table.deleted;
            let emptied = if table.emptied.is_some() { "emptied, then " } else { "" };
            add(&format!("{schema}.{name} ({emptied}{changes} changes)"));
        }
        self.keys.iter().for_each(|key| add(key));
        Shown { text }
    }
}

/// How a table's changes count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The last one of each key.
    Keyed,
    /// All of them: none can have written what another one wrote.
    Listed,
    /// Their numbers.
    Counted,
}

impl Table {
    fn rule(&self, has_key: bool) -> Rule {
        if has_key && !self.keyless {
            Rule::Keyed
        } else if self.is_plain() {
            Rule::Listed
        } else {
            Rule::Counted
        }
    }

    /// No row can have been written twice, whatever its key is: all changes count, as they do with a key.
    fn is_plain(&self) -> bool {
        let changes = self.inserted + self.updated + self.deleted;
        changes == self.inserted || changes == 1
    }

    fn counted(&self) -> Digest {
        let numbers = [self.inserted, self.updated, self.deleted].map(u64::to_le_bytes);
        hash(
            "counted",
            &[self.schema.as_bytes(), self.name.as_bytes(), numbers.as_flattened()],
        )
    }
}

fn row_hash(columns: Option<Columns<'_>>) -> Digest {
    hash("row", &[columns.map_or("", |columns| columns.0).as_bytes()])
}

/// Of parts in any order.
fn digest_of(mut parts: Vec<Digest>) -> Digest {
    if parts.is_empty() {
        return NOTHING;
    }
    parts.sort_unstable();
    hash("effect", &[parts.as_flattened()])
}

fn hash(tag: &str, parts: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for part in std::iter::once(&tag.as_bytes()).chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests;
