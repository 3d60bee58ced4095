//! Orders that a statement leaves open are closed by primary keys, so that every server takes, numbers and adds up rows in one order
//! (rules RowOrder, TiesInOrder, LimitWithoutOrder, OrderedAggregates and FloatSums).
//!
//! ORDER BY, LIMIT and DISTINCT ON get the columns of primary keys behind what they name; so do aggregates that put their input in a row,
//! sums of floats, and window functions that number rows. Any order is as good an answer to the statement as it stands. What has an order of its
//! own that SQL does not promise (a subquery, a function, VALUES, a view) is left alone.

mod places;

use std::ops::ControlFlow;

use sqlparser::ast::{
    DataType, Distinct, DuplicateTreatment, Expr, Function, FunctionArguments, GroupByExpr, OrderByKind, Query, Select,
    SelectItem, SetExpr, SetOperator, SetQuantifier, TableFactor, Value, Visit, Visitor, WindowType,
};
use sqlparser::tokenizer::Span;

use super::super::level::{Level, parts_of};
use super::Deriver;
use super::expressions::{arguments, last_name, own_order};
use super::query::{address, order_keys, picks_rows};
use super::writes::order::names_float;
use crate::determinism::Splice;
use crate::functions::{self, FunctionKind, ORDER_SENSITIVE, SUMS};
use crate::schema::Schema;

/// Calls of one statement that are looked at, at most: what is added stays a small multiple of what was sent.
const CALLS_MAX: usize = 64;

/// Keys that are added in one place, at most.
const KEYS_MAX: usize = 64;

/// Window functions of which only the order of the rows decides, not who is whose peer: a longer order changes nothing else.
const NUMBERING: [&str; 4] = ["row_number", "ntile", "lag", "lead"];

impl<'schema> Deriver<'schema> {
    /// Whether the rows of a query come in one order on every server: as it stands, or since its order was completed.
    pub(super) fn gives_one_order(&mut self, query: &Query) -> bool {
        match query.body.as_ref() {
            SetExpr::Query(inner) if query.order_by.is_none() => self.gives_one_order(inner),
            _ => self.is_totally_ordered(query) || self.completes(query),
        }
    }

    /// Completes the order of a query whose order means something, where that can be done.
    pub(super) fn complete_if_ordered(&mut self, query: &Query) {
        let is_ordered = query.order_by.is_some() || picks_rows(query);
        if is_ordered && !self.exists.contains(&address(query)) {
            self.gives_one_order(query);
        }
    }

    fn completes(&mut self, query: &Query) -> bool {
        if self.completed.contains(&address(query)) {
            return true;
        }
        let Some(splice) = self.completion(query) else {
            return false;
        };
        self.completed.insert(address(query));
        self.orders.push(splice);
        true
    }

    fn completion(&mut self, query: &Query) -> Option<Splice> {
        let has_ties = query.fetch.as_ref().is_some_and(|fetch| fetch.with_ties);
        let is_plain = match query.order_by.as_ref().map(|order| &order.kind) {
            None | Some(OrderByKind::Expressions(_)) => true,
            Some(OrderByKind::All(_)) => false,
        };
        if has_ties || !is_plain {
            return None;
        }
        let (select, is_union) = first_select(&query.body)?;
        let place = places::of_query(self.words, select.select_token.0.span)?;
        if place.is_ordered != query.order_by.is_some() {
            return None;
        }
        let mut keys = match is_union {
            true => self.positions(select)?,
            false => self.keys_of_rows(query, select)?,
        };
        if let (Some(Distinct::On(expressions)), false) = (&select.distinct, place.is_ordered) {
            if !expressions
                .iter()
                .all(|expression| is_repeatable(self.schema, expression))
            {
                return None;
            }
            let on = places::distinct_on(self.words, select.select_token.0.span)?;
            keys.insert(0, on.to_owned());
        }
        Some(clause(place, &keys))
    }

    /// Keys that give each row of a select's result a place of its own.
    fn keys_of_rows(&mut self, query: &Query, select: &Select) -> Option<Vec<String>> {
        if matches!(select.distinct, Some(Distinct::Distinct)) {
            return self.positions(select);
        }
        if let GroupByExpr::Expressions(groups, modifiers) = &select.group_by
            && !groups.is_empty()
        {
            let is_repeatable = modifiers.is_empty() && groups.iter().all(|group| is_repeatable(self.schema, group));
            (is_repeatable && self.has_usual_types(select)).then_some(())?;
            let groups = places::groups(self.words, select.select_token.0.span)?;
            return Some(vec![groups.to_owned()]);
        }
        if aggregates(self.schema, query, select) != Some(false) {
            return None;
        }
        let level = self.side_level(select);
        keys_of_level(&level, &order_keys(query, select))
    }

    /// All output columns by position; `None` where their number is not known, or whether their types have an order.
    fn positions(&mut self, select: &Select) -> Option<Vec<String>> {
        let is_one = |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
        let is_known = select.projection.iter().all(is_one) && !select.projection.is_empty();
        (is_known && self.has_usual_types(select)).then(|| {
            let positions = 1..=select.projection.len();
            positions.map(|position| position.to_string()).collect()
        })
    }

    /// Whether a select is over tables of users, without casts to other types than SQL's own. Some types of the catalogs (xid, aclitem) can be
    /// told apart and have no order.
    fn has_usual_types(&mut self, select: &Select) -> bool {
        let level = self.side_level(select);
        let casts =
            select.projection.visit(&mut OtherTypes).is_break() || select.group_by.visit(&mut OtherTypes).is_break();
        !casts && level.sources.iter().all(|source| source.table.is_some())
    }

    /// A level that is looked at only: what it touches is found when it is visited.
    pub(super) fn side_level(&mut self, select: &Select) -> Level<'schema> {
        let understood = self.relations_understood;
        let level = self.level(&select.from, select.selection.as_ref());
        self.relations_understood = understood;
        level
    }

    /// Orders the input of the calls of a select that depend on it.
    pub(super) fn order_calls(&mut self, select: &Select, level: &Level<'schema>) {
        let groups = !matches!(&select.group_by, GroupByExpr::Expressions(groups, _) if groups.is_empty());
        let subquery = only_subquery(select).filter(|_| !groups);
        let mut calls = OwnCalls::new(|function: &Function| self.order_call(function, level, groups, subquery));
        let _: ControlFlow<()> = select.projection.visit(&mut calls);
        let _: ControlFlow<()> = select.having.visit(&mut calls);
    }

    fn order_call(&mut self, function: &Function, level: &Level<'schema>, groups: bool, subquery: Option<&Query>) {
        let name = last_name(function);
        if let (FunctionArguments::Subquery(query), "array") = (&function.args, name.as_str()) {
            self.gives_one_order(query);
            return;
        }
        let name = name.as_str();
        if self.calls_met >= CALLS_MAX || !(ORDER_SENSITIVE.contains(&name) || SUMS.contains(&name)) {
            return;
        }
        self.calls_met += 1;
        let sums_floats = || arguments(function).any(|sum| names_float(sum, level));
        if self.ordered_calls.contains(&call_address(function)) || !(ORDER_SENSITIVE.contains(&name) || sums_floats()) {
            return;
        }
        let Some(span) = name_span(function) else { return };
        let place = match &function.over {
            None if is_distinct(function) || !function.within_group.is_empty() => None,
            None => places::of_arguments(self.words, span),
            Some(WindowType::WindowSpec(window))
                if NUMBERING.contains(&name)
                    && !groups
                    && window.window_name.is_none()
                    && window.window_frame.is_none() =>
            {
                places::of_window(self.words, span)
            }
            Some(_) => None,
        };
        let own: Vec<&Expr> = own_order(function).iter().map(|key| &key.expr).collect();
        let Some(place) = place.filter(|place| place.is_ordered != own.is_empty()) else {
            return;
        };
        if let Some(keys) = keys_of_level(level, &own) {
            if !keys.is_empty() {
                self.orders.push(clause(place, &keys));
            }
            self.ordered_calls.insert(call_address(function));
        } else if let (Some(query), None) = (subquery, &function.over) {
            // An aggregate takes the rows of its only subquery as they come. SQL does not promise that, so a write may not rest on it.
            self.gives_one_order(query);
        }
    }
}

/// The columns that give each combination of rows of a level a place of its own behind these keys, as text; `None` where a source has
/// no primary key.
fn keys_of_level(level: &Level<'_>, keys: &[&Expr]) -> Option<Vec<String>> {
    let missing = level.missing_keys(keys)?;
    (missing.len() <= KEYS_MAX).then_some(())?;
    let text = |(source, column): (usize, &str)| {
        let alias = &level.sources.get(source)?.alias;
        Some(format!("{}.{}", quoted(alias), quoted(column)))
    };
    missing.into_iter().map(text).collect()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The keys behind an ORDER BY that is there, or in one of their own.
fn clause(place: places::OrderPlace, keys: &[String]) -> Splice {
    let word = if place.is_ordered { "," } else { " ORDER BY" };
    Splice {
        range: place.at..place.at,
        replacement: format!("{word} {}", keys.join(", ")),
    }
}

/// The first select of a query, and whether it is one of several of which equal rows are one.
fn first_select(body: &SetExpr) -> Option<(&Select, bool)> {
    match body {
        SetExpr::Select(select) => Some((select, false)),
        SetExpr::SetOperation {
            op: SetOperator::Union | SetOperator::Intersect | SetOperator::Except,
            set_quantifier: SetQuantifier::None | SetQuantifier::Distinct,
            left,
            ..
        } => first_select(left).map(|(select, _)| (select, true)),
        _ => None,
    }
}

/// Whether an expression may be written a second time: its text means the same there, and nothing of it is replaced.
fn is_repeatable(schema: &Schema, expression: &Expr) -> bool {
    match expression {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => true,
        Expr::Value(value) => matches!(value.value, Value::Number(..)),
        Expr::Nested(inner) => is_repeatable(schema, inner),
        Expr::Function(function) => {
            let parts = parts_of(&function.name).unwrap_or_default();
            let is_plain = matches!(parts.as_slice(), [name] if
                functions::kind(schema, None, name) == FunctionKind::Plain && schema.function(name).is_none());
            let FunctionArguments::List(list) = &function.args else {
                return false;
            };
            let is_text = |value: &Expr| matches!(value, Expr::Value(value) if matches!(value.value, Value::SingleQuotedString(_)));
            let all = || arguments(function).all(|argument| is_text(argument) || is_repeatable(schema, argument));
            is_plain && list.clauses.is_empty() && arguments(function).count() == list.args.len() && all()
        }
        _ => false,
    }
}

/// Looks for casts to types that are none of SQL's own.
struct OtherTypes;

impl Visitor for OtherTypes {
    type Break = ();

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        let is_other = match expression {
            Expr::Cast { data_type, .. } => matches!(data_type, DataType::Custom(..) | DataType::Array(_)),
            Expr::TypedString(typed) => matches!(typed.data_type, DataType::Custom(..)),
            _ => false,
        };
        match is_other {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Whether a select without GROUP BY gives one row for all; `None` where a call may be an aggregate of users.
fn aggregates(schema: &Schema, query: &Query, select: &Select) -> Option<bool> {
    let mut aggregates = select.having.is_some();
    let mut is_known = true;
    let mut calls = OwnCalls::new(|function: &Function| {
        let parts = parts_of(&function.name).unwrap_or_default();
        let name = match parts.as_slice() {
            [name] => name.as_str(),
            [schema, name] if schema == "pg_catalog" => name.as_str(),
            _ => "",
        };
        let is_built_in =
            schema.function(name).is_none() && functions::kind(schema, None, name) != FunctionKind::Unknown;
        is_known &= is_built_in;
        aggregates |= function.over.is_none() && functions::is_aggregate(name);
    });
    let _: ControlFlow<()> = select.projection.visit(&mut calls);
    let _: ControlFlow<()> = query.order_by.visit(&mut calls);
    is_known.then_some(aggregates)
}

/// The query of a select from nothing but one subquery.
fn only_subquery(select: &Select) -> Option<&Query> {
    let [tables] = select.from.as_slice() else { return None };
    match &tables.relation {
        TableFactor::Derived { subquery, .. } if tables.joins.is_empty() => Some(subquery),
        _ => None,
    }
}

fn is_distinct(function: &Function) -> bool {
    match &function.args {
        FunctionArguments::List(list) => list.duplicate_treatment == Some(DuplicateTreatment::Distinct),
        _ => true,
    }
}

/// Where the last part of a function's name stands.
fn name_span(function: &Function) -> Option<Span> {
    Some(function.name.0.last()?.as_ident()?.span)
}

/// A call's identity while its tree is visited.
pub(super) fn call_address(function: &Function) -> usize {
    std::ptr::from_ref(function).addr()
}

/// Meets the calls of functions in something, without those in its subqueries.
struct OwnCalls<Each> {
    depth: usize,
    each: Each,
}

impl<Each: FnMut(&Function)> OwnCalls<Each> {
    fn new(each: Each) -> Self {
        Self { depth: 0, each }
    }
}

impl<Each: FnMut(&Function)> Visitor for OwnCalls<Each> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth = self.depth.saturating_sub(1);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        if let (0, Expr::Function(function)) = (self.depth, expression) {
            (self.each)(function);
        }
        ControlFlow::Continue(())
    }
}
