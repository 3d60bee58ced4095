//! Which primary key a table had at an order. Written by the owner task, read beside it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sql::schema::Schema;

use super::change::{OWN_SCHEMA, SEQUENCES};
use super::effect::{KeyAt, KeyColumns};

/// Catalogs that are remembered: they share what is equal in them.
const CATALOGS_MAX: usize = 64;

/// Catalogs, each with the order that made it.
type Known = VecDeque<(u64, Arc<Schema>)>;

/// The last catalogs.
#[derive(Clone, Default)]
pub(crate) struct Catalogs(Arc<Mutex<Known>>);

impl Catalogs {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The catalog that is valid after an order. Told before any later order runs, so that all voters take the same for it.
    pub(crate) fn push(&self, order: u64, schema: Arc<Schema>) {
        let mut catalogs = self.lock();
        while catalogs.back().is_some_and(|(known, _)| *known >= order) {
            catalogs.pop_back();
        }
        catalogs.push_back((order, schema));
        if catalogs.len() > CATALOGS_MAX {
            catalogs.pop_front();
        }
    }

    /// The last key that a table is known to have had.
    pub(crate) fn last_key(&self, schema: &str, table: &str) -> KeyColumns {
        let catalogs = self.lock();
        catalogs
            .iter()
            .rev()
            .find_map(|(_, catalog)| key(catalog, schema, table))
    }

    /// The key of a table when an order began. What it has changed of the catalog itself does not count.
    pub(crate) fn key_at(&self, order: u64, schema: &str, table: &str) -> KeyAt {
        let catalogs = self.lock();
        match catalogs.iter().rev().find(|(made, _)| *made < order) {
            Some((_, catalog)) => KeyAt::Known(key(catalog, schema, table)),
            None => KeyAt::Unknown,
        }
    }

    /// Whether no life of the voter has read the catalog yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

fn key(catalog: &Schema, schema: &str, table: &str) -> KeyColumns {
    if (schema, table) == (OWN_SCHEMA, SEQUENCES) {
        return Some(vec![String::from("name")]);
    }
    let columns = catalog.primary_key_of(schema, table)?;
    Some(columns.into_iter().map(str::to_owned).collect())
}
