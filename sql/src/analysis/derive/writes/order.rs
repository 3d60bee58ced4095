//! What a write may not leave to the order in which a server finds rows, nor to its clock (rules DateWords,
//! RandomNumbers, SeveralMatches, ConflictSources and FloatSums).

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{
    DataType, Expr, Insert, ObjectName, Query, SelectItem, SetExpr, TableFactor, Value, Visit, Visitor,
};

use super::super::super::level::{ColumnOf, Level};
use super::super::super::template::{clock_word_refusal, is_clock_word};
use super::super::expressions::{arguments, last_name};
use super::super::total_order::call_address;
use super::{Deriver, insert_columns, may_be_default};
use crate::functions::{self, SUMS};
use crate::refusal::{NONDETERMINISTIC, Refusal};
use crate::schema::{ColumnKind, Table, Unique};

impl Deriver<'_> {
    /// Refuses an INSERT that depends on the order of rows or on each server's clock, whatever else its table makes run.
    pub(super) fn insert_order(&mut self, insert: &Insert, object: &ObjectName) {
        let source = insert.source.as_deref();
        let name = self.target_name(object);
        let table = name.as_ref().and_then(|name| self.known_table(name));
        let columns = table.and_then(|table| insert_columns(insert, table));
        match (table, &columns) {
            (Some(table), Some(columns)) => {
                self.refuse_draws_over_rows(table, columns, source);
                if let Some(source) = source {
                    self.date_literals(table, columns, source);
                }
            }
            _ => self.refuse_calls_over_rows(source),
        }
        let Some(source) = source else { return };
        // A table that an earlier statement of the same text makes may have defaults that draw, and a trigger may number rows.
        let may_number = table.is_none_or(|table| table.runs_user_code);
        if !(may_number || insert.on.is_some()) || self.has_known_order(source) {
            return;
        }
        if name.is_some_and(|name| self.names.is_changed(&name.name)) {
            self.refuse(changed_refusal());
        } else if insert.on.is_some() {
            self.refuse(conflict_refusal());
        }
    }

    /// Draws (random, UUIDs, sequences) for rows whose order is not known would differ (rules RandomNumbers,
    /// RandomIdentifiers, SequenceValues and ConflictSources).
    fn refuse_draws_over_rows(&mut self, table: &Table, columns: &[String], source: Option<&Query>) {
        let Some(query) = source else { return };
        let by_default = table.columns.iter().any(|column| {
            (column.default_draws || !column.sequences.is_empty()) && may_be_default(&column.name, columns, source)
        });
        let draws = by_default || calls_any(query, functions::PER_CALL);
        if draws && !self.has_known_order(query) {
            self.refuse(draw_refusal());
        }
    }

    /// The same for a table of which nothing is known.
    fn refuse_calls_over_rows(&mut self, source: Option<&Query>) {
        let Some(query) = source else { return };
        if calls_any(query, functions::PER_CALL) && !self.has_known_order(query) {
            self.refuse(draw_refusal());
        }
    }

    /// Draws for the rows of a query within a statement that writes: `WITH r AS (SELECT id, random() FROM t) UPDATE ...`.
    pub(in super::super) fn refuse_drawn_projection(&mut self, query: &Query) {
        let SetExpr::Select(select) = query.body.as_ref() else {
            return;
        };
        let draws = select
            .projection
            .iter()
            .any(|item| calls_any(item, functions::PER_CALL));
        if draws && !select.from.is_empty() && !self.has_known_order(query) {
            self.refuse(draw_refusal());
        }
    }

    /// Whether a query gives its rows in an order that does not depend on the server.
    pub(super) fn has_known_order(&mut self, query: &Query) -> bool {
        match query.body.as_ref() {
            SetExpr::Values(_) => true,
            SetExpr::Query(inner) if query.order_by.is_none() => self.has_known_order(inner),
            SetExpr::Select(select) => {
                let functions_only = select.from.iter().all(|tables| {
                    tables.joins.is_empty()
                        && matches!(
                            &tables.relation,
                            TableFactor::Function { .. }
                                | TableFactor::UNNEST { .. }
                                | TableFactor::Table { args: Some(_), .. }
                        )
                });
                functions_only || self.gives_one_order(query)
            }
            _ => false,
        }
    }

    /// `'now'` as the value of a date or time column (rule DateWords), as a literal or a parameter.
    fn date_literals(&mut self, table: &Table, columns: &[String], source: &Query) {
        for (position, column) in columns.iter().enumerate() {
            let is_date = table
                .column(column)
                .is_some_and(|column| column.kind == ColumnKind::Date);
            if !is_date {
                continue;
            }
            match source.body.as_ref() {
                SetExpr::Values(values) => {
                    let cells = values.rows.iter().filter_map(|row| row.content.get(position));
                    cells.for_each(|value| self.date_value(value));
                }
                SetExpr::Select(select) => {
                    let item = select.projection.get(position);
                    if let Some(SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. }) = item {
                        self.date_value(value);
                    }
                }
                _ => {}
            }
        }
    }

    /// A value of a date or time type: `now` and the like would read the clock.
    pub(in super::super) fn date_value(&mut self, value: &Expr) {
        let value = match value {
            Expr::Value(value) => value,
            Expr::Nested(inner) => return self.date_value(inner),
            Expr::Array(array) => return array.elem.iter().for_each(|value| self.date_value(value)),
            Expr::Tuple(values) => return values.iter().for_each(|value| self.date_value(value)),
            Expr::Case {
                conditions,
                else_result,
                ..
            } => {
                let results = conditions.iter().map(|condition| &condition.result);
                return results
                    .chain(else_result.as_deref())
                    .for_each(|value| self.date_value(value));
            }
            Expr::Function(function)
                if ["coalesce", "greatest", "least", "nullif"].contains(&last_name(function).as_str()) =>
            {
                return arguments(function).for_each(|value| self.date_value(value));
            }
            _ => return,
        };
        match &value.value {
            Value::SingleQuotedString(text) if is_clock_word(text) => self.refuse(clock_word_refusal()),
            // The word that its escapes spell is not known.
            Value::EscapedStringLiteral(_) => self.refuse(clock_word_refusal()),
            Value::Placeholder(name) => {
                let number = name.strip_prefix('$').and_then(|digits| digits.parse::<u16>().ok());
                let index = number.and_then(|number| number.checked_sub(1));
                self.template.date_parameters.extend(index);
            }
            _ => {}
        }
    }

    fn sums_unordered(&self, expression: &Expr) -> bool {
        expression.visit(&mut UnorderedSums(&self.ordered_calls)).is_break()
    }

    /// Sums of floats depend on the order in which they are added (rule FloatSums).
    pub(in super::super) fn refuse_float_sums(&mut self, source: Option<&Query>) {
        let Some(query) = source else { return };
        let SetExpr::Select(select) = query.body.as_ref() else {
            return;
        };
        if !calls_any(query, SUMS) {
            return;
        }
        let level = self.side_level(select);
        self.order_calls(select, &level);
        let sums_floats = select.projection.iter().any(|item| match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                self.sums_unordered(expr) && names_float(expr, &level)
            }
            _ => false,
        });
        if sums_floats {
            self.refuse(Refusal::new(
                NONDETERMINISTIC,
                20,
                "a sum or average of floating-point values depends on the order in which they are added",
                "Cast the values to numeric.",
            ));
        }
    }
}

/// Whether a sum is called of which the input is in no known order.
struct UnorderedSums<'derived>(&'derived BTreeSet<usize>);

impl Visitor for UnorderedSums<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        match expression {
            Expr::Function(function)
                if SUMS.contains(&last_name(function).as_str()) && !self.0.contains(&call_address(function)) =>
            {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

fn conflict_refusal() -> Refusal {
    Refusal::new(
        NONDETERMINISTIC,
        18,
        "which of several conflicting rows INSERT ... SELECT ... ON CONFLICT keeps depends on their order",
        "Add ORDER BY over the primary key to the SELECT.",
    )
}

fn changed_refusal() -> Refusal {
    Refusal::new(
        NONDETERMINISTIC,
        6,
        "the rows may get numbers in the order in which a server finds them: this transaction has made or changed the table, and its columns are not known yet",
        "Commit before the INSERT, or insert VALUES.",
    )
}

pub(super) fn several_matches() -> Refusal {
    Refusal::new(
        NONDETERMINISTIC,
        17,
        "UPDATE ... FROM may find several rows for one row of its target: which of them counts differs on every server",
        "Join the primary key of the tables in FROM with the target, or use a subquery with an aggregate.",
    )
}

pub(in super::super) fn draw_refusal() -> Refusal {
    Refusal::new(
        NONDETERMINISTIC,
        6,
        "random values or sequence numbers for several rows depend on the order in which a server finds the rows",
        "Select the rows ORDER BY their primary key, or write them one by one.",
    )
}

pub(super) fn key_refusal() -> Refusal {
    Refusal::new(
        NONDETERMINISTIC,
        23,
        "an UPDATE that computes a unique key for several rows may fail on one server and not on another: it depends on the order in which a server finds them",
        "Declare the constraint DEFERRABLE, so that it is checked after the last row, or change the rows one by one.",
    )
}

/// Whether the conditions name at most one row of the target.
pub(super) fn names_one_row(level: &Level<'_>, table: &Table) -> bool {
    let is_one_value = |column: &Option<String>| {
        let column = column.as_ref().map(|column| ColumnOf {
            source: 0,
            column: column.clone(),
        });
        column.is_some_and(|column| level.values(&column).is_some_and(|values| values.len() == 1))
    };
    let tells_apart = |unique: &&Unique| unique.plain && (unique.primary || unique.natural);
    let mut keys = table.uniques.iter().filter(tells_apart);
    keys.any(|unique| unique.columns.iter().all(is_one_value))
}

/// Whether one of these functions is called anywhere in a tree.
pub(super) fn calls_any(tree: &impl Visit, names: &[&str]) -> bool {
    struct Calls<'names>(&'names [&'names str]);
    impl Visitor for Calls<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
            match expression {
                Expr::Function(function) if self.0.contains(&last_name(function).as_str()) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    tree.visit(&mut Calls(names)).is_break()
}

/// Whether a float column is named anywhere in an expression, or something is cast to float.
pub(in super::super) fn names_float(expression: &Expr, level: &Level<'_>) -> bool {
    struct Floats<'level, 'schema>(&'level Level<'schema>);
    impl Visitor for Floats<'_, '_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
            if let Expr::Cast { data_type, .. } = expression
                && is_float(data_type)
            {
                return ControlFlow::Break(());
            }
            let column = self.0.resolve(expression);
            let table = column
                .as_ref()
                .and_then(|column| self.0.sources.get(column.source)?.table);
            let kind = column
                .and_then(|column| table?.column(&column.column))
                .map(|column| column.kind);
            match kind {
                Some(ColumnKind::Float) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    expression.visit(&mut Floats(level)).is_break()
}

fn is_float(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Float(_)
            | DataType::Real
            | DataType::Float4
            | DataType::Float8
            | DataType::Double(_)
            | DataType::DoublePrecision
    )
}
