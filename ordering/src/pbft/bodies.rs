//! The bodies of requests: where they are, which a batch lacks, and which nobody awaits any more.

use std::sync::Arc;

use crate::configuration::Mutant;
use crate::identifiers::{Digest, MachineId, Order};
use crate::ledger::bodies::Place;
use crate::message::Request;
use crate::pbft::core::Core;
use crate::pbft::window::Slot;
use crate::timers::Timer;

/// What has become of a body that a batch needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// It is in its place.
    Placed,
    /// There is one in its place already.
    Known,
    /// The batch gives it to a group that is not its own: the primary is faulty. Nothing that 2f+1 replicas have accepted
    /// can be so.
    WrongGroup,
}

impl Core {
    /// Bounds the requests that are watched: a client may give up any number of them.
    pub(crate) fn clean_waiting(&mut self) {
        let undelivered: usize = self.window.undelivered().map(|slot| slot.batch.entries.len()).sum();
        let awaited_max = self.ledger.bodies.pending_count() + undelivered;
        if self.waiting.is_beyond(awaited_max) {
            let mut waiting = std::mem::take(&mut self.waiting);
            waiting.retain(|digest| self.is_awaited(digest));
            self.waiting = waiting;
        }
    }

    /// Whether a request is neither decided nor given up by its client.
    pub(crate) fn is_awaited(&self, digest: &Digest) -> bool {
        let location = self.ledger.bodies.location(digest);
        self.ledger.bodies.pending(digest).is_some()
            || location.is_some_and(|order| order > self.ledger.history.point.order)
    }

    /// What waits and was decided in a part of the history that was skipped.
    pub(crate) fn forget_decided(&mut self) {
        let clients = &self.ledger.clients;
        let pending = self.ledger.bodies.pending_in_order();
        let decided = pending.filter(|(_, request)| !clients.lacks(request));
        let decided: Vec<Digest> = decided.map(|(digest, _)| *digest).collect();
        for digest in decided {
            self.ledger.bodies.take(&digest);
            self.waiting.remove(&digest);
        }
    }

    /// A body, wherever it is.
    pub(crate) fn find_body(&self, digest: &Digest) -> Option<&Arc<Request>> {
        self.ledger.bodies.pending(digest).or_else(|| {
            let order = self.ledger.bodies.location(digest)?;
            self.window.body(order).or_else(|| self.ledger.history.body(order))
        })
    }

    /// Puts a body in its place in a batch.
    pub(crate) fn fill(&mut self, place: Place, digest: Digest, request: Arc<Request>) -> Filled {
        let slot = self.window.slots.get_mut(&place.value);
        let entry = |slot: &&mut Slot| slot.batch.entries.get(place.index).copied();
        let found = slot.and_then(|slot| Some((entry(&slot)?, slot)));
        let Some((entry, slot)) = found.filter(|(entry, _)| entry.digest == digest) else {
            // Places are forgotten with their batches.
            self.ledger.stop_broken();
            return Filled::Known;
        };
        let configuration = &self.ledger.configuration;
        let is_of_now = configuration.is(Mutant::AssignmentOfNow);
        let assignment = if is_of_now {
            self.window.next.assignment
        } else {
            slot.assignment
        };
        if configuration.name_of(&assignment, &request) != entry.group {
            return Filled::WrongGroup;
        }
        let order = Order(slot.batch.first.0 + place.index as u64);
        if !slot.fill(place.index, request) {
            return Filled::Known;
        }
        self.ledger.bodies.locate(digest, order);
        Filled::Placed
    }

    /// A batch needs a body that is not here: asks for it if it does not come.
    pub(crate) fn miss(&mut self, digest: Digest, place: Place) {
        let ask_us = self.now_us() + self.ledger.configuration.body_patience_us;
        self.ledger.timers.set_earlier(Timer::Bodies, ask_us);
        self.ledger.bodies.miss(digest, place, ask_us);
    }

    /// Asks for bodies that were ordered and did not come: the primary first, then all in turn.
    pub(crate) fn ask_for_bodies(&mut self) {
        let (own, primary) = (self.own(), self.primary());
        let machines = u32::from(self.ledger.configuration.machines());
        let peer = |asked: u32| {
            let turn = (asked / 2 + u32::from(own.0) + 1) % machines;
            let other = MachineId(u8::try_from(turn).unwrap_or(0));
            if asked.is_multiple_of(2) { primary } else { other }
        };
        let next_us = self.ledger.ask_for_bodies(peer);
        self.ledger.timers.set_or_stop(Timer::Bodies, next_us);
    }
}
