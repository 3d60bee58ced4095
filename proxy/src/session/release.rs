//! Writing results that come in chunks to the application, as fast as it takes them.

use std::sync::Arc;

use bytes::Bytes;

use super::connection::Connection;
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

impl Session {
    /// Writes chunks to the application. False when not all came: the application has been told, and the transaction block
    /// (if any) has failed.
    pub(super) async fn release_chunks(&mut self, mut chunks: Large, pieces: &mut impl Pieces) -> Result<bool, End> {
        let client = Arc::clone(&self.shared.client);
        let cancel = Arc::clone(&self.cancel);
        let failure = loop {
            let mut channel = self.connection.lend();
            let gone = async {
                match channel.as_mut() {
                    Some(channel) => channel.gone().await,
                    None => std::future::pending().await,
                }
            };
            let chunk = tokio::select! {
                biased;
                chunk = client.next_chunk(&mut chunks, &cancel) => Some(chunk),
                () = gone => None,
            };
            self.connection.give_back(channel);
            match chunk {
                Some(Ok(Some(chunk))) => pieces.write(&mut self.connection, &chunk).await?,
                Some(Ok(None)) => return Ok(true),
                Some(Err(failure)) => break failure,
                None => return Err(End::Gone),
            }
        };
        let failure = match chunks.committed {
            true => Failure::ResultLost,
            false => failure,
        };
        self.fail_transaction();
        self.report(&failure.into_error());
        Ok(false)
    }
}
