//! The catalog of user objects, as far as footprints and determinism depend on it (DESIGN.md section 6).

mod parse;

use std::collections::{BTreeMap, BTreeSet};

use crate::operation::SessionContext;
use crate::rules::PartitionRules;

/// Values of `search_path` under which an unqualified name means a table of `public`.
const PLAIN_PATHS: [&str; 4] = ["\"$user\", public", "public", "\"$user\",public", "\"public\""];

/// Reads the catalog: one statement, run as superuser; one text column `json`, one row per object, in a
/// deterministic order, without OIDs.
pub const CATALOG_QUERY: &str = include_str!("schema/catalog.sql");

/// Why rows of [`CATALOG_QUERY`] are not understood.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A row is not the JSON of an object that this version knows.
    #[error("catalog row is not understood: {0}")]
    Row(#[from] serde_json::Error),
    /// More rows or bytes than the limit.
    #[error("the catalog exceeds {0} bytes")]
    TooLarge(usize),
}

/// The catalog under given partition rules.
#[derive(Clone, Debug)]
pub struct Schema {
    pub(crate) tables: BTreeMap<(String, String), Table>,
    pub(crate) sequences: BTreeSet<(String, String)>,
    pub(crate) functions: BTreeMap<String, Volatility>,
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) overloads_equality: bool,
    pub(crate) rules: PartitionRules,
    digest: [u8; 32],
}

impl Schema {
    /// The catalog of a database without user objects.
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

    /// Whether unqualified names mean what they mean under the default search path.
    pub(crate) fn is_plain_path(&self, context: &SessionContext) -> bool {
        if self.namespaces.contains(&context.role) {
            return false;
        }
        let mut settings = context.settings.iter();
        settings
            .find(|(name, _)| name == "search_path")
            .is_none_or(|(_, path)| PLAIN_PATHS.contains(&path.as_str()))
    }

    fn without_objects(rules: PartitionRules) -> Self {
        Self {
            tables: BTreeMap::new(),
            sequences: BTreeSet::new(),
            functions: BTreeMap::new(),
            namespaces: BTreeSet::from(["public".to_string()]),
            overloads_equality: false,
            rules,
            digest: [0; 32],
        }
    }
}

/// How a function's result may change between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Volatility {
    Immutable,
    Stable,
    Volatile,
}

/// A relation of the user's.
#[derive(Clone, Debug)]
pub(crate) struct Table {}
