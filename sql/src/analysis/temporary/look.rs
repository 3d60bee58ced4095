//! What a session with temporary objects sees of them: the search path without their schema, and catalogs that call them
//! temporary.

use super::Pass;
use crate::determinism::Splice;
use crate::lexer::{Token, TokenKind};
use crate::names::ALIAS;

/// Functions that tell of the search path or of temporary objects; `cloudbft` has one of each name that tells what it would be
/// were the objects temporary.
const FUNCTIONS: [&str; 5] = [
    "current_schema",
    "current_schemas",
    "current_setting",
    "pg_my_temp_schema",
    "pg_is_other_temp_schema",
];

/// Functions whose argument is the name of a relation, as text.
const NAMING: [&str; 8] = [
    "to_regclass",
    "to_regtype",
    "nextval",
    "currval",
    "setval",
    "pg_get_serial_sequence",
    "pg_relation_size",
    "pg_total_relation_size",
];

impl Pass<'_> {
    pub(super) fn look(&mut self) {
        let found = (0..self.tokens.len()).filter_map(|at| {
            self.function(at)
                .or_else(|| self.keyword(at))
                .or_else(|| self.persistence(at))
                .or_else(|| self.named_by_text(at))
        });
        let found: Vec<_> = found.collect();
        self.splices.extend(found);
    }

    fn token(&self, at: Option<usize>) -> Option<&Token> {
        self.tokens.get(at?)
    }

    fn is_punctuation(&self, at: Option<usize>, byte: u8) -> bool {
        self.token(at).is_some_and(|token| token.is_punctuation(byte))
    }

    fn is_named(&self, at: Option<usize>, name: &str) -> bool {
        let found = self.token(at).and_then(|token| token.identifier(self.text));
        found.is_some_and(|found| found == name)
    }

    /// `current_schemas(...)` and the like become functions of `cloudbft`.
    fn function(&self, at: usize) -> Option<Splice> {
        let token = self.token(Some(at))?;
        let name = token.identifier(self.text)?;
        let is_it = self.is_punctuation(Some(at + 1), b'(') && FUNCTIONS.contains(&name.as_ref());
        is_it.then_some(())?;
        let start = match self.is_punctuation(at.checked_sub(1), b'.') {
            true if self.is_named(at.checked_sub(2), "pg_catalog") => self.token(at.checked_sub(2))?.start,
            true => return None,
            false => token.start,
        };
        Some(Splice {
            range: start..token.end,
            replacement: format!("cloudbft.{name}"),
        })
    }

    /// `CURRENT_SCHEMA` without parentheses.
    fn keyword(&self, at: usize) -> Option<Splice> {
        let token = self.token(Some(at))?;
        let before = at.checked_sub(1);
        let is_as = self.token(before).is_some_and(|token| token.is_word(self.text, "as"));
        let is_it = token.is_word(self.text, "current_schema")
            && !self.is_punctuation(Some(at + 1), b'(')
            && !self.is_punctuation(before, b'.')
            && !is_as;
        is_it.then(|| Splice {
            range: token.range(),
            replacement: "cloudbft.current_schema()".to_owned(),
        })
    }

    /// `c.relpersistence` of pg_class.
    fn persistence(&self, at: usize) -> Option<Splice> {
        let token = self.token(Some(at))?;
        let before = at.checked_sub(1);
        let is_as = self.token(before).is_some_and(|token| token.is_word(self.text, "as"));
        let is_it = self.is_named(Some(at), "relpersistence")
            && !is_as
            && !self.is_punctuation(Some(at + 1), b'(')
            && !self.is_punctuation(Some(at + 1), b'.');
        is_it.then_some(())?;
        let mut first = at;
        while self.is_punctuation(first.checked_sub(1), b'.') && first >= 2 {
            first -= 2;
        }
        match at.checked_sub(2).filter(|_| first < at) {
            Some(qualifier) => self.is_catalog(qualifier).then_some(())?,
            None => self.has_one_level().then_some(())?,
        }
        let start = self.token(Some(first))?.start;
        let qualifier = self.text.get(start..token.start)?;
        Some(Splice {
            range: start..token.end,
            replacement: format!("cloudbft.relpersistence({qualifier}relpersistence, {qualifier}relnamespace)"),
        })
    }

    /// Whether a qualifier is pg_class or an alias of it.
    fn is_catalog(&self, qualifier: usize) -> bool {
        let name = self
            .token(Some(qualifier))
            .and_then(|token| token.identifier(self.text));
        let Some(name) = name else { return false };
        name == "pg_class"
            || (0..self.tokens.len()).any(|at| {
                let alias = match self.token(Some(at + 1)) {
                    Some(token) if token.is_word(self.text, "as") => at + 2,
                    _ => at + 1,
                };
                self.is_named(Some(at), "pg_class") && self.is_named(Some(alias), &name)
            })
    }

    /// Whether pg_class is read, and no query stands within another.
    fn has_one_level(&self) -> bool {
        let mut selects = self.tokens.iter().filter(|token| token.is_word(self.text, "select"));
        let reads = (0..self.tokens.len()).any(|at| self.is_named(Some(at), "pg_class"));
        reads && selects.next().is_some() && selects.next().is_none()
    }

    /// `'pg_temp.x'` where it names a relation.
    fn named_by_text(&self, at: usize) -> Option<Splice> {
        let token = self.token(Some(at))?;
        matches!(token.kind, TokenKind::String).then_some(())?;
        let value = token.string_value(self.text)?;
        let rest = value
            .get(..ALIAS.len())
            .filter(|prefix| prefix.eq_ignore_ascii_case(ALIAS))
            .and_then(|_| value.get(ALIAS.len()..))?;
        rest.starts_with('.').then_some(())?;
        let is_argument = self.is_punctuation(at.checked_sub(1), b'(')
            && NAMING.iter().any(|name| self.is_named(at.checked_sub(2), name));
        let is_cast = self
            .token(Some(at + 1))
            .is_some_and(|next| next.is_operator(self.text, "::"))
            && ["regclass", "regtype"]
                .iter()
                .any(|name| self.is_named(Some(at + 2), name));
        (is_argument || is_cast).then(|| Splice {
            range: token.range(),
            replacement: format!("'{}{}'", self.names.schema(), rest.replace('\'', "''")),
        })
    }
}
