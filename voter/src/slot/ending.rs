//! How a transaction ends: it commits exactly the list of its Commit, or has no effect.

use std::time::Instant;

use bytes::Bytes;
use ordering::message::Outcome;
use sql::footprint::Footprint;
use sql::operation::ExchangeResult;

use super::{RETRY_DELAY, Slot};
use crate::executor::{ATTEMPTS_MAX, Asker, Event, observe, outcome};
use crate::postgres::PostgresError;
use crate::postgres::backend::{Answer, Record};
use crate::postgres::capture::command_complete;
use crate::transactions::{CommitPlan, Progress};
use crate::work::{Refused, is_everything};

impl Slot {
    /// Commits, answers, and tells the owner with the catalog if it may have changed.
    pub(super) async fn commit(
        &mut self,
        asker: Asker,
        listed: &[Bytes],
        record: &Record,
        held: &Footprint,
    ) -> Result<(), PostgresError> {
        let started = Instant::now();
        self.held = held.clone();
        let outcome = self.try_commit(listed, record).await?;
        observe("commit", started);
        asker.answer(&self.shared.reporter, outcome).await;
        self.give_back();
        let analyzer = if is_everything(held) {
            Some(self.shared.reload().await?)
        } else {
            None
        };
        self.shared.tell(Event::Finished(asker.order, analyzer));
        Ok(())
    }

    async fn try_commit(&mut self, listed: &[Bytes], record: &Record) -> Result<Outcome, PostgresError> {
        for attempt in 1..=ATTEMPTS_MAX {
            let from = self.plan(listed);
            let from = match from {
                Some(from) => from,
                None => match self.start_again().await? {
                    None => 0,
                    Some(refused) => return Ok(refused),
                },
            };
            if let Some(answer) = self.commit_from(listed, from, record).await? {
                return Ok(answer);
            }
            tracing::warn!(
                attempt,
                began = self.transaction.began,
                "the server could not run a commit"
            );
            self.progress.stale = true;
            tokio::time::sleep(RETRY_DELAY).await;
        }
        Err(PostgresError::Unfit("it cannot run an ordered commit".into()))
    }

    /// The index of the first write that is still to run; `None` to start again.
    fn plan(&self, listed: &[Bytes]) -> Option<usize> {
        let unusable = self.failed_by_read || self.backend.is_none() || self.status() == b'I';
        match self.progress.commit_plan(listed) {
            CommitPlan::RunFrom(from) if !unusable => Some(from),
            CommitPlan::RunFrom(_) | CommitPlan::RunAll => None,
        }
    }

    async fn start_again(&mut self) -> Result<Option<Outcome>, PostgresError> {
        metrics::counter!("cloudbft_voter_commit_reruns_total").increment(1);
        self.progress.stale = false;
        self.become_stale().await?;
        self.progress = Progress::default();
        self.failed_by_read = false;
        if self.settings_unknown
            && let Some(borrowed) = self.backend.as_mut()
        {
            borrowed.backend.forget_settings();
        }
        self.open(None).await
    }

    /// Runs the writes from an index on, and commits; `None` when the server could not.
    async fn commit_from(
        &mut self,
        listed: &[Bytes],
        from: usize,
        record: &Record,
    ) -> Result<Option<Outcome>, PostgresError> {
        for exchange in listed.iter().skip(from) {
            let before = self.progress.writes;
            let ran = self.run_write(exchange).await?;
            if self.progress.stale {
                return Ok(None);
            }
            if self.progress.writes == before {
                // Refused, alike on every voter: nothing of the transaction happens.
                self.become_stale().await?;
                return Ok(Some(ran));
            }
        }
        if self.copying() {
            self.become_stale().await?;
            return Ok(Some(
                Refused::new("08P01", "the Commit lists a COPY without its end").into(),
            ));
        }
        let Some(borrowed) = self.backend.as_mut() else {
            return Ok(None);
        };
        Ok(outcome(borrowed.backend.commit(record).await?))
    }

    /// Rolls back, answers a client that asked for it, and tells the owner.
    pub(super) async fn abort(&mut self, order: u64, asker: Option<Asker>) -> Result<(), PostgresError> {
        if let Some(borrowed) = self.backend.as_mut()
            && borrowed.backend.status() != b'I'
        {
            let sequences = crate::work::sequences(&self.held);
            borrowed.backend.roll_back(&sequences).await?;
        }
        self.give_back();
        if let Some(asker) = asker {
            asker.answer(&self.shared.reporter, rolled_back()).await;
        }
        self.shared.tell(Event::Finished(order, None));
        Ok(())
    }
}

/// The result of an Abort.
pub(crate) fn rolled_back() -> Outcome {
    let result = ExchangeResult {
        messages: command_complete("ROLLBACK"),
        status: b'I',
    };
    outcome(Answer::Result(result)).unwrap_or(Outcome::Unavailable)
}
