//! What the replicas and the other voters say, and what the voter tells and asks them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ordering::identifiers::{MachineId, Order};
use ordering::message::{CommitDb, ReplyCommitDb};

use super::Owner;
use crate::voter::{VoterOutput, VoterState};

/// The shortest time between two replies to the replicas.
const REPLY_INTERVAL: Duration = Duration::from_millis(100);

/// The shortest time between two Fetches when the first brought nothing.
const FETCH_INTERVAL: Duration = Duration::from_millis(100);

/// The longest time between two Fetches while nothing is known to be missing.
const FETCH_INTERVAL_IDLE: Duration = Duration::from_secs(5);

/// How many missing bodies are asked for at once.
const BODIES_AT_ONCE: u64 = 64;

impl Owner<'_> {
    pub(super) async fn commit_db(&mut self, from: MachineId, message: CommitDb) {
        for entry in message.entries {
            let counted = self.votes.count(from, message.group, entry);
            metrics::counter!("cloudbft_votes_total", "voter" => from.0.to_string(), "result" => counted.label())
                .increment(1);
        }
        self.advance().await;
    }

    /// What another voter has executed was decided. One of f+1 that say so is correct.
    pub(super) fn executed_by(&mut self, from: MachineId, order: Order) {
        self.executed_elsewhere.insert(from, order);
        let mut orders: Vec<_> = self.executed_elsewhere.values().copied().collect();
        orders.sort_unstable_by(|one, other| other.cmp(one));
        if let Some(order) = orders.get(self.config.faults) {
            self.decided = self.decided.max(*order);
        }
    }

    /// A replica has cut off what we lack. One of f+1 that say so is correct, and cuts only what f+1 databases have.
    pub(super) fn log_begins(&mut self, from: MachineId, first: Order) {
        if !self.config.replicas.contains(&from.0) {
            return;
        }
        self.logs_begin.insert(from, first);
        let left_behind = VoterState::LeftBehind {
            next: self.votes.next_order(),
        };
        if self.is_left_behind() && *self.outside.state.borrow() != left_behind {
            tracing::error!(
                ?left_behind,
                "the replicas' logs do not go back so far: the database needs repair"
            );
            self.outside.state.send_replace(left_behind);
        }
    }

    pub(super) fn is_left_behind(&self) -> bool {
        let next = self.votes.next_order();
        let cut_off = self.logs_begin.values().filter(|first| **first > next);
        cut_off.count() > self.config.faults
    }

    /// Decided orders that have not been fed, as far as is known.
    pub(super) fn behind_by(&self) -> u64 {
        let highest = self.votes.highest_decided().max(self.decided);
        (highest.0 + 1).saturating_sub(self.votes.next_order().0)
    }

    pub(super) async fn reply(&mut self) {
        let executed = self.executed.load(Ordering::Relaxed);
        let reply = (executed, self.floors.floor());
        if reply == self.last_reply || self.replied.elapsed() < REPLY_INTERVAL {
            return;
        }
        self.last_reply = reply;
        self.replied = Instant::now();
        let (executed, flushed) = (Order(reply.0), Order(reply.1));
        if !self.is_left_behind() {
            let contradicted = Order(self.outside.contradicted.load(Ordering::Relaxed));
            self.outside.state.send_replace(if executed < contradicted {
                VoterState::Contradicts { order: contradicted }
            } else {
                VoterState::Serving { executed, flushed }
            });
        }
        self.output(VoterOutput::Reply(ReplyCommitDb { executed, flushed }))
            .await;
    }

    /// Asks for what is missing, when it has not come by itself.
    pub(super) async fn fetch_missing(&mut self) {
        let next = self.votes.next_order().0;
        let moved = next != self.fetch.seen_next;
        self.fetch.seen_next = next;
        let since = self.fetch.at.elapsed();
        if self.votes.has_next() {
            return;
        }
        let behind = self.behind_by() > 0;
        let fetched_some = next > self.fetch.from && behind;
        let stuck = behind && !moved && since >= FETCH_INTERVAL;
        if !(stuck || fetched_some || since >= FETCH_INTERVAL_IDLE) {
            return;
        }
        for (order, digest) in self.votes.missing_bodies(BODIES_AT_ONCE) {
            self.output(VoterOutput::FetchRequest { order, digest }).await;
        }
        self.fetch.from = next;
        self.fetch.at = Instant::now();
        self.output(VoterOutput::Fetch { from: Order(next) }).await;
    }
}
