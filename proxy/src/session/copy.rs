//! COPY FROM STDIN: pieces of at most 1 MiB, each ordered, so that memory stays bounded.

use bytes::{Buf, Bytes, BytesMut};
use sql::operation::Exchange;

use super::routing::Kind;
use super::{End, Session};
use crate::error::{ApplicationError, NOT_SUPPORTED};
use crate::wire::{Frontend, scan};

/// The largest piece of COPY data that is ordered, in bytes.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// What the application did with the COPY.
enum Next {
    Data(Bytes),
    Done,
    Failed(String),
    Violated(ApplicationError),
}

impl Session {
    /// Runs `COPY ... FROM STDIN` inside the open block: the result's messages, or the error.
    pub(super) async fn copy_from(&mut self, text: &str) -> Result<Result<Bytes, ApplicationError>, End> {
        match self
            .execute_and_gather(&Exchange::CopyStart { text: text.to_owned() }, Kind::Stateful)
            .await
        {
            Err(error) => return Ok(Err(error)),
            Ok(result) => {
                let found = scan(&result.messages);
                if found.failed {
                    return Ok(Ok(result.messages));
                }
                if !found.copy_in {
                    let message = "the database did not ask for COPY data";
                    return Ok(Err(ApplicationError::new(NOT_SUPPORTED, message)));
                }
                self.connection.deliver(&result.messages).await?;
                self.connection.flush().await?;
            }
        }
        let mut gathered = BytesMut::new();
        loop {
            let failure = match self.next_copy_message().await? {
                Next::Data(data) => {
                    gathered.extend_from_slice(&data);
                    if let Some(error) = self.send_pieces(&mut gathered, PIECE_BYTES_MAX).await {
                        return Ok(error);
                    }
                    continue;
                }
                Next::Done => None,
                Next::Failed(reason) => Some((reason, None)),
                Next::Violated(error) => Some((error.message.clone().into_owned(), Some(error))),
            };
            if failure.is_none()
                && let Some(error) = self.send_pieces(&mut gathered, 1).await
            {
                return Ok(error);
            }
            let (failure, violation) = failure.map_or((None, None), |(reason, error)| (Some(reason), error));
            let ended = self
                .execute_and_gather(&Exchange::CopyEnd { failure }, Kind::Stateful)
                .await;
            return Ok(match violation {
                Some(error) => {
                    self.fail_transaction();
                    Err(error)
                }
                None => ended.map(|result| result.messages),
            });
        }
    }

    /// Sends gathered data in pieces, as long as there are at least `least` bytes of it. `Some` when it failed.
    async fn send_pieces(&mut self, gathered: &mut BytesMut, least: usize) -> Option<Result<Bytes, ApplicationError>> {
        while gathered.len() >= least {
            let data = gathered.split_to(gathered.len().min(PIECE_BYTES_MAX)).freeze();
            if self.cancel.is_requested() {
                // The backends are in the middle of the COPY: no savepoint can be gone back to.
                self.doom();
                return Some(Err(ApplicationError::cancelled()));
            }
            match self
                .execute_and_gather(&Exchange::CopyData { data }, Kind::Stateful)
                .await
            {
                Ok(result) if scan(&result.messages).failed => return Some(Ok(result.messages)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    async fn next_copy_message(&mut self) -> Result<Next, End> {
        let limit = self.shared.config.transaction_timeout;
        loop {
            let message = match tokio::time::timeout(limit, self.connection.message()).await {
                Ok(message) => message?,
                Err(_) => {
                    let message = "terminating connection due to idle-in-transaction timeout";
                    return Err(End::Told(ApplicationError::fatal("25P03", message)));
                }
            };
            return Ok(match message {
                Frontend::CopyData(data) if data.has_remaining() => Next::Data(data),
                // As in Postgres: a driver may have sent them before it knew that COPY would begin.
                Frontend::CopyData(_) | Frontend::Flush | Frontend::Sync => continue,
                Frontend::CopyDone => Next::Done,
                Frontend::CopyFail(reason) => Next::Failed(reason),
                Frontend::Terminate => return Err(End::Gone),
                _ => {
                    let tag = self.connection.last_tag;
                    let message = format!("unexpected message type 0x{tag:02X} during COPY from stdin");
                    Next::Violated(ApplicationError::new("08P01", message))
                }
            });
        }
    }
}
