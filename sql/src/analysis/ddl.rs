//! Statements that change the catalog: what they may not leave to each server, and which run no code of users.

use std::borrow::Cow;

use super::derive::{calls_unknown_function, stored_rows};
use super::template::{clock_word_refusal, is_clock_word};
use crate::determinism::Splice;
use crate::functions;
use crate::lexer::{Token, TokenKind};
use crate::names::Names;
use crate::refusal::{NONDETERMINISTIC, Refusal};
use crate::schema::Schema;
use crate::words::Words;

/// Types of columns that are numbered by a sequence.
const NUMBERED: [&str; 6] = ["serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"];

/// Types that read the clock for `'now'`; the first word of their names.
const DATE_TYPES: [&str; 5] = ["date", "time", "timestamp", "timetz", "timestamptz"];

/// Why a statement that changes the catalog would leave the servers with different data or catalogs, or what completes the orders that a
/// query leaves open of which it stores the rows.
pub(super) fn stored(schema: &Schema, names: &Names, words: Words<'_>) -> Result<Vec<Splice>, Refusal> {
    drawn_rows(schema, words).map_or(Ok(()), Err)?;
    let orders = stored_query(words).map_or(Ok(Vec::new()), |query| stored_rows(schema, names, query))?;
    stored_clock(schema, words).map_or(Ok(orders), Err)
}

/// Whether it is certain that no code of users runs. (Event triggers would, but no application may create them.)
pub(super) fn runs_no_code(words: Words<'_>) -> bool {
    let mut ahead = words;
    let Some(first) = ahead.keyword() else { return false };
    ahead.skip();
    match first.as_ref() {
        // A table without rows computes nothing.
        "create" => {
            let evaluates = [
                "as",
                "select",
                "execute",
                "partition",
                "inherits",
                "like",
                "of",
                "using",
            ];
            ahead.accept("table") && !ahead.contains_any(&evaluates)
                || ahead.accept_one(&["sequence"])
                || (ahead.accept("schema") && !ahead.contains_any(&["create", "grant"]))
        }
        "drop" | "comment" | "grant" | "revoke" => true,
        _ => false,
    }
}

/// The query of which CREATE TABLE AS, CREATE MATERIALIZED VIEW or SELECT INTO stores the rows.
pub(super) fn stored_query(words: Words<'_>) -> Option<Words<'_>> {
    let mut ahead = words;
    if ahead.accept("create") {
        ahead.accept("materialized");
        let stores = ahead.accept("table") || (words.contains_any(&["materialized"]) && ahead.accept("view"));
        stores.then_some(())?;
        let mut depth = 0_usize;
        while let Some(token) = ahead.peek() {
            if token.is_punctuation(b'(') {
                depth += 1;
            } else if token.is_punctuation(b')') {
                depth = depth.saturating_sub(1);
            } else if depth == 0 && ahead.accept("as") {
                return Some(without_data_clause(ahead));
            }
            ahead.skip();
        }
        return None;
    }
    let is_query = ahead.accept_one(&["select", "with"]) || ahead.peek()?.is_punctuation(b'(');
    is_query.then_some(words)
}

/// The query without `WITH [NO] DATA` at its end.
fn without_data_clause(words: Words<'_>) -> Words<'_> {
    let tokens = words.rest();
    let at = |back: usize| tokens.len().checked_sub(back).and_then(|index| tokens.get(index));
    let is = |back: usize, word: &str| at(back).is_some_and(|token: &Token| token.is_word(words.text, word));
    let length = match (is(1, "data"), is(2, "with"), is(2, "no") && is(3, "with")) {
        (true, true, _) => tokens.len() - 2,
        (true, _, true) => tokens.len() - 3,
        _ => tokens.len(),
    };
    Words::new(words.text, tokens.get(..length).unwrap_or_default())
}

/// DDL that gives each row of a table a random value or a number, in the order in which the server finds them (rules
/// RandomNumbers and StoredExpressions).
fn drawn_rows(schema: &Schema, words: Words<'_>) -> Option<Refusal> {
    let mut ahead = words;
    let draws = if ahead.accept_all(&["alter", "table"]) {
        actions(ahead).any(|action| draws_for_rows(schema, action))
    } else {
        stored_query(words).is_some_and(|query| query.contains_any(functions::PER_CALL))
    };
    draws.then(|| {
        Refusal::new(
            NONDETERMINISTIC,
            8,
            "rows of a table would get random values or numbers in the order in which each server stores them",
            "Create the column or table without them, fill it by UPDATE or INSERT in key order, then set the default.",
        )
    })
}

/// The actions of ALTER TABLE: what stands between commas outside of parentheses.
fn actions(words: Words<'_>) -> impl Iterator<Item = Words<'_>> {
    let mut depth = 0_usize;
    let separators = words.rest().split(move |token| {
        if token.is_punctuation(b'(') {
            depth += 1;
        } else if token.is_punctuation(b')') {
            depth = depth.saturating_sub(1);
        }
        depth == 0 && token.is_punctuation(b',')
    });
    separators.map(move |tokens| Words::new(words.text, tokens))
}

/// Whether an action of ALTER TABLE fills a column with another value for each row.
fn draws_for_rows(schema: &Schema, action: Words<'_>) -> bool {
    let mut ahead = action;
    // The first action follows the name of the table.
    while !ahead.is_end() && !ahead.accept("add") {
        if ahead.accept("alter") {
            return ahead.contains_any(&["using"]) && ahead.contains_any(functions::PER_CALL);
        }
        ahead.skip();
    }
    if ahead.is_end() || ahead.accept_one(&["constraint", "primary", "unique", "check", "foreign", "exclude"]) {
        return false;
    }
    let default = default_of(ahead);
    ahead.contains_any(&NUMBERED)
        || ahead.contains_any(&["identity"])
        || default.contains_any(functions::PER_CALL)
        || calls_unknown_function(schema, default)
}

/// The expression after DEFAULT, up to the next constraint of the column.
fn default_of(column: Words<'_>) -> Words<'_> {
    let ends = [
        "check",
        "collate",
        "constraint",
        "generated",
        "not",
        "null",
        "primary",
        "references",
        "unique",
    ];
    let mut ahead = column;
    while !ahead.is_end() && !ahead.accept("default") {
        ahead.skip();
    }
    let mut depth = 0_usize;
    let length = ahead.rest().iter().position(|token| {
        if token.is_punctuation(b'(') {
            depth += 1;
        } else if token.is_punctuation(b')') {
            depth = depth.saturating_sub(1);
        }
        depth == 0 && ends.iter().any(|word| token.is_word(column.text, word))
    });
    let tokens = ahead.rest();
    Words::new(
        column.text,
        tokens.get(..length.unwrap_or(tokens.len())).unwrap_or_default(),
    )
}

/// `'now'` and the like where Postgres reads it when the statement runs, and stores each server's own time (rule
/// DateWords).
fn stored_clock(schema: &Schema, words: Words<'_>) -> Option<Refusal> {
    let tokens = words.rest();
    let names_dates = words.contains_any(&DATE_TYPES);
    let name = |index: Option<usize>| -> Option<Cow<'_, str>> { tokens.get(index?)?.identifier(words.text) };
    let is_date = |index: Option<usize>| name(index).is_some_and(|name| schema.is_date_column(&name));
    let found = tokens.iter().enumerate().any(|(index, token)| {
        let Some(value) = token.string_value(words.text) else {
            return false;
        };
        if !matches!(token.kind, TokenKind::String | TokenKind::DollarString(_)) || !is_clock_word(&value) {
            return false;
        }
        let is_compared = |token: Option<&Token>| {
            let operator = token.filter(|token| token.kind == TokenKind::Operator);
            operator
                .is_some_and(|operator| ["=", "<", ">", "<=", ">=", "<>", "!="].contains(&operator.source(words.text)))
        };
        let before = |back: usize| index.checked_sub(back);
        let is_word = |at: Option<usize>, word: &str| {
            at.and_then(|at| tokens.get(at))
                .is_some_and(|token| token.is_word(words.text, word))
        };
        // ALTER COLUMN at SET DEFAULT 'now'
        let becomes_default = is_word(before(1), "default") && is_word(before(2), "set") && is_date(before(3));
        let is_compared_before = is_compared(before(1).and_then(|at| tokens.get(at)));
        let is_compared_after = is_compared(tokens.get(index + 1));
        let with_date = (is_compared_before && is_date(before(2))) || (is_compared_after && is_date(Some(index + 2)));
        let in_new_table = names_dates && (is_compared_before || is_compared_after);
        let in_range = is_word(before(1), "between") && is_date(before(2))
            || is_word(before(1), "and") && is_word(before(3), "between") && is_date(before(4));
        becomes_default || with_date || in_new_table || in_range
    });
    found.then(clock_word_refusal)
}
