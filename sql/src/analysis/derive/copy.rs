//! COPY of a whole table.

use super::writes::Change;
use super::{Derived, Deriver};
use crate::footprint::Mode;
use crate::names::Names;
use crate::schema::{Schema, TableName};
use crate::statement::StatementClass;
use crate::words::Words;

/// Derives what `COPY table (columns) ...` touches; the table's name comes next in `words`.
pub(in super::super) fn derive_copy(
    schema: &Schema,
    names: &Names,
    mut words: Words<'_>,
    mode: Mode,
    class: StatementClass,
) -> Derived {
    let mut deriver = Deriver::new(schema, names, words);
    let is_write = mode == Mode::Exclusive;
    deriver.writes = is_write;
    deriver.modifies = is_write;
    let mut condition = words;
    while !condition.is_end() && !condition.accept("where") {
        condition.skip();
    }
    if super::calls_unknown_function(schema, condition) || super::uses_user_code(schema, condition) {
        deriver.runs_unknown_code();
    }
    match (table_name(schema, names, &mut words), is_write) {
        (Some(name), true) => deriver.copied_into(&name, &columns(words)),
        (Some(name), false) => deriver.copied_from(&name),
        (None, _) => deriver.everything(mode),
    }
    let derived = deriver.finish();
    Derived {
        class,
        plain_read: false,
        ..derived
    }
}

impl Deriver<'_> {
    /// COPY FROM: rows of any key.
    fn copied_into(&mut self, name: &TableName, columns: &[String]) {
        let schema = self.schema;
        let Some(table) = schema.table(name).filter(|table| super::writes::is_plain_table(table)) else {
            return self.runs_unknown_code();
        };
        let columns = match columns {
            [] => table.columns.iter().map(|column| column.name.clone()).collect(),
            some => some.to_vec(),
        };
        self.needs_clock |= table.reads_clock;
        self.touch_table(name, table, Mode::Exclusive, |_| None);
        self.copied_defaults(table, &columns);
        let unknown = |_: &mut Self, _: &str| super::writes::Inserted::Unknown;
        self.constraints(name, table, &Change::Insert, &unknown, &|_, _| None);
    }

    fn copied_from(&mut self, name: &TableName) {
        let Some(table) = self.schema.table(name) else {
            self.foreign_code = true;
            return self.everything(Mode::Shared);
        };
        match super::writes::is_plain_table(table) {
            true => self.touch_table(name, table, Mode::Shared, |_| None),
            false => {
                self.foreign_code = true;
                self.everything(Mode::Shared);
            }
        }
    }
}

fn table_name(schema: &Schema, names: &Names, words: &mut Words<'_>) -> Option<TableName> {
    let first = words.identifier()?;
    if words.accept_punctuation(b'.') {
        let name = words.identifier()?;
        return Some(names.relation(schema, Some(&first), &name));
    }
    let qualifier = first.starts_with("pg_").then_some("pg_catalog");
    Some(names.relation(schema, qualifier, &first))
}

/// The names in the parenthesis that comes next, if one does.
fn columns(mut words: Words<'_>) -> Vec<String> {
    let mut columns = Vec::new();
    if words.accept_punctuation(b'(') {
        while let Some(column) = words.identifier() {
            columns.push(column);
            if !words.accept_punctuation(b',') {
                break;
            }
        }
    }
    columns
}
