//! Unique constraints and foreign keys of a written table.

use super::super::super::template::Keyed;
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
    fn sets_any(&self, columns: &[String]) -> bool {
        match self {
            Change::Insert | Change::Delete => true,
            Change::Update(set) => columns.iter().any(|column| set.contains(column)),
        }
    }
}

impl<'schema> Deriver<'schema> {
    /// Adds what constraints make a change touch; `value` tells what a column holds after it.
    pub(in super::super) fn constraints(
        &mut self,
        name: &TableName,
        table: &'schema Table,
        change: &Change<'_>,
        value: impl Fn(&mut Self, &str) -> Inserted,
    ) {
        self.uniques(name, table, change);
        if !matches!(change, Change::Delete) {
            for key in &table.foreign_keys {
                if change.sets_any(&key.columns) {
                    self.referenced(table, key, &value);
                }
            }
        }
        if !matches!(change, Change::Insert) {
            self.referencing(name, table, change, 0);
        }
    }

    /// A unique value can be taken by only one partition: who writes such values of a table does so one by one.
    fn uniques(&mut self, name: &TableName, table: &Table, change: &Change<'_>) {
        let touches = table.uniques_across_partitions().any(|unique| {
            let columns: Option<Vec<String>> = unique.columns.iter().cloned().collect();
            columns.is_none_or(|columns| !unique.plain || change.sets_any(&columns))
        });
        if touches {
            self.fixed(Resource::Table(name.to_string()), Mode::Exclusive);
        }
    }

    /// The row that a foreign key names is read.
    fn referenced(&mut self, table: &Table, key: &ForeignKey, value: &impl Fn(&mut Self, &str) -> Inserted) {
        let Some(referenced) = self.schema.table(&key.referenced) else {
            return self.everything(Mode::Exclusive);
        };
        if referenced.row_security || referenced.inheritance {
            return self.everything(Mode::Exclusive);
        }
        match &referenced.partitioning {
            Partitioning::Reference => {}
            Partitioning::None => self.fixed(Resource::Table(key.referenced.to_string()), Mode::Shared),
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
        for (child_name, key) in &table.referenced_by {
            if !change.sets_any(&key.referenced_columns) {
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
                Action::Change => Mode::Exclusive,
            };
            self.children(table, child_name, child, key, mode);
            let is_itself = child_name == name;
            if action == Action::Change && !is_itself {
                self.cascade(child_name, child, key, change, depth);
            }
        }
    }

    /// The rows of a referencing table.
    fn children(&mut self, table: &Table, child_name: &TableName, child: &Table, key: &ForeignKey, mode: Mode) {
        let is_opaque = child.row_security || child.inheritance || (mode == Mode::Exclusive && child.runs_user_code);
        if is_opaque {
            self.needs_clock = true;
            return self.everything(Mode::Exclusive);
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

    /// What the change of referencing rows makes touch in turn.
    fn cascade(
        &mut self,
        child_name: &TableName,
        child: &'schema Table,
        key: &ForeignKey,
        change: &Change<'_>,
        depth: usize,
    ) {
        if key.columns.iter().any(|column| child.key_column() == Some(column)) && !matches!(change, Change::Delete) {
            return self.everything(Mode::Exclusive);
        }
        self.uniques(child_name, child, &Change::Delete);
        self.referencing(child_name, child, &Change::Delete, depth + 1);
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
