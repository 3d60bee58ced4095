//! INSERT, UPDATE and DELETE: what they touch beyond the rows that they name.

mod constraints;
mod merge;
pub(super) mod order;
mod target;

use sqlparser::ast::{
    Assignment, AssignmentTarget, Delete, Expr, FromTable, Insert, OnConflictAction, OnInsert, Query, SelectItem,
    SetExpr, TableObject, Update, UpdateTableFromKind,
};

use super::super::level::{ColumnOf, KEYS_MAX, Level, name_of, parts_of};
use super::super::template::{KeySource, Keyed};
use super::Deriver;
use super::query::key_kind;
use super::rows::{Touch, product};
use crate::footprint::{Mode, Resource};
use crate::functions;
use crate::refusal::{NONDETERMINISTIC, Refusal};
use crate::schema::{ColumnKind, Partitioning, Table, TableKind, TableName};

pub(super) use constraints::Change;
pub(super) use order::draw_refusal;
use order::{calls_any, key_refusal, names_one_row, several_matches};

/// What an INSERT puts into one column.
pub(super) enum Inserted {
    /// Values known before it runs, one or more.
    Known(Vec<KeySource>),
    /// The column's default, in at least one row.
    Default,
    /// Not known.
    Unknown,
}

impl<'schema> Deriver<'schema> {
    pub(super) fn insert(&mut self, insert: &Insert) {
        let TableObject::TableName(object) = &insert.table else {
            return self.runs_unknown_code();
        };
        self.relations_understood += 1;
        self.insert_order(insert, object);
        if !is_plain_insert(insert) {
            return self.runs_unknown_code();
        }
        let Some((name, table)) = self.target(object) else {
            return;
        };
        let Some(columns) = insert_columns(insert, table) else {
            return self.runs_unknown_code();
        };
        let source = insert.source.as_deref();
        self.needs_clock |= table.reads_clock;
        let inserted = |deriver: &mut Self, column: &str| deriver.inserted(table, &columns, column, source);
        let rows = |deriver: &mut Self, names: &[&str]| deriver.inserted_rows(table, &columns, names, source);
        match table.partitioning {
            Partitioning::None => self.new_rows(&name, table, &rows),
            _ => self.insert_key(&name, table, &inserted),
        }
        self.defaults(table, &columns, source);
        self.constraints(&name, table, &Change::Insert, &inserted, &rows);
        if let Some(OnInsert::OnConflict(conflict)) = &insert.on
            && let OnConflictAction::DoUpdate(update) = &conflict.action
        {
            self.conflicting_row(&name, table, conflict);
            self.assignments(&name, table, &update.assignments, None);
        }
    }

    /// The partitions that an INSERT puts rows into.
    fn insert_key(&mut self, name: &TableName, table: &Table, inserted: &impl Fn(&mut Self, &str) -> Inserted) {
        let Partitioning::Key { family, column, kind } = &table.partitioning else {
            return self.touch_table(name, table, Mode::Exclusive, |_| None);
        };
        match inserted(self, column) {
            Inserted::Known(sources) => self.keyed(Keyed {
                family: *family,
                kind: *kind,
                sources,
                mode: Mode::Exclusive,
                null_touches_nothing: false,
            }),
            Inserted::Default | Inserted::Unknown => self.everything(Mode::Exclusive),
        }
    }

    /// What an INSERT puts into a column.
    fn inserted(&mut self, table: &Table, columns: &[String], column: &str, source: Option<&Query>) -> Inserted {
        let Some(position) = columns.iter().position(|name| name == column) else {
            return Inserted::Default;
        };
        let Some(source) = source else { return Inserted::Default };
        match source.body.as_ref() {
            SetExpr::Values(values) => {
                let rows = values.rows.iter().map(|row| row.content.get(position));
                self.inserted_values(table, column, rows)
            }
            SetExpr::Select(select) => {
                let item = match select.projection.get(position) {
                    Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) => expr,
                    _ => return Inserted::Unknown,
                };
                // Only when no earlier item is a wildcard does the position say which column it is.
                let wildcard = select
                    .projection
                    .iter()
                    .take(position)
                    .any(|item| !matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. }));
                if wildcard {
                    return Inserted::Unknown;
                }
                self.inserted_item(table, column, item, select)
            }
            _ => Inserted::Unknown,
        }
    }

    fn inserted_values<'tree>(
        &self,
        table: &Table,
        column: &str,
        rows: impl Iterator<Item = Option<&'tree Expr>>,
    ) -> Inserted {
        let Some(kind) = key_kind(table, column) else {
            return Inserted::Unknown;
        };
        let level = Level::new(self.uses.clone());
        let mut sources = Vec::new();
        for value in rows {
            // A row that is too short ends in defaults.
            let Some(value) = value else { return Inserted::Default };
            if is_default(value) {
                return Inserted::Default;
            }
            let Some(source) = level.source_of(value, kind) else {
                return Inserted::Unknown;
            };
            if !sources.contains(&source) {
                sources.push(source);
            }
            if sources.len() > KEYS_MAX {
                return Inserted::Unknown;
            }
        }
        Inserted::Known(sources)
    }

    /// A select item that is a constant, or a column that the conditions hold constant.
    fn inserted_item(&mut self, table: &Table, column: &str, item: &Expr, select: &sqlparser::ast::Select) -> Inserted {
        let Some(kind) = key_kind(table, column) else {
            return Inserted::Unknown;
        };
        let understood = self.relations_understood;
        let level = self.level(&select.from, select.selection.as_ref());
        self.relations_understood = understood;
        if let Some(source) = level.source_of(item, kind) {
            return Inserted::Known(vec![source]);
        }
        let values = level
            .resolve(item)
            .and_then(|column| level.values(&column).map(<[_]>::to_vec));
        match values {
            // A column that is compared with NULL inserts nothing.
            Some(values) if !values.contains(&KeySource::Null) => Inserted::Known(values),
            _ => Inserted::Unknown,
        }
    }

    /// Defaults that a COPY evaluates: those of the columns that it does not name.
    pub(super) fn copied_defaults(&mut self, table: &Table, columns: &[String]) {
        self.evaluate_defaults(table, |column| !columns.iter().any(|name| name == column));
    }

    /// Defaults that an INSERT may evaluate.
    fn defaults(&mut self, table: &Table, columns: &[String], source: Option<&Query>) {
        self.evaluate_defaults(table, |column| may_be_default(column, columns, source));
    }

    /// Sequences, the clock, and what each server has of its own.
    fn evaluate_defaults(&mut self, table: &Table, may_be_default: impl Fn(&str) -> bool) {
        for column in &table.columns {
            if !column.has_default || !may_be_default(&column.name) {
                continue;
            }
            for sequence in &column.sequences {
                self.fixed(Resource::Sequence(sequence.to_string()), Mode::Exclusive);
            }
            self.needs_clock |= column.default_reads_clock;
            if column.default_is_nondeterministic {
                self.refuse(Refusal::new(
                    NONDETERMINISTIC,
                    8,
                    format!(
                        "the default of column \"{}\" reads each server's own clock or random source",
                        column.name
                    ),
                    "Set the default again through the proxy: ALTER TABLE ... ALTER COLUMN ... SET DEFAULT now().",
                ));
            }
        }
    }

    pub(super) fn update(&mut self, update: &Update) {
        let is_plain = update.optimizer_hints.is_empty()
            && update.output.is_none()
            && update.or.is_none()
            && update.order_by.is_empty()
            && update.limit.is_none()
            && update.table.joins.is_empty();
        let from = match &update.from {
            None => &[][..],
            Some(UpdateTableFromKind::AfterSet(from) | UpdateTableFromKind::BeforeSet(from)) => from,
        };
        let tables: Vec<_> = std::iter::once(update.table.clone())
            .chain(from.iter().cloned())
            .collect();
        let level = self.level(&tables, update.selection.as_ref());
        let draws = calls_any(update, functions::PER_CALL) || assigns_drawn_default(update, &level);
        if draws && !is_one_row(&level) {
            self.refuse(draw_refusal());
        }
        if !level.matches_once() {
            self.refuse(several_matches());
        }
        if !is_plain || matches!(update.from, Some(UpdateTableFromKind::BeforeSet(_))) {
            return self.runs_unknown_code();
        }
        let columns = assigned_columns(&update.assignments);
        let touch = |table: &Table| columns.map_or(Touch::Write, |columns| Touch::of_update(table, &columns));
        let Some((name, table)) = self.written(&level, touch) else {
            return;
        };
        self.assignments(&name, table, &update.assignments, Some(&level));
    }

    pub(super) fn delete(&mut self, delete: &Delete) {
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
        let is_plain = delete.optimizer_hints.is_empty()
            && delete.tables.is_empty()
            && delete.output.is_none()
            && delete.order_by.is_empty()
            && delete.limit.is_none()
            && from.len() == 1
            && from.iter().all(|tables| tables.joins.is_empty());
        let using = delete.using.iter().flatten();
        let tables: Vec<_> = from.iter().chain(using).cloned().collect();
        let level = self.level(&tables, delete.selection.as_ref());
        if calls_any(delete, functions::PER_CALL) && !is_one_row(&level) {
            self.refuse(draw_refusal());
        }
        if !is_plain || !matches!(delete.from, FromTable::WithFromKeyword(_)) {
            return self.runs_unknown_code();
        }
        let Some((name, table)) = self.written(&level, |_| Touch::Write) else {
            return;
        };
        self.constraints(&name, table, &Change::Delete, &|_, _| Inserted::Unknown, &|_, _| None);
    }

    /// Touches the level of an UPDATE or DELETE, of which the first source is the target.
    fn written(
        &mut self,
        level: &Level<'schema>,
        touch: impl FnOnce(&Table) -> Touch,
    ) -> Option<(TableName, &'schema Table)> {
        let target = level.sources.first()?;
        let found = target
            .name
            .clone()
            .zip(target.table)
            .filter(|(_, table)| is_plain_table(table));
        let Some((name, table)) = found else {
            self.runs_unknown_code();
            return None;
        };
        self.touch(level, 0, touch(table));
        self.needs_clock |= table.reads_clock;
        let mode = self.read_mode();
        (1..level.sources.len()).for_each(|index| self.touch(level, index, mode));
        Some((name, table))
    }

    /// SET of an UPDATE, or of ON CONFLICT DO UPDATE.
    fn assignments(
        &mut self,
        name: &TableName,
        table: &'schema Table,
        assignments: &[Assignment],
        level: Option<&Level<'schema>>,
    ) {
        let Some(columns) = assigned_columns(assignments) else {
            return self.runs_unknown_code();
        };
        if let Some(key) = table.key_column()
            && table.is_set_by(key, &columns)
        {
            self.everything(Mode::Exclusive);
        }
        for assignment in assignments {
            self.assigned_value(table, assignment);
        }
        let value = |deriver: &mut Self, column: &str| match column_value(assignments, column) {
            Some(value) => deriver.inserted_values(table, column, std::iter::once(Some(value))),
            None if table.column(column).is_some_and(|column| column.is_generated) => Inserted::Unknown,
            None => kept_value(level, column),
        };
        if level.is_some_and(|level| !names_one_row(level, table) && self.finds_rows_in_any_order(table, level)) {
            let mut keys = table.uniques.iter().filter(|unique| unique.plain);
            let depends_on_order = keys.any(|unique| {
                let mut set = unique
                    .columns
                    .iter()
                    .flatten()
                    .filter(|column| table.is_set_by(column, &columns));
                set.any(|column| !matches!(value(self, column), Inserted::Known(_)))
            });
            if depends_on_order {
                self.refuse(key_refusal());
            }
        }
        let rows = |deriver: &mut Self, names: &[&str]| {
            let columns = names.iter().map(|column| match value(deriver, column) {
                Inserted::Known(values) => Some(values),
                Inserted::Default | Inserted::Unknown => None,
            });
            product(&columns.collect::<Option<Vec<_>>>()?)
        };
        self.constraints(name, table, &Change::Update(&columns), &value, &rows);
    }

    /// Whether the rows that a statement changes were written in parallel, and so may stand in another order on each server.
    fn finds_rows_in_any_order(&self, table: &Table, level: &Level<'_>) -> bool {
        match &table.partitioning {
            Partitioning::Key { column, .. } => {
                let column = ColumnOf {
                    source: 0,
                    column: column.clone(),
                };
                level.values(&column).is_none_or(|values| values.len() != 1)
            }
            Partitioning::None => self.schema.rules().lock_rows,
            Partitioning::Reference | Partitioning::Unusable => false,
        }
    }

    fn assigned_value(&mut self, table: &Table, assignment: &Assignment) {
        let AssignmentTarget::ColumnName(target) = &assignment.target else {
            return;
        };
        let target = parts_of(target)
            .and_then(|parts| parts.last().cloned())
            .unwrap_or_default();
        let Some(column) = table.column(&target) else { return };
        if is_default(&assignment.value) {
            self.evaluate_defaults(table, |column| column == target);
        }
        if column.kind == ColumnKind::Date {
            self.date_value(&assignment.value);
        }
    }
}

/// Whether a statement calls a function that gives each row another value.
pub(super) fn draws(statement: &sqlparser::ast::Statement) -> bool {
    calls_any(statement, functions::PER_CALL)
}

/// Whether the conditions name at most one row of the target, which is the first source.
fn is_one_row(level: &Level<'_>) -> bool {
    let table = level.sources.first().and_then(|source| source.table);
    table.is_some_and(|table| names_one_row(level, table))
}

/// Whether `SET column = DEFAULT` draws a random value or a number.
fn assigns_drawn_default(update: &Update, level: &Level<'_>) -> bool {
    let Some(table) = level.sources.first().and_then(|source| source.table) else {
        return false;
    };
    update.assignments.iter().any(|assignment| {
        let AssignmentTarget::ColumnName(name) = &assignment.target else {
            return false;
        };
        let name = parts_of(name)
            .and_then(|parts| parts.last().cloned())
            .unwrap_or_default();
        let column = table.column(&name);
        is_default(&assignment.value)
            && column.is_some_and(|column| column.default_draws || !column.sequences.is_empty())
    })
}

pub(super) fn is_plain_table(table: &Table) -> bool {
    table.kind == TableKind::Table && !table.runs_user_code && !table.row_security && !table.inheritance
}

fn is_plain_insert(insert: &Insert) -> bool {
    insert.optimizer_hints.is_empty()
        && insert.or.is_none()
        && !insert.ignore
        && !insert.overwrite
        && insert.assignments.is_empty()
        && insert.partitioned.is_none()
        && insert.after_columns.is_empty()
        && !insert.has_table_keyword
        && insert.output.is_none()
        && !insert.replace_into
        && insert.priority.is_none()
        && insert.insert_alias.is_none()
        && insert.settings.is_none()
        && insert.format_clause.is_none()
        && !matches!(insert.on, Some(OnInsert::DuplicateKeyUpdate(_)))
}

/// The columns that an INSERT names, or all.
fn insert_columns(insert: &Insert, table: &Table) -> Option<Vec<String>> {
    if insert.columns.is_empty() {
        return Some(table.columns.iter().map(|column| column.name.clone()).collect());
    }
    let names = insert.columns.iter().map(|name| match parts_of(name)?.as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    });
    names.collect()
}

pub(super) fn is_default(value: &Expr) -> bool {
    matches!(value, Expr::Identifier(name) if name.quote_style.is_none() && name_of(name) == "default")
}

/// Whether a column may get its default in some row.
fn may_be_default(column: &str, columns: &[String], source: Option<&Query>) -> bool {
    let Some(position) = columns.iter().position(|name| name == column) else {
        return true;
    };
    match source.map(|query| query.body.as_ref()) {
        Some(SetExpr::Values(values)) => values
            .rows
            .iter()
            .any(|row| row.content.get(position).is_none_or(is_default)),
        // Without a list of columns, fewer select items leave the rest to defaults.
        Some(SetExpr::Select(select)) => {
            let items = &select.projection;
            let all_plain = items
                .iter()
                .all(|item| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. }));
            all_plain && position >= items.len()
        }
        Some(_) => false,
        None => true,
    }
}

pub(super) fn assigned_columns(assignments: &[Assignment]) -> Option<Vec<String>> {
    let mut columns = Vec::new();
    for assignment in assignments {
        let names = match &assignment.target {
            AssignmentTarget::ColumnName(name) => std::slice::from_ref(name),
            AssignmentTarget::Tuple(names) => names,
        };
        for name in names {
            // `SET composite.field` has two parts: the column is the first.
            columns.push(parts_of(name)?.first()?.clone());
        }
    }
    Some(columns)
}

fn column_value<'tree>(assignments: &'tree [Assignment], column: &str) -> Option<&'tree Expr> {
    let mut found = assignments.iter().filter(|assignment| match &assignment.target {
        AssignmentTarget::ColumnName(name) => {
            parts_of(name).is_some_and(|parts| matches!(parts.as_slice(), [only] if only == column))
        }
        AssignmentTarget::Tuple(_) => false,
    });
    found.next().map(|assignment| &assignment.value)
}

/// The value that the conditions hold constant in a column that is not assigned.
fn kept_value(level: Option<&Level<'_>>, column: &str) -> Inserted {
    let column = ColumnOf {
        source: 0,
        column: column.to_owned(),
    };
    let values = level.and_then(|level| level.values(&column));
    values.map_or(Inserted::Unknown, |values| Inserted::Known(values.to_vec()))
}
