//! One query level: its tables, and what its conditions say about their columns.

use std::collections::BTreeSet;

use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, Ident, Join, JoinConstraint, JoinOperator, ObjectName, TableAlias,
    UnaryOperator, Value,
};

use super::template::{KeyKind, KeySource, text_value, uuid_value};
use crate::footprint::PartitionValue;
use crate::lexer::{TokenKind, fold};
use crate::schema::{Table, TableName};
use crate::words::Words;

/// More conditions of one level are not followed.
const CONDITIONS_MAX: usize = 256;
/// More LEFT JOINs of one level are not followed.
const LEFT_JOINS_MAX: usize = 16;
/// The rows of more sources are given no order.
const ORDERED_SOURCES_MAX: usize = 32;
/// A list of more values names everything.
pub(super) const KEYS_MAX: usize = 1024;

/// A table of the FROM list, or the target of a write.
pub(super) struct Source<'schema> {
    /// The name by which its columns are qualified.
    pub(super) alias: String,
    pub(super) name: Option<TableName>,
    /// What the catalog knows; `None` for subqueries, functions and unknown tables.
    pub(super) table: Option<&'schema Table>,
}

/// A column of a source, by the source's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ColumnOf {
    pub(super) source: usize,
    pub(super) column: String,
}

/// The sources of a level, and the equalities that every row which matters satisfies.
#[derive(Default)]
pub(super) struct Level<'schema> {
    pub(super) sources: Vec<Source<'schema>>,
    constants: Vec<(ColumnOf, Vec<KeySource>)>,
    links: Vec<(ColumnOf, ColumnOf)>,
    left_joins: Vec<LeftJoin>,
    uses: ParameterUses,
    /// Whether no condition can fail, whatever row it is evaluated for.
    pub(super) is_harmless: bool,
}

/// What holds for the rows of the right side of a LEFT JOIN that matter.
struct LeftJoin {
    joined: usize,
    constants: Vec<(ColumnOf, Vec<KeySource>)>,
    links: Vec<(ColumnOf, ColumnOf)>,
}

/// How often each parameter is used in the statement.
#[derive(Clone, Debug, Default)]
pub(super) struct ParameterUses(std::rc::Rc<Vec<u16>>);

impl ParameterUses {
    /// Counts the parameters of a statement.
    pub(super) fn of(words: Words<'_>) -> Self {
        let mut uses = Vec::new();
        for token in words.rest().iter().filter(|token| token.kind == TokenKind::Parameter) {
            let number = token
                .source(words.text)
                .get(1..)
                .and_then(|digits| digits.parse::<u16>().ok());
            let Some(index) = number.and_then(|number| usize::from(number).checked_sub(1)) else {
                continue;
            };
            if uses.len() <= index {
                uses.resize(index + 1, 0_u16);
            }
            if let Some(count) = uses.get_mut(index) {
                *count = count.saturating_add(1);
            }
        }
        Self(std::rc::Rc::new(uses))
    }

    fn is_only_use(&self, index: u16) -> bool {
        self.0.get(usize::from(index)) == Some(&1)
    }
}

/// The folded name of an identifier.
pub(super) fn name_of(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => fold(&ident.value).into_owned(),
    }
}

/// The parts of a name, folded; `None` when one is no identifier.
pub(super) fn parts_of(name: &ObjectName) -> Option<Vec<String>> {
    name.0.iter().map(|part| part.as_ident().map(name_of)).collect()
}

/// The name of an alias that renames no columns.
pub(super) fn plain_alias(alias: Option<&TableAlias>) -> Result<Option<String>, ()> {
    match alias {
        None => Ok(None),
        Some(alias) if alias.columns.is_empty() && alias.at.is_none() => Ok(Some(name_of(&alias.name))),
        Some(_) => Err(()),
    }
}

impl<'schema> Level<'schema> {
    pub(super) fn new(uses: ParameterUses) -> Self {
        Self {
            uses,
            ..Self::default()
        }
    }

    /// Adds what a condition says when it must be true.
    pub(super) fn require(&mut self, condition: &Expr) {
        match condition {
            Expr::Nested(inner) => self.require(inner),
            Expr::BinaryOp {
                left,
                op: BinaryOperator::And,
                right,
            } => {
                self.require(left);
                self.require(right);
            }
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Eq,
                right,
            } => self.equal(left, right),
            Expr::InList {
                expr,
                list,
                negated: false,
            } => self.one_of(expr, list),
            Expr::AnyOp {
                left,
                compare_op: BinaryOperator::Eq,
                right,
                ..
            } => {
                if let Expr::Array(array) = right.as_ref() {
                    self.one_of(left, &array.elem);
                }
            }
            _ => {}
        }
    }

    /// Whether a join is inner (else LEFT), and its condition; `None` for joins of which the condition cannot be used.
    pub(super) fn join_condition(join: &Join) -> Option<(bool, Option<&Expr>)> {
        let (is_inner, constraint) = match &join.join_operator {
            JoinOperator::Join(constraint) | JoinOperator::Inner(constraint) | JoinOperator::CrossJoin(constraint) => {
                (true, constraint)
            }
            JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) => (false, constraint),
            _ => return None,
        };
        match constraint {
            JoinConstraint::On(condition) => Some((is_inner, Some(condition))),
            JoinConstraint::None => Some((is_inner, None)),
            // Their equalities are not used; conditions elsewhere are.
            JoinConstraint::Using(_) | JoinConstraint::Natural => Some((is_inner, None)),
        }
    }

    /// Adds what the condition of a LEFT JOIN says about its right side: only those rows of it matter.
    pub(super) fn add_left_join(&mut self, joined: usize, condition: &Expr) {
        let (constants, links) = (self.constants.clone(), self.links.clone());
        self.require(condition);
        let extended = LeftJoin {
            joined,
            constants: std::mem::replace(&mut self.constants, constants),
            links: std::mem::replace(&mut self.links, links),
        };
        if self.left_joins.len() < LEFT_JOINS_MAX {
            self.left_joins.push(extended);
        }
    }

    fn equal(&mut self, left: &Expr, right: &Expr) {
        if let (Expr::Tuple(left), Expr::Tuple(right)) = (left, right) {
            if left.len() == right.len() {
                left.iter().zip(right).for_each(|(left, right)| self.equal(left, right));
            }
            return;
        }
        match (self.resolve(left), self.resolve(right)) {
            (Some(left), Some(right)) if self.links.len() < CONDITIONS_MAX => self.links.push((left, right)),
            (Some(_), Some(_)) => {}
            (Some(column), None) => self.constant(column, std::slice::from_ref(right)),
            (None, Some(column)) => self.constant(column, std::slice::from_ref(left)),
            (None, None) => {}
        }
    }

    fn one_of(&mut self, expression: &Expr, list: &[Expr]) {
        if let Expr::Tuple(columns) = expression {
            for (index, column) in columns.iter().enumerate() {
                let of_row = |row: &Expr| match row {
                    Expr::Tuple(values) if values.len() == columns.len() => values.get(index).cloned(),
                    _ => None,
                };
                if let Some(values) = list.iter().map(of_row).collect::<Option<Vec<_>>>() {
                    self.one_of(column, &values);
                }
            }
        } else if let Some(column) = self.resolve(expression) {
            self.constant(column, list);
        }
    }

    fn constant(&mut self, column: ColumnOf, values: &[Expr]) {
        let Some(kind) = self.kind(&column) else { return };
        if values.len() > KEYS_MAX || self.constants.len() >= CONDITIONS_MAX {
            return;
        }
        if let Some(sources) = values.iter().map(|value| self.source_of(value, kind)).collect() {
            self.constants.push((column, sources));
        }
    }

    /// Where a value that is known before the statement runs comes from.
    pub(super) fn source_of(&self, value: &Expr, kind: KeyKind) -> Option<KeySource> {
        constant_source(value, kind, &self.uses)
    }

    /// The column of this level that an expression names.
    pub(super) fn resolve(&self, expression: &Expr) -> Option<ColumnOf> {
        match expression {
            Expr::Nested(inner) => self.resolve(inner),
            Expr::Identifier(column) => {
                let column = name_of(column);
                let has = |source: &&Source<'_>| source.table.is_some_and(|table| table.column(&column).is_some());
                self.only(|source| has(&source)).map(|source| ColumnOf {
                    source,
                    column: column.clone(),
                })
            }
            Expr::CompoundIdentifier(parts) => {
                let [alias, column] = parts.as_slice() else { return None };
                let (alias, column) = (name_of(alias), name_of(column));
                let source = self.only(|source| source.alias == alias)?;
                Some(ColumnOf { source, column })
            }
            _ => None,
        }
    }

    /// The index of the only source for which this holds.
    fn only(&self, holds: impl Fn(&Source<'_>) -> bool) -> Option<usize> {
        let mut found = self.sources.iter().enumerate().filter(|(_, source)| holds(source));
        let (first, _) = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// The kind of a column, when values of it can be followed.
    fn kind(&self, column: &ColumnOf) -> Option<KeyKind> {
        let table = self.sources.get(column.source)?.table?;
        table.column(&column.column)?.kind.key_kind()
    }

    /// The values that a column must have, directly or through equal columns.
    pub(super) fn values(&self, column: &ColumnOf) -> Option<&[KeySource]> {
        let mut joins = self.left_joins.iter().filter(|join| join.joined == column.source);
        self.follow(column, &self.constants, &self.links)
            .or_else(|| joins.find_map(|join| self.follow(column, &join.constants, &join.links)))
    }

    /// Whether each row of the first source meets at most one row of every other table. Of subqueries and functions
    /// nothing is known: they are taken to give each row once.
    pub(super) fn matches_once(&self) -> bool {
        let mut determined: Vec<usize> = (0..self.sources.len())
            .filter(|index| *index == 0 || self.sources.get(*index).is_some_and(|source| source.table.is_none()))
            .collect();
        loop {
            let next = (0..self.sources.len())
                .find(|index| !determined.contains(index) && self.follows_from(*index, &determined));
            match next {
                Some(index) => determined.push(index),
                None => return determined.len() == self.sources.len(),
            }
        }
    }

    /// The columns that, behind these keys, give each combination of rows a place of its own: as few of the sources' keys as the level's
    /// equalities allow. `None` where a source that needs one has no key, and where there are many sources.
    pub(super) fn missing_keys(&self, keys: &[&Expr]) -> Option<Vec<(usize, &'schema str)>> {
        if self.sources.len() > ORDERED_SOURCES_MAX {
            return None;
        }
        let keys = keys.iter().filter_map(|key| self.resolve(key));
        let keys: BTreeSet<_> = keys.map(|key| (key.source, key.column)).collect();
        let open: Vec<_> = (0..self.sources.len())
            .map(|index| self.open_columns(index, &keys))
            .collect();
        let is_named = |index: usize| {
            open.get(index)
                .is_some_and(|open| open.as_ref().is_some_and(Vec::is_empty))
        };
        let mut missing = Vec::new();
        let mut determined: Vec<usize> = Vec::new();
        for next in 0..self.sources.len() {
            // One row at most of such a source goes with a row of each determined one.
            let follows = |index: &usize, determined: &[usize]| {
                !determined.contains(index) && (is_named(*index) || self.follows_from(*index, determined))
            };
            while let Some(index) = (0..self.sources.len()).find(|index| follows(index, &determined)) {
                determined.push(index);
            }
            if !determined.contains(&next) {
                let columns = open.get(next)?.as_ref()?;
                missing.extend(columns.iter().map(|column| (next, *column)));
                determined.push(next);
            }
        }
        Some(missing)
    }

    /// The columns of the key that tells a source's rows apart that are neither among these keys nor constant.
    fn open_columns(&self, index: usize, keys: &BTreeSet<(usize, String)>) -> Option<Vec<&'schema str>> {
        let key = self.sources.get(index)?.table?.identity()?;
        let is_open = |name: &&str| {
            let column = ColumnOf {
                source: index,
                column: (*name).to_owned(),
            };
            let is_constant = self.values(&column).is_some_and(|values| values.len() == 1);
            !is_constant && !keys.contains(&(column.source, column.column))
        };
        Some(key.into_iter().filter(is_open).collect())
    }

    /// Whether the columns of some unique constraint of a source are constant, or equal to columns of these sources.
    fn follows_from(&self, index: usize, determined: &[usize]) -> bool {
        let Some(table) = self.sources.get(index).and_then(|source| source.table) else {
            return false;
        };
        let is_fixed = |name: &Option<String>| {
            let Some(name) = name else { return false };
            let column = ColumnOf {
                source: index,
                column: name.clone(),
            };
            let joins = self.left_joins.iter().filter(|join| join.joined == index);
            let mut links = joins.flat_map(|join| &join.links).chain(&self.links);
            let is_linked = links.any(|(left, right)| {
                (*left == column && determined.contains(&right.source))
                    || (*right == column && determined.contains(&left.source))
            });
            is_linked || self.values(&column).is_some_and(|values| values.len() == 1)
        };
        table
            .uniques
            .iter()
            .any(|unique| unique.plain && unique.columns.iter().all(is_fixed))
    }

    fn follow<'level>(
        &self,
        column: &ColumnOf,
        constants: &'level [(ColumnOf, Vec<KeySource>)],
        links: &[(ColumnOf, ColumnOf)],
    ) -> Option<&'level [KeySource]> {
        let kind = self.kind(column)?;
        let mut reached = vec![column.clone()];
        let mut next = 0;
        while let Some(at) = reached.get(next).cloned() {
            if let Some((_, values)) = constants.iter().find(|(of, _)| *of == at) {
                return Some(values);
            }
            for (left, right) in links {
                let other = match (*left == at, *right == at) {
                    (true, _) => right,
                    (_, true) => left,
                    _ => continue,
                };
                if self.kind(other) == Some(kind) && !reached.contains(other) {
                    reached.push(other.clone());
                }
            }
            next += 1;
        }
        None
    }
}

/// Where a value comes from: a literal or a parameter, perhaps cast to the kind of the column.
fn constant_source(value: &Expr, kind: KeyKind, uses: &ParameterUses) -> Option<KeySource> {
    match value {
        Expr::Nested(inner) => constant_source(inner, kind, uses),
        Expr::Value(value) => literal(&value.value, kind, uses),
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr,
        } => match expr.as_ref() {
            Expr::Value(value) => match &value.value {
                Value::Number(digits, _) if kind == KeyKind::Integer => integer(&format!("-{digits}")),
                _ => None,
            },
            _ => None,
        },
        Expr::Cast {
            kind: CastKind::Cast | CastKind::DoubleColon,
            expr,
            data_type,
            format: None,
        } if casts_to(data_type, kind) => match constant_source(expr, kind, uses)? {
            KeySource::Parameter { index, only_use, .. } => Some(KeySource::Parameter {
                index,
                only_use,
                cast: true,
            }),
            other => Some(other),
        },
        _ => None,
    }
}

fn literal(value: &Value, kind: KeyKind, uses: &ParameterUses) -> Option<KeySource> {
    match (value, kind) {
        (Value::Null, _) => Some(KeySource::Null),
        (Value::Number(digits, _), KeyKind::Integer) => integer(digits),
        (Value::SingleQuotedString(text), KeyKind::Integer) => integer(text),
        (Value::SingleQuotedString(text), KeyKind::Text) => text_value(text).map(KeySource::Value),
        (Value::SingleQuotedString(text), KeyKind::Uuid) => uuid_value(text).map(KeySource::Value),
        (Value::Placeholder(name), _) => {
            let index = name.strip_prefix('$')?.parse::<u16>().ok()?.checked_sub(1)?;
            Some(KeySource::Parameter {
                index,
                only_use: uses.is_only_use(index),
                cast: false,
            })
        }
        _ => None,
    }
}

fn integer(digits: &str) -> Option<KeySource> {
    let number = digits.parse().ok()?;
    Some(KeySource::Value(PartitionValue::Integer(number)))
}

pub(super) fn casts_to(data_type: &DataType, kind: KeyKind) -> bool {
    match kind {
        KeyKind::Integer => matches!(
            data_type,
            DataType::SmallInt(None)
                | DataType::Int2(None)
                | DataType::Int(None)
                | DataType::Int4(None)
                | DataType::Integer(None)
                | DataType::BigInt(None)
                | DataType::Int8(None)
        ),
        KeyKind::Text => matches!(data_type, DataType::Text | DataType::Varchar(None)),
        KeyKind::Uuid => matches!(data_type, DataType::Uuid),
    }
}
