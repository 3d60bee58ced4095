//! What a reader of the catalog that knows objects by number needs of their rows.

use serde::Deserialize;

use super::table::TableName;
use super::{Schema, SchemaError};

/// The names in a row of a catalog query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogRow {
    /// A table or view.
    Table {
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
        /// Its columns, in their order.
        columns: Vec<String>,
    },
    /// A sequence.
    Sequence {
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
    },
    /// No relation.
    Global,
}

#[derive(Deserialize)]
struct Names {
    object: String,
    #[serde(default)]
    schema: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    columns: Option<Vec<Column>>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

impl CatalogRow {
    /// Reads a row.
    ///
    /// # Errors
    /// When it is not the JSON of an object.
    pub fn read(row: &str) -> Result<Self, SchemaError> {
        let Names {
            object,
            schema,
            name,
            columns,
        } = serde_json::from_str(row)?;
        Ok(match object.as_str() {
            "table" => CatalogRow::Table {
                schema,
                name,
                columns: columns
                    .unwrap_or_default()
                    .into_iter()
                    .map(|column| column.name)
                    .collect(),
            },
            "sequence" => CatalogRow::Sequence { schema, name },
            _ => CatalogRow::Global,
        })
    }
}

impl Schema {
    /// The names of a table's columns, in their order; `None` when there is no such table.
    pub fn columns_of(&self, schema: &str, name: &str) -> Option<impl Iterator<Item = &str>> {
        let name = TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        };
        let table = self.table(&name)?;
        Some(table.columns.iter().map(|column| column.name.as_str()))
    }
}
