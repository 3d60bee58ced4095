//! DECLARE, FETCH, MOVE and CLOSE.

use crate::determinism::Splice;
use crate::lexer::TokenKind;
use crate::refusal::{FEATURE_NOT_SUPPORTED, Refusal};
use crate::statement::{Cursor, Direction, Holding, StatementClass};
use crate::words::Words;

use super::{Sketch, cut_off};

/// The row locks that a query may ask for, as Postgres names them in errors, with the keywords behind FOR.
const ROW_LOCKS: [(&str, &[&str]); 4] = [
    ("FOR NO KEY UPDATE", &["no", "key", "update"]),
    ("FOR KEY SHARE", &["key", "share"]),
    ("FOR UPDATE", &["update"]),
    ("FOR SHARE", &["share"]),
];

/// The words before the query of a DECLARE.
struct Declared<'text> {
    name: String,
    holding: Option<Holding>,
    /// From CURSOR to HOLD, if it says WITH HOLD.
    held: std::ops::Range<usize>,
    /// Whether it says SCROLL.
    says_scroll: bool,
    query: Words<'text>,
}

/// Reads `name [options] CURSOR [{WITH | WITHOUT} HOLD] FOR`.
fn declared(mut words: Words<'_>) -> Option<Declared<'_>> {
    let name = cut_off(words.identifier()?);
    let (mut says_scroll, mut says_no_scroll, mut binary) = (false, false, false);
    let cursor = loop {
        let token = *words.peek()?;
        if words.accept("cursor") {
            break token;
        }
        if words.accept_all(&["no", "scroll"]) {
            says_no_scroll = true;
        } else if words.accept("scroll") {
            says_scroll = true;
        } else if words.accept("binary") {
            binary = true;
        } else if !words.accept_one(&["insensitive", "asensitive"]) {
            return None;
        }
    };
    let mut end = cursor.end;
    let mut holding = None;
    if words.accept("with") {
        end = words.peek()?.end;
        words.accept("hold").then_some(())?;
        holding = Some(Holding {
            scrolls: !says_no_scroll,
            binary,
        });
    } else if words.accept("without") {
        words.accept("hold").then_some(())?;
    }
    words.accept("for").then_some(())?;
    Some(Declared {
        name,
        holding,
        held: cursor.start..end,
        says_scroll,
        query: words,
    })
}

/// DECLARE.
pub(super) fn declare(mut words: Words<'_>) -> Sketch<'_> {
    if let Some(declared) = declared(words) {
        let (name, holding) = (declared.name, declared.holding);
        return Sketch::query(
            StatementClass::Cursor(Cursor::Declare { name, holding }),
            declared.query,
        );
    }
    let Some(name) = words.identifier().map(cut_off) else {
        return Sketch::everything(StatementClass::Write);
    };
    while !words.is_end() && !words.accept("for") {
        words.skip();
    }
    Sketch::query(StatementClass::Cursor(Cursor::Declare { name, holding: None }), words)
}

/// A cursor WITH HOLD that locks rows: in the words of Postgres, which refuses it too.
pub(super) fn refusal(words: Words<'_>) -> Option<Refusal> {
    let declared = declared(words).filter(|declared| declared.holding.is_some())?;
    let lock = row_lock(declared.query)?;
    Some(Refusal {
        sqlstate: FEATURE_NOT_SUPPORTED,
        message: format!("DECLARE CURSOR WITH HOLD ... {lock} is not supported"),
        detail: "Holdable cursors must be READ ONLY.".into(),
        hint: "".into(),
        rule: 42,
    })
}

/// The first row lock that a query asks for itself, not in parentheses.
fn row_lock(mut words: Words<'_>) -> Option<&'static str> {
    let mut depth = 0_usize;
    while let Some(token) = words.skip() {
        match token.kind {
            TokenKind::Punctuation(b'(') => depth += 1,
            TokenKind::Punctuation(b')') => depth = depth.saturating_sub(1),
            _ if depth == 0 && token.is_word(words.text, "for") => {
                let asked = ROW_LOCKS.into_iter().find(|(_, keywords)| {
                    let mut ahead = words;
                    ahead.accept_all(keywords)
                });
                if let Some((lock, _)) = asked {
                    return Some(lock);
                }
            }
            _ => {}
        }
    }
    None
}

/// The text that runs in the place of `CURSOR WITH HOLD`: without HOLD, since the proxy keeps the rows at COMMIT, and with SCROLL unless it
/// says NO SCROLL. As long as that, so that errors name the right place.
pub(crate) fn without_hold(mut words: Words<'_>) -> Option<Splice> {
    words.accept("declare").then_some(())?;
    let declared = declared(words)?;
    let holding = declared.holding?;
    let replacement = match holding.scrolls && !declared.says_scroll {
        true => "SCROLL CURSOR",
        false => "CURSOR",
    };
    let width = words.text.get(declared.held.clone())?.chars().count();
    Some(Splice {
        range: declared.held,
        replacement: format!("{replacement:width$}"),
    })
}

/// FETCH, MOVE and CLOSE: the cursor's name is the last word.
pub(super) fn classify<'text>(keyword: &str, words: Words<'text>) -> Sketch<'text> {
    let last = words.rest().last().and_then(|token| token.identifier(words.text));
    let name = cut_off(last.unwrap_or_default().into_owned());
    Sketch::of(StatementClass::Cursor(match keyword {
        "fetch" => Cursor::Fetch {
            name,
            direction: direction(words),
        },
        "move" => Cursor::Move {
            name,
            direction: direction(words),
        },
        _ if words.keyword().as_deref() == Some("all") => Cursor::Close(None),
        _ => Cursor::Close(Some(name)),
    }))
}

/// The direction that stands behind FETCH or MOVE; `None` if that is no form of Postgres's.
fn direction(mut words: Words<'_>) -> Option<Direction> {
    let next = Direction::Forward(Some(1));
    let is_name = |words: Words<'_>| words.rest().len() == 1;
    if is_name(words) {
        return Some(next);
    }
    if words.accept_one(&["from", "in"]) {
        return is_name(words).then_some(next);
    }
    let found = match count(&mut words) {
        Some(rows) => Direction::Forward(Some(rows)),
        None => {
            let word = words.keyword()?;
            words.skip();
            match word.as_ref() {
                "next" => next,
                "prior" => Direction::Backward(Some(1)),
                "first" => Direction::Absolute(1),
                "last" => Direction::Absolute(-1),
                "absolute" => Direction::Absolute(count(&mut words)?),
                "relative" => Direction::Relative(count(&mut words)?),
                "all" => Direction::Forward(None),
                "forward" => Direction::Forward(rows(&mut words)),
                "backward" => Direction::Backward(rows(&mut words)),
                _ => return None,
            }
        }
    };
    words.accept_one(&["from", "in"]);
    is_name(words).then_some(found)
}

/// Behind FORWARD and BACKWARD: a number, ALL, or nothing.
fn rows(words: &mut Words<'_>) -> Option<i64> {
    match words.accept("all") {
        true => None,
        false => Some(count(words).unwrap_or(1)),
    }
}

/// A number with or without a sign; Postgres takes those of 32 bits.
fn count(words: &mut Words<'_>) -> Option<i64> {
    let mut ahead = *words;
    let minus = ahead.accept_operator("-");
    if !minus {
        ahead.accept_operator("+");
    }
    let token = ahead.peek().filter(|token| token.kind == TokenKind::Number)?;
    let number: i64 = token.source(words.text).parse().ok()?;
    ahead.skip();
    let number = if minus { -number } else { number };
    i32::try_from(number).ok()?;
    *words = ahead;
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer::tokenize;

    fn directed(text: &str) -> Option<Direction> {
        let tokens = tokenize(text).expect("lexes");
        direction(Words::new(text, &tokens))
    }

    #[test]
    fn directions_are_those_of_postgres() {
        use Direction::{Absolute, Backward, Forward, Relative};
        for (text, expected) in [
            ("c", Some(Forward(Some(1)))),
            ("from c", Some(Forward(Some(1)))),
            ("next c", Some(Forward(Some(1)))),
            ("next", Some(Forward(Some(1)))),
            ("PRIOR IN c", Some(Backward(Some(1)))),
            ("first from c", Some(Absolute(1))),
            ("last from c", Some(Absolute(-1))),
            ("absolute -3 from c", Some(Absolute(-3))),
            ("relative +3 c", Some(Relative(3))),
            ("5 c", Some(Forward(Some(5)))),
            ("-5 from c", Some(Forward(Some(-5)))),
            ("all in \"C d\"", Some(Forward(None))),
            ("forward c", Some(Forward(Some(1)))),
            ("forward all c", Some(Forward(None))),
            ("backward 7 from c", Some(Backward(Some(7)))),
            ("backward all from c", Some(Backward(None))),
            ("backward from from c", None),
            ("absolute from c", None),
            ("2147483648 from c", None),
            ("1.5 from c", None),
            ("some from c", None),
            ("from c d", None),
        ] {
            assert_eq!(directed(text), expected, "{text}");
        }
    }

    #[test]
    fn hold_is_taken_out_and_places_stay() {
        let run = |text: &str| {
            let tokens = tokenize(text).expect("lexes");
            let splice = without_hold(Words::new(text, &tokens))?;
            Some(crate::determinism::apply(text, 0..text.len(), &[splice]))
        };
        for (text, expected) in [
            (
                "declare c cursor with hold for select 1",
                "declare c SCROLL CURSOR    for select 1",
            ),
            (
                "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT 1",
                "DECLARE c NO SCROLL CURSOR           FOR SELECT 1",
            ),
            (
                "DECLARE c BINARY SCROLL CURSOR WITH /* é */ HOLD FOR SELECT 1",
                "DECLARE c BINARY SCROLL CURSOR                   FOR SELECT 1",
            ),
            // Postgres refuses it.
            (
                "declare c scroll no scroll cursor with hold for select 1",
                "declare c scroll no scroll CURSOR           for select 1",
            ),
        ] {
            assert_eq!(run(text).as_deref(), Some(expected));
        }
        for text in [
            "declare c cursor without hold for select 1",
            "declare c cursor for select 1",
            "declare c cursor with hold select 1",
        ] {
            assert_eq!(run(text), None, "{text}");
        }
    }
}
