//! From rows of the catalog query to what a [`super::Schema`] holds.

use serde::Deserialize;

use super::table::{Action, TableKind, Unique};
use super::{Column, ColumnKind, ForeignKey, Partitioning, SchemaError, Table, TableName};
use crate::analysis::KeyKind;
use crate::determinism;
use crate::rules::PartitionRules;

/// The members that every row of the catalog query has.
#[derive(Deserialize)]
struct Head {
    object: String,
    #[serde(default)]
    schema: String,
    #[serde(default)]
    name: String,
}

/// Which kind of object a row of the catalog query describes.
pub(super) enum Kind {
    /// A table, a view or a sequence.
    Relation(TableName),
    /// Anything else.
    Global,
}

/// Which kind of object a row of the catalog query describes.
///
/// # Errors
/// When it is not the JSON of an object.
pub(super) fn kind_of(row: &str) -> Result<Kind, SchemaError> {
    let Head { object, schema, name } = serde_json::from_str(row)?;
    Ok(match object.as_str() {
        "table" | "sequence" => Kind::Relation(TableName { schema, name }),
        _ => Kind::Global,
    })
}

/// The row of a relation.
#[derive(Deserialize)]
#[serde(tag = "object", rename_all = "lowercase")]
enum Row {
    Table(Box<TableRow>),
    Sequence {},
}

/// The table of a relation's row; `None` for a sequence.
///
/// # Errors
/// When the row is not understood.
pub(super) fn relation(row: &str, rules: &PartitionRules) -> Result<Option<Table>, SchemaError> {
    Ok(match serde_json::from_str(row)? {
        Row::Table(row) => Some(table(*row, rules)),
        Row::Sequence {} => None,
    })
}

#[derive(Deserialize)]
struct TableRow {
    schema: String,
    name: String,
    kind: char,
    row_security: bool,
    inheritance: bool,
    columns: Option<Vec<ColumnRow>>,
    indexes: Option<Vec<IndexRow>>,
    foreign_keys: Option<Vec<ForeignKeyRow>>,
    triggers: Option<Vec<String>>,
    rules: Option<Vec<String>>,
    calls_functions: bool,
    #[serde(default)]
    expressions: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ColumnRow {
    name: String,
    category: ColumnKind,
    not_null: bool,
    default: Option<String>,
    identity: String,
    generated: String,
    sequences: Option<Vec<(String, String)>>,
}

#[derive(Deserialize)]
struct IndexRow {
    primary: bool,
    plain: bool,
    #[serde(default)]
    exclusion: bool,
    #[serde(default)]
    natural: bool,
    columns: Vec<Option<String>>,
}

#[derive(Deserialize)]
struct ForeignKeyRow {
    columns: Vec<String>,
    referenced: (String, String),
    referenced_columns: Vec<String>,
    on_update: char,
    on_delete: char,
}

fn table_name((schema, name): (String, String)) -> TableName {
    TableName { schema, name }
}

fn table(row: TableRow, rules: &PartitionRules) -> Table {
    let columns = row.columns.unwrap_or_default();
    let mut expressions = row.expressions.unwrap_or_default();
    let reads_clock = expressions
        .iter()
        .any(|expression| determinism::reads_clock(expression));
    expressions.extend(columns.iter().filter_map(|column| column.default.clone()));
    let columns: Vec<_> = columns.into_iter().map(column).collect();
    let partitioning = partitioning(&row.schema, &row.name, &columns, rules);
    let kind = match row.kind {
        'v' => TableKind::View,
        'm' => TableKind::MaterializedView,
        'f' => TableKind::Foreign,
        _ => TableKind::Table,
    };
    Table {
        name: TableName {
            schema: row.schema,
            name: row.name,
        },
        kind,
        uniques: row.indexes.unwrap_or_default().into_iter().map(unique).collect(),
        foreign_keys: row
            .foreign_keys
            .unwrap_or_default()
            .into_iter()
            .map(foreign_key)
            .collect(),
        runs_user_code: row.triggers.is_some_and(|triggers| !triggers.is_empty())
            || row.rules.is_some_and(|rules| !rules.is_empty())
            || row.calls_functions
            || columns.iter().any(|column| column.kind == ColumnKind::Domain),
        calls_functions: row.calls_functions,
        reads_clock,
        is_bounded: false,
        expressions,
        row_security: row.row_security,
        inheritance: row.inheritance,
        columns,
        partitioning,
    }
}

fn partitioning(schema: &str, name: &str, columns: &[Column], rules: &PartitionRules) -> Partitioning {
    let Some((family, key)) = rules.key_of(schema, name) else {
        return match rules.is_reference(schema, name) {
            true => Partitioning::Reference,
            false => Partitioning::None,
        };
    };
    let column = columns.iter().find(|column| column.name == key);
    let kind = match column.and_then(|column| column.kind.key_kind()) {
        Some(kind @ (KeyKind::Integer | KeyKind::Text)) => kind,
        Some(KeyKind::Uuid) | None => return Partitioning::Unusable,
    };
    Partitioning::Key {
        family,
        column: key.to_owned(),
        kind,
    }
}

fn column(row: ColumnRow) -> Column {
    let default = row.default.as_deref().unwrap_or_default();
    Column {
        name: row.name,
        kind: row.category,
        not_null: row.not_null,
        has_default: row.default.is_some() || !row.identity.is_empty(),
        is_generated: !row.generated.is_empty(),
        default_reads_clock: determinism::reads_clock(default),
        default_is_nondeterministic: determinism::is_nondeterministic(default),
        default_draws: determinism::draws(default),
        sequences: row.sequences.unwrap_or_default().into_iter().map(table_name).collect(),
    }
}

fn unique(row: IndexRow) -> Unique {
    Unique {
        primary: row.primary,
        exclusion: row.exclusion,
        plain: row.plain,
        natural: row.natural,
        columns: row.columns,
    }
}

fn foreign_key(row: ForeignKeyRow) -> ForeignKey {
    let action = |code| match code {
        'a' | 'r' => Action::Check,
        'c' => Action::Cascade,
        'n' => Action::SetNull,
        _ => Action::SetDefault,
    };
    ForeignKey {
        columns: row.columns,
        referenced: table_name(row.referenced),
        referenced_columns: row.referenced_columns,
        on_update: action(row.on_update),
        on_delete: action(row.on_delete),
    }
}
