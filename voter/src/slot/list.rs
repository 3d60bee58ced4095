//! Runs lists of exchanges, as many as go out in one pipeline at once, and builds a transaction again where its backend cannot be
//! trusted.

use bytes::Bytes;
use sql::operation::Exchange;

use super::Slot;
use super::running::{Played, Stop, Task, digest_of, words_missing};
use super::stored::{Patience, Ready};
use crate::executor::outcome;
use crate::outcome::Outcome;
use crate::postgres::PostgresError;
use crate::transactions::{History, is_stored};
use crate::work::{Place, Refused};

/// Exchanges of a list that go out in one pipeline, at most.
pub(super) const PIPELINE_MAX: usize = 64;

/// Bytes of such exchanges, at most (more only if one is larger).
const PIPELINE_BYTES_MAX: usize = 1 << 20;

/// What a built transaction is wanted for.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    GoOn,
    End,
}

/// What became of a list.
pub(super) enum ListRan {
    /// Everything has run; the history says what was answered.
    All,
    /// An exchange is refused, alike on every voter.
    Refused(Refused),
    /// An exchange failed that was sent at once with others: what follows it was skipped.
    Skipped,
    /// This server could not, or it was stopped.
    Failed,
}

impl Slot {
    /// Makes sure that the backend's transaction is exactly what has run here, and can go on or can end. To end, nothing
    /// else may have run in the backend; to go on, it must not be settled. False when that cannot be had.
    pub(super) async fn ensure_built(&mut self, to: Wanted) -> Result<bool, PostgresError> {
        if self.lost {
            return Ok(false);
        }
        let usable = self.built && self.backend.is_some() && !self.failed_by_read;
        let fits = match to {
            Wanted::GoOn => self.settled.is_none(),
            Wanted::End => !self.tainted,
        };
        if usable && fits {
            return Ok(true);
        }
        let ran = std::mem::take(&mut self.history);
        let rebuilt = matches!(
            self.run_list(&ran.exchanges(), Stop::AtEnd, false).await?,
            (None, ListRan::All)
        );
        let same = rebuilt && self.history.answers() == ran.answers();
        if !same {
            tracing::info!(
                began = self.transaction.began,
                "a transaction ran again with another outcome, or could not"
            );
            self.lost = true;
            self.close().await?;
        }
        self.history = ran;
        Ok(same)
    }

    /// Opens the transaction again and runs a list; the refusal of its settings if there is one.
    ///
    /// `only_short`: nobody has seen the list's end, so nothing is run that its shape does not bound.
    pub(super) async fn run_list(
        &mut self,
        listed: &[Bytes],
        stop: Stop<'_>,
        only_short: bool,
    ) -> Result<(Option<Outcome>, ListRan), PostgresError> {
        self.snapshot_lost |= self.transaction.reads_snapshot() && self.begun_running();
        // What failed may be followed by more: then everything runs again, one by one. A snapshot could not be taken again.
        for at_once in [!self.transaction.reads_snapshot(), false] {
            self.history = History::default();
            if let Some(refused) = self.open(None).await? {
                return Ok((Some(refused), ListRan::Failed));
            }
            match self.run_pieces(listed, &stop, only_short, at_once).await? {
                ListRan::Skipped => {}
                ran => return Ok((None, ran)),
            }
        }
        Ok((None, ListRan::Failed))
    }

    async fn run_pieces(
        &mut self,
        listed: &[Bytes],
        stop: &Stop<'_>,
        only_short: bool,
        at_once: bool,
    ) -> Result<ListRan, PostgresError> {
        let mut rest = listed;
        while !rest.is_empty() {
            let (ran, count) = self.run_piece(rest, stop, only_short, at_once).await?;
            if !matches!(ran, ListRan::All) {
                return Ok(ran);
            }
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(ListRan::All)
    }

    /// Whether a snapshot of this transaction has ever been taken here.
    fn begun_running(&self) -> bool {
        self.live
    }

    /// Runs the first exchanges of a list: as many as go out in one pipeline, or one that goes alone: of a COPY, or none for the backend.
    pub(super) async fn run_piece(
        &mut self,
        listed: &[Bytes],
        stop: &Stop<'_>,
        only_short: bool,
        at_once: bool,
    ) -> Result<(ListRan, usize), PostgresError> {
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        let index = self.history.len();
        for (offset, exchange) in (0_u32..).zip(listed) {
            // Words say that a correct voter has had the bodies. Without words nobody may have them.
            let is_body = is_stored(exchange);
            if is_body && only_short {
                return Ok((ListRan::Refused(words_missing()), 0));
            }
            if is_body && !jobs.is_empty() {
                break;
            }
            let patience = match stop {
                Stop::Never => Patience::Endless,
                _ => Patience::Short,
            };
            let decoded = match self.exchange(exchange, stop, patience).await {
                Ready::Exchange(decoded) => decoded,
                Ready::Refused(refused) => return Ok((ListRan::Refused(refused), 0)),
                Ready::Missing | Ready::Stopped => return Ok((ListRan::Failed, 0)),
            };
            let alone = !matches!(decoded, Exchange::Simple { .. } | Exchange::Extended { .. });
            let full = jobs.len() >= PIPELINE_MAX || bytes > PIPELINE_BYTES_MAX;
            if !jobs.is_empty() && (alone || full) {
                break;
            }
            bytes += exchange.len();
            match self.job(decoded, is_body, Place::Listed, index.saturating_add(offset)) {
                Ok(job) if only_short && !job.analysis.short => return Ok((ListRan::Refused(words_missing()), 0)),
                Ok(job) => jobs.push(job),
                Err(refused) => return Ok((ListRan::Refused(refused), 0)),
            }
            if alone || is_body {
                break;
            }
        }
        let count = jobs.len();
        let stop = match stop {
            Stop::Never => Stop::Never,
            Stop::Replay(exchanges) => Stop::Replay(exchanges),
            _ => Stop::AtEnd,
        };
        let played = match jobs.as_slice() {
            [job] => self.play_one(job, stop).await?,
            jobs => self.play(Task::List(jobs, at_once), stop).await?,
        };
        let Played::Answers(answers) = played else {
            return Ok((ListRan::Failed, 0));
        };
        if answers.len() != count {
            return match at_once {
                true => Ok((ListRan::Skipped, 0)),
                false => Ok((ListRan::Failed, 0)),
            };
        }
        for (exchange, answer) in listed.iter().zip(answers) {
            match digest_of(outcome(answer)) {
                Some(digest) => self.history.push(exchange.clone(), digest),
                None => return Ok((ListRan::Failed, 0)),
            }
        }
        Ok((ListRan::All, count))
    }
}
