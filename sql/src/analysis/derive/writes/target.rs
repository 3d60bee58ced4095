//! The table that a statement writes to.

use sqlparser::ast::ObjectName;

use super::super::super::level::parts_of;
use super::{Deriver, is_plain_table};
use crate::schema::{Table, TableName};

impl<'schema> Deriver<'schema> {
    /// The name that a statement calls its target by, with the schema in which that lies.
    pub(super) fn target_name(&self, object: &ObjectName) -> Option<TableName> {
        let parts = parts_of(object)?;
        Some(match parts.as_slice() {
            [name] => self.names.relation(self.schema, None, name),
            [schema, name] => self.names.relation(self.schema, Some(schema), name),
            _ => return None,
        })
    }

    /// The table that a statement writes to; what it may touch at all is added when it is not a plain one.
    pub(super) fn target(&mut self, object: &ObjectName) -> Option<(TableName, &'schema Table)> {
        let Some(name) = self.target_name(object) else {
            self.runs_unknown_code();
            return None;
        };
        let table = self.known_table(&name).filter(|table| is_plain_table(table));
        if table.is_none() {
            self.runs_unknown_code();
        }
        table.map(|table| (name, table))
    }

    /// The catalog's entry of a table, if the transaction has not changed the table.
    pub(in super::super) fn known_table(&self, name: &TableName) -> Option<&'schema Table> {
        let is_changed = self.names.is_changed(&name.name);
        self.schema.table(name).filter(|_| !is_changed)
    }
}
