//! Relations of which a statement changes the definition: until its transaction has ended, the catalog that analyses work with does not
//! say what they are.

use std::collections::BTreeSet;

use crate::lexer::TokenKind;
use crate::names::{Changed, cut};
use crate::statement::StatementClass;
use crate::words::Words;

/// Words before the name of a relation in a statement that changes the catalog: of what it makes, alters or drops, of where a trigger or
/// rule stands, of parents and partitions, and of the new name.
const BEFORE_NAMES: [&str; 13] = [
    "table",
    "view",
    "into",
    "on",
    "to",
    "inherits",
    "inherit",
    "of",
    "partition",
    "exists",
    "only",
    "references",
    "rename",
];

/// DDL that changes no relation.
const HARMLESS: [&str; 4] = ["comment", "grant", "revoke", "security"];

/// The relations that a statement changes, as far as its text tells.
pub(super) fn changed(words: Words<'_>, class: &StatementClass) -> Changed {
    let keyword = words.keyword().unwrap_or_default();
    match class {
        StatementClass::Ddl if HARMLESS.contains(&keyword.as_ref()) => Changed::default(),
        StatementClass::Ddl if changes_unnamed(words) => Changed::all(),
        StatementClass::Ddl => Changed::of(named(words)),
        // A DO with DDL in it, or with a text that it makes.
        _ if keyword == "do" && may_contain_ddl(words) => Changed::all(),
        _ => Changed::default(),
    }
}

/// CASCADE goes where the text does not say, and the name of an index does not tell whose it is.
fn changes_unnamed(words: Words<'_>) -> bool {
    words.contains_any(&["cascade", "owned"]) || words.contains_pair("drop", "index")
}

fn may_contain_ddl(words: Words<'_>) -> bool {
    const DDL: [&str; 4] = ["create", "alter", "drop", "execute"];
    words.rest().iter().any(|token| {
        let is_body = !matches!(token.kind, TokenKind::Word | TokenKind::Punctuation(_));
        let source = token.source(words.text).to_ascii_lowercase();
        is_body && DDL.iter().any(|word| source.contains(word))
    })
}

/// Names after the words that announce one, through commas and qualifiers.
fn named(words: Words<'_>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    // Whether a name comes next, and whether it may stand in parentheses.
    let (mut is_expected, mut in_parentheses) = (false, false);
    for token in words.rest() {
        match (token.kind, token.identifier(words.text)) {
            (TokenKind::Word, Some(word)) if BEFORE_NAMES.contains(&word.as_ref()) => {
                is_expected = true;
                in_parentheses = word == "inherits";
            }
            (TokenKind::Punctuation(b'.' | b','), _) => is_expected = true,
            (TokenKind::Punctuation(b'('), _) if in_parentheses => {}
            (_, Some(name)) if is_expected => {
                names.insert(cut(&name).to_owned());
                is_expected = false;
            }
            _ => is_expected = false,
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer::tokenize;

    fn names(text: &str) -> Vec<String> {
        let tokens = tokenize(text).unwrap();
        named(Words::new(text, &tokens)).into_iter().collect()
    }

    fn contains(text: &str, expected: &[&str]) {
        let found = names(text);
        for name in expected {
            assert!(found.iter().any(|found| found == name), "{name} of {text}: {found:?}");
        }
    }

    #[test]
    fn what_ddl_changes_is_named() {
        contains("CREATE TABLE IF NOT EXISTS s.a (id int)", &["a"]);
        contains("ALTER TABLE ONLY a RENAME TO \"B c\"", &["a", "B c"]);
        contains("ALTER TABLE a RENAME COLUMN x TO y", &["a"]);
        contains("DROP TABLE a, s.b", &["a", "b"]);
        contains("CREATE TRIGGER t BEFORE INSERT ON a EXECUTE FUNCTION f()", &["a"]);
        contains("CREATE TABLE c PARTITION OF a FOR VALUES IN (1)", &["c", "a"]);
        contains("CREATE TABLE c () INHERITS (a, b)", &["c", "a", "b"]);
        contains("SELECT * INTO x FROM y", &["x"]);
        assert!(!names("CREATE TABLE a AS SELECT v FROM b").contains(&"b".to_owned()));
    }
}
