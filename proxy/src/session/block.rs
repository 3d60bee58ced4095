//! Statements that mean something only within a transaction block, answered outside one as PostgreSQL answers.

use sql::analysis::{ExchangeAnalysis, StatementAnalysis};
use sql::operation::{Exchange, Step};
use sql::statement::{Cursor, StatementClass};

use crate::error::ApplicationError;

/// The fate of an exchange outside a transaction block.
pub(super) enum Outside {
    /// The exchange runs.
    Runs,
    /// The exchange runs in a block of its own: the statements of one text are one block, CLOSE ALL finds nothing in a new one, and a
    /// cursor WITH HOLD is kept at the end of one.
    RunsInBlock,
    /// The exchange fails with this error.
    Fails(ApplicationError),
}

/// Decides whether an exchange outside a transaction block runs, and how.
pub(super) fn outside_block(exchange: &Exchange, analysis: &ExchangeAnalysis) -> Outside {
    let several = match exchange {
        Exchange::Simple { .. } => analysis.texts.iter().map(|text| text.statements.len()).sum::<usize>() > 1,
        Exchange::Extended { steps, .. } if steps.iter().any(|step| matches!(step, Step::Execute { .. })) => false,
        // Only parsed, bound or described; or a part of a COPY.
        _ => return Outside::Runs,
    };
    let statements = analysis.texts.iter().flat_map(|text| {
        let statements = text.statements.iter();
        statements.map(|statement| (statement, text.text().get(statement.range.clone()).unwrap_or_default()))
    });
    for (statement, text) in statements {
        match needs_block(statement, text) {
            Outside::Runs => {}
            _ if several => return Outside::RunsInBlock,
            needs => return needs,
        }
    }
    Outside::Runs
}

fn needs_block(statement: &StatementAnalysis, text: &str) -> Outside {
    let fails = |sqlstate, message: String| Outside::Fails(ApplicationError::new(sqlstate, message));
    let only_in_block = |what| fails("25P01", format!("{what} can only be used in transaction blocks"));
    match &statement.class {
        StatementClass::Cursor(Cursor::Declare { holding: Some(_), .. }) => Outside::RunsInBlock,
        StatementClass::Cursor(Cursor::Declare { .. }) => only_in_block("DECLARE CURSOR"),
        StatementClass::Cursor(Cursor::Fetch { name, .. } | Cursor::Move { name, .. } | Cursor::Close(Some(name))) => {
            fails("34000", format!("cursor \"{name}\" does not exist"))
        }
        StatementClass::Cursor(Cursor::Close(None)) => Outside::RunsInBlock,
        StatementClass::Write if is_lock(text) => only_in_block("LOCK TABLE"),
        _ => Outside::Runs,
    }
}

/// Whether a statement, which begins with its first word, is a LOCK.
fn is_lock(text: &str) -> bool {
    let end = text.find(|character: char| !character.is_ascii_alphabetic());
    let first = text.get(..end.unwrap_or(text.len())).unwrap_or_default();
    first.eq_ignore_ascii_case("lock")
}
