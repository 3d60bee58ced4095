//! The catalog of user objects, as far as footprints and determinism depend on it (`docs/design.md#locks`).

mod catalog;
mod change;
mod globals;
mod names;
mod parse;
mod patch;
mod row;
mod shards;
mod table;

use std::sync::Arc;

use crate::functions::Volatility;
use crate::operation::SessionContext;
use crate::rules::PartitionRules;

use globals::Globals;
use names::Names;
use shards::Shards;
use table::Column;
pub(crate) use table::{
    Action, ColumnKind, ForeignKey, LockedKey, Partitioning, Reference, Table, TableKind, TableName, Unique,
};

pub use catalog::{CATALOG_QUERY, NUMBERED_CATALOG_QUERY, NUMBERED_GLOBALS_QUERY, NUMBERED_RELATIONS_QUERY};
pub use change::CatalogChange;
pub use row::CatalogRow;

/// Values of `search_path` under which an unqualified name means a table of `public`.
const PLAIN_PATHS: [&str; 4] = ["\"$user\", public", "\"$user\",public", "public", "\"public\""];

/// A catalog of more bytes is refused.
pub const CATALOG_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why rows of [`CATALOG_QUERY`] are not understood.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A row is not the JSON of an object that this version knows.
    #[error("catalog row is not understood: {0}")]
    Row(#[from] serde_json::Error),
    /// More bytes than [`CATALOG_BYTES_MAX`].
    #[error("the catalog exceeds {0} bytes")]
    TooLarge(usize),
    /// A change is none of this catalog.
    #[error("the change of the catalog does not fit: {0}")]
    Change(&'static str),
}

/// The catalog under given partition rules.
///
/// Copies share what is equal in them, so that a state after a change ([`Schema::patched`]) costs what has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    relations: Shards<TableName, Relation>,
    /// The foreign keys that reference a table (which need not be there), by the names of the tables that have them.
    references: Shards<TableName, Arc<Vec<Arc<Reference>>>>,
    names: Names,
    globals: Arc<Globals>,
    rules: Arc<PartitionRules>,
    /// The sum of the hashes of all relations' rows.
    sum: [u64; 4],
    /// Bytes of all relations' rows.
    bytes: usize,
}

/// A table, a view or a sequence.
#[derive(Clone, Debug, PartialEq)]
struct Relation {
    /// The hash of its row.
    hash: [u8; 32],
    /// The bytes of its row.
    bytes: usize,
    /// `None`: it is a sequence.
    table: Option<Arc<Table>>,
}

/// What is known of all user functions of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserFunction {
    /// The worst of them.
    pub(crate) volatility: Volatility,
    /// Whether all are immutable and in C (of an extension): they read nothing but their arguments.
    pub(crate) is_plain: bool,
}

impl Schema {
    /// The digest of catalog and rules: equal on all correct voters at one order. Nothing that decides depends on it, so it
    /// need not stand against those who choose names for a collision.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&serde_json::to_vec(&*self.rules).unwrap_or_default());
        for part in self.sum {
            hasher.update(&part.to_le_bytes());
        }
        for row in self.global_rows() {
            hasher.update(&(row.len() as u64).to_le_bytes());
            hasher.update(row.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// The columns of a table's primary key, if the table is known and has one.
    pub fn primary_key_of(&self, schema: &str, name: &str) -> Option<Vec<&str>> {
        let name = TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        };
        self.table(&name)?.primary_key()
    }

    /// The partition rules.
    pub fn rules(&self) -> &PartitionRules {
        &self.rules
    }

    /// The tables that parallel partitions cost something, with the reason: for `cloudbft check`.
    pub fn warnings(&self) -> Vec<(String, &'static str)> {
        let reasons = self
            .tables()
            .filter_map(|table| Some((table.name.to_string(), table.warning()?)));
        let mut reasons: Vec<_> = reasons.collect();
        reasons.sort_unstable();
        reasons
    }

    /// Whether unqualified names mean what they mean under the default search path. `"$user"` is the role that is set, else
    /// the one that logged in: with a schema of that name, names mean other tables.
    pub(crate) fn is_plain_path(&self, context: &SessionContext) -> bool {
        if self.globals.namespaces.contains(&context.role) {
            return false;
        }
        context.settings.iter().all(|(name, value)| match name.as_str() {
            "search_path" => PLAIN_PATHS.contains(&value.as_str()),
            "role" | "session_authorization" => {
                let role = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                !self.globals.namespaces.contains(role.unwrap_or(value))
            }
            _ => true,
        })
    }

    /// Whether some type runs code of users when a value is cast to it.
    pub fn has_coded_types(&self) -> bool {
        self.globals.types.values().any(|runs_code| *runs_code)
    }

    pub(crate) fn table(&self, name: &TableName) -> Option<&Table> {
        self.relations.get(name)?.table.as_deref()
    }

    /// The foreign keys that reference a table.
    pub(crate) fn references(&self, name: &TableName) -> &[Arc<Reference>] {
        self.references.get(name).map_or(&[], |references| references)
    }

    /// Whether a table, view or sequence has this name.
    pub(crate) fn is_relation(&self, name: &TableName) -> bool {
        self.relations.get(name).is_some()
    }

    /// Whether there is a schema of this name (of an application's).
    pub(crate) fn is_namespace(&self, name: &str) -> bool {
        self.globals.namespaces.contains(name)
    }

    /// Whether a session has a schema of temporary objects.
    pub fn has_temporary(&self, client: u32, session: u64) -> bool {
        self.globals.temporary.contains(&(client, session))
    }

    /// The sessions of a client that have a schema of temporary objects.
    pub fn temporary_of(&self, client: u32) -> impl Iterator<Item = u64> + '_ {
        let owned = self.globals.temporary.range((client, 0)..=(client, u64::MAX));
        owned.map(|(_, session)| *session)
    }

    pub(crate) fn is_sequence(&self, name: &TableName) -> bool {
        self.relations
            .get(name)
            .is_some_and(|relation| relation.table.is_none())
    }

    pub(crate) fn function(&self, name: &str) -> Option<UserFunction> {
        self.globals.functions.get(name).copied()
    }

    pub(crate) fn is_user_operator(&self, name: &str) -> bool {
        self.globals.operators.contains(name)
    }

    /// Whether a cast to a type of this name may run code of users.
    pub(crate) fn cast_runs_code(&self, type_name: &str) -> bool {
        // The source of a cast is not looked at, and a composite type may hold any other.
        let by_cast = self.globals.cast_targets.contains(type_name);
        match self.globals.types.get(type_name) {
            Some(runs_code) => *runs_code || by_cast,
            None => by_cast || self.names.is_coded_table(type_name),
        }
    }

    /// Whether a type of this name is the user's.
    pub(crate) fn is_user_type(&self, name: &str) -> bool {
        self.globals.types.contains_key(name) || self.names.is_table(name)
    }

    /// Whether casts by a function of users are made without being asked for.
    pub(crate) fn casts_implicitly(&self) -> bool {
        self.globals.casts_implicitly
    }

    /// Whether some cast to a type of Postgres's own runs a function of users.
    pub(crate) fn casts_to_built_in(&self) -> bool {
        let mut targets = self.globals.cast_targets.iter();
        targets.any(|target| !self.is_user_type(target))
    }

    /// Whether any table has a column of this name.
    pub(crate) fn is_column(&self, name: &str) -> bool {
        self.names.is_column(name)
    }

    /// Whether a column of this name has a date or time type in any table.
    pub(crate) fn is_date_column(&self, name: &str) -> bool {
        self.names.is_date_column(name)
    }

    /// Whether `=` on key columns means what Postgres means by it.
    pub(crate) fn compares_keys_natively(&self) -> bool {
        !self.globals.overloads_equality
    }

    fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.relations
            .iter()
            .filter_map(|(_, relation)| relation.table.as_ref())
    }
}
