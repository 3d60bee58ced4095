//! The analysis of a text: its statements, each by its keywords, its tokens and its syntax tree.

use std::sync::Arc;

use super::changed::changed;
use super::ddl;
use super::derive::{Derived, derive, derive_copy};
use super::template::Template;
use super::temporary;
use super::{PARSED_BYTES_MAX, STATEMENTS_MAX, StatementAnalysis, TEXT_BYTES_MAX, TextAnalysis};
use crate::classify::{Plan, Sketch, classify, cursor, split};
use crate::determinism::{self, Findings, Purpose, Splice};
use crate::footprint::Mode;
use crate::lexer::{LexicalError, Token, tokenize};
use crate::names::{Names, TemporaryWork};
use crate::refusal::{PROGRAM_LIMIT_EXCEEDED, Refusal, SYNTAX_ERROR};
use crate::schema::{CATALOG_QUERY, Schema};
use crate::statement::{Cursor, Setting, StatementClass, TransactionControl};
use crate::words::Words;

pub(super) fn analyse_text(schema: &Schema, names: &Names, text: &str) -> TextAnalysis {
    let mut names = names.clone();
    if text.len() > TEXT_BYTES_MAX {
        return refused_text(text, too_large());
    }
    if text == CATALOG_QUERY {
        return catalog_query();
    }
    let tokens = match tokenize(text) {
        Ok(tokens) => tokens,
        Err(error) => return refused_text(text, unreadable(text, error)),
    };
    let ranges = split(text, &tokens);
    if ranges.len() > STATEMENTS_MAX {
        return refused_text(text, too_large());
    }
    let mut statements = Vec::with_capacity(ranges.len().max(1));
    let mut splices = Vec::new();
    for range in ranges {
        let tokens = tokens.get(range).unwrap_or_default();
        let statement = analyse_statement(schema, &names, text, tokens, &mut splices);
        names.after(&statement.temporary);
        statements.push(statement);
    }
    if statements.is_empty() {
        statements.push(empty(text));
    }
    let executable = (!splices.is_empty()).then(|| determinism::apply(text, 0..text.len(), &splices));
    TextAnalysis {
        statements,
        text: Arc::from(text),
        executable,
    }
}

/// Our own query of the catalog is written with shapes that no application's statement is allowed; it only reads.
fn catalog_query() -> TextAnalysis {
    let statement = StatementAnalysis {
        class: StatementClass::Read,
        template: Template::everything(Mode::Shared),
        short: false,
        ..empty(CATALOG_QUERY)
    };
    TextAnalysis {
        statements: vec![statement],
        text: Arc::from(CATALOG_QUERY),
        executable: None,
    }
}

fn empty(text: &str) -> StatementAnalysis {
    StatementAnalysis {
        range: 0..text.len(),
        class: StatementClass::Empty,
        executable: text.to_owned(),
        needs_clock: false,
        needs_transaction: false,
        orders_rows: false,
        short: true,
        plain_read: false,
        foreign_code: false,
        temporary: TemporaryWork::default(),
        numbers_objects: false,
        notifies: false,
        of_session: false,
        template: Template::default(),
    }
}

fn refused_text(text: &str, refusal: Refusal) -> TextAnalysis {
    let kept = if text.len() > TEXT_BYTES_MAX { "" } else { text };
    let statement = StatementAnalysis {
        class: StatementClass::Refused(refusal),
        ..empty(kept)
    };
    TextAnalysis {
        statements: vec![statement],
        text: Arc::from(kept),
        executable: None,
    }
}

fn too_large() -> Refusal {
    Refusal::new(
        PROGRAM_LIMIT_EXCEEDED,
        0,
        "the text of the query is too large",
        "Send it in several queries, or the data with COPY.",
    )
}

fn unreadable(text: &str, error: LexicalError) -> Refusal {
    let near: String = text.get(error.at..).unwrap_or_default().chars().take(40).collect();
    let message = format!("{} at or near \"{near}\"", error.message);
    Refusal::new(SYNTAX_ERROR, 0, message, "Close what was opened.")
}

fn analyse_statement(
    schema: &Schema,
    names: &Names,
    text: &str,
    tokens: &[Token],
    splices: &mut Vec<Splice>,
) -> StatementAnalysis {
    let mut rewritten = temporary::rewrite(schema, names, text, tokens);
    let of_session = rewritten.is_some();
    let kept = rewritten
        .as_mut()
        .map(|rewritten| std::mem::take(&mut rewritten.tokens));
    let ordinary = kept.as_deref().unwrap_or(tokens);
    let words = Words::new(text, ordinary);
    let range = match (tokens.first(), tokens.last()) {
        (Some(first), Some(last)) => first.start..last.end,
        _ => 0..0,
    };
    let sketch = classify(words);
    let mut findings = determinism::inspect(text, ordinary, purpose(&sketch, words));
    let is_parsed = range.len() <= PARSED_BYTES_MAX;
    let mut derived = resolve(schema, names, sketch, words, &findings, is_parsed);
    findings.splices = determinism::merge(findings.splices, std::mem::take(&mut derived.orders));
    let mut work = TemporaryWork::default();
    if let Some(rewritten) = rewritten {
        findings.splices = determinism::merge(findings.splices, rewritten.splices);
        derived.refusal = rewritten.refusal.or(derived.refusal);
        work = rewritten.work;
        if work.makes() && derived.class == StatementClass::Write {
            derived.class = StatementClass::Ddl;
        }
    }
    work.renaming = derived.class.renaming();
    work.discards = derived.class == StatementClass::Setting(Setting::DiscardTemporary);
    if matches!(
        derived.class,
        StatementClass::Cursor(Cursor::Declare { holding: Some(_), .. })
    ) {
        let splice = cursor::without_hold(words).into_iter().collect();
        findings.splices = determinism::merge(findings.splices, splice);
    }
    let executable = determinism::apply(text, range.clone(), &findings.splices);
    let class = match derived.refusal.or(findings.refusal) {
        Some(refusal) if !is_beyond_refusal(&derived.class) => StatementClass::Refused(refusal),
        _ => derived.class,
    };
    splices.extend(findings.splices);
    work.changed = changed(words, &class);
    let numbers_objects = numbers_objects(&class, words);
    let class_notifies = class == StatementClass::Notify;
    let orders_rows = words.contains_pair("order", "by") || matches!(class, StatementClass::Cursor(_));
    StatementAnalysis {
        range,
        class,
        executable,
        needs_clock: derived.needs_clock || findings.needs_clock,
        needs_transaction: derived.needs_transaction,
        orders_rows,
        short: derived.short,
        plain_read: derived.plain_read,
        foreign_code: derived.foreign_code,
        temporary: work,
        notifies: derived.notifies || class_notifies,
        numbers_objects,
        of_session,
        template: derived.template,
    }
}

/// Keywords of DDL that makes nothing with a number.
const NUMBERLESS: [&str; 6] = ["drop", "comment", "grant", "revoke", "reassign", "security"];

/// Whether the statement may make objects, as far as its text tells: it is DDL that does, or a DO, which is where scripts put DDL.
fn numbers_objects(class: &StatementClass, words: Words<'_>) -> bool {
    let keyword = words.keyword().unwrap_or_default();
    match class {
        StatementClass::Ddl => !NUMBERLESS.contains(&keyword.as_ref()),
        StatementClass::Write => keyword == "do",
        _ => false,
    }
}

/// What the statement does, as far as the rules of determinism differ.
fn purpose(sketch: &Sketch<'_>, words: Words<'_>) -> Purpose {
    let modifies = words.contains_any(&["insert", "update", "delete", "merge"]);
    match &sketch.class {
        _ if words.keyword().as_deref() == Some("do") => Purpose::Definition,
        // The rows of the query are stored.
        StatementClass::Ddl if ddl::stored_query(words).is_some() => Purpose::Write,
        StatementClass::Ddl => Purpose::Definition,
        StatementClass::Write | StatementClass::CopyFrom => Purpose::Write,
        StatementClass::Prepare { .. } if modifies => Purpose::Write,
        _ => Purpose::Read,
    }
}

/// The final class and the template.
fn resolve(
    schema: &Schema,
    names: &Names,
    sketch: Sketch<'_>,
    words: Words<'_>,
    findings: &Findings,
    is_parsed: bool,
) -> Derived {
    let class = sketch.class;
    let of = Derived::unproven;
    match sketch.plan {
        Plan::Nothing => Derived {
            short: is_short_control(&class),
            foreign_code: may_run_code(&class),
            ..of(class, Template::default(), false)
        },
        Plan::Everything(mode) => {
            let needs_clock = !matches!(class, StatementClass::Maintenance { .. } | StatementClass::Read);
            let (refusal, orders) = match class {
                StatementClass::Ddl => match ddl::stored(schema, names, words) {
                    Ok(orders) => (None, orders),
                    Err(refusal) => (Some(refusal), Vec::new()),
                },
                _ => (None, Vec::new()),
            };
            Derived {
                refusal,
                orders,
                foreign_code: match class {
                    StatementClass::Setting(Setting::DiscardTemporary) => false,
                    StatementClass::Ddl => !ddl::runs_no_code(words),
                    _ => true,
                },
                ..of(class, Template::everything(mode), needs_clock)
            }
        }
        Plan::Copy(table, mode) => derive_copy(schema, names, table, mode, class),
        // A refused statement needs no footprint.
        Plan::Query(_) if findings.refusal.is_some() => of(class, Template::everything(Mode::Exclusive), true),
        Plan::Query(_) if !is_parsed => {
            let mode = if class == StatementClass::Read {
                Mode::Shared
            } else {
                Mode::Exclusive
            };
            of(class, Template::everything(mode), true)
        }
        Plan::Query(inner) => {
            let derived = derive(schema, names, inner, statement_class(&class));
            let keeps_class = match class {
                StatementClass::Cursor(Cursor::Declare { .. }) => true,
                StatementClass::CopyTo => derived.class == StatementClass::Read,
                _ => false,
            };
            match keeps_class {
                true => Derived {
                    class,
                    short: false,
                    plain_read: false,
                    ..derived
                },
                false => derived,
            }
        }
    }
}

/// Savepoints: their time and outcome depend on nothing.
/// Whether what its tokens name is no reason to refuse a statement: the database nodes do not see it, or it is refused already. The
/// statement in PREPARE is analysed by itself.
fn is_beyond_refusal(class: &StatementClass) -> bool {
    matches!(
        class,
        StatementClass::Refused(_)
            | StatementClass::Listening(_)
            | StatementClass::Advisory(_)
            | StatementClass::Prepare { .. }
    )
}

fn is_short_control(class: &StatementClass) -> bool {
    use TransactionControl::{Release, RollbackTo, Savepoint};
    match class {
        StatementClass::Empty | StatementClass::Notify => true,
        StatementClass::TransactionControl(control) => matches!(control, Savepoint(_) | Release(_) | RollbackTo(_)),
        _ => false,
    }
}

/// Whether a statement that touches nothing by itself may run code of users: FETCH runs the query of its cursor, and what
/// PREPARE names outlives the statement.
fn may_run_code(class: &StatementClass) -> bool {
    match class {
        // COMMIT runs deferred triggers.
        StatementClass::TransactionControl(control) => matches!(control, TransactionControl::Commit { .. }),
        StatementClass::Empty
        | StatementClass::Setting(_)
        | StatementClass::Listening(_)
        | StatementClass::Advisory(_)
        | StatementClass::Notify
        | StatementClass::Cursor(Cursor::Close(_)) => false,
        _ => true,
    }
}

/// The class of a query inside of DECLARE or COPY.
fn statement_class(class: &StatementClass) -> StatementClass {
    match class {
        StatementClass::Cursor(_) | StatementClass::CopyTo => StatementClass::Read,
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_query_is_a_read_of_everything() {
        let analysis = analyse_text(&Schema::empty(), &Names::default(), CATALOG_QUERY);
        assert_eq!(analysis.statements.len(), 1);
        assert_eq!(analysis.statements[0].class, StatementClass::Read);
        assert_eq!(analysis.statements[0].executable, CATALOG_QUERY);
    }
}
