//! `SELECT set_config(...), ...`: a list of calls that read and change settings, and nothing else.

use crate::lexer::TokenKind;
use crate::statement::{ConfigArgument, ConfigCall, ConfigColumn, Setting, StatementClass};
use crate::words::Words;

use super::setting::pinned_refusal;

/// Types to which an argument may be cast: they leave its text as it is.
const CASTS: [&str; 4] = ["text", "varchar", "bool", "boolean"];

/// Parentheses and casts around an argument, at most.
const NESTING_MAX: u8 = 4;

/// A SELECT of calls of `set_config` and `current_setting` alone, with at least one of the first.
pub(super) fn classify(mut words: Words<'_>) -> Option<StatementClass> {
    words.accept("select").then_some(())?;
    let mut columns = Vec::new();
    let mut named = false;
    loop {
        let (column, alias) = column(&mut words)?;
        columns.push(column);
        named |= alias;
        if words.is_end() {
            break;
        }
        words.accept_punctuation(b',').then_some(())?;
    }
    let mut calls = columns.iter().map(|column| &column.call);
    calls.any(|call| matches!(call, ConfigCall::Set { .. })).then_some(())?;
    for column in &columns {
        if let ConfigCall::Set {
            name: ConfigArgument::Literal(name),
            value: ConfigArgument::Literal(value),
            ..
        } = &column.call
            && let Some(refusal) = pinned_refusal(&name.to_ascii_lowercase(), Some(value))
        {
            return Some(StatementClass::Refused(refusal));
        }
    }
    let alone = single(&columns).filter(|_| !named);
    Some(StatementClass::Setting(alone.unwrap_or(Setting::Configs(columns))))
}

/// The one call of literals, which is as good as a SET.
fn single(columns: &[ConfigColumn]) -> Option<Setting> {
    let [column] = columns else {
        return None;
    };
    match &column.call {
        ConfigCall::Set {
            name: ConfigArgument::Literal(name),
            value: ConfigArgument::Literal(value),
            local: ConfigArgument::Literal(local),
        } => Some(Setting::SetConfig {
            local: local == "true",
            name: name.to_ascii_lowercase(),
            value: value.clone(),
        }),
        _ => None,
    }
}

/// A call with its name in the result, and whether that was given by the statement.
fn column(words: &mut Words<'_>) -> Option<(ConfigColumn, bool)> {
    if words.accept("pg_catalog") {
        words.accept_punctuation(b'.').then_some(())?;
    }
    let function = words.identifier()?;
    words.accept_punctuation(b'(').then_some(())?;
    let name = argument(words)?;
    let call = match function.as_str() {
        "set_config" => {
            words.accept_punctuation(b',').then_some(())?;
            let value = argument(words)?;
            words.accept_punctuation(b',').then_some(())?;
            let local = boolean(words)?;
            ConfigCall::Set { name, value, local }
        }
        "current_setting" => {
            let may_lack = match words.accept_punctuation(b',') {
                true => boolean(words)?,
                false => ConfigArgument::Literal("false".into()),
            };
            ConfigCall::Show { name, may_lack }
        }
        _ => return None,
    };
    words.accept_punctuation(b')').then_some(())?;
    let alias = match words.accept("as") {
        true => Some(words.identifier()?),
        false => words.identifier(),
    };
    let named = alias.is_some();
    let name = alias.unwrap_or(function);
    Some((ConfigColumn { name, call }, named))
}

/// A Boolean: a keyword, or an argument that is read as one when its value is known.
fn boolean(words: &mut Words<'_>) -> Option<ConfigArgument> {
    let mut ahead = *words;
    let Some(keyword) = ahead.accept_one(&["true", "false"]).then(|| words.keyword()).flatten() else {
        return argument(words).and_then(|argument| match argument {
            // `'t'` and the like: as rare as it is ambiguous.
            ConfigArgument::Literal(value) => ["true", "false"]
                .contains(&value.as_str())
                .then_some(ConfigArgument::Literal(value)),
            argument => Some(argument),
        });
    };
    *words = ahead;
    Some(ConfigArgument::Literal(keyword.into_owned()))
}

fn argument(words: &mut Words<'_>) -> Option<ConfigArgument> {
    argument_within(words, NESTING_MAX)
}

fn argument_within(words: &mut Words<'_>, nesting: u8) -> Option<ConfigArgument> {
    let mut ahead = *words;
    let is_cast = ahead.accept("cast");
    if ahead.accept_punctuation(b'(') {
        *words = ahead;
        let argument = argument_within(words, nesting.checked_sub(1)?)?;
        if is_cast {
            words.accept("as").then_some(())?;
            words.accept_one(&CASTS).then_some(())?;
        }
        return words.accept_punctuation(b')').then_some(argument);
    }
    let token = *words.skip()?;
    let argument = match token.kind {
        TokenKind::Parameter => {
            let number = token.source(words.text).trim_start_matches('$').parse().ok()?;
            ConfigArgument::Parameter(number)
        }
        _ if token.is_word(words.text, "null") => ConfigArgument::Null,
        _ => ConfigArgument::Literal(token.string_value(words.text)?.into_owned()),
    };
    while words.accept_operator("::") {
        words.accept_one(&CASTS).then_some(())?;
    }
    Some(argument)
}
