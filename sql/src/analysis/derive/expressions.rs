//! Expressions: an allow-list of their kinds, and what the functions in them do.

use sqlparser::ast::{
    BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments,
    UnaryOperator, Value, WindowType,
};

use super::super::level::{name_of, parts_of};
use super::Deriver;
use super::query::address;
use crate::footprint::{Mode, Resource};
use crate::functions::{self, FunctionKind};
use crate::refusal::{NONDETERMINISTIC, NOT_SUPPORTED, Refusal};
use crate::schema::TableName;

impl Deriver<'_> {
    pub(super) fn expression(&mut self, expression: &Expr) {
        match expression {
            Expr::Identifier(_)
            | Expr::CompoundIdentifier(_)
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
            | Expr::TypedString(_)
            | Expr::Case { .. }
            | Expr::Subquery(_)
            | Expr::GroupingSets(_)
            | Expr::Cube(_)
            | Expr::Rollup(_)
            | Expr::Tuple(_)
            | Expr::Array(_)
            | Expr::Interval(_)
            | Expr::CompoundFieldAccess { .. }
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
            BinaryOperator::PGCustomBinaryOperator(_) | BinaryOperator::Custom(_) => self.not_understood(),
            known => {
                if self.schema.is_user_operator(&known.to_string()) {
                    self.runs_unknown_code();
                }
            }
        }
    }

    /// `at < 'now'`, where the type comes from the column (rule 4).
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
        if !matches!(
            operator,
            UnaryOperator::Not | UnaryOperator::Minus | UnaryOperator::Plus
        ) {
            self.not_understood();
        }
    }

    /// Casts to names of catalog objects read the catalog.
    fn cast(&mut self, data_type: &DataType, value: &Expr) {
        match data_type {
            DataType::Regclass => {
                let name = string(value).and_then(sequence_name);
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

    fn function(&mut self, function: &Function) {
        let Some(parts) = parts_of(&function.name) else {
            return self.not_understood();
        };
        if function.uses_odbc_syntax || !matches!(function.parameters, FunctionArguments::None) {
            self.not_understood();
        }
        self.called(&parts, first_argument(function));
        let name = parts.last().map(String::as_str).unwrap_or_default();
        if self.modifies && functions::ORDER_SENSITIVE.contains(&name) && !is_ordered(function) {
            self.refuse(Refusal::new(
                NONDETERMINISTIC,
                19,
                format!("the result of {name}() depends on the order of its input, which differs on every server"),
                "Add ORDER BY inside the call, or in its OVER clause.",
            ));
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
            FunctionKind::Plain | FunctionKind::Nothing => {}
            FunctionKind::Clock => self.needs_clock = true,
            FunctionKind::Catalog => self.everything(Mode::Shared),
            FunctionKind::ReadsAnything => {
                self.needs_clock = true;
                self.everything(self.read_mode());
            }
            FunctionKind::Sequence => self.sequence(literal),
            FunctionKind::SessionSequence => self.needs_transaction = true,
            FunctionKind::SetConfig => self.refuse(Refusal::new(
                NOT_SUPPORTED,
                33,
                "set_config() is supported as SELECT set_config('name', 'value', is_local) with literals only",
                "Use SET or SET LOCAL.",
            )),
            FunctionKind::Unknown => self.runs_unknown_code(),
        }
    }

    /// `nextval` and `setval` write the sequence that they name.
    fn sequence(&mut self, literal: Option<&str>) {
        self.writes = true;
        match literal
            .and_then(sequence_name)
            .filter(|name| self.schema.is_sequence(name))
        {
            Some(name) => self.fixed(Resource::Sequence(name.to_string()), Mode::Exclusive),
            None => self.everything(Mode::Exclusive),
        }
    }
}

/// The name in `nextval('...')`: as an identifier, with or without schema, without quotes.
fn sequence_name(literal: &str) -> Option<TableName> {
    let is_plain = literal
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.' || byte == b'$');
    is_plain.then_some(())?;
    let folded = literal.to_ascii_lowercase();
    let (schema, name) = folded.split_once('.').unwrap_or(("public", &folded));
    (!name.contains('.')).then(|| TableName {
        schema: schema.to_owned(),
        name: name.to_owned(),
    })
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
    let in_arguments = match &function.args {
        FunctionArguments::List(list) => {
            let mut clauses = list.clauses.iter();
            clauses.any(|clause| matches!(clause, FunctionArgumentClause::OrderBy(_)))
        }
        _ => false,
    };
    let in_window = match &function.over {
        Some(WindowType::WindowSpec(window)) => !window.order_by.is_empty(),
        Some(WindowType::NamedWindow(_)) => true,
        None => false,
    };
    in_arguments || in_window || !function.within_group.is_empty()
}

/// The folded last part of a function's name.
pub(super) fn last_name(function: &Function) -> String {
    let last = function.name.0.last().and_then(|part| part.as_ident());
    last.map(name_of).unwrap_or_default()
}
