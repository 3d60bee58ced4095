//! Waiting for the voters: until the answer, a time limit, the wish to cancel, or the end of the application.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sql::statement::Effect;

use super::Session;
use super::connection::Channel;
use super::routing::Routed;
use super::settings::parse_milliseconds;
use crate::client::{Cancel, Failure, VotedResult};
use crate::error::ApplicationError;

/// How long a statement of an open transaction may take to end after it was given up, before the whole transaction is
/// abandoned instead.
const GIVE_UP_PATIENCE: Duration = Duration::from_secs(1);
/// How often a waiting statement looks whether its cancellation was asked for.
const CANCEL_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// When a statement is given up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    pub(super) statement_at: Option<Instant>,
    /// Postgres limits the time of waiting for one lock. The proxy does not see the voters wait: for it the limit is of
    /// the statement as a whole, if it is one that takes locks.
    pub(super) lock_at: Option<Instant>,
}

/// Why a statement is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// CancelRequest.
    Asked,
    StatementTimeout,
    LockTimeout,
    /// The application has gone: nobody will read the answer.
    Gone,
}

impl Reason {
    pub(super) fn error(self) -> ApplicationError {
        match self {
            Reason::Asked | Reason::Gone => ApplicationError::cancelled(),
            Reason::StatementTimeout => ApplicationError::new("57014", "canceling statement due to statement timeout"),
            Reason::LockTimeout => ApplicationError::new("55P03", "canceling statement due to lock timeout"),
        }
    }
}

/// Whether a statement of this effect may wait for locks that others hold.
pub(super) fn waits_for_locks(effect: Effect) -> bool {
    matches!(effect, Effect::LockingRead | Effect::Write | Effect::Ddl)
}

impl Session {
    /// The limits of a statement that starts now, by the session's settings.
    pub(super) fn limits(&self, start: Instant) -> Limits {
        let at = |name: &str| self.time_limit(name).map(|limit| start + limit);
        Limits {
            statement_at: at("statement_timeout"),
            lock_at: at("lock_timeout"),
        }
    }

    /// A time limit among the settings, unless it is off.
    pub(super) fn time_limit(&self, name: &str) -> Option<Duration> {
        let milliseconds = self.settings.get(name).and_then(parse_milliseconds);
        milliseconds.filter(|limit| *limit > 0).map(Duration::from_millis)
    }

    /// Routes an exchange, and gives it up at its limits, on CancelRequest, and when the application has gone.
    ///
    /// What is ordered by itself is waited for all the same: it may be committed. A transaction that does not let go of
    /// its statement in time is abandoned as a whole.
    pub(super) async fn route_within(&mut self, routed: &Routed<'_>, limits: Limits) -> Result<VotedResult, Failure> {
        let lock_at = limits
            .lock_at
            .filter(|_| waits_for_locks(routed.analysis.effect) || self.locks_reads());
        let limits = Limits { lock_at, ..limits };
        let can_be_abandoned = self.is_begun();
        let cancel = Arc::clone(&self.cancel);
        let mut channel = self.connection.lend();
        let (outcome, reason) = {
            let route = self.route(routed);
            tokio::pin!(route);
            tokio::select! {
                biased;
                outcome = &mut route => (Some(outcome), None),
                reason = given_up(channel.as_mut(), &cancel, limits) => {
                    cancel.request();
                    let outcome = match can_be_abandoned {
                        true => tokio::time::timeout(GIVE_UP_PATIENCE, route).await.ok(),
                        false => Some(route.await),
                    };
                    (outcome, Some(reason))
                }
            }
        };
        self.connection.give_back(channel);
        self.is_gone |= reason == Some(Reason::Gone);
        match (outcome, reason) {
            (None, reason) => {
                self.doom();
                Err(Failure::Refused(reason.unwrap_or(Reason::Asked).error()))
            }
            (Some(Err(Failure::Cancelled)), Some(reason)) => Err(Failure::Refused(reason.error())),
            (Some(outcome), Some(Reason::StatementTimeout | Reason::LockTimeout)) => {
                // The wish was the time limit's, not the application's.
                cancel.reset();
                outcome
            }
            (Some(outcome), _) => outcome,
        }
    }

    fn locks_reads(&self) -> bool {
        self.transaction
            .as_ref()
            .is_some_and(super::transaction::Transaction::locks_reads)
    }
}

/// Completes when the statement is to be given up.
pub(super) async fn given_up(channel: Option<&mut Channel>, cancel: &Cancel, limits: Limits) -> Reason {
    let gone = async {
        match channel {
            Some(channel) => channel.gone().await,
            None => std::future::pending().await,
        }
    };
    let asked = async {
        while !cancel.is_requested() {
            tokio::time::sleep(CANCEL_CHECK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = gone => Reason::Gone,
        () = sleep_until(limits.lock_at) => Reason::LockTimeout,
        () = sleep_until(limits.statement_at) => Reason::StatementTimeout,
        () = asked => Reason::Asked,
    }
}

pub(super) async fn sleep_until(deadline: Option<Instant>) {
    super::sleep_until(deadline.map(tokio::time::Instant::from_std)).await;
}
