//! FETCH, MOVE and CLOSE of held cursors.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sql::operation::Exchange;
use sql::result::messages;
use sql::statement::{Cursor, Direction, StatementClass};

use super::formats::Conversion;
use super::keep::blocking;
use super::no_cursor;
use super::position::Taken;
use super::rows::Rows;
use crate::error::ApplicationError;
use crate::session::routing::Kind;
use crate::session::{End, Session};
use crate::wire::first_error;

/// Converted rows are handed on in pieces of this many bytes.
const PIECE_BYTES: usize = 64 << 10;

/// How rows are given.
#[derive(Clone, Copy, Debug)]
pub(in crate::session) enum Wire<'formats> {
    /// By the simple protocol: with their description, as they are kept.
    Simple,
    /// By the extended protocol, in these formats: none, one for all, or one each.
    Extended(&'formats [i16]),
}

/// An answer, or the error that the application is to be told.
type Answered = Result<(), ApplicationError>;

impl Session {
    /// Answers a statement about held cursors.
    pub(in crate::session) async fn answer_held(
        &mut self,
        class: &StatementClass,
        wire: Wire<'_>,
    ) -> Result<Answered, End> {
        if self.transaction.as_ref().is_some_and(|transaction| transaction.failed) {
            return Ok(Err(ApplicationError::in_failed_transaction()));
        }
        if self.cancel.is_requested() {
            self.fail_transaction();
            return Ok(Err(ApplicationError::cancelled()));
        }
        let StatementClass::Cursor(cursor) = class else {
            return Ok(Ok(()));
        };
        let answered = match cursor {
            Cursor::Fetch { name, direction } => self.fetch_held(name, *direction, wire).await?,
            Cursor::Move { name, direction } => self.move_held(name, *direction),
            Cursor::Close(Some(name)) => match self.held.by_name.remove(name) {
                Some(_) => {
                    self.connection.out.command_complete("CLOSE CURSOR");
                    Ok(())
                }
                None => Err(no_cursor(name)),
            },
            Cursor::Close(None) => self.close_all().await,
            Cursor::Declare { .. } => Ok(()),
        };
        if answered.is_err() {
            self.fail_transaction();
        }
        Ok(answered)
    }

    /// CLOSE ALL: also of what the open transaction has on the database nodes.
    async fn close_all(&mut self) -> Answered {
        if self.is_begun() {
            let text = "CLOSE ALL".to_owned();
            let result = self
                .execute_and_gather(&Exchange::Simple { text }, Kind::Stateful)
                .await?;
            if let Some(error) = first_error(&result.messages) {
                return Err(error);
            }
        }
        self.held.clear();
        self.connection.out.command_complete("CLOSE CURSOR ALL");
        Ok(())
    }

    fn take_held(&mut self, name: &str, direction: Option<Direction>, moves: bool) -> Result<Taken, ApplicationError> {
        let cursor = self.held.by_name.get_mut(name).ok_or_else(|| no_cursor(name))?;
        cursor.take(name, direction.unwrap_or(Direction::Forward(Some(1))), moves)
    }

    fn move_held(&mut self, name: &str, direction: Option<Direction>) -> Answered {
        let taken = self.take_held(name, direction, true)?;
        self.connection.out.command_complete(&format!("MOVE {}", taken.count));
        Ok(())
    }

    async fn fetch_held(&mut self, name: &str, direction: Option<Direction>, wire: Wire<'_>) -> Result<Answered, End> {
        let Some(cursor) = self.held.by_name.get(name) else {
            return Ok(Err(no_cursor(name)));
        };
        let (rows, description) = (Arc::clone(&cursor.rows), cursor.columns.kept());
        // Before the cursor moves.
        let conversion = match wire {
            Wire::Simple => None,
            Wire::Extended(formats) => match cursor.columns.conversion(formats) {
                Ok(conversion) => conversion,
                Err(error) => return Ok(Err(error)),
            },
        };
        let taken = match self.take_held(name, direction, false) {
            Ok(taken) => taken,
            Err(error) => return Ok(Err(error)),
        };
        if let Wire::Simple = wire {
            self.connection.out.raw(&description);
        }
        let written = self.write_held(&rows, &taken, conversion.as_ref()).await?;
        if written.is_ok() {
            self.connection.out.command_complete(&format!("FETCH {}", taken.count));
        }
        Ok(written)
    }

    /// Writes rows to the application, as fast as it takes them.
    async fn write_held(
        &mut self,
        rows: &Arc<Rows>,
        taken: &Taken,
        conversion: Option<&Conversion>,
    ) -> Result<Answered, End> {
        let mut left = taken.rows.clone();
        while left.start < left.end {
            if self.cancel.is_requested() {
                return Ok(Err(ApplicationError::cancelled()));
            }
            let next = if taken.backward { left.end - 1 } else { left.start };
            let Some(index) = rows.block_of(next) else {
                return Ok(Err(ApplicationError::new("XX000", "a row of a held cursor is missing")));
            };
            let block = Arc::clone(rows);
            let (first, block) = match blocking(move || block.block(index)).await {
                Ok(read) => read,
                Err(error) => return Ok(Err(error)),
            };
            let places = places(&block);
            let end = first + places.len() as u64;
            let wanted = left.start.max(first)..left.end.min(end);
            if wanted.is_empty() {
                return Ok(Err(ApplicationError::new("XX000", "a row of a held cursor is missing")));
            }
            match taken.backward {
                true => left.end = wanted.start,
                false => left.start = wanted.end,
            }
            let of_block = |row: u64| usize::try_from(row - first).unwrap_or(usize::MAX);
            let chosen = places
                .get(of_block(wanted.start)..of_block(wanted.end))
                .unwrap_or_default();
            let written = match (taken.backward, conversion) {
                (false, None) => {
                    let start = chosen.first().map_or(0, |place| place.start);
                    let end = chosen.last().map_or(0, |place| place.end);
                    self.connection.deliver(&block.slice(start..end)).await?;
                    Ok(())
                }
                (true, _) => self.write_rows(&block, chosen.iter().rev(), conversion).await?,
                (false, _) => self.write_rows(&block, chosen.iter(), conversion).await?,
            };
            if written.is_err() {
                return Ok(written);
            }
        }
        Ok(Ok(()))
    }

    async fn write_rows<'places>(
        &mut self,
        block: &Bytes,
        places: impl Iterator<Item = &'places Range<usize>>,
        conversion: Option<&Conversion>,
    ) -> Result<Answered, End> {
        let mut piece = BytesMut::new();
        for place in places {
            let row = block.get(place.clone()).unwrap_or_default();
            match conversion {
                None => piece.extend_from_slice(row),
                Some(conversion) => {
                    if let Err(error) = conversion.row(row, &mut piece) {
                        return Ok(Err(error));
                    }
                }
            }
            if piece.len() >= PIECE_BYTES {
                self.connection.deliver(&piece.split().freeze()).await?;
            }
        }
        self.connection.deliver(&piece.freeze()).await?;
        Ok(Ok(()))
    }
}

/// Where the messages of a block are.
fn places(block: &Bytes) -> Vec<Range<usize>> {
    let mut at = 0;
    let lengths = messages(block).flatten().map(|(_, message)| message.len());
    lengths
        .map(|length| {
            let start = at;
            at += length;
            start..at
        })
        .collect()
}
