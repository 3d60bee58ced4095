//! What one state of the catalog has and another has not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::parse::{Kind, kind_of};
use super::table::TableName;
use super::{Schema, SchemaError};

/// From one state of the catalog to another. Equal on all servers between two orders, since no OID is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogChange {
    /// The row of each relation that is new or another; `None`: the relation is gone.
    relations: BTreeMap<TableName, Option<Arc<str>>>,
    /// How many more (or fewer) equal rows there are of what is no relation.
    globals: BTreeMap<Arc<str>, i64>,
}

/// The labels of [`CatalogChange::rows`].
const RELATION: &str = "relation";
const GONE: &str = "gone";
const MORE: &str = "more";
const FEWER: &str = "fewer";

impl CatalogChange {
    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.relations.is_empty() && self.globals.is_empty()
    }

    /// About as many bytes as it holds.
    pub fn bytes(&self) -> usize {
        let relations = self
            .relations
            .iter()
            .map(|(name, row)| name.schema.len() + name.name.len() + row.as_ref().map_or(0, |row| row.len()));
        relations.sum::<usize>() + self.globals.keys().map(|row| row.len()).sum::<usize>()
    }

    /// What became of a relation. `row` is one of the catalog query.
    ///
    /// # Errors
    /// When the row is no relation's.
    pub fn set_relation(&mut self, row: &str) -> Result<(), SchemaError> {
        match kind_of(row)? {
            Kind::Relation(name) => self.relations.insert(name, Some(Arc::from(row))),
            Kind::Global => return Err(SchemaError::Change("the row of a relation is none")),
        };
        Ok(())
    }

    /// A relation is gone.
    pub fn remove_relation(&mut self, schema: &str, name: &str) {
        let name = TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        };
        self.relations.insert(name, None);
    }

    /// There are so many more (or fewer) equal rows of something that is no relation.
    pub fn add_global(&mut self, row: &str, more: i64) {
        let count = self.globals.remove(row).unwrap_or(0).saturating_add(more);
        if count != 0 {
            self.globals.insert(Arc::from(row), count);
        }
    }

    /// This change, and a later one after it.
    pub fn then(&mut self, later: &CatalogChange) {
        let relations = later.relations.iter();
        self.relations
            .extend(relations.map(|(name, row)| (name.clone(), row.clone())));
        for (row, count) in &later.globals {
            self.add_global(row, *count);
        }
    }

    /// As rows of two texts.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, String)> {
        let relations = self.relations.iter().map(|(name, row)| match row {
            Some(row) => (RELATION, row.to_string()),
            None => (GONE, serde_json::json!([name.schema, name.name]).to_string()),
        });
        let globals = self.globals.iter().flat_map(|(row, count)| {
            let label = if *count > 0 { MORE } else { FEWER };
            let copies = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
            std::iter::repeat_n((label, row.to_string()), copies)
        });
        relations.chain(globals)
    }

    /// From such rows.
    ///
    /// # Errors
    /// When a row is none of these.
    pub fn from_rows<'row>(rows: impl Iterator<Item = (&'row str, &'row str)>) -> Result<Self, SchemaError> {
        let mut change = Self::default();
        for (label, text) in rows {
            match label {
                RELATION => change.set_relation(text)?,
                GONE => {
                    let (schema, name): (String, String) = serde_json::from_str(text)?;
                    change.remove_relation(&schema, &name);
                }
                MORE => change.add_global(text, 1),
                FEWER => change.add_global(text, -1),
                _ => return Err(SchemaError::Change("a row of a change has a label that is not known")),
            }
        }
        Ok(change)
    }

    pub(super) fn relations(&self) -> impl Iterator<Item = (&TableName, Option<&str>)> {
        self.relations.iter().map(|(name, row)| (name, row.as_deref()))
    }

    pub(super) fn globals(&self) -> &BTreeMap<Arc<str>, i64> {
        &self.globals
    }
}

impl Schema {
    /// From this state to the one of these rows of the whole catalog.
    ///
    /// # Errors
    /// When a row is not understood.
    pub fn change_to<'row>(&self, rows: impl Iterator<Item = &'row str>) -> Result<CatalogChange, SchemaError> {
        let mut change = CatalogChange::default();
        let mut gone: std::collections::BTreeSet<&TableName> = self.relation_names().collect();
        for row in rows {
            match kind_of(row)? {
                Kind::Relation(name) => {
                    gone.remove(&name);
                    if !self.has_row(&name, row) {
                        change.relations.insert(name, Some(Arc::from(row)));
                    }
                }
                Kind::Global => change.add_global(row, 1),
            }
        }
        for name in gone {
            change.relations.insert(name.clone(), None);
        }
        for row in self.global_rows() {
            change.add_global(row, -1);
        }
        Ok(change)
    }

    /// Takes out of a change whatever this state of the catalog has already.
    pub fn leave_out_known(&self, change: &mut CatalogChange) {
        change.relations.retain(|name, row| match row {
            Some(row) => !self.has_row(name, row),
            None => self.has_relation(name),
        });
    }

    /// The change to these rows of everything that is no relation.
    pub fn change_of_globals<'row>(&self, rows: impl Iterator<Item = &'row str>) -> CatalogChange {
        let mut change = CatalogChange::default();
        rows.for_each(|row| change.add_global(row, 1));
        self.global_rows().for_each(|row| change.add_global(row, -1));
        change
    }
}
