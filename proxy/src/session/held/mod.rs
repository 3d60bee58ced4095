//! Cursors WITH HOLD (`docs/decisions/0055`). Within its transaction such a cursor is an ordinary one of the database nodes. At COMMIT its
//! rows are read from the voters, as part of the transaction, and FETCH, MOVE and CLOSE are answered from them for the rest of the session.

mod declared;
mod fetch;
mod formats;
mod keep;
mod position;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sql::analysis::{ExchangeAnalysis, StatementAnalysis};
use sql::operation::Exchange;
use sql::statement::{Cursor, Direction, StatementClass};

use super::Session;
use crate::client::VotedResult;
use crate::error::ApplicationError;
use formats::Columns;
use position::{Position, Taken};
use rows::Rows;

pub(super) use declared::Holdables;
pub(super) use fetch::Wire;
pub(crate) use rows::HeldRoom;

/// A cursor whose transaction is committed.
#[derive(Debug)]
pub(super) struct HeldCursor {
    columns: Columns,
    rows: Arc<Rows>,
    position: Position,
    /// A FETCH or MOVE of it has failed: as PostgreSQL's portals, it cannot be used any more.
    failed: bool,
}

/// The held cursors of a session, by name.
#[derive(Debug, Default)]
pub(super) struct HeldCursors {
    by_name: BTreeMap<String, HeldCursor>,
}

impl HeldCursors {
    /// Whether a statement concerns held cursors, so that the proxy answers it.
    pub(super) fn concerns(&self, class: &StatementClass) -> bool {
        let StatementClass::Cursor(cursor) = class else {
            return false;
        };
        match cursor {
            Cursor::Declare { .. } => false,
            Cursor::Fetch { name, direction } | Cursor::Move { name, direction } => {
                direction.is_some() && self.by_name.contains_key(name)
            }
            Cursor::Close(Some(name)) => self.by_name.contains_key(name),
            Cursor::Close(None) => !self.by_name.is_empty(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.by_name.clear();
    }

    fn bytes(&self) -> u64 {
        self.by_name.values().map(|cursor| cursor.rows.bytes()).sum()
    }

    fn columns(&self, name: &str) -> Option<&Columns> {
        self.by_name.get(name).map(|cursor| &cursor.columns)
    }

    /// The description of what a statement about a held cursor returns, in these formats; `None` if it returns no rows.
    pub(super) fn description(&self, class: &StatementClass, formats: &[i16]) -> Option<Bytes> {
        match class {
            StatementClass::Cursor(Cursor::Fetch { name, .. }) => Some(self.columns(name)?.described(formats)),
            _ => None,
        }
    }

    /// The description of a held cursor as a portal.
    pub(super) fn description_of(&self, name: &str) -> Option<Bytes> {
        Some(self.columns(name)?.described(&[]))
    }

    /// How many columns a statement about a held cursor returns.
    pub(super) fn width(&self, class: &StatementClass) -> usize {
        match class {
            StatementClass::Cursor(Cursor::Fetch { name, .. }) => self.columns(name).map_or(0, Columns::len),
            _ => 0,
        }
    }
}

impl HeldCursor {
    fn take(&mut self, name: &str, direction: Direction, moves: bool) -> Result<Taken, ApplicationError> {
        if self.failed {
            return Err(ApplicationError::new(
                "55000",
                format!("portal \"{name}\" cannot be run"),
            ));
        }
        self.position.take(direction, moves).map_err(|_| {
            self.failed = true;
            ApplicationError::new("55000", "cursor can only scan forward")
                .hint("Declare it with SCROLL option to enable backward scan.")
        })
    }
}

pub(super) fn already_exists(name: &str) -> ApplicationError {
    ApplicationError::new("42P03", format!("cursor \"{name}\" already exists"))
}

fn no_cursor(name: &str) -> ApplicationError {
    ApplicationError::new("34000", format!("cursor \"{name}\" does not exist"))
}

impl Session {
    /// Whether some of these statements may concern held cursors when they are reached.
    pub(super) fn may_hold(&self, statements: &[StatementAnalysis]) -> bool {
        let declares = |statement: &StatementAnalysis| {
            matches!(
                statement.class,
                StatementClass::Cursor(Cursor::Declare { holding: Some(_), .. })
            )
        };
        let declared = self
            .transaction
            .as_ref()
            .is_some_and(|transaction| transaction.holdables.len() > 0);
        declared || !self.held.is_empty() || statements.iter().any(declares)
    }

    /// An exchange ran: notes what it has done to cursors of the open transaction that are to be held.
    pub(super) fn note_cursors(&mut self, exchange: &Exchange, analysis: &ExchangeAnalysis, result: &VotedResult) {
        if let Some(transaction) = &mut self.transaction {
            let savepoints = transaction.savepoints.len();
            transaction.holdables.note(exchange, analysis, result, savepoints);
        }
    }

    /// Closes a held cursor by the name of its portal.
    pub(super) fn close_held(&mut self, name: &str) {
        self.held.by_name.remove(name);
    }

    /// Whether a portal's name is a held cursor's.
    pub(super) fn is_held(&self, name: &str) -> bool {
        self.held.by_name.contains_key(name)
    }

    /// Checks a statement that declares cursors against those that are held.
    pub(super) fn check_declared_cursors(&self, analysis: &ExchangeAnalysis) -> Result<(), ApplicationError> {
        let statements = analysis.texts.iter().flat_map(|text| &text.statements);
        let mut count = self.held.by_name.len();
        count += self
            .transaction
            .as_ref()
            .map_or(0, |transaction| transaction.holdables.len());
        for statement in statements {
            let StatementClass::Cursor(Cursor::Declare { name, holding }) = &statement.class else {
                continue;
            };
            if self.held.by_name.contains_key(name) {
                return Err(already_exists(name));
            }
            count += usize::from(holding.is_some());
            let most = self.shared.config.held_cursors_max;
            if holding.is_some() && count > most {
                return Err(
                    ApplicationError::new("53400", "too many cursors WITH HOLD in this session")
                        .detail(format!(
                            "A session may have {most} at once (limits.held_cursors_max in the cluster file)."
                        ))
                        .hint("CLOSE those that are not needed any more."),
                );
            }
        }
        Ok(())
    }
}
