//! Bodies of requests: those that wait to be ordered, those that were ordered and are missing, and where the
//! others are. Bounded for each client; bodies are shared (`Bytes`), never copied.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::identifiers::{ClientId, Digest, Order};
use crate::message::{REQUEST_WINDOW, Request};

/// Requests that wait to be ordered, of one client.
#[derive(Debug, Default)]
struct ClientBodies {
    bytes: usize,
    /// One body for each number: the first that came.
    numbers: BTreeMap<u64, Digest>,
}

impl ClientBodies {
    fn first_below(&self, floor: u64) -> Option<Digest> {
        let (number, digest) = self.numbers.first_key_value()?;
        (*number < floor).then_some(*digest)
    }
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

/// Where a body is.
#[derive(Debug)]
enum Known {
    /// It waits to be ordered: its place in [`Bodies::by_age`].
    Pending(u64, Arc<Request>),
    /// In the PREPARE stream, or in the tail of the history.
    Located(Order),
}

/// All bodies that are not decided, and where the recently decided ones are.
#[derive(Debug, Default)]
pub(crate) struct Bodies {
    /// Only looked up, never walked: its order differs from one run to the next.
    known: HashMap<Digest, Known>,
    by_age: ByAge,
    clients: BTreeMap<ClientId, ClientBodies>,
    pending_bytes: usize,
    missing: BTreeMap<Digest, Missing>,
}

impl Bodies {
    /// Takes a request of a client, or one that was fetched.
    pub(crate) fn arrive(
        &mut self,
        digest: Digest,
        request: &Arc<Request>,
        now_us: u64,
        client_bytes_max: usize,
    ) -> Arrival {
        if let Some(missing) = self.missing.remove(&digest) {
            return Arrival::Wanted(missing.places);
        }
        if self.known.contains_key(&digest) {
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
        let place = self.by_age.push(now_us, digest);
        self.known.insert(digest, Known::Pending(place, Arc::clone(request)));
        Arrival::Pending
    }

    /// Drops bodies below the client's floor: the client has promised not to want them.
    fn forget_below(&mut self, client: ClientId, floor: u64) {
        while let Some(digest) = self.clients.get(&client).and_then(|bodies| bodies.first_below(floor)) {
            self.take(&digest);
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
    pub(crate) fn take(&mut self, digest: &Digest) -> Option<Arc<Request>> {
        let Entry::Occupied(entry) = self.known.entry(*digest) else {
            return None;
        };
        if !matches!(entry.get(), Known::Pending(..)) {
            return None;
        }
        let Known::Pending(place, request) = entry.remove() else {
            return None;
        };
        self.waits_no_more(place, &request);
        Some(request)
    }

    /// A body has left those that wait.
    fn waits_no_more(&mut self, place: u64, request: &Request) {
        self.pending_bytes -= request.operation.len();
        if let Some(client) = self.clients.get_mut(&request.client) {
            client.bytes -= request.operation.len();
            client.numbers.remove(&request.number);
        }
        self.by_age.remove(place);
        for (place, digest) in self.by_age.sweep() {
            if let Some(Known::Pending(known, _)) = self.known.get_mut(&digest) {
                *known = place;
            }
        }
    }

    /// A body that waits to be ordered.
    pub(crate) fn pending(&self, digest: &Digest) -> Option<&Arc<Request>> {
        match self.known.get(digest) {
            Some(Known::Pending(_, request)) => Some(request),
            _ => None,
        }
    }

    /// Since when the one that has waited longest waits, monotonic.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        self.by_age.oldest().map(|(at_us, _)| at_us)
    }

    /// Those that wait since this time or longer begin to wait anew.
    pub(crate) fn renew_older(&mut self, since_us: u64, now_us: u64) {
        let is_old = |at_us: u64| at_us <= since_us && at_us < now_us;
        while let Some((_, digest)) = self.by_age.oldest().filter(|(at_us, _)| is_old(*at_us)) {
            self.by_age.pop();
            let renewed = self.by_age.push(now_us, digest);
            if let Some(Known::Pending(place, _)) = self.known.get_mut(&digest) {
                *place = renewed;
            }
        }
    }

    /// Nothing that was ordered is waited for any more: the view is left.
    pub(crate) fn forget_missing(&mut self) {
        self.missing.clear();
    }

    /// All that wait to be ordered, by client and number.
    pub(crate) fn pending_in_order(&self) -> impl Iterator<Item = (&Digest, &Arc<Request>)> {
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
        if let Some(Known::Pending(place, request)) = self.known.insert(digest, Known::Located(order)) {
            self.waits_no_more(place, &request);
        }
    }

    /// Where a body is, if it was ordered not long ago.
    pub(crate) fn location(&self, digest: &Digest) -> Option<Order> {
        match self.known.get(digest) {
            Some(Known::Located(order)) => Some(*order),
            _ => None,
        }
    }

    /// The body at this order is gone from the tail.
    pub(crate) fn forget_location(&mut self, digest: &Digest, order: Order) {
        if self.location(digest) == Some(order) {
            self.known.remove(digest);
        }
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.by_age.waiting
    }

    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    pub(crate) fn missing_count(&self) -> usize {
        self.missing.len()
    }

    /// The accounts of the clients add up.
    pub(crate) fn check_invariants(&self) {
        let clients = || self.clients.values();
        assert_eq!(self.pending_bytes, clients().map(|client| client.bytes).sum::<usize>());
        assert_eq!(
            self.pending_count(),
            clients().map(|client| client.numbers.len()).sum::<usize>()
        );
        let pending = self.pending_in_order().map(|(digest, request)| (*digest, request));
        assert_eq!(pending.count(), self.pending_count(), "every number has its body");
        self.by_age.check_invariants();
        assert!(self.missing.keys().all(|digest| self.pending(digest).is_none()));
    }
}

/// Places that are kept beside those of bodies that wait.
const PLACES_SPARE: usize = 64;

/// Who has waited longest: bodies in the order in which they came. Time does not go back.
#[derive(Debug, Default)]
struct ByAge {
    /// The place of the first.
    first: u64,
    /// Since when each waits, monotonic; none where the body is gone. Invariant: the first is there.
    places: VecDeque<Option<(u64, Digest)>>,
    /// Those that are there.
    waiting: usize,
}

impl ByAge {
    fn push(&mut self, at_us: u64, digest: Digest) -> u64 {
        self.places.push_back(Some((at_us, digest)));
        self.waiting += 1;
        self.first + self.places.len() as u64 - 1
    }

    fn oldest(&self) -> Option<(u64, Digest)> {
        *self.places.front()?
    }

    fn pop(&mut self) {
        self.remove(self.first);
    }

    fn remove(&mut self, place: u64) {
        let index = place
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(place) = index.and_then(|index| self.places.get_mut(index)) {
            self.waiting -= usize::from(place.take().is_some());
        }
        while self.places.pop_front_if(|place| place.is_none()).is_some() {
            self.first += 1;
        }
    }

    /// Closes the gaps when there are many: the new places of all that wait; nothing otherwise.
    fn sweep(&mut self) -> Vec<(u64, Digest)> {
        if self.places.len() <= 2 * self.waiting + PLACES_SPARE {
            return Vec::new();
        }
        self.places.retain(Option::is_some);
        let digests = self.places.iter().flatten().map(|(_, digest)| *digest);
        (self.first..).zip(digests).collect()
    }

    fn check_invariants(&self) {
        assert_eq!(self.places.iter().flatten().count(), self.waiting);
        assert!(self.places.front().is_none_or(Option::is_some));
        assert!(self.places.len() <= 2 * self.waiting + PLACES_SPARE);
        assert!(self.places.iter().flatten().is_sorted_by_key(|(at_us, _)| *at_us));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENTS: u64 = 3;
    const CLIENT_BYTES_MAX: usize = 1 << 20;

    fn request(number: u64) -> Arc<Request> {
        Arc::new(Request {
            client: ClientId(u32::try_from(number % CLIENTS).unwrap()),
            number,
            floor: 0,
            home: 0,
            operation: vec![0; 10].into(),
            signature: [0; 64],
        })
    }

    fn digest(number: u64) -> Digest {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(u64),
        Take(u64),
        Locate(u64),
        ForgetLocation(u64),
        Finish(u64, u64),
        Renew(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let number = || 0..120_u64;
        let step = prop_oneof![
            6 => number().prop_map(Step::Arrive),
            4 => number().prop_map(Step::Take),
            1 => number().prop_map(Step::Locate),
            1 => number().prop_map(Step::ForgetLocation),
            1 => (number(), 0..40_u64).prop_map(|(number, floor)| Step::Finish(number, floor)),
            1 => (0..30_u64).prop_map(Step::Renew),
        ];
        prop::collection::vec(step, 0..600)
    }

    proptest! {
        /// Against what the documentation says, done in the slowest way: all that wait, with the time since when.
        #[test]
        fn whoever_has_waited_longest_is_known(steps in steps()) {
            let mut bodies = Bodies::default();
            let mut waiting: Vec<(u64, u64)> = Vec::new();
            let mut located = std::collections::BTreeSet::new();
            for (now_us, step) in (1_u64..).zip(steps) {
                match step {
                    Step::Arrive(number) => {
                        let is_known = located.contains(&number) || waiting.iter().any(|(_, other)| *other == number);
                        let expected = if is_known { Arrival::Known } else { Arrival::Pending };
                        let arrival = bodies.arrive(digest(number), &request(number), now_us, CLIENT_BYTES_MAX);
                        prop_assert_eq!(arrival, expected);
                        waiting.extend((!is_known).then_some((now_us, number)));
                    }
                    Step::Take(number) => {
                        let is_waiting = waiting.iter().any(|(_, other)| *other == number);
                        prop_assert_eq!(bodies.take(&digest(number)).is_some(), is_waiting);
                        waiting.retain(|(_, other)| *other != number);
                    }
                    Step::Locate(number) => {
                        bodies.locate(digest(number), Order(number));
                        located.insert(number);
                        waiting.retain(|(_, other)| *other != number);
                    }
                    Step::ForgetLocation(number) => {
                        bodies.forget_location(&digest(number), Order(number + 1));
                        prop_assert_eq!(bodies.location(&digest(number)).is_some(), located.contains(&number));
                        bodies.forget_location(&digest(number), Order(number));
                        located.remove(&number);
                    }
                    Step::Finish(number, floor) => {
                        bodies.finish(request(number).client, number, floor);
                        waiting.retain(|(_, other)| *other != number && !(other % CLIENTS == number % CLIENTS && *other < floor));
                    }
                    Step::Renew(behind_us) => {
                        let since_us = now_us.saturating_sub(behind_us);
                        bodies.renew_older(since_us, now_us);
                        for (at_us, _) in waiting.iter_mut().filter(|(at_us, _)| *at_us <= since_us) {
                            *at_us = now_us;
                        }
                    }
                }
                bodies.check_invariants();
                prop_assert_eq!(bodies.oldest_us(), waiting.iter().map(|(at_us, _)| *at_us).min());
                prop_assert_eq!(bodies.pending_count(), waiting.len());
                prop_assert_eq!(bodies.pending_bytes(), 10 * waiting.len());
                let mut expected: Vec<_> = waiting.iter().map(|(_, number)| (number % CLIENTS, *number)).collect();
                expected.sort_unstable();
                let found: Vec<_> = bodies.pending_in_order().map(|(_, found)| (u64::from(found.client.0), found.number)).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn places_of_bodies_that_are_gone_take_no_room() {
        let mut bodies = Bodies::default();
        for number in 0..100_000 {
            bodies.arrive(digest(number), &request(number), number, CLIENT_BYTES_MAX);
            // The first one waits for ever.
            if number > 0 {
                assert!(bodies.take(&digest(number)).is_some());
            }
            assert!(bodies.by_age.places.len() <= 2 + PLACES_SPARE);
        }
        bodies.check_invariants();
        assert_eq!(bodies.oldest_us(), Some(0));
    }
}
