//! Requests of clients, and bodies that come from elsewhere.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::identifiers::{Digest, MachineId, View};
use crate::message::Request;
use crate::minbft::bodies::{Arrival, Place};
use crate::minbft::history::ANSWER_BYTES_MAX;
use crate::minbft::messages::Message;
use crate::minbft::verification::FETCH_REQUESTS_MAX;
use crate::minbft::{Machine, Output};
use crate::verified::Verified;

impl Machine {
    pub(crate) fn on_request(&mut self, verified: &Verified<Arc<Request>>, out: &mut Vec<Output>) {
        self.take_request(*verified.digest(), verified.message(), out);
    }

    /// A request of a client, or one that a replica passes on.
    fn take_request(&mut self, digest: Digest, request: &Arc<Request>, out: &mut Vec<Output>) {
        let is_decided = !self.clients.is_new(request.client, request.number, request.floor);
        let leading = self.live.as_mut().and_then(|live| live.leading.as_mut());
        if let Some(leading) = leading.filter(|_| !is_decided) {
            leading.queue(digest, request.clone(), &self.configuration);
        }
        if !self.configuration.has_replicas() {
            // What a candidate without replicas needs to order, it gets from the replicas when it leads.
            return;
        }
        // A number that is decided may only be one of those that are missing (a faulty primary may order it twice).
        if !is_decided || self.bodies.is_missing(&digest) {
            self.take_body(digest, request, out);
        }
    }

    /// Takes a body from wherever it came.
    pub(crate) fn take_body(&mut self, digest: Digest, request: &Arc<Request>, out: &mut Vec<Output>) {
        let arrival = self.bodies.arrive(
            digest,
            request,
            self.now.monotonic_us,
            self.configuration.client_bytes_max,
        );
        if let Arrival::Wanted(places) = arrival {
            for place in places {
                self.fill(place, digest, request.clone(), out);
            }
        }
    }

    /// Puts a body in its place in the PREPARE stream.
    pub(crate) fn fill(&mut self, place: Place, digest: Digest, request: Arc<Request>, out: &mut Vec<Output>) {
        let Some(live) = self.live.as_mut() else { return };
        let group = live.stream.group_at(place.value, place.index);
        if group.is_some_and(|group| group != self.configuration.group_of(request.home)) {
            // Only with the body this shows. The share is never committed here, and the request waits for the next
            // primary.
            let bytes_max = self.configuration.client_bytes_max;
            self.bodies.arrive(digest, &request, self.now.monotonic_us, bytes_max);
            self.accuse_primary(out);
            return;
        }
        if let Some((order, group)) = live.stream.fill(place.value, place.index, request) {
            self.bodies.locate(digest, order);
            live.touch(group);
        }
    }

    /// The primary has broken the rules, and its warrant proves it: nothing more of it is followed, and it must be
    /// replaced.
    pub(crate) fn accuse_primary(&mut self, out: &mut Vec<Output>) {
        let Some(live) = self.live.as_mut().filter(|live| !live.stream.stopped) else {
            return;
        };
        live.stream.stopped = true;
        let (primary, view) = (live.primary, live.view);
        self.report(primary, MisbehaviourKind::WrongPrepare, out);
        self.want(View(view.0 + 1), out);
    }

    /// A body, wherever it is.
    pub(crate) fn find_body(&self, digest: &Digest) -> Option<&Arc<Request>> {
        if let Some(request) = self.bodies.pending(digest) {
            return Some(request);
        }
        let live = self.live.as_ref();
        if let Some(request) = live
            .and_then(|live| live.leading.as_ref())
            .and_then(|leading| leading.body(digest))
        {
            return Some(request);
        }
        if let Some(order) = self.bodies.location(digest) {
            let in_stream = live.and_then(|live| live.stream.body(order));
            return in_stream.or_else(|| self.history.body(order));
        }
        self.start.held.get(digest).map(|(_, request)| request)
    }

    pub(crate) fn on_fetch_requests(&mut self, from: MachineId, digests: &[Digest], out: &mut Vec<Output>) {
        let mut bytes = 0;
        let mut requests = Vec::new();
        for digest in digests.iter().take(FETCH_REQUESTS_MAX) {
            if bytes >= ANSWER_BYTES_MAX {
                break;
            }
            if let Some(request) = self.find_body(digest) {
                bytes += request.operation.len();
                requests.push(request.clone());
            }
        }
        if !requests.is_empty() {
            self.send(To::Machine(from), Message::GiveRequests(requests), out);
        }
    }

    pub(crate) fn on_give_requests(&mut self, requests: Vec<Arc<Request>>, out: &mut Vec<Output>) {
        for request in requests {
            let digest = request.digest();
            if self.bodies.is_missing(&digest) {
                self.take_body(digest, &request, out);
            } else if self.live.as_ref().is_some_and(|live| live.leading.is_some()) {
                self.take_request(digest, &request, out);
            } else {
                self.take_changing(digest, &request);
                self.take_wanted(digest, request);
            }
        }
        self.advance_change(out);
        self.advance_start(out);
    }
}
