//! How an open transaction ends: committed on f+1 voters' words, or aborted until the voters have acknowledged it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sql::footprint::Footprint;
use sql::operation::{Operation, TransactionId, Work, says_nothing_written};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use super::Session;
use super::context::Context;
use super::transaction::Begun;
use crate::client::{Failure, Rows};
use crate::error::ApplicationError;
use crate::measures::Stage;
use crate::wire::{command_tag, first_error, leave_out};

/// The pause before another request for an Abort.
const ABORT_PAUSE: Duration = Duration::from_secs(1);
/// Refused by voters: the words of a COMMIT do not suffice.
const WORDS_REFUSED: &str = "BF007";

impl Session {
    /// Commits a transaction on f+1 voters' words; what COMMIT answers beside its tag. If it may have changed the catalog
    /// (`changes_catalog`), the catalog is read again, unless those voters say that it has written nothing.
    ///
    /// # Errors
    /// [`Failure::OutcomeUnknown`] when it may be committed. After any other, it has no effect.
    pub(super) async fn finish(&mut self, begun: Begun, changes_catalog: bool) -> Result<Bytes, Failure> {
        let mut nothing_written = false;
        let finished = self.finish_on_words(begun, &mut nothing_written).await;
        let committed = matches!(finished, Ok(_) | Err(Failure::OutcomeUnknown));
        if changes_catalog && committed && !nothing_written {
            self.catalog.changed(&self.shared.client);
        }
        finished
    }

    async fn finish_on_words(&mut self, mut begun: Begun, nothing_written: &mut bool) -> Result<Bytes, Failure> {
        if !begun.wrote && !begun.at_commit {
            // Each answer was f+1 voters' under its locks or on its snapshot. Nothing is left to commit.
            self.abort_later(begun);
            return Ok(Bytes::new());
        }
        let client = Arc::clone(&self.shared.client);
        let mut words = Vec::new();
        if !begun.all_short || begun.at_commit {
            let start = Instant::now();
            let (id, began) = (begun.id, begun.began);
            let given = client.words(&mut begun.live, id, began, Some(&self.cancel)).await;
            self.shared.metrics.stage(Stage::Direct, start.elapsed());
            match given {
                Ok(given) => {
                    // These words are f+1 voters' and equal, so one of them is a correct voter's.
                    *nothing_written = given.iter().all(|word| says_nothing_written(&word.answers));
                    words = given;
                }
                Err(failure) => {
                    self.abort_later(begun);
                    return Err(match failure {
                        Failure::Unavailable | Failure::Undecided => Failure::transaction_lost(),
                        failure => failure,
                    });
                }
            }
        }
        if !begun.wrote {
            self.abort_later(begun);
            return Ok(Bytes::new());
        }
        let ending = begun.into_ending();
        let operation = Operation {
            context: ending.context.decoded.clone(),
            footprint: ending.held.clone(),
            nonce: rand::random(),
            work: Work::Commit {
                transaction: ending.id,
                writes: ending.writes,
                words,
            },
        };
        let voted = self.order(&operation, Rows::Unordered, false).await;
        let failure = match voted {
            Ok(voted) => {
                self.committed_at = Some(voted.order.0);
                // An error or the tag is among the last messages.
                let last = committed(&voted.result.messages)?;
                return match client.gather(voted.result).await {
                    Ok(result) => Ok(leave_out(&result.messages, b"C")),
                    Err(failure) => {
                        tracing::warn!(?failure, "notices of deferred triggers are lost");
                        Ok(last)
                    }
                };
            }
            Err(failure) => failure,
        };
        // After a Commit, an Abort does nothing. Instead of one, it frees the locks.
        self.abort_ending_later(ending.id, &ending.context, ending.held, ending.room);
        Err(match failure {
            Failure::Refused(error) if error.sqlstate == "25P01" => Failure::Refused(
                ApplicationError::new("40001", "the transaction was aborted by the cluster")
                    .detail("It was open for longer than the time limit of transactions.")
                    .hint("Run the transaction again."),
            ),
            Failure::Refused(error) if error.sqlstate == WORDS_REFUSED => Failure::Refused(
                ApplicationError::new("40001", "the transaction was not certified")
                    .detail(error.message)
                    .hint("Run the transaction again."),
            ),
            failure @ (Failure::Refused(_) | Failure::TooLarge) => failure,
            _ => Failure::OutcomeUnknown,
        })
    }

    pub(super) fn begun(&mut self) -> Option<&mut Begun> {
        self.transaction.as_mut()?.begun.as_mut()
    }

    /// Whether a transaction is open on the voters.
    pub(super) fn is_begun(&self) -> bool {
        self.transaction
            .as_ref()
            .is_some_and(|transaction| transaction.begun.is_some())
    }

    /// The transaction is lost as a whole: the voters are told, and only ROLLBACK is left to the application.
    pub(super) fn doom(&mut self) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        transaction.failed = true;
        transaction.doomed = true;
        if let Some(begun) = transaction.begun.take() {
            self.abort_later(begun);
        }
    }

    /// Has a transaction aborted; need not be waited for.
    pub(super) fn abort_later(&self, begun: Begun) -> JoinHandle<()> {
        let ending = begun.into_ending();
        self.abort_ending_later(ending.id, &ending.context, ending.held, ending.room)
    }

    /// Asks for an Abort until it is acknowledged: until then the transaction may hold its locks. The session's room for
    /// further transactions shrinks meanwhile. Each request has a time limit: one that is outstanding for ever would use up the
    /// window of request numbers.
    fn abort_ending_later(
        &self,
        transaction: TransactionId,
        context: &Context,
        footprint: Footprint,
        room: OwnedSemaphorePermit,
    ) -> JoinHandle<()> {
        let operation = Operation {
            context: context.decoded.clone(),
            footprint,
            nonce: rand::random(),
            work: Work::Abort { transaction },
        };
        let client = Arc::clone(&self.shared.client);
        let attempt = self.shared.config.statement_timeout;
        tokio::spawn(async move {
            let _room = room;
            loop {
                let outcome = client
                    .order_within(&operation, Rows::Unordered, None, None, attempt)
                    .await;
                match outcome {
                    Ok(_) | Err(Failure::Refused(_)) => return,
                    Err(_) if client.is_cut_off() => return,
                    Err(failure) => tracing::debug!(?failure, "an abort is not acknowledged yet"),
                }
                tokio::time::sleep(ABORT_PAUSE).await;
            }
        })
    }
}

/// What a COMMIT says that was answered: an error, or the messages beside its tag.
fn committed(messages: &Bytes) -> Result<Bytes, Failure> {
    if let Some(error) = first_error(messages) {
        return Err(Failure::Refused(error));
    }
    if command_tag(messages).as_deref() == Some("ROLLBACK") {
        return Err(Failure::transaction_lost());
    }
    // Notices of deferred triggers; the tag is the proxy's own.
    Ok(leave_out(messages, b"C"))
}
