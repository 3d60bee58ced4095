//! Relations of the user's.

use std::fmt;

use crate::analysis::KeyKind;

/// A relation's qualified name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TableName {
    pub(crate) schema: String,
    pub(crate) name: String,
}

/// A table, view, materialised view or foreign table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    pub(crate) name: TableName,
    pub(crate) kind: TableKind,
    pub(crate) columns: Vec<Column>,
    pub(crate) uniques: Vec<Unique>,
    pub(crate) foreign_keys: Vec<ForeignKey>,
    /// Whether a write may run user code: triggers, rules, user functions in constraints, domains, foreign data.
    pub(crate) runs_user_code: bool,
    /// Whether a constraint, default or index calls functions of users: planning a read may run those too.
    pub(crate) calls_functions: bool,
    /// Whether a constraint or an index reads the clock or the seed through `cloudbft`.
    pub(crate) reads_clock: bool,
    /// Whether time, width and outcome of all `expressions` are bounded by their form.
    pub(crate) is_bounded: bool,
    /// Checks, defaults, generated columns, expressions and conditions of indexes, as Postgres prints them.
    pub(crate) expressions: Vec<String>,
    /// Whether row security policies apply.
    pub(crate) row_security: bool,
    /// Whether other tables hold rows of it, or it holds rows of another.
    pub(crate) inheritance: bool,
    pub(crate) partitioning: Partitioning,
}

/// Kinds of relations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableKind {
    Table,
    View,
    MaterializedView,
    Foreign,
}

/// What the partition rules say about a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Partitioning {
    /// Its rows are divided by a key.
    Key {
        family: usize,
        column: String,
        kind: KeyKind,
    },
    /// A rule names it, but its key column is missing or of a type that is not understood.
    Unusable,
    /// Read under any lock, written under `Everything`.
    Reference,
    /// No rule names it.
    None,
}

/// Kinds of columns, as far as they are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ColumnKind {
    Integer,
    Text,
    Uuid,
    Date,
    Float,
    Domain,
    Other,
}

impl ColumnKind {
    /// The kind of its values as keys, when they can be followed.
    pub(crate) fn key_kind(self) -> Option<KeyKind> {
        match self {
            ColumnKind::Integer => Some(KeyKind::Integer),
            ColumnKind::Text => Some(KeyKind::Text),
            ColumnKind::Uuid => Some(KeyKind::Uuid),
            ColumnKind::Date | ColumnKind::Float | ColumnKind::Domain | ColumnKind::Other => None,
        }
    }
}

/// A unique key whose values can be followed: its columns in their order, with the kinds of their values.
pub(crate) type LockedKey<'table> = Vec<(&'table str, KeyKind)>;

/// A column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: ColumnKind,
    /// Whether it cannot be NULL.
    pub(crate) not_null: bool,
    /// Whether an INSERT without it stores something else than NULL.
    pub(crate) has_default: bool,
    /// Whether it is computed from other columns of its row.
    pub(crate) is_generated: bool,
    /// Whether its default or generation expression reads the clock or the seed through `cloudbft`.
    pub(crate) default_reads_clock: bool,
    /// Whether its default reads each server's own clock or random source.
    pub(crate) default_is_nondeterministic: bool,
    /// Whether its default draws from the seed, so that the order of rows matters.
    pub(crate) default_draws: bool,
    /// The sequences that its default or identity draws from.
    pub(crate) sequences: Vec<TableName>,
}

/// A unique or exclusion constraint or index.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unique {
    pub(crate) primary: bool,
    /// Whether it is an exclusion constraint: rows with other values of its columns may conflict too.
    pub(crate) exclusion: bool,
    /// Whether it is immediate, over columns only, not partial, and not an exclusion constraint.
    pub(crate) plain: bool,
    /// Whether values that their types hold for different are different here, and NULLs do not conflict.
    pub(crate) natural: bool,
    /// The columns; `None` for an expression.
    pub(crate) columns: Vec<Option<String>>,
}

/// What happens to referencing rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// They are looked for (NO ACTION, RESTRICT).
    Check,
    /// Referencing rows are deleted, or get the new key (CASCADE).
    Cascade,
    /// The reference of those rows becomes NULL (SET NULL).
    SetNull,
    /// Referencing rows get the default key, which names another row (SET DEFAULT).
    SetDefault,
}

/// A foreign key as the table that it references sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The table that has it.
    pub(crate) table: TableName,
    pub(crate) key: ForeignKey,
}

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignKey {
    pub(crate) columns: Vec<String>,
    pub(crate) referenced: TableName,
    pub(crate) referenced_columns: Vec<String>,
    pub(crate) on_update: Action,
    pub(crate) on_delete: Action,
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.schema, self.name)
    }
}

impl Table {
    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The columns of the primary key.
    pub(crate) fn primary_key(&self) -> Option<Vec<&str>> {
        let primary = self.uniques.iter().find(|unique| unique.primary && unique.plain)?;
        primary.columns.iter().map(Option::as_deref).collect()
    }

    /// The columns of a key that tells all rows apart, and whose order does: the primary key, or the first unique one that cannot be NULL.
    pub(crate) fn identity(&self) -> Option<Vec<&str>> {
        let is_identity = |unique: &&Unique| {
            let cannot_be_null = |name: &Option<String>| {
                let column = name.as_deref().and_then(|name| self.column(name));
                column.is_some_and(|column| column.not_null)
            };
            unique.plain && unique.natural && unique.columns.iter().all(cannot_be_null)
        };
        self.primary_key().or_else(|| {
            let other = self.uniques.iter().find(is_identity)?;
            other.columns.iter().map(Option::as_deref).collect()
        })
    }

    /// The unique key by which rows are locked: the primary key, or the first other one of which values can be followed. It is
    /// one for each table, so that whoever names a row names it by the same bucket (`docs/decisions/0046`).
    pub(crate) fn row_key(&self) -> Option<LockedKey<'_>> {
        let mut primary = self.uniques.iter().filter(|unique| unique.primary);
        let mut others = self.uniques.iter().filter(|unique| !unique.primary);
        primary
            .find_map(|unique| self.locked_key(unique))
            .or_else(|| others.find_map(|unique| self.locked_key(unique)))
    }

    /// The columns of a unique constraint with their kinds, if its values can be followed.
    pub(crate) fn locked_key<'table>(&'table self, unique: &'table Unique) -> Option<LockedKey<'table>> {
        if !unique.plain || !unique.natural || unique.columns.is_empty() {
            return None;
        }
        let kinds = unique.columns.iter().map(|name| {
            let name = name.as_deref()?;
            Some((name, self.column(name)?.kind.key_kind()?))
        });
        kinds.collect()
    }

    /// Whether a change of these columns may change this one: it is one of them, or computed from its row.
    pub(crate) fn is_set_by(&self, column: &str, set: &[String]) -> bool {
        set.iter().any(|name| name == column) || self.column(column).is_some_and(|column| column.is_generated)
    }

    /// The key column, for a partitioned table.
    pub(crate) fn key_column(&self) -> Option<&str> {
        match &self.partitioning {
            Partitioning::Key { column, .. } => Some(column),
            _ => None,
        }
    }

    /// Unique constraints that rows of different partitions can violate together.
    pub(crate) fn uniques_across_partitions(&self) -> impl Iterator<Item = &Unique> {
        let key = self.key_column();
        self.uniques.iter().filter(move |unique| {
            key.is_some_and(|key| {
                unique.exclusion || !unique.columns.iter().any(|column| column.as_deref() == Some(key))
            })
        })
    }

    /// Why parallel partitions are not as parallel as they could be.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        if self.partitioning == Partitioning::Unusable {
            return Some("the partition key column is missing, or neither integer nor text: it is locked as a whole");
        }
        self.key_column()?;
        if self.runs_user_code {
            Some("triggers, rules or functions run on writes, which therefore lock everything")
        } else if self.row_security || self.inheritance {
            Some("row security, inheritance or declarative partitioning: all access locks everything")
        } else if self.uniques_across_partitions().next().is_some() {
            Some("a unique constraint without the partition key: inserts and deletes lock the table across partitions")
        } else {
            None
        }
    }
}
