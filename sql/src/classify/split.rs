//! Where one statement of a text ends and the next begins.

use std::ops::Range;

use crate::lexer::{Token, TokenKind};

/// The ranges (of tokens) of the statements of a text, without semicolons and without empty statements.
pub(crate) fn split(text: &str, tokens: &[Token]) -> Vec<Range<usize>> {
    let mut statements = Vec::new();
    let mut start = 0;
    let mut body = SqlBody::default();
    let mut parentheses = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        if token.is_punctuation(b'(') {
            parentheses += 1;
        } else if token.is_punctuation(b')') {
            parentheses = parentheses.saturating_sub(1);
        }
        body.read(text, token, index - start, parentheses);
        // In CREATE RULE ... DO (a; b) semicolons stand in parentheses.
        if token.is_punctuation(b';') && body.depth == 0 && parentheses == 0 {
            if index > start {
                statements.push(start..index);
            }
            start = index + 1;
            body = SqlBody::default();
        }
    }
    if start < tokens.len() {
        statements.push(start..tokens.len());
    }
    statements
}

/// `CREATE FUNCTION ... BEGIN ATOMIC ...; ... END`: semicolons in it do not end the statement.
///
/// A body that is read here must be a body for Postgres too: else COMMIT could hide in it. (The other way round is
/// harmless: Postgres then refuses the pieces.) So BEGIN ATOMIC counts outside of parentheses only, where no name can
/// stand, and CASE only where an expression begins, since it may also be the name of an output column.
#[derive(Default)]
struct SqlBody {
    creates: bool,
    is_routine: bool,
    after_begin: bool,
    /// Whether an expression may begin here.
    expects_expression: bool,
    /// Whether a name may stand here, whatever word it is.
    expects_name: bool,
    depth: usize,
}

/// Reserved words (so no names) after which an expression may begin.
const BEFORE_EXPRESSION: [&str; 17] = [
    "all", "and", "any", "distinct", "else", "from", "having", "in", "limit", "not", "offset", "on", "or", "select",
    "then", "when", "where",
];

impl SqlBody {
    fn read(&mut self, text: &str, token: &Token, position: usize, parentheses: usize) {
        let is = |word| token.is_word(text, word);
        if position == 0 {
            self.creates = is("create");
        } else if self.creates && position <= 3 && (is("function") || is("procedure")) {
            self.is_routine = true;
        }
        if !self.is_routine {
            return;
        }
        let opens_body = self.depth == 0 && parentheses == 0 && self.after_begin && is("atomic");
        let opens_case = self.depth > 0 && self.expects_expression && is("case");
        if opens_body || opens_case {
            self.depth += 1;
        } else if self.depth > 0 && is("end") && !self.expects_name {
            self.depth -= 1;
        }
        self.after_begin = is("begin");
        let is_name = self.expects_name;
        self.expects_name = token.is_punctuation(b'.') || is("as");
        self.expects_expression = match token.kind {
            TokenKind::Operator | TokenKind::Punctuation(b'(' | b'[' | b',') => true,
            TokenKind::Word => !is_name && BEFORE_EXPRESSION.iter().any(|word| is(word)),
            _ => false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer::tokenize;

    fn pieces(text: &str) -> Vec<&str> {
        let tokens = tokenize(text).expect("lexes");
        let ranges = split(text, &tokens);
        ranges
            .into_iter()
            .map(|range| &text[tokens[range.start].start..tokens[range.end - 1].end])
            .collect()
    }

    #[test]
    fn semicolons_end_statements() {
        assert_eq!(pieces(";; select 1 ;select ';' ; "), ["select 1", "select ';'"]);
        assert_eq!(pieces("select $$a;b$$ -- ;\n; b"), ["select $$a;b$$", "b"]);
        assert!(pieces(" ; -- nothing\n").is_empty());
    }

    #[test]
    fn bodies_of_routines_and_rules_are_kept_together() {
        let routine = "create function f() returns int begin atomic select case when true then 1 end; select 2; end";
        assert_eq!(pieces(&format!("{routine}; select 3")), [routine, "select 3"]);
        let rule = "create rule r as on insert to t do also (delete from a; delete from b)";
        assert_eq!(pieces(&format!("{rule}; select 3")), [rule, "select 3"]);
    }

    /// Finding A3: Postgres runs each of these pieces, COMMIT too.
    #[test]
    fn a3_begin_atomic_hides_nothing() {
        let parameter = "create function f(begin atomic) returns int language sql as 'select 1'";
        assert_eq!(
            pieces(&format!("{parameter}; commit; select 1")),
            [parameter, "commit", "select 1"]
        );
        for label in ["select t.case from t", "select 1 as case", "select 1 case"] {
            let routine = format!("create function f() returns int begin atomic {label}; end");
            assert_eq!(
                pieces(&format!("{routine}; commit")),
                [routine.as_str(), "commit"],
                "{label}"
            );
        }
        // Once in a body, a second BEGIN ATOMIC is no more than names.
        let routine = "create function f() returns int begin atomic select begin atomic; end";
        assert_eq!(pieces(&format!("{routine}; commit")), [routine, "commit"]);
    }

    #[test]
    fn begin_alone_opens_no_body() {
        assert_eq!(pieces("begin; select 1; end"), ["begin", "select 1", "end"]);
    }
}
