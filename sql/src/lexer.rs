//! Postgres's lexical rules (`src/backend/parser/scan.l`), with `standard_conforming_strings` on.
//!
//! All of this crate reads statements through these tokens, the parser included: so there is one answer to the
//! question where a string or a comment ends, and it is Postgres's.

mod scan;

use std::borrow::Cow;
use std::ops::Range;

pub(crate) use scan::tokenize;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// An identifier or keyword without quotes.
    Word,
    /// `"..."`.
    QuotedIdentifier,
    /// `U&"..."`.
    UnicodeIdentifier,
    /// `'...'`, with its continuations on further lines.
    String,
    /// `E'...'`.
    EscapeString,
    /// `U&'...'`, `N'...'`, `B'...'`, `X'...'`.
    OtherString,
    /// `$tag$...$tag$`; the number is the length of `$tag$`.
    DollarString(u16),
    /// A number.
    Number,
    /// `$1`.
    Parameter,
    /// An operator of one or more characters, also `::`, `:=`, `=>` and `..`.
    Operator,
    /// One of `( ) [ ] , ; : .`.
    Punctuation(u8),
}

/// A token and where it stands, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Why a text cannot be read: Postgres says the same (42601).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LexicalError {
    pub(crate) at: usize,
    pub(crate) message: &'static str,
}

impl Token {
    pub(crate) fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    pub(crate) fn source<'text>(&self, text: &'text str) -> &'text str {
        text.get(self.range()).unwrap_or_default()
    }

    pub(crate) fn is_punctuation(&self, byte: u8) -> bool {
        self.kind == TokenKind::Punctuation(byte)
    }

    pub(crate) fn is_operator(&self, text: &str, operator: &str) -> bool {
        self.kind == TokenKind::Operator && self.source(text) == operator
    }

    /// Whether it is this keyword (given in lower case), without quotes.
    pub(crate) fn is_word(&self, text: &str, word: &str) -> bool {
        self.kind == TokenKind::Word && self.source(text).eq_ignore_ascii_case(word)
    }

    /// The identifier that it names, folded as Postgres folds it; `None` when it is no identifier.
    pub(crate) fn identifier<'text>(&self, text: &'text str) -> Option<Cow<'text, str>> {
        let source = self.source(text);
        match self.kind {
            TokenKind::Word => Some(fold(source)),
            TokenKind::QuotedIdentifier => {
                let inner = source.get(1..source.len().checked_sub(1)?)?;
                Some(undouble(inner, '"'))
            }
            _ => None,
        }
    }

    /// The value of a string without escapes: `'...'`, `$$...$$`, and `E'...'` without a backslash.
    pub(crate) fn string_value<'text>(&self, text: &'text str) -> Option<Cow<'text, str>> {
        match self.kind {
            TokenKind::String => scan::string_value(self.source(text)),
            TokenKind::EscapeString => {
                let plain = self.source(text).get(1..).filter(|rest| !rest.contains('\\'))?;
                scan::string_value(plain)
            }
            TokenKind::DollarString(tag) => text.get(self.dollar_body(tag)).map(Cow::Borrowed),
            _ => None,
        }
    }

    /// Where the body of a dollar-quoted string stands.
    pub(crate) fn dollar_body(&self, tag: u16) -> Range<usize> {
        let tag = usize::from(tag);
        self.start + tag..self.end.saturating_sub(tag).max(self.start + tag)
    }
}

/// Folds an identifier without quotes: ASCII letters only, as Postgres does in a multi-byte encoding.
pub(crate) fn fold(word: &str) -> Cow<'_, str> {
    if word.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(word.to_ascii_lowercase())
    } else {
        Cow::Borrowed(word)
    }
}

pub(crate) fn undouble(inner: &str, quote: char) -> Cow<'_, str> {
    if inner.contains(quote) {
        let doubled: String = [quote, quote].iter().collect();
        Cow::Owned(inner.replace(&doubled, quote.encode_utf8(&mut [0; 4])))
    } else {
        Cow::Borrowed(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(TokenKind, &str)> {
        let tokens = tokenize(text).expect("lexes");
        tokens.iter().map(|token| (token.kind, token.source(text))).collect()
    }

    #[test]
    fn strings_end_where_postgres_ends_them() {
        use TokenKind::*;
        assert_eq!(kinds(r"'a''b' '\'"), [(String, "'a''b'"), (String, r"'\'")]);
        assert_eq!(kinds(r"E'a\'b'"), [(EscapeString, r"E'a\'b'")]);
        assert_eq!(kinds("'a'\n 'b'"), [(String, "'a'\n 'b'")]);
        assert_eq!(kinds("'a' -- c\n'b'"), [(String, "'a' -- c\n'b'")]);
        assert_eq!(kinds("'a' 'b'").len(), 2);
        assert_eq!(kinds("$a$ ';' $b$ $a$")[0].0, DollarString(3));
        assert_eq!(kinds("U&'x' N'y' B'01'").len(), 3);
        assert_eq!(kinds("a$b$c"), [(Word, "a$b$c")]);
    }

    #[test]
    fn string_values_join_continuations() {
        let text = "'a''b'\n'c'";
        let tokens = tokenize(text).expect("lexes");
        assert_eq!(tokens[0].string_value(text).as_deref(), Some("a'bc"));
    }

    #[test]
    fn comments_nest_and_operators_stop_at_them() {
        assert_eq!(kinds("/* a /* b */ ; */ 1"), [(TokenKind::Number, "1")]);
        assert_eq!(kinds("1 +-- x\n2").len(), 3);
        assert_eq!(
            kinds("a<-1"),
            [
                (TokenKind::Word, "a"),
                (TokenKind::Operator, "<"),
                (TokenKind::Operator, "-"),
                (TokenKind::Number, "1")
            ]
        );
        assert_eq!(kinds("a@-1").len(), 3);
        assert_eq!(
            kinds("x::int=>y..z")
                .iter()
                .filter(|(kind, _)| *kind == TokenKind::Operator)
                .count(),
            3
        );
    }

    #[test]
    fn parameters_and_numbers() {
        assert_eq!(kinds("$12"), [(TokenKind::Parameter, "$12")]);
        assert_eq!(
            kinds("1.5e-3 .5 7.").iter().map(|(_, text)| *text).collect::<Vec<_>>(),
            ["1.5e-3", ".5", "7."]
        );
        assert_eq!(kinds("1..2").len(), 3);
    }

    #[test]
    fn what_does_not_end_is_an_error() {
        for text in ["'a", "\"a", "/* a", "$x$ a", "E'\\'", "\"\""] {
            assert!(tokenize(text).is_err(), "{text}");
        }
    }

    #[test]
    fn identifiers_fold_as_in_postgres() {
        let text = "WareHouse \"Ware\"\"House\"";
        let tokens = tokenize(text).expect("lexes");
        assert_eq!(tokens[0].identifier(text).as_deref(), Some("warehouse"));
        assert_eq!(tokens[1].identifier(text).as_deref(), Some("Ware\"House"));
    }
}
