//! COMMIT of a transaction with cursors WITH HOLD: their rows are read to the end, as exchanges of the transaction that are voted and
//! listed like any other, before the Commit is ordered.

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use sql::operation::{Exchange, StatementText, Step};
use sql::result::messages;

use super::declared::Holdable;
use super::formats::Columns;
use super::position::Position;
use super::rows::{RowWriter, Rows};
use super::{HeldCursor, Session};
use crate::client::VotedResult;
use crate::error::ApplicationError;
use crate::session::routing::Kind;
use crate::session::tokens::quote_identifier;
use crate::wire::{command_tag, first_error};

/// The savepoint to which a transaction goes back when a cursor is gone. It ends with the COMMIT.
const SAVEPOINT: &str = "cloudbft_held";
/// The SQLSTATE of a cursor that does not exist.
const NO_CURSOR: &str = "34000";

/// Cursors that are to be held when the COMMIT is acknowledged.
#[derive(Debug, Default)]
pub(in crate::session) struct Kept(Vec<(String, HeldCursor)>);

impl Session {
    /// Reads the rows of all cursors of the open transaction that are to be held.
    ///
    /// # Errors
    /// When they cannot be read, or there is no room. The transaction must not commit.
    pub(in crate::session) async fn keep_cursors(&mut self) -> Result<Kept, ApplicationError> {
        let holdables = self
            .transaction
            .as_ref()
            .map(|transaction| transaction.holdables.list().to_vec());
        let mut kept = Kept::default();
        let mut bytes = self.held.bytes();
        for holdable in holdables.unwrap_or_default() {
            if let Some(cursor) = self.keep_cursor(&holdable, bytes).await? {
                bytes += cursor.rows.bytes();
                kept.0.push((holdable.name, cursor));
            }
        }
        Ok(kept)
    }

    /// The COMMIT is acknowledged.
    pub(in crate::session) fn hold(&mut self, kept: Kept) {
        self.held.by_name.extend(kept.0);
    }

    /// `None`: the cursor is gone. Code of users can close one.
    async fn keep_cursor(&mut self, holdable: &Holdable, bytes: u64) -> Result<Option<HeldCursor>, ApplicationError> {
        let name = quote_identifier(&holdable.name);
        self.run_own(&format!("SAVEPOINT {SAVEPOINT}")).await?;
        let on_row = match self.run_own(&format!("MOVE 0 IN {name}")).await {
            Ok(count) => count > 0,
            Err(error) if error.sqlstate == NO_CURSOR => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.failed = false;
                }
                self.run_own(&format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}")).await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let before = match holdable.scrolls {
            true => self.run_own(&format!("MOVE BACKWARD ALL IN {name}")).await?,
            false => holdable.taken,
        };
        let (columns, rows) = self.read_cursor(&name, holdable.binary, bytes).await?;
        let kept = rows.count();
        // MOVE BACKWARD ALL counts the rows before the present one, and all rows after the last one.
        let at_end = !on_row && before > 0 && (holdable.scrolls || kept == 0);
        let at = match holdable.scrolls {
            true => before + u64::from(on_row),
            false => before,
        };
        let position = Position {
            scrolls: holdable.scrolls,
            at_start: !on_row && !at_end,
            at_end,
            at,
            before: if holdable.scrolls { 0 } else { at },
            kept,
        };
        Ok(Some(HeldCursor {
            columns,
            rows: Arc::new(rows),
            position,
            failed: false,
        }))
    }

    /// Runs a statement about a cursor in the open transaction; the number in its tag.
    async fn run_own(&mut self, text: &str) -> Result<u64, ApplicationError> {
        let exchange = Exchange::Simple { text: text.to_owned() };
        let result = self.execute_and_gather(&exchange, Kind::Stateful).await?;
        if let Some(error) = first_error(&result.messages) {
            return Err(error);
        }
        let tag = command_tag(&result.messages);
        Ok(tag.and_then(|tag| tag.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
    }

    /// All rows of a cursor from its position on.
    async fn read_cursor(&mut self, name: &str, binary: bool, bytes: u64) -> Result<(Columns, Rows), ApplicationError> {
        let result = self.execute(&fetch_all(name, binary), Kind::Stateful).await?;
        let VotedResult { before, messages, .. } = result;
        let keeper = Keeper {
            writer: RowWriter::new(Arc::clone(&self.shared.held)),
            description: None,
            room: self.shared.config.held_bytes_max.saturating_sub(bytes),
            bytes_max: self.shared.config.held_bytes_max,
        };
        let mut keeper = Box::new(keeper);
        if let Some(mut chunks) = before {
            while let Some(chunk) = self.next_chunk(&mut chunks).await? {
                keeper = keeper.take(chunk).await?;
            }
        }
        let keeper = keeper.take(messages).await?;
        let floats = self
            .settings
            .get("extra_float_digits")
            .is_none_or(|digits| digits.parse::<i32>().is_ok_and(|digits| digits > 0));
        let description = keeper.description.clone();
        let rows = blocking(move || keeper.writer.finish()).await?;
        let columns = description.and_then(|description| Columns::of(description, floats));
        let columns =
            columns.ok_or_else(|| ApplicationError::new("XX000", "the rows of a cursor came without a description"))?;
        Ok((columns, rows))
    }
}

fn fetch_all(name: &str, binary: bool) -> Exchange {
    let statement = StatementText {
        text: format!("FETCH FORWARD ALL FROM {name}"),
        parameter_types: Vec::new(),
    };
    let portal = String::new;
    let bind = Step::Bind {
        portal: portal(),
        statement: 0,
        parameter_formats: Vec::new(),
        parameters: Vec::new(),
        result_formats: vec![i16::from(binary)],
    };
    let execute = Step::Execute {
        portal: portal(),
        max_rows: 0,
    };
    Exchange::Extended {
        statements: vec![statement],
        steps: vec![bind, Step::DescribePortal { portal: portal() }, execute],
    }
}

/// Takes the messages that answer FETCH.
#[derive(Debug)]
struct Keeper {
    writer: RowWriter,
    description: Option<Bytes>,
    /// Bytes that the session may still keep.
    room: u64,
    bytes_max: u64,
}

impl Keeper {
    async fn take(mut self: Box<Self>, chunk: Bytes) -> Result<Box<Self>, ApplicationError> {
        if let Some(error) = first_error(&chunk) {
            return Err(error);
        }
        let mut keeper = blocking(move || {
            for (tag, message) in messages(&chunk).flatten() {
                match tag {
                    b'T' => self.description = Some(Bytes::copy_from_slice(message)),
                    b'D' => self.writer.push(message)?,
                    _ => {}
                }
            }
            Ok(self)
        })
        .await?;
        if keeper.writer.bytes() > keeper.room {
            let bytes_max = keeper.bytes_max;
            keeper.description = None;
            return Err(
                ApplicationError::new("53400", "the rows of the session's cursors WITH HOLD are too many to keep")
                    .detail(format!(
                        "A session may keep {bytes_max} bytes of them (limits.held_bytes_max in the cluster file). The transaction is \
                         rolled back."
                    ))
                    .hint("Select fewer rows, CLOSE held cursors that are not needed any more, or use a cursor within a transaction."),
            );
        }
        Ok(keeper)
    }
}

/// Does something with a file where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ApplicationError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|error| match error.kind() {
        ErrorKind::QuotaExceeded | ErrorKind::StorageFull => {
            ApplicationError::new("53400", "the proxy has no room for the rows of a cursor WITH HOLD")
                .hint("CLOSE held cursors that are not needed any more, or use a cursor within a transaction.")
        }
        _ => ApplicationError::new("58030", "the proxy cannot keep the rows of a cursor WITH HOLD")
            .detail(error.to_string()),
    })
}
