//! The normal case: PRE-PREPARE, PREPARE, COMMIT, decision.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, Output, To};
use crate::configuration::{Mutant, WATERMARK_BYTES, WATERMARK_ORDERS};
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::ledger::history::{ENTRY_BYTES, by_group, to_history};
use crate::message::CommitDbEntry;
use crate::pbft::messages::{Certificate, Commit, Message, PrePrepare, Prepare};
use crate::pbft::outcome::End;
use crate::pbft::record::{Record, Then};
use crate::pbft::view::Early;
use crate::pbft::window::{Slot, Stage, WINDOW};
use crate::pbft::{HISTORY_VIEW, Machine};
use crate::timers::Timer;

impl Machine {
    /// Does whatever can be done now; every step ends with it.
    pub(crate) fn pump(&mut self) {
        self.accept_proposals();
        self.prepare_next();
        self.deliver_next();
        self.propose();
    }

    /// Whether a message of this view is for now; one of a later view is kept for then.
    fn is_current(&mut self, from: MachineId, view: View, message: impl FnOnce() -> Early) -> bool {
        if view > self.view.view || (view == self.view.view && !self.view.is_active) {
            self.view.keep_early(from, message());
        }
        view == self.view.view && self.view.is_active
    }

    /// Whether a number may be voted on: above the window's low end, and not too far.
    fn is_within(&self, number: u64) -> bool {
        let low = self.low_point().value;
        number > low && number - low <= WINDOW
    }

    pub(crate) fn on_pre_prepare(&mut self, from: MachineId, proposal: &Arc<PrePrepare>, digest: Digest) {
        let number = proposal.batch.number;
        let early = || Early::PrePrepare(Arc::clone(proposal), digest);
        if !self.is_current(from, proposal.view, early) || !self.is_within(number) {
            return;
        }
        let accepted = self.window.slots.get(&number).map(|slot| slot.digest);
        let waiting = self.window.waiting.get(&number).map(|(_, waiting)| *waiting);
        match accepted.or(waiting) {
            // The primary has signed two batches for one number, or one for a number that the view began with.
            Some(known) if known != digest => self.accuse_primary(MisbehaviourKind::Contradiction),
            Some(_) => {}
            // Decided without us.
            None if number < self.view.next.number => {}
            None => {
                self.window.waiting.insert(number, (Arc::clone(proposal), digest));
            }
        }
    }

    /// The primary has broken the rules, and its signature proves it: it must be replaced.
    pub(crate) fn accuse_primary(&mut self, kind: MisbehaviourKind) {
        // A batch of a view that we have left says nothing against the primary of the next.
        if self.view.is_active && !self.view.is_accused {
            self.view.is_accused = true;
            self.ledger
                .report(self.ledger.configuration.primary(self.view.view), kind);
            self.want_view_change();
        }
    }

    /// Accepts proposals strictly in the order of their numbers, within the watermarks.
    pub(crate) fn accept_proposals(&mut self) {
        while self.view.is_active && !self.view.is_accused {
            let Some((proposal, digest)) = self.window.waiting.get(&self.view.next.number).cloned() else {
                return;
            };
            if !self.view.next.continues(&proposal.batch) {
                self.accuse_primary(MisbehaviourKind::WrongPrepare);
                return;
            }
            if !self.is_below_watermarks(&proposal) || self.is_ahead_of_clock(&proposal) {
                return;
            }
            self.window.waiting.remove(&proposal.batch.number);
            let mut slot = Slot::new(&proposal.batch, digest);
            let behind_us = self.ledger.now.wall_us.saturating_sub(proposal.batch.time_us);
            slot.is_late = behind_us > self.ledger.configuration.clock_behind_max_us;
            slot.pre_prepare = Some(proposal);
            self.install(slot);
        }
    }

    fn is_below_watermarks(&self, proposal: &PrePrepare) -> bool {
        let low = self.low_point();
        let undecided = self.ledger.history.point.bytes.saturating_sub(low.bytes) + self.window.bytes() as u64;
        self.is_within(proposal.batch.number)
            && proposal.batch.last().0 <= low.order.0 + WATERMARK_ORDERS
            && undecided <= WATERMARK_BYTES as u64
    }

    /// Whether a proposal must wait until our clock has come near enough to its time.
    fn is_ahead_of_clock(&mut self, proposal: &PrePrepare) -> bool {
        let ahead_us = proposal.batch.time_us.saturating_sub(self.ledger.now.wall_us);
        let is_ahead = ahead_us > self.ledger.configuration.clock_ahead_max_us;
        if is_ahead && !self.ledger.timers.is_set(Timer::Clock) {
            let primary = self.ledger.configuration.primary(proposal.view);
            self.ledger.report(primary, MisbehaviourKind::ClockSkew);
        }
        let wait_us = ahead_us.saturating_sub(self.ledger.configuration.clock_ahead_max_us);
        let near_us = self.ledger.now.monotonic_us.saturating_add(wait_us);
        self.ledger
            .timers
            .set_or_stop(Timer::Clock, is_ahead.then_some(near_us));
        is_ahead
    }

    /// Takes the next batch of the view: looks for its bodies, and votes when they are here.
    pub(crate) fn install(&mut self, slot: Slot) {
        let (number, batch, needs_bodies) = (slot.batch.number, Arc::clone(&slot.batch), slot.missing > 0);
        self.window.slots.insert(number, slot);
        self.view.next = End::of(&batch);
        self.skip_accepted();
        if needs_bodies {
            self.find_bodies(&batch);
        }
        self.accept(number);
    }

    /// After a restart: batches that were accepted before it need not be proposed again.
    pub(crate) fn skip_accepted(&mut self) {
        while let Some(slot) = self.window.slots.get(&self.view.next.number) {
            if !self.view.next.continues(&slot.batch) {
                return;
            }
            self.view.next = End::of(&slot.batch);
        }
    }

    /// Writes the own PREPARE of a batch when everything is here, and its time is believed.
    pub(crate) fn accept(&mut self, number: u64) {
        let Some(slot) = self.window.slots.get_mut(&number).filter(|_| self.view.is_active) else {
            return;
        };
        if slot.stage != Stage::Waiting || slot.missing > 0 {
            return;
        }
        if slot.is_late {
            let votes = self.window.votes.get(&number);
            let believers = votes.map_or(0, |votes| votes.prepares(&slot.digest).count());
            if believers <= usize::from(self.ledger.configuration.faults.0) {
                return;
            }
        }
        let view = self.view.view;
        slot.stage = Stage::Accepting;
        let batch = Arc::clone(&slot.batch);
        let record = if slot.is_logged {
            Record::AcceptedAgain { view, batch }
        } else {
            slot.is_logged = true;
            Record::Accepted {
                view,
                batch,
                requests: slot.bodies().cloned().collect(),
            }
        };
        let digest = slot.digest;
        self.ledger.persist(record, Then::Prepare { view, number, digest });
    }

    /// The batch of this view with this number, if it is still this one.
    fn slot_in(&mut self, view: View, number: u64, digest: &Digest) -> Option<&mut Slot> {
        let is_current = self.view.is_active && self.view.view == view;
        let slot = self.window.slots.get_mut(&number)?;
        (is_current && slot.digest == *digest).then_some(slot)
    }

    /// The own PREPARE is durable: now it may be sent, and counts.
    pub(crate) fn on_accepted(&mut self, view: View, number: u64, digest: Digest) {
        let Some(slot) = self.slot_in(view, number, &digest) else {
            return;
        };
        slot.stage = Stage::Accepted;
        let signature = self.ledger.sign(&Prepare::signed(view, number, &digest));
        let prepare = Prepare {
            view,
            number,
            digest,
            signature,
        };
        self.count_prepare(self.ledger.configuration.machine, &prepare);
        self.ledger.send(To::Others, Message::Prepare(prepare));
    }

    pub(crate) fn on_prepare(&mut self, from: MachineId, prepare: Prepare) {
        if self.is_current(from, prepare.view, || Early::Prepare(prepare.clone())) && self.is_within(prepare.number) {
            self.count_prepare(from, &prepare);
            self.accept(prepare.number);
        }
    }

    fn count_prepare(&mut self, from: MachineId, prepare: &Prepare) {
        let votes = self.window.votes.entry(prepare.number).or_default();
        if !votes.prepare(from, prepare.digest, prepare.signature) {
            self.ledger.report(from, MisbehaviourKind::Contradiction);
        }
    }

    /// Writes the certificates of batches that are prepared: strictly in the order of their numbers, so that whoever
    /// has sent COMMIT for one has certificates for all before it (`outcome.rs` relies on it).
    pub(crate) fn prepare_next(&mut self) {
        let quorum = if self.ledger.configuration.is(Mutant::PbftCommitUnprepared) {
            1
        } else {
            self.ledger.configuration.quorum() as usize
        };
        while self.view.is_active {
            let number = self.window.committing + 1;
            let Some(slot) = self.window.slots.get_mut(&number) else {
                return;
            };
            let Some(votes) = self.window.votes.get(&number).filter(|_| slot.stage == Stage::Accepted) else {
                return;
            };
            let signatures: Vec<_> = votes.prepares(&slot.digest).take(quorum).collect();
            if signatures.len() < quorum {
                return;
            }
            slot.stage = Stage::Preparing;
            let (view, digest) = (self.view.view, slot.digest);
            let certificate = Certificate {
                view,
                batch: Arc::clone(&slot.batch),
                signatures: signatures.clone(),
            };
            self.window.certificates.insert(number, Arc::new(certificate));
            self.window.committing = number;
            let record = Record::Prepared {
                view,
                number,
                digest,
                signatures,
            };
            self.ledger.persist(record, Then::Commit { view, number, digest });
        }
    }

    /// The certificate is durable: now the COMMIT may be sent, and counts.
    pub(crate) fn on_prepared(&mut self, view: View, number: u64, digest: Digest) {
        let Some(slot) = self.slot_in(view, number, &digest) else {
            return;
        };
        slot.stage = Stage::Prepared;
        let commit = Commit { view, number, digest };
        self.count_commit(self.ledger.configuration.machine, commit);
        self.ledger.send(To::Others, Message::Commit(commit));
    }

    pub(crate) fn on_commit(&mut self, from: MachineId, commit: Commit) {
        if self.is_current(from, commit.view, || Early::Commit(commit)) && self.is_within(commit.number) {
            self.count_commit(from, commit);
        }
    }

    fn count_commit(&mut self, from: MachineId, commit: Commit) {
        let votes = self.window.votes.entry(commit.number).or_default();
        if !votes.commit(from, commit.digest) {
            self.ledger.report(from, MisbehaviourKind::Contradiction);
        }
    }

    /// Delivers what is decided, in the order of numbers: 2f+1 COMMITs, and our own log has the certificate.
    pub(crate) fn deliver_next(&mut self) {
        let quorum = self.ledger.configuration.quorum() as usize;
        loop {
            let number = self.ledger.history.point.value + 1;
            let Some(slot) = self
                .window
                .slots
                .get(&number)
                .filter(|slot| slot.stage == Stage::Prepared)
            else {
                return;
            };
            let commits = self
                .window
                .votes
                .get(&number)
                .map_or(0, |votes| votes.commits(&slot.digest));
            if commits < quorum || !self.view.is_active {
                return;
            }
            self.deliver(number);
        }
    }

    fn deliver(&mut self, number: u64) {
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
        let bytes_max = self.tail_bytes_max(&operations);
        let history = operations.into_iter().map(|(group, entry)| to_history(group, entry));
        for gone in self
            .ledger
            .history
            .append(history, HISTORY_VIEW, number, (bytes_max, Order(u64::MAX)))
        {
            self.ledger.bodies.forget_location(&gone.digest, gone.order);
        }
        self.progressed(number);
        self.history_extended(&before);
    }

    /// How much of the history stays in memory: everything above the stable checkpoint, so that whoever voted for a
    /// batch can serve its bodies until 2f+1 replicas have decided it.
    fn tail_bytes_max(&self, coming: &[(GroupId, CommitDbEntry)]) -> usize {
        let stable = self.ledger.checkpoints.point();
        let coming_bytes: usize = coming
            .iter()
            .filter_map(|(_, entry)| entry.request.as_ref())
            .map(|request| request.operation.len())
            .sum();
        let orders = self.ledger.history.point.order.0 - stable.order.0 + coming.len() as u64;
        let above = self.ledger.history.point.bytes - stable.bytes + coming_bytes as u64 + orders * ENTRY_BYTES as u64;
        self.ledger
            .configuration
            .tail_bytes_max
            .saturating_add(usize::try_from(above).unwrap_or(usize::MAX))
    }
}
