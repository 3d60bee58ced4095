//! Rows and unique values by hash bucket (`docs/decisions/0046`).

use super::{Bound, KeyKind, KeySource, Parameters};
use crate::footprint::{Footprint, Mode, PartitionValue, Resource, bucket};

/// Rows, or values of a unique key, of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    /// The table, as `schema.name`.
    pub(crate) table: String,
    /// The resource that the values name: rows, or values of another key.
    pub(crate) of: RowsOf,
    /// The kinds of the key's columns, in their order.
    pub(crate) kinds: Vec<KeyKind>,
    /// The values of one row each, a source for each column.
    pub(crate) values: Vec<Vec<KeySource>>,
    /// How the rows are held.
    pub(crate) mode: Mode,
}

/// The kind of resource that values of a key name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RowsOf {
    /// Rows, by the row key. A NULL names none that is known: the table is held.
    RowKey,
    /// Values of this unique key; a value with a NULL conflicts with none, and references none.
    Unique(String),
}

/// What the values of a key are, as far as they are known.
enum Canonical {
    Bytes(Vec<u8>),
    Null,
    NotUnderstood,
}

impl Rows {
    pub(super) fn instantiate(&self, parameters: &Parameters<'_>, footprint: &mut Footprint) {
        for values in &self.values {
            match (self.canonical(values, parameters), &self.of) {
                (Canonical::Bytes(bytes), _) => footprint.add(self.resource(bucket(&bytes)), self.mode),
                (Canonical::Null, RowsOf::Unique(_)) => {}
                (Canonical::Null, RowsOf::RowKey) | (Canonical::NotUnderstood, _) => {
                    return footprint.add(self.whole(), self.mode);
                }
            }
        }
    }

    fn resource(&self, bucket: u16) -> Resource {
        let table = self.table.clone();
        match &self.of {
            RowsOf::RowKey => Resource::Row { table, bucket },
            RowsOf::Unique(key) => {
                let key = key.clone();
                Resource::Value { table, key, bucket }
            }
        }
    }

    fn whole(&self) -> Resource {
        let table = self.table.clone();
        match &self.of {
            RowsOf::RowKey => Resource::Table(table),
            RowsOf::Unique(key) => Resource::Key {
                table,
                key: key.clone(),
            },
        }
    }

    /// The bytes that are equal exactly where the values of all columns are.
    fn canonical(&self, values: &[KeySource], parameters: &Parameters<'_>) -> Canonical {
        let mut bytes = Vec::new();
        let mut is_null = false;
        for (source, kind) in values.iter().zip(&self.kinds) {
            match (parameters.bound(source, *kind), kind) {
                (Bound::Value(PartitionValue::Integer(number)), KeyKind::Integer) => {
                    bytes.push(b'i');
                    bytes.extend_from_slice(&number.to_le_bytes());
                }
                (Bound::Value(PartitionValue::Text(text)), KeyKind::Text | KeyKind::Uuid) => {
                    bytes.push(if *kind == KeyKind::Text { b't' } else { b'u' });
                    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
                    bytes.extend_from_slice(text.as_bytes());
                }
                (Bound::Null, _) => is_null = true,
                (Bound::Value(_) | Bound::NotUnderstood, _) => return Canonical::NotUnderstood,
            }
        }
        match is_null {
            true => Canonical::Null,
            false => Canonical::Bytes(bytes),
        }
    }
}

/// The bucket for new rows of a table without unique keys: one for each session, so that a transaction takes it once.
pub(super) fn new_row(table: &str, (client, session): (u32, u64)) -> Resource {
    let mut bytes = client.to_le_bytes().to_vec();
    bytes.extend_from_slice(&session.to_le_bytes());
    Resource::Row {
        table: table.to_owned(),
        bucket: bucket(&bytes),
    }
}
