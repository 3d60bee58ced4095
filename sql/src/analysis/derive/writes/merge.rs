//! MERGE: it takes everything, and may not number rows.

use sqlparser::ast::{Merge, MergeAction, TableFactor};

use super::Deriver;
use super::order::draw_refusal;
use crate::schema::Table;

impl Deriver<'_> {
    /// MERGE inserts the rows that do not match in the order in which a server finds them.
    pub(in super::super) fn merge(&mut self, merge: &Merge) {
        let inserts = merge
            .clauses
            .iter()
            .any(|clause| matches!(clause.action, MergeAction::Insert(_)));
        let name = match &merge.table {
            TableFactor::Table { name, .. } => self.target_name(name),
            _ => None,
        };
        let is_changed = name.as_ref().is_some_and(|name| self.names.is_changed(&name.name));
        let table = name.and_then(|name| self.known_table(&name));
        let draws = |table: &Table| {
            let mut columns = table.columns.iter();
            columns.any(|column| column.default_draws || !column.sequences.is_empty())
        };
        if inserts && (is_changed || table.is_some_and(draws)) {
            self.refuse(draw_refusal());
        }
    }
}
