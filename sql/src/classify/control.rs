//! Transaction control in every form that Postgres accepts.

use crate::operation::Isolation;
use crate::refusal::{FEATURE_NOT_SUPPORTED, Refusal};
use crate::statement::{StatementClass, TransactionControl, TransactionModes};
use crate::words::Words;

use super::Sketch;

/// BEGIN, START, COMMIT, END, ROLLBACK, ABORT, SAVEPOINT, RELEASE.
pub(super) fn classify(words: Words<'_>) -> Sketch<'_> {
    if words.contains_any(&["prepared"]) {
        return Sketch::refused(two_phase());
    }
    let control = control(words);
    // What Postgres does not read either is left to Postgres, to say so.
    control.map_or_else(
        || Sketch::everything(StatementClass::Write),
        |control| Sketch::of(StatementClass::TransactionControl(control)),
    )
}

pub(super) fn two_phase() -> Refusal {
    Refusal::new(
        FEATURE_NOT_SUPPORTED,
        40,
        "two-phase commit is not supported",
        "Use COMMIT: it is already atomic on all servers.",
    )
}

fn control(mut words: Words<'_>) -> Option<TransactionControl> {
    let keyword = words.keyword()?;
    words.skip();
    let control = match keyword.as_ref() {
        "begin" => {
            words.accept_one(&["work", "transaction"]);
            return Some(TransactionControl::Begin(modes(words)?));
        }
        "start" => {
            words.accept("transaction").then_some(())?;
            return Some(TransactionControl::Begin(modes(words)?));
        }
        "commit" | "end" => {
            words.accept_one(&["work", "transaction"]);
            let chain = chain(&mut words)?;
            TransactionControl::Commit { chain }
        }
        "rollback" | "abort" => {
            words.accept_one(&["work", "transaction"]);
            if keyword == "rollback" && words.accept("to") {
                words.accept("savepoint");
                TransactionControl::RollbackTo(words.identifier()?)
            } else {
                let chain = chain(&mut words)?;
                TransactionControl::Rollback { chain }
            }
        }
        "savepoint" => TransactionControl::Savepoint(words.identifier()?),
        "release" => {
            words.accept("savepoint");
            TransactionControl::Release(words.identifier()?)
        }
        _ => return None,
    };
    words.is_end().then_some(control)
}

fn chain(words: &mut Words<'_>) -> Option<bool> {
    if !words.accept("and") {
        return Some(false);
    }
    let no = words.accept("no");
    words.accept("chain").then_some(!no)
}

/// Transaction modes, with or without commas, to the end.
pub(super) fn modes(mut words: Words<'_>) -> Option<TransactionModes> {
    let mut modes = TransactionModes::default();
    while !words.is_end() {
        if words.accept_all(&["isolation", "level"]) {
            modes.isolation = Some(isolation(&mut words)?);
        } else if words.accept_all(&["read", "only"]) {
            modes.read_only = Some(true);
        } else if words.accept_all(&["read", "write"]) {
            modes.read_only = Some(false);
        } else if words.accept_all(&["not", "deferrable"]) {
            modes.deferrable = Some(false);
        } else if words.accept("deferrable") {
            modes.deferrable = Some(true);
        } else {
            return None;
        }
        words.accept_punctuation(b',');
    }
    Some(modes)
}

fn isolation(words: &mut Words<'_>) -> Option<Isolation> {
    if words.accept("serializable") {
        Some(Isolation::Serializable)
    } else if words.accept_all(&["repeatable", "read"]) {
        Some(Isolation::RepeatableRead)
    } else if words.accept_all(&["read", "committed"]) || words.accept_all(&["read", "uncommitted"]) {
        Some(Isolation::ReadCommitted)
    } else {
        None
    }
}
