//! One terminal: a user who types, waits, reads, and types again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::error::SqlState;

use crate::Error;
use crate::clock::{micros, unique_now};
use crate::deck::Deck;
use crate::ledger::{Claim, Ledger, Outcome};
use crate::options::{Protocol, RunOptions};
use crate::statement::Connection;
use crate::statistics::{Completion, Recorder};
use crate::transaction::{Ending, Failure, Input, InputSource, Stamp, Statements, TransactionKind};

/// Think times are cut at this multiple of their mean, clause 5.2.5.4.
const THINK_TIME_MULTIPLE_MAX: f64 = 10.0;
/// Pause before another attempt to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// Pause before an aborted transaction runs again, for each attempt so far.
const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// What all terminals of a run share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: RunOptions,
    pub(crate) recorder: Recorder,
    pub(crate) ledger: Option<Ledger>,
}

/// A connection with its statements.
#[derive(Debug)]
pub(crate) struct Session {
    client: Connection,
    statements: Statements,
}

impl Session {
    pub(crate) async fn open(dsn: &str, protocol: Protocol) -> Result<Self, Error> {
        let client = Connection::open(dsn, protocol).await?;
        let statements = Statements::prepare(&client).await?;
        Ok(Self { client, statements })
    }
}

/// How one attempt at a transaction ended.
#[derive(Debug)]
enum Attempt {
    Completed(Completion),
    /// Serialization failure or deadlock: it may be run again.
    Aborted(Failure),
    Failed(Failure),
    /// The failure of a COMMIT that says nothing about its outcome.
    Unknown(Failure),
}

/// One terminal.
pub(crate) struct Terminal {
    /// Counted from 0.
    pub(crate) number: u32,
    pub(crate) shared: Arc<Shared>,
    pub(crate) source: InputSource,
    /// Becomes true when the run ends.
    pub(crate) stop: watch::Receiver<bool>,
}

impl Terminal {
    /// Works until the run ends.
    ///
    /// # Errors
    /// Only if the ledger cannot be written: what the server does wrong is counted instead.
    pub(crate) async fn work(mut self, session: Session) -> Result<(), Error> {
        let mut session = Some(session);
        let mut deck = Deck::new(&mut self.source.random);
        while !*self.stop.borrow() {
            let Some(open) = self.ensure_session(session.take()).await else {
                continue;
            };
            let kind = deck.draw(&mut self.source.random);
            let input = Input::draw(kind, &mut self.source);
            let think_time = self.draw_think_time(kind);
            if self.shared.options.think {
                self.pause(kind.keying_time()).await;
                if *self.stop.borrow() {
                    break;
                }
            }
            session = self.transact(open, kind, &input).await?;
            if self.shared.options.think {
                self.pause(think_time).await;
            }
        }
        Ok(())
    }

    /// The session, or a new one if there is none; `None` if the server cannot be reached now.
    async fn ensure_session(&mut self, session: Option<Session>) -> Option<Session> {
        if let Some(session) = session.filter(|session| !session.client.is_closed()) {
            return Some(session);
        }
        let RunOptions { dsn, protocol, .. } = &self.shared.options;
        match Session::open(dsn, *protocol).await {
            Ok(session) => {
                self.shared.recorder.reconnected();
                Some(session)
            }
            Err(error) => {
                let code = match &error {
                    Error::Postgres(error) => error.code().map_or("connection", SqlState::code),
                    _ => "connection",
                };
                self.shared.recorder.error(None, code, error.to_string());
                self.pause(RECONNECT_PAUSE).await;
                None
            }
        }
    }

    /// Runs one transaction, again after aborts; gives the session back unless it is broken.
    async fn transact(
        &mut self,
        session: Session,
        kind: TransactionKind,
        input: &Input,
    ) -> Result<Option<Session>, Error> {
        let shared = Arc::clone(&self.shared);
        let recorder = &shared.recorder;
        let begun = Instant::now();
        let mut retries = 0;
        loop {
            let stamp = self.stamp();
            let attempt = self.attempt(&session, input, &stamp).await?;
            recorder.sent(session.client.take_sent());
            match attempt {
                Attempt::Completed(how) => {
                    recorder.completed(kind, how, begun.elapsed());
                    return Ok(Some(session));
                }
                Attempt::Aborted(failure) => {
                    recorder.aborted(failure.code());
                    if retries == shared.options.retries || *self.stop.borrow() {
                        recorder.gave_up(kind);
                        return Ok(Some(session));
                    }
                    retries += 1;
                    // Terminals that met in a deadlock should not meet again.
                    let spread = 1 + self.number % 8;
                    self.pause(RETRY_PAUSE * retries * spread).await;
                }
                Attempt::Failed(failure) => {
                    recorder.failed(kind, &failure);
                    return Ok(Some(session).filter(|_| keeps_session(&failure)));
                }
                Attempt::Unknown(failure) => {
                    recorder.unknown_outcome();
                    recorder.failed(kind, &failure);
                    return Ok(None);
                }
            }
        }
    }

    /// BEGIN, the body, and COMMIT or ROLLBACK.
    async fn attempt(&self, session: &Session, input: &Input, stamp: &Stamp) -> Result<Attempt, Error> {
        let Session { client, statements } = session;
        let begin = self.shared.options.isolation.begin_statement();
        if let Err(error) = client.batch_execute(begin).await {
            return Ok(failed_or_aborted(error.into()));
        }
        match statements.perform(client, input, stamp).await {
            Ok(Ending::Commit(claim)) => self.commit(client, claim).await,
            Ok(Ending::Rollback(claim)) => {
                let ended = client.batch_execute("ROLLBACK").await;
                self.note(Outcome::Refused, claim)?;
                Ok(match ended {
                    Ok(()) => Attempt::Completed(Completion::RolledBack),
                    Err(error) => failed_or_aborted(error.into()),
                })
            }
            Err(failure) => {
                // If even this is refused, the failure of the statement is the one to tell of.
                let _ = client.batch_execute("ROLLBACK").await;
                Ok(failed_or_aborted(failure))
            }
        }
    }

    async fn commit(&self, client: &Connection, claim: Option<Claim>) -> Result<Attempt, Error> {
        let Err(error) = client.batch_execute("COMMIT").await else {
            self.note(Outcome::Acknowledged, claim)?;
            return Ok(Attempt::Completed(Completion::Committed));
        };
        let failure = Failure::from(error);
        if !says_rolled_back(failure.code()) {
            self.note(Outcome::Unknown, claim)?;
            return Ok(Attempt::Unknown(failure));
        }
        self.note(Outcome::Refused, claim)?;
        Ok(failed_or_aborted(failure))
    }

    fn note(&self, outcome: Outcome, claim: Option<Claim>) -> Result<(), Error> {
        match (&self.shared.ledger, claim) {
            (Some(ledger), Some(claim)) => ledger.note(outcome, claim),
            _ => Ok(()),
        }
    }

    fn stamp(&self) -> Stamp {
        let now = unique_now();
        // At most 24 characters: 13 of the time, and the terminal's number.
        let marker = || format!("tpcc-{:x}-{:x}", micros(now), self.number);
        Stamp {
            now,
            marker: self.shared.ledger.is_some().then(marker),
        }
    }

    /// A think time, drawn also when it is not kept: the inputs stay the same.
    fn draw_think_time(&mut self, kind: TransactionKind) -> Duration {
        let multiple = -self.source.random.fraction().ln();
        kind.mean_think_time()
            .mul_f64(multiple.clamp(0.0, THINK_TIME_MULTIPLE_MAX))
    }

    /// Waits so long, or until the run ends.
    async fn pause(&mut self, duration: Duration) {
        // An error means that the run is gone: it has ended, too.
        let _ = tokio::time::timeout(duration, self.stop.wait_for(|stop| *stop)).await;
    }
}

/// Whether an error of COMMIT with this SQLSTATE says for certain that nothing was committed: a transaction
/// rollback (class 40, but not "statement completion unknown"), or a deferred constraint.
fn says_rolled_back(code: &str) -> bool {
    is_retryable(code) || code.starts_with("23")
}

/// Whether a transaction is run again after this SQLSTATE.
fn is_retryable(code: &str) -> bool {
    code.starts_with("40") && code != "40003"
}

fn failed_or_aborted(failure: Failure) -> Attempt {
    if is_retryable(failure.code()) {
        Attempt::Aborted(failure)
    } else {
        Attempt::Failed(failure)
    }
}

/// Whether the connection is of use after this failure. Classes 08 and 57 speak of the connection or the server.
fn keeps_session(failure: &Failure) -> bool {
    let code = failure.code();
    code != "connection" && !code.starts_with("08") && !code.starts_with("57")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rollbacks_are_run_again() {
        assert!(is_retryable("40001") && is_retryable("40P01"));
        assert!(!is_retryable("40003") && !is_retryable("23505") && !is_retryable("connection"));
    }

    #[test]
    fn an_error_that_may_follow_a_commit_leaves_the_outcome_unknown() {
        for code in ["connection", "57P01", "08006", "BF005", "40003", "58030"] {
            assert!(!says_rolled_back(code), "{code}");
        }
        assert!(says_rolled_back("40001") && says_rolled_back("23503"));
    }
}
