//! Where in a statement's tokens an order is written. The syntax tree says which query or call is meant, by the place of its first
//! token; all else is read from the tokens.

use sqlparser::tokenizer::Span;

use super::super::super::parse::index_of;
use crate::lexer::{Token, TokenKind};
use crate::words::Words;

/// Where the last words of a clause end, in bytes of the text, and whether it has an ORDER BY already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OrderPlace {
    pub(super) at: usize,
    pub(super) is_ordered: bool,
}

/// Clauses that may follow ORDER BY in a query, or in the INSERT that it feeds.
const AFTER_ORDER: [&str; 6] = ["limit", "offset", "fetch", "for", "on", "returning"];
/// Clauses that may follow GROUP BY in a query, beside those.
const AFTER_GROUP: [&str; 6] = ["having", "window", "order", "union", "intersect", "except"];
/// Words that begin a clause only before one of these.
const PAIRS: [(&str, &[&str]); 4] = [
    ("order", &["by"]),
    ("group", &["by"]),
    ("on", &["conflict"]),
    ("for", &["update", "share", "no", "key"]),
];

/// Where the query whose first SELECT stands at this place orders its rows, or would.
pub(super) fn of_query(words: Words<'_>, select: Span) -> Option<OrderPlace> {
    let query = query_tokens(words, select)?;
    let end = own_clause(words.text, query, &AFTER_ORDER).unwrap_or(query.len());
    Some(OrderPlace {
        at: query.get(end.checked_sub(1)?)?.end,
        is_ordered: has_order(words.text, query.get(..end)?),
    })
}

/// Where the parentheses after a function's name order its input, or would.
pub(super) fn of_arguments(words: Words<'_>, name: Span) -> Option<OrderPlace> {
    let (open, close) = arguments(words.rest(), index_of(name)? + 1)?;
    within(words, open, close)
}

/// The same for the window after OVER.
pub(super) fn of_window(words: Words<'_>, name: Span) -> Option<OrderPlace> {
    let tokens = words.rest();
    let (_, mut at) = arguments(tokens, index_of(name)? + 1)?;
    at += 1;
    if tokens.get(at)?.is_word(words.text, "filter") {
        at = arguments(tokens, at + 1)?.1 + 1;
    }
    tokens.get(at).filter(|token| token.is_word(words.text, "over"))?;
    let (open, close) = arguments(tokens, at + 1)?;
    within(words, open, close)
}

/// The text between GROUP BY and the next clause.
pub(super) fn groups<'text>(words: Words<'text>, select: Span) -> Option<&'text str> {
    let query = query_tokens(words, select)?;
    let start = own_clause(words.text, query, &["group"])? + 2;
    let rest = query.get(start..)?;
    let ends = [AFTER_GROUP.as_slice(), AFTER_ORDER.as_slice()].concat();
    let end = own_clause(words.text, rest, &ends).unwrap_or(rest.len());
    source(words.text, rest.get(..end)?)
}

/// The text between the parentheses of DISTINCT ON.
pub(super) fn distinct_on<'text>(words: Words<'text>, select: Span) -> Option<&'text str> {
    let tokens = words.rest();
    let at = index_of(select)?;
    tokens.get(at + 2).filter(|token| token.is_word(words.text, "on"))?;
    let (open, close) = arguments(tokens, at + 3)?;
    source(words.text, tokens.get(open + 1..close)?)
}

fn within(words: Words<'_>, open: usize, close: usize) -> Option<OrderPlace> {
    let inner = words.rest().get(open + 1..close)?;
    Some(OrderPlace {
        at: words.rest().get(close.checked_sub(1)?)?.end,
        is_ordered: has_order(words.text, inner),
    })
}

/// A pair of parentheses that opens at this place.
fn arguments(tokens: &[Token], open: usize) -> Option<(usize, usize)> {
    tokens.get(open).filter(|token| token.is_punctuation(b'('))?;
    let length = enclosed(tokens.get(open + 1..)?)?;
    Some((open, open + 1 + length))
}

/// How many tokens come before the parenthesis that closes what is open.
fn enclosed(tokens: &[Token]) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token.kind {
            TokenKind::Punctuation(b'(' | b'[') => depth += 1,
            TokenKind::Punctuation(b')' | b']') if depth == 0 => return Some(index),
            TokenKind::Punctuation(b')' | b']') => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The tokens from a SELECT to the end of its query: to the parenthesis that closes it, or to the end of the statement.
fn query_tokens<'text>(words: Words<'text>, select: Span) -> Option<&'text [Token]> {
    let tokens = words.rest().get(index_of(select)?..)?;
    tokens.first().filter(|token| token.is_word(words.text, "select"))?;
    let length = enclosed(tokens).unwrap_or(tokens.len());
    let all = tokens.get(..length)?;
    let semicolon = all.iter().position(|token| token.is_punctuation(b';'));
    all.get(..semicolon.unwrap_or(length))
}

/// Where the first of these clauses begins, outside of parentheses.
fn own_clause(text: &str, tokens: &[Token], keywords: &[&str]) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token.kind {
            TokenKind::Punctuation(b'(' | b'[') => depth += 1,
            TokenKind::Punctuation(b')' | b']') => depth = depth.saturating_sub(1),
            TokenKind::Word if depth == 0 && !is_name(text, tokens, index) => {
                let found = keywords.iter().find(|keyword| token.is_word(text, keyword));
                if found.is_some_and(|keyword| begins_clause(keyword, text, tokens.get(index + 1))) {
                    return Some(index);
                }
            }
            _ => {}
        }
    }
    None
}

fn begins_clause(keyword: &str, text: &str, next: Option<&Token>) -> bool {
    let pair = PAIRS.iter().find(|(first, _)| *first == keyword);
    pair.is_none_or(|(_, seconds)| next.is_some_and(|next| seconds.iter().any(|second| next.is_word(text, second))))
}

/// Whether a reserved word is a name at this place: after a period or AS.
fn is_name(text: &str, tokens: &[Token], index: usize) -> bool {
    let before = index.checked_sub(1).and_then(|before| tokens.get(before));
    before.is_some_and(|before| before.is_punctuation(b'.') || before.is_word(text, "as"))
}

fn has_order(text: &str, tokens: &[Token]) -> bool {
    own_clause(text, tokens, &["order"]).is_some()
}

fn source<'text>(text: &'text str, tokens: &[Token]) -> Option<&'text str> {
    text.get(tokens.first()?.start..tokens.last()?.end)
}
