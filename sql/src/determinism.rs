//! What makes the same statement differ on independent servers, and what is done about it (`docs/determinism.md`).
//!
//! This is the pass over tokens, which every statement takes, also one that the parser cannot read. It gives the
//! replacements of clocks and random sources, and refuses what cannot be made deterministic. Numbers of rules are
//! the rows of the project's determinism table.

mod refusals;
mod splices;

use std::ops::Range;

use crate::lexer::{Token, TokenKind, tokenize};
use crate::refusal::Refusal;

/// Creates the schema `cloudbft` and its functions: they read the settings `cloudbft.time_us` (microseconds since
/// 1970, UTC) and `cloudbft.seed` (any text), which a voter sets for a statement that needs the clock. Each statement
/// of a transaction needs a seed of its own: the draws of one seed are numbered by `cloudbft.counter`.
///
/// Run as superuser; may be run again.
pub const FUNCTIONS_SQL: &str = concat!(
    include_str!("determinism/functions.sql"),
    include_str!("determinism/definitions.sql")
);

/// A replacement in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Splice {
    pub(crate) range: Range<usize>,
    pub(crate) replacement: String,
}

/// What the pass found in one statement.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// In ascending order, without overlaps.
    pub(crate) splices: Vec<Splice>,
    /// Whether a function of schema `cloudbft` is called, after the replacements.
    pub(crate) needs_clock: bool,
    pub(crate) refusal: Option<Refusal>,
}

/// What the statement does, as far as rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Write,
    /// Defines something; bodies of functions are passed over too.
    Definition,
}

/// Passes over the tokens of one statement.
pub(crate) fn inspect(text: &str, tokens: &[Token], purpose: Purpose) -> Findings {
    let mut findings = Findings::default();
    let mut pass = Pass { text, tokens, at: 0 };
    while pass.at < tokens.len() && findings.refusal.is_none() {
        findings.refusal = refusals::refusal(&pass, purpose);
        let found = splices::splice(&pass);
        findings.needs_clock |= found.is_some() || pass.calls_own_function();
        findings.splices.extend(found);
        if purpose == Purpose::Read {
            findings.splices.extend(splices::local_column(&pass));
            findings.splices.extend(splices::definition(&pass));
        }
        if purpose != Purpose::Read && is_body(&pass, purpose) {
            inspect_body(&pass, &mut findings);
        }
        pass.at += 1;
    }
    // Removing CONCURRENTLY and reading literals twice never overlaps, but a later rule might.
    findings
        .splices
        .dedup_by(|next, previous| next.range.start < previous.range.end);
    findings
}

/// Whether a string at the present place is the body of a function or of DO, or a statement that a body executes.
fn is_body(pass: &Pass<'_>, purpose: Purpose) -> bool {
    let is_string = pass.token(0).is_some_and(|token| {
        matches!(
            token.kind,
            TokenKind::String | TokenKind::EscapeString | TokenKind::DollarString(_)
        )
    });
    let is_do = pass.tokens.first().is_some_and(|first| first.is_word(pass.text, "do"));
    let defines = purpose == Purpose::Definition && (is_do || pass.is_word(-1, "as"));
    is_string && (defines || pass.is_word(-1, "execute"))
}

/// Passes over a function's body that is given as a string. A body may write, whoever calls the function.
fn inspect_body(pass: &Pass<'_>, findings: &mut Findings) {
    let Some(token) = pass.token(0) else { return };
    let Some(body) = token.string_value(pass.text) else {
        findings.refusal.get_or_insert_with(refusals::escaped_body);
        return;
    };
    // A body that cannot be read is none of a language that is known here, or Postgres will refuse it.
    let Ok(tokens) = tokenize(&body) else { return };
    let inner = inspect(&body, &tokens, Purpose::Write);
    findings.refusal = findings.refusal.take().or(inner.refusal);
    if inner.splices.is_empty() {
        return;
    }
    let spliced = apply(&body, 0..body.len(), &inner.splices);
    findings.splices.push(match token.kind {
        TokenKind::DollarString(tag) => Splice {
            range: token.dollar_body(tag),
            replacement: spliced,
        },
        _ => Splice {
            range: token.range(),
            replacement: format!("'{}'", spliced.replace('\'', "''")),
        },
    });
}

/// Two lists of splices as one, in ascending order. Where two overlap, the first one's counts.
pub(crate) fn merge(mut splices: Vec<Splice>, others: Vec<Splice>) -> Vec<Splice> {
    let overlaps =
        |one: &Splice, other: &Splice| one.range.start < other.range.end && other.range.start < one.range.end;
    let free: Vec<_> = others
        .into_iter()
        .filter(|other| !splices.iter().any(|splice| overlaps(splice, other)))
        .collect();
    splices.extend(free);
    splices.sort_by_key(|splice| (splice.range.start, splice.range.end));
    splices
}

/// The text with the splices that lie in a range of it, applied to that range.
pub(crate) fn apply(text: &str, range: Range<usize>, splices: &[Splice]) -> String {
    let mut spliced = String::with_capacity(range.len() + 32 * splices.len());
    let mut at = range.start;
    for splice in splices {
        if splice.range.start < at || splice.range.end > range.end {
            continue;
        }
        spliced.push_str(text.get(at..splice.range.start).unwrap_or_default());
        spliced.push_str(&splice.replacement);
        at = splice.range.end;
    }
    spliced.push_str(text.get(at..range.end).unwrap_or_default());
    spliced
}

/// Whether an expression of the catalog reads the clock or the seed through `cloudbft`, or each server's own.
pub(crate) fn reads_clock(expression: &str) -> bool {
    !expression.is_empty()
        && tokenize(expression).is_ok_and(|tokens| inspect(expression, &tokens, Purpose::Read).needs_clock)
}

/// Whether an expression of the catalog reads each server's own clock or random source.
pub(crate) fn is_nondeterministic(expression: &str) -> bool {
    !expression.is_empty()
        && tokenize(expression).is_ok_and(|tokens| {
            let findings = inspect(expression, &tokens, Purpose::Write);
            !findings.splices.is_empty() || findings.refusal.is_some()
        })
}

/// Whether an expression of the catalog gives another value with each call: a draw, not the clock.
pub(crate) fn draws(expression: &str) -> bool {
    const DRAWS: [&str; 3] = ["random", "gen_random_uuid", "uuid_generate_v4"];
    !expression.is_empty()
        && tokenize(expression).is_ok_and(|tokens| {
            let names = tokens.iter().filter_map(|token| token.identifier(expression));
            names.into_iter().any(|name| DRAWS.contains(&name.as_ref()))
        })
}

/// A place in a statement's tokens.
struct Pass<'text> {
    text: &'text str,
    tokens: &'text [Token],
    at: usize,
}

impl<'text> Pass<'text> {
    /// The token so many places after the present one (before, when negative).
    fn token(&self, offset: isize) -> Option<&'text Token> {
        self.tokens.get(self.at.checked_add_signed(offset)?)
    }

    fn is_word(&self, offset: isize, word: &str) -> bool {
        self.token(offset).is_some_and(|token| token.is_word(self.text, word))
    }

    fn is_punctuation(&self, offset: isize, byte: u8) -> bool {
        self.token(offset).is_some_and(|token| token.is_punctuation(byte))
    }

    fn is_operator(&self, offset: isize, operator: &str) -> bool {
        self.token(offset)
            .is_some_and(|token| token.is_operator(self.text, operator))
    }

    fn name(&self, offset: isize) -> Option<std::borrow::Cow<'text, str>> {
        self.token(offset)?.identifier(self.text)
    }

    /// The schema that qualifies the name at the present place: `None` when nothing does.
    fn qualifier(&self) -> Option<std::borrow::Cow<'text, str>> {
        self.is_punctuation(-1, b'.').then(|| self.name(-2)).flatten()
    }

    /// Whether the present token is the name of a built-in function that is called here.
    fn calls(&self) -> Option<std::borrow::Cow<'text, str>> {
        self.is_punctuation(1, b'(').then_some(())?;
        let name = self.name(0)?;
        let is_qualified = self.is_punctuation(-1, b'.');
        let is_built_in = !is_qualified || self.qualifier().is_some_and(|schema| schema == "pg_catalog");
        is_built_in.then_some(name)
    }

    fn calls_own_function(&self) -> bool {
        self.is_punctuation(1, b'(') && self.qualifier().is_some_and(|schema| schema == "cloudbft")
    }
}

#[cfg(test)]
mod tests;
