//! What bare names stand for, over all tables: counted, so that a table can be taken out again.

use super::shards::Shards;
use super::table::{ColumnKind, Table, TableName};
use crate::lexer::tokenize;

/// In how many places a name stands for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    /// Tables of this name, in any schema.
    tables: u32,
    /// Tables of this name that have a column of a domain, or of a type that runs code.
    coded_tables: u32,
    columns: u32,
    date_columns: u32,
    /// Words of expressions that tables compute.
    words: u32,
}

/// The names of all tables, and of what is in them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Names {
    uses: Shards<String, Uses>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { uses: Shards::new() }
    }

    pub(super) fn add(&mut self, name: &TableName, table: &Table) {
        self.count(name, table, |number| *number = number.saturating_add(1));
    }

    pub(super) fn remove(&mut self, name: &TableName, table: &Table) {
        self.count(name, table, |number| *number = number.saturating_sub(1));
    }

    /// Whether a table has this name.
    pub(super) fn is_table(&self, name: &str) -> bool {
        self.of(name).tables > 0
    }

    /// Whether a row of a table of this name may hold what runs code.
    pub(super) fn is_coded_table(&self, name: &str) -> bool {
        self.of(name).coded_tables > 0
    }

    pub(super) fn is_column(&self, name: &str) -> bool {
        self.of(name).columns > 0
    }

    pub(super) fn is_date_column(&self, name: &str) -> bool {
        self.of(name).date_columns > 0
    }

    /// Whether some table's expression may name it.
    pub(super) fn is_in_expressions(&self, name: &str) -> bool {
        let is_one_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        !is_one_word || self.of(name).words > 0
    }

    fn of(&self, name: &str) -> Uses {
        self.uses.get(name).copied().unwrap_or_default()
    }

    fn count(&mut self, name: &TableName, table: &Table, change: fn(&mut u32)) {
        let is_coded = table.columns.iter().any(|column| column.kind == ColumnKind::Domain);
        self.change(&name.name, |uses| {
            change(&mut uses.tables);
            if is_coded {
                change(&mut uses.coded_tables);
            }
        });
        for column in &table.columns {
            let is_date = column.kind == ColumnKind::Date;
            self.change(&column.name, |uses| {
                change(&mut uses.columns);
                if is_date {
                    change(&mut uses.date_columns);
                }
            });
        }
        for expression in &table.expressions {
            for token in tokenize(expression).unwrap_or_default() {
                if let Some(word) = token.identifier(expression) {
                    self.change(&word, |uses| change(&mut uses.words));
                }
            }
        }
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Uses)) {
        let mut uses = self.of(name);
        change(&mut uses);
        match uses == Uses::default() {
            true => self.uses.remove(name),
            false => self.uses.insert(name.to_owned(), uses),
        };
    }
}
