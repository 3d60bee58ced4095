//! Advisory locks (`docs/decisions/0054`): of sessions and of transactions, as Postgres has them, a function of the ordered history.
//!
//! A lock belongs to a session, whether it ends with one of its transactions or when the session gives it back: what a session holds
//! never stands in its own way. Who waits is granted the lock in the order of asking.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use sql::operation::{AdvisoryKey, SessionId, TransactionId};

/// Locks that the sessions of one client hold and wait for, at most: no client can make voters keep more.
pub const LOCKS_OF_CLIENT_MAX: usize = 16_384;

/// What a session asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct AdvisoryRequest {
    /// The key.
    pub key: AdvisoryKey,
    /// Shared rather than exclusive.
    pub shared: bool,
    /// The number of the session's transaction with which the lock ends; `None`: it is the session's own.
    pub transaction: Option<u64>,
}

/// How often a lock is held, by mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Counts {
    shared: u64,
    exclusive: u64,
}

impl Counts {
    fn of(&mut self, shared: bool) -> &mut u64 {
        match shared {
            true => &mut self.shared,
            false => &mut self.exclusive,
        }
    }

    fn is_none(self) -> bool {
        self.shared == 0 && self.exclusive == 0
    }
}

/// What a session holds of one key. Invariant: something.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Hold {
    /// The session's own.
    own: Counts,
    /// What ends with its transactions, by their numbers.
    transactions: BTreeMap<u64, Counts>,
}

impl Hold {
    fn all(&self) -> impl Iterator<Item = Counts> {
        self.transactions.values().copied().chain([self.own])
    }

    fn is_exclusive(&self) -> bool {
        self.all().any(|counts| counts.exclusive > 0)
    }

    fn has(&self, shared: bool) -> bool {
        self.all().any(|mut counts| *counts.of(shared) > 0)
    }

    fn is_none(&self) -> bool {
        self.own.is_none() && self.transactions.is_empty()
    }
}

/// A session that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Wait {
    /// The order at which it asked.
    since: u64,
    request: AdvisoryRequest,
}

/// Invariant: somebody holds the key, or waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Key {
    holders: BTreeMap<SessionId, Hold>,
    /// Who waits, by the order of asking, and whether for the shared mode.
    waiting: BTreeMap<u64, (SessionId, bool)>,
}

/// In which modes sessions wait before one.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    any: bool,
    exclusive: bool,
}

impl Queue {
    fn add(&mut self, shared: bool) {
        self.any = true;
        self.exclusive |= !shared;
    }
}

impl Key {
    /// Whether a session cannot be granted the key behind this queue: the same as whether it has blockers, in less time.
    fn excludes(&self, session: SessionId, shared: bool, before: Queue) -> bool {
        let own = self.holders.get(&session);
        if own.is_some_and(|own| own.has(shared)) {
            return false;
        }
        let others = self.holders.len() - usize::from(own.is_some());
        // Who holds it exclusively holds it alone.
        let is_exclusive = || self.holders.values().next().is_some_and(Hold::is_exclusive);
        let held = others > 0 && (!shared || is_exclusive());
        held || own.is_none() && if shared { before.exclusive } else { before.any }
    }
}

/// Invariant: it holds or waits for something.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Member {
    /// What it holds.
    keys: BTreeSet<AdvisoryKey>,
    wait: Option<Wait>,
}

/// All advisory locks.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct AdvisoryLocks {
    keys: BTreeMap<AdvisoryKey, Key>,
    sessions: BTreeMap<SessionId, Member>,
    /// How many locks sessions of each client hold or wait for.
    of_client: BTreeMap<u32, u64>,
}

impl AdvisoryLocks {
    /// Whether a session holds locks, or waits for one.
    pub(super) fn knows(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// Sessions that hold locks or wait for one.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> {
        self.sessions.keys().copied()
    }

    /// The sessions of a client: the order since which each waits, if so, and whether it holds locks.
    pub(super) fn of_client(&self, client: u32) -> impl Iterator<Item = (u64, Option<u64>, bool)> {
        let session = |session| SessionId { client, session };
        let members = self.sessions.range(session(0)..=session(u64::MAX));
        members.map(|(id, member)| (id.session, member.wait.map(|wait| wait.since), !member.keys.is_empty()))
    }

    /// Whether a client's sessions have as many locks as they may.
    pub(super) fn is_full(&self, client: u32) -> bool {
        let count = self.of_client.get(&client).copied().unwrap_or(0);
        count >= LOCKS_OF_CLIENT_MAX as u64
    }

    /// The other sessions that stand in the way of a request that came, or comes, at an order: those that hold the lock in a mode that
    /// excludes it, and those that wait for such a mode before. Who holds the lock in some mode already does not stand behind who waits.
    pub(super) fn blockers(&self, session: SessionId, request: AdvisoryRequest, at: u64) -> BTreeSet<SessionId> {
        let Some(key) = self.keys.get(&request.key) else {
            return BTreeSet::new();
        };
        let own = key.holders.get(&session);
        if own.is_some_and(|own| own.has(request.shared)) {
            return BTreeSet::new();
        }
        let holders = key.holders.iter();
        let holders = holders.filter(|(_, hold)| !request.shared || hold.is_exclusive());
        let mut blockers: BTreeSet<_> = holders.map(|(id, _)| *id).collect();
        if own.is_none() {
            let earlier = key.waiting.range(..at).map(|(_, waiting)| *waiting);
            blockers.extend(
                earlier
                    .filter(|(_, shared)| !(request.shared && *shared))
                    .map(|(id, _)| id),
            );
        }
        blockers.remove(&session);
        blockers
    }

    /// The sessions that stand in the way of what a session waits for.
    pub(super) fn waits_for(&self, session: SessionId) -> BTreeSet<SessionId> {
        let wait = self.sessions.get(&session).and_then(|member| member.wait);
        wait.map(|wait| self.blockers(session, wait.request, wait.since))
            .unwrap_or_default()
    }

    /// Gives a session a lock, whoever stands in the way.
    pub(super) fn grant(&mut self, session: SessionId, request: AdvisoryRequest) {
        let hold = self
            .keys
            .entry(request.key)
            .or_default()
            .holders
            .entry(session)
            .or_default();
        let counts = match request.transaction {
            None => &mut hold.own,
            Some(number) => hold.transactions.entry(number).or_default(),
        };
        let count = counts.of(request.shared);
        *count = count.saturating_add(1);
        if self.sessions.entry(session).or_default().keys.insert(request.key) {
            *self.of_client.entry(session.client).or_default() += 1;
        }
    }

    /// Lets a session wait. It does not wait for anything else.
    pub(super) fn wait(&mut self, session: SessionId, request: AdvisoryRequest, since: u64) {
        let key = self.keys.entry(request.key).or_default();
        key.waiting.insert(since, (session, request.shared));
        self.sessions.entry(session).or_default().wait = Some(Wait { since, request });
        *self.of_client.entry(session.client).or_default() += 1;
    }

    /// Ends the waiting of a session, if it waits.
    pub(super) fn give_up(&mut self, session: SessionId) {
        if let Some(key) = self.stop_waiting(session) {
            self.serve(key);
        }
    }

    /// The same if it waits since this order; false if not.
    pub(super) fn give_up_since(&mut self, session: SessionId, since: u64) -> bool {
        let wait = self.sessions.get(&session).and_then(|member| member.wait);
        let waits = wait.is_some_and(|wait| wait.since == since);
        if waits {
            self.give_up(session);
        }
        waits
    }

    fn stop_waiting(&mut self, session: SessionId) -> Option<AdvisoryKey> {
        let wait = self.sessions.get_mut(&session)?.wait.take()?;
        if let Some(key) = self.keys.get_mut(&wait.request.key) {
            key.waiting.remove(&wait.since);
        }
        self.count_down(session.client);
        self.tidy(session, wait.request.key);
        Some(wait.request.key)
    }

    /// Gives back a lock of the session's own once; false if it does not hold it in this mode.
    pub(super) fn unlock(&mut self, session: SessionId, key: AdvisoryKey, shared: bool) -> bool {
        let held = self.keys.get_mut(&key).and_then(|key| key.holders.get_mut(&session));
        let Some(count) = held.map(|hold| hold.own.of(shared)).filter(|count| **count > 0) else {
            return false;
        };
        *count -= 1;
        self.released(session, key);
        true
    }

    /// Gives back all locks of the session's own.
    pub(super) fn unlock_all(&mut self, session: SessionId) {
        self.change_all(session, |hold| hold.own = Counts::default());
    }

    /// The session has ended: it holds nothing, and waits for nothing.
    pub(super) fn end_session(&mut self, session: SessionId) {
        self.give_up(session);
        self.change_all(session, |hold| *hold = Hold::default());
    }

    /// A transaction has ended, and with it what it held, or waited for to hold.
    pub(super) fn end_transaction(&mut self, transaction: TransactionId) {
        let (session, number) = (transaction.session_id(), transaction.number);
        let Some(member) = self.sessions.get(&session) else {
            return;
        };
        if member.wait.is_some_and(|wait| wait.request.transaction == Some(number)) {
            self.give_up(session);
        }
        self.change_all(session, |hold| {
            hold.transactions.remove(&number);
        });
    }

    fn change_all(&mut self, session: SessionId, change: impl Fn(&mut Hold)) {
        let keys = self.sessions.get(&session).map(|member| member.keys.clone());
        for key in keys.unwrap_or_default() {
            if let Some(hold) = self.keys.get_mut(&key).and_then(|key| key.holders.get_mut(&session)) {
                change(hold);
            }
            self.released(session, key);
        }
    }

    /// A session has given back something of a key.
    fn released(&mut self, session: SessionId, key: AdvisoryKey) {
        let holders = self.keys.get_mut(&key).map(|key| &mut key.holders);
        if let Some(holders) = holders
            && holders.get(&session).is_some_and(Hold::is_none)
        {
            holders.remove(&session);
            if let Some(member) = self.sessions.get_mut(&session) {
                member.keys.remove(&key);
            }
            self.count_down(session.client);
        }
        self.tidy(session, key);
        self.serve(key);
    }

    fn count_down(&mut self, client: u32) {
        if let Some(count) = self.of_client.get_mut(&client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of_client.remove(&client);
            }
        }
    }

    fn tidy(&mut self, session: SessionId, key: AdvisoryKey) {
        let is_unused = |key: &Key| key.holders.is_empty() && key.waiting.is_empty();
        if self.keys.get(&key).is_some_and(is_unused) {
            self.keys.remove(&key);
        }
        let is_idle = |member: &Member| member.keys.is_empty() && member.wait.is_none();
        if self.sessions.get(&session).is_some_and(is_idle) {
            self.sessions.remove(&session);
        }
    }

    /// Whether a request that comes now must wait.
    pub(super) fn must_wait(&self, session: SessionId, request: AdvisoryRequest) -> bool {
        let Some(key) = self.keys.get(&request.key) else {
            return false;
        };
        let mut queue = Queue::default();
        let others = key.waiting.values().filter(|(other, _)| *other != session);
        others.for_each(|(_, shared)| queue.add(*shared));
        key.excludes(session, request.shared, queue)
    }

    /// Grants a key to those that wait for it, in the order of asking, as far as nobody stands in their way.
    fn serve(&mut self, key: AdvisoryKey) {
        let waiting = self.keys.get(&key).map(|key| key.waiting.clone()).unwrap_or_default();
        let mut queue = Queue::default();
        for (since, (session, shared)) in waiting {
            let Some(state) = self.keys.get_mut(&key) else { return };
            if state.excludes(session, shared, queue) {
                queue.add(shared);
                continue;
            }
            state.waiting.remove(&since);
            let wait = self.sessions.get_mut(&session).and_then(|member| member.wait.take());
            self.count_down(session.client);
            if let Some(wait) = wait {
                self.grant(session, wait.request);
            }
        }
    }

    /// Whether all invariants hold.
    #[cfg(test)]
    pub(super) fn is_sound(&self) -> bool {
        let mut count: BTreeMap<u32, u64> = BTreeMap::new();
        let sound_keys = self.keys.iter().all(|(key, state)| {
            let holders = state.holders.iter().all(|(session, hold)| {
                let known = self
                    .sessions
                    .get(session)
                    .is_some_and(|member| member.keys.contains(key));
                known && !hold.is_none() && hold.transactions.values().all(|counts| !counts.is_none())
            });
            let waiting = state.waiting.iter().all(|(since, (session, shared))| {
                let wait = self.sessions.get(session).and_then(|member| member.wait);
                wait.is_some_and(|wait| {
                    wait.since == *since && wait.request.key == *key && wait.request.shared == *shared
                })
            });
            let exclusive = state.holders.values().filter(|hold| hold.is_exclusive()).count();
            let excluded = exclusive == 0 || state.holders.len() == 1;
            let served = state
                .waiting
                .values()
                .all(|(session, _)| !self.waits_for(*session).is_empty());
            holders && waiting && excluded && served && !(state.holders.is_empty() && state.waiting.is_empty())
        });
        for (session, member) in &self.sessions {
            *count.entry(session.client).or_default() +=
                (member.keys.len() + usize::from(member.wait.is_some())) as u64;
        }
        let held = self.keys.values().map(|key| key.holders.len()).sum::<usize>();
        let waits = self.keys.values().map(|key| key.waiting.len()).sum::<usize>();
        let members = self.sessions.values();
        let as_many = held == members.clone().map(|member| member.keys.len()).sum::<usize>()
            && waits == members.clone().filter(|member| member.wait.is_some()).count();
        let nobody = members
            .clone()
            .any(|member| member.keys.is_empty() && member.wait.is_none());
        sound_keys && as_many && !nobody && count == self.of_client
    }
}
