//! Expressions: an allow-list of their kinds, and what the functions in them do.

use sqlparser::ast::{
    AccessExpr, ArrayElemTypeDef, BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentClause, FunctionArguments, OrderByExpr, UnaryOperator, Value, WindowType,
};

use super::super::level::{name_of, parts_of};
use super::super::template::{clock_word_refusal, is_clock_word};
use super::Deriver;
use super::query::address;
use super::total_order::call_address;
use crate::footprint::{Mode, Resource};
use crate::functions::{self, FunctionKind, LARGE_OBJECTS, LargeObjectUse};
use crate::refusal::{NONDETERMINISTIC, NOT_SUPPORTED, Refusal};
use crate::schema::TableName;

impl Deriver<'_> {
    pub(super) fn expression(&mut self, expression: &Expr) {
        self.implied_operators(expression);
        self.implied_dates(expression);
        match expression {
            Expr::CompoundIdentifier(parts) => self.attribute(parts.last().map(name_of)),
            Expr::CompoundFieldAccess { access_chain, .. } => {
                for access in access_chain {
                    match access {
                        AccessExpr::Dot(Expr::Identifier(name)) => self.attribute(Some(name_of(name))),
                        AccessExpr::Dot(_) => self.not_understood(),
                        AccessExpr::Subscript(_) => {}
                    }
                }
            }
            Expr::TypedString(typed) => self.cast_runs_code(&typed.data_type),
            Expr::Identifier(_)
            | Expr::IsFalse(_)
            | Expr::IsNotFalse(_)
            | Expr::IsTrue(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotUnknown(_)
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::InList { .. }
            | Expr::InSubquery { .. }
            | Expr::Between { .. }
            | Expr::Like { any: false, .. }
            | Expr::ILike { any: false, .. }
            | Expr::SimilarTo { .. }
            | Expr::AtTimeZone { .. }
            | Expr::Extract { .. }
            | Expr::Ceil { .. }
            | Expr::Floor { .. }
            | Expr::Position { .. }
            | Expr::Substring { .. }
            | Expr::Trim { .. }
            | Expr::Overlay { .. }
            | Expr::Collate { .. }
            | Expr::Nested(_)
            | Expr::Case { .. }
            | Expr::Subquery(_)
            | Expr::GroupingSets(_)
            | Expr::Cube(_)
            | Expr::Rollup(_)
            | Expr::Tuple(_)
            | Expr::Array(_)
            | Expr::Interval(_)
            | Expr::Wildcard(_)
            | Expr::QualifiedWildcard(..) => {}
            Expr::Value(value) => self.value(&value.value),
            Expr::BinaryOp { left, op, right } => {
                self.operator(op);
                self.compared_dates(left, right);
            }
            Expr::AnyOp { compare_op: op, .. } | Expr::AllOp { compare_op: op, .. } => self.operator(op),
            Expr::UnaryOp { op, .. } => self.unary(*op),
            Expr::Cast { data_type, expr, .. } => self.cast(data_type, expr),
            Expr::Function(function) => self.function(function),
            Expr::Exists { subquery, .. } => {
                self.exists.insert(address(subquery));
            }
            _ => self.not_understood(),
        }
    }

    fn value(&mut self, value: &Value) {
        if let Value::Placeholder(name) = value
            && !name.starts_with('$')
        {
            self.not_understood();
        }
    }

    fn operator(&mut self, operator: &BinaryOperator) {
        match operator {
            BinaryOperator::PGCustomBinaryOperator(parts) => match parts.as_slice() {
                [schema, _] if schema == "pg_catalog" => {
                    self.reads_catalog = true;
                    let mode = self.read_mode();
                    self.everything(mode);
                }
                _ => self.runs_unknown_code(),
            },
            BinaryOperator::Custom(_) => self.runs_unknown_code(),
            known => {
                if self.schema.is_user_operator(&known.to_string()) {
                    self.runs_unknown_code();
                }
            }
        }
    }

    /// `t.name` calls a function of that name if `t` has no such column, and `(value).name` likewise.
    fn attribute(&mut self, name: Option<String>) {
        let Some(name) = name else {
            return self.runs_unknown_code();
        };
        if self.schema.function(&name).is_none() {
            return;
        }
        // Where a table has such a column, that is most likely meant; in a write, nothing is left to likelihood.
        match self.schema.is_column(&name) && !self.modifies {
            true => self.foreign_code = true,
            false => self.runs_unknown_code(),
        }
    }

    /// Operators that an expression uses without naming them.
    fn implied_operators(&mut self, expression: &Expr) {
        let operators: &[&str] = match expression {
            Expr::InList { .. }
            | Expr::InSubquery { .. }
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::Case { operand: Some(_), .. } => &["=", "<>"],
            Expr::Between { .. } => &[">=", "<="],
            Expr::Like { .. } => &["~~", "!~~"],
            Expr::ILike { .. } => &["~~*", "!~~*"],
            Expr::SimilarTo { .. } => &["~", "!~"],
            Expr::Function(function) if last_name(function) == "nullif" => &["="],
            _ => return,
        };
        if operators.iter().any(|operator| self.schema.is_user_operator(operator)) {
            self.runs_unknown_code();
        }
    }

    /// Comparisons with a column of a date or time type (rule DateWords).
    fn implied_dates(&mut self, expression: &Expr) {
        match expression {
            Expr::Between { expr, low, high, .. } => {
                self.compared_dates(expr, low);
                self.compared_dates(expr, high);
            }
            Expr::InList { expr, list, .. } => list.iter().for_each(|value| self.compared_dates(expr, value)),
            Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => {
                self.compared_dates(left, right)
            }
            Expr::AnyOp { left, right, .. } | Expr::AllOp { left, right, .. } => self.compared_dates(left, right),
            _ => {}
        }
    }

    /// `at < 'now'`, where the type comes from the column (rule DateWords).
    fn compared_dates(&mut self, left: &Expr, right: &Expr) {
        for (column, value) in [(left, right), (right, left)] {
            let name = match column {
                Expr::Identifier(name) => Some(name),
                Expr::CompoundIdentifier(parts) => parts.last(),
                _ => None,
            };
            if name.is_some_and(|name| self.schema.is_date_column(&name_of(name))) {
                self.date_value(value);
            }
        }
    }

    fn unary(&mut self, operator: UnaryOperator) {
        if self.schema.is_user_operator(&operator.to_string()) {
            self.runs_unknown_code();
        }
        if !matches!(
            operator,
            UnaryOperator::Not | UnaryOperator::Minus | UnaryOperator::Plus
        ) {
            self.not_understood();
        }
    }

    /// Casts to names of catalog objects read the catalog.
    fn cast(&mut self, data_type: &DataType, value: &Expr) {
        self.cast_runs_code(data_type);
        if string(value).is_none() && self.schema.casts_to_built_in() {
            self.runs_unknown_code();
        }
        match data_type {
            DataType::Array(element) => {
                if let ArrayElemTypeDef::SquareBracket(inner, _) | ArrayElemTypeDef::AngleBracket(inner) = element
                    && matches!(
                        inner.as_ref(),
                        DataType::Date | DataType::Timestamp(..) | DataType::Time(..)
                    )
                {
                    self.array_of_dates(value);
                }
            }
            DataType::Regclass => {
                let name = string(value).and_then(|literal| self.sequence_name(literal));
                if !name.is_some_and(|name| self.schema.is_sequence(&name)) {
                    self.not_understood();
                }
            }
            // Literals are replaced, or refused, by their tokens.
            DataType::Date | DataType::Timestamp(..) | DataType::Time(..) if string(value).is_none() => {
                self.date_value(value)
            }
            DataType::Custom(name, _) => {
                let parts = parts_of(name).unwrap_or_default();
                let reads_catalog = parts
                    .last()
                    .is_none_or(|last| last.starts_with("reg") || last == "oid" || last == "xml");
                if reads_catalog {
                    self.not_understood();
                }
            }
            _ => {}
        }
    }

    /// A cast to a type of users, of which a check or the cast itself may be their code.
    fn cast_runs_code(&mut self, data_type: &DataType) {
        match data_type {
            DataType::Custom(name, _) => {
                let parts = parts_of(name).unwrap_or_default();
                let is_built_in = matches!(parts.as_slice(), [schema, _] if schema == "pg_catalog");
                if !is_built_in && parts.last().is_none_or(|last| self.schema.cast_runs_code(last)) {
                    self.runs_unknown_code();
                }
            }
            DataType::Array(
                ArrayElemTypeDef::SquareBracket(element, _)
                | ArrayElemTypeDef::AngleBracket(element)
                | ArrayElemTypeDef::Parenthesis(element),
            ) => self.cast_runs_code(element),
            _ => {}
        }
    }

    /// `'{now}'::date[]` and `ARRAY['now']::date[]`.
    fn array_of_dates(&mut self, value: &Expr) {
        match string(value) {
            Some(text) if is_clock_word(text) => self.refuse(clock_word_refusal()),
            _ => self.date_value(value),
        }
    }

    fn function(&mut self, function: &Function) {
        let Some(parts) = parts_of(&function.name) else {
            return self.not_understood();
        };
        if function.uses_odbc_syntax || !matches!(function.parameters, FunctionArguments::None) {
            self.not_understood();
        }
        match is_read_only_open(function) {
            true => self.large_object(LargeObjectUse::Reads),
            false => self.called(&parts, first_argument(function)),
        }
        let name = parts.last().map(String::as_str).unwrap_or_default();
        let is_ordered = is_ordered(function) || self.ordered_calls.contains(&call_address(function));
        if self.modifies && functions::ORDER_SENSITIVE.contains(&name) && !is_ordered {
            self.refuse(order_refusal(name));
        }
    }

    /// A call of a function by name; `literal` is its first argument if that is a string.
    pub(super) fn called(&mut self, parts: &[String], literal: Option<&str>) {
        let (schema_name, name) = match parts {
            [name] => (None, name),
            [schema_name, name] => (Some(schema_name.as_str()), name),
            _ => return self.runs_unknown_code(),
        };
        match functions::kind(self.schema, schema_name, name) {
            FunctionKind::Plain => {}
            FunctionKind::Clock => self.needs_clock = true,
            FunctionKind::Catalog => {
                self.reads_catalog = true;
                self.everything(Mode::Shared);
            }
            FunctionKind::ReadsAnything => {
                self.foreign_code = true;
                self.needs_clock = true;
                self.everything(self.read_mode());
            }
            FunctionKind::Sequence => self.sequence(literal),
            FunctionKind::SessionSequence => self.needs_transaction = true,
            FunctionKind::SetConfig => self.refuse(Refusal::new(
                NOT_SUPPORTED,
                33,
                "set_config() is supported in a SELECT of nothing but set_config() and current_setting(), of literals or parameters",
                "Use SET or SET LOCAL, or send the value as a parameter.",
            )),
            FunctionKind::LargeObject(usage) => self.large_object(usage),
            FunctionKind::Notify => {
                self.writes = true;
                self.notifies = true;
            }
            FunctionKind::Unknown => self.runs_unknown_code(),
        }
    }

    /// All large objects are one resource (rule LargeObjects). What a transaction has open is state of its backend, so what works with it
    /// is listed like a write.
    fn large_object(&mut self, usage: LargeObjectUse) {
        self.writes |= usage != LargeObjectUse::Gets;
        // A number may be drawn.
        self.needs_clock |= usage == LargeObjectUse::Writes;
        let mode = match usage {
            LargeObjectUse::Gets | LargeObjectUse::Reads => self.read_mode(),
            LargeObjectUse::Opens | LargeObjectUse::Writes => Mode::Exclusive,
        };
        self.fixed(Resource::Table(LARGE_OBJECTS.to_owned()), mode);
    }

    /// `nextval` and `setval` write the sequence that they name.
    fn sequence(&mut self, literal: Option<&str>) {
        self.writes = true;
        match literal
            .and_then(|literal| self.sequence_name(literal))
            .filter(|name| self.schema.is_sequence(name))
        {
            Some(name) => self.fixed(Resource::Sequence(name.to_string()), Mode::Exclusive),
            None => self.everything(Mode::Exclusive),
        }
    }
}

impl Deriver<'_> {
    /// The name in `nextval('...')`: as an identifier, with or without schema, without quotes.
    fn sequence_name(&self, literal: &str) -> Option<TableName> {
        let is_plain = literal
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.' || byte == b'$');
        is_plain.then_some(())?;
        let folded = literal.to_ascii_lowercase();
        let (schema, name) = match folded.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, folded.as_str()),
        };
        (!name.contains('.')).then(|| self.names.relation(self.schema, schema, name))
    }
}

/// The refusal of an aggregate or window function over rows of unknown order.
pub(super) fn order_refusal(name: &str) -> Refusal {
    Refusal::new(
        NONDETERMINISTIC,
        19,
        format!("the result of {name}() depends on the order of its input, which differs on every server"),
        "Add ORDER BY inside the call, or in its OVER clause.",
    )
}

/// The arguments of a call that are expressions.
pub(super) fn arguments(function: &Function) -> impl Iterator<Item = &Expr> {
    let list = match &function.args {
        FunctionArguments::List(list) => list.args.as_slice(),
        _ => &[],
    };
    list.iter().filter_map(|argument| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => Some(expression),
        _ => None,
    })
}

/// The bit of the mode of `lo_open` that asks for writing.
const INV_WRITE: u32 = 0x0002_0000;

/// Whether a call opens a large object for reading alone, as its mode tells, a number.
fn is_read_only_open(function: &Function) -> bool {
    let is_open = match parts_of(&function.name).as_deref() {
        Some([schema, name]) => schema == "pg_catalog" && name == "lo_open",
        _ => false,
    };
    let mode = arguments(function).nth(1).and_then(|mode| match mode {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => digits.to_string().parse::<u32>().ok(),
            _ => None,
        },
        _ => None,
    });
    is_open && mode.is_some_and(|mode| mode & INV_WRITE == 0)
}

/// The first argument, if it is a string, perhaps cast to regclass.
fn first_argument(function: &Function) -> Option<&str> {
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let FunctionArg::Unnamed(FunctionArgExpr::Expr(first)) = list.args.first()? else {
        return None;
    };
    let inner = match first {
        Expr::Cast {
            expr,
            data_type: DataType::Regclass,
            ..
        } => expr,
        other => other,
    };
    string(inner)
}

fn string(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Whether an aggregate or window function is told the order of its input.
fn is_ordered(function: &Function) -> bool {
    let is_named = matches!(&function.over, Some(WindowType::NamedWindow(_)));
    is_named || !own_order(function).is_empty() || !function.within_group.is_empty()
}

/// The order that a call or its window gives its input.
pub(super) fn own_order(function: &Function) -> &[OrderByExpr] {
    match (&function.over, &function.args) {
        (Some(WindowType::WindowSpec(window)), _) => &window.order_by,
        (Some(WindowType::NamedWindow(_)), _) => &[],
        (None, FunctionArguments::List(list)) => {
            let mut clauses = list.clauses.iter();
            let order = clauses.find_map(|clause| match clause {
                FunctionArgumentClause::OrderBy(order) => Some(order.as_slice()),
                _ => None,
            });
            order.unwrap_or_default()
        }
        _ => &[],
    }
}

/// The folded last part of a function's name.
pub(super) fn last_name(function: &Function) -> String {
    let last = function.name.0.last().and_then(|part| part.as_ident());
    last.map(name_of).unwrap_or_default()
}
