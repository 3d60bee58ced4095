//! What is no relation: schemas, functions, operators, types and casts. Statements depend on them by name, whatever tables they
//! touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use super::{SchemaError, UserFunction};
use crate::functions::Volatility;
use crate::names::owner_of_temporary_schema;

/// One row.
#[derive(Deserialize)]
#[serde(tag = "object", rename_all = "lowercase")]
enum Row {
    Server {},
    Schema {
        name: String,
    },
    Function {
        name: String,
        volatility: char,
        language: String,
    },
    Operator {
        name: String,
        takes_keys: bool,
        /// Whether it is known to compute from its operands alone.
        #[serde(default)]
        plain: bool,
    },
    Type {
        name: String,
        runs_code: bool,
    },
    Cast {
        target: String,
        implicit: bool,
    },
}

/// All of them.
#[derive(Debug, PartialEq)]
pub(super) struct Globals {
    /// The rows themselves, with how often each occurs: functions that differ only in the types of their arguments have equal ones.
    rows: BTreeMap<Arc<str>, u64>,
    pub(super) functions: BTreeMap<String, UserFunction>,
    pub(super) namespaces: BTreeSet<String>,
    /// The sessions (with their clients) that have a schema of temporary objects.
    pub(super) temporary: BTreeSet<(u32, u64)>,
    /// Whether an operator `=` of the user's takes a built-in type of keys: then no key comparison is understood.
    pub(super) overloads_equality: bool,
    /// The names of the user's operators that may read more than their operands.
    pub(super) operators: BTreeSet<String>,
    /// The names of the user's types; whether a cast to one may run code of users.
    pub(super) types: BTreeMap<String, bool>,
    /// The names of types to which a cast by a function of users leads.
    pub(super) cast_targets: BTreeSet<String>,
    /// Whether such a cast is made without being asked for.
    pub(super) casts_implicitly: bool,
}

impl Globals {
    /// The globals of a database without objects of users.
    pub(super) fn none() -> Self {
        Self {
            rows: BTreeMap::new(),
            functions: BTreeMap::new(),
            namespaces: BTreeSet::from(["public".to_string()]),
            temporary: BTreeSet::new(),
            overloads_equality: false,
            operators: BTreeSet::new(),
            types: BTreeMap::new(),
            cast_targets: BTreeSet::new(),
            casts_implicitly: false,
        }
    }

    /// From their rows.
    ///
    /// # Errors
    /// When one is not understood.
    pub(super) fn parse(rows: BTreeMap<Arc<str>, u64>) -> Result<Self, SchemaError> {
        let mut globals = Self::none();
        for row in rows.keys() {
            globals.add(serde_json::from_str(row)?);
        }
        globals.rows = rows;
        Ok(globals)
    }

    /// These, with so many more (or fewer) of some rows.
    ///
    /// # Errors
    /// When a row is not understood, or one is to be taken away that is not there.
    pub(super) fn changed(&self, change: &BTreeMap<Arc<str>, i64>) -> Result<Self, SchemaError> {
        let mut rows = self.rows.clone();
        for (row, more) in change {
            let count = rows.remove(row).unwrap_or(0);
            match count.checked_add_signed(*more) {
                Some(0) => {}
                Some(count) => drop(rows.insert(Arc::clone(row), count)),
                None => return Err(SchemaError::Change("what is to be taken away is not there")),
            }
        }
        Self::parse(rows)
    }

    /// Each row as often as it occurs.
    pub(super) fn rows(&self) -> impl Iterator<Item = &str> {
        self.rows
            .iter()
            .flat_map(|(row, count)| std::iter::repeat_n(&**row, usize::try_from(*count).unwrap_or(usize::MAX)))
    }

    /// Bytes of all rows.
    pub(super) fn bytes(&self) -> usize {
        self.rows().map(str::len).sum()
    }

    fn add(&mut self, row: Row) {
        match row {
            Row::Server {} => {}
            Row::Schema { name } => {
                self.temporary.extend(owner_of_temporary_schema(&name));
                self.namespaces.insert(name);
            }
            Row::Function {
                name,
                volatility,
                language,
            } => self.add_function(name, volatility, &language),
            Row::Operator {
                name,
                takes_keys,
                plain,
            } => {
                self.overloads_equality |= takes_keys && name == "=";
                if !plain {
                    self.operators.insert(name);
                }
            }
            Row::Type { name, runs_code } => *self.types.entry(name).or_default() |= runs_code,
            Row::Cast { target, implicit } => {
                self.casts_implicitly |= implicit;
                self.cast_targets.insert(target);
            }
        }
    }

    fn add_function(&mut self, name: String, volatility: char, language: &str) {
        let volatility = match volatility {
            'i' => Volatility::Immutable,
            's' => Volatility::Stable,
            _ => Volatility::Volatile,
        };
        let is_plain = language == "c" && volatility == Volatility::Immutable;
        let known = self
            .functions
            .entry(name)
            .or_insert(UserFunction { volatility, is_plain });
        known.volatility = known.volatility.max(volatility);
        known.is_plain &= is_plain;
    }
}
