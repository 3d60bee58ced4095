//! PRE-PREPARE and PREPARE: a batch is accepted when everything before it was, and voted for when its bodies are here.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::assignment::Assignment;
use crate::configuration::{WATERMARK_BYTES, WATERMARK_ORDERS};
use crate::identifiers::{Digest, MachineId};
use crate::ledger::bodies::Place;
use crate::pbft::core::Core;
use crate::pbft::live::Live;
use crate::pbft::log::record::{Record, Then};
use crate::pbft::window::{End, Slot, Stage};
use crate::pbft::wire::message::Message;
use crate::pbft::wire::ordered::{Batch, PrePrepare, Prepare};
use crate::timers::Timer;

impl Live {
    pub(crate) fn on_pre_prepare(&mut self, core: &Core, proposal: &Arc<PrePrepare>, digest: Digest) {
        let number = proposal.batch.number;
        let accepted = core.window.slots.get(&number).map(|slot| slot.digest);
        let waiting = self.proposals.get(&number).map(|(_, waiting)| *waiting);
        match accepted.or(waiting) {
            // The primary has signed two batches for one number, or one for a number that the view began with.
            Some(known) if known != digest => self.accuse(MisbehaviourKind::Contradiction),
            Some(_) => {}
            // Decided without us.
            None if number < core.window.next.number => {}
            None => {
                self.proposals.insert(number, (Arc::clone(proposal), digest));
            }
        }
    }

    /// Accepts proposals strictly in the order of their numbers, within the watermarks.
    pub(crate) fn accept_proposals(&mut self, core: &mut Core) {
        while !self.is_accused {
            let Some((proposal, digest)) = self.proposals.get(&core.window.next.number).cloned() else {
                return;
            };
            if !core.window.next.continues(&proposal.batch) {
                self.accuse(MisbehaviourKind::WrongPrepare);
                return;
            }
            if !is_below_watermarks(core, &proposal) || is_ahead_of_clock(core, &proposal) {
                return;
            }
            self.proposals.remove(&proposal.batch.number);
            let mut slot = Slot::new(&proposal.batch, digest, core.window.next.assignment);
            let behind_us = core.ledger.now.wall_us.saturating_sub(proposal.batch.time_us);
            slot.is_late = behind_us > core.ledger.configuration.clock_behind_max_us;
            slot.pre_prepare = Some(proposal);
            self.install(core, slot);
        }
    }

    /// Takes the next batch of the view: looks for its bodies, and votes when they are here.
    fn install(&mut self, core: &mut Core, slot: Slot) {
        let (number, batch, needs_bodies) = (slot.batch.number, Arc::clone(&slot.batch), slot.missing > 0);
        core.window.next = End::of(&batch, slot.assignment);
        core.window.slots.insert(number, slot);
        core.window.skip_accepted();
        if needs_bodies {
            self.find_bodies(core, &batch);
        }
        self.accept(core, number);
    }

    /// Takes a batch with which the view begins; what is known of it already stays. `assignment`: which groups are in charge of it.
    pub(crate) fn install_again(&mut self, core: &mut Core, batch: &Arc<Batch>, assignment: Assignment) {
        let number = batch.number;
        if number <= core.window.low_point().value {
            core.window.next = End::of(batch, assignment);
            return;
        }
        let digest = batch.digest();
        let slot = match core.window.slots.remove(&number) {
            Some(mut slot) if slot.digest == digest => {
                slot.stage = Stage::Waiting;
                slot.assignment = assignment;
                slot.is_late = false;
                slot.pre_prepare = None;
                slot
            }
            Some(_) => {
                // We have decided another one: more than f machines are faulty.
                core.ledger.stop(MisbehaviourKind::Contradiction);
                return;
            }
            None if number <= core.ledger.history.point.value => {
                // Fetched from a peer: it stands in our log.
                Slot::delivered(batch, digest, assignment)
            }
            None => Slot::new(batch, digest, assignment),
        };
        self.install(core, slot);
    }

    /// Looks for the bodies of a batch, and asks for those that are not here.
    fn find_bodies(&mut self, core: &mut Core, batch: &Arc<Batch>) {
        for (index, entry) in batch.entries.iter().enumerate() {
            let place = Place {
                value: batch.number,
                index,
            };
            let found = core.ledger.bodies.take(&entry.digest);
            match found.or_else(|| core.find_body(&entry.digest).cloned()) {
                Some(request) => self.fill(core, place, entry.digest, request),
                None => core.miss(entry.digest, place),
            }
        }
    }

    /// Writes the own PREPARE of a batch when everything is here, and its time is believed.
    pub(crate) fn accept(&mut self, core: &mut Core, number: u64) {
        let Some(slot) = core.window.slots.get_mut(&number) else {
            return;
        };
        if slot.stage != Stage::Waiting || slot.missing > 0 {
            return;
        }
        if slot.is_late {
            let votes = self.votes.get(&number);
            let believers = votes.map_or(0, |votes| votes.prepares(&slot.digest).count());
            if believers <= usize::from(core.ledger.configuration.faults.0) {
                return;
            }
        }
        let view = self.view;
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
        core.ledger.persist(record, Then::Prepare { view, number, digest });
    }

    /// The own PREPARE is durable: now it may be sent, and counts.
    pub(crate) fn on_accepted(&mut self, core: &mut Core, number: u64, digest: Digest) {
        let Some(slot) = core.window.slot_mut(number, &digest) else {
            return;
        };
        slot.stage = Stage::Accepted;
        let view = self.view;
        let signature = core.ledger.sign(&Prepare::signed(view, number, &digest));
        let prepare = Prepare {
            view,
            number,
            digest,
            signature,
        };
        self.count_prepare(core, core.own(), &prepare);
        core.ledger.send(To::Others, Message::Prepare(prepare));
    }

    pub(crate) fn on_prepare(&mut self, core: &mut Core, from: MachineId, prepare: &Prepare) {
        self.count_prepare(core, from, prepare);
        self.accept(core, prepare.number);
    }

    fn count_prepare(&mut self, core: &mut Core, from: MachineId, prepare: &Prepare) {
        let votes = self.votes.entry(prepare.number).or_default();
        if !votes.prepare(from, prepare.digest, prepare.signature) {
            core.ledger.report(from, MisbehaviourKind::Contradiction);
        }
    }
}

fn is_below_watermarks(core: &Core, proposal: &PrePrepare) -> bool {
    let low = core.window.low_point();
    let undecided = core.ledger.history.point.bytes.saturating_sub(low.bytes) + core.window.bytes() as u64;
    core.window.is_within(proposal.batch.number)
        && proposal.batch.last().0 <= low.order.0 + WATERMARK_ORDERS
        && undecided <= WATERMARK_BYTES as u64
}

/// Whether a proposal must wait until our clock has come near enough to its time.
fn is_ahead_of_clock(core: &mut Core, proposal: &PrePrepare) -> bool {
    let ledger = &mut core.ledger;
    let ahead_max_us = ledger.configuration.clock_ahead_max_us;
    let ahead_us = proposal.batch.time_us.saturating_sub(ledger.now.wall_us);
    let is_ahead = ahead_us > ahead_max_us;
    if is_ahead && !ledger.timers.is_set(Timer::Clock) {
        let primary = ledger.configuration.primary(proposal.view);
        ledger.report(primary, MisbehaviourKind::ClockSkew);
    }
    let wait_us = ahead_us.saturating_sub(ahead_max_us);
    let near_us = ledger.now.monotonic_us.saturating_add(wait_us);
    ledger.timers.set_or_stop(Timer::Clock, is_ahead.then_some(near_us));
    is_ahead
}
