//! What a voter's machine orders under its own client: nothing, to learn that it has caught up with the order; and which
//! transactions are abandoned.
//!
//! No timeout decides by itself: a transaction ends at the order at which f+1 nodes have said that it is abandoned, one of
//! which is correct.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::{ClientId, MachineId};
use sql::footprint::Footprint;
use sql::operation::{Operation, SessionContext, TransactionId, Work};

use super::{Owner, Start};
use crate::ending::{End, count_abandoned};
use crate::slot::{Command, Finish};
use crate::voter::VoterOutput;

/// How often the same transactions are said to be abandoned again.
const AGAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Transactions in one operation, at most.
const ABANDONED_MAX: usize = 256;

/// How long after its time limit a transaction that its proxy has not ended is abandoned.
const GRACE: Duration = Duration::from_secs(5);

/// What this machine orders by itself.
pub(super) struct OwnOrders {
    /// The random bytes of the no-op that was ordered when this life began.
    nonce: [u8; 16],
    /// Its order, once it has one.
    ordered: Option<u64>,
    /// When each client was last heard of; clients of the configuration only.
    heard: BTreeMap<ClientId, Instant>,
    /// The newest start of each client, as its request numbers tell.
    starts: BTreeMap<ClientId, u64>,
    started: Instant,
    /// What was said last, and when.
    said: BTreeSet<TransactionId>,
    said_at: Instant,
}

impl OwnOrders {
    pub(super) fn new(now: Instant) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("cloudbft life of a voter v1");
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        hasher.update(&since_1970.map_or(0, |elapsed| elapsed.as_nanos()).to_le_bytes());
        hasher.update(&std::process::id().to_le_bytes());
        let mut nonce = [0; 16];
        hasher.finalize_xof().fill(&mut nonce);
        Self {
            nonce,
            ordered: None,
            heard: BTreeMap::new(),
            starts: BTreeMap::new(),
            started: now,
            said: BTreeSet::new(),
            said_at: now,
        }
    }
}

impl Owner<'_> {
    /// Orders nothing: when that has run, everything has that was acknowledged before this life began.
    pub(super) async fn order_nothing(&self) {
        self.order(self.own.nonce, Work::Nothing).await;
    }

    async fn order(&self, nonce: [u8; 16], work: Work) {
        let footprint = Footprint::empty();
        let home = footprint.home().home_number();
        let operation = Operation {
            context: SessionContext::default(),
            footprint,
            nonce,
            work,
        };
        let operation = Bytes::from(borsh::to_vec(&operation).unwrap_or_default());
        self.output(VoterOutput::Order { operation, home }).await;
    }

    /// Whether everything that was acknowledged before this life began has run.
    pub(super) fn is_caught_up(&self) -> bool {
        let executed = self.executed.load(Ordering::Relaxed);
        self.own.ordered.is_some_and(|order| executed >= order)
    }

    /// A client lives.
    pub(super) fn heard(&mut self, client: ClientId) {
        if self.config.client_roles.contains_key(&client) {
            self.own.heard.insert(client, Instant::now());
        }
    }

    /// A client has ordered a request with this number: transactions of earlier starts of it have nobody any more.
    pub(super) fn started(&mut self, client: ClientId, number: u64) {
        let start = self.own.starts.entry(client).or_default();
        *start = start_of(number).max(*start);
    }

    /// An operation of a node.
    pub(super) async fn feed_node(&mut self, order: u64, node: MachineId, operation: &Operation) {
        match &operation.work {
            Work::Nothing if node == self.config.machine && operation.nonce == self.own.nonce => {
                self.own.ordered.get_or_insert(order);
            }
            Work::Abandon { transactions } => {
                let named = transactions.get(..ABANDONED_MAX).unwrap_or(transactions);
                let is_open = |id| self.locks.is_open(id);
                let over = count_abandoned(&mut self.abandoned, node, named, self.config.faults, is_open);
                return self.abandon(order, over).await;
            }
            _ => {}
        }
        self.finished(order);
    }

    /// Ends transactions at the order of what abandoned them. The order is over when all of them are.
    async fn abandon(&mut self, order: u64, transactions: BTreeSet<TransactionId>) {
        metrics::counter!("cloudbft_voter_abandoned_transactions_total").increment(transactions.len() as u64);
        let (mut held, mut slots) = (Footprint::empty(), Vec::new());
        for id in &transactions {
            if id.is_session() {
                tracing::info!(order, ?id, "a session with advisory locks is abandoned");
                self.abandoned.remove(id);
                self.locks.end_session(id.session_id());
                continue;
            }
            tracing::info!(order, ?id, "a transaction is abandoned");
            self.config.bodies.aborted(*id);
            if let Some((held_by_it, slot)) = self.leave(order, *id).await {
                held.extend(&held_by_it);
                slots.push(slot);
            }
        }
        if slots.is_empty() {
            return self.finished(order);
        }
        let left = Arc::new(AtomicUsize::new(slots.len()));
        let aborts = slots.into_iter().map(|slot| {
            slot.end(End::Abort);
            (slot, Command::Abort(Finish::last_of(order, &left), None))
        });
        let start = Start::Slots(aborts.collect());
        let transactions: Vec<_> = transactions.into_iter().collect();
        if self.locks.run_ends(order, &transactions, &held) {
            self.start_work(start);
        } else {
            self.blocked.insert(order, start);
        }
    }

    /// Says which transactions, and which sessions with advisory locks, are abandoned, as far as this voter can tell, and ends the reads of clients that are dead.
    pub(super) async fn abandon_silent(&mut self) {
        let now = Instant::now();
        let limits = &self.config.limits;
        let silent = |client: ClientId| {
            let heard = self.own.heard.get(&client).copied().unwrap_or(self.own.started);
            now.saturating_duration_since(heard) > limits.client_silence_max
        };
        let open_max = limits.transaction_time_max + GRACE;
        let earlier = |number: u64, client: ClientId| {
            let newest = self.own.starts.get(&client);
            newest.is_some_and(|newest| start_of(number) < *newest)
        };
        let dead = |client: ClientId, number: u64| silent(client) || earlier(number, client);
        self.shared.reads.give_up_all(dead);
        let abandoned = self.transactions.iter().filter(|(id, open)| {
            let client = open.ordered.client;
            dead(client, id.session) || now.saturating_duration_since(open.since) > open_max
        });
        let sessions = self.locks.advisory_sessions();
        let sessions = sessions.filter(|id| dead(ClientId(id.client), id.session));
        let abandoned = abandoned
            .map(|(id, _)| *id)
            .chain(sessions.map(TransactionId::of_session));
        let abandoned: BTreeSet<_> = abandoned.take(ABANDONED_MAX).collect();
        let again = now.saturating_duration_since(self.own.said_at) >= AGAIN_INTERVAL;
        if abandoned.is_empty() || (abandoned == self.own.said && !again) {
            return;
        }
        self.own.said = abandoned.clone();
        self.own.said_at = now;
        let transactions = abandoned.into_iter().collect();
        self.order(self.own.nonce, Work::Abandon { transactions }).await;
    }
}

/// The start of a client that a number or a session of it belongs to: its high bits.
fn start_of(number: u64) -> u64 {
    number >> 32
}
