//! SET, RESET, SHOW and DISCARD.

use std::borrow::Cow;

use crate::lexer::TokenKind;
use crate::refusal::{CANNOT_CHANGE_PARAMETER, INSUFFICIENT_PRIVILEGE, Refusal};
use crate::statement::{Setting, StatementClass, TransactionControl};
use crate::words::Words;

use super::{Sketch, control};

/// Settings that are pinned on every database node, with the values that may be set because they change nothing. The first
/// is how Postgres shows it.
const PINNED: &[(&str, &[&str])] = &[
    ("standard_conforming_strings", &["on", "true", "1", "yes"]),
    ("transform_null_equals", &["off", "false", "0", "no"]),
    ("array_nulls", &["on", "true", "1", "yes"]),
    ("backslash_quote", &["safe_encoding"]),
    ("synchronize_seqscans", &["off", "false", "0", "no"]),
    ("jit", &["off", "false", "0", "no"]),
    ("max_parallel_workers_per_gather", &["0"]),
    ("client_encoding", &["UTF8", "unicode"]),
    ("lc_messages", &["C"]),
    ("exit_on_error", &["off", "false", "0", "no"]),
    ("gin_fuzzy_search_limit", &["0"]),
];

/// List settings of which the elements are identifiers.
const IDENTIFIER_LISTS: [&str; 2] = ["search_path", "temp_tablespaces"];

pub(super) fn classify(mut words: Words<'_>) -> Sketch<'_> {
    let whole = words;
    let keyword = words.keyword().unwrap_or_default();
    words.skip();
    let class = match keyword.as_ref() {
        "set" => set(words),
        "reset" => reset(words).map(StatementClass::Setting),
        "show" => show(words).map(StatementClass::Setting),
        _ => discard(words).map(StatementClass::Setting),
    };
    match class {
        // DISCARD TEMP drops tables, as DDL does.
        Some(class @ StatementClass::Setting(Setting::DiscardTemporary)) => Sketch::everything(class),
        Some(class) => Sketch::of(refuse_pinned(class)),
        // What is no SET for Postgres either is left to Postgres, to say so.
        None => {
            let _ = whole;
            Sketch::everything(StatementClass::Write)
        }
    }
}

fn set(mut words: Words<'_>) -> Option<StatementClass> {
    if words.accept("constraints") {
        // Changes when constraints are checked, in this transaction: what they read was locked by the writes.
        return Some(StatementClass::Write);
    }
    if words.accept_all(&["session", "characteristics", "as", "transaction"]) {
        let modes = control::modes(words)?;
        return Some(StatementClass::TransactionControl(
            TransactionControl::SetSessionCharacteristics(modes),
        ));
    }
    let mut ahead = words;
    ahead.accept_one(&["local", "session"]);
    if ahead.accept("transaction") {
        let modes = control::modes(ahead)?;
        return Some(StatementClass::TransactionControl(TransactionControl::SetTransaction(
            modes,
        )));
    }
    let local = words.accept("local");
    if !local && words.keyword().as_deref() == Some("session") {
        let mut ahead = words;
        ahead.skip();
        // `SET SESSION AUTHORIZATION x` against `SET SESSION name = x`.
        if ahead.keyword().as_deref() != Some("authorization") {
            words = ahead;
        }
    }
    let (name, value) = named_value(words)?;
    Some(StatementClass::Setting(Setting::Set { local, name, value }))
}

fn named_value(mut words: Words<'_>) -> Option<(String, Option<String>)> {
    let special = [
        (&["time", "zone"][..], "timezone"),
        (&["names"], "client_encoding"),
        (&["role"], "role"),
        (&["schema"], "search_path"),
        (&["xml", "option"], "xmloption"),
        (&["session", "authorization"], "session_authorization"),
        (&["authorization"], "session_authorization"),
    ];
    for (keywords, name) in special {
        let mut ahead = words;
        if ahead.accept_all(keywords) && !is_assignment(ahead) {
            let is_default = name == "timezone" && ahead.keyword().as_deref() == Some("local");
            let value = match is_default {
                true => None,
                false => value(ahead, name)?,
            };
            return Some((name.to_owned(), value));
        }
    }
    let name = setting_name(&mut words)?;
    (words.accept("to") || words.accept_operator("=")).then_some(())?;
    let value = value(words, &name)?;
    Some((name, value))
}

fn is_assignment(mut words: Words<'_>) -> bool {
    words.accept("to") || words.accept_operator("=")
}

/// `name` or `extension.name`, in lower case.
fn setting_name(words: &mut Words<'_>) -> Option<String> {
    let mut name = words.identifier()?;
    while words.accept_punctuation(b'.') {
        name.push('.');
        name.push_str(&words.identifier()?);
    }
    Some(name.to_ascii_lowercase())
}

/// The value to the end; the outer option is whether it is understood, the inner one is `None` for DEFAULT.
fn value(mut words: Words<'_>, name: &str) -> Option<Option<String>> {
    if words.rest().len() == 1 && words.accept("default") {
        return Some(None);
    }
    // `SET TIME ZONE INTERVAL '1' HOUR TO MINUTE` and the like.
    words.accept("interval");
    let mut value = String::new();
    loop {
        if !value.is_empty() {
            value.push_str(", ");
        }
        let element = element(&mut words)?;
        match IDENTIFIER_LISTS.contains(&name) {
            true => value.push_str(&quote_identifier(&element)),
            false => value.push_str(&element),
        }
        if words.is_end() {
            return Some(Some(value));
        }
        words.accept_punctuation(b',').then_some(())?;
    }
}

fn element(words: &mut Words<'_>) -> Option<String> {
    let sign = match words.accept_operator("-") {
        true => "-",
        false => {
            words.accept_operator("+");
            ""
        }
    };
    let token = *words.skip()?;
    let text = match token.kind {
        TokenKind::Word | TokenKind::QuotedIdentifier => token.identifier(words.text)?,
        TokenKind::String | TokenKind::DollarString(_) => token.string_value(words.text)?,
        TokenKind::Number => Cow::Borrowed(token.source(words.text)),
        _ => return None,
    };
    Some(format!("{sign}{text}"))
}

/// As Postgres's `quote_identifier`, for what is no keyword.
fn quote_identifier(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let starts_plain = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    match starts_plain && name.bytes().all(plain) {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

fn reset(mut words: Words<'_>) -> Option<Setting> {
    if words.accept("all") {
        return Some(Setting::ResetAll);
    }
    Some(Setting::Reset(special_name(&mut words)?))
}

fn show(mut words: Words<'_>) -> Option<Setting> {
    if words.accept("all") {
        return Some(Setting::ShowAll);
    }
    Some(Setting::Show(special_name(&mut words)?))
}

fn special_name(words: &mut Words<'_>) -> Option<String> {
    let name = if words.accept_all(&["time", "zone"]) {
        "timezone".to_owned()
    } else if words.accept_all(&["transaction", "isolation", "level"]) {
        "transaction_isolation".to_owned()
    } else if words.accept_all(&["session", "authorization"]) {
        "session_authorization".to_owned()
    } else {
        setting_name(words)?
    };
    words.is_end().then_some(name)
}

fn discard(words: Words<'_>) -> Option<Setting> {
    match words.keyword()?.as_ref() {
        "all" => Some(Setting::DiscardAll),
        "temp" | "temporary" => Some(Setting::DiscardTemporary),
        "plans" | "sequences" => Some(Setting::DiscardOther),
        _ => None,
    }
}

/// An encoding's name as Postgres compares it (`pg_char_to_encoding`): only its letters and digits count, so that
/// `'utf-8'` with quotes inside the value, as asyncpg writes it, is UTF8.
fn encoding_letters(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// What a pinned setting is, as Postgres shows it.
pub(crate) fn pinned_value(name: &str) -> Option<&'static str> {
    let (_, allowed) = PINNED.iter().find(|(pinned, _)| *pinned == name)?;
    allowed.first().copied()
}

fn refuse_pinned(class: StatementClass) -> StatementClass {
    let refusal = match &class {
        StatementClass::Setting(Setting::Set { name, value, .. }) => pinned_refusal(name, value.as_deref()),
        _ => None,
    };
    refusal.map_or(class, StatementClass::Refused)
}

/// Why a setting cannot be given this value, if so: it is pinned, or not for applications. The name is in lower case.
pub(crate) fn pinned_refusal(name: &str, value: Option<&str>) -> Option<Refusal> {
    if name.starts_with("cloudbft.") && !matches!(name, "cloudbft.reads" | "cloudbft.answers") {
        return Some(Refusal::new(
            INSUFFICIENT_PRIVILEGE,
            33,
            format!("parameter \"{name}\" is set by the database nodes"),
            "Leave it alone; only cloudbft.reads and cloudbft.answers are for applications.",
        ));
    }
    let (_, allowed) = PINNED.iter().find(|(pinned, _)| *pinned == name)?;
    let is_allowed = value.is_none_or(|value| {
        let value = match name {
            "client_encoding" => Cow::Owned(encoding_letters(value)),
            _ => Cow::Borrowed(value),
        };
        allowed.iter().any(|allowed| value.eq_ignore_ascii_case(allowed))
    });
    (!is_allowed).then(|| {
        let rule = if name == "standard_conforming_strings" { 50 } else { 33 };
        Refusal::new(
            CANNOT_CHANGE_PARAMETER,
            rule,
            format!("parameter \"{name}\" is pinned on every database node"),
            format!("Leave it at {}.", allowed.first().copied().unwrap_or_default()),
        )
    })
}
