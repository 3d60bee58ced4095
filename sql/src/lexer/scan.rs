//! The scanner.

use std::borrow::Cow;

use super::{LexicalError, Token, TokenKind, undouble};

const OPERATOR_BYTES: &[u8] = b"~!@#^&|`?+-*/%<>=";
/// An operator that has none of these does not end in + or -.
const SIGN_KEEPING_BYTES: &[u8] = b"~!@#^&|`?%";

/// Splits a text into tokens, without white space and comments.
///
/// # Errors
/// Where Postgres would find a string, an identifier or a comment that does not end.
pub(crate) fn tokenize(text: &str) -> Result<Vec<Token>, LexicalError> {
    let mut scanner = Scanner {
        bytes: text.as_bytes(),
        at: 0,
    };
    let mut tokens = Vec::with_capacity(text.len() / 4);
    while let Some(token) = scanner.token()? {
        tokens.push(token);
    }
    Ok(tokens)
}

/// The value of a `'...'` token: its parts joined, doubled quotes undone.
pub(super) fn string_value(source: &str) -> Option<Cow<'_, str>> {
    let mut scanner = Scanner {
        bytes: source.as_bytes(),
        at: 0,
    };
    let mut value = Cow::Borrowed("");
    loop {
        let start = scanner.at + 1;
        scanner.at = start;
        scanner.quoted(b'\'', false, "").ok()?;
        let part = undouble(source.get(start..scanner.at.checked_sub(1)?)?, '\'');
        if value.is_empty() {
            value = part;
        } else {
            value.to_mut().push_str(&part);
        }
        if !scanner.continues() {
            return Some(value);
        }
    }
}

struct Scanner<'text> {
    bytes: &'text [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn is_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn error<T>(&self, at: usize, message: &'static str) -> Result<T, LexicalError> {
        Err(LexicalError { at, message })
    }

    fn token(&mut self) -> Result<Option<Token>, LexicalError> {
        self.skip_blanks()?;
        if self.is_end() {
            return Ok(None);
        }
        let start = self.at;
        let kind = self.kind()?;
        let end = self.at;
        Ok(Some(Token { kind, start, end }))
    }

    fn kind(&mut self) -> Result<TokenKind, LexicalError> {
        let (first, second, third) = (self.peek(0), self.peek(1), self.peek(2));
        match first {
            b'\'' => self.string(1, false, TokenKind::String),
            b'e' | b'E' if second == b'\'' => self.string(2, true, TokenKind::EscapeString),
            b'b' | b'B' | b'x' | b'X' | b'n' | b'N' if second == b'\'' => self.string(2, false, TokenKind::OtherString),
            b'u' | b'U' if second == b'&' && third == b'\'' => self.string(3, false, TokenKind::OtherString),
            b'u' | b'U' if second == b'&' && third == b'"' => self.identifier(3, TokenKind::UnicodeIdentifier),
            b'"' => self.identifier(1, TokenKind::QuotedIdentifier),
            b'$' if second.is_ascii_digit() => Ok(self.parameter()),
            b'$' => self.dollar_string(),
            b'0'..=b'9' => Ok(self.number()),
            b'.' if second.is_ascii_digit() => Ok(self.number()),
            b':' if second == b':' || second == b'=' => Ok(self.take(2, TokenKind::Operator)),
            b'.' if second == b'.' => Ok(self.take(2, TokenKind::Operator)),
            b'(' | b')' | b'[' | b']' | b',' | b';' | b':' | b'.' => Ok(self.take(1, TokenKind::Punctuation(first))),
            byte if OPERATOR_BYTES.contains(&byte) => Ok(self.operator()),
            byte if is_word_start(byte) => Ok(self.word()),
            _ => self.error(self.at, "unexpected character"),
        }
    }

    fn take(&mut self, length: usize, kind: TokenKind) -> TokenKind {
        self.at += length;
        kind
    }

    fn skip_blanks(&mut self) -> Result<(), LexicalError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, _) => self.at += 1,
                (b'-', b'-') => self.skip_line(),
                (b'/', b'*') => self.skip_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn skip_line(&mut self) {
        while !self.is_end() && !matches!(self.peek(0), b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn skip_comment(&mut self) -> Result<(), LexicalError> {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                _ if self.is_end() => return self.error(start, "unterminated /* comment"),
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// A string and its continuations; `prefix` is the length up to and including the first quote.
    fn string(&mut self, prefix: usize, escapes: bool, kind: TokenKind) -> Result<TokenKind, LexicalError> {
        self.at += prefix;
        self.quoted(b'\'', escapes, "unterminated quoted string")?;
        while self.continues() {
            self.at += 1;
            self.quoted(b'\'', escapes, "unterminated quoted string")?;
        }
        Ok(kind)
    }

    fn identifier(&mut self, prefix: usize, kind: TokenKind) -> Result<TokenKind, LexicalError> {
        let start = self.at;
        self.at += prefix;
        self.quoted(b'"', false, "unterminated quoted identifier")?;
        if self.at == start + prefix + 1 {
            return self.error(start, "zero-length delimited identifier");
        }
        Ok(kind)
    }

    /// From after the opening quote to after the closing one.
    fn quoted(&mut self, quote: u8, escapes: bool, message: &'static str) -> Result<(), LexicalError> {
        let start = self.at;
        loop {
            if self.is_end() {
                return self.error(start, message);
            }
            let byte = self.peek(0);
            if escapes && byte == b'\\' {
                self.at += 2;
            } else if byte != quote {
                self.at += 1;
            } else if self.peek(1) == quote {
                self.at += 2;
            } else {
                self.at += 1;
                return Ok(());
            }
        }
    }

    /// Whether, after white space with a newline in it, the string goes on: then the scanner is at its quote.
    fn continues(&mut self) -> bool {
        let start = self.at;
        let mut newline = false;
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n' | b'\r', _) => {
                    newline = true;
                    self.at += 1;
                }
                (b' ' | b'\t' | 0x0b | 0x0c, _) => self.at += 1,
                (b'-', b'-') => self.skip_line(),
                (b'\'', _) if newline => return true,
                _ => {
                    self.at = start;
                    return false;
                }
            }
        }
    }

    fn parameter(&mut self) -> TokenKind {
        self.at += 1;
        self.skip_while(|byte| byte.is_ascii_digit());
        TokenKind::Parameter
    }

    fn dollar_string(&mut self) -> Result<TokenKind, LexicalError> {
        let start = self.at;
        self.at += 1;
        if is_word_start(self.peek(0)) {
            self.skip_while(|byte| is_word_start(byte) || byte.is_ascii_digit());
        }
        if self.peek(0) != b'$' {
            return self.error(start, "unexpected character");
        }
        self.at += 1;
        let tag = self.bytes.get(start..self.at).unwrap_or_default();
        let Ok(tag_length) = u16::try_from(tag.len()) else {
            return self.error(start, "dollar-quote tag is too long");
        };
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(body) = find(rest, tag) else {
            return self.error(start, "unterminated dollar-quoted string");
        };
        self.at += body + tag.len();
        Ok(TokenKind::DollarString(tag_length))
    }

    fn number(&mut self) -> TokenKind {
        self.skip_while(|byte| byte.is_ascii_digit());
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            self.at += 1;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
        let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
        if matches!(self.peek(0), b'e' | b'E') && self.peek(1 + sign).is_ascii_digit() {
            self.at += 1 + sign;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
        TokenKind::Number
    }

    fn word(&mut self) -> TokenKind {
        self.skip_while(|byte| is_word_start(byte) || byte.is_ascii_digit() || byte == b'$');
        TokenKind::Word
    }

    fn operator(&mut self) -> TokenKind {
        let start = self.at;
        while OPERATOR_BYTES.contains(&self.peek(0)) && !self.is_end() {
            if matches!((self.peek(0), self.peek(1)), (b'-', b'-') | (b'/', b'*')) {
                break;
            }
            self.at += 1;
        }
        let operator = self.bytes.get(start..self.at).unwrap_or_default();
        if !operator.iter().any(|byte| SIGN_KEEPING_BYTES.contains(byte)) {
            let signs = operator
                .iter()
                .skip(1)
                .rev()
                .take_while(|byte| matches!(byte, b'+' | b'-'));
            self.at -= signs.count();
        }
        TokenKind::Operator
    }

    fn skip_while(&mut self, accepts: impl Fn(u8) -> bool) {
        while !self.is_end() && accepts(self.peek(0)) {
            self.at += 1;
        }
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// Where `needle`, which begins and ends with `$` and has no other, first occurs; linear.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
