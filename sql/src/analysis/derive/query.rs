//! Queries: their levels, and whether a LIMIT picks the same rows on every server.

use sqlparser::ast::{
    Distinct, Expr, GroupByExpr, Ident, Join, JoinConstraint, JoinOperator, LimitClause, OrderByKind, Query, Select,
    SelectFlavor, SelectItem, SetExpr, TableFactor, TableWithJoins, Value,
};

use super::super::level::{ColumnOf, Level, Source, name_of, parts_of, plain_alias};
use super::super::template::{KeyKind, KeySource, Keyed};
use super::Deriver;
use super::rows::{Touch, is_harmless};
use crate::footprint::{Mode, Resource};
use crate::functions::{self, FunctionKind};
use crate::refusal::{NONDETERMINISTIC, Refusal};
use crate::schema::{Partitioning, Table, TableKind, TableName};

/// The refusal of a LIMIT in a write without a total order.
pub(super) fn limit_refusal(why: &str) -> Refusal {
    Refusal::new(
        NONDETERMINISTIC,
        16,
        format!("LIMIT, OFFSET or DISTINCT ON in a statement that writes would pick other rows on every server: {why}"),
        "Add ORDER BY over all columns of the primary key.",
    )
}

impl<'schema> Deriver<'schema> {
    pub(super) fn query(&mut self, query: &Query) {
        let is_plain = query.for_clause.is_none()
            && query.settings.is_none()
            && query.format_clause.is_none()
            && query.pipe_operators.is_empty();
        if !is_plain || !is_plain_body(&query.body) {
            self.not_understood();
        }
        self.complete_if_ordered(query);
        if self.modifies {
            self.refuse_drawn_projection(query);
            self.refuse_float_sums(Some(query));
        }
        if self.modifies && picks_rows(query) && !self.exists.contains(&address(query)) && !self.gives_one_order(query)
        {
            self.refuse(limit_refusal("its order is not total"));
        }
    }

    pub(super) fn select(&mut self, select: &Select) {
        if !is_plain_select(select) {
            self.not_understood();
        }
        if select.into.is_some() {
            self.runs_unknown_code();
        }
        let level = self.level(&select.from, select.selection.as_ref());
        let mode = self.read_mode();
        self.touch_all(&level, mode);
        self.order_calls(select, &level);
    }

    /// Builds a level and touches what only a LEFT JOIN's condition limits.
    pub(super) fn level(&mut self, from: &[TableWithJoins], selection: Option<&Expr>) -> Level<'schema> {
        let mut level = Level::new(self.uses.clone());
        let mut conditions = Some(Vec::new());
        for tables in from {
            self.source(&tables.relation, &mut level);
            for join in &tables.joins {
                self.source(&join.relation, &mut level);
                self.joined_columns(join);
                match (Level::join_condition(join), conditions.as_mut()) {
                    (Some((is_inner, condition)), Some(conditions)) => {
                        conditions.push((is_inner, condition, level.sources.len() - 1));
                    }
                    // A join of another kind makes all conditions of joins unusable.
                    _ => conditions = None,
                }
            }
        }
        selection.into_iter().for_each(|condition| level.require(condition));
        let joined = conditions
            .as_ref()
            .map(|joins| joins.iter().filter_map(|(_, condition, _)| *condition));
        level.is_harmless = joined.is_some_and(|joined| joined.chain(selection).all(is_harmless));
        let conditions = conditions.unwrap_or_default();
        for (is_inner, condition, _) in &conditions {
            if let (true, Some(condition)) = (is_inner, condition) {
                level.require(condition);
            }
        }
        for (is_inner, condition, joined) in conditions {
            if let (false, Some(condition)) = (is_inner, condition) {
                level.add_left_join(joined, condition);
            }
        }
        level
    }

    /// USING and NATURAL compare by the operator `=`.
    fn joined_columns(&mut self, join: &Join) {
        use JoinOperator::{FullOuter, Inner, Join, Left, LeftOuter, Right, RightOuter};
        let (Join(constraint)
        | Inner(constraint)
        | Left(constraint)
        | LeftOuter(constraint)
        | Right(constraint)
        | RightOuter(constraint)
        | FullOuter(constraint)) = &join.join_operator
        else {
            return;
        };
        let compares = matches!(constraint, JoinConstraint::Using(_) | JoinConstraint::Natural);
        if compares && self.schema.is_user_operator("=") {
            self.runs_unknown_code();
        }
    }

    /// Adds a member of the FROM list.
    fn source(&mut self, factor: &TableFactor, level: &mut Level<'schema>) {
        let unknown = |alias: String| Source {
            alias,
            name: None,
            table: None,
        };
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version: None,
                with_ordinality,
                partitions,
                json_path: None,
                sample: None,
                index_hints,
            } if with_hints.is_empty() && partitions.is_empty() && index_hints.is_empty() => {
                self.relations_understood += 1;
                if args.is_some() {
                    self.function_source(name);
                    let alias = alias.as_ref().map(|alias| name_of(&alias.name));
                    level.sources.push(unknown(alias.unwrap_or_default()));
                    return;
                }
                let Ok(renamed) = plain_alias(alias.as_ref()) else {
                    self.renamed_source(name);
                    let alias = alias.as_ref().map(|alias| name_of(&alias.name));
                    level.sources.push(unknown(alias.unwrap_or_default()));
                    return;
                };
                if *with_ordinality {
                    self.not_understood();
                }
                let source = self.named_source(name, renamed);
                level.sources.push(source);
            }
            TableFactor::Derived {
                alias, sample: None, ..
            } => {
                let alias = alias.as_ref().map(|alias| name_of(&alias.name));
                level.sources.push(unknown(alias.unwrap_or_default()));
            }
            TableFactor::UNNEST { alias, .. } => {
                let alias = alias.as_ref().map(|alias| name_of(&alias.name));
                level.sources.push(unknown(alias.unwrap_or_default()));
            }
            TableFactor::Function { name, alias, .. } => {
                self.function_source(name);
                let alias = alias.as_ref().map(|alias| name_of(&alias.name));
                level.sources.push(unknown(alias.unwrap_or_default()));
            }
            _ => {
                self.not_understood();
                level.sources.push(unknown(String::new()));
            }
        }
    }

    fn function_source(&mut self, name: &sqlparser::ast::ObjectName) {
        let Some(parts) = parts_of(name) else {
            return self.not_understood();
        };
        self.called(&parts, None);
    }

    /// A table whose columns an alias renames: nothing is known of its keys.
    fn renamed_source(&mut self, name: &sqlparser::ast::ObjectName) {
        let is_common =
            parts_of(name).is_some_and(|parts| matches!(parts.as_slice(), [only] if self.common.contains(only)));
        if !is_common {
            self.not_understood();
        }
    }

    /// A table by name; a common table expression is a source that touches nothing by itself.
    pub(super) fn named_source(&mut self, name: &sqlparser::ast::ObjectName, alias: Option<String>) -> Source<'schema> {
        let parts = parts_of(name).unwrap_or_default();
        let (schema, table) = match parts.as_slice() {
            [table] => (None, table.clone()),
            [schema, table] => (Some(schema.clone()), table.clone()),
            _ => {
                self.not_understood();
                (None, String::new())
            }
        };
        let alias = alias.unwrap_or_else(|| table.clone());
        if schema.is_none() && self.common.contains(&table) {
            let (name, table) = (None, None);
            return Source { alias, name, table };
        }
        let is_catalog = schema.is_none() && table.starts_with("pg_");
        let name = self.names.relation(self.schema, schema.as_deref(), &table);
        let name = match is_catalog {
            true => {
                // A table of the user's may have such a name: the catalog's comes first if there is one.
                if self.schema.is_relation(&name) || self.names.is_temporary(self.schema, &name.name) {
                    self.runs_unknown_code();
                }
                TableName {
                    schema: "pg_catalog".into(),
                    ..name
                }
            }
            false => name,
        };
        let table = self.known_table(&name);
        Source {
            alias,
            name: Some(name),
            table,
        }
    }

    /// Touches all named sources of a level in one mode.
    pub(super) fn touch_all(&mut self, level: &Level<'schema>, mode: Mode) {
        for index in 0..level.sources.len() {
            self.touch(level, index, mode);
        }
    }

    /// Touches what a level says of one of its sources.
    pub(super) fn touch(&mut self, level: &Level<'schema>, index: usize, touch: impl Into<Touch>) {
        let touch = touch.into();
        let mode = touch.mode();
        let Some(source) = level.sources.get(index) else { return };
        let Some(name) = &source.name else { return };
        let Some(table) = source.table else {
            return self.touch_unknown(name, mode);
        };
        let is_opaque = matches!(table.kind, TableKind::View | TableKind::Foreign);
        self.needs_clock |= is_opaque || table.row_security;
        // Planning a query evaluates functions of indexes and checks.
        self.foreign_code |= is_opaque || table.row_security || table.inheritance || table.calls_functions;
        if is_opaque || table.row_security || table.inheritance {
            return self.everything(mode);
        }
        let values = |column: &str| {
            let column = ColumnOf {
                source: index,
                column: column.to_owned(),
            };
            level.values(&column)
        };
        match table.partitioning {
            Partitioning::None if level.is_harmless => self.touch_rows(name, table, touch, values),
            _ => self.touch_table(name, table, mode, values),
        }
    }

    /// Touches a plain table: whole, or the partitions whose key values are looked up by column.
    pub(super) fn touch_table<'values>(
        &mut self,
        name: &TableName,
        table: &Table,
        mode: Mode,
        values: impl Fn(&str) -> Option<&'values [KeySource]>,
    ) {
        match &table.partitioning {
            Partitioning::Reference if mode == Mode::Shared => {}
            Partitioning::Reference | Partitioning::Unusable => self.everything(mode),
            Partitioning::None => self.fixed(Resource::Table(name.to_string()), mode),
            Partitioning::Key { family, column, kind } => match values(column) {
                Some(sources) if self.schema.compares_keys_natively() => self.keyed(Keyed {
                    family: *family,
                    kind: *kind,
                    sources: sources.to_vec(),
                    mode,
                    null_touches_nothing: true,
                }),
                _ => self.everything(mode),
            },
        }
    }

    /// A relation that is no table of the user's: of the system's catalog, a sequence, or unknown.
    fn touch_unknown(&mut self, name: &TableName, mode: Mode) {
        if self.schema.is_sequence(name) {
            self.fixed(Resource::Sequence(name.to_string()), mode);
        } else {
            let is_system = ["pg_catalog", "information_schema"].contains(&name.schema.as_str());
            self.foreign_code |= !is_system;
            self.reads_catalog = true;
            self.everything(mode);
        }
    }

    /// Whether the rows that come first are the same on every server.
    pub(super) fn is_totally_ordered(&mut self, query: &Query) -> bool {
        let SetExpr::Select(select) = query.body.as_ref() else {
            return matches!(query.body.as_ref(), SetExpr::Values(_));
        };
        if select.from.is_empty() || is_one_aggregate(select, self.schema) {
            return true;
        }
        let keys = order_keys(query, select);
        let covers = |expression: &Expr| keys.contains(&expression);
        if let GroupByExpr::Expressions(groups, _) = &select.group_by
            && !groups.is_empty()
        {
            return groups.iter().all(covers);
        }
        if matches!(select.distinct, Some(Distinct::Distinct)) {
            return select.projection.iter().all(|item| match item {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => covers(expr),
                _ => false,
            });
        }
        let level = self.side_level(select);
        level.missing_keys(&keys).is_some_and(|missing| missing.is_empty())
    }
}

/// The expressions of ORDER BY, with positions and output names replaced by what they stand for.
pub(super) fn order_keys<'query>(query: &'query Query, select: &'query Select) -> Vec<&'query Expr> {
    let Some(OrderByKind::Expressions(expressions)) = query.order_by.as_ref().map(|order| &order.kind) else {
        return Vec::new();
    };
    expressions.iter().map(|key| stands_for(&key.expr, select)).collect()
}

fn stands_for<'query>(key: &'query Expr, select: &'query Select) -> &'query Expr {
    let output = |item: &'query SelectItem| match item {
        SelectItem::UnnamedExpr(expr) => Some((None, expr)),
        SelectItem::ExprWithAlias { expr, alias } => Some((Some(alias), expr)),
        _ => None,
    };
    let found = match key {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => digits.parse::<usize>().ok().and_then(|position| {
                let item = select.projection.get(position.checked_sub(1)?)?;
                output(item).map(|(_, expr)| expr)
            }),
            _ => None,
        },
        Expr::Identifier(name) => {
            let is_it = |alias: Option<&Ident>| alias.is_some_and(|alias| name_of(alias) == name_of(name));
            let mut outputs = select.projection.iter().filter_map(output);
            outputs.find(|(alias, _)| is_it(*alias)).map(|(_, expr)| expr)
        }
        _ => None,
    };
    found.unwrap_or(key)
}

/// Whether the select gives one row: aggregates only, and no GROUP BY.
fn is_one_aggregate(select: &Select, schema: &crate::schema::Schema) -> bool {
    let is_aggregate = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(Expr::Function(function))
        | SelectItem::ExprWithAlias {
            expr: Expr::Function(function),
            ..
        } => {
            let parts = parts_of(&function.name).unwrap_or_default();
            let is_known = parts.last().is_some_and(|name| {
                ["count", "sum", "min", "max", "avg", "bool_and", "bool_or"].contains(&name.as_str())
                    && functions::kind(schema, None, name) == FunctionKind::Plain
            });
            is_known && function.over.is_none()
        }
        _ => false,
    };
    let groups = match &select.group_by {
        GroupByExpr::Expressions(groups, modifiers) => groups.len() + modifiers.len(),
        GroupByExpr::All(_) => 1,
    };
    groups == 0 && !select.projection.is_empty() && select.projection.iter().all(is_aggregate)
}

/// Whether only some of the rows are taken.
pub(super) fn picks_rows(query: &Query) -> bool {
    let limits = match &query.limit_clause {
        None => false,
        Some(LimitClause::LimitOffset { limit, offset, .. }) => {
            let is_null = |expr: &Expr| matches!(expr, Expr::Value(value) if value.value == Value::Null);
            offset.is_some() || limit.as_ref().is_some_and(|limit| !is_null(limit))
        }
        Some(LimitClause::OffsetCommaLimit { .. }) => true,
    };
    let fetches = query.fetch.as_ref().is_some_and(|fetch| !fetch.with_ties);
    let distinct_on = match query.body.as_ref() {
        SetExpr::Select(select) => matches!(select.distinct, Some(Distinct::On(_))),
        _ => false,
    };
    limits || fetches || distinct_on
}

fn is_plain_body(body: &SetExpr) -> bool {
    match body {
        SetExpr::SetOperation { left, right, .. } => is_plain_body(left) && is_plain_body(right),
        SetExpr::Table(_) | SetExpr::Merge(_) => false,
        _ => true,
    }
}

fn is_plain_select(select: &Select) -> bool {
    select.optimizer_hints.is_empty()
        && select.select_modifiers.is_none()
        && select.top.is_none()
        && select.exclude.is_none()
        && select.lateral_views.is_empty()
        && select.prewhere.is_none()
        && select.connect_by.is_empty()
        && select.cluster_by.is_empty()
        && select.distribute_by.is_empty()
        && select.sort_by.is_empty()
        && select.qualify.is_none()
        && select.value_table_mode.is_none()
        && select.flavor == SelectFlavor::Standard
}

/// A query's identity while its tree is visited.
pub(super) fn address(query: &Query) -> usize {
    std::ptr::from_ref(query).addr()
}

/// The kind of key of a column, for values that are assigned to it.
pub(super) fn key_kind(table: &Table, column: &str) -> Option<KeyKind> {
    table.column(column)?.kind.key_kind()
}
