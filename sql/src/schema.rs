//! The catalog of user objects, as far as footprints and determinism depend on it (`docs/design.md#locks`).

mod parse;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use crate::functions::Volatility;
use crate::operation::SessionContext;
use crate::rules::PartitionRules;

use table::Column;
pub(crate) use table::{Action, ColumnKind, ForeignKey, Partitioning, Table, TableKind, TableName};

/// Values of `search_path` under which an unqualified name means a table of `public`.
const PLAIN_PATHS: [&str; 4] = ["\"$user\", public", "\"$user\",public", "public", "\"public\""];

/// Reads the catalog: one statement, run as superuser under the default `search_path`; one text column `json`,
/// one row per object, in a deterministic order, without OIDs.
pub const CATALOG_QUERY: &str = include_str!("schema/catalog.sql");

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
}

/// The catalog under given partition rules.
#[derive(Clone, Debug)]
pub struct Schema {
    tables: BTreeMap<TableName, Table>,
    sequences: BTreeSet<TableName>,
    functions: BTreeMap<String, UserFunction>,
    namespaces: BTreeSet<String>,
    /// The sessions (with their clients) that have a schema of temporary objects.
    temporary: BTreeSet<(u32, u64)>,
    /// Whether an operator `=` of the user's takes a built-in type of keys: then no key comparison is understood.
    overloads_equality: bool,
    /// The names of the user's operators that may read more than their operands.
    operators: BTreeSet<String>,
    /// The names of the user's types; whether a cast to one may run code of users.
    types: BTreeMap<String, bool>,
    /// The names of types to which a cast by a function of users leads.
    cast_targets: BTreeSet<String>,
    /// Whether such a cast is made without being asked for.
    casts_implicitly: bool,
    /// The names of columns of date and time types.
    date_columns: BTreeSet<String>,
    rules: PartitionRules,
    digest: [u8; 32],
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
    /// The catalog of a database without user objects, and without partition rules.
    pub fn empty() -> Self {
        Self::without_objects(PartitionRules::default())
    }

    /// The catalog from the rows of [`CATALOG_QUERY`].
    ///
    /// # Errors
    /// When a row is not understood, or there are too many.
    pub fn parse<'row>(rows: impl Iterator<Item = &'row str>, rules: &PartitionRules) -> Result<Self, SchemaError> {
        parse::parse(rows, rules)
    }

    /// The digest of catalog and rules: equal on all correct voters at one order.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The partition rules.
    pub fn rules(&self) -> &PartitionRules {
        &self.rules
    }

    /// The tables that parallel partitions cost something, with the reason: for `cloudbft check`.
    pub fn warnings(&self) -> Vec<(String, &'static str)> {
        let tables = self.tables.iter();
        let reasons = tables.filter_map(|(name, table)| Some((name.to_string(), table.warning()?)));
        reasons.collect()
    }

    /// Whether unqualified names mean what they mean under the default search path. `"$user"` is the role that is set, else
    /// the one that logged in: with a schema of that name, names mean other tables.
    pub(crate) fn is_plain_path(&self, context: &SessionContext) -> bool {
        if self.namespaces.contains(&context.role) {
            return false;
        }
        context.settings.iter().all(|(name, value)| match name.as_str() {
            "search_path" => PLAIN_PATHS.contains(&value.as_str()),
            "role" | "session_authorization" => {
                let role = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                !self.namespaces.contains(role.unwrap_or(value))
            }
            _ => true,
        })
    }

    pub(crate) fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.get(name)
    }

    /// Whether a table, view or sequence has this name.
    pub(crate) fn is_relation(&self, name: &TableName) -> bool {
        self.tables.contains_key(name) || self.sequences.contains(name)
    }

    /// Whether there is a schema of this name (of an application's).
    pub(crate) fn is_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// Whether a session has a schema of temporary objects.
    pub fn has_temporary(&self, client: u32, session: u64) -> bool {
        self.temporary.contains(&(client, session))
    }

    /// The sessions of a client that have a schema of temporary objects.
    pub fn temporary_of(&self, client: u32) -> impl Iterator<Item = u64> + '_ {
        let owned = self.temporary.range((client, 0)..=(client, u64::MAX));
        owned.map(|(_, session)| *session)
    }

    pub(crate) fn is_sequence(&self, name: &TableName) -> bool {
        self.sequences.contains(name)
    }

    pub(crate) fn function(&self, name: &str) -> Option<UserFunction> {
        self.functions.get(name).copied()
    }

    pub(crate) fn is_user_operator(&self, name: &str) -> bool {
        self.operators.contains(name)
    }

    /// Whether a cast to a type of this name may run code of users.
    pub(crate) fn cast_runs_code(&self, type_name: &str) -> bool {
        // The source of a cast is not looked at, and a composite type may hold any other.
        match self.types.get(type_name) {
            Some(runs_code) => *runs_code || self.cast_targets.contains(type_name),
            None => self.cast_targets.contains(type_name) || self.table_row_runs_code(type_name),
        }
    }

    fn table_row_runs_code(&self, name: &str) -> bool {
        let named = |table: &TableName| table.name == name;
        self.tables
            .iter()
            .any(|(table, known)| named(table) && known.columns.iter().any(|column| column.kind == ColumnKind::Domain))
    }

    /// Whether a type of this name is the user's.
    pub(crate) fn is_user_type(&self, name: &str) -> bool {
        self.types.contains_key(name) || self.tables.keys().any(|table| table.name == name)
    }

    /// Whether casts by a function of users are made without being asked for.
    pub(crate) fn casts_implicitly(&self) -> bool {
        self.casts_implicitly
    }

    /// Whether some cast to a type of Postgres's own runs a function of users.
    pub(crate) fn casts_to_built_in(&self) -> bool {
        self.cast_targets.iter().any(|target| !self.is_user_type(target))
    }

    /// Whether any table has a column of this name.
    pub(crate) fn is_column(&self, name: &str) -> bool {
        self.tables.values().any(|table| table.column(name).is_some())
    }

    /// Whether a column of this name has a date or time type in any table.
    pub(crate) fn is_date_column(&self, name: &str) -> bool {
        self.date_columns.contains(name)
    }

    /// Whether `=` on key columns means what Postgres means by it.
    pub(crate) fn compares_keys_natively(&self) -> bool {
        !self.overloads_equality
    }

    fn without_objects(rules: PartitionRules) -> Self {
        Self {
            tables: BTreeMap::new(),
            sequences: BTreeSet::new(),
            functions: BTreeMap::new(),
            namespaces: BTreeSet::from(["public".to_string()]),
            temporary: BTreeSet::new(),
            overloads_equality: false,
            operators: BTreeSet::new(),
            types: BTreeMap::new(),
            cast_targets: BTreeSet::new(),
            casts_implicitly: false,
            date_columns: BTreeSet::new(),
            rules,
            digest: [0; 32],
        }
    }
}
