//! Bodies of requests: those that wait to be ordered, those that were ordered and are missing, and where the
//! others are. Bounded for each client; bodies are shared (`Bytes`), never copied.

use std::collections::{BTreeMap, BTreeSet};

use crate::identifiers::{ClientId, Digest, Order};
use crate::message::{REQUEST_WINDOW, Request};

/// Requests that wait to be ordered, of one client.
#[derive(Debug, Default)]
struct ClientBodies {
    bytes: usize,
    /// One body for each number: the first that came.
    numbers: BTreeMap<u64, Digest>,
}

/// A place in the PREPARE stream that lacks its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) value: u64,
    pub(crate) index: usize,
}

/// A body that was ordered and is not here.
#[derive(Debug)]
pub(crate) struct Missing {
    /// Where it belongs (more than one place only under a faulty primary).
    pub(crate) places: Vec<Place>,
    /// When to ask (again), monotonic.
    pub(crate) ask_us: u64,
    /// How often it was asked for.
    pub(crate) asked: u32,
}

/// What became of a request that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It waits to be ordered.
    Pending,
    /// It was missing at these places.
    Wanted(Vec<Place>),
    /// It is here already.
    Known,
    /// The client has more outstanding than it may, or another body with that number.
    Refused,
}

/// All bodies that are not decided, and where the recently decided ones are.
#[derive(Debug, Default)]
pub(crate) struct Bodies {
    pending: BTreeMap<Digest, (u64, Request)>,
    /// The same by the time at which they came, monotonic.
    by_age: BTreeSet<(u64, Digest)>,
    clients: BTreeMap<ClientId, ClientBodies>,
    pending_bytes: usize,
    missing: BTreeMap<Digest, Missing>,
    /// Bodies in the PREPARE stream or in the tail of the history, by digest.
    located: BTreeMap<Digest, Order>,
}

impl Bodies {
    /// Takes a request of a client, or one that was fetched.
    pub(crate) fn arrive(
        &mut self,
        digest: Digest,
        request: &Request,
        now_us: u64,
        client_bytes_max: usize,
    ) -> Arrival {
        if let Some(missing) = self.missing.remove(&digest) {
            return Arrival::Wanted(missing.places);
        }
        if self.pending.contains_key(&digest) || self.located.contains_key(&digest) {
            return Arrival::Known;
        }
        self.forget_below(request.client, request.floor);
        let client = self.clients.entry(request.client).or_default();
        let bytes = request.operation.len();
        let is_full = client.bytes + bytes > client_bytes_max || client.numbers.len() as u64 >= REQUEST_WINDOW;
        if is_full || client.numbers.contains_key(&request.number) {
            return Arrival::Refused;
        }
        client.bytes += bytes;
        client.numbers.insert(request.number, digest);
        self.pending_bytes += bytes;
        self.pending.insert(digest, (now_us, request.clone()));
        self.by_age.insert((now_us, digest));
        Arrival::Pending
    }

    /// Drops bodies below the client's floor: the client has promised not to want them.
    fn forget_below(&mut self, client: ClientId, floor: u64) {
        let Some(bodies) = self.clients.get_mut(&client) else {
            return;
        };
        while let Some(entry) = bodies.numbers.first_entry().filter(|entry| *entry.key() < floor) {
            let digest = entry.remove();
            if let Some((at_us, request)) = self.pending.remove(&digest) {
                self.by_age.remove(&(at_us, digest));
                bodies.bytes -= request.operation.len();
                self.pending_bytes -= request.operation.len();
            }
        }
    }

    /// A number of a client is decided: no other body with that number is wanted any more.
    pub(crate) fn finish(&mut self, client: ClientId, number: u64, floor: u64) {
        self.forget_below(client, floor);
        let numbers = self.clients.get(&client).map(|bodies| &bodies.numbers);
        if let Some(digest) = numbers.and_then(|numbers| numbers.get(&number)).copied() {
            self.take(&digest);
        }
    }

    /// Takes a body out of those that wait to be ordered.
    pub(crate) fn take(&mut self, digest: &Digest) -> Option<Request> {
        let (at_us, request) = self.pending.remove(digest)?;
        self.by_age.remove(&(at_us, *digest));
        self.pending_bytes -= request.operation.len();
        if let Some(client) = self.clients.get_mut(&request.client) {
            client.bytes -= request.operation.len();
            client.numbers.remove(&request.number);
        }
        Some(request)
    }

    /// A body that waits to be ordered.
    pub(crate) fn pending(&self, digest: &Digest) -> Option<&Request> {
        self.pending.get(digest).map(|(_, request)| request)
    }

    /// Since when the one that has waited longest waits, monotonic.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        self.by_age.first().map(|(at_us, _)| *at_us)
    }

    /// Those that wait since this time or longer begin to wait anew.
    pub(crate) fn renew_older(&mut self, since_us: u64, now_us: u64) {
        while let Some((at_us, digest)) = self.by_age.pop_first() {
            let is_old = at_us <= since_us && at_us < now_us;
            let renewed_us = if is_old { now_us } else { at_us };
            self.by_age.insert((renewed_us, digest));
            if !is_old {
                return;
            }
            if let Some((at_us, _)) = self.pending.get_mut(&digest) {
                *at_us = now_us;
            }
        }
    }

    /// Nothing that was ordered is waited for any more: the view is left.
    pub(crate) fn forget_missing(&mut self) {
        self.missing.clear();
    }

    /// All that wait to be ordered, by client and number.
    pub(crate) fn pending_in_order(&self) -> impl Iterator<Item = (&Digest, &Request)> {
        let digests = self.clients.values().flat_map(|client| client.numbers.values());
        digests.filter_map(|digest| Some((digest, self.pending(digest)?)))
    }

    /// Notes that a body was ordered and is not here.
    pub(crate) fn miss(&mut self, digest: Digest, place: Place, ask_us: u64) {
        let missing = self.missing.entry(digest).or_insert_with(|| Missing {
            places: Vec::new(),
            ask_us,
            asked: 0,
        });
        missing.places.push(place);
    }

    /// Whether a body was ordered and is not here.
    pub(crate) fn is_missing(&self, digest: &Digest) -> bool {
        self.missing.contains_key(digest)
    }

    /// The bodies that are missing.
    pub(crate) fn missing_mut(&mut self) -> impl Iterator<Item = (&Digest, &mut Missing)> {
        self.missing.iter_mut()
    }

    /// Forgets places of the stream up to this value: they were decided without us.
    pub(crate) fn forget_places(&mut self, value: u64) {
        self.missing.retain(|_, missing| {
            missing.places.retain(|place| place.value > value);
            !missing.places.is_empty()
        });
    }

    /// Notes where a body is.
    pub(crate) fn locate(&mut self, digest: Digest, order: Order) {
        self.located.insert(digest, order);
    }

    /// Where a body is, if it was ordered not long ago.
    pub(crate) fn location(&self, digest: &Digest) -> Option<Order> {
        self.located.get(digest).copied()
    }

    /// The body at this order is gone from the tail.
    pub(crate) fn forget_location(&mut self, digest: &Digest, order: Order) {
        if self.located.get(digest) == Some(&order) {
            self.located.remove(digest);
        }
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    pub(crate) fn missing_count(&self) -> usize {
        self.missing.len()
    }

    /// The accounts of the clients add up.
    pub(crate) fn check_invariants(&self) {
        assert_eq!(
            self.pending_bytes,
            self.clients.values().map(|client| client.bytes).sum::<usize>()
        );
        assert_eq!(
            self.pending.len(),
            self.clients.values().map(|client| client.numbers.len()).sum::<usize>()
        );
        assert_eq!(self.pending.len(), self.by_age.len());
        assert!(self.missing.keys().all(|digest| !self.pending.contains_key(digest)));
    }
}
