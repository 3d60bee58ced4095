//! Replacement of clocks and random sources by functions of schema `cloudbft` (rules TransactionClock, ClockKeywords,
//! StatementClock, DateWords, RandomNumbers and RandomIdentifiers), and of what each server counts for itself in its catalogs.
//!
//! Each function has the name of what it replaces, so that output columns keep their names.

use std::ops::Range;

use super::{Pass, Splice};
use crate::analysis::is_clock_word;
use crate::functions::{CLOCK, CLOCK_KEYWORDS, NUMBERS_LARGE_OBJECTS};
use crate::lexer::{Token, TokenKind};

/// Before a name and a parenthesis, these mean that the name is not called.
const NAME_FOLLOWS: [&str; 9] = [
    "into",
    "table",
    "exists",
    "references",
    "function",
    "procedure",
    "index",
    "as",
    "update",
];

/// Types that read the clock for `'now'`; the first word of their names.
const DATE_TYPES: [&str; 5] = ["date", "time", "timestamp", "timetz", "timestamptz"];

/// The replacement that begins at the present token.
pub(super) fn splice(pass: &Pass<'_>) -> Option<Splice> {
    let token = pass.token(0)?;
    match token.kind {
        TokenKind::Word | TokenKind::QuotedIdentifier => keyword(pass, token)
            .or_else(|| call(pass, token))
            .or_else(|| concurrently(pass, token)),
        TokenKind::Number => sequence_cache(pass, token),
        TokenKind::String | TokenKind::EscapeString | TokenKind::DollarString(_) => literal(pass, token),
        _ => None,
    }
}

/// Columns of system catalogs that each server fills by itself: numbers of its own transactions, and what its own
/// vacuum or analyze last counted.
const LOCAL_COLUMNS: [&str; 7] = [
    "relfrozenxid",
    "relminmxid",
    "relpages",
    "reltuples",
    "relallvisible",
    "datfrozenxid",
    "datminmxid",
];

/// A local column of pg_class or pg_database becomes what it is of a table that was just created, so that servers answer
/// alike (rule LocalFacts): `pg_dump` asks for it. NULL of an outer join stays NULL.
pub(super) fn local_column(pass: &Pass<'_>) -> Option<Splice> {
    column_of(pass, &LOCAL_COLUMNS, &["pg_class", "pg_database"])
}

/// One of these columns becomes a function of itself, in a statement that names one of these catalogs.
fn column_of(pass: &Pass<'_>, columns: &[&str], catalogs: &[&str]) -> Option<Splice> {
    let token = pass.token(0)?;
    let name = pass.name(0)?;
    let column = columns.iter().find(|column| **column == name)?;
    let is_output = pass.is_word(-1, "as");
    if is_output || pass.is_punctuation(1, b'(') || pass.is_punctuation(1, b'.') {
        return None;
    }
    let is_of_catalog = |token: &Token| {
        let name = token.identifier(pass.text);
        name.is_some_and(|name| catalogs.contains(&name.as_ref()))
    };
    pass.tokens.iter().any(is_of_catalog).then_some(())?;
    let mut start = token.start;
    let mut back = -1;
    while pass.is_punctuation(back, b'.') && pass.name(back - 1).is_some() {
        start = pass.token(back - 1)?.start;
        back -= 2;
    }
    let source = pass.text.get(start..token.end)?;
    Some(Splice {
        range: start..token.end,
        replacement: format!("cloudbft.{column}({source})"),
    })
}

/// Functions that tell definitions.
const DEFINITIONS: [&str; 8] = [
    "pg_get_expr",
    "pg_get_viewdef",
    "pg_get_functiondef",
    "pg_get_function_sqlbody",
    "pg_get_function_arguments",
    "pg_get_constraintdef",
    "pg_get_ruledef",
    "pg_get_triggerdef",
];

/// What the catalogs say of a definition becomes what the application wrote, without the functions that stand in for clocks and
/// random sources: `pg_dump` and `\d` ask for it.
pub(super) fn definition(pass: &Pass<'_>) -> Option<Splice> {
    let token = pass.token(0)?;
    if let Some(name) = pass.calls() {
        let name = DEFINITIONS.into_iter().find(|definition| *definition == name)?;
        let start = match pass.is_punctuation(-1, b'.') {
            true => pass.token(-2)?.start,
            false => token.start,
        };
        return Some(Splice {
            range: start..token.end,
            replacement: format!("cloudbft.{name}"),
        });
    }
    column_of(pass, &["prosrc"], &["pg_proc"])
}

/// `CURRENT_TIMESTAMP` and the like, with or without precision (rule ClockKeywords).
fn keyword(pass: &Pass<'_>, token: &Token) -> Option<Splice> {
    if token.kind != TokenKind::Word || pass.is_punctuation(-1, b'.') || pass.is_word(-1, "as") {
        return None;
    }
    let name = token.identifier(pass.text)?;
    CLOCK_KEYWORDS.contains(&name.as_ref()).then_some(())?;
    let call = format!("cloudbft.\"{name}\"()");
    Some(match precision(pass) {
        // The cast has the type with its precision; the column's name is still the function's.
        Some((digits, end)) => Splice {
            range: token.start..end,
            replacement: format!("CAST({call} AS pg_catalog.{}({digits}))", type_of(&name)),
        },
        None => Splice {
            range: token.range(),
            replacement: call,
        },
    })
}

/// The digits in `CURRENT_TIMESTAMP (digits)`, and where it ends.
fn precision<'text>(pass: &Pass<'text>) -> Option<(&'text str, usize)> {
    let digits = pass.token(2).filter(|token| token.kind == TokenKind::Number)?;
    let is_precision = pass.is_punctuation(1, b'(') && pass.is_punctuation(3, b')');
    let end = pass.token(3)?.end;
    is_precision.then(|| (digits.source(pass.text), end))
}

fn type_of(keyword: &str) -> &'static str {
    match keyword {
        "current_time" => "timetz",
        "localtime" => "time",
        "localtimestamp" => "timestamp",
        _ => "timestamptz",
    }
}

/// `now()`, `random()` and the like (rules TransactionClock, StatementClock, RandomNumbers and RandomIdentifiers), and
/// `age(x)` with one argument (rule TimeZones), and what numbers large objects (rule LargeObjects).
fn call(pass: &Pass<'_>, token: &Token) -> Option<Splice> {
    let name = match pass.calls() {
        Some(name) => name,
        // Of an extension, so in any schema.
        None if pass.is_punctuation(1, b'(')
            && !pass.calls_own_function()
            && matches!(pass.name(0).as_deref(), Some("uuid_generate_v4" | "gen_random_uuid")) =>
        {
            pass.name(0)?
        }
        None => return None,
    };
    if NAME_FOLLOWS.iter().any(|word| pass.is_word(-1, word)) {
        return None;
    }
    let is_age = name == "age" && has_one_argument(pass);
    let is_replaced = is_age || CLOCK.contains(&name.as_ref()) || NUMBERS_LARGE_OBJECTS.contains(&name.as_ref());
    is_replaced.then_some(())?;
    let start = match pass.is_punctuation(-1, b'.') {
        true => pass.token(-2)?.start,
        false => token.start,
    };
    Some(Splice {
        range: start..token.end,
        replacement: format!("cloudbft.{name}"),
    })
}

/// An argument of more tokens counts as the only one.
const ARGUMENT_TOKENS_MAX: usize = 256;

/// Whether the parenthesis that comes next holds no comma of its own, and something.
fn has_one_argument(pass: &Pass<'_>) -> bool {
    let arguments = pass.tokens.get(pass.at + 1..).unwrap_or_default();
    let mut depth = 0_usize;
    for (index, token) in arguments.iter().take(ARGUMENT_TOKENS_MAX).enumerate() {
        match token.kind {
            TokenKind::Punctuation(b'(' | b'[') => depth += 1,
            TokenKind::Punctuation(b')' | b']') => depth = depth.saturating_sub(1),
            TokenKind::Punctuation(b',') if depth == 1 => return false,
            _ => {}
        }
        if depth == 0 {
            return index > 1;
        }
    }
    depth > 0
}

/// CONCURRENTLY cannot run in a transaction, and waits for local ones: DDL runs alone anyway (rule
/// MaintenanceCommands).
fn concurrently(pass: &Pass<'_>, token: &Token) -> Option<Splice> {
    let first = pass.tokens.first()?;
    let is_first = |word| first.is_word(pass.text, word);
    let is_index = (is_first("create") || is_first("drop")) && pass.is_word(-1, "index");
    let found = token.is_word(pass.text, "concurrently") && (is_index || is_first("reindex"));
    found.then(|| Splice {
        range: token.range(),
        replacement: String::new(),
    })
}

/// `CACHE n` of a sequence: each backend would take a block of numbers for itself, and which backend of a pool runs a
/// statement differs on every server (rule SequenceValues). The cache is there for speed alone, so it becomes 1.
fn sequence_cache(pass: &Pass<'_>, token: &Token) -> Option<Splice> {
    let is_cache = pass.is_word(-1, "cache") || (pass.is_operator(-1, "+") && pass.is_word(-2, "cache"));
    let before = pass.tokens.get(..pass.at)?;
    let names_sequence = |token: &Token| {
        ["sequence", "identity"]
            .iter()
            .any(|word| token.is_word(pass.text, word))
    };
    let found = is_cache && token.source(pass.text) != "1" && before.iter().any(names_sequence);
    found.then(|| Splice {
        range: token.range(),
        replacement: "1".to_owned(),
    })
}

/// `'now'` and the like, where the text itself says that it is a date or time (rule DateWords).
fn literal(pass: &Pass<'_>, token: &Token) -> Option<Splice> {
    let value = token.string_value(pass.text)?;
    let word = value
        .trim_matches(|character: char| character.is_ascii_whitespace())
        .to_ascii_lowercase();
    ["now", "today", "tomorrow", "yesterday"]
        .contains(&word.as_str())
        .then_some(())?;
    // The sum keeps the name of the output column: that of the type it is cast to.
    let moment = format!("(cloudbft.moment('{word}') OPERATOR(pg_catalog.+) '0'::pg_catalog.interval)");
    // As a default, Postgres would keep the time at which each server created the column: so each row gets its own instead.
    if is_cast_after(pass) || is_date_default(pass) {
        return Some(Splice {
            range: token.range(),
            replacement: moment,
        });
    }
    let range = typed_literal(pass)?;
    let type_name = pass.text.get(range.start..token.start)?.trim_end();
    Some(Splice {
        replacement: format!("CAST({moment} AS {type_name})"),
        range: range.start..token.end,
    })
}

/// Whether a date or time reads the clock in a form that is not replaced, as `'today 12:00'::timestamp`.
pub(super) fn is_unclear_moment(pass: &Pass<'_>) -> bool {
    let Some(token) = pass.token(0) else { return false };
    let is_date = is_cast_after(pass) || typed_literal(pass).is_some() || is_date_default(pass);
    let Some(value) = token.string_value(pass.text) else {
        // The word that escapes spell is not known.
        return is_date && token.kind == TokenKind::EscapeString;
    };
    is_date && is_clock_word(&value) && literal(pass, token).is_none()
}

/// `'now'::timestamp` and `CAST('now' AS timestamp)`.
fn is_cast_after(pass: &Pass<'_>) -> bool {
    let is_cast = pass.is_operator(1, "::")
        || (pass.is_word(1, "as") && pass.is_punctuation(-1, b'(') && pass.is_word(-2, "cast"));
    let type_at = match pass.is_word(2, "pg_catalog") {
        true => 4,
        false => 2,
    };
    is_cast
        && DATE_TYPES
            .iter()
            .any(|name| pass.name(type_at).as_deref() == Some(*name))
}

/// `column timestamptz DEFAULT 'now'`: a date or time type stands in the same definition of a column.
fn is_date_default(pass: &Pass<'_>) -> bool {
    if !pass.is_word(-1, "default") {
        return false;
    }
    let mut depth = 0_usize;
    for back in 2..=ARGUMENT_TOKENS_MAX as isize {
        let Some(token) = pass.token(-back) else { return false };
        match token.kind {
            TokenKind::Punctuation(b')') => depth += 1,
            TokenKind::Punctuation(b'(' | b',') if depth == 0 => return false,
            TokenKind::Punctuation(b'(') => depth -= 1,
            _ if depth == 0 && DATE_TYPES.iter().any(|name| token.is_word(pass.text, name)) => {
                // A column may have the name of a type: the type comes after another word.
                let before = pass.token(-back - 1);
                return before.is_some_and(|before| before.identifier(pass.text).is_some());
            }
            _ => {}
        }
    }
    false
}

/// `timestamp(3) with time zone 'now'`: where type and literal stand.
fn typed_literal(pass: &Pass<'_>) -> Option<Range<usize>> {
    let mut back = -1;
    if pass.is_word(back, "zone") {
        back -= 3;
    }
    if pass.is_punctuation(back, b')') {
        back -= 3;
    }
    let type_token = pass.token(back)?;
    let type_name = type_token.identifier(pass.text)?;
    let is_type = DATE_TYPES.contains(&type_name.as_ref());
    is_type.then(|| type_token.start..pass.token(0).map_or(type_token.end, |token| token.end))
}
