//! The floor: up to where everything is over and durable, with the voter's logical state there
//! (`docs/design.md#exactly-once`). Pure.
//!
//! A candidate is the state after some order. It becomes the floor when everything up to it has finished, and every
//! transaction that began up to it has ended. Transactions may span it: the state names what they held, so that the
//! orders after it are locked and granted as they were.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use borsh::{BorshDeserialize, BorshSerialize};
use ordering::identifiers::ClientId;

use crate::client_window::ClientWindows;
use crate::ending::Abandoned;
use crate::listeners::Listeners;
use crate::lock_table::LogicalSnapshot;

/// Candidates that wait, at most.
const CANDIDATES_MAX: usize = 16;

/// One-shots that wait for their locks, by their orders: whose they are, and the numbers of their requests.
pub type WaitingOneShots = BTreeMap<u64, (ClientId, u64)>;

/// The voter's logical state after an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct FloorState {
    /// Which requests have run.
    pub windows: ClientWindows,
    /// Which locks are held and waited for.
    pub locks: LogicalSnapshot,
    /// Open transactions that nodes have said to be abandoned, with the nodes.
    pub abandoned: Abandoned,
    /// One-shots that wait for their locks, with the numbers of their requests.
    pub waiting: WaitingOneShots,
    /// To which channels sessions listen.
    pub listeners: Listeners,
}

/// A floor to come.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The order.
    pub order: u64,
    /// The state after it.
    pub state: FloorState,
}

/// What is known about floors to come.
#[derive(Debug)]
pub struct Floors {
    floor: u64,
    /// A candidate is being written.
    writing: bool,
    candidates: VecDeque<Candidate>,
    /// Orders that are not over: an operation's until it has finished, a Begin's until its transaction's end has.
    open: BTreeSet<u64>,
    /// Begins of open transactions.
    begun: BTreeSet<u64>,
    /// The Begins whose transactions are over when this order has finished.
    ends: BTreeMap<u64, Vec<u64>>,
}

impl Floors {
    /// Nothing is open after this floor.
    pub fn new(floor: u64) -> Self {
        Self {
            floor,
            writing: false,
            candidates: VecDeque::new(),
            open: BTreeSet::new(),
            begun: BTreeSet::new(),
            ends: BTreeMap::new(),
        }
    }

    /// The floor.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The newest candidate's order; the floor if none waits.
    pub fn newest(&self) -> u64 {
        self.candidates.back().map_or(self.floor, |candidate| candidate.order)
    }

    /// An order is fed.
    pub fn fed(&mut self, order: u64) {
        self.open.insert(order);
    }

    /// It begins a transaction.
    pub fn begun(&mut self, order: u64) {
        self.begun.insert(order);
    }

    /// The transaction that began at `began` is over when `order` has finished.
    pub fn ending(&mut self, began: u64, order: u64) {
        self.ends.entry(order).or_default().push(began);
    }

    /// The own work of an order is over.
    pub fn finished(&mut self, order: u64) {
        for began in self.ends.remove(&order).unwrap_or_default() {
            self.begun.remove(&began);
            self.open.remove(&began);
        }
        if !self.begun.contains(&order) {
            self.open.remove(&order);
        }
    }

    /// A candidate is durable.
    pub fn written(&mut self, order: u64) {
        self.floor = self.floor.max(order);
        self.writing = false;
    }

    /// Takes a candidate, in place of the newest one if too many wait.
    pub fn propose(&mut self, candidate: Candidate) {
        if self.candidates.len() >= CANDIDATES_MAX {
            self.candidates.pop_back();
        }
        self.candidates.push_back(candidate);
    }

    fn is_over(&self, order: u64) -> bool {
        self.open.first().is_none_or(|first| *first > order)
    }

    /// The highest candidate that can become the floor, to be written; one at a time.
    pub fn take_ready(&mut self) -> Option<Candidate> {
        if self.writing {
            return None;
        }
        let mut ready = None;
        while self
            .candidates
            .front()
            .is_some_and(|candidate| self.is_over(candidate.order))
        {
            ready = self.candidates.pop_front();
        }
        self.writing = ready.is_some();
        ready
    }
}
