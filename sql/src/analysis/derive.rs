//! From a statement's syntax tree to its footprint template (`docs/design.md#locks`).
//!
//! Only an allow-list of shapes is narrow; whatever else is found makes the template take everything.

mod copy;
mod expressions;
mod query;
mod rows;
mod shape;
mod total_order;
mod writes;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{Expr, ObjectName, Query, Select, Statement, Visit, Visitor};

use super::level::ParameterUses;
use super::parse::parse;
use super::template::{Access, Keyed, Template};
use crate::determinism::Splice;
use crate::footprint::{Mode, Resource};
use crate::functions::{self, FunctionKind};
use crate::lexer::TokenKind;
use crate::names::Names;
use crate::refusal::Refusal;
use crate::schema::Schema;
use crate::statement::StatementClass;
use crate::words::Words;

pub(super) use copy::derive_copy;
pub(crate) use shape::is_bounded_expression;

/// What the tree of a statement tells.
#[derive(Debug)]
pub(super) struct Derived {
    /// Read, LockingRead or Write.
    pub(super) class: StatementClass,
    pub(super) template: Template,
    pub(super) needs_clock: bool,
    pub(super) needs_transaction: bool,
    pub(super) refusal: Option<Refusal>,
    /// Whether code of users may run.
    pub(super) foreign_code: bool,
    /// Whether its shape bounds its time, its result and its outcome.
    pub(super) short: bool,
    /// Whether it is a read of plain tables by allow-listed functions.
    pub(super) plain_read: bool,
    /// Whether it calls `pg_notify` by itself.
    pub(super) notifies: bool,
    /// Texts that complete the orders which it leaves open.
    pub(super) orders: Vec<Splice>,
}

impl Derived {
    /// Something of which nothing is proven.
    pub(super) fn unproven(class: StatementClass, template: Template, needs_clock: bool) -> Self {
        Self {
            class,
            template,
            needs_clock,
            needs_transaction: false,
            refusal: None,
            foreign_code: true,
            short: false,
            plain_read: false,
            notifies: false,
            orders: Vec::new(),
        }
    }
}

/// Derives what a query or a data-modifying statement touches. A statement that cannot be parsed is of the class that
/// its keywords tell, and touches everything.
pub(super) fn derive(schema: &Schema, names: &Names, words: Words<'_>, class: StatementClass) -> Derived {
    let Some(statement) = parse(words) else {
        return unparsed(schema, words, class);
    };
    let mut deriver = Deriver::new(schema, names, words);
    deriver.collect_names(&statement);
    let _: ControlFlow<()> = statement.visit(&mut deriver);
    let derived = deriver.finish();
    let short = !derived.foreign_code && derived.refusal.is_none() && shape::is_short(schema, names, words, &statement);
    Derived { short, ..derived }
}

/// Why the rows that a definition stores (`CREATE TABLE ... AS query`) would differ on the servers, or what completes the orders
/// that its query leaves open.
pub(super) fn stored_rows(schema: &Schema, names: &Names, words: Words<'_>) -> Result<Vec<Splice>, Refusal> {
    let Some(statement) = parse(words) else {
        return unparsed_refusal(words).map_or(Ok(Vec::new()), Err);
    };
    let mut deriver = Deriver::new(schema, names, words);
    deriver.collect_names(&statement);
    deriver.modifies = true;
    let _: ControlFlow<()> = statement.visit(&mut deriver);
    deriver.refusal.map_or(Ok(deriver.orders), Err)
}

/// Whether a query reads temporary relations; `None` when it cannot be parsed.
pub(super) fn reads_temporary(schema: &Schema, names: &Names, words: Words<'_>) -> Option<bool> {
    let statement = parse(words)?;
    let mut found = Mentioned::default();
    let _: ControlFlow<()> = statement.visit(&mut found);
    Some(found.relations.iter().any(|parts| match parts.as_slice() {
        [name] => !found.common.contains(name) && names.is_temporary(schema, name),
        [.., qualifier, _] => names.is_own(qualifier),
        [] => false,
    }))
}

/// What keywords and names of functions tell of a statement that the parser cannot read.
fn unparsed(schema: &Schema, words: Words<'_>, class: StatementClass) -> Derived {
    let is_read =
        class == StatementClass::Read && !calls_unknown_function(schema, words) && !uses_user_code(schema, words);
    let class = match (is_read, class) {
        (false, StatementClass::Read) => StatementClass::Write,
        (_, class) => class,
    };
    let template = Template::everything(if is_read { Mode::Shared } else { Mode::Exclusive });
    let refusal = (class == StatementClass::Write)
        .then(|| unparsed_refusal(words))
        .flatten();
    Derived {
        needs_transaction: words.contains_any(&["currval", "lastval"]),
        refusal,
        ..Derived::unproven(class, template, true)
    }
}

/// The refusal of a write of unknown form whose outcome may depend on the order in which a server finds rows (rules
/// RandomNumbers, LimitWithoutOrder and OrderedAggregates).
fn unparsed_refusal(words: Words<'_>) -> Option<Refusal> {
    let calls = |names: &[&str]| {
        let mut pairs = words.rest().windows(2);
        pairs.any(|pair| match pair {
            [name, parenthesis] => {
                let called = name.identifier(words.text);
                parenthesis.is_punctuation(b'(') && called.is_some_and(|called| names.contains(&called.as_ref()))
            }
            _ => false,
        })
    };
    let takes_rows = words.contains_any(&["select", "update", "delete", "merge", "from"]);
    if words.contains_any(&["limit", "fetch", "offset"]) || words.contains_pair("distinct", "on") {
        return Some(query::limit_refusal("it is of a form that CloudBFT does not know"));
    }
    if takes_rows && calls(functions::PER_CALL) {
        return Some(writes::draw_refusal());
    }
    let ordered = functions::ORDER_SENSITIVE.iter().find(|name| calls(&[name]));
    ordered.map(|name| expressions::order_refusal(name))
}

/// Whether operators of users occur, or casts to types that run their code.
fn uses_user_code(schema: &Schema, words: Words<'_>) -> bool {
    words.rest().iter().any(|token| match token.kind {
        TokenKind::Operator => schema.is_user_operator(token.source(words.text)),
        TokenKind::Word | TokenKind::QuotedIdentifier => token
            .identifier(words.text)
            .is_some_and(|name| schema.cast_runs_code(&name) || schema.function(&name).is_some()),
        _ => false,
    })
}

/// Words before a parenthesis that are no functions.
const BEFORE_PARENTHESIS: &[&str] = &[
    "in",
    "values",
    "from",
    "select",
    "any",
    "some",
    "all",
    "exists",
    "and",
    "or",
    "not",
    "as",
    "on",
    "by",
    "when",
    "then",
    "else",
    "case",
    "where",
    "having",
    "limit",
    "offset",
    "union",
    "except",
    "intersect",
    "using",
    "over",
    "filter",
    "group",
    "cast",
    "operator",
    "with",
    "distinct",
    "interval",
    "like",
    "ilike",
    "between",
    "join",
    "is",
    "lateral",
    "only",
    "rows",
    "materialized",
    "varchar",
    "char",
    "character",
    "varying",
    "numeric",
    "decimal",
    "bit",
    "float",
    "sets",
    "cube",
    "rollup",
    "window",
    "conflict",
    "similar",
    "substring",
    "trim",
    "position",
    "collation",
    "xmlelement",
    "xmlexists",
    "xmlparse",
    "xmlserialize",
    "treat",
    "to",
    "current_timestamp",
    "current_time",
    "localtime",
    "localtimestamp",
    "extract",
];

pub(super) fn calls_unknown_function(schema: &Schema, words: Words<'_>) -> bool {
    let tokens = words.rest();
    tokens.windows(2).enumerate().any(|(index, pair)| {
        let [name, parenthesis] = pair else { return false };
        let Some(called) = name.identifier(words.text).filter(|_| parenthesis.is_punctuation(b'(')) else {
            return false;
        };
        let before = |back: usize| index.checked_sub(back).and_then(|at| tokens.get(at));
        let qualifier = before(1)
            .filter(|token| token.is_punctuation(b'.'))
            .and_then(|_| before(2)?.identifier(words.text));
        let is_keyword = name.kind == TokenKind::Word && BEFORE_PARENTHESIS.contains(&called.as_ref());
        let kind = functions::kind(schema, qualifier.as_deref(), &called);
        !is_keyword
            && matches!(
                kind,
                FunctionKind::Unknown
                    | FunctionKind::Sequence
                    | FunctionKind::SetConfig
                    | FunctionKind::Notify
                    | FunctionKind::LargeObject(_)
            )
    })
}

/// Collects accesses while it visits the tree.
struct Deriver<'schema> {
    schema: &'schema Schema,
    names: &'schema Names,
    uses: ParameterUses,
    template: Template,
    /// Names of common table expressions.
    common: BTreeSet<String>,
    /// Subqueries of EXISTS: their rows are not looked at.
    exists: BTreeSet<usize>,
    words: Words<'schema>,
    /// Texts that complete orders, the queries of which the order was completed, and the calls of which the input is ordered.
    orders: Vec<Splice>,
    completed: BTreeSet<usize>,
    ordered_calls: BTreeSet<usize>,
    /// Calls of which the input was, or could have been, ordered.
    calls_met: usize,
    writes: bool,
    notifies: bool,
    locks: bool,
    modifies: bool,
    needs_clock: bool,
    needs_transaction: bool,
    refusal: Option<Refusal>,
    /// Whether code of users may run; it stays unset only while everything met is known not to be.
    foreign_code: bool,
    /// Whether something of the system's catalog is read.
    reads_catalog: bool,
    /// Names of relations that the visitor met, and those that a query level or a target accounts for: a difference
    /// means that something was not understood.
    relations_met: usize,
    relations_understood: usize,
}

impl<'schema> Deriver<'schema> {
    fn new(schema: &'schema Schema, names: &'schema Names, words: Words<'schema>) -> Self {
        Self {
            schema,
            names,
            uses: ParameterUses::of(words),
            template: Template::default(),
            common: BTreeSet::new(),
            exists: BTreeSet::new(),
            words,
            orders: Vec::new(),
            completed: BTreeSet::new(),
            ordered_calls: BTreeSet::new(),
            calls_met: 0,
            writes: false,
            notifies: false,
            locks: false,
            modifies: false,
            needs_clock: false,
            needs_transaction: false,
            refusal: None,
            foreign_code: schema.casts_implicitly(),
            reads_catalog: false,
            relations_met: 0,
            relations_understood: 0,
        }
    }

    /// Common table expressions and locking clauses act on all that follows: they are found before.
    fn collect_names(&mut self, statement: &Statement) {
        let mut names = Mentioned::default();
        let _: ControlFlow<()> = statement.visit(&mut names);
        self.locks = names.locks;
        self.modifies = names.modifies;
        self.writes = names.modifies;
        for name in &names.common {
            let shadowed = self.names.relation(self.schema, None, name);
            // `WITH t AS (SELECT * FROM t)`: which t is meant depends on the place.
            if name.starts_with("pg_")
                || self.schema.is_relation(&shadowed)
                || self.names.is_temporary(self.schema, name)
            {
                self.not_understood();
            }
        }
        self.common = names.common;
    }

    /// The mode in which tables are read: exclusive under a locking clause.
    fn read_mode(&self) -> Mode {
        match self.locks {
            true => Mode::Exclusive,
            false => Mode::Shared,
        }
    }

    fn not_understood(&mut self) {
        self.foreign_code = true;
        let mode = match self.writes || self.locks {
            true => Mode::Exclusive,
            false => Mode::Shared,
        };
        self.everything(mode);
    }

    fn everything(&mut self, mode: Mode) {
        self.template.everything = self.template.everything.max(Some(mode));
    }

    /// Something that may do anything: it writes, as far as is known.
    fn runs_unknown_code(&mut self) {
        self.writes = true;
        self.foreign_code = true;
        self.needs_clock = true;
        self.everything(Mode::Exclusive);
    }

    fn fixed(&mut self, resource: Resource, mode: Mode) {
        self.access(Access::Fixed(resource, mode));
    }

    fn keyed(&mut self, keyed: Keyed) {
        self.access(Access::Keyed(keyed));
    }

    fn access(&mut self, access: Access) {
        if !self.template.accesses.contains(&access) {
            self.template.accesses.push(access);
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.refusal.get_or_insert(refusal);
    }

    fn finish(mut self) -> Derived {
        if self.relations_met != self.relations_understood {
            self.not_understood();
        }
        if self.template.everything == Some(Mode::Exclusive) {
            self.template.accesses.clear();
        }
        let class = match (self.writes, self.locks) {
            (true, _) => StatementClass::Write,
            (false, true) => StatementClass::LockingRead,
            (false, false) => StatementClass::Read,
        };
        Derived {
            plain_read: class == StatementClass::Read && !self.foreign_code && !self.reads_catalog,
            foreign_code: self.foreign_code,
            short: false,
            class,
            template: self.template,
            needs_clock: self.needs_clock,
            needs_transaction: self.needs_transaction,
            notifies: self.notifies,
            refusal: self.refusal,
            orders: self.orders,
        }
    }
}

impl Visitor for Deriver<'_> {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        match statement {
            Statement::Query(_) => {}
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => self.update(update),
            Statement::Delete(delete) => self.delete(delete),
            other => {
                if writes::draws(other) {
                    self.refuse(writes::draw_refusal());
                }
                if let Statement::Merge(merge) = other {
                    self.merge(merge);
                }
                self.runs_unknown_code();
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.query(query);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.select(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        self.expression(expression);
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, _: &ObjectName) -> ControlFlow<()> {
        self.relations_met += 1;
        ControlFlow::Continue(())
    }
}

/// What must be known before the tree is visited.
#[derive(Default)]
struct Mentioned {
    common: BTreeSet<String>,
    relations: Vec<Vec<String>>,
    locks: bool,
    modifies: bool,
}

impl Visitor for Mentioned {
    type Break = ();

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<()> {
        self.relations.extend(super::level::parts_of(name));
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let tables = query.with.iter().flat_map(|with| &with.cte_tables);
        self.common
            .extend(tables.map(|table| super::level::name_of(&table.alias.name)));
        self.locks |= !query.locks.is_empty();
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        self.modifies |= !matches!(statement, Statement::Query(_));
        ControlFlow::Continue(())
    }
}
