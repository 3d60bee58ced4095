//! COPY FROM STDIN: pieces of at most 1 MiB, kept by the voters' machines outside the order, so that memory stays bounded.
//!
//! A few pieces are on their way to the machines' disks while the ones before them run; the application waits when there are
//! more.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use sql::operation::{Exchange, TransactionId};
use tokio::task::JoinHandle;

use super::routing::{INLINE_EXCHANGE_BYTES_MAX, Kind};
use super::{End, Session};
use crate::client::Failure;
use crate::error::{ApplicationError, NOT_SUPPORTED};
use crate::wire::{Frontend, scan};

/// The largest piece of COPY data, in bytes.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// Pieces whose receipts are waited for, at most.
const UNDERWAY_MAX: usize = 4;

/// A piece that is on its way to the machines' disks: what stands for it, once it is there.
struct Underway(JoinHandle<Result<Exchange, Failure>>);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.abort();
    }
}

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
        let (mut gathered, mut underway) = (BytesMut::new(), VecDeque::new());
        loop {
            let failure = match self.next_copy_message().await? {
                Next::Data(data) => {
                    gathered.extend_from_slice(&data);
                    while gathered.len() >= PIECE_BYTES_MAX {
                        let piece = gathered.split_to(PIECE_BYTES_MAX).freeze();
                        if let Some(error) = self.send_piece(piece, &mut underway).await {
                            return Ok(error);
                        }
                    }
                    continue;
                }
                Next::Done => None,
                Next::Failed(reason) => Some((reason, None)),
                Next::Violated(error) => Some((error.message.clone().into_owned(), Some(error))),
            };
            if failure.is_none()
                && let Some(error) = self.send_rest(gathered.split().freeze(), &mut underway).await
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

    /// Starts to store a piece, and runs earlier ones if too many are on their way. `Some` when it failed.
    async fn send_piece(
        &mut self,
        data: Bytes,
        underway: &mut VecDeque<Underway>,
    ) -> Option<Result<Bytes, ApplicationError>> {
        let Some(transaction) = self.open_transaction() else {
            return Some(Err(Failure::transaction_lost().into_error()));
        };
        let client = std::sync::Arc::clone(&self.shared.client);
        let body = Exchange::CopyData { data }.encode();
        let storing = tokio::spawn(async move { client.store(transaction, body).await });
        underway.push_back(Underway(storing));
        while underway.len() > UNDERWAY_MAX {
            let oldest = underway.pop_front()?;
            if let Some(error) = self.run_stored(oldest).await {
                return Some(error);
            }
        }
        None
    }

    /// Sends the last piece, and runs all that are on their way. `Some` when it failed.
    async fn send_rest(
        &mut self,
        data: Bytes,
        underway: &mut VecDeque<Underway>,
    ) -> Option<Result<Bytes, ApplicationError>> {
        let inline = data.len() < INLINE_EXCHANGE_BYTES_MAX;
        if !inline && let Some(error) = self.send_piece(data.clone(), underway).await {
            return Some(error);
        }
        while let Some(oldest) = underway.pop_front() {
            if let Some(error) = self.run_stored(oldest).await {
                return Some(error);
            }
        }
        match inline && !data.is_empty() {
            true => self.run_piece(&Exchange::CopyData { data }).await,
            false => None,
        }
    }

    /// Runs a piece when it is stored.
    async fn run_stored(&mut self, mut underway: Underway) -> Option<Result<Bytes, ApplicationError>> {
        let stored = tokio::select! {
            stored = &mut underway.0 => stored,
            () = self.cancel.wait() => Ok(Err(Failure::Cancelled)),
        };
        match stored.unwrap_or(Err(Failure::NoProgress)) {
            Ok(stored) => self.run_piece(&stored).await,
            Err(failure) => {
                // The backends are in the middle of the COPY: no savepoint can be gone back to.
                self.doom();
                Some(Err(failure.into_error()))
            }
        }
    }

    /// Runs a piece. `Some` when it failed.
    async fn run_piece(&mut self, piece: &Exchange) -> Option<Result<Bytes, ApplicationError>> {
        if self.cancel.is_requested() {
            self.doom();
            return Some(Err(ApplicationError::cancelled()));
        }
        match self.execute(piece, Kind::Stateful).await {
            Ok(result) if scan(&result.messages).failed => Some(Ok(result.messages)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn open_transaction(&mut self) -> Option<TransactionId> {
        self.begun().map(|begun| begun.id)
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
