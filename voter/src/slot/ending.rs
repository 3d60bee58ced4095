//! How a transaction ends: it commits exactly the list of its Commit, or has no effect.

use std::time::Instant;

use bytes::Bytes;
use ed25519_dalek::Signer;
use ordering::identifiers::Digest;
use sql::operation::{ExchangeResult, answers_with_effect, same_answers, says_nothing_written, word_digest};

use super::list::{ListRan, Wanted};
use super::running::{Played, Stop, Task, words_missing};
use super::{Commit, Finish, RETRY_DELAY, Slot};
use crate::ending::{Answered, Verdict};
use crate::executor::{ATTEMPTS_MAX, Event, observe, outcome};
use crate::outcome::Outcome;
use crate::postgres::PostgresError;
use crate::postgres::backend::{Answer, Record, Sequences, TemporaryEnd};
use crate::postgres::capture::command_complete;
use crate::postgres::notified::Notified;
use crate::postgres::written::Written;
use crate::reporter::Asker;
use crate::transactions::chain_over;
use crate::work::{Refused, is_everything, sequences, temporary_end};

/// What became of one attempt to commit.
enum Attempt {
    Ended(Outcome),
    /// This server could not.
    Failed,
    /// It answers otherwise than f+1 voters have said under their signatures.
    Contradicted,
}

/// What running everything deferred has left to COMMIT.
enum Settled {
    Nothing,
    /// The transaction cannot commit.
    Failed(Outcome),
}

/// Whether f+1 voters say that the list has written nothing.
fn changes_nothing(certified: Option<Digest>) -> bool {
    certified.as_ref().is_some_and(says_nothing_written)
}

impl Slot {
    /// Gives this voter's word on what has run, or the error of what would have run at COMMIT.
    pub(super) async fn word(&mut self) -> Result<Outcome, PostgresError> {
        if !self.ensure_built(Wanted::End).await? || self.status() != b'T' || self.copying() {
            return Ok(Outcome::Unavailable);
        }
        if let Settled::Failed(outcome) = self.settle(Stop::Word).await? {
            return Ok(outcome);
        }
        let answers = answers_with_effect(self.history.answers(), self.has_written());
        let (id, began) = (self.transaction.id, self.transaction.began);
        let signed = word_digest(id, began, &self.history.list(), &answers);
        let signature = self.shared.config.signing_key.sign(&signed).to_bytes();
        Ok(Outcome::Word { answers, signature })
    }

    /// Runs what is deferred, so that nothing is left that COMMIT would run.
    async fn settle(&mut self, stop: Stop<'_>) -> Result<Settled, PostgresError> {
        if self.settled.is_some() {
            return Ok(Settled::Nothing);
        }
        // What is deferred has written something, which nothing does that was READ ONLY from its start.
        let may_defer = (self.is_foreign() || self.catalog_changed) && !self.transaction.read_only;
        let sequences = sequences(&self.held);
        let end = self.temporary_end();
        let answer = match self
            .play(Task::Settle(may_defer, &sequences, end.as_ref()), stop)
            .await?
        {
            Played::Answers(mut answers) => answers.pop(),
            Played::Stopped | Played::Lost => None,
        };
        match answer {
            Some(answer) if self.status() == b'T' && answer.succeeded() => {
                self.settled = Some(answer);
                Ok(Settled::Nothing)
            }
            answer => {
                self.built = false;
                let failed = answer.and_then(outcome).unwrap_or(Outcome::Unavailable);
                Ok(Settled::Failed(failed))
            }
        }
    }

    /// Whether code of users has run in its backend.
    fn is_foreign(&self) -> bool {
        let backend = self.backend.as_ref();
        backend.is_some_and(|borrowed| borrowed.backend.is_foreign())
    }

    /// What becomes of the temporary tables that this transaction may have written; `None`: it can have written none.
    fn temporary_end(&self) -> Option<TemporaryEnd> {
        let context = &self.transaction.context;
        let schema = self.catalog.analyzer.schema();
        let has_some = self.made.has_temporary() || schema.has_temporary(context.client, context.session);
        has_some.then(|| temporary_end(context, &self.held)).flatten()
    }

    /// Whether the settled transaction may have written anything.
    fn has_written(&self) -> bool {
        if self.notifies {
            // What is notified has an effect, though it is no row.
            return true;
        }
        let backend = self.backend.as_ref().filter(|_| self.settled.is_some());
        backend.is_none_or(|borrowed| borrowed.backend.has_written())
    }

    /// Commits, answers, and tells the owner, with the new catalog if it has changed it.
    pub(super) async fn commit(&mut self, commit: Commit) -> Result<(), PostgresError> {
        let started = Instant::now();
        let asker = commit.asker;
        self.held = commit.held.clone();
        self.catalog_written = Written::Nothing;
        self.notified = Notified::default();
        let outcome = self.try_commit(&commit).await?;
        observe("commit", started);
        let notified = std::mem::take(&mut self.notified);
        let context = &self.transaction.context;
        commit.audience.tell(&self.shared.reporter, context, notified).await;
        asker.answer(&self.shared.reporter, outcome).await;
        self.close().await?;
        let written = std::mem::take(&mut self.catalog_written);
        let catalog = self.shared.catalog_after(written).await?;
        self.shared.tell(Event::Finished(asker.order, catalog));
        Ok(())
    }

    async fn try_commit(&mut self, commit: &Commit) -> Result<Outcome, PostgresError> {
        let list = chain_over(commit.listed.iter().map(Bytes::as_ref));
        let began = self.transaction.began;
        let certified = match &commit.certified {
            Ok(certified) => *certified,
            Err(refused) => return Ok(refused.clone().into()),
        };
        let mut contradicted = false;
        for attempt in 1..=ATTEMPTS_MAX {
            let may_doubt = attempt == ATTEMPTS_MAX;
            match self.commit_once(commit, &list, certified, may_doubt).await? {
                Attempt::Ended(outcome) => return Ok(outcome),
                Attempt::Failed => contradicted = false,
                Attempt::Contradicted => contradicted = true,
            }
            tracing::warn!(attempt, began, contradicted, "the server could not run a commit");
            metrics::counter!("cloudbft_voter_commit_failures_total").increment(1);
            self.close().await?;
            tokio::time::sleep(RETRY_DELAY).await;
        }
        Err(if contradicted {
            PostgresError::Contradicts(commit.asker.order)
        } else {
            PostgresError::Unfit("it cannot run an ordered commit".into())
        })
    }

    async fn commit_once(
        &mut self,
        commit: &Commit,
        list: &Digest,
        certified: Option<Digest>,
        may_doubt: bool,
    ) -> Result<Attempt, PostgresError> {
        let in_place = self.built
            && !self.lost
            && !self.tainted
            && !self.failed_by_read
            && self.status() == b'T'
            && !self.copying()
            && self.history.is(list, certified);
        if !in_place && changes_nothing(certified) {
            return self.commit_nothing(commit, list, certified).await;
        }
        if !in_place {
            metrics::counter!("cloudbft_voter_commit_reruns_total").increment(1);
            match self.run_list(&commit.listed, Stop::Never, certified.is_none()).await? {
                (Some(Outcome::Unavailable), _) | (None, ListRan::Failed | ListRan::Skipped) => {
                    return Ok(Attempt::Failed);
                }
                (Some(refused), _) => return Ok(Attempt::Ended(refused)),
                (None, ListRan::Refused(refused)) => return Ok(Attempt::Ended(refused.into())),
                (None, ListRan::All) => {}
            }
            if self.copying() {
                let refused = Refused::new("08P01", "the Commit lists a COPY without its end");
                return Ok(Attempt::Ended(refused.into()));
            }
        }
        let ran = Answered {
            certified,
            answers: self.history.answers(),
            all_short: self.all_short,
            records: commit.record.applied.is_some(),
            is_sound: self.status() == b'T',
        };
        let outcome = match ran.verdict() {
            Verdict::Commit => return self.settle_and_record(commit, list, certified).await,
            Verdict::Contradicted if may_doubt && ran.is_sound => {
                return self.commit_in_doubt(commit, list, certified).await;
            }
            Verdict::Contradicted => return Ok(Attempt::Contradicted),
            Verdict::WordsMissing => words_missing().into(),
            Verdict::Executed => Outcome::Executed,
            Verdict::RolledBack => rolled_back(),
        };
        self.close().await?;
        Ok(Attempt::Ended(outcome))
    }

    /// Commits what has answered otherwise than f+1 voters have certified, where its effect will be compared with theirs: until it is found
    /// equal, this voter says nothing to clients (decision 0053).
    async fn commit_in_doubt(
        &mut self,
        commit: &Commit,
        list: &Digest,
        certified: Option<Digest>,
    ) -> Result<Attempt, PostgresError> {
        let (order, began) = (commit.asker.order, self.transaction.began);
        if !self.shared.doubts.begin(order) {
            return Ok(Attempt::Contradicted);
        }
        tracing::warn!(
            order,
            began,
            "this database answered otherwise than f+1 voters have certified: what it changes is compared before the voter goes on"
        );
        metrics::counter!("cloudbft_voter_doubts_total").increment(1);
        let attempt = self.settle_and_record(commit, list, certified).await;
        let catalog_is_known = is_everything(&self.held) && self.catalog_written == Written::Nothing;
        match &attempt {
            // What has changed the catalog cannot be compared.
            Ok(Attempt::Ended(_)) if self.catalog_changed && !catalog_is_known => self.shared.doubts.reject(order),
            Ok(Attempt::Contradicted) => self.shared.doubts.withdraw(order),
            // Whether it was committed where the server was lost is not known: the doubt stays.
            _ => {}
        }
        attempt
    }

    /// Commits what is certified as f+1 voters did before they gave their words: what is deferred runs now, and COMMIT runs
    /// nothing.
    async fn settle_and_record(
        &mut self,
        commit: &Commit,
        list: &Digest,
        certified: Option<Digest>,
    ) -> Result<Attempt, PostgresError> {
        let changes_nothing = changes_nothing(certified);
        if certified.is_some()
            && let Settled::Failed(outcome) = self.settle(Stop::Never).await?
        {
            return match outcome {
                Outcome::Unavailable => Ok(Attempt::Failed),
                _ if changes_nothing => self.commit_nothing(commit, list, certified).await,
                _ if commit.record.applied.is_some() => Ok(Attempt::Contradicted),
                _ => {
                    self.close().await?;
                    Ok(Attempt::Ended(Outcome::Executed))
                }
            };
        }
        if changes_nothing && self.has_written() {
            return self.commit_nothing(commit, list, certified).await;
        }
        let record = Record {
            asks_catalog: is_everything(&self.held) && self.catalog_changed,
            // A voter that has settled has emptied and dropped temporary tables then.
            temporary: self.temporary_end().filter(|_| certified.is_none()),
            listens: commit.audience.channels(self.notifies || self.is_foreign()),
            ..commit.record.clone()
        };
        self.record_commit(&record).await
    }

    /// f+1 voters say that the list has written nothing, so nothing is what is committed: it need not run here, and what
    /// has run here has no effect. That it answered otherwise is told.
    async fn commit_nothing(
        &mut self,
        commit: &Commit,
        list: &Digest,
        certified: Option<Digest>,
    ) -> Result<Attempt, PostgresError> {
        // Without a position it may have run before, and now reads what was written after it.
        let ran = commit.record.applied.is_some() && self.built && !self.tainted && self.history.list() == *list;
        let same = certified.is_some_and(|answers| same_answers(&answers, &self.history.answers()));
        if ran && (!same || (self.settled.is_some() && self.has_written())) {
            let began = self.transaction.began;
            tracing::warn!(
                began,
                "this database answered otherwise than f+1 voters have certified, in a transaction that wrote nothing"
            );
            metrics::counter!("cloudbft_voter_harmless_contradictions_total").increment(1);
        }
        if self.open(None).await?.is_some() {
            return Ok(Attempt::Failed);
        }
        let record = Record {
            applied: commit.record.applied.clone(),
            sequences: Sequences::None,
            asks_catalog: false,
            temporary: None,
            listens: None,
        };
        self.record_commit(&record).await
    }

    async fn record_commit(&mut self, record: &Record) -> Result<Attempt, PostgresError> {
        let patience = Stop::After(self.shared.config.limits.commit_wait);
        let played = self.play(Task::Commit(record), patience).await?;
        self.built = false;
        if record.asks_catalog {
            // A backend that was lost cannot say.
            let backend = self.backend.as_mut();
            self.catalog_written = backend.map_or(Written::Unknown, |backend| backend.backend.take_catalog_written());
        }
        if let Some(borrowed) = &mut self.backend {
            self.notified = borrowed.backend.take_notified();
        }
        let notices = self.settled.take();
        let answer = match played {
            Played::Answers(mut answers) => answers
                .pop()
                .map(|answer| match notices {
                    Some(notices) => answer.with_notices(notices),
                    None => answer,
                })
                .and_then(outcome),
            // Whether it committed before it was lost is in the database.
            Played::Stopped | Played::Lost => match self.shared.is_applied(record).await? {
                true => Some(Outcome::Executed),
                false => None,
            },
        };
        Ok(answer.map_or(Attempt::Failed, Attempt::Ended))
    }

    /// Rolls back, answers a client that asked for it, and tells the owner.
    pub(super) async fn abort(&mut self, finish: &Finish, asker: Option<Asker>) -> Result<(), PostgresError> {
        self.close().await?;
        if let Some(asker) = asker {
            asker.answer(&self.shared.reporter, rolled_back()).await;
        }
        if let Some(order) = finish.reached() {
            self.shared.tell(Event::Finished(order, None));
        }
        Ok(())
    }
}

/// The result of an Abort.
pub(crate) fn rolled_back() -> Outcome {
    completed("ROLLBACK")
}

/// The result of something that answers nothing but its tag.
pub(crate) fn completed(tag: &str) -> Outcome {
    let result = ExchangeResult {
        messages: command_complete(tag),
        status: b'I',
    };
    outcome(Answer::Result(result)).unwrap_or(Outcome::Unavailable)
}
