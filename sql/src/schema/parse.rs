//! From rows of the catalog query to a [`Schema`].

use serde::Deserialize;

use super::table::{Action, TableKind, Unique};
use super::{
    CATALOG_BYTES_MAX, Column, ColumnKind, ForeignKey, Partitioning, Schema, SchemaError, Table, TableName,
    UserFunction,
};
use crate::analysis::{KeyKind, is_bounded_expression};
use crate::determinism;
use crate::functions::Volatility;
use crate::names::owner_of_temporary_schema;
use crate::rules::PartitionRules;

/// One row: an object of the catalog.
#[derive(Deserialize)]
#[serde(tag = "object", rename_all = "lowercase")]
enum Row {
    Server {},
    Schema {
        name: String,
    },
    Table(Box<TableRow>),
    Sequence {
        schema: String,
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
    triggers: Option<Vec<(String, String)>>,
    rules: Option<Vec<String>>,
    calls_functions: bool,
    #[serde(default)]
    expressions: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ColumnRow {
    name: String,
    category: ColumnKind,
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

pub(super) fn parse<'row>(
    rows: impl Iterator<Item = &'row str>,
    rules: &PartitionRules,
) -> Result<Schema, SchemaError> {
    let mut schema = Schema::without_objects(rules.clone());
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0_usize;
    hasher.update(&serde_json::to_vec(rules)?);
    for row in rows {
        bytes = bytes.saturating_add(row.len());
        if bytes > CATALOG_BYTES_MAX {
            return Err(SchemaError::TooLarge(CATALOG_BYTES_MAX));
        }
        hasher.update(&(row.len() as u64).to_le_bytes());
        hasher.update(row.as_bytes());
        schema.add(serde_json::from_str(row)?);
    }
    schema.digest = *hasher.finalize().as_bytes();
    schema.link_references();
    schema.judge_expressions();
    Ok(schema)
}

impl Schema {
    fn add(&mut self, row: Row) {
        match row {
            Row::Server {} => {}
            Row::Schema { name } => {
                self.temporary.extend(owner_of_temporary_schema(&name));
                self.namespaces.insert(name);
            }
            Row::Sequence { schema, name } => {
                self.sequences.insert(TableName { schema, name });
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
            Row::Type { name, runs_code } => {
                let known = self.types.entry(name).or_default();
                *known |= runs_code;
            }
            Row::Cast { target, implicit } => {
                self.casts_implicitly |= implicit;
                self.cast_targets.insert(target);
            }
            Row::Table(row) => {
                let name = table_name((row.schema.clone(), row.name.clone()));
                let table = table(*row, &self.rules);
                let dates = table.columns.iter().filter(|column| column.kind == ColumnKind::Date);
                self.date_columns.extend(dates.map(|column| column.name.clone()));
                self.tables.insert(name, table);
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

    /// Tells every table whether the time and the outcome of what a write computes in it are bounded.
    fn judge_expressions(&mut self) {
        let bounded: Vec<_> = self
            .tables
            .values()
            .map(|table| {
                let mut expressions = table.expressions.iter();
                expressions.all(|expression| is_bounded_expression(self, expression))
            })
            .collect();
        for (table, is_bounded) in self.tables.values_mut().zip(bounded) {
            table.is_bounded = is_bounded;
        }
    }

    /// Tells every table which foreign keys reference it.
    fn link_references(&mut self) {
        let mut references = Vec::new();
        for (name, table) in &self.tables {
            references.extend(table.foreign_keys.iter().map(|key| (name.clone(), key.clone())));
        }
        for (name, key) in references {
            if let Some(table) = self.tables.get_mut(&key.referenced) {
                table.referenced_by.push((name, key));
            }
        }
    }
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
        kind,
        uniques: row.indexes.unwrap_or_default().into_iter().map(unique).collect(),
        foreign_keys: row
            .foreign_keys
            .unwrap_or_default()
            .into_iter()
            .map(foreign_key)
            .collect(),
        referenced_by: Vec::new(),
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
    let kind = match columns
        .iter()
        .find(|column| column.name == key)
        .map(|column| column.kind)
    {
        Some(ColumnKind::Integer) => KeyKind::Integer,
        Some(ColumnKind::Text) => KeyKind::Text,
        _ => return Partitioning::Unusable,
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
