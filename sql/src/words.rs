//! A reader of tokens, for the statements that are understood without the parser.

use std::borrow::Cow;

use crate::lexer::{Token, TokenKind};

/// Reads a statement's tokens from left to right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'text> {
    pub(crate) text: &'text str,
    tokens: &'text [Token],
}

impl<'text> Words<'text> {
    pub(crate) fn new(text: &'text str, tokens: &'text [Token]) -> Self {
        Self { text, tokens }
    }

    /// What has not been read.
    pub(crate) fn rest(&self) -> &'text [Token] {
        self.tokens
    }

    pub(crate) fn is_end(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(crate) fn peek(&self) -> Option<&'text Token> {
        self.tokens.first()
    }

    pub(crate) fn skip(&mut self) -> Option<&'text Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    /// The next token as a keyword in lower case, without reading it.
    pub(crate) fn keyword(&self) -> Option<Cow<'text, str>> {
        let token = self.peek().filter(|token| token.kind == TokenKind::Word)?;
        token.identifier(self.text)
    }

    /// Reads a keyword (given in lower case) if it comes next.
    pub(crate) fn accept(&mut self, keyword: &str) -> bool {
        let found = self.peek().is_some_and(|token| token.is_word(self.text, keyword));
        if found {
            self.skip();
        }
        found
    }

    /// Reads all of these keywords if they come next, else nothing.
    pub(crate) fn accept_all(&mut self, keywords: &[&str]) -> bool {
        let mut ahead = *self;
        let found = keywords.iter().all(|keyword| ahead.accept(keyword));
        if found {
            *self = ahead;
        }
        found
    }

    /// Reads the first of these keywords that comes next.
    pub(crate) fn accept_one(&mut self, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.accept(keyword))
    }

    pub(crate) fn accept_punctuation(&mut self, byte: u8) -> bool {
        let found = self.peek().is_some_and(|token| token.is_punctuation(byte));
        if found {
            self.skip();
        }
        found
    }

    pub(crate) fn accept_operator(&mut self, operator: &str) -> bool {
        let found = self.peek().is_some_and(|token| token.is_operator(self.text, operator));
        if found {
            self.skip();
        }
        found
    }

    /// Reads an identifier, folded.
    pub(crate) fn identifier(&mut self) -> Option<String> {
        let name = self.peek()?.identifier(self.text)?.into_owned();
        self.skip();
        Some(name)
    }

    /// Whether one of these keywords comes anywhere in what has not been read.
    pub(crate) fn contains_any(&self, keywords: &[&str]) -> bool {
        let mut tokens = self.tokens.iter();
        tokens.any(|token| keywords.iter().any(|keyword| token.is_word(self.text, keyword)))
    }

    /// Whether these two keywords come one after the other anywhere in what has not been read.
    pub(crate) fn contains_pair(&self, first: &str, second: &str) -> bool {
        let mut pairs = self.tokens.iter().zip(self.tokens.iter().skip(1));
        pairs.any(|(left, right)| left.is_word(self.text, first) && right.is_word(self.text, second))
    }

    /// The source text of what has not been read.
    pub(crate) fn source(&self) -> &'text str {
        match (self.tokens.first(), self.tokens.last()) {
            (Some(first), Some(last)) => self.text.get(first.start..last.end).unwrap_or_default(),
            _ => "",
        }
    }
}
