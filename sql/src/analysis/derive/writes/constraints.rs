//! Unique constraints and foreign keys of a written table.

use super::super::super::template::Keyed;
use super::super::rows::KeyValues;
use super::{Deriver, Inserted};
use crate::footprint::{Mode, Resource};
use crate::schema::{Action, ForeignKey, Partitioning, Table, TableName};

/// Cascades over more tables take everything.
const CASCADES_MAX: usize = 16;

/// How rows of a table change.
pub(in super::super) enum Change<'columns> {
    Insert,
    /// These columns are set.
    Update(&'columns [String]),
    Delete,
}

impl Change<'_> {
    pub(in super::super) fn sets_any(&self, table: &Table, columns: &[String]) -> bool {
        match self {
            Change::Insert | Change::Delete => true,
            Change::Update(set) => columns.iter().any(|column| table.is_set_by(column, set)),
        }
    }
}

impl<'schema> Deriver<'schema> {
    /// Adds what constraints make a change touch; `value` tells what a column holds after it, and `rows` what some columns hold
    /// together, row by row.
    pub(in super::super) fn constraints(
        &mut self,
        name: &TableName,
        table: &'schema Table,
        change: &Change<'_>,
        value: &impl Fn(&mut Self, &str) -> Inserted,
        rows: &impl Fn(&mut Self, &[&str]) -> Option<KeyValues>,
    ) {
        self.uniques(name, table, change, rows);
        if !matches!(change, Change::Delete) {
            for key in &table.foreign_keys {
                if change.sets_any(table, &key.columns) {
                    self.referenced(table, key, value, rows);
                }
            }
        }
        if !matches!(change, Change::Insert) {
            self.referencing(name, table, change, 0);
        }
    }

    /// A unique value can be taken by only one partition: who writes such values of a table does so one by one.
    fn uniques(
        &mut self,
        name: &TableName,
        table: &Table,
        change: &Change<'_>,
        rows: &impl Fn(&mut Self, &[&str]) -> Option<KeyValues>,
    ) {
        if table.partitioning == Partitioning::None {
            return self.unique_values(name, table, change, rows);
        }
        let touches = table.uniques_across_partitions().any(|unique| {
            let columns: Option<Vec<String>> = unique.columns.iter().cloned().collect();
            columns.is_none_or(|columns| !unique.plain || change.sets_any(table, &columns))
        });
        if touches {
            self.fixed(Resource::Table(name.to_string()), Mode::Exclusive);
        }
    }

    /// The row that a foreign key names is read.
    fn referenced(
        &mut self,
        table: &Table,
        key: &ForeignKey,
        value: &impl Fn(&mut Self, &str) -> Inserted,
        rows: &impl Fn(&mut Self, &[&str]) -> Option<KeyValues>,
    ) {
        let Some(referenced) = self.schema.table(&key.referenced) else {
            return self.everything(Mode::Exclusive);
        };
        if referenced.row_security || referenced.inheritance {
            self.foreign_code = true;
            return self.everything(Mode::Exclusive);
        }
        match &referenced.partitioning {
            Partitioning::Reference => {}
            Partitioning::None => self.referenced_row(table, referenced, key, rows),
            Partitioning::Unusable => self.everything(Mode::Shared),
            Partitioning::Key { family, column, kind } => {
                let Some(own) = paired(&key.referenced_columns, &key.columns, column) else {
                    return self.everything(Mode::Shared);
                };
                if is_own_partition(table, *family, own) {
                    return;
                }
                match value(self, own) {
                    Inserted::Known(sources) => self.keyed(Keyed {
                        family: *family,
                        kind: *kind,
                        sources,
                        mode: Mode::Shared,
                        null_touches_nothing: true,
                    }),
                    Inserted::Default if table.column(own).is_some_and(|column| !column.has_default) => {}
                    Inserted::Default | Inserted::Unknown => self.everything(Mode::Shared),
                }
            }
        }
    }

    /// Rows that reference the changed ones are looked for, or changed too.
    fn referencing(&mut self, name: &TableName, table: &'schema Table, change: &Change<'_>, depth: usize) {
        if depth > CASCADES_MAX {
            return self.everything(Mode::Exclusive);
        }
        for reference in self.schema.references(name) {
            let (child_name, key) = (&reference.table, &reference.key);
            if !change.sets_any(table, &key.referenced_columns) {
                continue;
            }
            let action = match change {
                Change::Delete => key.on_delete,
                _ => key.on_update,
            };
            let Some(child) = self.schema.table(child_name) else {
                self.everything(Mode::Exclusive);
                continue;
            };
            let mode = match action {
                Action::Check => Mode::Shared,
                Action::Cascade | Action::SetNull | Action::SetDefault => Mode::Exclusive,
            };
            self.children(table, child_name, child, key, mode);
            let is_itself = child_name == name;
            match (action, change) {
                (Action::Check, _) => {}
                // The row that the default names is read, and which one it is, is not known here.
                (Action::SetDefault, _) => {
                    self.needs_clock = true;
                    self.everything(Mode::Exclusive);
                }
                (Action::Cascade, Change::Delete) if !is_itself => {
                    self.cascade(child_name, child, &Change::Delete, depth);
                }
                (Action::Cascade, Change::Delete) => {}
                (Action::Cascade | Action::SetNull, _) => self.rewritten(child_name, child, key, depth),
            }
        }
    }

    /// The rows of a referencing table.
    fn children(&mut self, table: &Table, child_name: &TableName, child: &Table, key: &ForeignKey, mode: Mode) {
        let is_opaque = child.row_security || child.inheritance || (mode == Mode::Exclusive && child.runs_user_code);
        if is_opaque {
            self.foreign_code = true;
            self.needs_clock = true;
            return self.everything(Mode::Exclusive);
        }
        if mode == Mode::Exclusive {
            self.needs_clock |= child.reads_clock;
        }
        match &child.partitioning {
            Partitioning::None => self.fixed(Resource::Table(child_name.to_string()), mode),
            Partitioning::Key { family, column, .. } => {
                let parent_column = paired(&key.columns, &key.referenced_columns, column);
                if !parent_column.is_some_and(|column| is_own_partition(table, *family, column)) {
                    self.everything(mode);
                }
            }
            Partitioning::Unusable | Partitioning::Reference => self.everything(mode),
        }
    }

    /// Referencing rows get another key, or none: what this makes touch in turn.
    fn rewritten(&mut self, child_name: &TableName, child: &'schema Table, key: &ForeignKey, depth: usize) {
        let change = Change::Update(&key.columns);
        let moves = child
            .key_column()
            .is_some_and(|column| child.is_set_by(column, &key.columns));
        let refers_elsewhere = child
            .foreign_keys
            .iter()
            .any(|other| other != key && change.sets_any(child, &other.columns));
        if moves || refers_elsewhere {
            return self.everything(Mode::Exclusive);
        }
        self.cascade(child_name, child, &change, depth);
    }

    /// Adds the tables that a change of referencing rows makes touch in turn.
    fn cascade(&mut self, child_name: &TableName, child: &'schema Table, change: &Change<'_>, depth: usize) {
        self.uniques(child_name, child, change, &|_, _| None);
        self.referencing(child_name, child, change, depth + 1);
    }
}

/// The column that stands at the place of `column`.
fn paired<'key>(columns: &[String], others: &'key [String], column: &str) -> Option<&'key str> {
    let position = columns.iter().position(|name| name == column)?;
    others.get(position).map(String::as_str)
}

/// Whether equal values of this column mean the table's own partition.
fn is_own_partition(table: &Table, family: usize, column: &str) -> bool {
    matches!(&table.partitioning, Partitioning::Key { family: own, column: key, .. } if *own == family && key == column)
}
