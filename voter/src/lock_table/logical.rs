//! Logical locks: a function of the ordered history alone.

mod cycles;
mod written;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use borsh::{BorshDeserialize, BorshSerialize};
use sql::footprint::{Footprint, Resource};
use sql::operation::{SessionId, TransactionId};

use super::advisory::{AdvisoryLocks, AdvisoryRequest};
use super::mode::{ByMode, LockMode, Locks, locks_of};
use super::{Advised, BeginKind, Ended, Grant, LockLimits, LockRefusal};

/// A transaction that holds locks, in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OpenTransaction {
    /// The transaction.
    pub id: TransactionId,
    /// The order of its Begin.
    pub began: u64,
    /// What it holds.
    pub held: Footprint,
    /// Its Extend that waits: order and footprint.
    pub extend: Option<(u64, Footprint)>,
    /// The position of its snapshot (order of the grant, own order), if it reads one.
    pub snapshot_at: Option<(u64, u64)>,
}

/// A one-shot or a Begin that waits, in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct WaitingOperation {
    /// Its order.
    pub order: u64,
    /// The transaction that it begins, and whether that reads one snapshot.
    pub transaction: Option<(TransactionId, bool)>,
    /// The session of a one-shot, if it is known.
    pub session: Option<SessionId>,
    /// What it waits for.
    pub footprint: Footprint,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The logical state at one order, equal on all voters.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct LogicalSnapshot {
    /// Transactions that hold locks, ascending by id.
    pub transactions: Vec<OpenTransaction>,
    /// Operations that wait, ascending by order.
    pub waiting: Vec<WaitingOperation>,
    /// While a transaction with a snapshot is open: resources that were held exclusively (`true`) or had a child that was,
    /// and the last position at which that ended; ascending.
    pub written: Vec<(Resource, bool, (u64, u64))>,
    /// Advisory locks.
    pub advisory: AdvisoryLocks,
}

#[derive(Debug)]
struct Open {
    began: u64,
    held: Footprint,
    locks: BTreeMap<Resource, LockMode>,
    extend: Option<(u64, Footprint)>,
    snapshot_at: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Waiting {
    transaction: Option<(TransactionId, BeginKind)>,
    /// The session of a one-shot, if it is known.
    session: Option<SessionId>,
    footprint: Footprint,
    locks: Locks,
    bytes: usize,
}

#[derive(Debug, Default)]
struct ResourceState {
    /// Invariant: exactly the modes in the holders' `Open::locks`.
    holders: BTreeMap<TransactionId, LockMode>,
    /// One-shots and Begins.
    waiting: ByMode<BTreeSet<u64>>,
    extends: BTreeMap<u64, LockMode>,
}

impl ResourceState {
    fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.extends.is_empty() && self.waiting.slots().iter().all(BTreeSet::is_empty)
    }
}

#[derive(Debug)]
pub(super) struct Logical {
    limits: LockLimits,
    resources: HashMap<Resource, ResourceState>,
    transactions: BTreeMap<TransactionId, Open>,
    waiting: BTreeMap<u64, Waiting>,
    waiting_begins: BTreeMap<TransactionId, u64>,
    /// One-shots that wait, by their sessions.
    waiting_one_shots: BTreeSet<(SessionId, u64)>,
    waiting_extends: BTreeMap<u64, TransactionId>,
    waiting_bytes: usize,
    grants: VecDeque<Grant>,
    /// [`LogicalSnapshot::written`]. Invariant: empty when no transaction with a snapshot is open.
    written: BTreeMap<(Resource, bool), (u64, u64)>,
    /// Open transactions with a snapshot.
    snapshots: usize,
    advisory: AdvisoryLocks,
}

impl Logical {
    pub(super) fn restore(limits: LockLimits, snapshot: &LogicalSnapshot) -> Self {
        let mut table = Self {
            limits,
            resources: HashMap::new(),
            transactions: BTreeMap::new(),
            waiting: BTreeMap::new(),
            waiting_begins: BTreeMap::new(),
            waiting_one_shots: BTreeSet::new(),
            waiting_extends: BTreeMap::new(),
            waiting_bytes: 0,
            grants: VecDeque::new(),
            written: BTreeMap::new(),
            snapshots: 0,
            advisory: snapshot.advisory.clone(),
        };
        for open in &snapshot.transactions {
            table.hold(open.id, open.began, &open.held);
            table.take_snapshot(open.id, open.snapshot_at);
            if let Some((order, footprint)) = &open.extend {
                table.queue_extend(*order, open.id, footprint);
            }
        }
        for waiting in &snapshot.waiting {
            let bytes = usize::try_from(waiting.bytes).unwrap_or(usize::MAX);
            let transaction = waiting.transaction.map(|(id, snapshot)| (id, BeginKind { snapshot }));
            table.queue(waiting.order, transaction, waiting.session, &waiting.footprint, bytes);
        }
        let written = snapshot.written.iter();
        table.written = written
            .map(|(resource, exclusive, order)| ((resource.clone(), *exclusive), *order))
            .collect();
        table
    }

    pub(super) fn snapshot(&self) -> LogicalSnapshot {
        let transactions = self.transactions.iter().map(|(id, open)| OpenTransaction {
            id: *id,
            began: open.began,
            held: open.held.clone(),
            extend: open.extend.clone(),
            snapshot_at: open.snapshot_at,
        });
        let waiting = self.waiting.iter().map(|(order, waiting)| WaitingOperation {
            order: *order,
            transaction: waiting.transaction.map(|(id, kind)| (id, kind.snapshot)),
            session: waiting.session,
            footprint: waiting.footprint.clone(),
            bytes: waiting.bytes as u64,
        });
        LogicalSnapshot {
            transactions: transactions.collect(),
            waiting: waiting.collect(),
            written: self
                .written
                .iter()
                .map(|((resource, exclusive), order)| (resource.clone(), *exclusive, *order))
                .collect(),
            advisory: self.advisory.clone(),
        }
    }

    pub(super) fn advisory(&self) -> &AdvisoryLocks {
        &self.advisory
    }

    pub(super) fn advisory_mut(&mut self) -> &mut AdvisoryLocks {
        &mut self.advisory
    }

    /// A session asks for an advisory lock. What it waited for before is given up.
    pub(super) fn advise(
        &mut self,
        order: u64,
        session: SessionId,
        request: AdvisoryRequest,
        waits: bool,
    ) -> Result<Advised, LockRefusal> {
        self.advisory.give_up(session);
        let transaction = request.transaction.map(|number| TransactionId {
            client: session.client,
            session: session.session,
            number,
        });
        if transaction.is_some_and(|id| !self.transactions.contains_key(&id)) {
            return Err(LockRefusal::NoTransaction);
        }
        if self.advisory.is_full(session.client) {
            return Err(LockRefusal::TooManyAdvisory);
        }
        if !self.advisory.must_wait(session, request) {
            self.advisory.grant(session, request);
            return Ok(Advised::Granted);
        }
        if !waits {
            return Ok(Advised::Taken);
        }
        if self.advisory_closes_cycle(session, request, order) {
            return Err(LockRefusal::Deadlock);
        }
        self.advisory.wait(session, request, order);
        Ok(Advised::Waits)
    }

    pub(super) fn is_open(&self, transaction: TransactionId) -> bool {
        self.transactions.contains_key(&transaction) || self.waiting_begins.contains_key(&transaction)
    }

    fn take_snapshot(&mut self, transaction: TransactionId, at: Option<(u64, u64)>) {
        if let (Some(at), Some(open)) = (at, self.transactions.get_mut(&transaction)) {
            open.snapshot_at = Some(at);
            self.snapshots += 1;
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len() + self.waiting_extends.len()
    }

    pub(super) fn open(&self) -> usize {
        self.transactions.len()
    }

    pub(super) fn held(&self, transaction: TransactionId) -> Option<&Footprint> {
        self.transactions.get(&transaction).map(|open| &open.held)
    }

    pub(super) fn next_grant(&mut self) -> Option<Grant> {
        self.grants.pop_front()
    }

    /// A one-shot, or a Begin of `transaction`, by a session.
    pub(super) fn wait_or_grant(
        &mut self,
        order: u64,
        transaction: Option<(TransactionId, BeginKind)>,
        session: Option<SessionId>,
        footprint: &Footprint,
        bytes: usize,
    ) -> Result<(), LockRefusal> {
        if let Some((id, _)) = transaction {
            // The number that names a session itself is no transaction's: one that had it would never be found abandoned.
            if id.is_session() || self.transactions.contains_key(&id) || self.waiting_begins.contains_key(&id) {
                return Err(LockRefusal::TransactionExists);
            }
            if self.transactions.len() + self.waiting_begins.len() >= self.limits.transactions_max {
                return Err(LockRefusal::TooManyOpen(self.limits.transactions_max));
            }
        }
        let locks = locks_of(footprint);
        if !self.must_wait(order, &locks) {
            self.grant(order, order, transaction, footprint, &locks);
            return Ok(());
        }
        let full = self.waiting.len() >= self.limits.waiting_max;
        if full || self.waiting_bytes.saturating_add(bytes) > self.limits.waiting_bytes_max {
            return Err(LockRefusal::TooMany);
        }
        if session.is_some_and(|session| self.operation_closes_cycle(session, order, &locks)) {
            return Err(LockRefusal::Deadlock);
        }
        self.queue(order, transaction, session, footprint, bytes);
        Ok(())
    }

    /// Grants a one-shot or a Begin.
    fn grant(
        &mut self,
        order: u64,
        granted: u64,
        transaction: Option<(TransactionId, BeginKind)>,
        footprint: &Footprint,
        locks: &Locks,
    ) {
        match transaction {
            Some((id, kind)) => {
                self.hold(id, order, footprint);
                self.take_snapshot(id, kind.snapshot.then_some((granted, order)));
            }
            // A one-shot ends logically where it is granted.
            None => self.note_written((granted, order), locks.iter().map(|(resource, mode)| (resource, *mode))),
        }
        self.grants.push_back(Grant {
            order,
            granted,
            written_since: false,
        });
    }

    /// Whether a one-shot or Begin must wait: for holders, for Extends that wait, and for what came before it.
    fn must_wait(&self, order: u64, locks: &Locks) -> bool {
        locks.iter().any(|(resource, mode)| {
            let Some(state) = self.resources.get(resource) else {
                return false;
            };
            state.holders.values().any(|held| mode.conflicts(*held))
                || state.extends.values().any(|wanted| mode.conflicts(*wanted))
                || state
                    .waiting
                    .conflicting(*mode)
                    .any(|orders| orders.first().is_some_and(|first| *first < order))
        })
    }

    fn queue(
        &mut self,
        order: u64,
        transaction: Option<(TransactionId, BeginKind)>,
        session: Option<SessionId>,
        footprint: &Footprint,
        bytes: usize,
    ) {
        let locks = locks_of(footprint);
        for (resource, mode) in &locks {
            self.resources
                .entry(resource.clone())
                .or_default()
                .waiting
                .of(*mode)
                .insert(order);
        }
        match (transaction, session) {
            (Some((id, _)), _) => {
                self.waiting_begins.insert(id, order);
            }
            (None, Some(session)) => {
                self.waiting_one_shots.insert((session, order));
            }
            (None, None) => {}
        }
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        let footprint = footprint.clone();
        self.waiting.insert(
            order,
            Waiting {
                transaction,
                session,
                footprint,
                locks,
                bytes,
            },
        );
    }

    fn unqueue(&mut self, order: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&order)?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(waiting.bytes);
        if let Some((id, _)) = waiting.transaction {
            self.waiting_begins.remove(&id);
        }
        if let Some(session) = waiting.session {
            self.waiting_one_shots.remove(&(session, order));
        }
        for (resource, mode) in &waiting.locks {
            self.change(resource, |state| {
                state.waiting.of(*mode).remove(&order);
            });
        }
        Some(waiting)
    }

    pub(super) fn cancel(&mut self, at: u64, order: u64) -> bool {
        if self
            .waiting
            .get(&order)
            .is_none_or(|waiting| waiting.transaction.is_some())
        {
            return false;
        }
        let released = self.unqueue(order).map(|waiting| waiting.locks).unwrap_or_default();
        self.regrant(at, &released);
        true
    }

    fn change(&mut self, resource: &Resource, change: impl FnOnce(&mut ResourceState)) {
        if let Some(state) = self.resources.get_mut(resource) {
            change(state);
            if state.is_empty() {
                self.resources.remove(resource);
            }
        }
    }

    /// Gives a transaction a footprint, in addition to what it holds.
    fn hold(&mut self, id: TransactionId, began: u64, footprint: &Footprint) {
        let open = self.transactions.entry(id).or_insert_with(|| Open {
            began,
            held: Footprint::empty(),
            locks: BTreeMap::new(),
            extend: None,
            snapshot_at: None,
        });
        open.held.extend(footprint);
        let mut locks = locks_of(footprint);
        let contains_others =
            |(resource, _): &(Resource, _)| matches!(resource, Resource::Table(_) | Resource::Key { .. });
        if footprint.entries().iter().any(contains_others) {
            // What a table contains is not held by itself any more.
            locks = locks_of(&open.held);
            for resource in std::mem::take(&mut open.locks).into_keys() {
                if let Some(state) = self.resources.get_mut(&resource) {
                    state.holders.remove(&id);
                    if state.is_empty() {
                        self.resources.remove(&resource);
                    }
                }
            }
        }
        for (resource, mode) in locks {
            let held = open.locks.entry(resource.clone()).or_insert(mode);
            *held = held.join(mode);
            self.resources.entry(resource).or_default().holders.insert(id, *held);
        }
    }

    pub(super) fn extend(
        &mut self,
        order: u64,
        transaction: TransactionId,
        footprint: &Footprint,
    ) -> (Option<u64>, Result<(), LockRefusal>) {
        let Some(began) = self.transactions.get(&transaction).map(|open| open.began) else {
            return (None, Err(LockRefusal::NoTransaction));
        };
        let replaced = self.unqueue_extend(transaction);
        // Where the rows that it holds become too many, their table is locked.
        let needed = self.held(transaction).map(|held| held.needed_for(footprint));
        let footprint = needed.as_ref().unwrap_or(footprint);
        let outcome = if self.blockers(transaction, footprint).is_empty() {
            self.grant_extend(order, order, transaction, began, footprint);
            Ok(())
        } else if self.closes_cycle(transaction, footprint) {
            Err(LockRefusal::Deadlock)
        } else {
            self.queue_extend(order, transaction, footprint);
            Ok(())
        };
        if let Some((_, footprint)) = &replaced {
            self.regrant(order, &locks_of(footprint));
        }
        (replaced.map(|(replaced, _)| replaced), outcome)
    }

    fn grant_extend(&mut self, order: u64, granted: u64, id: TransactionId, began: u64, footprint: &Footprint) {
        let written_since = self.written_since(id, footprint);
        self.hold(id, began, footprint);
        self.grants.push_back(Grant {
            order,
            granted,
            written_since,
        });
    }

    fn queue_extend(&mut self, order: u64, transaction: TransactionId, footprint: &Footprint) {
        for (resource, mode) in locks_of(footprint) {
            self.resources.entry(resource).or_default().extends.insert(order, mode);
        }
        self.waiting_extends.insert(order, transaction);
        if let Some(open) = self.transactions.get_mut(&transaction) {
            open.extend = Some((order, footprint.clone()));
        }
    }

    fn unqueue_extend(&mut self, transaction: TransactionId) -> Option<(u64, Footprint)> {
        let (order, footprint) = self.transactions.get_mut(&transaction)?.extend.take()?;
        self.waiting_extends.remove(&order);
        for (resource, _) in locks_of(&footprint) {
            self.change(&resource, |state| {
                state.extends.remove(&order);
            });
        }
        Some((order, footprint))
    }

    /// The other transactions that hold what an Extend needs.
    fn blockers(&self, transaction: TransactionId, footprint: &Footprint) -> BTreeSet<TransactionId> {
        let own = self.transactions.get(&transaction);
        let mut blockers = BTreeSet::new();
        for (resource, mode) in locks_of(footprint) {
            let held = own.and_then(|open| open.locks.get(&resource));
            let mode = held.map_or(mode, |held| held.join(mode));
            let Some(state) = self.resources.get(&resource) else {
                continue;
            };
            let others = state
                .holders
                .iter()
                .filter(|(id, held)| **id != transaction && mode.conflicts(**held));
            blockers.extend(others.map(|(id, _)| *id));
        }
        blockers
    }

    pub(super) fn end(&mut self, order: u64, transaction: TransactionId) -> Ended {
        self.advisory.end_transaction(transaction);
        if let Some(begin) = self.waiting_begins.get(&transaction).copied() {
            let released = self.unqueue(begin).map(|waiting| waiting.locks).unwrap_or_default();
            self.regrant(order, &released);
            return Ended {
                held: None,
                cancelled: Some(begin),
            };
        }
        let cancelled = self.unqueue_extend(transaction);
        let Some(open) = self.transactions.remove(&transaction) else {
            return Ended::default();
        };
        let mut released: BTreeMap<_, _> = open.locks.clone();
        if open.snapshot_at.is_some() {
            self.snapshots = self.snapshots.saturating_sub(1);
            if self.snapshots == 0 {
                self.written.clear();
            }
        }
        self.note_written((order, 0), released.iter().map(|(resource, mode)| (resource, *mode)));
        for (resource, _) in open.locks {
            self.change(&resource, |state| {
                state.holders.remove(&transaction);
            });
        }
        for (resource, mode) in cancelled.iter().flat_map(|(_, footprint)| locks_of(footprint)) {
            released
                .entry(resource)
                .and_modify(|held| *held = held.join(mode))
                .or_insert(mode);
        }
        self.regrant(order, &released.into_iter().collect());
        Ended {
            held: Some(open.held),
            cancelled: cancelled.map(|(order, _)| order),
        }
    }

    /// Grants what waited for locks that were released at `granted`: Extends first, then by order.
    fn regrant(&mut self, granted: u64, released: &Locks) {
        self.regrant_extends(granted);
        let mut candidates = BTreeSet::new();
        self.add_candidates(released, 0, &mut candidates);
        while let Some(order) = candidates.pop_first() {
            let Some(waiting) = self.waiting.get(&order) else {
                continue;
            };
            if self.must_wait(order, &waiting.locks) {
                continue;
            }
            let Some(waiting) = self.unqueue(order) else { continue };
            self.grant(order, granted, waiting.transaction, &waiting.footprint, &waiting.locks);
            self.add_candidates(&waiting.locks, order, &mut candidates);
        }
    }

    fn regrant_extends(&mut self, granted: u64) {
        let extends: Vec<_> = self.waiting_extends.iter().map(|(order, id)| (*order, *id)).collect();
        for (order, id) in extends {
            let Some(open) = self.transactions.get(&id) else {
                continue;
            };
            let began = open.began;
            let Some((_, footprint)) = open.extend.clone() else {
                continue;
            };
            if self.blockers(id, &footprint).is_empty() {
                self.unqueue_extend(id);
                self.grant_extend(order, granted, id, began, &footprint);
            }
        }
    }

    /// What waits after `after` for a lock that conflicts with one of these.
    fn add_candidates(&self, released: &Locks, after: u64, candidates: &mut BTreeSet<u64>) {
        for (resource, mode) in released {
            let Some(state) = self.resources.get(resource) else {
                continue;
            };
            for orders in state.waiting.conflicting(*mode) {
                candidates.extend(orders.range(after.saturating_add(1)..));
            }
        }
    }
}
