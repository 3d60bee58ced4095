//! What a store holds, of whom, and what may go. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ordering::identifiers::{Digest, MachineId};
use ordering::message::{BodyName, Kept};
use sql::operation::TransactionId;

use super::{BodyLimits, transaction_of};

/// What becomes of a body that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is to be written; its room is taken.
    Write,
    /// It is being written.
    Underway,
    /// It is durable already.
    Known,
    /// There is no room.
    Refused(Kept),
}

#[derive(Clone, Copy, Debug)]
struct Body {
    length: u32,
    durable: bool,
}

/// The bodies of one transaction.
#[derive(Debug)]
struct Transaction {
    bodies: BTreeMap<Digest, Body>,
    /// Invariant: the sum of the lengths of `bodies`.
    bytes: u64,
    /// When this machine came to know of it.
    since: Instant,
    /// The order of its Commit.
    committed: Option<u64>,
}

/// What a store has found on its disk of one transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) bodies: Vec<(Digest, u32)>,
    pub(super) committed: Option<u64>,
}

/// What a store holds.
#[derive(Debug)]
pub(super) struct Index {
    limits: BodyLimits,
    faults: usize,
    transactions: BTreeMap<TransactionId, Transaction>,
    /// Invariant: the sums of the transactions' bytes.
    clients: BTreeMap<u32, u64>,
    flushed: BTreeMap<MachineId, u64>,
}

impl Index {
    pub(super) fn new(
        limits: BodyLimits,
        voters: impl IntoIterator<Item = MachineId>,
        faults: usize,
        found: BTreeMap<TransactionId, Found>,
        now: Instant,
    ) -> Self {
        let mut index = Self {
            limits,
            faults,
            transactions: BTreeMap::new(),
            clients: BTreeMap::new(),
            flushed: voters.into_iter().map(|machine| (machine, 0)).collect(),
        };
        for (id, found) in found {
            for (digest, length) in found.bodies {
                index.insert(id, digest, length, true, now);
            }
            if let Some(transaction) = index.transactions.get_mut(&id) {
                transaction.committed = found.committed;
            }
        }
        index
    }

    fn insert(&mut self, id: TransactionId, digest: Digest, length: u32, durable: bool, now: Instant) {
        let transaction = self.transactions.entry(id).or_insert_with(|| Transaction {
            bodies: BTreeMap::new(),
            bytes: 0,
            since: now,
            committed: None,
        });
        transaction.bodies.insert(digest, Body { length, durable });
        transaction.bytes += u64::from(length);
        *self.clients.entry(id.client).or_default() += u64::from(length);
    }

    /// Takes room for a body, if there is any or can be made; with the transactions that have to go for it.
    pub(super) fn admit(&mut self, name: &BodyName, length: u32, now: Instant) -> (Admission, Vec<TransactionId>) {
        let id = transaction_of(name);
        let transaction = self.transactions.get(&id);
        if let Some(body) = transaction.and_then(|transaction| transaction.bodies.get(&name.digest)) {
            let known = match body.durable {
                true => Admission::Known,
                false => Admission::Underway,
            };
            return (known, Vec::new());
        }
        let bytes = transaction.map_or(0, |transaction| transaction.bytes);
        if bytes + u64::from(length) > self.limits.transaction_bytes_max {
            return (Admission::Refused(Kept::TooLarge), Vec::new());
        }
        let evicted = self.make_room(id, length);
        let held = self.clients.get(&id.client).copied().unwrap_or(0);
        if held + u64::from(length) > self.limits.client_bytes_max {
            return (Admission::Refused(Kept::NoRoom), evicted);
        }
        self.insert(id, name.digest, length, false, now);
        (Admission::Write, evicted)
    }

    /// Drops transactions of the client that f+1 databases have, the oldest first, as far as it needs room.
    fn make_room(&mut self, id: TransactionId, length: u32) -> Vec<TransactionId> {
        let mut evicted = Vec::new();
        let enough = self.flushed_by(self.faults + 1);
        while self.clients.get(&id.client).copied().unwrap_or(0) + u64::from(length) > self.limits.client_bytes_max {
            let over = self.transactions.iter().filter_map(|(other, transaction)| {
                let order = transaction.committed.filter(|order| *order <= enough)?;
                (other.client == id.client && *other != id).then_some((order, *other))
            });
            let Some((_, oldest)) = over.min() else { break };
            self.remove(oldest);
            evicted.push(oldest);
        }
        evicted
    }

    /// The order up to which at least so many databases have everything on their disks.
    fn flushed_by(&self, count: usize) -> u64 {
        let mut orders: Vec<_> = self.flushed.values().copied().collect();
        orders.sort_unstable_by(|left, right| right.cmp(left));
        orders.get(count.saturating_sub(1)).copied().unwrap_or(0)
    }

    pub(super) fn has(&self, name: &BodyName) -> bool {
        let transaction = self.transactions.get(&transaction_of(name));
        let body = transaction.and_then(|transaction| transaction.bodies.get(&name.digest));
        body.is_some_and(|body| body.durable)
    }

    pub(super) fn durable(&mut self, name: &BodyName) {
        let transaction = self.transactions.get_mut(&transaction_of(name));
        if let Some(body) = transaction.and_then(|transaction| transaction.bodies.get_mut(&name.digest)) {
            body.durable = true;
        }
    }

    /// A body is not there after all.
    pub(super) fn forget(&mut self, name: &BodyName) {
        let id = transaction_of(name);
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        let Some(body) = transaction.bodies.remove(&name.digest) else {
            return;
        };
        transaction.bytes -= u64::from(body.length);
        self.give_back(id.client, u64::from(body.length));
    }

    fn give_back(&mut self, client: u32, bytes: u64) {
        if let Some(held) = self.clients.get_mut(&client) {
            *held -= bytes;
            if *held == 0 {
                self.clients.remove(&client);
            }
        }
    }

    /// Forgets a transaction; whether it was known.
    pub(super) fn remove(&mut self, id: TransactionId) -> bool {
        let Some(transaction) = self.transactions.remove(&id) else {
            return false;
        };
        self.give_back(id.client, transaction.bytes);
        true
    }

    /// Notes the order of a Commit; whether the transaction has bodies and this is news.
    pub(super) fn committed(&mut self, id: TransactionId, order: u64) -> bool {
        match self.transactions.get_mut(&id) {
            Some(transaction) => transaction.committed.replace(order) != Some(order),
            None => false,
        }
    }

    /// Notes a machine's progress; forgets, and gives, the transactions that all databases have.
    pub(super) fn flushed(&mut self, machine: MachineId, order: u64) -> Vec<TransactionId> {
        let Some(flushed) = self.flushed.get_mut(&machine) else {
            return Vec::new();
        };
        if *flushed >= order {
            return Vec::new();
        }
        *flushed = order;
        let all = self.flushed_by(self.flushed.len());
        self.remove_where(|_, transaction| transaction.committed.is_some_and(|order| order <= all))
    }

    /// Forgets, and gives, what is older than `age`, is not open, and is not known to have committed.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        age: Duration,
        is_open: impl Fn(&TransactionId) -> bool,
    ) -> Vec<TransactionId> {
        self.remove_where(|id, transaction| {
            let old = now.saturating_duration_since(transaction.since) > age;
            old && transaction.committed.is_none() && !is_open(id)
        })
    }

    fn remove_where(&mut self, over: impl Fn(&TransactionId, &Transaction) -> bool) -> Vec<TransactionId> {
        let over = self
            .transactions
            .iter()
            .filter(|(id, transaction)| over(id, transaction));
        let over: Vec<_> = over.map(|(id, _)| *id).collect();
        over.iter().for_each(|id| {
            self.remove(*id);
        });
        over
    }

    /// All bytes, and the transactions that have any.
    pub(super) fn size(&self) -> (u64, usize) {
        (self.clients.values().sum(), self.transactions.len())
    }
}
