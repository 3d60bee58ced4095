//! Requests of clients, bodies that come from elsewhere, and how long they wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::FETCH_REQUESTS_MAX;
use crate::configuration::Mutant;
use crate::identifiers::{Digest, MachineId, Order};
use crate::ledger::ANSWER_BYTES_MAX;
use crate::ledger::bodies::{Arrival, Place};
use crate::message::Request;
use crate::pbft::Machine;
use crate::pbft::messages::{Batch, Message};
use crate::pbft::verification::FORWARD_MAX;
use crate::timers::Timer;
use crate::verified::Verified;

/// A request that waits so many timeouts is starved, whatever else is decided.
const STARVED_TIMEOUTS: u64 = 8;

/// A request is forwarded again after so many timeouts: what was forwarded may have got lost.
const FORWARD_AGAIN_TIMEOUTS: u64 = 2;

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

    /// A request is forwarded: it counts as unforwarded again from then on.
    fn forwarded(&mut self, digest: &Digest, again_us: u64) {
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

impl Machine {
    pub(crate) fn on_request(&mut self, verified: &Verified<Arc<Request>>) {
        self.take_request(*verified.digest(), verified.message());
    }

    /// A replica thinks that we should order these.
    pub(crate) fn on_forward(&mut self, requests: &[Arc<Request>]) {
        for request in requests {
            self.take_request(request.digest(), request);
        }
    }

    fn take_request(&mut self, digest: Digest, request: &Arc<Request>) {
        // A number that is decided may only be one of those that are missing (a faulty primary may order it twice).
        let is_new = self
            .ledger
            .clients
            .is_new(request.client, request.number, request.floor);
        if is_new || self.ledger.bodies.is_missing(&digest) || self.ledger.configuration.is(Mutant::PbftForgetDecided) {
            self.take_body(digest, request);
        }
    }

    /// Takes a body from wherever it came.
    pub(crate) fn take_body(&mut self, digest: Digest, request: &Arc<Request>) {
        let (now_us, bytes_max) = (self.ledger.now.monotonic_us, self.ledger.configuration.client_bytes_max);
        match self.ledger.bodies.arrive(digest, request, now_us, bytes_max) {
            Arrival::Pending => {
                let waiting = self.ledger.bodies.pending_count();
                self.waiting.add(digest, self.ledger.now.monotonic_us);
                self.clean_waiting();
                if let Some(leader) = self.view.leading.as_mut() {
                    let bodies = &self.ledger.bodies;
                    leader.queue(digest, waiting, |digest| bodies.pending(digest).is_some());
                }
            }
            Arrival::Wanted(places) => {
                self.waiting.add(digest, self.ledger.now.monotonic_us);
                for place in places {
                    self.fill(place, digest, request.clone());
                }
            }
            Arrival::Known | Arrival::Refused => {}
        }
    }

    /// Bounds the requests that are watched: a client may give up any number of them.
    fn clean_waiting(&mut self) {
        let undelivered: usize = self.window.undelivered().map(|slot| slot.batch.entries.len()).sum();
        let awaited_max = self.ledger.bodies.pending_count() + undelivered;
        if self.waiting.since_us.len() > 2 * awaited_max + WAITING_SLACK {
            let mut waiting = std::mem::take(&mut self.waiting);
            waiting.retain(|digest| self.is_awaited(digest));
            self.waiting = waiting;
        }
    }

    /// Puts a body in its place in a batch.
    fn fill(&mut self, place: Place, digest: Digest, request: Arc<Request>) {
        let Some(slot) = self.window.slots.get_mut(&place.value) else {
            return;
        };
        let entry = slot
            .batch
            .entries
            .get(place.index)
            .filter(|entry| entry.digest == digest);
        let Some(entry) = entry.copied() else { return };
        if self.ledger.configuration.group_of(request.home) != entry.group {
            // Only with the body this shows. Nothing that 2f+1 replicas have accepted can be so.
            self.accuse_primary(MisbehaviourKind::WrongPrepare);
            return;
        }
        let order = Order(slot.batch.first.0 + place.index as u64);
        if slot.fill(place.index, request) {
            self.ledger.bodies.locate(digest, order);
            self.accept(place.value);
        }
    }

    /// Looks for the bodies of a batch, and asks for those that are not here.
    pub(crate) fn find_bodies(&mut self, batch: &Arc<Batch>) {
        for (index, entry) in batch.entries.iter().enumerate() {
            let place = Place {
                value: batch.number,
                index,
            };
            let found = self.ledger.bodies.take(&entry.digest);
            match found.or_else(|| self.find_body(&entry.digest).cloned()) {
                Some(request) => self.fill(place, entry.digest, request),
                None => {
                    let ask_us = self.ledger.now.monotonic_us + self.ledger.configuration.body_patience_us;
                    self.ledger.timers.set_earlier(Timer::Bodies, ask_us);
                    self.ledger.bodies.miss(entry.digest, place, ask_us);
                }
            }
        }
    }

    /// A body, wherever it is.
    pub(crate) fn find_body(&self, digest: &Digest) -> Option<&Arc<Request>> {
        self.ledger.bodies.pending(digest).or_else(|| {
            let order = self.ledger.bodies.location(digest)?;
            self.window.body(order).or_else(|| self.ledger.history.body(order))
        })
    }

    /// A request is decided.
    pub(crate) fn finish(&mut self, digest: &Digest, request: &Arc<Request>) {
        self.ledger
            .clients
            .record(request.client, request.number, request.floor);
        self.ledger.bodies.finish(request.client, request.number, request.floor);
        self.waiting.remove(digest);
    }

    /// What waits and was decided in a part of the history that was skipped.
    pub(crate) fn forget_decided(&mut self) {
        let clients = &self.ledger.clients;
        let pending = self.ledger.bodies.pending_in_order();
        let is_decided = |request: &Arc<Request>| !clients.is_new(request.client, request.number, request.floor);
        let decided: Vec<Digest> = pending
            .filter(|(_, request)| is_decided(request))
            .map(|(digest, _)| *digest)
            .collect();
        for digest in decided {
            self.ledger.bodies.take(&digest);
            self.waiting.remove(&digest);
        }
    }

    pub(crate) fn on_fetch_requests(&mut self, from: MachineId, digests: &[Digest]) {
        let digests = digests.iter().take(FETCH_REQUESTS_MAX);
        let found: Vec<_> = digests.filter_map(|digest| self.find_body(digest)).cloned().collect();
        self.ledger.give_requests(from, found.into_iter());
    }

    pub(crate) fn on_give_requests(&mut self, requests: &[Arc<Request>]) {
        for request in requests {
            let digest = request.digest();
            if self.ledger.bodies.is_missing(&digest) {
                self.take_body(digest, request);
            }
        }
    }

    /// How long a request may wait in this view.
    pub(crate) fn patience_us(&self) -> u64 {
        self.ledger.configuration.request_us << self.view.backoff
    }

    /// When the oldest request has waited too long: nothing was decided for a timeout, or it alone is passed over.
    fn expiry_us(&self) -> Option<u64> {
        let (since_us, _) = self.waiting.oldest.first().filter(|_| self.view.is_active)?;
        let patience_us = self.patience_us();
        let stuck_us = (*since_us).max(self.view.progress_us).saturating_add(patience_us);
        Some(stuck_us.min(since_us.saturating_add(patience_us.saturating_mul(STARVED_TIMEOUTS))))
    }

    /// When to forward the oldest request that the primary seems not to have.
    fn forward_us(&self) -> Option<u64> {
        let (since_us, _) = self.waiting.unforwarded.first().filter(|_| self.view.is_active)?;
        Some(since_us.saturating_add(self.patience_us() / 2))
    }

    /// When to look at the requests that wait.
    pub(crate) fn waiting_deadline(&self) -> Option<u64> {
        // Once we want another primary, the tick looks whether we still do.
        let expiry_us = self.expiry_us().filter(|_| !self.view.is_wanting);
        self.forward_us().into_iter().chain(expiry_us).min()
    }

    /// Forwards what the primary seems to lack, and deposes it when that does not help.
    pub(crate) fn waiting_timer(&mut self) {
        self.forward();
        if !self.view.is_wanting && self.is_starved() {
            self.want_view_change();
        }
    }

    /// Whether a request has waited too long.
    pub(crate) fn is_starved(&mut self) -> bool {
        while self
            .expiry_us()
            .is_some_and(|expiry_us| expiry_us <= self.ledger.now.monotonic_us)
        {
            match self.waiting.oldest.first().copied() {
                Some((_, digest)) if !self.is_awaited(&digest) => self.waiting.remove(&digest),
                _ => return true,
            }
        }
        false
    }

    /// Whether a request is neither decided nor given up by its client.
    fn is_awaited(&self, digest: &Digest) -> bool {
        let location = self.ledger.bodies.location(digest);
        self.ledger.bodies.pending(digest).is_some()
            || location.is_some_and(|order| order > self.ledger.history.point.order)
    }

    fn forward(&mut self) {
        let mut requests = Vec::new();
        let mut bytes = 0;
        let again_us = self.ledger.now.monotonic_us + FORWARD_AGAIN_TIMEOUTS * self.patience_us();
        while self
            .forward_us()
            .is_some_and(|forward_us| forward_us <= self.ledger.now.monotonic_us)
        {
            let Some((_, digest)) = self.waiting.unforwarded.first().copied() else {
                break;
            };
            self.waiting.forwarded(&digest, again_us);
            if let Some(request) = self.ledger.bodies.pending(&digest) {
                bytes += request.operation.len();
                requests.push(request.clone());
            }
            if requests.len() == FORWARD_MAX || bytes >= ANSWER_BYTES_MAX {
                self.send_to_primary(Message::Forward(std::mem::take(&mut requests)));
                bytes = 0;
            }
        }
        if !requests.is_empty() {
            self.send_to_primary(Message::Forward(requests));
        }
    }

    fn send_to_primary(&mut self, message: Message) {
        let primary = self.ledger.configuration.primary(self.view.view);
        self.ledger.send(To::Machine(primary), message);
    }
}
