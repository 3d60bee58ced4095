//! What kind of statement it is, from its keywords alone: it must be known also of what the parser cannot read.

mod advisory;
mod configs;
mod control;
mod copy;
pub(crate) mod cursor;
mod refused;
pub(crate) mod setting;
mod split;

use crate::footprint::Mode;
use crate::refusal::{INSUFFICIENT_PRIVILEGE, NOT_SUPPORTED, Refusal};
use crate::statement::{Listening, StatementClass};
use crate::words::Words;

pub(crate) use split::split;

/// Keywords that make a statement a write wherever they stand.
const MODIFYING: [&str; 4] = ["insert", "update", "delete", "merge"];

/// Statements that change the catalog, by their first keyword.
const CATALOG_KEYWORDS: [&str; 12] = [
    "create", "alter", "drop", "comment", "grant", "revoke", "reassign", "security", "refresh", "import", "analyse",
    "label",
];

/// What keywords tell of a statement.
#[derive(Debug)]
pub(crate) struct Sketch<'text> {
    pub(crate) class: StatementClass,
    pub(crate) plan: Plan<'text>,
}

/// How the footprint is found.
#[derive(Debug)]
pub(crate) enum Plan<'text> {
    /// It touches nothing.
    Nothing,
    /// It touches everything.
    Everything(Mode),
    /// By the parser, from these tokens.
    Query(Words<'text>),
    /// COPY of a whole table: its name comes next.
    Copy(Words<'text>, Mode),
}

impl<'text> Sketch<'text> {
    fn of(class: StatementClass) -> Self {
        let plan = Plan::Nothing;
        Self { class, plan }
    }

    fn everything(class: StatementClass) -> Self {
        let plan = Plan::Everything(Mode::Exclusive);
        Self { class, plan }
    }

    fn query(class: StatementClass, words: Words<'text>) -> Self {
        let plan = Plan::Query(words);
        Self { class, plan }
    }

    fn refused(refusal: Refusal) -> Self {
        Self::of(StatementClass::Refused(refusal))
    }
}

/// Classifies one statement.
pub(crate) fn classify(words: Words<'_>) -> Sketch<'_> {
    let Some(first) = words.peek() else {
        return Sketch::of(StatementClass::Empty);
    };
    if let Some(refusal) = refused::refusal(words) {
        return Sketch::refused(refusal);
    }
    if first.is_punctuation(b'(') {
        return query(words);
    }
    let mut after = words;
    let keyword = after.keyword().unwrap_or_default();
    after.skip();
    match keyword.as_ref() {
        "select" | "values" | "table" | "with" => query(words),
        "insert" | "update" | "delete" | "merge" => Sketch::query(StatementClass::Write, words),
        "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => {
            control::classify(words)
        }
        "set" | "reset" | "show" | "discard" => setting::classify(words),
        "copy" => copy::classify(after),
        "prepare" => prepare(after),
        "execute" => execute(after),
        "deallocate" => deallocate(after),
        "declare" => cursor::declare(after),
        "fetch" | "move" | "close" => cursor::classify(&keyword, after),
        "explain" => explain(after),
        "listen" | "unlisten" => listening(&keyword, after),
        "notify" => Sketch::of(StatementClass::Notify),
        "vacuum" | "checkpoint" => maintenance(true),
        "analyze" | "cluster" | "reindex" => maintenance(is_whole_database(&keyword, after)),
        keyword if CATALOG_KEYWORDS.contains(&keyword) => Sketch::everything(StatementClass::Ddl),
        _ => Sketch::everything(StatementClass::Write),
    }
}

/// SELECT, VALUES, TABLE, WITH or a parenthesis.
fn query(words: Words<'_>) -> Sketch<'_> {
    if let Some(class) = configs::classify(words) {
        return Sketch::of(class);
    }
    if let Some(class) = advisory::classify(words) {
        return Sketch::of(class);
    }
    if asks_for_channels(words) {
        return Sketch::of(StatementClass::Listening(Listening::Show));
    }
    // FOR UPDATE is found by the parser, or makes an unparsed statement a write, which is no narrower.
    let class = match words.contains_any(&MODIFYING) {
        true if !is_locking_only(words) => StatementClass::Write,
        true => StatementClass::LockingRead,
        false if words.contains_any(&["into"]) => return Sketch::everything(StatementClass::Ddl),
        false if is_locking(words) => StatementClass::LockingRead,
        false => StatementClass::Read,
    };
    Sketch::query(class, words)
}

/// Whether `FOR SHARE`, `FOR KEY SHARE`, `FOR UPDATE` or `FOR NO KEY UPDATE` occurs.
fn is_locking(words: Words<'_>) -> bool {
    let mut ahead = words;
    while ahead.skip().is_some() {
        let mut lock = ahead;
        if lock.accept("for") && (lock.accept_one(&["update", "share"]) || lock.accept_one(&["no", "key"])) {
            return true;
        }
    }
    false
}

/// Whether all modifying keywords are the `UPDATE` of a locking clause.
fn is_locking_only(words: Words<'_>) -> bool {
    let mut ahead = words;
    let mut previous_allows = false;
    while let Some(token) = ahead.peek() {
        if MODIFYING.iter().any(|keyword| token.is_word(words.text, keyword))
            && !(previous_allows && token.is_word(words.text, "update"))
        {
            return false;
        }
        previous_allows = token.is_word(words.text, "for") || token.is_word(words.text, "key");
        ahead.skip();
    }
    true
}

fn prepare(mut words: Words<'_>) -> Sketch<'_> {
    let Some(name) = words.identifier() else {
        return Sketch::everything(StatementClass::Write);
    };
    // Parameter types may stand between name and AS.
    while !words.is_end() && !words.accept("as") {
        words.skip();
    }
    let body = words.source().to_owned();
    Sketch::of(StatementClass::Prepare { name, body })
}

fn execute(mut words: Words<'_>) -> Sketch<'_> {
    match words.identifier() {
        Some(name) => Sketch::everything(StatementClass::Execute { name }),
        None => Sketch::everything(StatementClass::Write),
    }
}

fn deallocate(mut words: Words<'_>) -> Sketch<'_> {
    words.accept("prepare");
    let name = match words.accept("all") {
        true => None,
        false => words.identifier(),
    };
    Sketch::of(StatementClass::Deallocate(name))
}

/// LISTEN and UNLISTEN; what is none for Postgres either is left to Postgres, to say so.
fn listening<'text>(keyword: &str, mut words: Words<'text>) -> Sketch<'text> {
    let all = keyword == "unlisten" && words.accept_operator("*");
    let name = match all {
        true => None,
        false => words.identifier(),
    };
    let listening = match (keyword, name) {
        ("unlisten", name) if all || name.is_some() => Listening::Unlisten(name.map(cut_off)),
        ("listen", Some(name)) => Listening::Listen(cut_off(name)),
        _ => return Sketch::everything(StatementClass::Write),
    };
    match words.is_end() {
        true => Sketch::of(StatementClass::Listening(listening)),
        false => Sketch::everything(StatementClass::Write),
    }
}

/// `SELECT pg_listening_channels()` or `SELECT * FROM pg_listening_channels()`, and nothing else.
fn asks_for_channels(mut words: Words<'_>) -> bool {
    if !words.accept("select") {
        return false;
    }
    if words.accept_operator("*") && !words.accept("from") {
        return false;
    }
    if words.accept("pg_catalog") && !words.accept_punctuation(b'.') {
        return false;
    }
    words.accept("pg_listening_channels")
        && words.accept_punctuation(b'(')
        && words.accept_punctuation(b')')
        && words.is_end()
}

/// Bytes of an identifier, at most: Postgres cuts longer ones off.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// A name, cut off where Postgres cuts identifiers off.
fn cut_off(mut name: String) -> String {
    if name.len() > IDENTIFIER_BYTES_MAX {
        let end = (0..=IDENTIFIER_BYTES_MAX).rev().find(|end| name.is_char_boundary(*end));
        name.truncate(end.unwrap_or(0));
    }
    name
}

fn explain(words: Words<'_>) -> Sketch<'_> {
    // The name of an option may be quoted.
    let runs = words.rest().iter().any(|token| {
        let name = token.identifier(words.text);
        name.is_some_and(|name| ["analyze", "analyse"].contains(&name.as_ref()))
    });
    if runs && (words.contains_any(&MODIFYING) || words.contains_any(&["execute", "into", "call"])) {
        return Sketch::refused(Refusal::new(
            NOT_SUPPORTED,
            32,
            "EXPLAIN ANALYZE of a statement that writes is not supported: its timings differ on every server",
            "Use EXPLAIN without ANALYZE, or connect to a copy of a database node.",
        ));
    }
    match runs {
        // It runs functions that are not looked at.
        true => Sketch::everything(StatementClass::Write),
        false => Sketch {
            class: StatementClass::Read,
            plan: Plan::Everything(Mode::Shared),
        },
    }
}

fn maintenance<'text>(outside_transaction: bool) -> Sketch<'text> {
    Sketch::everything(StatementClass::Maintenance { outside_transaction })
}

fn is_whole_database(keyword: &str, words: Words<'_>) -> bool {
    match keyword {
        "cluster" => words.is_end() || words.keyword().as_deref() == Some("verbose") && words.rest().len() == 1,
        "reindex" => words.contains_any(&["database", "system", "schema"]),
        _ => false,
    }
}

/// The refusal of what reaches outside the database.
pub(crate) fn outside_world(rule: u8, what: &str) -> Refusal {
    Refusal::new(
        INSUFFICIENT_PRIVILEGE,
        rule,
        format!("{what} reaches outside the database, where servers differ"),
        "Send the data through the connection instead, for example with COPY ... FROM STDIN.",
    )
}
