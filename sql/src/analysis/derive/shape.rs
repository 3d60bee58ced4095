//! Short statements: those of which the form alone bounds run time, result and outcome.
//!
//! Everything here is an allow-list: what is not named is not short. That no code of users runs is decided elsewhere.

use sqlparser::ast::{
    Assignment, BinaryOperator, ConflictTarget, DataType, Delete, Distinct, Expr, FromTable, Function, FunctionArg,
    FunctionArgExpr, FunctionArgumentClause, FunctionArguments, GroupByExpr, Insert, LimitClause, OnConflictAction,
    OnInsert, OrderBy, OrderByKind, Query, Select, SelectItem, SetExpr, Statement, TableObject, TableWithJoins,
    UnaryOperator, Update, UpdateTableFromKind, Value,
};

use super::super::level::{Level, parts_of};
use super::super::parse::parse;
use super::Deriver;
use super::expressions::{arguments, last_name};
use super::writes::is_plain_table;
use crate::functions::{CLOCK, CLOCK_KEYWORDS};
use crate::lexer::tokenize;
use crate::names::Names;
use crate::schema::{Schema, Table, TableKind};
use crate::words::Words;

/// Expressions that are nested more deeply are not short.
const DEPTH_MAX: usize = 200;

/// A statement that may name more rows is not short.
const ROWS_MAX: usize = 1000;

/// Functions of which time and width follow from their arguments, and the result is never wider than those together.
const FUNCTIONS: &[&str] = &[
    "abs",
    "array_length",
    "bit_length",
    "btrim",
    "cardinality",
    "ceil",
    "ceiling",
    "char_length",
    "character_length",
    "coalesce",
    "current_role",
    "current_user",
    "date_part",
    "date_trunc",
    "floor",
    "greatest",
    "jsonb_typeof",
    "least",
    "left",
    "length",
    "lower",
    "ltrim",
    "md5",
    "mod",
    "moment",
    "nextval",
    "nullif",
    "num_nonnulls",
    "num_nulls",
    "octet_length",
    "pg_notify",
    "right",
    "round",
    "rtrim",
    "session_user",
    "sign",
    "strpos",
    "substr",
    "timezone",
    "trunc",
    "upper",
    "user",
];

/// Aggregates of one number.
const AGGREGATES: &[&str] = &["avg", "bool_and", "bool_or", "count", "max", "min", "sum"];

/// Whether a statement is short, given that it runs no code of users.
pub(super) fn is_short(schema: &Schema, names: &Names, words: Words<'_>, statement: &Statement) -> bool {
    let shape = Shape { schema, names, words };
    match statement {
        Statement::Query(query) => shape.query(query).is_some(),
        Statement::Insert(insert) => shape.insert(insert).is_some(),
        Statement::Update(update) => shape.update(update).is_some(),
        Statement::Delete(delete) => shape.delete(delete).is_some(),
        _ => false,
    }
}

/// Whether time, width and outcome of an expression that the catalog prints are bounded: a check, a default, the
/// expressions of an index.
pub(crate) fn is_bounded_expression(schema: &Schema, expression: &str) -> bool {
    let text = format!("SELECT {expression}");
    let Ok(tokens) = tokenize(&text) else { return false };
    let Some(Statement::Query(query)) = parse(Words::new(&text, &tokens)) else {
        return false;
    };
    let SetExpr::Select(select) = query.body.as_ref() else {
        return false;
    };
    select.from.is_empty()
        && select.selection.is_none()
        && select.projection.iter().all(|item| match item {
            SelectItem::UnnamedExpr(expression) => is_bounded(schema, expression),
            _ => false,
        })
}

/// Reads a statement; every step is `None` where it is not known to be short.
struct Shape<'statement> {
    schema: &'statement Schema,
    names: &'statement Names,
    words: Words<'statement>,
}

fn require(holds: bool) -> Option<()> {
    holds.then_some(())
}

impl<'statement> Shape<'statement> {
    fn query(&self, query: &Query) -> Option<()> {
        let Query {
            with: None,
            body,
            order_by,
            limit_clause,
            fetch: None,
            for_clause: None,
            settings: None,
            format_clause: None,
            ..
        } = query
        else {
            return None;
        };
        let SetExpr::Select(select) = body.as_ref() else {
            return None;
        };
        self.ordered(order_by.as_ref())?;
        match limit_clause {
            None => {}
            Some(LimitClause::LimitOffset { limit, offset, .. }) => {
                require(limit.as_ref().is_none_or(|limit| self.is_bounded(limit)))?;
                require(offset.as_ref().is_none_or(|offset| self.is_bounded(&offset.value)))?;
            }
            Some(LimitClause::OffsetCommaLimit { .. }) => return None,
        }
        self.select(select)
    }

    fn ordered(&self, order: Option<&OrderBy>) -> Option<()> {
        match order.map(|order| &order.kind) {
            None => Some(()),
            Some(OrderByKind::Expressions(keys)) => require(keys.iter().all(|key| self.is_bounded(&key.expr))),
            Some(OrderByKind::All(_)) => None,
        }
    }

    fn select(&self, select: &Select) -> Option<()> {
        require(select.into.is_none() && select.named_window.is_empty())?;
        require(matches!(select.distinct, None | Some(Distinct::Distinct)))?;
        require(select.projection.iter().all(|item| self.is_output(item, true)))?;
        match &select.group_by {
            GroupByExpr::Expressions(groups, modifiers) => {
                require(modifiers.is_empty() && groups.iter().all(|group| self.is_bounded(group)))?;
            }
            GroupByExpr::All(_) => return None,
        }
        require(select.having.is_none())?;
        if select.from.is_empty() {
            return require(select.selection.is_none());
        }
        self.rows(&select.from, select.selection.as_ref(), false)
    }

    fn insert(&self, insert: &Insert) -> Option<()> {
        let TableObject::TableName(name) = &insert.table else {
            return None;
        };
        self.target(parts_of(name)?)?;
        match insert.source.as_deref() {
            None => {}
            Some(Query {
                with: None,
                body,
                order_by: None,
                limit_clause: None,
                fetch: None,
                ..
            }) => {
                let SetExpr::Values(values) = body.as_ref() else {
                    return None;
                };
                require(values.rows.len() <= ROWS_MAX)?;
                let mut cells = values.rows.iter().flat_map(|row| &row.content);
                require(cells.all(|cell| self.is_bounded(cell)))?;
            }
            Some(_) => return None,
        }
        match &insert.on {
            None => {}
            Some(OnInsert::OnConflict(conflict)) => {
                require(matches!(
                    conflict.conflict_target,
                    None | Some(ConflictTarget::Columns(_) | ConflictTarget::OnConstraint(_))
                ))?;
                if let OnConflictAction::DoUpdate(update) = &conflict.action {
                    require(
                        update
                            .selection
                            .as_ref()
                            .is_none_or(|condition| self.is_bounded(condition)),
                    )?;
                    let table = self.target(parts_of(name)?)?;
                    self.assignments(table, &update.assignments)?;
                }
            }
            Some(_) => return None,
        }
        self.returning(insert.returning.as_deref())
    }

    fn update(&self, update: &Update) -> Option<()> {
        require(matches!(update.from, None | Some(UpdateTableFromKind::AfterSet(_))))?;
        let from = match &update.from {
            Some(UpdateTableFromKind::AfterSet(from)) => from.as_slice(),
            _ => &[],
        };
        let tables: Vec<_> = std::iter::once(update.table.clone())
            .chain(from.iter().cloned())
            .collect();
        self.rows(&tables, update.selection.as_ref(), true)?;
        let table = self.level(&tables, update.selection.as_ref()).sources.first()?.table?;
        self.assignments(table, &update.assignments)?;
        self.returning(update.returning.as_deref())
    }

    /// Assignments of bounded values, which make no other rows change or be looked for.
    fn assignments(&self, table: &Table, assignments: &[Assignment]) -> Option<()> {
        let set = super::writes::assigned_columns(assignments)?;
        let reaches_others = self.schema.references(&table.name).iter().any(|reference| {
            let mut columns = reference.key.referenced_columns.iter();
            columns.any(|column| table.is_set_by(column, &set))
        });
        require(!reaches_others)?;
        require(assignments.iter().all(|assignment| self.is_bounded(&assignment.value)))
    }

    fn delete(&self, delete: &Delete) -> Option<()> {
        let FromTable::WithFromKeyword(from) = &delete.from else {
            return None;
        };
        let using = delete.using.iter().flatten();
        let tables: Vec<_> = from.iter().chain(using).cloned().collect();
        self.rows(&tables, delete.selection.as_ref(), true)?;
        let level = self.level(&tables, delete.selection.as_ref());
        let table = level.sources.first()?.table?;
        // Looking for the rows that reference a deleted one may take a scan of their table, and change them.
        require(self.schema.references(&table.name).is_empty())?;
        self.returning(delete.returning.as_deref())
    }

    fn returning(&self, items: Option<&[SelectItem]>) -> Option<()> {
        require(items.is_none_or(|items| items.iter().all(|item| self.is_output(item, false))))
    }

    /// The target of an INSERT.
    fn target(&self, parts: Vec<String>) -> Option<&'statement Table> {
        let name = match parts.as_slice() {
            [name] => self.names.relation(self.schema, None, name),
            [schema, name] => self.names.relation(self.schema, Some(schema), name),
            _ => return None,
        };
        let table = self.schema.table(&name)?;
        require(is_plain_table(table) && table.is_bounded)?;
        Some(table)
    }

    fn level(&self, tables: &[TableWithJoins], selection: Option<&Expr>) -> Level<'statement> {
        Deriver::new(self.schema, self.names, self.words).level(tables, selection)
    }

    /// Rows of one table that a unique key names, or of one partition, and for each at most one of every other table.
    fn rows(&self, tables: &[TableWithJoins], selection: Option<&Expr>, is_write: bool) -> Option<()> {
        let level = self.level(tables, selection);
        for (index, source) in level.sources.iter().enumerate() {
            let table = source.table?;
            require(matches!(table.kind, TableKind::Table | TableKind::MaterializedView))?;
            require(!is_write || index > 0 || (is_plain_table(table) && table.is_bounded))?;
        }
        let joins = tables.iter().flat_map(|tables| &tables.joins);
        let mut conditions = joins.map(Level::join_condition);
        require(conditions.all(|condition| match condition {
            Some((_, condition)) => condition.is_none_or(|condition| self.is_bounded(condition)),
            None => false,
        }))?;
        let selection = selection?;
        require(self.is_bounded(selection))?;
        let mut named = Vec::new();
        self.named(&level, selection, DEPTH_MAX, &mut named);
        let first = level.sources.first()?.table?;
        let is_covered = |columns: &[&str]| covers(&named, columns);
        let by_partition = first.key_column().is_some_and(|key| is_covered(&[key]));
        let by_unique = first.uniques.iter().any(|unique| {
            let columns: Option<Vec<&str>> = unique.columns.iter().map(Option::as_deref).collect();
            unique.plain && columns.is_some_and(|columns| is_covered(&columns))
        });
        require((by_partition || by_unique) && level.matches_once())
    }

    /// The columns of the first source that a condition holds constant, in groups that have so many values together.
    fn named(&self, level: &Level<'_>, condition: &Expr, depth: usize, named: &mut Vec<(Vec<String>, usize)>) {
        let Some(depth) = depth.checked_sub(1) else { return };
        let column = |expression: &Expr| {
            let column = level.resolve(expression)?;
            (column.source == 0).then_some(column.column)
        };
        match condition {
            Expr::Nested(inner) => self.named(level, inner, depth, named),
            Expr::BinaryOp {
                left,
                op: BinaryOperator::And,
                right,
            } => {
                self.named(level, left, depth, named);
                self.named(level, right, depth, named);
            }
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Eq,
                right,
            } => {
                if let (Expr::Tuple(lefts), Expr::Tuple(rights)) = (left.as_ref(), right.as_ref()) {
                    for (left, right) in lefts.iter().zip(rights) {
                        if let Some(column) = column(left).filter(|_| is_constant(right)) {
                            named.push((vec![column], 1));
                        }
                    }
                    return;
                }
                for (side, other) in [(left, right), (right, left)] {
                    if let Some(column) = column(side).filter(|_| is_constant(other)) {
                        named.push((vec![column], 1));
                    }
                }
            }
            Expr::InList {
                expr,
                list,
                negated: false,
            } if list.iter().all(is_constant) => match expr.as_ref() {
                Expr::Tuple(columns) => {
                    let columns: Option<Vec<String>> = columns.iter().map(column).collect();
                    named.extend(columns.map(|columns| (columns, list.len())));
                }
                expression => named.extend(column(expression).map(|column| (vec![column], list.len()))),
            },
            Expr::AnyOp {
                left,
                compare_op: BinaryOperator::Eq,
                right,
                ..
            } => {
                if let Expr::Array(array) = right.as_ref()
                    && array.elem.iter().all(is_constant)
                {
                    named.extend(column(left).map(|column| (vec![column], array.elem.len())));
                }
            }
            _ => {}
        }
    }

    fn is_output(&self, item: &SelectItem, aggregates: bool) -> bool {
        match item {
            SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. } => {
                match expression {
                    Expr::Function(function) if aggregates && AGGREGATES.contains(&last_name(function).as_str()) => {
                        is_plain_call(function, true) && arguments(function).all(|value| self.is_bounded(value))
                    }
                    other => self.is_bounded(other),
                }
            }
            SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => true,
            SelectItem::ExprWithAliases { .. } => false,
        }
    }

    fn is_bounded(&self, expression: &Expr) -> bool {
        is_bounded(self.schema, expression)
    }
}

/// Whether groups of constant columns name few values of all these columns together.
fn covers(named: &[(Vec<String>, usize)], columns: &[&str]) -> bool {
    let mut values = 1_usize;
    let mut used = Vec::new();
    for column in columns {
        let mut groups = named.iter().enumerate();
        let smallest = groups
            .by_ref()
            .filter(|(_, (group, _))| group.iter().any(|name| name == column))
            .min_by_key(|(_, (_, count))| *count);
        let Some((index, (_, count))) = smallest else {
            return false;
        };
        if !used.contains(&index) {
            used.push(index);
            values = values.saturating_mul(*count);
        }
    }
    values <= ROWS_MAX
}

/// A literal or a parameter, perhaps cast.
fn is_constant(expression: &Expr) -> bool {
    match expression {
        Expr::Value(_) | Expr::TypedString(_) => true,
        Expr::Nested(inner)
        | Expr::Cast { expr: inner, .. }
        | Expr::UnaryOp {
            op: UnaryOperator::Minus | UnaryOperator::Plus,
            expr: inner,
        } => is_constant(inner),
        Expr::Tuple(values) => values.iter().all(is_constant),
        _ => false,
    }
}

/// Whether time and width of an expression follow from the types of its columns and from its parameters.
fn is_bounded(schema: &Schema, expression: &Expr) -> bool {
    bounded_to(schema, expression, DEPTH_MAX)
}

fn bounded_to(schema: &Schema, expression: &Expr, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let all = |expressions: &[&Expr]| {
        expressions
            .iter()
            .all(|expression| bounded_to(schema, expression, depth))
    };
    match expression {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => true,
        Expr::Value(value) => !matches!(&value.value, Value::Placeholder(name) if !name.starts_with('$')),
        Expr::TypedString(_) | Expr::Interval(_) => true,
        Expr::Nested(inner)
        | Expr::IsFalse(inner)
        | Expr::IsNotFalse(inner)
        | Expr::IsTrue(inner)
        | Expr::IsNotTrue(inner)
        | Expr::IsNull(inner)
        | Expr::IsNotNull(inner)
        | Expr::IsUnknown(inner)
        | Expr::IsNotUnknown(inner)
        | Expr::Extract { expr: inner, .. }
        | Expr::Ceil { expr: inner, .. }
        | Expr::Floor { expr: inner, .. }
        | Expr::UnaryOp {
            op: UnaryOperator::Not | UnaryOperator::Minus | UnaryOperator::Plus,
            expr: inner,
        } => bounded_to(schema, inner, depth),
        Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => all(&[left, right]),
        Expr::AtTimeZone { timestamp, time_zone } => all(&[timestamp, time_zone]),
        Expr::Between { expr, low, high, .. } => all(&[expr, low, high]),
        Expr::InList { expr, list, .. } => {
            bounded_to(schema, expr, depth) && list.iter().all(|value| bounded_to(schema, value, depth))
        }
        Expr::Tuple(values) => values.iter().all(|value| bounded_to(schema, value, depth)),
        Expr::BinaryOp { left, op, right } => is_bounded_operator(op, left, right) && all(&[left, right]),
        Expr::AnyOp {
            left,
            compare_op,
            right,
            ..
        }
        | Expr::AllOp {
            left,
            compare_op,
            right,
        } => {
            let right = match right.as_ref() {
                Expr::Array(array) => array.elem.iter().all(|value| bounded_to(schema, value, depth)),
                other => {
                    is_constant(other)
                        || matches!(other, Expr::Nested(_) | Expr::Cast { .. }) && bounded_to(schema, other, depth)
                }
            };
            matches!(compare_op, BinaryOperator::Eq | BinaryOperator::NotEq) && right && bounded_to(schema, left, depth)
        }
        Expr::Array(array) => array.elem.iter().all(|value| bounded_to(schema, value, depth)),
        Expr::Cast { expr, data_type, .. } => is_bounded_type(schema, data_type) && bounded_to(schema, expr, depth),
        Expr::Case {
            operand,
            conditions,
            else_result,
            ..
        } => {
            operand
                .iter()
                .chain(else_result)
                .all(|value| bounded_to(schema, value, depth))
                && conditions
                    .iter()
                    .all(|branch| all(&[&branch.condition, &branch.result]))
        }
        Expr::Function(function) => {
            let name = last_name(function);
            let name = name.as_str();
            (FUNCTIONS.contains(&name) || CLOCK.contains(&name) || CLOCK_KEYWORDS.contains(&name))
                && is_plain_call(function, false)
                && arguments(function).all(|value| bounded_to(schema, value, depth))
        }
        Expr::Substring {
            expr,
            substring_from,
            substring_for,
            ..
        } => {
            // With a text in FROM it is a regular expression.
            let bounds = substring_from.iter().chain(substring_for);
            let are_numbers = bounds.into_iter().all(|value| match value.as_ref() {
                Expr::Value(value) => matches!(value.value, Value::Number(..)),
                _ => false,
            });
            bounded_to(schema, expr, depth) && are_numbers
        }
        Expr::Trim { expr, trim_what, .. } => {
            bounded_to(schema, expr, depth) && trim_what.iter().all(|value| bounded_to(schema, value, depth))
        }
        Expr::Position { expr, r#in } => all(&[expr, r#in]),
        _ => false,
    }
}

fn is_bounded_operator(operator: &BinaryOperator, left: &Expr, right: &Expr) -> bool {
    match operator {
        BinaryOperator::Plus
        | BinaryOperator::Minus
        | BinaryOperator::Multiply
        | BinaryOperator::Divide
        | BinaryOperator::Modulo
        | BinaryOperator::Gt
        | BinaryOperator::Lt
        | BinaryOperator::GtEq
        | BinaryOperator::LtEq
        | BinaryOperator::Eq
        | BinaryOperator::NotEq
        | BinaryOperator::And
        | BinaryOperator::Or
        | BinaryOperator::BitwiseAnd
        | BinaryOperator::BitwiseOr
        | BinaryOperator::Arrow
        | BinaryOperator::LongArrow => true,
        // `v = v || v` doubles with each run.
        BinaryOperator::StringConcat => is_constant(left) && is_constant(right),
        _ => false,
    }
}

/// Types of Postgres's own, and enumerations; of others the input may be anything.
fn is_bounded_type(schema: &Schema, data_type: &DataType) -> bool {
    match data_type {
        DataType::Regclass => true,
        DataType::Custom(name, _) => {
            let parts = parts_of(name).unwrap_or_default();
            let last = parts.last().map(String::as_str).unwrap_or_default();
            let is_known = ["bpchar", "name", "inet", "cidr", "timestamptz", "timetz"].contains(&last);
            is_known || (schema.is_user_type(last) && !schema.cast_runs_code(last))
        }
        _ => true,
    }
}

/// A call with plain arguments only; an aggregate's may also be DISTINCT, or `*`.
fn is_plain_call(function: &Function, is_aggregate: bool) -> bool {
    let plain = !function.uses_odbc_syntax
        && matches!(function.parameters, FunctionArguments::None)
        && function.filter.is_none()
        && function.null_treatment.is_none()
        && function.over.is_none()
        && function.within_group.is_empty();
    let arguments = match &function.args {
        FunctionArguments::None => true,
        FunctionArguments::Subquery(_) => false,
        FunctionArguments::List(list) => {
            let is_no_order = |clause: &FunctionArgumentClause| !matches!(clause, FunctionArgumentClause::OrderBy(_));
            let are_plain = list.args.iter().all(|argument| match argument {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(_)) => true,
                FunctionArg::Unnamed(FunctionArgExpr::Wildcard) => is_aggregate,
                _ => false,
            });
            are_plain && list.clauses.iter().all(is_no_order) && (is_aggregate || list.duplicate_treatment.is_none())
        }
    };
    plain && arguments
}
