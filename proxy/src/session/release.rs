//! Writing results that come in chunks to the application, as fast as it takes them.

use std::sync::Arc;

use bytes::Bytes;

use super::connection::Connection;
use super::waiting::{Reason, sleep_until};
use super::{End, Session};
use crate::client::{Failure, Large};
use crate::error::ApplicationError;

/// What is done with the pieces of a result as they come; each consists of whole messages.
pub(super) trait Pieces {
    /// Writes a piece.
    async fn write(&mut self, connection: &mut Connection, piece: &Bytes) -> Result<(), End>;
}

/// Pieces that are written as they are.
pub(super) struct Whole;

impl Pieces for Whole {
    async fn write(&mut self, connection: &mut Connection, piece: &Bytes) -> Result<(), End> {
        Ok(connection.deliver(piece).await?)
    }
}

/// The next event while chunks are written to an application.
enum Next {
    /// A chunk, or that there are no more.
    Chunk(Result<Option<Bytes>, Failure>),
    /// `statement_timeout` counts until the whole result is on its way to the application, as in Postgres.
    TimeOver,
    Gone,
}

impl Session {
    /// Writes chunks to the application. False when not all came: the application has been told, and the transaction block
    /// (if any) has failed.
    pub(super) async fn release_chunks(&mut self, mut chunks: Large, pieces: &mut impl Pieces) -> Result<bool, End> {
        let error = loop {
            match self.next_chunk(&mut chunks).await {
                Ok(Some(chunk)) => pieces.write(&mut self.connection, &chunk).await?,
                Ok(None) => return Ok(true),
                Err(_) if self.is_gone => return Err(End::Gone),
                Err(error) => break error,
            }
        };
        let error = match chunks.committed {
            true => Failure::ResultLost.into_error(),
            false => error,
        };
        self.fail_transaction();
        self.report(&error);
        Ok(false)
    }

    /// The next chunk of a result; `None` behind the last one.
    ///
    /// # Errors
    /// When it does not come, and when the statement is given up.
    pub(super) async fn next_chunk(&mut self, chunks: &mut Large) -> Result<Option<Bytes>, ApplicationError> {
        let (client, cancel) = (Arc::clone(&self.shared.client), Arc::clone(&self.cancel));
        let mut channel = self.connection.lend();
        let gone = async {
            match channel.as_mut() {
                Some(channel) => channel.gone().await,
                None => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            biased;
            () = sleep_until(self.release_until) => Next::TimeOver,
            chunk = client.next_chunk(chunks, &cancel) => Next::Chunk(chunk),
            () = gone => Next::Gone,
        };
        self.connection.give_back(channel);
        match next {
            Next::Chunk(chunk) => chunk.map_err(Failure::into_error),
            Next::TimeOver => Err(Reason::StatementTimeout.error()),
            Next::Gone => {
                self.is_gone = true;
                Err(Reason::Gone.error())
            }
        }
    }
}
