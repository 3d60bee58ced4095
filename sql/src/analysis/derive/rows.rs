//! Which rows and unique values of a table without a partition rule a statement touches (`docs/decisions/0046`).
//!
//! A row is locked alone only where the statement's outcome depends on no other row of the table; else the table is.

use sqlparser::ast::{
    BinaryOperator, ConflictTarget, Expr, Function, FunctionArguments, OnConflict, Query, SetExpr, UnaryOperator,
};

use super::super::level::{Level, casts_to, name_of};
use super::super::template::{Access, KeyKind, KeySource, Rows, RowsOf};
use super::Deriver;
use super::expressions::last_name;
use super::writes::{Change, is_default};
use crate::footprint::{Mode, ROWS_MAX, Resource};
use crate::functions::{CLOCK, CLOCK_KEYWORDS};
use crate::schema::{ForeignKey, LockedKey, Partitioning, Table, TableName, Unique};

/// Conditions that are nested more deeply may fail, as far as is known.
const DEPTH_MAX: usize = 100;

/// How a statement touches rows that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    /// Reads them.
    Read,
    /// Changes columns of them that are in no unique key (in PostgreSQL FOR NO KEY UPDATE).
    KeepKeys,
    /// Changes them in any way, or locks them.
    Write,
}

impl Touch {
    /// The touch of an UPDATE that sets these columns.
    pub(super) fn of_update(table: &Table, set: &[String]) -> Self {
        let mut columns = table.uniques.iter().flat_map(|unique| &unique.columns);
        let sets_key = columns.any(|column| column.as_ref().is_none_or(|column| table.is_set_by(column, set)));
        if sets_key { Self::Write } else { Self::KeepKeys }
    }

    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Read => Mode::Shared,
            Self::KeepKeys | Self::Write => Mode::Exclusive,
        }
    }
}

impl From<Mode> for Touch {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Shared => Self::Read,
            Mode::Exclusive => Self::Write,
        }
    }
}

/// The values that new rows have in some columns, row by row.
pub(super) type KeyValues = Vec<Vec<KeySource>>;

impl<'schema> Deriver<'schema> {
    /// The key by which rows of a table are locked, if they are.
    fn locked_rows<'table>(&self, name: &TableName, table: &'table Table) -> Option<LockedKey<'table>> {
        // A temporary table is its session's alone.
        let is_shared = table.partitioning == Partitioning::None && !name.schema.starts_with("pg_");
        let is_locked = is_shared && self.schema.rules().lock_rows && self.schema.compares_keys_natively();
        is_locked.then(|| table.row_key()).flatten()
    }

    /// Touches the rows whose key columns have these values, or the table.
    pub(super) fn touch_rows<'values>(
        &mut self,
        name: &TableName,
        table: &Table,
        touch: Touch,
        values: impl Fn(&str) -> Option<&'values [KeySource]>,
    ) {
        let mode = touch.mode();
        let found = self.locked_rows(name, table).and_then(|key| {
            let columns: Option<Vec<_>> = key.iter().map(|(column, _)| Some(values(column)?.to_vec())).collect();
            Some((key, product(&columns?)?))
        });
        match found {
            Some((key, values)) if touch == Touch::Write => self.written_rows(name, &key, values),
            Some((key, values)) => self.rows(name, RowsOf::RowKey, kinds(&key), values, mode),
            None => self.fixed(Resource::Table(name.to_string()), mode),
        }
    }

    /// Touches rows that are made, go, change in any way or are locked for update. Rows that reference them wait for that, so the values of their
    /// row key are held too, where there are foreign keys to it. (A change of other columns is not waited for by rows that reference the row.)
    fn written_rows(&mut self, name: &TableName, key: &LockedKey<'_>, values: KeyValues) {
        let references = self.schema.references(name);
        if references.iter().any(|reference| is_of(&reference.key, key)) {
            self.rows(name, values_of(key), kinds(key), values.clone(), Mode::Exclusive);
        }
        self.rows(name, RowsOf::RowKey, kinds(key), values, Mode::Exclusive);
    }

    fn rows(&mut self, name: &TableName, of: RowsOf, kinds: Vec<KeyKind>, values: KeyValues, mode: Mode) {
        let table = name.to_string();
        self.access(Access::Rows(Rows {
            table,
            of,
            kinds,
            values,
            mode,
        }));
    }

    /// The rows that an INSERT makes.
    pub(super) fn new_rows(
        &mut self,
        name: &TableName,
        table: &Table,
        rows: &impl Fn(&mut Self, &[&str]) -> Option<KeyValues>,
    ) {
        let whole = Resource::Table(name.to_string());
        if self.schema.rules().lock_rows && table.uniques.is_empty() && !name.schema.starts_with("pg_") {
            // Nobody can name the rows of such a table: who reads or changes some holds the table.
            return self.access(Access::NewRow(name.to_string()));
        }
        let Some(key) = self.locked_rows(name, table) else {
            return self.fixed(whole, Mode::Exclusive);
        };
        match rows(self, &columns(&key)) {
            Some(values) => self.written_rows(name, &key, values),
            None => self.fixed(whole, Mode::Exclusive),
        }
    }

    /// The unique values that a change of rows takes or gives free, in a table whose rows may be locked one by one.
    ///
    /// Who gives a value free by naming its row does not know the value, so it holds the key: shared, so that several can, but not
    /// together with somebody who takes a value. An UPDATE that leaves the value alone does too: in Postgres whoever inserts the
    /// same value waits for its end, and every wait must be one that the lock table sees.
    pub(super) fn unique_values(
        &mut self,
        name: &TableName,
        table: &Table,
        change: &Change<'_>,
        rows: &impl Fn(&mut Self, &[&str]) -> Option<KeyValues>,
    ) {
        if !self.schema.rules().lock_rows {
            // Whoever changes rows holds the table.
            return;
        }
        let row_key = self.locked_rows(name, table);
        let whole = || Resource::Table(name.to_string());
        for unique in &table.uniques {
            let Some(key) = table.locked_key(unique) else {
                if takes_unknown(table, unique, change) {
                    self.fixed(whole(), Mode::Exclusive);
                }
                continue;
            };
            let named: Vec<String> = key.iter().map(|(column, _)| (*column).to_owned()).collect();
            let sets = change.sets_any(table, &named);
            let is_row_key = row_key.as_ref() == Some(&key);
            match (change, is_row_key) {
                (Change::Insert | Change::Delete, true) => {}
                (Change::Update(_), true) if !sets => {}
                (Change::Update(_), true) => match rows(self, &columns(&key)) {
                    Some(values) => self.written_rows(name, &key, values),
                    None => self.fixed(whole(), Mode::Exclusive),
                },
                (Change::Insert, false) => match rows(self, &columns(&key)) {
                    Some(values) => self.rows(name, values_of(&key), kinds(&key), values, Mode::Exclusive),
                    None => self.key(name, &key, Mode::Exclusive),
                },
                (Change::Update(_), false) if sets => self.key(name, &key, Mode::Exclusive),
                (Change::Update(_) | Change::Delete, false) => self.key(name, &key, Mode::Shared),
            }
        }
    }

    fn key(&mut self, name: &TableName, key: &LockedKey<'_>, mode: Mode) {
        let (table, key) = (name.to_string(), columns(key).join(","));
        self.fixed(Resource::Key { table, key }, mode);
    }

    /// The row of a table without partition rule that a foreign key references: that there is one is read, and nothing else of it, so the value
    /// of its row key is held.
    pub(super) fn referenced_row(
        &mut self,
        table: &Table,
        referenced: &Table,
        key: &ForeignKey,
        rows: &impl Fn(&mut Self, &[&str]) -> Option<KeyValues>,
    ) {
        let whole = Resource::Table(key.referenced.to_string());
        let Some(row_key) = self.locked_rows(&key.referenced, referenced) else {
            return self.fixed(whole, Mode::Shared);
        };
        let own = row_key.iter().map(|(column, kind)| {
            let position = key.referenced_columns.iter().position(|name| name == column)?;
            let own = key.columns.get(position)?;
            (table.column(own)?.kind.key_kind() == Some(*kind)).then_some(own.as_str())
        });
        match own.collect::<Option<Vec<_>>>().filter(|_| is_of(key, &row_key)) {
            None => self.fixed(whole, Mode::Shared),
            Some(own) => match rows(self, &own) {
                Some(values) => self.rows(
                    &key.referenced,
                    values_of(&row_key),
                    kinds(&row_key),
                    values,
                    Mode::Shared,
                ),
                None => self.key(&key.referenced, &row_key, Mode::Shared),
            },
        }
    }

    /// The values of some columns in the rows of an INSERT's VALUES; `None` when they are not known before it runs.
    pub(super) fn inserted_rows(
        &self,
        table: &Table,
        inserted: &[String],
        columns: &[&str],
        source: Option<&Query>,
    ) -> Option<KeyValues> {
        let no_row = Vec::new();
        let rows: Vec<&Vec<Expr>> = match source.map(|query| query.body.as_ref()) {
            None => vec![&no_row],
            Some(SetExpr::Values(values)) => values.rows.iter().map(|row| &row.content).collect(),
            Some(_) => return None,
        };
        if rows.len() > ROWS_MAX {
            return None;
        }
        let level = Level::new(self.uses.clone());
        let value = |row: &Vec<Expr>, column: &str| {
            let found = table.column(column)?;
            let kind = found.kind.key_kind()?;
            let position = inserted.iter().position(|name| name == column);
            match position
                .and_then(|position| row.get(position))
                .filter(|value| !is_default(value))
            {
                Some(value) => level.source_of(value, kind),
                None => (!found.has_default && !found.is_generated).then_some(KeySource::Null),
            }
        };
        let rows = rows.into_iter();
        rows.map(|row| columns.iter().map(|column| value(row, column)).collect())
            .collect()
    }

    /// What ON CONFLICT DO UPDATE changes: the row that has the same row key, or one that is not known.
    pub(super) fn conflicting_row(&mut self, name: &TableName, table: &Table, conflict: &OnConflict) {
        if table.partitioning != Partitioning::None {
            return;
        }
        let Some(key) = self.locked_rows(name, table) else {
            return self.fixed(Resource::Table(name.to_string()), Mode::Exclusive);
        };
        let is_row_key = match &conflict.conflict_target {
            Some(ConflictTarget::Columns(target)) => {
                let named: Vec<_> = target.iter().map(name_of).collect();
                let is_named = |column: &str| named.iter().any(|name| name == column);
                named.len() == key.len() && key.iter().all(|(column, _)| is_named(column))
            }
            _ => table.uniques.len() == 1,
        };
        if !is_row_key {
            self.fixed(Resource::Table(name.to_string()), Mode::Exclusive);
        }
    }
}

/// Whether a change may take a value of a unique constraint of which values cannot be followed.
fn takes_unknown(table: &Table, unique: &Unique, change: &Change<'_>) -> bool {
    let columns: Option<Vec<String>> = unique.columns.iter().cloned().collect();
    match change {
        Change::Insert => true,
        // Which rows a partial index is about, and which columns an expression reads, is not looked at.
        Change::Update(_) => !unique.plain || columns.is_none_or(|columns: Vec<_>| change.sets_any(table, &columns)),
        Change::Delete => false,
    }
}

/// Whether a foreign key references this key.
fn is_of(reference: &ForeignKey, key: &LockedKey<'_>) -> bool {
    let is_named = |(column, _): &(&str, KeyKind)| reference.referenced_columns.iter().any(|name| name == column);
    reference.referenced_columns.len() == key.len() && key.iter().all(is_named)
}

/// The resources that values of a key name, apart from rows.
fn values_of(key: &LockedKey<'_>) -> RowsOf {
    RowsOf::Unique(columns(key).join(","))
}

fn kinds(key: &LockedKey<'_>) -> Vec<KeyKind> {
    key.iter().map(|(_, kind)| *kind).collect()
}

fn columns<'table>(key: &LockedKey<'table>) -> Vec<&'table str> {
    key.iter().map(|(column, _)| *column).collect()
}

/// All rows that have one of the values in each column; `None` when they are too many.
pub(super) fn product(columns: &[Vec<KeySource>]) -> Option<KeyValues> {
    let mut rows = vec![Vec::new()];
    for values in columns {
        if rows.len().saturating_mul(values.len()) > ROWS_MAX {
            return None;
        }
        let longer = rows.iter().flat_map(|row: &Vec<KeySource>| {
            values.iter().map(|value| {
                let mut row = row.clone();
                row.push(value.clone());
                row
            })
        });
        rows = longer.collect();
    }
    Some(rows)
}

/// Whether a condition can be evaluated for any row without an error: Postgres may look at rows that another condition excludes, and
/// if that could fail, the outcome would depend on rows that are not locked.
pub(super) fn is_harmless(condition: &Expr) -> bool {
    harmless_to(condition, DEPTH_MAX)
}

fn harmless_to(expression: &Expr, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let all = |expressions: &[&Expr]| expressions.iter().all(|expression| harmless_to(expression, depth));
    match expression {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_) => true,
        Expr::Nested(inner)
        | Expr::IsFalse(inner)
        | Expr::IsNotFalse(inner)
        | Expr::IsTrue(inner)
        | Expr::IsNotTrue(inner)
        | Expr::IsNull(inner)
        | Expr::IsNotNull(inner)
        | Expr::IsUnknown(inner)
        | Expr::IsNotUnknown(inner)
        | Expr::UnaryOp {
            op: UnaryOperator::Not,
            expr: inner,
        } => harmless_to(inner, depth),
        Expr::UnaryOp {
            op: UnaryOperator::Minus | UnaryOperator::Plus,
            expr,
        } => matches!(expr.as_ref(), Expr::Value(_)),
        // A literal is cast before any row is looked at, and a parameter has the type from the beginning.
        Expr::Cast { expr, data_type, .. } => {
            let kinds = [KeyKind::Integer, KeyKind::Text, KeyKind::Uuid];
            let is_literal = match expr.as_ref() {
                Expr::Value(_) => true,
                Expr::UnaryOp {
                    op: UnaryOperator::Minus,
                    expr,
                } => matches!(expr.as_ref(), Expr::Value(_)),
                _ => false,
            };
            is_literal && kinds.iter().any(|kind| casts_to(data_type, *kind))
        }
        Expr::BinaryOp { left, op, right } => {
            let is_known = matches!(
                op,
                BinaryOperator::And
                    | BinaryOperator::Or
                    | BinaryOperator::Eq
                    | BinaryOperator::NotEq
                    | BinaryOperator::Lt
                    | BinaryOperator::LtEq
                    | BinaryOperator::Gt
                    | BinaryOperator::GtEq
            );
            let combines = matches!(op, BinaryOperator::And | BinaryOperator::Or);
            is_known && (combines || compares_with_value(left, right)) && all(&[left, right])
        }
        Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => {
            compares_with_value(left, right) && all(&[left, right])
        }
        Expr::Between { expr, low, high, .. } => {
            compares_with_value(expr, low) && compares_with_value(expr, high) && all(&[expr, low, high])
        }
        Expr::InList { expr, list, .. } => {
            let fits = |value: &Expr| compares_with_value(expr, value) && harmless_to(value, depth);
            harmless_to(expr, depth) && list.iter().all(fits)
        }
        Expr::Tuple(values) => values.iter().all(|value| harmless_to(value, depth)),
        Expr::AnyOp {
            left,
            compare_op: BinaryOperator::Eq,
            right,
            ..
        } => match right.as_ref() {
            Expr::Array(array) => harmless_to(left, depth) && array.elem.iter().all(|value| harmless_to(value, depth)),
            _ => false,
        },
        Expr::Function(function) => is_clock(function),
        _ => false,
    }
}

/// Whether a column is compared with something of its statement's own. Of two columns one may be cast to the other's type, and a numeric
/// that is too large for a float8 fails.
fn compares_with_value(left: &Expr, right: &Expr) -> bool {
    is_value(left) || is_value(right)
}

fn is_value(side: &Expr) -> bool {
    match side {
        Expr::Value(_) | Expr::UnaryOp { .. } | Expr::Cast { .. } | Expr::Function(_) => true,
        Expr::Nested(inner) => matches!(inner.as_ref(), Expr::Value(_) | Expr::Cast { .. }),
        Expr::Tuple(values) => values.iter().all(|value| matches!(value, Expr::Value(_))),
        _ => false,
    }
}

fn is_clock(function: &Function) -> bool {
    let name = last_name(function);
    let is_known = CLOCK.contains(&name.as_str()) || CLOCK_KEYWORDS.contains(&name.as_str());
    let no_arguments = match &function.args {
        FunctionArguments::None => true,
        FunctionArguments::List(list) => list.args.is_empty() && list.clauses.is_empty(),
        FunctionArguments::Subquery(_) => false,
    };
    is_known && no_arguments && function.over.is_none() && function.filter.is_none()
}
