//! The lock table (`docs/design.md#locks`): who may run, and after whom. Pure.
//!
//! Two layers. *Logical* locks are granted by the ordered history alone, so every voter grants alike. *Physical*
//! dependencies say which granted work must have finished in this voter's Postgres before other work starts; they
//! depend on the speed of this server, and decide nothing.
//!
//! Use: feed an order ([`LockTable::one_shot`], [`LockTable::begin`], ...), then take every grant with
//! [`LockTable::next_grant`] and either [`LockTable::run`] or drop it, before the next order is fed.

pub mod advisory;
mod logical;
mod mode;
mod physical;

use std::collections::BTreeMap;

use sql::footprint::Footprint;
use sql::operation::{AdvisoryKey, SessionId, TransactionId};

use advisory::AdvisoryRequest;
use logical::Logical;
pub use logical::{LogicalSnapshot, OpenTransaction, WaitingOperation};
use mode::locks_of;
pub use physical::Node;
use physical::{NodeKind, Physical};

/// Where an executed operation stands (docs/decisions/0005): first the order that let it run, then its own.
/// Positions on one home are strictly monotone in the order of execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The order at which the locks were granted.
    pub granted: u64,
    /// The operation's own order; 0 for the end of a transaction.
    pub order: u64,
}

/// A granted operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The operation's order.
    pub order: u64,
    /// The order that let it run.
    pub granted: u64,
    /// An Extend of a transaction with a snapshot, which now holds a resource that was written since the snapshot.
    pub written_since: bool,
}

impl Grant {
    /// The position of a one-shot with this grant.
    pub fn position(self) -> Position {
        Position {
            granted: self.granted,
            order: self.order,
        }
    }
}

/// Why the lock table refuses an Extend or a Begin, at its own order and alike on every voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockRefusal {
    /// The transaction is not open (never begun, refused, or ended).
    NoTransaction,
    /// The transaction's id is in use.
    TransactionExists,
    /// The operation, Extend or wish closes a cycle. Nothing changes: transaction and session hold what they held.
    Deadlock,
    /// Too many operations wait.
    TooMany,
    /// The sessions of its client hold as many advisory locks as may be.
    TooManyAdvisory,
    /// So many interactive transactions are open, or wait to be opened: as many as may be.
    TooManyOpen(usize),
}

/// Limits that decide outcomes: equal on all voters.
#[derive(Clone, Copy, Debug)]
pub struct LockLimits {
    /// Open transactions, granted or waiting.
    pub transactions_max: usize,
    /// Waiting operations.
    pub waiting_max: usize,
    /// Bytes of waiting operations.
    pub waiting_bytes_max: usize,
}

impl Default for LockLimits {
    fn default() -> Self {
        Self {
            transactions_max: 64,
            waiting_max: 65_536,
            waiting_bytes_max: 256 << 20,
        }
    }
}

/// What the end of a transaction found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// What the transaction held; `None` when it was not open or its Begin still waited.
    pub held: Option<Footprint>,
    /// Begin or Extend of the transaction that still waited, and never runs.
    pub cancelled: Option<u64>,
}

/// What becomes of a session's wish for an advisory lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advised {
    /// The session holds it.
    Granted,
    /// The session waits for it.
    Waits,
    /// Others are in its way, and it does not wait.
    Taken,
}

/// What the lock table needs to know of a Begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginKind {
    /// Whether the transaction reads one snapshot of its Begin (REPEATABLE READ).
    pub snapshot: bool,
}

/// The lock table.
#[derive(Debug)]
pub struct LockTable {
    logical: Logical,
    physical: Physical,
    /// Nodes of open transactions that have not finished: the transaction's end waits for them.
    transaction_nodes: BTreeMap<TransactionId, Vec<u64>>,
}

impl LockTable {
    /// An empty table.
    pub fn new(limits: LockLimits) -> Self {
        Self::restore(limits, &LogicalSnapshot::default())
    }

    /// A table in the logical state of a snapshot.
    pub fn restore(limits: LockLimits, snapshot: &LogicalSnapshot) -> Self {
        Self {
            logical: Logical::restore(limits, snapshot),
            physical: Physical::default(),
            transaction_nodes: BTreeMap::new(),
        }
    }

    /// The logical state: a function of the ordered history.
    pub fn snapshot(&self) -> LogicalSnapshot {
        self.logical.snapshot()
    }

    /// A one-shot: granted at once, or when what it conflicts with has ended.
    ///
    /// # Errors
    /// [`LockRefusal::TooMany`].
    pub fn one_shot(&mut self, order: u64, footprint: &Footprint, bytes: usize) -> Result<(), LockRefusal> {
        self.logical.wait_or_grant(order, None, None, footprint, bytes)
    }

    /// The same of a session that may hold advisory locks.
    ///
    /// # Errors
    /// [`LockRefusal::TooMany`], [`LockRefusal::Deadlock`].
    pub fn one_shot_of(
        &mut self,
        session: SessionId,
        order: u64,
        footprint: &Footprint,
        bytes: usize,
    ) -> Result<(), LockRefusal> {
        self.logical.wait_or_grant(order, None, Some(session), footprint, bytes)
    }

    /// A session asks, at an order, for an advisory lock.
    ///
    /// # Errors
    /// [`LockRefusal::NoTransaction`], [`LockRefusal::TooManyAdvisory`], [`LockRefusal::Deadlock`].
    pub fn advisory_lock(
        &mut self,
        order: u64,
        session: SessionId,
        request: AdvisoryRequest,
        waits: bool,
    ) -> Result<Advised, LockRefusal> {
        self.logical.advise(order, session, request, waits)
    }

    /// A session gives back an advisory lock of its own once; false if it does not hold it in this mode.
    pub fn advisory_unlock(&mut self, session: SessionId, key: AdvisoryKey, shared: bool) -> bool {
        self.logical.advisory_mut().unlock(session, key, shared)
    }

    /// A session gives back all advisory locks of its own, and waits for none.
    pub fn advisory_unlock_all(&mut self, session: SessionId) {
        self.logical.advisory_mut().give_up(session);
        self.logical.advisory_mut().unlock_all(session);
    }

    /// A session waits no longer for the advisory lock that it asked for at an order; false if it does not wait for it.
    pub fn advisory_give_up(&mut self, session: SessionId, since: u64) -> bool {
        self.logical.advisory_mut().give_up_since(session, since)
    }

    /// A session has ended: it holds no advisory locks.
    pub fn end_session(&mut self, session: SessionId) {
        self.logical.advisory_mut().end_session(session);
    }

    /// Whether a session holds advisory locks, or waits for one.
    pub fn has_advisory(&self, session: SessionId) -> bool {
        self.logical.advisory().knows(session)
    }

    /// The sessions that hold advisory locks or wait for one.
    pub fn advisory_sessions(&self) -> impl Iterator<Item = SessionId> {
        self.logical.advisory().sessions()
    }

    /// The same of one client: of each session the order since which it waits, if so, and whether it holds locks.
    pub fn advisory_of_client(&self, client: u32) -> impl Iterator<Item = (u64, Option<u64>, bool)> {
        self.logical.advisory().of_client(client)
    }

    /// Takes back, at the order `at`, a one-shot that still waits: it never runs. False when it does not wait.
    pub fn cancel(&mut self, at: u64, order: u64) -> bool {
        self.logical.cancel(at, order)
    }

    /// The Begin of a transaction: as a one-shot, but its locks are held to the end.
    ///
    /// # Errors
    /// [`LockRefusal::TooManyOpen`], [`LockRefusal::TooMany`], [`LockRefusal::TransactionExists`], [`LockRefusal::Deadlock`].
    pub fn begin(
        &mut self,
        order: u64,
        transaction: TransactionId,
        footprint: &Footprint,
        kind: BeginKind,
        bytes: usize,
    ) -> Result<(), LockRefusal> {
        let session = Some(transaction.session_id());
        self.logical
            .wait_or_grant(order, Some((transaction, kind)), session, footprint, bytes)
    }

    /// An Extend: waits only for transactions that hold locks. It takes the place of an earlier one of its transaction that
    /// still waits, whose order is given back: that one never runs.
    ///
    /// # Errors
    /// [`LockRefusal::NoTransaction`], [`LockRefusal::Deadlock`].
    pub fn extend(
        &mut self,
        order: u64,
        transaction: TransactionId,
        footprint: &Footprint,
    ) -> (Option<u64>, Result<(), LockRefusal>) {
        self.logical.extend(order, transaction, footprint)
    }

    /// The end of a transaction at an order: releases its locks, logically.
    pub fn end(&mut self, order: u64, transaction: TransactionId) -> Ended {
        self.logical.end(order, transaction)
    }

    /// Whether a transaction is open, or its Begin waits; of a session itself, whether it holds advisory locks or waits for one.
    pub fn is_open(&self, transaction: TransactionId) -> bool {
        match transaction.is_session() {
            true => self.has_advisory(transaction.session_id()),
            false => self.logical.is_open(transaction),
        }
    }

    /// The next operation that was granted, in the order of grants.
    pub fn next_grant(&mut self) -> Option<Grant> {
        self.logical.next_grant()
    }

    /// What an open transaction holds.
    pub fn held(&self, transaction: TransactionId) -> Option<&Footprint> {
        self.logical.held(transaction)
    }

    /// Starts granted work physically: true when it may run now, else it will be among the result of some
    /// [`LockTable::finished`].
    pub fn run(&mut self, order: u64, node: Node, footprint: &Footprint) -> bool {
        let before = match node {
            Node::OneShot => Vec::new(),
            Node::Within { transaction, .. } => self.chain(transaction, order),
            Node::Read { transaction: None } => Vec::new(),
            Node::Read { transaction: Some(id) } => self.join(id, order),
            Node::End { transaction } => self.transaction_nodes.remove(&transaction).unwrap_or_default(),
        };
        self.start(order, node, footprint, &before)
    }

    /// Starts the ends of several transactions at one order, which together held this.
    pub fn run_ends(&mut self, order: u64, transactions: &[TransactionId], footprint: &Footprint) -> bool {
        let nodes = transactions.iter().filter_map(|id| self.transaction_nodes.remove(id));
        let before: Vec<_> = nodes.flatten().collect();
        self.physical
            .start(order, NodeKind::Access, &locks_of(footprint), &before)
    }

    fn start(&mut self, order: u64, node: Node, footprint: &Footprint, before: &[u64]) -> bool {
        let kind = match node {
            Node::OneShot | Node::End { .. } => NodeKind::Access,
            Node::Within { snapshot, .. } => NodeKind::Within { snapshot },
            Node::Read { .. } => NodeKind::Barrier,
        };
        self.physical.start(order, kind, &locks_of(footprint), before)
    }

    fn chain(&mut self, transaction: TransactionId, order: u64) -> Vec<u64> {
        let before = self.unfinished(transaction);
        self.transaction_nodes.insert(transaction, vec![order]);
        before
    }

    /// A read is followed by the transaction's later work too: it needs the transaction open.
    fn join(&mut self, transaction: TransactionId, order: u64) -> Vec<u64> {
        let before = self.unfinished(transaction);
        self.transaction_nodes.entry(transaction).or_default().push(order);
        before
    }

    fn unfinished(&self, transaction: TransactionId) -> Vec<u64> {
        self.transaction_nodes.get(&transaction).cloned().unwrap_or_default()
    }

    /// The snapshot of a Read or of a Begin with a snapshot is open: what came after it may start. Returns what may.
    pub fn snapshot_open(&mut self, order: u64) -> Vec<u64> {
        self.physical.snapshot_open(order)
    }

    /// Work has finished in Postgres. Returns the orders that may run now.
    pub fn finished(&mut self, order: u64) -> Vec<u64> {
        self.physical.finish(order)
    }

    /// How many operations wait for locks.
    pub fn waiting(&self) -> usize {
        self.logical.waiting()
    }

    /// How many transactions are open.
    pub fn transactions(&self) -> usize {
        self.logical.open()
    }

    /// How many granted operations have not finished.
    pub fn unfinished_nodes(&self) -> usize {
        self.physical.len()
    }
}

#[cfg(test)]
mod tests;
