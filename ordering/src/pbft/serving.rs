//! The history at this machine: its checkpoints, what is fetched of it, and where the log is cut.

use std::sync::Arc;

use crate::agreement::{Output, To};
use crate::configuration::{CHECKPOINT_BYTES, CHECKPOINT_ORDERS};
use crate::identifiers::Order;
use crate::ledger::catch_up::Found;
use crate::ledger::history::by_group;
use crate::ledger::{
    CertifiedCheckpoint, Checkpoint, History, HistoryPoint, Nothing, Stability, StableCheckpoint, Written,
};
use crate::pbft::Machine;
use crate::pbft::messages::Message;
use crate::pbft::outcome::{End, point_of};
use crate::pbft::record::{Record, Resume, Then};
use crate::timers::Timer;

/// Batches between two checkpoints at most: what a VIEW-CHANGE has to carry.
const CHECKPOINT_BATCHES: u64 = 128;

/// Whether all machines sign a checkpoint when their history goes from `before` to `after`: alike on all.
fn is_due(before: &HistoryPoint, after: &HistoryPoint) -> bool {
    before.order.0 / CHECKPOINT_ORDERS != after.order.0 / CHECKPOINT_ORDERS
        || before.bytes / CHECKPOINT_BYTES as u64 != after.bytes / CHECKPOINT_BYTES as u64
        || before.value / CHECKPOINT_BATCHES != after.value / CHECKPOINT_BATCHES
}

impl Machine {
    /// The history has grown from `before`.
    pub(crate) fn history_extended(&mut self, before: &HistoryPoint) {
        let idle_us = self.ledger.now.monotonic_us + self.ledger.configuration.retransmission_us;
        self.ledger.timers.set(Timer::Idle, idle_us);
        if is_due(before, &self.ledger.history.point) {
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
    fn reached(&mut self, checkpoint: Arc<CertifiedCheckpoint>) {
        if let Some(first) = self.ledger.reach(checkpoint) {
            self.cut_log(first);
        }
    }

    /// Nothing below this order is needed: writes what the log may begin with, and then lets it be cut.
    fn cut_log(&mut self, first: Order) {
        let Some(checkpoint) = self.ledger.checkpoints.certified.clone() else {
            return self.ledger.stop_broken();
        };
        self.ledger.cut_below(first);
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
        self.ledger.persist(Record::Resume(Arc::new(resume)), Then::Cut(first));
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
                self.ledger.bodies.forget_location(&operation.digest, operation.order);
            }
        }
        self.ledger.bodies.forget_places(number);
        self.window.forget(number);
    }

    /// Looks whether a fetch of history gets on.
    pub(crate) fn catch_up_timer(&mut self) {
        self.ledger.end_fetch_if_there();
        let found = self.ledger.catch_up_timer();
        self.take_found(found);
    }

    /// Takes over what a fetch has come to.
    pub(crate) fn take_found(&mut self, found: Option<Found>) {
        match found {
            Some(Found::Pieces(pieces, proof)) => {
                self.adopt(&pieces, proof);
                self.ledger.adopted();
            }
            Some(Found::Checkpoint(checkpoint)) => {
                // Goes on from there, without the operations before it.
                self.ledger.clients = checkpoint.clients.clone();
                self.forget_decided();
                self.skip_to(&checkpoint);
                let point = checkpoint.stable.point;
                self.ledger.retained.push(&point);
                self.cut_log(point.order.next());
                self.progressed(point.value);
            }
            None => {}
        }
    }

    /// Continues our history by proven pieces.
    fn adopt(&mut self, pieces: &[Arc<History>], proof: StableCheckpoint) {
        let (point, before) = (proof.point, self.ledger.history.point);
        for piece in pieces {
            for entry in &piece.entries {
                if let Some(request) = &entry.request {
                    self.ledger.bodies.take(&entry.digest);
                    self.finish(&entry.digest, request);
                }
            }
            let decided = by_group(piece.operations()).into_iter();
            self.ledger.out.extend(decided.map(Output::Deliver));
            self.ledger.write(Written::of(piece));
        }
        let Some(checkpoint) = self.ledger.prove(proof) else {
            return;
        };
        self.skip_to(&checkpoint);
        self.reached(checkpoint);
        if point.value > before.value {
            self.progressed(point.value);
        }
    }

    /// Puts the end of our history at a certified checkpoint, and the view with it: its batches up to there need nothing
    /// more.
    fn skip_to(&mut self, checkpoint: &Arc<CertifiedCheckpoint>) {
        self.ledger.skip_to(checkpoint);
        self.raise_low(checkpoint.stable.clone());
        let point = checkpoint.stable.point;
        if self.view.next.number <= point.value {
            self.view.next = End::after(&point);
        }
        self.pace.is_behind = false;
    }
}
