//! Requests that are known and not decided: how long they wait, and where their bodies are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::identifiers::{Digest, MachineId, Order};
use crate::ledger::bodies::Place;
use crate::message::Request;
use crate::pbft::core::Core;
use crate::pbft::window::Slot;
use crate::timers::Timer;

/// Requests that are watched beyond those that are awaited, before they are cleaned.
const WAITING_SLACK: usize = 1024;

/// Requests that are known and not decided, by how long they wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    since_us: BTreeMap<Digest, Since>,
    oldest: BTreeSet<(u64, Digest)>,
    /// The same, by when they were last forwarded to the primary, or else by how long they wait.
    unforwarded: BTreeSet<(u64, Digest)>,
}

/// Since when a request waits.
#[derive(Debug)]
struct Since {
    known_us: u64,
    /// The key in `unforwarded`.
    unforwarded_us: u64,
}

impl Waiting {
    pub(crate) fn add(&mut self, digest: Digest, now_us: u64) {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.since_us.entry(digest) {
            entry.insert(Since {
                known_us: now_us,
                unforwarded_us: now_us,
            });
            self.oldest.insert((now_us, digest));
            self.unforwarded.insert((now_us, digest));
        }
    }

    pub(crate) fn remove(&mut self, digest: &Digest) {
        if let Some(since) = self.since_us.remove(digest) {
            self.oldest.remove(&(since.known_us, *digest));
            self.unforwarded.remove(&(since.unforwarded_us, *digest));
        }
    }

    /// The one that has waited longest, and since when.
    pub(crate) fn oldest(&self) -> Option<(u64, Digest)> {
        self.oldest.first().copied()
    }

    /// The one that counts as unforwarded longest, and since when.
    pub(crate) fn unforwarded(&self) -> Option<(u64, Digest)> {
        self.unforwarded.first().copied()
    }

    /// A request is forwarded: it counts as unforwarded again from then on.
    pub(crate) fn forwarded(&mut self, digest: &Digest, again_us: u64) {
        if let Some(since) = self.since_us.get_mut(digest) {
            self.unforwarded.remove(&(since.unforwarded_us, *digest));
            since.unforwarded_us = again_us;
            self.unforwarded.insert((again_us, *digest));
        }
    }

    /// A view begins: everything waits anew.
    pub(crate) fn restart(&mut self, now_us: u64) {
        for since in self.since_us.values_mut() {
            (since.known_us, since.unforwarded_us) = (now_us, now_us);
        }
        self.oldest = self.since_us.keys().map(|digest| (now_us, *digest)).collect();
        self.unforwarded = self.oldest.clone();
    }

    /// Forgets those that nobody awaits any more.
    fn retain(&mut self, is_awaited: impl Fn(&Digest) -> bool) {
        self.since_us.retain(|digest, _| is_awaited(digest));
        let since_us = &self.since_us;
        self.oldest.retain(|(_, digest)| since_us.contains_key(digest));
        self.unforwarded.retain(|(_, digest)| since_us.contains_key(digest));
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.since_us.len(), self.oldest.len());
        let is_known = |(since_us, digest): &(u64, Digest)| {
            let since = self.since_us.get(digest);
            since.is_some_and(|since| since.unforwarded_us == *since_us)
        };
        assert_eq!(self.since_us.len(), self.unforwarded.len());
        assert!(self.unforwarded.iter().all(is_known));
    }
}

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
        if self.waiting.since_us.len() > 2 * awaited_max + WAITING_SLACK {
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
        if self.ledger.configuration.group_of(request.home) != entry.group {
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
