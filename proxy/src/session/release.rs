//! Writing results that come in chunks to the application, as fast as it takes them.

use std::sync::Arc;

use bytes::Bytes;

use super::connection::Connection;
use super::waiting::{Reason, sleep_until};
use super::{End, Session};
use crate::client::{Failure, Large};

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
        let client = Arc::clone(&self.shared.client);
        let cancel = Arc::clone(&self.cancel);
        let error = loop {
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
                chunk = client.next_chunk(&mut chunks, &cancel) => Next::Chunk(chunk),
                () = gone => Next::Gone,
            };
            self.connection.give_back(channel);
            match next {
                Next::Chunk(Ok(Some(chunk))) => pieces.write(&mut self.connection, &chunk).await?,
                Next::Chunk(Ok(None)) => return Ok(true),
                Next::Chunk(Err(failure)) => break failure.into_error(),
                Next::TimeOver => break Reason::StatementTimeout.error(),
                Next::Gone => return Err(End::Gone),
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
}
