//! Checkpoints, and answers to voters and peers: from memory, or from the log beside the owner task.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::is_replica;
use crate::identifiers::{Digest, GroupId, MachineId, Order};
use crate::message::{CommitDb, ReplyCommitDb};
use crate::minbft::checkpoints::Checkpoints;
use crate::minbft::fetching::{READ_INTERVAL_US, READS_AHEAD};
use crate::minbft::group::Group;
use crate::minbft::journal::Persisting;
use crate::minbft::messages::{CertifiedCheckpoint, Checkpoint, HistoryPoint, Message, StableCheckpoint};
use crate::minbft::reader::{LogReader, forget_views};
use crate::minbft::record::{Record, Resume};
use crate::minbft::start_messages::Admission;
use crate::minbft::view_messages::Followed;
use crate::minbft::view_verification::followed_positions;
use crate::minbft::{Machine, Output};

/// Expensive answers, each limited by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Expense {
    ReadForVoter,
    ReadForPeer,
    Standing,
    Live,
    Ask,
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
        if self.configuration.replica_machines().any(|machine| machine == from) {
            let flushed = self.flushed.entry(from).or_default();
            *flushed = reply.flushed.max(*flushed);
        }
    }

    pub(crate) fn on_fetch_commit_db(&mut self, from: MachineId, order: Order, out: &mut Vec<Output>) {
        let through = self.history.point.order;
        self.answer_voter(from, Order(order.0.max(1)), through, out);
    }

    pub(crate) fn on_fetch_request(&mut self, from: MachineId, order: Order, digest: &Digest, out: &mut Vec<Output>) {
        // Decided here, and not yet in the history. What is only prepared is not answered: the answer has the form of a
        // vote. One of the f+1 from whom the voter knows the digest is correct, and has decided it with its body.
        let in_stream = self.live.as_ref().and_then(|live| {
            let slot = live.stream.slots.iter().find(|slot| slot.prepare.last() >= order)?;
            let is_decided = |group: &GroupId| slot.share(*group).is_some_and(|share| share.delivered);
            slot.operations()
                .find(|(group, entry)| entry.order == order && entry.request.is_some() && is_decided(group))
        });
        match in_stream.filter(|(_, entry)| entry.digest == *digest) {
            Some((group, entry)) => {
                out.push(Output::Answer {
                    to: from,
                    message: CommitDb {
                        group,
                        entries: vec![entry],
                    },
                });
            }
            None => self.answer_voter(from, order, order.min(self.history.point.order), out),
        }
    }

    fn answer_voter(&mut self, from: MachineId, order: Order, through: Order, out: &mut Vec<Output>) {
        if order > through || !self.configuration.has_replicas() {
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
                let reader = LogReader::for_voter(from, order, through, self.views.clone(), self.fetched.clone());
                out.push(Output::ReadLog { reader });
            }
            None => {}
        }
    }

    pub(crate) fn on_fetch_history(&mut self, from: MachineId, order: Order, out: &mut Vec<Output>) {
        let stable = self.checkpoints.stable.clone();
        let through = self.checkpoints.point().order;
        let can_answer = order.0 > 0 && order <= through && self.configuration.has_replicas();
        if !can_answer || !self.may_answer(from, Expense::ReadForPeer, READ_INTERVAL_US) {
            return;
        }
        if order < self.log_first {
            if let Some(checkpoint) = self.checkpoints.certified.clone() {
                self.send(To::Machine(from), Message::GiveCheckpoint(checkpoint), out);
            }
        } else {
            let reader = LogReader::for_peer(from, order, through, (self.views.clone(), self.fetched.clone()), stable);
            out.push(Output::ReadLog { reader });
        }
    }

    /// The history has grown from `before`.
    pub(crate) fn history_extended(&mut self, before: &HistoryPoint, out: &mut Vec<Output>) {
        if let Some(live) = self.live.as_mut() {
            live.idle_us = self.now.monotonic_us + self.configuration.retransmission_us;
        }
        if Checkpoints::is_due(before, &self.history.point) {
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
            followed: self.own_followed(),
            signature: [0; 64],
        };
        checkpoint.signature = self.sign(&checkpoint.signed());
        let checkpoint = Arc::new(checkpoint);
        self.send(To::Others, Message::Checkpoint(Arc::clone(&checkpoint)), out);
        self.on_checkpoint(&checkpoint, out);
    }

    /// How far we have followed the counters of the others, and sent by our own.
    fn own_followed(&mut self) -> Option<Followed> {
        let own = self.configuration.machine;
        let point = self.history.point;
        let live = self.live.as_mut().filter(|live| live.view == point.view)?;
        let mut positions = Vec::new();
        for (machine, admission) in &live.proof.outcome.admitted {
            let settle = |group: &mut Group| match group.peers.get_mut(machine) {
                Some(peer) => peer.settle(point.value),
                None => group.own_stream.settle(point.value),
            };
            if is_replica(*machine) {
                let values = std::iter::once(0).chain(live.groups.iter_mut().map(settle));
                let admission = Admission {
                    epoch: admission.epoch,
                    positions: values.collect(),
                };
                positions.push((*machine, admission));
            }
        }
        Some(Followed {
            machine: own,
            view: live.view,
            order: point.order,
            positions,
        })
    }

    /// What others have followed needs neither be shown in a view change, nor be followed here.
    fn settle_counters(&mut self) {
        let (own, quorum) = (self.configuration.machine, self.configuration.quorum() as usize);
        let epoch = self.journal.counter.epoch;
        let (stable, reached) = (self.checkpoints.point().order, self.history.point.order);
        let Some(live) = self.live.as_mut() else { return };
        let statements = self.checkpoints.followed_up_to(stable, live.view);
        if statements.len() >= quorum {
            self.runs.settle(statements, own, epoch, quorum, stable);
        }
        let statements = self.checkpoints.followed_up_to(reached, live.view);
        let statements: Vec<_> = statements
            .iter()
            .filter(|statement| statement.followed.view == live.view)
            .collect();
        for (machine, admission) in &live.proof.outcome.admitted {
            let Some(positions) = followed_positions(&statements, *machine, admission.epoch, quorum) else {
                continue;
            };
            for (group, position) in live.groups.iter_mut().zip(positions.iter().skip(1)) {
                if let Some(peer) = group.peers.get_mut(machine) {
                    peer.skip_to(*position);
                }
            }
        }
        live.touch_all();
    }

    pub(crate) fn on_checkpoint(&mut self, checkpoint: &Checkpoint, out: &mut Vec<Output>) {
        if let Some(statement) = checkpoint.followed_statement() {
            self.checkpoints.hear(statement);
        }
        if let Some(stable) = self.checkpoints.vote(checkpoint, &self.configuration) {
            self.on_stable(stable, out);
        }
        self.settle_counters();
    }

    pub(crate) fn on_stable(&mut self, stable: StableCheckpoint, out: &mut Vec<Output>) {
        let (point, own) = (stable.point, self.history.point);
        if point.order <= self.checkpoints.point().order {
            return;
        }
        if !self.configuration.has_replicas() {
            self.checkpoints.set_stable(stable);
            return;
        }
        if point.order > own.order {
            let is_news = self
                .checkpoints
                .ahead
                .as_ref()
                .is_none_or(|ahead| ahead.point.order < point.order);
            if is_news {
                self.checkpoints.ahead = Some(stable);
            }
            return;
        }
        let clients = self.checkpoints.clients_at(point.order, &self.history);
        let is_other = point.order == own.order && point.history != own.history;
        if is_other || clients.digest() != stable.clients {
            // f+1 machines, so a correct one, have another history: more than f are faulty, or we are.
            self.stopped = true;
            self.report(self.configuration.machine, MisbehaviourKind::Contradiction, out);
            return;
        }
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
        self.log_first = first;
        self.retained.forget_below(first);
        self.fetched.forget_below(first);
        forget_views(&mut self.views, first);
        let (live, views) = self.live_in_log();
        let resume = Resume {
            checkpoint: self.checkpoints.certified.clone(),
            first,
            view: self.start.mentioned.max(self.current_view()),
            live,
            views,
            fetched: self.fetched.clone(),
        };
        self.journal
            .persist(Record::Resume(Arc::new(resume)), Persisting::Cut(first), out);
    }
}
