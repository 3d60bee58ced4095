//! A state of the catalog from rows, and the next one from a change: what one relation adds, and takes away again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::change::CatalogChange;
use super::globals::Globals;
use super::names::Names;
use super::parse::{Kind, kind_of, relation};
use super::shards::Shards;
use super::table::{Reference, Table, TableName};
use super::{CATALOG_BYTES_MAX, Relation, Schema, SchemaError};
use crate::analysis::is_bounded_expression;
use crate::rules::PartitionRules;

impl Schema {
    /// The catalog of a database without user objects, and without partition rules.
    pub fn empty() -> Self {
        Self::without_objects(PartitionRules::default())
    }

    fn without_objects(rules: PartitionRules) -> Self {
        Self {
            relations: Shards::new(),
            references: Shards::new(),
            names: Names::new(),
            globals: Arc::new(Globals::none()),
            rules: Arc::new(rules),
            sum: [0; 4],
            bytes: 0,
        }
    }

    /// The catalog from the rows of [`super::CATALOG_QUERY`].
    ///
    /// # Errors
    /// When a row is not understood, or there are too many.
    pub fn parse<'row>(rows: impl Iterator<Item = &'row str>, rules: &PartitionRules) -> Result<Self, SchemaError> {
        let mut schema = Self::without_objects(rules.clone());
        let mut globals: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for row in rows {
            match kind_of(row)? {
                Kind::Relation(name) => schema.add(name, row)?,
                Kind::Global => *globals.entry(Arc::from(row)).or_default() += 1,
            }
            schema.check_size()?;
        }
        schema.globals = Arc::new(Globals::parse(globals)?);
        schema.check_size()?;
        schema.judge_all();
        Ok(schema)
    }

    /// The catalog after a change of this one. What has not changed is shared with this one, and not looked at.
    ///
    /// # Errors
    /// When a row is not understood, the change is not one of this catalog, or there would be too much.
    pub fn patched(&self, change: &CatalogChange) -> Result<Self, SchemaError> {
        let mut schema = self.clone();
        for (name, row) in change.relations() {
            schema.remove(name);
            if let Some(row) = row {
                schema.add(name.clone(), row)?;
            }
        }
        let mut judges_all = false;
        if !change.globals().is_empty() {
            schema.globals = Arc::new(schema.globals.changed(change.globals())?);
            judges_all = true;
        }
        schema.check_size()?;
        // An expression may cast to a table's row type.
        judges_all |= change
            .relations()
            .any(|(name, _)| schema.names.is_in_expressions(&name.name));
        match judges_all {
            true => schema.judge_all(),
            false => change.relations().for_each(|(name, _)| schema.judge(name)),
        }
        Ok(schema)
    }

    pub(super) fn has_relation(&self, name: &TableName) -> bool {
        self.relations.get(name).is_some()
    }

    /// Whether a relation's row is this one.
    pub(super) fn has_row(&self, name: &TableName, row: &str) -> bool {
        let hash = blake3::hash(row.as_bytes());
        let known = self.relations.get(name);
        known.is_some_and(|known| known.hash == *hash.as_bytes())
    }

    pub(super) fn relation_names(&self) -> impl Iterator<Item = &TableName> {
        self.relations.iter().map(|(name, _)| name)
    }

    pub(super) fn global_rows(&self) -> impl Iterator<Item = &str> {
        self.globals.rows()
    }

    fn add(&mut self, name: TableName, row: &str) -> Result<(), SchemaError> {
        let table = relation(row, &self.rules)?.map(Arc::new);
        if let Some(table) = &table {
            self.names.add(&name, table);
            self.reference(table);
        }
        let added = Relation {
            hash: *blake3::hash(row.as_bytes()).as_bytes(),
            bytes: row.len(),
            table,
        };
        self.count(&added, u64::wrapping_add);
        self.bytes = self.bytes.saturating_add(added.bytes);
        match self.relations.insert(name, added) {
            Some(_) => Err(SchemaError::Change("a relation is there twice")),
            None => Ok(()),
        }
    }

    fn remove(&mut self, name: &TableName) {
        let Some(removed) = self.relations.remove(name) else {
            return;
        };
        self.count(&removed, u64::wrapping_sub);
        self.bytes = self.bytes.saturating_sub(removed.bytes);
        if let Some(table) = &removed.table {
            self.names.remove(name, table);
            self.unreference(table);
        }
    }

    fn count(&mut self, relation: &Relation, change: fn(u64, u64) -> u64) {
        for (part, bytes) in self.sum.iter_mut().zip(relation.hash.chunks_exact(8)) {
            let number = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            *part = change(*part, number);
        }
    }

    /// Tells the tables that a table's foreign keys reference.
    fn reference(&mut self, table: &Table) {
        for key in &table.foreign_keys {
            let reference = Reference {
                table: table.name.clone(),
                key: key.clone(),
            };
            let mut references = self.references.get(&key.referenced).cloned().unwrap_or_default();
            let after = references.partition_point(|other| other.table <= table.name);
            Arc::make_mut(&mut references).insert(after, Arc::new(reference));
            self.references.insert(key.referenced.clone(), references);
        }
    }

    fn unreference(&mut self, table: &Table) {
        for key in &table.foreign_keys {
            let Some(mut references) = self.references.remove(&key.referenced) else {
                continue;
            };
            if references.iter().any(|reference| reference.table != table.name) {
                Arc::make_mut(&mut references).retain(|reference| reference.table != table.name);
                self.references.insert(key.referenced.clone(), references);
            }
        }
    }

    fn judge_all(&mut self) {
        let names: Vec<_> = self.tables().map(|table| table.name.clone()).collect();
        names.iter().for_each(|name| self.judge(name));
    }

    /// Tells a table whether the time and the outcome of what a write computes in it are bounded.
    fn judge(&mut self, name: &TableName) {
        let Some(table) = self.table(name) else { return };
        let mut expressions = table.expressions.iter();
        let is_bounded = expressions.all(|expression| is_bounded_expression(self, expression));
        if is_bounded == table.is_bounded {
            return;
        }
        let Some(mut relation) = self.relations.get(name).cloned() else {
            return;
        };
        if let Some(table) = &mut relation.table {
            Arc::make_mut(table).is_bounded = is_bounded;
        }
        self.relations.insert(name.clone(), relation);
    }

    fn check_size(&self) -> Result<(), SchemaError> {
        match self.bytes.saturating_add(self.globals.bytes()) > CATALOG_BYTES_MAX {
            true => Err(SchemaError::TooLarge(CATALOG_BYTES_MAX)),
            false => Ok(()),
        }
    }
}
