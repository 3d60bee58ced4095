//! `SELECT pg_advisory_lock(...), ...`: a list of calls that take and give back advisory locks, and nothing else.

use crate::lexer::TokenKind;
use crate::statement::{AdvisoryArgument, AdvisoryCall, AdvisoryColumn, StatementClass};
use crate::words::Words;

/// Types to which a part of a key may be cast, with their OIDs.
const INTEGERS: [(&str, u32); 7] = [
    ("bigint", 20),
    ("int8", 20),
    ("int", 23),
    ("integer", 23),
    ("int4", 23),
    ("smallint", 21),
    ("int2", 21),
];

/// The OID of `bigint`.
const INT8_OID: u32 = 20;

/// Types to which a result may be cast: drivers that cannot read `void` ask for it.
const TEXTS: [&str; 2] = ["text", "varchar"];

/// Parentheses and casts around an argument, at most.
const NESTING_MAX: u8 = 4;

/// A SELECT of such calls alone, or `SELECT * FROM` one.
pub(super) fn classify(mut words: Words<'_>) -> Option<StatementClass> {
    words.accept("select").then_some(())?;
    if words.accept_operator("*") {
        words.accept("from").then_some(())?;
        let column = column(&mut words)?;
        return (words.is_end() && !column.as_text).then(|| StatementClass::Advisory(vec![column]));
    }
    let mut columns = Vec::new();
    loop {
        columns.push(column(&mut words)?);
        if words.is_end() {
            return Some(StatementClass::Advisory(columns));
        }
        words.accept_punctuation(b',').then_some(())?;
    }
}

fn column(words: &mut Words<'_>) -> Option<AdvisoryColumn> {
    if words.accept("pg_catalog") {
        words.accept_punctuation(b'.').then_some(())?;
    }
    let function = words.identifier()?;
    let call = call(&function)?;
    words.accept_punctuation(b'(').then_some(())?;
    let mut key = Vec::new();
    while !words.accept_punctuation(b')') {
        if !key.is_empty() {
            words.accept_punctuation(b',').then_some(())?;
        }
        key.push(argument(words, NESTING_MAX)?);
    }
    let fits = match (call, key.as_slice()) {
        (AdvisoryCall::UnlockAll, []) => true,
        (AdvisoryCall::UnlockAll, _) => false,
        (_, [_]) => true,
        (_, [first, second]) => is_int(first) && is_int(second),
        _ => false,
    };
    fits.then_some(())?;
    let mut as_text = false;
    while words.accept_operator("::") {
        words.accept_one(&TEXTS).then_some(())?;
        as_text = true;
    }
    let alias = match words.accept("as") {
        true => Some(words.identifier()?),
        false => words.identifier(),
    };
    Some(AdvisoryColumn {
        name: alias.unwrap_or(function),
        call,
        key,
        as_text,
    })
}

fn call(name: &str) -> Option<AdvisoryCall> {
    match name {
        "pg_advisory_unlock" => return Some(AdvisoryCall::Unlock { shared: false }),
        "pg_advisory_unlock_shared" => return Some(AdvisoryCall::Unlock { shared: true }),
        "pg_advisory_unlock_all" => return Some(AdvisoryCall::UnlockAll),
        _ => {}
    }
    let (name, tries) = match name.strip_prefix("pg_try_advisory_") {
        Some(rest) => (rest, true),
        None => (name.strip_prefix("pg_advisory_")?, false),
    };
    let (name, of_transaction) = match name.strip_prefix("xact_") {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let shared = match name {
        "lock" => false,
        "lock_shared" => true,
        _ => return None,
    };
    Some(AdvisoryCall::Lock {
        tries,
        of_transaction,
        shared,
    })
}

/// Whether it can be one of two ints.
fn is_int(argument: &AdvisoryArgument) -> bool {
    match argument {
        AdvisoryArgument::Number(number) => i32::try_from(*number).is_ok(),
        AdvisoryArgument::Null => true,
        AdvisoryArgument::Parameter(_, cast) => *cast != Some(INT8_OID),
    }
}

fn argument(words: &mut Words<'_>, nesting: u8) -> Option<AdvisoryArgument> {
    let mut ahead = *words;
    let is_cast = ahead.accept("cast");
    let mut argument;
    if ahead.accept_punctuation(b'(') {
        *words = ahead;
        argument = self::argument(words, nesting.checked_sub(1)?)?;
        if is_cast {
            words.accept("as").then_some(())?;
            argument = cast(words, argument)?;
        }
        words.accept_punctuation(b')').then_some(())?;
    } else {
        argument = value(words)?;
    }
    while words.accept_operator("::") {
        argument = cast(words, argument)?;
    }
    Some(argument)
}

/// A number, also as a string, NULL, or a parameter.
fn value(words: &mut Words<'_>) -> Option<AdvisoryArgument> {
    let minus = words.accept_operator("-");
    let token = *words.skip()?;
    let source = token.source(words.text);
    let number = |digits: &str| {
        let signed = if minus { format!("-{digits}") } else { digits.to_owned() };
        signed.parse().ok().map(AdvisoryArgument::Number)
    };
    match token.kind {
        TokenKind::Number => number(source),
        _ if minus => None,
        TokenKind::Parameter => {
            let number = source.trim_start_matches('$').parse().ok()?;
            Some(AdvisoryArgument::Parameter(number, None))
        }
        _ if token.is_word(words.text, "null") => Some(AdvisoryArgument::Null),
        _ => number(token.string_value(words.text)?.trim()),
    }
}

/// An argument cast to the integer type that comes next. What does not fit it is left to be refused.
fn cast(words: &mut Words<'_>, argument: AdvisoryArgument) -> Option<AdvisoryArgument> {
    let name = words.identifier()?;
    let (_, oid) = INTEGERS.into_iter().find(|(known, _)| *known == name)?;
    match argument {
        AdvisoryArgument::Parameter(number, None) => Some(AdvisoryArgument::Parameter(number, Some(oid))),
        AdvisoryArgument::Number(number) if oid != INT8_OID => i32::try_from(number)
            .is_ok()
            .then_some(AdvisoryArgument::Number(number)),
        argument => Some(argument),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer::tokenize;

    fn columns(text: &str) -> Option<Vec<AdvisoryColumn>> {
        let tokens = tokenize(text).unwrap();
        match classify(Words::new(text, &tokens))? {
            StatementClass::Advisory(columns) => Some(columns),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plain_calls_are_recognised() {
        let lock = |tries, of_transaction, shared| AdvisoryCall::Lock {
            tries,
            of_transaction,
            shared,
        };
        use AdvisoryArgument::{Null, Number, Parameter};
        for (text, name, call, key) in [
            (
                "SELECT pg_advisory_lock(1)",
                "pg_advisory_lock",
                lock(false, false, false),
                vec![Number(1)],
            ),
            (
                "select PG_CATALOG.pg_try_advisory_lock(-1, 2) AS locked",
                "locked",
                lock(true, false, false),
                vec![Number(-1), Number(2)],
            ),
            (
                "select pg_advisory_xact_lock_shared($1)",
                "pg_advisory_xact_lock_shared",
                lock(false, true, true),
                vec![Parameter(1, None)],
            ),
            (
                "select pg_try_advisory_xact_lock(CAST($2 AS bigint)) x",
                "x",
                lock(true, true, false),
                vec![Parameter(2, Some(20))],
            ),
            (
                "select pg_advisory_unlock('77431708279161'::bigint)",
                "pg_advisory_unlock",
                AdvisoryCall::Unlock { shared: false },
                vec![Number(77_431_708_279_161)],
            ),
            (
                "select pg_advisory_unlock_shared(null)",
                "pg_advisory_unlock_shared",
                AdvisoryCall::Unlock { shared: true },
                vec![Null],
            ),
            (
                "select * from pg_try_advisory_lock(($1)::int)",
                "pg_try_advisory_lock",
                lock(true, false, false),
                vec![Parameter(1, Some(23))],
            ),
            (
                "select pg_advisory_unlock_all()",
                "pg_advisory_unlock_all",
                AdvisoryCall::UnlockAll,
                vec![],
            ),
        ] {
            let columns = columns(text).unwrap_or_else(|| panic!("{text}"));
            let [column] = columns.as_slice() else { panic!("{text}") };
            assert_eq!(
                (column.name.as_str(), column.call, &column.key),
                (name, call, &key),
                "{text}"
            );
        }
        let several = columns("select pg_advisory_lock(1)::text, pg_try_advisory_lock(2)").unwrap();
        assert_eq!(
            several.iter().map(|column| column.as_text).collect::<Vec<_>>(),
            [true, false]
        );
    }

    #[test]
    fn everything_else_is_none() {
        for text in [
            "select pg_advisory_lock(1) from t",
            "select pg_advisory_lock(1), 1",
            "select pg_advisory_lock(k)",
            "select pg_advisory_lock(hashtext('x'))",
            "select pg_advisory_lock(1, 3000000000)",
            "select pg_advisory_lock(1, $1::bigint)",
            "select pg_advisory_lock(9223372036854775808)",
            "select pg_advisory_lock(1.5)",
            "select pg_advisory_lock()",
            "select pg_advisory_lock(1, 2, 3)",
            "select pg_advisory_unlock_all(1)",
            "select pg_advisory_lock(1) where true",
            "select my.pg_advisory_lock(1)",
            "select pg_advisory_everything(1)",
            "select 1",
        ] {
            assert_eq!(columns(text), None, "{text}");
        }
    }
}
