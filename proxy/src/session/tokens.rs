//! Just enough of SQL's lexical rules to find parameters, commas and parentheses outside of quotes and comments.

/// A piece of SQL text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'text> {
    /// `$1` and so on.
    Parameter(usize),
    /// A character that stands for itself.
    Character(char),
    /// A quoted piece, a comment, or a word: never looked into.
    Other(&'text str),
}

/// Splits a text into tokens; their texts add up to it. Strings are read with `standard_conforming_strings` on.
pub(super) fn tokens(text: &str) -> impl Iterator<Item = (Token<'_>, &str)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let length = token_length(rest, first);
        let (piece, after) = rest
            .split_at_checked(length.max(first.len_utf8()))
            .unwrap_or((rest, ""));
        rest = after;
        let token = match first {
            '$' => match piece.get(1..).and_then(|digits| digits.parse().ok()) {
                Some(number) => Token::Parameter(number),
                None => Token::Other(piece),
            },
            _ if piece.len() > first.len_utf8() || first.is_alphanumeric() || first == '_' => Token::Other(piece),
            _ => Token::Character(first),
        };
        Some((token, piece))
    })
}

fn token_length(rest: &str, first: char) -> usize {
    let after = |count: usize| rest.get(count..).unwrap_or_default();
    match first {
        '\'' => quoted_length(rest, '\'', false),
        '"' => quoted_length(rest, '"', false),
        'e' | 'E' if after(1).starts_with('\'') => 1 + quoted_length(after(1), '\'', true),
        '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
        '/' if rest.starts_with("/*") => comment_length(rest),
        '$' if after(1).starts_with(|c: char| c.is_ascii_digit()) => {
            1 + after(1).find(|c: char| !c.is_ascii_digit()).unwrap_or(after(1).len())
        }
        '$' => dollar_quoted_length(rest),
        _ if first.is_alphanumeric() || first == '_' || !first.is_ascii() => {
            let inside = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
            rest.find(|c: char| !inside(c)).unwrap_or(rest.len())
        }
        _ => first.len_utf8(),
    }
}

fn quoted_length(rest: &str, quote: char, escapes: bool) -> usize {
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if escapes && character == '\\' {
            characters.next();
        } else if character == quote {
            match characters.peek() {
                Some((_, next)) if *next == quote => {
                    characters.next();
                }
                _ => return at + quote.len_utf8(),
            }
        }
    }
    rest.len()
}

fn comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(remaining) = rest.get(at..).filter(|remaining| !remaining.is_empty()) {
        if remaining.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if remaining.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += remaining.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn dollar_quoted_length(rest: &str) -> usize {
    let Some(end) = rest.get(1..).and_then(|tag| tag.find('$')) else {
        return 1;
    };
    let delimiter = rest.get(..end + 2).unwrap_or_default();
    let tag = delimiter.trim_matches('$');
    if !tag.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return 1;
    }
    let body = rest.get(delimiter.len()..).unwrap_or_default();
    body.find(delimiter).map_or(rest.len(), |at| at + 2 * delimiter.len())
}

/// The content of the first parentheses at the start of `text` (after white space and comments), split at its
/// commas; and what follows them. `None` when the text does not start with parentheses.
pub(super) fn parenthesised_list(text: &str) -> Option<(Vec<String>, &str)> {
    let mut depth = 0_usize;
    let mut items = Vec::new();
    let mut item = String::new();
    let mut consumed = 0;
    for (token, piece) in tokens(text) {
        consumed += piece.len();
        match token {
            Token::Character('(') => {
                depth += 1;
                if depth > 1 {
                    item.push('(');
                }
            }
            Token::Character(')') if depth == 1 => {
                if !item.trim().is_empty() || !items.is_empty() {
                    items.push(item.trim().to_owned());
                }
                return Some((items, text.get(consumed..).unwrap_or_default()));
            }
            Token::Character(',') if depth == 1 => items.push(std::mem::take(&mut item).trim().to_owned()),
            Token::Character(')') => {
                depth = depth.checked_sub(1)?;
                item.push(')');
            }
            Token::Character('[') if depth > 0 => {
                depth += 1;
                item.push('[');
            }
            Token::Character(']') if depth > 1 => {
                depth -= 1;
                item.push(']');
            }
            _ if depth > 0 => item.push_str(piece),
            Token::Character(character) if character.is_whitespace() => {}
            Token::Other(piece) if piece.starts_with("--") || piece.starts_with("/*") => {}
            _ => return None,
        }
    }
    None
}

/// The text with each parameter replaced.
pub(super) fn replace_parameters(text: &str, value: impl Fn(usize) -> Option<String>) -> String {
    let mut replaced = String::with_capacity(text.len());
    for (token, piece) in tokens(text) {
        match token {
            Token::Parameter(number) => match value(number) {
                Some(value) => replaced.push_str(&value),
                None => replaced.push_str(piece),
            },
            _ => replaced.push_str(piece),
        }
    }
    replaced
}

/// The highest parameter number in a text.
pub(super) fn parameters(text: &str) -> usize {
    tokens(text)
        .filter_map(|(token, _)| match token {
            Token::Parameter(number) => Some(number),
            _ => None,
        })
        .max()
        .unwrap_or(0)
}

/// A string literal, safe whatever the setting of backslashes.
pub(super) fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!(" E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// A quoted identifier.
pub(super) fn quote_identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_found_only_outside_of_quotes() {
        let text = r#"SELECT $1, '$2', "$3", $$ $4 $$, $x$ $5 $x$, E'\'$6', a$7, /* $8 /* $9 */ */ $10 -- $11"#;
        let replaced = replace_parameters(text, |number| Some(format!("<{number}>")));
        assert_eq!(replaced, text.replacen("$10", "<10>", 1).replacen("$1,", "<1>,", 1));
        assert_eq!(parameters(text), 10);
    }

    #[test]
    fn lists_are_split_at_their_own_commas() {
        let (items, rest) = parenthesised_list(" (1, f(2, 3), ARRAY[4,5], 'a,)') tail").unwrap();
        assert_eq!(items, ["1", "f(2, 3)", "ARRAY[4,5]", "'a,)'"]);
        assert_eq!(rest, " tail");
        assert_eq!(parenthesised_list("()").unwrap().0, Vec::<String>::new());
        assert!(parenthesised_list(" AS SELECT (1)").is_none());
        assert!(parenthesised_list("(1, 2").is_none());
    }

    #[test]
    fn literals_are_quoted() {
        assert_eq!(quote_literal("a'b"), "'a''b'");
        assert_eq!(quote_literal("a\\'"), " E'a\\\\'''");
    }

    proptest! {
        #[test]
        fn tokens_add_up_to_the_text(text in "[a-z0-9$'\"/*\\-\\\\(),; é\n]{0,60}") {
            let joined: String = tokens(&text).map(|(_, piece)| piece).collect();
            prop_assert_eq!(joined, text.clone());
            let _ = parenthesised_list(&text);
        }
    }
}
