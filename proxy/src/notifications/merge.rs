//! What transactions have notified, from the words of single voters: each transaction once, when f+1 voters say the same of it, and
//! what one committed before another is told before it. Pure.
//!
//! Each voter tells of transactions in the order in which its server committed them. Transactions that have to do with each other commit
//! in one order everywhere; the others may not. So a transaction is told when f+1 voters agree on it of whom none has told of
//! another before it that f+1 voters have not confirmed; what they have told of before goes first. One of them is correct,
//! and so has told of everything that the transaction can have followed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ordering::identifiers::MachineId;
use ordering::message::Notifications;

/// Transactions of one voter that wait for others to confirm them, at most.
const WAITING_MAX: usize = 10_000;
/// What they may take, in bytes.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// How many transactions are remembered to have been told.
const TOLD_MAX: usize = 65_536;
/// So long is waited for f+1 voters that give a transaction's notifications in one order; then f+1 that give the same suffice.
const SEQUENCE_PATIENCE: Duration = Duration::from_secs(1);
/// What f+1 voters have not confirmed by then is dropped.
const CONFIRMATION_PATIENCE: Duration = Duration::from_secs(30);

/// A transaction's place: the order that let it run, and its own, unless that is the same. So what ends at an order comes before what
/// waited for it.
type Place = (u64, u64);

fn place_of(said: &Notifications) -> Place {
    let (granted, order) = (said.granted.0, said.order.0);
    (granted, if granted == order { 0 } else { order })
}

/// One voter's word on a transaction.
#[derive(Debug)]
struct Said {
    place: Place,
    notifications: Arc<Notifications>,
    bytes: usize,
    at: Instant,
}

/// What became of words that were not told; for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// There was no room for them: their voter has told of too much that nobody confirms.
    pub(super) without_room: u64,
    /// f+1 voters have not said so in time.
    pub(super) unconfirmed: u64,
}

/// The words of all voters.
#[derive(Debug)]
pub(super) struct Merge {
    voters: usize,
    enough: usize,
    /// Of each voter what was not told yet, in its order.
    streams: BTreeMap<MachineId, VecDeque<Said>>,
    bytes: BTreeMap<MachineId, usize>,
    /// What f+1 voters have said, and has not been told.
    confirmed: BTreeMap<Place, Arc<Notifications>>,
    /// What was told, as far as it is remembered.
    told: BTreeSet<Place>,
    /// Up to here nothing is remembered: it was told, or is too old to be.
    forgotten: Place,
    dropped: Dropped,
}

impl Merge {
    /// For 2f+1 voters.
    pub(super) fn new(faults: usize) -> Self {
        Self {
            voters: 2 * faults + 1,
            enough: faults + 1,
            streams: BTreeMap::new(),
            bytes: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            told: BTreeSet::new(),
            forgotten: (0, 0),
            dropped: Dropped::default(),
        }
    }

    /// Nothing is told of what was granted up to this order, unless something was told before.
    pub(super) fn begin_at(&mut self, order: u64) {
        if self.told.is_empty() && self.forgotten == (0, 0) {
            self.forgotten = (order, u64::MAX);
        }
    }

    /// Takes a voter's word; gives what is to be told now, in this order.
    pub(super) fn say(&mut self, voter: MachineId, said: Notifications, now: Instant) -> Vec<Arc<Notifications>> {
        let place = place_of(&said);
        let stream = self.streams.entry(voter).or_default();
        if place <= self.forgotten || self.told.contains(&place) || stream.iter().any(|before| before.place == place) {
            return Vec::new();
        }
        let bytes = size_of::<Said>() + said.notifications.iter().map(|one| one.bytes() * 2).sum::<usize>();
        let waiting = self.bytes.entry(voter).or_default();
        if stream.len() >= WAITING_MAX || *waiting + bytes > WAITING_BYTES_MAX {
            self.dropped.without_room += 1;
            return Vec::new();
        }
        *waiting += bytes;
        stream.push_back(Said {
            place,
            notifications: Arc::new(said),
            bytes,
            at: now,
        });
        self.confirm(place, now);
        self.tell()
    }

    /// Time has passed: what is to be told now.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Arc<Notifications>> {
        let waiting: BTreeSet<Place> = self
            .streams
            .values()
            .flatten()
            .filter(|said| {
                now.duration_since(said.at) >= SEQUENCE_PATIENCE && !self.confirmed.contains_key(&said.place)
            })
            .map(|said| said.place)
            .collect();
        for place in waiting {
            self.confirm(place, now);
        }
        let told = self.tell();
        let confirmed = &self.confirmed;
        for (voter, stream) in &mut self.streams {
            let before = stream.len();
            stream.retain(|said| {
                now.duration_since(said.at) < CONFIRMATION_PATIENCE || confirmed.contains_key(&said.place)
            });
            self.dropped.unconfirmed += (before - stream.len()) as u64;
            let bytes = stream.iter().map(|said| said.bytes).sum();
            self.bytes.insert(*voter, bytes);
        }
        told
    }

    /// Whether a voter has told of a transaction of this order that was not told yet.
    pub(super) fn awaits(&self, order: u64) -> bool {
        self.streams
            .values()
            .flatten()
            .any(|said| said.notifications.order.0 == order)
    }

    /// What was dropped since it was asked last.
    pub(super) fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    /// Notes a transaction on which f+1 voters agree: also on the order of what it notified, or, when it has waited or all have
    /// spoken, on everything but that. Rows that stand in another order on each server make triggers notify in another order.
    fn confirm(&mut self, place: Place, now: Instant) {
        if self.confirmed.contains_key(&place) {
            return;
        }
        let words: Vec<&Said> = self
            .streams
            .values()
            .flatten()
            .filter(|said| said.place == place)
            .collect();
        let agreed = |same: fn(&Notifications, &Notifications) -> bool| {
            let mut candidates = words.iter();
            candidates.find(|candidate| {
                let others = words
                    .iter()
                    .filter(|other| same(&candidate.notifications, &other.notifications));
                others.count() >= self.enough
            })
        };
        let waited = words
            .iter()
            .any(|said| now.duration_since(said.at) >= SEQUENCE_PATIENCE);
        let found = agreed(|one, other| one == other).or_else(|| {
            (waited || words.len() >= self.voters)
                .then(|| agreed(same_but_for_order))
                .flatten()
        });
        if let Some(found) = found {
            let notifications = Arc::clone(&found.notifications);
            self.confirmed.insert(place, notifications);
        }
    }

    /// Takes out what can be told.
    fn tell(&mut self) -> Vec<Arc<Notifications>> {
        // Of each voter the beginning that is confirmed: what comes behind may follow something that is not known yet.
        let beginnings: Vec<Vec<Place>> = self
            .streams
            .values()
            .map(|stream| {
                let places = stream.iter().map(|said| said.place);
                places.take_while(|place| self.confirmed.contains_key(place)).collect()
            })
            .collect();
        let mut counts: BTreeMap<Place, usize> = BTreeMap::new();
        for place in beginnings.iter().flatten() {
            *counts.entry(*place).or_default() += 1;
        }
        let mut due = BTreeSet::new();
        for beginning in &beginnings {
            let ready = |place: &Place| counts.get(place).is_some_and(|count| *count >= self.enough);
            if let Some(last) = beginning.iter().rposition(ready) {
                due.extend(beginning.iter().take(last + 1).copied());
            }
        }
        let told: Vec<_> = due.iter().filter_map(|place| self.confirmed.remove(place)).collect();
        for (voter, stream) in &mut self.streams {
            if due.is_empty() {
                break;
            }
            stream.retain(|said| !due.contains(&said.place));
            let bytes = stream.iter().map(|said| said.bytes).sum();
            self.bytes.insert(*voter, bytes);
        }
        self.told.extend(due);
        while self.told.len() > TOLD_MAX
            && let Some(oldest) = self.told.pop_first()
        {
            self.forgotten = oldest;
        }
        told
    }
}

fn same_but_for_order(one: &Notifications, other: &Notifications) -> bool {
    let sorted = |said: &Notifications| {
        let mut notifications = said.notifications.clone();
        notifications.sort_unstable();
        notifications
    };
    let same = |one: &Notifications, other: &Notifications| {
        (one.client, one.session, one.dropped) == (other.client, other.session, other.dropped)
    };
    same(one, other) && one.notifications.len() == other.notifications.len() && sorted(one) == sorted(other)
}

#[cfg(test)]
mod tests;
