//! Checkpoints, and answers to voters and peers: from memory, or from the log beside the owner task.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::{CHECKPOINT_BYTES, CHECKPOINT_ORDERS};
use crate::identifiers::{Digest, MachineId, Order};
use crate::message::ReplyCommitDb;
use crate::minbft::fetching::{READ_INTERVAL_US, READS_AHEAD};
use crate::minbft::{CertifiedCheckpoint, Checkpoint, HistoryPoint, StableCheckpoint};
use crate::pbft::messages::Message;
use crate::pbft::outcome::point_of;
use crate::pbft::reader::LogReader;
use crate::pbft::record::{Record, Resume, Then};
use crate::pbft::{Machine, Output};

/// Batches between two checkpoints at most: what a VIEW-CHANGE has to carry.
const CHECKPOINT_BATCHES: u64 = 128;

/// Expensive answers, each limited by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Expense {
    ReadForVoter,
    ReadForPeer,
    Standing,
    NewView,
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

/// Whether all machines sign a checkpoint when their history goes from `before` to `after`: alike on all.
fn is_due(before: &HistoryPoint, after: &HistoryPoint) -> bool {
    before.order.0 / CHECKPOINT_ORDERS != after.order.0 / CHECKPOINT_ORDERS
        || before.bytes / CHECKPOINT_BYTES as u64 != after.bytes / CHECKPOINT_BYTES as u64
        || before.value / CHECKPOINT_BATCHES != after.value / CHECKPOINT_BATCHES
}

impl Machine {
    /// Whether a machine may have such an answer now; bounds what a peer can make us do.
    pub(crate) fn may_answer(&mut self, machine: MachineId, expense: Expense, interval_us: u64) -> bool {
        let now_us = self.now.monotonic_us;
        let ahead_us = interval_us.saturating_mul(expense.ahead());
        // The time at which everything answered so far would have been due.
        let due_us = self.answered_us.get(&(machine, expense)).copied().unwrap_or(0);
        let is_allowed = now_us.saturating_add(ahead_us) >= due_us;
        if is_allowed {
            self.answered_us
                .insert((machine, expense), due_us.max(now_us).saturating_add(interval_us));
        }
        is_allowed
    }

    pub(crate) fn on_reply(&mut self, from: MachineId, reply: ReplyCommitDb) {
        if (1..=self.configuration.voters()).contains(&from.0) {
            let flushed = self.flushed.entry(from).or_default();
            *flushed = reply.flushed.max(*flushed);
        }
    }

    pub(crate) fn on_fetch_commit_db(&mut self, from: MachineId, order: Order, out: &mut Vec<Output>) {
        self.answer_voter(from, Order(order.0.max(1)), self.history.point.order, out);
    }

    pub(crate) fn on_fetch_request(&mut self, from: MachineId, order: Order, digest: &Digest, out: &mut Vec<Output>) {
        // Only what is decided here: the answer has the form of a vote. One of the f+1 from whom the voter knows the
        // digest is correct, and has decided it.
        let _ = digest;
        self.answer_voter(from, order, order.min(self.history.point.order), out);
    }

    fn answer_voter(&mut self, from: MachineId, order: Order, through: Order, out: &mut Vec<Output>) {
        if order > through {
            return;
        }
        match self.history.answer(order, through) {
            None if order < self.log_first => {
                let first = self.log_first;
                out.push(Output::LogBegins { to: from, first });
            }
            Some(messages) => {
                out.extend(messages.into_iter().map(|message| Output::Answer { to: from, message }));
            }
            None if self.may_answer(from, Expense::ReadForVoter, READ_INTERVAL_US) => {
                let reader = LogReader::for_voter(from, order, through);
                out.push(Output::ReadLog { reader });
            }
            None => {}
        }
    }

    pub(crate) fn on_fetch_history(&mut self, from: MachineId, order: Order, out: &mut Vec<Output>) {
        let stable = self.checkpoints.stable.clone();
        let through = self.checkpoints.point().order;
        let can_answer = order.0 > 0 && order <= through;
        if !can_answer || !self.may_answer(from, Expense::ReadForPeer, READ_INTERVAL_US) {
            return;
        }
        if order < self.log_first {
            if let Some(checkpoint) = self.checkpoints.certified.clone() {
                self.send(To::Machine(from), Message::GiveCheckpoint(checkpoint), out);
            }
        } else {
            let reader = LogReader::for_peer(from, order, through, stable);
            out.push(Output::ReadLog { reader });
        }
    }

    /// The history has grown from `before`.
    pub(crate) fn history_extended(&mut self, before: &HistoryPoint, out: &mut Vec<Output>) {
        self.pace.idle_us = self.now.monotonic_us + self.configuration.retransmission_us;
        if is_due(before, &self.history.point) {
            self.sign_checkpoint(out);
        }
        let ahead = self.checkpoints.ahead.clone();
        if let Some(ahead) = ahead.filter(|ahead| ahead.point.order <= self.history.point.order) {
            self.on_stable(ahead, out);
        }
    }

    /// Signs the end of our history and tells everybody.
    pub(crate) fn sign_checkpoint(&mut self, out: &mut Vec<Output>) {
        let point = self.history.point;
        self.checkpoints.signed = point.order;
        let clients = self.clients.digest();
        let mut checkpoint = Checkpoint {
            machine: self.configuration.machine,
            point,
            clients,
            followed: None,
            signature: [0; 64],
        };
        checkpoint.signature = self.sign(&checkpoint.signed());
        self.send(To::Others, Message::Checkpoint(checkpoint.clone()), out);
        self.on_checkpoint(&checkpoint, out);
    }

    pub(crate) fn on_checkpoint(&mut self, checkpoint: &Checkpoint, out: &mut Vec<Output>) {
        if let Some(stable) = self.checkpoints.vote(checkpoint, &self.configuration) {
            self.on_stable(stable, out);
        }
    }

    pub(crate) fn on_stable(&mut self, stable: StableCheckpoint, out: &mut Vec<Output>) {
        let (point, own) = (stable.point, self.history.point);
        if point.order <= self.checkpoints.point().order {
            return;
        }
        if point.order > own.order {
            let ahead = self.checkpoints.ahead.as_ref();
            if ahead.is_none_or(|ahead| ahead.point.order < point.order) {
                self.checkpoints.ahead = Some(stable);
            }
            return;
        }
        let clients = self.checkpoints.clients_at(point.order, &self.history);
        let is_other = point.order == own.order && point != own;
        if is_other || clients.digest() != stable.clients {
            // 2f+1 machines, so correct ones, have another history: more than f are faulty, or we are.
            self.stop(MisbehaviourKind::Contradiction, out);
            return;
        }
        self.raise_low(stable.clone());
        self.reached(Arc::new(CertifiedCheckpoint { stable, clients }), out);
    }

    /// A stable checkpoint of our own history goes to the log, which may be cut now.
    pub(crate) fn reached(&mut self, checkpoint: Arc<CertifiedCheckpoint>, out: &mut Vec<Output>) {
        self.journal.write(Record::Stable(Arc::clone(&checkpoint)), out);
        let point = checkpoint.stable.point;
        self.retained.push(&point);
        self.checkpoints.set_certified(checkpoint);
        if let Some(last) = self.retained.due(&self.flushed, &point, &self.configuration) {
            self.cut_log(last.next(), out);
        }
    }

    /// Nothing below this order is needed: writes what the log may begin with, and then lets it be cut.
    pub(crate) fn cut_log(&mut self, first: Order, out: &mut Vec<Output>) {
        let Some(checkpoint) = self.checkpoints.certified.clone() else {
            return;
        };
        self.log_first = first;
        self.retained.forget_below(first);
        let low = self.low_point().value;
        let outcome = self.view.outcome.iter().filter(|batch| batch.number > low);
        let resume = Resume {
            checkpoint,
            low: self.low.clone(),
            first,
            view: self.view.view,
            is_active: self.view.is_active,
            outcome: outcome.cloned().collect(),
            requests: self.view.justification.clone(),
        };
        self.journal
            .persist(Record::Resume(Arc::new(resume)), Then::Cut(first), out);
    }

    /// The low end of the window: the highest stable checkpoint that we have reached, or that our view began with.
    pub(crate) fn low_point(&self) -> HistoryPoint {
        point_of(&self.low)
    }

    /// Moves the window up: everything to this checkpoint is decided by 2f+1 machines. What of it we lack is fetched.
    pub(crate) fn raise_low(&mut self, stable: StableCheckpoint) {
        let (number, order) = (stable.point.value, stable.point.order);
        if order <= self.low_point().order {
            return;
        }
        self.low = Some(stable);
        let undelivered = self.window.undelivered();
        for slot in undelivered.take_while(|slot| slot.batch.number <= number) {
            for (_, operation) in slot.operations() {
                self.bodies.forget_location(&operation.digest, operation.order);
            }
        }
        self.bodies.forget_places(number);
        self.window.forget(number);
    }
}
