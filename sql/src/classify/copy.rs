//! COPY.

use crate::footprint::Mode;
use crate::statement::StatementClass;
use crate::words::Words;

use super::{Plan, Sketch, outside_world};

/// After the keyword COPY.
pub(super) fn classify(words: Words<'_>) -> Sketch<'_> {
    let mut ahead = words;
    ahead.accept("binary");
    let table = ahead;
    let inner = skip_source(&mut ahead);
    let from = ahead.accept("from");
    let to = !from && ahead.accept("to");
    if !from && !to {
        return Sketch::everything(StatementClass::Write);
    }
    match ahead.keyword().as_deref() {
        Some("stdin" | "stdout") => {}
        _ => return Sketch::refused(outside_world(45, "COPY with a server-side file or program")),
    }
    match (from, inner) {
        (true, _) => Sketch {
            class: StatementClass::CopyFrom,
            plan: Plan::Copy(table, Mode::Exclusive),
        },
        (false, Some(query)) => copied_query(query),
        (false, None) => Sketch {
            class: StatementClass::CopyTo,
            plan: Plan::Copy(table, Mode::Shared),
        },
    }
}

/// `COPY (query) TO STDOUT`: the query may also be a write with RETURNING.
fn copied_query(query: Words<'_>) -> Sketch<'_> {
    let sketch = super::classify(query);
    match sketch.class {
        StatementClass::Read => Sketch {
            class: StatementClass::CopyTo,
            ..sketch
        },
        _ => sketch,
    }
}

/// Reads a table's name and columns, or a query in parentheses, of which it gives the inside.
fn skip_source<'text>(words: &mut Words<'text>) -> Option<Words<'text>> {
    let is_query = words.peek().is_some_and(|token| token.is_punctuation(b'('));
    let start = words.rest();
    let mut depth = 0_usize;
    while let Some(token) = words.peek() {
        if depth == 0 && (token.is_word(words.text, "from") || token.is_word(words.text, "to")) {
            break;
        }
        if token.is_punctuation(b'(') {
            depth += 1;
        } else if token.is_punctuation(b')') {
            depth = depth.saturating_sub(1);
        }
        words.skip();
    }
    let length = start.len() - words.rest().len();
    let inside = start.get(1..length.checked_sub(1)?)?;
    is_query.then(|| Words::new(words.text, inside))
}
