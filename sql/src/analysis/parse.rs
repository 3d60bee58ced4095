//! From our tokens to the parser's syntax tree.
//!
//! The parser never sees the text: so it cannot read a string, a comment or an operator differently from Postgres.
//! The tree is used to find what is touched and what lacks an order, and never to make text that runs: where something is added, our tokens say.

use sqlparser::ast::Statement;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Location, Span, Token as Parsed, TokenWithSpan};

use crate::lexer::{Token, TokenKind};
use crate::words::Words;

/// Deeper nesting is not parsed.
const DEPTH_MAX: usize = 40;
/// More tokens are not parsed.
const TOKENS_MAX: usize = 50_000;

/// Words that Postgres reads as operators or clauses, and the parser as names.
const MISREAD: [&str; 2] = ["isnull", "notnull"];

/// Words after which a string is a value, or of which it is a value. After any other name, as in `SELECT posint '5'`, Postgres
/// reads a value of that type, and the parser an alias.
const BEFORE_STRING: [&str; 69] = [
    "all",
    "and",
    "any",
    "asymmetric",
    "between",
    "bigint",
    "bit",
    "bool",
    "boolean",
    "both",
    "by",
    "bytea",
    "case",
    "char",
    "cidr",
    "content",
    "date",
    "default",
    "distinct",
    "document",
    "else",
    "escape",
    "float8",
    "for",
    "from",
    "having",
    "ilike",
    "in",
    "inet",
    "int",
    "int4",
    "int8",
    "integer",
    "interval",
    "is",
    "json",
    "jsonb",
    "leading",
    "like",
    "limit",
    "name",
    "not",
    "numeric",
    "offset",
    "on",
    "or",
    "placing",
    "precision",
    "real",
    "returning",
    "select",
    "similar",
    "smallint",
    "some",
    "symmetric",
    "text",
    "then",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "to",
    "trailing",
    "uuid",
    "varchar",
    "when",
    "where",
    "xml",
    "zone",
];

/// The tree of one statement; `None` when the parser cannot read it, or is known to misread it.
pub(super) fn parse(words: Words<'_>) -> Option<Statement> {
    if words.rest().len() > TOKENS_MAX || words.contains_any(&MISREAD) {
        return None;
    }
    if words.rest().windows(2).any(|pair| is_typed_string(words.text, pair)) {
        return None;
    }
    let tokens = convert(words)?;
    let mut parser = Parser::new(&PostgreSqlDialect {})
        .with_recursion_limit(DEPTH_MAX)
        .with_tokens_with_locations(tokens);
    let mut statements = parser.parse_statements().ok()?;
    let only = statements.pop()?;
    statements.is_empty().then_some(only)
}

fn is_typed_string(text: &str, pair: &[Token]) -> bool {
    let [name, string] = pair else { return false };
    let is_string = matches!(
        string.kind,
        TokenKind::String | TokenKind::EscapeString | TokenKind::DollarString(_) | TokenKind::OtherString
    );
    let is_name = match name.kind {
        TokenKind::QuotedIdentifier => true,
        TokenKind::Word => !BEFORE_STRING.iter().any(|word| name.is_word(text, word)),
        _ => false,
    };
    is_string && is_name
}

fn convert(mut words: Words<'_>) -> Option<Vec<TokenWithSpan>> {
    let all = words.rest().len();
    let mut tokens = Vec::with_capacity(all);
    while let Some(token) = words.peek() {
        let span = span_of(all - words.rest().len());
        if normalise(&mut words, &mut tokens) {
            continue;
        }
        tokens.push(TokenWithSpan::new(token_of(token, words.text)?, span));
        words.skip();
    }
    Some(tokens)
}

/// The parser is told of a token's place by its index among ours.
fn span_of(index: usize) -> Span {
    let location = Location::new(1, index as u64 + 1);
    Span::new(location, location)
}

/// The index, among the tokens of the statement, of the token at which something in the syntax tree begins; `None` for what the
/// parser made up.
pub(super) fn index_of(span: Span) -> Option<usize> {
    usize::try_from(span.start.column).ok()?.checked_sub(1)
}

/// Clauses that the parser does not know, as others that touch the same.
fn normalise(words: &mut Words<'_>, tokens: &mut Vec<TokenWithSpan>) -> bool {
    let replacement: &[&str] = if words.accept_all(&["for", "no", "key", "update"]) {
        &["FOR", "UPDATE"]
    } else if words.accept_all(&["for", "key", "share"]) {
        &["FOR", "SHARE"]
    } else if words.accept_all(&["overriding", "system", "value"]) {
        &[]
    } else if words.accept_all(&["update", "only"]) {
        &["UPDATE"]
    } else if words.accept_all(&["from", "only"]) {
        &["FROM"]
    } else if words.accept_all(&["join", "only"]) {
        &["JOIN"]
    } else {
        return false;
    };
    let words = replacement.iter().map(|word| Parsed::make_word(word, None));
    tokens.extend(words.map(|word| TokenWithSpan::new(word, Span::empty())));
    true
}

fn token_of(token: &Token, text: &str) -> Option<Parsed> {
    let source = token.source(text);
    Some(match token.kind {
        TokenKind::Word => Parsed::make_word(source, None),
        TokenKind::QuotedIdentifier => Parsed::make_word(&token.identifier(text)?, Some('"')),
        TokenKind::String | TokenKind::EscapeString | TokenKind::DollarString(_) => match token.string_value(text) {
            Some(value) => Parsed::SingleQuotedString(value.into_owned()),
            // Its escapes are not read: no key is taken from it.
            None => Parsed::EscapedStringLiteral(String::new()),
        },
        TokenKind::OtherString => Parsed::EscapedStringLiteral(String::new()),
        TokenKind::Number => Parsed::Number(source.to_owned(), false),
        TokenKind::Parameter => Parsed::Placeholder(source.to_owned()),
        TokenKind::Punctuation(byte) => punctuation(byte),
        TokenKind::Operator => operator(source)?,
        TokenKind::UnicodeIdentifier => return None,
    })
}

fn punctuation(byte: u8) -> Parsed {
    match byte {
        b'(' => Parsed::LParen,
        b')' => Parsed::RParen,
        b'[' => Parsed::LBracket,
        b']' => Parsed::RBracket,
        b',' => Parsed::Comma,
        b';' => Parsed::SemiColon,
        b':' => Parsed::Colon,
        _ => Parsed::Period,
    }
}

fn operator(source: &str) -> Option<Parsed> {
    Some(match source {
        "=" => Parsed::Eq,
        "<>" | "!=" => Parsed::Neq,
        "<" => Parsed::Lt,
        ">" => Parsed::Gt,
        "<=" => Parsed::LtEq,
        ">=" => Parsed::GtEq,
        "+" => Parsed::Plus,
        "-" => Parsed::Minus,
        "*" => Parsed::Mul,
        "/" => Parsed::Div,
        "%" => Parsed::Mod,
        "||" => Parsed::StringConcat,
        "::" => Parsed::DoubleColon,
        ":=" => Parsed::Assignment,
        "=>" => Parsed::RArrow,
        "^" => Parsed::Caret,
        "&" => Parsed::Ampersand,
        "|" => Parsed::Pipe,
        "#" => Parsed::Sharp,
        "~" => Parsed::Tilde,
        "~*" => Parsed::TildeAsterisk,
        "!~" => Parsed::ExclamationMarkTilde,
        "!~*" => Parsed::ExclamationMarkTildeAsterisk,
        "~~" => Parsed::DoubleTilde,
        "~~*" => Parsed::DoubleTildeAsterisk,
        "!~~" => Parsed::ExclamationMarkDoubleTilde,
        "!~~*" => Parsed::ExclamationMarkDoubleTildeAsterisk,
        "<<" => Parsed::ShiftLeft,
        ">>" => Parsed::ShiftRight,
        "&&" => Parsed::Overlap,
        "@" => Parsed::AtSign,
        "->" => Parsed::Arrow,
        "->>" => Parsed::LongArrow,
        "#>" => Parsed::HashArrow,
        "#>>" => Parsed::HashLongArrow,
        "@>" => Parsed::AtArrow,
        "<@" => Parsed::ArrowAt,
        "#-" => Parsed::HashMinus,
        "@?" => Parsed::AtQuestion,
        "@@" => Parsed::AtAt,
        "?" => Parsed::Question,
        "?&" => Parsed::QuestionAnd,
        "?|" => Parsed::QuestionPipe,
        _ => return None,
    })
}
