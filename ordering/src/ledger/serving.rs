//! Answers to voters and peers: from memory, or from the log beside the owner task. And what waits for others to answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::{Output, To};
use crate::configuration::FETCH_REQUESTS_MAX;
use crate::identifiers::{Digest, MachineId, Order};
use crate::ledger::answer::{Audience, Question};
use crate::ledger::catch_up::{READ_INTERVAL_US, READS_AHEAD};
use crate::ledger::history::ANSWER_BYTES_MAX;
use crate::ledger::{Dialect, Ledger, Said};
use crate::message::{ReplyCommitDb, Request};

/// Expensive answers, each limited by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Expense {
    /// A voter's fetch, from the log.
    ReadForVoter,
    /// A peer's fetch, from the log.
    ReadForPeer,
    /// Messages that a peer lacks.
    Standing,
    /// How a view began.
    View,
    /// A question how a view began.
    AskView,
}

impl Expense {
    /// Answers that may come before they are due, when there were none before.
    fn ahead(self) -> u64 {
        match self {
            Expense::ReadForVoter | Expense::ReadForPeer => READS_AHEAD,
            _ => 0,
        }
    }
}

/// For each machine and kind of answer: the time at which everything answered so far would have been due, monotonic.
pub(crate) type Answered = BTreeMap<(MachineId, Expense), u64>;

impl<P: Dialect> Ledger<P> {
    /// Whether a machine may have such an answer now; bounds what a peer can make us do.
    pub(crate) fn may_answer(&mut self, machine: MachineId, expense: Expense, interval_us: u64) -> bool {
        let now_us = self.now.monotonic_us;
        let ahead_us = interval_us.saturating_mul(expense.ahead());
        let due_us = self.answered.entry((machine, expense)).or_default();
        let is_allowed = now_us.saturating_add(ahead_us) >= *due_us;
        if is_allowed {
            *due_us = (*due_us).max(now_us).saturating_add(interval_us);
        }
        is_allowed
    }

    /// A voter tells how far it is.
    pub(crate) fn on_reply(&mut self, from: MachineId, reply: &ReplyCommitDb) {
        if (1..=self.configuration.voters()).contains(&from.0) {
            let flushed = self.flushed.entry(from).or_default();
            *flushed = reply.flushed.max(*flushed);
        }
    }

    /// The order up to which every voter has flushed, once all voters have reported.
    pub(crate) fn flushed_by_all(&self) -> Order {
        let has_all = self.flushed.len() == usize::from(self.configuration.voters());
        let lowest = self.flushed.values().copied().min();
        lowest.filter(|_| has_all).unwrap_or_default()
    }

    /// Gives a voter what is decided from an order on; `reader` makes what reads it from the log.
    pub(crate) fn answer_voter(
        &mut self,
        from: MachineId,
        order: Order,
        through: Order,
        reader: impl FnOnce(Question) -> P::Reader,
    ) {
        if order > through {
            return;
        }
        match self.history.answer(order, through) {
            None if order < self.log_first => {
                let first = self.log_first;
                self.out.push(Output::LogBegins { to: from, first });
            }
            Some(messages) => {
                let answers = messages.into_iter();
                self.out
                    .extend(answers.map(|message| Output::Answer { to: from, message }));
            }
            None if self.may_answer(from, Expense::ReadForVoter, READ_INTERVAL_US) => {
                let reader = reader(Question {
                    to: from,
                    audience: Audience::Voter,
                    from: order,
                    through,
                });
                self.out.push(Output::ReadLog { reader });
            }
            None => {}
        }
    }

    /// Gives a peer what is stable from an order on.
    pub(crate) fn on_fetch_history(
        &mut self,
        from: MachineId,
        order: Order,
        reader: impl FnOnce(Question) -> P::Reader,
    ) {
        let stable = self.checkpoints.stable.clone();
        let through = self.checkpoints.point().order;
        let can_answer = order.0 > 0 && order <= through;
        if !can_answer || !self.may_answer(from, Expense::ReadForPeer, READ_INTERVAL_US) {
            return;
        }
        if order >= self.log_first {
            let reader = reader(Question {
                to: from,
                audience: Audience::Peer(stable),
                from: order,
                through,
            });
            self.out.push(Output::ReadLog { reader });
        } else if let Some(checkpoint) = self.checkpoints.certified.clone() {
            self.send(To::Machine(from), Said::GiveCheckpoint(checkpoint));
        }
    }

    /// Gives a peer the bodies that it asks for, as far as they fit into one answer.
    pub(crate) fn give_requests(&mut self, to: MachineId, found: impl Iterator<Item = Arc<Request>>) {
        let mut bytes = 0;
        let fits = |request: &Arc<Request>| {
            let has_room = bytes < ANSWER_BYTES_MAX;
            bytes += request.operation.len();
            has_room
        };
        let requests: Vec<_> = found.take_while(fits).collect();
        if !requests.is_empty() {
            self.send(To::Machine(to), Said::GiveRequests(requests));
        }
    }

    /// Asks for bodies that were ordered and did not come; `peer`: whom to ask who was asked so often. Returns when to ask
    /// again; none: nothing is missing.
    pub(crate) fn ask_for_bodies(&mut self, peer: impl Fn(u32) -> MachineId) -> Option<u64> {
        let now_us = self.now.monotonic_us;
        let mut wanted: BTreeMap<MachineId, Vec<Digest>> = BTreeMap::new();
        let mut ask_us = None;
        for (digest, missing) in self.bodies.missing_mut() {
            if missing.ask_us <= now_us {
                wanted.entry(peer(missing.asked)).or_default().push(*digest);
                missing.asked = missing.asked.saturating_add(1);
                missing.ask_us = now_us + self.configuration.retransmission_us / 2;
            }
            ask_us = Some(ask_us.map_or(missing.ask_us, |ask_us: u64| ask_us.min(missing.ask_us)));
        }
        for (peer, mut digests) in wanted {
            digests.truncate(FETCH_REQUESTS_MAX);
            self.send(To::Machine(peer), Said::FetchRequests(digests));
        }
        ask_us
    }
}
