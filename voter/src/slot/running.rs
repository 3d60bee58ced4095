//! Runs exchanges of a transaction in its backend, one at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ordering::identifiers::Digest;
use sql::footprint::Footprint;
use sql::names::Made;
use sql::operation::Exchange;

use super::Slot;
use super::list::Wanted;
use super::stored::{Patience, Ready};
use crate::executor::{Event, outcome, read_outcome};
use crate::outcome::Outcome;
use crate::postgres::PostgresError;
use crate::postgres::backend::{Answer, Backend, Clock, Job, Record, Sequences, TemporaryEnd};
use crate::postgres::pool::{Borrowed, Purpose};
use crate::transactions::{WORDS_MISSING, is_stored, listed_bytes, too_large};
use crate::work::{
    Place, Refused, changes_catalog, changes_settings, check, decode, is_rollback_to, seed, sequences, temporary,
};

/// The answer to a listed exchange whose result is too large to keep, as it enters the chain of answers.
const TOO_LARGE: Digest = [0xff; 32];

/// What a backend is asked.
pub(super) enum Task<'job> {
    Within(&'job Job),
    /// A read that is known to be harmless.
    Read(&'job Job),
    Guarded(&'job Job),
    /// A list, and whether it may run at once.
    List(&'job [Job], bool),
    /// Whether code that is not ours may be deferred, which sequences may have moved, and what becomes of temporary tables.
    Settle(bool, &'job Sequences, Option<&'job TemporaryEnd>),
    Commit(&'job Record),
}

/// What may stop it.
pub(super) enum Stop<'exchange> {
    /// Nothing.
    Never,
    /// That it takes so long, though nothing of users is in it.
    After(Duration),
    /// The ordered end of the transaction.
    AtEnd,
    /// The client's cancel, and the end unless it commits exactly what has run: what is deferred then runs for a word.
    Word,
    /// The end, and the client's cancel: a listed exchange (and whether it is short), or a read.
    Statement(Option<(&'exchange Bytes, bool)>),
    /// The same for listed exchanges one behind the other.
    Replay(&'exchange [Bytes]),
}

/// What became of it.
pub(super) enum Played {
    Answers(Vec<Answer>),
    /// It was stopped. Nothing of it stays, and the backend is gone.
    Stopped,
    /// The backend was lost.
    Lost,
}

impl Slot {
    pub(super) fn status(&self) -> u8 {
        self.backend.as_ref().map_or(b'I', |borrowed| borrowed.backend.status())
    }

    pub(super) fn copying(&self) -> bool {
        self.backend.as_ref().is_some_and(|borrowed| borrowed.backend.copying())
    }

    pub(super) fn must_stop(&self, stop: &Stop<'_>) -> bool {
        match stop {
            Stop::Never | Stop::After(_) => false,
            Stop::AtEnd => self.signal.is_ending(),
            Stop::Word => self.signal.stops_word(&self.history),
            Stop::Statement(next) => {
                let (exchange, short) = (next.map(|next| next.0), next.is_some_and(|next| next.1));
                self.signal.stops(&self.history, exchange, short)
            }
            Stop::Replay(exchanges) => self.signal.stops_replay(&self.history, exchanges),
        }
    }

    /// Asks the backend, and stops it when that is wanted.
    pub(super) async fn play(&mut self, task: Task<'_>, stop: Stop<'_>) -> Result<Played, PostgresError> {
        let Some(mut borrowed) = self.backend.take() else {
            return Ok(Played::Lost);
        };
        let signal = Arc::clone(&self.signal);
        let overdue = overdue(&stop);
        tokio::pin!(overdue);
        let performed = {
            let performing = perform(&mut borrowed.backend, &task);
            tokio::pin!(performing);
            loop {
                if self.must_stop(&stop) {
                    break None;
                }
                tokio::select! {
                    performed = &mut performing => break Some(performed),
                    () = &mut overdue => break None,
                    () = signal.changed() => {}
                }
            }
        };
        match performed {
            Some(Ok(answers)) => {
                self.backend = Some(borrowed);
                Ok(Played::Answers(answers))
            }
            Some(Err(error)) => {
                tracing::info!(began = self.transaction.began, %error, "a transaction lost its backend");
                self.shared.tell(Event::Suspect);
                self.discard(borrowed).await?;
                Ok(Played::Lost)
            }
            None => {
                self.discard(borrowed).await?;
                Ok(Played::Stopped)
            }
        }
    }

    /// Ends a backend that cannot be given back, with its transaction; when this returns, the server has let go of all
    /// locks. Sequences are set back.
    pub(super) async fn discard(&mut self, borrowed: Borrowed) -> Result<(), PostgresError> {
        self.built = false;
        let process = borrowed.backend.process();
        drop(borrowed);
        self.shared.terminate(process).await?;
        self.shared.restore_sequences(&sequences(&self.held)).await
    }

    /// Ends the open transaction, if there is one, and gives the backend back if it can be trusted.
    pub(super) async fn close(&mut self) -> Result<(), PostgresError> {
        let Some(mut borrowed) = self.backend.take() else {
            return Ok(());
        };
        self.built = false;
        if borrowed.backend.status() == b'I' && !borrowed.backend.copying() {
            self.give_back(borrowed);
            return Ok(());
        }
        if borrowed.backend.is_foreign() {
            return self.discard(borrowed).await;
        }
        match borrowed.backend.roll_back(&sequences(&self.held)).await {
            Ok(()) => {
                self.give_back(borrowed);
                Ok(())
            }
            Err(_) => self.discard(borrowed).await,
        }
    }

    pub(super) fn give_back(&mut self, mut borrowed: Borrowed) {
        if self.settings_changed {
            borrowed.backend.forget_settings();
        }
        if self.catalog_changed {
            borrowed.backend.forget_prepared();
        }
        borrowed.give_back();
    }

    /// Opens the transaction on a backend. Settings that the server refuses are a result. `announce`: the order of a Begin
    /// whose snapshot the owner waits for.
    pub(super) async fn open(&mut self, announce: Option<u64>) -> Result<Option<Outcome>, PostgresError> {
        self.close().await?;
        let context = self.catalog.with_temporary(self.transaction.context.clone());
        let borrowed = self
            .shared
            .pool
            .borrow(Purpose::Transaction, &context.role, &context.settings)
            .await;
        let mut borrowed = match borrowed {
            Ok(borrowed) => borrowed,
            Err(error) => {
                tracing::info!(began = self.transaction.began, %error, "a transaction got no backend");
                self.shared.tell(Event::Suspect);
                self.lost = true;
                return Ok(Some(Outcome::Unavailable));
            }
        };
        let opened = self.open_on(&mut borrowed.backend, &context.settings, announce).await;
        match opened {
            Ok(None) => {
                self.backend = Some(borrowed);
                self.built = true;
                self.tainted = false;
                self.settled = None;
                self.failed_by_read = false;
                self.names_changed = false;
                self.made = Made::default();
                self.all_short = true;
                self.notifies = false;
                Ok(None)
            }
            Ok(Some(refused)) => {
                self.give_back(borrowed);
                Ok(Some(refused))
            }
            Err(error) => {
                tracing::info!(began = self.transaction.began, %error, "a transaction cannot be opened");
                self.shared.tell(Event::Suspect);
                self.lost = true;
                self.discard(borrowed).await?;
                Ok(Some(Outcome::Unavailable))
            }
        }
    }

    async fn open_on(
        &self,
        backend: &mut Backend,
        settings: &[(String, String)],
        announce: Option<u64>,
    ) -> Result<Option<Outcome>, PostgresError> {
        if let Some(answer) = backend.prepare(settings, self.catalog.generation).await? {
            return Ok(Some(outcome(answer).unwrap_or(Outcome::Unavailable)));
        }
        let announced = || {
            if let Some(order) = announce {
                self.shared.tell(Event::SnapshotOpen(order));
            }
        };
        backend
            .begin(self.transaction.isolation, self.transaction.read_only, announced)
            .await?;
        Ok(None)
    }

    /// An exchange as it runs in this transaction, as its `index`-th listed one or a read after as many.
    /// What is `stored` outside the order is never short.
    pub(super) fn job(&mut self, exchange: Exchange, stored: bool, place: Place, index: u32) -> Result<Job, Refused> {
        let copies = matches!(exchange, Exchange::CopyData { .. } | Exchange::CopyEnd { .. });
        if copies != self.copying() {
            return Err(Refused::new(
                "08P01",
                "COPY data and nothing else must follow COPY FROM STDIN",
            ));
        }
        let context = &self.transaction.context;
        let mut analysis = check(
            &self.catalog.analyzer,
            &exchange,
            context,
            place,
            &self.held,
            &self.made,
        )?;
        analysis.short &= !stored;
        if place == Place::Listed {
            if self.names_changed && !analysis.footprint.is_empty() && !self.held.covers(&Footprint::everything()) {
                return Err(Refused::too_small(&Footprint::everything(), &self.held));
            }
            self.all_short &= analysis.short;
            self.notifies |= analysis.notifies;
            self.names_changed |= analysis.renames;
            self.made.add(&analysis.temporary);
        }
        self.settings_changed |= changes_settings(&analysis);
        self.catalog_changed |= changes_catalog(&analysis);
        let clock = Clock {
            time_us: self.transaction.time_us,
            seed: seed(&self.transaction.nonce, self.transaction.began, index),
        };
        if self.catalog_changed
            && let Some(borrowed) = self.backend.as_mut()
        {
            borrowed.backend.forget_prepared();
        }
        Ok(Job {
            exchange,
            temporary: temporary(&self.transaction.context, &analysis),
            analysis,
            clock,
        })
    }

    /// Whether an exchange takes the open transaction back to before a read that failed in it, so that nothing has to run again, which
    /// no snapshot survives. In a failed transaction nothing of the voter's own can run beside it.
    fn recovers_from_read(&self, exchange: &Bytes) -> bool {
        let backend = self.backend.as_ref().filter(|_| self.built && self.failed_by_read);
        if self.lost || self.settled.is_some() || backend.is_none_or(|borrowed| borrowed.backend.is_foreign()) {
            return false;
        }
        let context = &self.transaction.context;
        let analyzer = &self.catalog.analyzer;
        let checked = decode(exchange)
            .and_then(|exchange| check(analyzer, &exchange, context, Place::Listed, &self.held, &self.made));
        checked.is_ok_and(|analysis| is_rollback_to(&analysis) && temporary(context, &analysis).is_none())
    }

    /// Runs an exchange that is listed. A refusal leaves the transaction as it was.
    pub(super) async fn run_write(&mut self, exchange: &Bytes) -> Result<Outcome, PostgresError> {
        let recovers = self.recovers_from_read(exchange);
        if !recovers && !self.ensure_built(Wanted::GoOn).await? {
            return Ok(Outcome::Unavailable);
        }
        let bytes = self.history.bytes().saturating_add(listed_bytes(exchange));
        if bytes > self.shared.config.limits.transaction_bytes_max {
            return Ok(too_large().into());
        }
        let is_body = is_stored(exchange);
        let stop = Stop::Statement(Some((exchange, false)));
        let decoded = match self.exchange(exchange, &stop, Patience::Short).await {
            Ready::Exchange(decoded) => Ok(decoded),
            Ready::Refused(refused) => Err(refused),
            Ready::Stopped => return Ok(Outcome::Unavailable),
            Ready::Missing => {
                // The others may run it.
                self.lost = true;
                self.close().await?;
                return Ok(Outcome::Unavailable);
            }
        };
        let job = decoded.and_then(|decoded| self.job(decoded, is_body, Place::Listed, self.history.len()));
        let job = match job {
            Ok(job) => job,
            Err(refused) => return Ok(refused.into()),
        };
        let short = job.analysis.short;
        let stop = Stop::Statement(Some((exchange, short)));
        let answer = match self.play_one(&job, stop).await? {
            Played::Answers(mut answers) => answers.pop(),
            Played::Stopped => return Ok(Outcome::Unavailable),
            Played::Lost => None,
        };
        if recovers && self.status() == b'T' {
            self.failed_by_read = false;
        }
        let outcome = answer.and_then(outcome);
        match digest_of_ref(outcome.as_ref()) {
            Some(digest) => self.history.push(exchange.clone(), digest),
            None => {
                // The others have run it.
                self.lost = true;
                self.close().await?;
            }
        }
        Ok(outcome.unwrap_or(Outcome::Unavailable))
    }

    /// Runs a read that is not listed.
    pub(super) async fn run_read(&mut self, exchange: &Bytes) -> Result<Outcome, PostgresError> {
        if self.snapshot_lost || !self.ensure_built(Wanted::GoOn).await? {
            return Ok(Outcome::Unavailable);
        }
        if self.snapshot_lost {
            return Ok(Outcome::Unavailable);
        }
        let job = decode(exchange).and_then(|decoded| self.job(decoded, false, Place::Unlisted, self.history.len()));
        let job = match job {
            Ok(job) => job,
            Err(refused) => return Ok(refused.into()),
        };
        let before = self.status();
        let task = if job.analysis.plain_read {
            Task::Read(&job)
        } else {
            self.tainted = true;
            Task::Guarded(&job)
        };
        let Played::Answers(mut answers) = self.play(task, Stop::Statement(None)).await? else {
            self.snapshot_lost |= self.transaction.reads_snapshot();
            return Ok(Outcome::Unavailable);
        };
        if self.backend.as_ref().is_some_and(|borrowed| borrowed.backend.is_left())
            && let Some(borrowed) = self.backend.take()
        {
            self.built = false;
            self.snapshot_lost |= self.transaction.reads_snapshot();
            self.discard(borrowed).await?;
        }
        self.failed_by_read |= before == b'T' && self.status() == b'E';
        let outcome = answers.pop().and_then(read_outcome);
        if outcome.is_none() {
            self.built = false;
        }
        Ok(outcome.unwrap_or(Outcome::Unavailable))
    }
}

/// When something has taken longer than it may.
fn overdue(stop: &Stop<'_>) -> impl Future<Output = ()> + use<> {
    let patience = match stop {
        Stop::After(patience) => Some(*patience),
        _ => None,
    };
    async move {
        match patience {
            Some(patience) => tokio::time::sleep(patience).await,
            None => std::future::pending().await,
        }
    }
}

async fn perform(backend: &mut Backend, task: &Task<'_>) -> Result<Vec<Answer>, PostgresError> {
    Ok(match task {
        Task::Within(job) => vec![backend.within(job).await?],
        Task::Read(job) => vec![backend.read_within(job).await?],
        Task::Guarded(job) => vec![backend.guarded(job).await?],
        Task::List(jobs, at_once) => backend.list(jobs, *at_once).await?,
        Task::Settle(foreign, sequences, end) => vec![backend.settle(*foreign, sequences, *end).await?],
        Task::Commit(record) => vec![backend.commit(record).await?],
    })
}

/// A Commit without words that lists more than what is short.
pub(super) fn words_missing() -> Refused {
    Refused {
        hint: "The proxy asks voters for their words before it commits what is not short.".into(),
        ..Refused::new(
            WORDS_MISSING,
            "the transaction needs the words of f+1 voters to be committed",
        )
    }
}

/// What enters the chain of answers; `None` for what is no answer.
pub(super) fn digest_of(outcome: Option<Outcome>) -> Option<Digest> {
    digest_of_ref(outcome.as_ref())
}

fn digest_of_ref(outcome: Option<&Outcome>) -> Option<Digest> {
    match outcome? {
        Outcome::Done { multiset, .. } => Some(*multiset),
        Outcome::Large(large) => Some(large.stored.digests(large.status).multiset),
        Outcome::Refused { .. } => Some(TOO_LARGE),
        Outcome::Executed | Outcome::Word { .. } | Outcome::ObjectNumber { .. } | Outcome::Unavailable => None,
    }
}
