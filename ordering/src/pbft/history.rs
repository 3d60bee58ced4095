//! The history at a machine: what is decided extends it, its checkpoints, and where the log is cut.

use std::sync::Arc;

use crate::agreement::{Output, To};
use crate::identifiers::{GroupId, Order};
use crate::ledger::checkpoints::Checkpoints;
use crate::ledger::history::{ENTRY_BYTES, by_group, to_history};
use crate::ledger::{CertifiedCheckpoint, Checkpoint, HistoryPoint, Nothing, Stability, StableCheckpoint};
use crate::message::CommitDbEntry;
use crate::pbft::core::{Core, HISTORY_VIEW};
use crate::pbft::log::record::{Record, Resume, Then};
use crate::pbft::wire::message::Message;
use crate::timers::Timer;

/// Batches between two checkpoints at most: what a VIEW-CHANGE has to carry.
const CHECKPOINT_BATCHES: u64 = 128;

impl Core {
    /// Delivers a batch that is decided, and continues the history by it.
    pub(crate) fn deliver(&mut self, number: u64) {
        let Some(slot) = self.window.slots.get_mut(&number) else {
            return self.ledger.stop_broken();
        };
        let operations: Vec<_> = slot.operations().collect();
        let record = Record::Decided {
            number,
            digest: slot.digest,
        };
        slot.set_delivered();
        self.ledger.write(record);
        self.ledger
            .out
            .extend(by_group(operations.iter().cloned()).into_iter().map(Output::Deliver));
        for (_, operation) in &operations {
            if let Some(request) = &operation.request {
                self.finish(&operation.digest, request);
            }
        }
        let before = self.ledger.history.point;
        let limits = (self.tail_bytes_max(&operations), Order(u64::MAX));
        let history = operations.into_iter().map(|(group, entry)| to_history(group, entry));
        self.ledger.append(history, HISTORY_VIEW, number, limits);
        self.progressed(number);
        self.history_extended(&before);
    }

    /// How much of the history stays in memory: everything above the stable checkpoint, so that whoever voted for a
    /// batch can serve its bodies until 2f+1 replicas have decided it.
    fn tail_bytes_max(&self, coming: &[(GroupId, CommitDbEntry)]) -> usize {
        let (stable, point) = (self.ledger.checkpoints.point(), self.ledger.history.point);
        let bodies = coming.iter().filter_map(|(_, entry)| entry.request.as_ref());
        let coming_bytes: usize = bodies.map(|request| request.operation.len()).sum();
        let orders = point.order.0 - stable.order.0 + coming.len() as u64;
        let above = point.bytes - stable.bytes + coming_bytes as u64 + orders * ENTRY_BYTES as u64;
        let above = usize::try_from(above).unwrap_or(usize::MAX);
        self.ledger.configuration.tail_bytes_max.saturating_add(above)
    }

    /// The history has grown from `before`.
    fn history_extended(&mut self, before: &HistoryPoint) {
        let idle_us = self.now_us() + self.ledger.configuration.retransmission_us;
        self.ledger.timers.set(Timer::Idle, idle_us);
        let after = self.ledger.history.point;
        // Whether all machines sign one here: alike on all.
        if Checkpoints::is_due(before, &after) || before.value / CHECKPOINT_BATCHES != after.value / CHECKPOINT_BATCHES
        {
            self.sign_checkpoint();
        }
        let ahead = self.ledger.checkpoints.ahead.clone();
        if let Some(ahead) = ahead.filter(|ahead| ahead.point.order <= self.ledger.history.point.order) {
            self.on_stable(ahead);
        }
    }

    /// Signs the end of our history and tells everybody.
    pub(crate) fn sign_checkpoint(&mut self) {
        let checkpoint = self.ledger.signed_checkpoint(None);
        self.ledger.send(To::Others, Message::Checkpoint(checkpoint.clone()));
        self.on_checkpoint(&checkpoint);
    }

    /// Our last checkpoint may have got lost when it is not stable for long.
    pub(crate) fn sign_checkpoint_again(&mut self) {
        let is_idle = self.pace.is_idle_tick() && !self.ledger.timers.is_set(Timer::Idle);
        let is_unstable = self.ledger.history.point.order > self.ledger.checkpoints.point().order;
        if is_unstable && (is_idle || self.pace.is_stalled_long()) {
            self.sign_checkpoint();
        }
    }

    pub(crate) fn on_checkpoint(&mut self, checkpoint: &Checkpoint<Nothing>) {
        if let Some(stable) = self.ledger.checkpoints.vote(checkpoint, &self.ledger.configuration) {
            self.on_stable(stable);
        }
    }

    pub(crate) fn on_stable(&mut self, stable: StableCheckpoint) {
        if let Stability::Reached(checkpoint) = self.ledger.weigh(stable, |stable, own| stable == own) {
            self.raise_low(checkpoint.stable.clone());
            self.reached(checkpoint);
        }
    }

    /// A stable checkpoint of our own history goes to the log, which may be cut now.
    pub(crate) fn reached(&mut self, checkpoint: Arc<CertifiedCheckpoint>) {
        if let Some(first) = self.ledger.reach(checkpoint) {
            self.cut_log(first);
        }
    }

    /// Nothing below this order is needed: writes what the log may begin with, and then lets it be cut.
    pub(crate) fn cut_log(&mut self, first: Order) {
        let Some(checkpoint) = self.ledger.checkpoints.certified.clone() else {
            return self.ledger.stop_broken();
        };
        self.ledger.cut_below(first);
        let low = self.window.low_point().value;
        let outcome = self.logged.outcome.iter().filter(|batch| batch.number > low);
        let resume = Resume {
            checkpoint,
            low: self.window.low.clone(),
            first,
            view: self.logged.view,
            is_active: self.logged.is_active,
            outcome: outcome.cloned().collect(),
            requests: self.logged.requests.clone(),
        };
        self.ledger.persist(Record::Resume(Arc::new(resume)), Then::Cut(first));
    }

    /// Moves the window up: everything to this checkpoint is decided by 2f+1 machines. What of it we lack is fetched.
    pub(crate) fn raise_low(&mut self, stable: StableCheckpoint) {
        let point = stable.point;
        if point.order <= self.window.low_point().order {
            return;
        }
        let passed = self.window.undelivered();
        let passed = passed.take_while(|slot| slot.batch.number <= point.value);
        for (_, operation) in passed.flat_map(|slot| slot.operations()) {
            self.ledger.bodies.forget_location(&operation.digest, operation.order);
        }
        self.ledger.bodies.forget_places(point.value);
        self.window.raise_low(stable);
    }

    /// The stable checkpoint with which a view begins: ours, or one that we have to reach.
    pub(crate) fn take_base(&mut self, stable: StableCheckpoint) {
        let target = stable.point.order;
        self.on_stable(stable.clone());
        self.raise_low(stable);
        if target > self.ledger.history.point.order {
            self.ledger.fetch_history(target);
        }
    }

    /// Puts the end of our history at a certified checkpoint, and the window with it: its batches up to there need nothing
    /// more.
    pub(crate) fn skip_to(&mut self, checkpoint: &Arc<CertifiedCheckpoint>) {
        self.ledger.skip_to(checkpoint);
        self.raise_low(checkpoint.stable.clone());
        self.window.skip_to(&checkpoint.stable.point);
        self.pace.is_behind = false;
    }
}
