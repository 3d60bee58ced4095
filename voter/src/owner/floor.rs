//! The floor: up to where everything is over and durable, with the voter's logical state there
//! (`docs/design.md#exactly-once`).
//!
//! A candidate is the state after some order. It becomes the floor when everything up to it has finished, and every
//! transaction that began up to it has ended. Transactions may span it: the state names what they held, so that the
//! orders after it are locked and granted as they were.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use borsh::{BorshDeserialize, BorshSerialize};
use ordering::identifiers::MachineId;
use sql::operation::TransactionId;

use super::Owner;
use crate::client_window::ClientWindows;
use crate::executor::{Event, Shared};
use crate::lock_table::LogicalSnapshot;
use crate::postgres::PostgresError;

/// Candidates that wait, at most.
const CANDIDATES_MAX: usize = 16;

/// The voter's logical state after an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct FloorState {
    pub(crate) windows: ClientWindows,
    pub(crate) locks: LogicalSnapshot,
    /// Open transactions that nodes have said to be abandoned, with the nodes.
    pub(crate) abandoned: BTreeMap<TransactionId, BTreeSet<MachineId>>,
}

impl FloorState {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, PostgresError> {
        Self::try_from_slice(bytes).map_err(|error| PostgresError::Unfit(format!("cloudbft.floor: {error}")))
    }
}

struct Candidate {
    order: u64,
    state: FloorState,
}

/// What is known about floors to come.
pub(super) struct Floors {
    floor: u64,
    writing: bool,
    last_candidate: Instant,
    candidates: VecDeque<Candidate>,
    /// Orders that are not over: an operation's until it has finished, a Begin's until its transaction's end has.
    open: BTreeSet<u64>,
    /// Begins of open transactions.
    begun: BTreeSet<u64>,
    /// The Begins whose transactions are over when this order has finished.
    ends: BTreeMap<u64, Vec<u64>>,
}

impl Floors {
    pub(super) fn new(floor: u64, now: Instant) -> Self {
        Self {
            floor,
            writing: false,
            last_candidate: now,
            candidates: VecDeque::new(),
            open: BTreeSet::new(),
            begun: BTreeSet::new(),
            ends: BTreeMap::new(),
        }
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn fed(&mut self, order: u64) {
        self.open.insert(order);
    }

    pub(super) fn begun(&mut self, order: u64) {
        self.begun.insert(order);
    }

    /// The transaction that began at `began` is over when `order` has finished.
    pub(super) fn ending(&mut self, began: u64, order: u64) {
        self.ends.entry(order).or_default().push(began);
    }

    pub(super) fn finished(&mut self, order: u64) {
        for began in self.ends.remove(&order).unwrap_or_default() {
            self.begun.remove(&began);
            self.open.remove(&began);
        }
        if !self.begun.contains(&order) {
            self.open.remove(&order);
        }
    }

    pub(super) fn written(&mut self, order: u64) {
        self.floor = self.floor.max(order);
        self.writing = false;
        metrics::gauge!("cloudbft_voter_flushed_order").set(order as f64);
    }

    fn is_over(&self, order: u64) -> bool {
        self.open.first().is_none_or(|first| *first > order)
    }

    /// The highest candidate that can become the floor.
    fn take_ready(&mut self) -> Option<Candidate> {
        let mut ready = None;
        while self
            .candidates
            .front()
            .is_some_and(|candidate| self.is_over(candidate.order))
        {
            ready = self.candidates.pop_front();
        }
        ready
    }
}

impl Owner<'_> {
    /// Takes a candidate if it is time, and writes the highest one that is ready.
    pub(super) fn consider_floor(&mut self) {
        let due = self.floors.last_candidate.elapsed() >= self.config.limits.floor_interval;
        let newest = self
            .floors
            .candidates
            .back()
            .map_or(self.floors.floor, |candidate| candidate.order);
        if due && newest < self.last_fed && self.stalled_by.is_none() {
            self.floors.last_candidate = Instant::now();
            if self.floors.candidates.len() >= CANDIDATES_MAX {
                self.floors.candidates.pop_back();
            }
            let candidate = self.candidate();
            self.floors.candidates.push_back(candidate);
        }
        if self.floors.writing {
            return;
        }
        if let Some(candidate) = self.floors.take_ready() {
            self.floors.writing = true;
            self.tasks.spawn(write(Arc::clone(&self.shared), candidate));
        }
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            order: self.last_fed,
            state: FloorState {
                windows: self.windows.clone(),
                locks: self.locks.snapshot(),
                abandoned: self.abandoned.clone(),
            },
        }
    }
}

async fn write(shared: Arc<Shared>, candidate: Candidate) {
    let encoded = borsh::to_vec(&candidate.state).unwrap_or_default();
    let written = shared
        .bookkeeper
        .lock()
        .await
        .write_floor(candidate.order, &encoded)
        .await;
    match written {
        Ok(()) => shared.tell(Event::FloorWritten(candidate.order)),
        Err(error) => shared.tell(Event::Lost(format!("floor: {error}"))),
    }
}
