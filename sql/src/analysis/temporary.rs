//! Temporary objects, made ordinary ones in a schema of the session's own (rule TemporaryTables): which words go, and which
//! names get that schema.
//!
//! The server resolves names by itself, by a search path that begins with that schema. Only what would be *made* has to be
//! told apart here: a temporary object gets the session's schema, and a permanent one the schema in which PostgreSQL would
//! make it.

mod look;

use std::ops::Range;

use super::derive::reads_temporary;
use crate::determinism::Splice;
use crate::lexer::{Token, TokenKind};
use crate::names::{ALIAS, AtCommit, Names, TEMPORARY_SCHEMA_PREFIX, TemporaryWork, cut, owner_of_temporary_schema};
use crate::refusal::{FEATURE_NOT_SUPPORTED, NOT_SUPPORTED, Refusal};
use crate::schema::Schema;
use crate::words::Words;

/// PostgreSQL's SQLSTATE of a temporary object with another schema.
const INVALID_TABLE_DEFINITION: &str = "42P16";

/// The number of rule TemporaryTables.
const RULE: u8 = 34;

const TEMPORARY: [&str; 2] = ["temp", "temporary"];

/// A statement with what concerns temporary objects taken out.
pub(super) struct Rewritten {
    /// What is left to analyse: the statement for ordinary objects.
    pub(super) tokens: Vec<Token>,
    /// In ascending order.
    pub(super) splices: Vec<Splice>,
    pub(super) work: TemporaryWork,
    pub(super) refusal: Option<Refusal>,
}

/// Rewrites a statement; `None` when it means the same to every session.
pub(super) fn rewrite(schema: &Schema, names: &Names, text: &str, tokens: &[Token]) -> Option<Rewritten> {
    if !names.is_active() && !concerns(text, tokens) {
        return None;
    }
    let mut pass = Pass {
        schema,
        names,
        text,
        tokens,
        removed: Vec::new(),
        splices: Vec::new(),
        work: TemporaryWork::default(),
    };
    let refusal = pass.statement().err().map(|refusal| *refusal);
    let mut splices = pass.splices;
    splices.sort_by_key(|splice| (splice.range.start, splice.range.end));
    let removed = pass.removed;
    let is_left = |index: usize| !removed.iter().any(|range| range.contains(&index));
    let left = tokens.iter().enumerate().filter(|(index, _)| is_left(*index));
    Some(Rewritten {
        tokens: left.map(|(_, token)| *token).collect(),
        splices,
        work: pass.work,
        refusal,
    })
}

/// Whether words of a statement may concern temporary objects.
fn concerns(text: &str, tokens: &[Token]) -> bool {
    tokens.iter().any(|token| match token.kind {
        TokenKind::Word => {
            let word = token.source(text);
            TEMPORARY.iter().any(|temporary| word.eq_ignore_ascii_case(temporary)) || names_schema(word)
        }
        TokenKind::QuotedIdentifier | TokenKind::String | TokenKind::EscapeString | TokenKind::DollarString(_) => {
            names_schema(token.source(text))
        }
        _ => false,
    })
}

fn names_schema(source: &str) -> bool {
    let begins = |at: usize, prefix: &str| {
        let found = source.get(at..at + prefix.len());
        found.is_some_and(|found| found.eq_ignore_ascii_case(prefix))
    };
    let mut underscores = source.match_indices('_').map(|(at, _)| at);
    // All names in question hold `pg_` and one of these words.
    underscores.any(|at| {
        at.checked_sub(2)
            .is_some_and(|start| begins(start, ALIAS) || begins(start, TEMPORARY_SCHEMA_PREFIX))
    })
}

type Outcome<T = ()> = Result<T, Box<Refusal>>;

struct Pass<'text> {
    schema: &'text Schema,
    names: &'text Names,
    text: &'text str,
    tokens: &'text [Token],
    /// Tokens that are taken out, by index.
    removed: Vec<Range<usize>>,
    splices: Vec<Splice>,
    work: TemporaryWork,
}

/// A name as it stands in the statement.
struct Named {
    /// The index of its first token, and of the one behind it.
    range: Range<usize>,
    qualifier: Option<String>,
    name: String,
}

impl<'text> Pass<'text> {
    fn words(&self, from: usize) -> Words<'text> {
        Words::new(self.text, self.tokens.get(from..).unwrap_or_default())
    }

    /// The index of the token that comes next.
    fn at(&self, words: Words<'_>) -> usize {
        self.tokens.len().saturating_sub(words.rest().len())
    }

    fn statement(&mut self) -> Outcome {
        self.refuse_others()?;
        let mut words = self.words(0);
        match words.keyword().as_deref() {
            Some("create") => {
                words.skip();
                self.create(words)?;
            }
            Some("select" | "with") => self.into()?,
            Some("alter" | "drop") if self.names.is_active() => self.note_all_names(),
            _ if words.peek().is_some_and(|token| token.is_punctuation(b'(')) => self.into()?,
            _ => {}
        }
        self.replace_alias();
        if self.names.is_active() {
            self.look();
        }
        Ok(())
    }

    /// Nobody reaches into the temporary objects of another session by name.
    fn refuse_others(&self) -> Outcome {
        for token in self.tokens {
            let other = match token.kind {
                TokenKind::Word | TokenKind::QuotedIdentifier => token.identifier(self.text).is_some_and(|name| {
                    name.starts_with(TEMPORARY_SCHEMA_PREFIX)
                        && owner_of_temporary_schema(&name).is_some()
                        && !self.names.is_own(&name)
                }),
                _ => token
                    .string_value(self.text)
                    .is_some_and(|value| self.names_other(&value)),
            };
            if other {
                return Err(Box::new(Refusal::new(
                    FEATURE_NOT_SUPPORTED,
                    RULE,
                    "cannot access temporary tables of other sessions",
                    "A session names its own temporary objects by pg_temp, or without a schema.",
                )));
            }
        }
        Ok(())
    }

    /// Whether a string names an object in the schema of another session, as in `nextval('...')`.
    fn names_other(&self, value: &str) -> bool {
        let mut rest = value;
        while let Some(at) = rest.find(TEMPORARY_SCHEMA_PREFIX) {
            let found = rest.get(at..).unwrap_or_default();
            let end = found.find(['.', '"']).unwrap_or(found.len());
            let name = found.get(..end).unwrap_or_default();
            let is_qualifier = found
                .get(end..)
                .is_some_and(|after| after.trim_start_matches('"').starts_with('.'));
            if is_qualifier && owner_of_temporary_schema(name).is_some() && !self.names.is_own(name) {
                return true;
            }
            rest = found.get(end.max(1)..).unwrap_or_default();
        }
        false
    }

    /// After the keyword CREATE.
    fn create(&mut self, mut words: Words<'text>) -> Outcome {
        words.accept_all(&["or", "replace"]);
        let start = self.at(words);
        words.accept_one(&["global", "local"]);
        let is_temporary = words.accept_one(&TEMPORARY);
        if is_temporary {
            self.remove(start..self.at(words));
        }
        let Some(kind) = kind(&mut words) else {
            return Ok(());
        };
        if kind == Kind::Extension {
            return self.extension(words);
        }
        words.accept_all(&["if", "not", "exists"]);
        let Some(named) = self.name(words) else { return Ok(()) };
        let is_own = named
            .qualifier
            .as_deref()
            .is_some_and(|schema| self.names.is_own(schema));
        if kind == Kind::Other {
            return match (is_own, named.qualifier) {
                (true, _) => Err(Box::new(only_relations())),
                (false, Some(_)) => Ok(()),
                (false, None) => self.make_permanent(named.range.start),
            };
        }
        let is_temporary = is_temporary || is_own || (kind == Kind::View && self.is_view_of_temporary(&named)?);
        let at_commit = match kind {
            Kind::Table if is_temporary => self.on_commit(named.range.end),
            _ => AtCommit::Keep,
        };
        self.make(named, is_temporary, at_commit)
    }

    /// A relation is made, by CREATE or INTO.
    fn make(&mut self, named: Named, is_temporary: bool, at_commit: AtCommit) -> Outcome {
        match (is_temporary, &named.qualifier) {
            (true, Some(schema)) if !self.names.is_own(schema) => Err(Box::new(Refusal::new(
                INVALID_TABLE_DEFINITION,
                RULE,
                "cannot create temporary relation in non-temporary schema",
                format!("Leave out the schema \"{schema}\", or write pg_temp."),
            ))),
            (true, _) => {
                self.make_temporary(named, at_commit);
                Ok(())
            }
            (false, Some(_)) => Ok(()),
            (false, None) => self.make_permanent(named.range.start),
        }
    }

    fn make_temporary(&mut self, named: Named, at_commit: AtCommit) {
        if named.qualifier.is_none() {
            let schema = self.names.schema();
            self.insert(named.range.start, format!("{schema}."));
        }
        let name = cut(&named.name).to_owned();
        self.work.uncertain.push(name.clone());
        self.work.made.push((name, at_commit));
    }

    /// A permanent object without a schema: the search path would put it among the temporary ones.
    fn make_permanent(&mut self, name_at: usize) -> Outcome {
        if !self.names.is_active() {
            return Ok(());
        }
        let Some(schema) = self.names.creation(self.schema) else {
            return Err(Box::new(unknown_creation()));
        };
        let qualified = format!("\"{}\".", schema.replace('"', "\"\""));
        self.insert(name_at, qualified);
        Ok(())
    }

    fn extension(&mut self, mut words: Words<'text>) -> Outcome {
        words.accept_all(&["if", "not", "exists"]);
        if !self.names.is_active() || words.contains_any(&["schema"]) || words.skip().is_none() {
            return Ok(());
        }
        let Some(schema) = self.names.creation(self.schema) else {
            return Err(Box::new(unknown_creation()));
        };
        let clause = format!(" SCHEMA \"{}\"", schema.replace('"', "\"\""));
        if let Some(last) = self.at(words).checked_sub(1).and_then(|last| self.tokens.get(last)) {
            self.splices.push(Splice {
                range: last.end..last.end,
                replacement: clause,
            });
        }
        Ok(())
    }

    /// Whether a view reads temporary relations: then PostgreSQL makes it a temporary one.
    fn is_view_of_temporary(&self, named: &Named) -> Outcome<bool> {
        if !self.names.is_active() {
            return Ok(false);
        }
        let mut query = self.words(named.range.end);
        while !query.is_end() && !query.accept("as") {
            query.skip();
        }
        let mut tokens = query.rest().iter();
        let mentions = tokens.any(|token| {
            let name = token.identifier(self.text);
            name.is_some_and(|name| self.names.is_own(&name) || self.names.is_temporary(self.schema, &name))
        });
        if !mentions {
            return Ok(false);
        }
        reads_temporary(self.schema, self.names, query).ok_or_else(|| {
            Box::new(Refusal::new(
                NOT_SUPPORTED,
                RULE,
                "it is not clear whether the view reads temporary tables",
                "Write CREATE TEMPORARY VIEW, or qualify the names of permanent tables with their schema.",
            ))
        })
    }

    /// `SELECT ... INTO [TEMPORARY] [TABLE] name`.
    fn into(&mut self) -> Outcome {
        let first_is = |index: usize, word: &str| {
            let token = self.tokens.get(index);
            token.is_some_and(|token| token.is_word(self.text, word))
        };
        let found = (1..self.tokens.len()).find(|index| {
            first_is(*index, "into") && !first_is(*index - 1, "insert") && !first_is(*index - 1, "merge")
        });
        let Some(into) = found else { return Ok(()) };
        let mut words = self.words(into + 1);
        let start = self.at(words);
        let mut ahead = words;
        ahead.accept_one(&["global", "local"]);
        let mut is_temporary = ahead.accept_one(&TEMPORARY) && begins_name(ahead);
        if is_temporary {
            self.remove(start..self.at(ahead));
            words = ahead;
        }
        words.accept("table");
        let Some(named) = self.name(words) else { return Ok(()) };
        let is_own = named
            .qualifier
            .as_deref()
            .is_some_and(|schema| self.names.is_own(schema));
        is_temporary |= is_own;
        self.make(named, is_temporary, AtCommit::Keep)
    }

    /// `ON COMMIT ...` after the name of a table: taken out, since no ordinary table may have it.
    fn on_commit(&mut self, from: usize) -> AtCommit {
        let mut words = self.words(from);
        let mut depth = 0_usize;
        while let Some(token) = words.peek() {
            if token.is_punctuation(b'(') {
                depth += 1;
            } else if token.is_punctuation(b')') {
                depth = depth.saturating_sub(1);
            } else if depth == 0 && token.is_word(self.text, "as") {
                break;
            }
            let start = self.at(words);
            let clauses = [
                (&["on", "commit", "drop"][..], AtCommit::Drop),
                (&["on", "commit", "delete", "rows"], AtCommit::Empty),
                (&["on", "commit", "preserve", "rows"], AtCommit::Keep),
            ];
            if depth == 0
                && let Some((_, at_commit)) = clauses.into_iter().find(|(clause, _)| words.accept_all(clause))
            {
                self.remove(start..self.at(words));
                return at_commit;
            }
            words.skip();
        }
        AtCommit::Keep
    }

    /// Every name in a statement that alters or drops may mean something else afterwards.
    fn note_all_names(&mut self) {
        let names = self.tokens.iter().filter_map(|token| token.identifier(self.text));
        self.work.uncertain.extend(names.map(|name| cut(&name).to_owned()));
    }

    /// `pg_temp.` becomes the session's schema.
    fn replace_alias(&mut self) {
        let schema = self.names.schema();
        let pairs = self.tokens.iter().zip(self.tokens.iter().skip(1));
        let is_alias = |token: &Token| token.identifier(self.text).is_some_and(|name| name == ALIAS);
        let found = pairs.filter(|(token, next)| next.is_punctuation(b'.') && is_alias(token));
        let replaced = found.map(|(token, _)| Splice {
            range: token.range(),
            replacement: schema.clone(),
        });
        let replaced: Vec<_> = replaced.collect();
        self.splices.extend(replaced);
    }

    /// A name of up to three parts that comes next.
    fn name(&self, mut words: Words<'text>) -> Option<Named> {
        let start = self.at(words);
        let mut parts = Vec::new();
        loop {
            // The name of an operator is none.
            match words.identifier() {
                Some(part) => parts.push(part),
                None if words.peek()?.kind == TokenKind::Operator => {
                    parts.push(words.skip()?.source(self.text).to_owned());
                }
                None => return None,
            }
            if !words.accept_punctuation(b'.') {
                break;
            }
        }
        let name = parts.pop()?;
        Some(Named {
            range: start..self.at(words),
            qualifier: parts.pop(),
            name,
        })
    }

    fn insert(&mut self, at: usize, replacement: String) {
        if let Some(token) = self.tokens.get(at) {
            self.splices.push(Splice {
                range: token.start..token.start,
                replacement,
            });
        }
    }

    fn remove(&mut self, range: Range<usize>) {
        let tokens = self.tokens.get(range.clone()).unwrap_or_default();
        if let (Some(first), Some(last)) = (tokens.first(), tokens.last()) {
            self.splices.push(Splice {
                range: first.start..last.end,
                replacement: String::new(),
            });
            self.removed.push(range);
        }
    }
}

/// What CREATE makes, as far as it lies in a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Table,
    View,
    Sequence,
    Extension,
    /// Anything else that the search path gives a schema.
    Other,
}

/// Reads the kind of what is made; `None` for what lies in no schema, or in that of its table.
fn kind(words: &mut Words<'_>) -> Option<Kind> {
    words.accept("unlogged");
    words.accept("recursive");
    let simple = [
        ("table", Kind::Table),
        ("view", Kind::View),
        ("sequence", Kind::Sequence),
        ("extension", Kind::Extension),
    ];
    if let Some((_, kind)) = simple.into_iter().find(|(word, _)| words.accept(word)) {
        return Some(kind);
    }
    let others: [&[&str]; 16] = [
        &["materialized", "view"],
        &["foreign", "table"],
        &["function"],
        &["procedure"],
        &["aggregate"],
        &["type"],
        &["domain"],
        &["statistics"],
        &["collation"],
        &["conversion"],
        &["default", "conversion"],
        &["operator", "class"],
        &["operator", "family"],
        &["operator"],
        &["text", "search", "configuration"],
        &["text", "search", "dictionary"],
    ];
    let found = others.into_iter().any(|words_of_kind| words.accept_all(words_of_kind));
    found.then_some(Kind::Other)
}

/// Whether a name comes next, perhaps after TABLE: `INTO temp FROM` names a table `temp`.
fn begins_name(mut words: Words<'_>) -> bool {
    const FOLLOW: [&str; 16] = [
        "from",
        "where",
        "group",
        "having",
        "window",
        "union",
        "intersect",
        "except",
        "order",
        "limit",
        "offset",
        "fetch",
        "for",
        "select",
        "values",
        "as",
    ];
    words.accept("table");
    match words.peek() {
        Some(token) if token.kind == TokenKind::QuotedIdentifier => true,
        Some(token) if token.kind == TokenKind::Word => !words.accept_one(&FOLLOW),
        _ => false,
    }
}

fn only_relations() -> Refusal {
    Refusal::new(
        NOT_SUPPORTED,
        RULE,
        "only tables, views and sequences can be temporary through the proxy",
        "Make functions and types in a schema of your own.",
    )
}

fn unknown_creation() -> Refusal {
    Refusal::new(
        NOT_SUPPORTED,
        RULE,
        "in a session with temporary objects it is not clear in which schema this would be made",
        "Write the name with its schema.",
    )
}
