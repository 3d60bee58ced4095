//! Deadlocks: cycles of those that wait for each other. Found at the order that would close one, which is refused.
//!
//! Who holds something and waits is a transaction (for the locks of an Extend), or a session (which holds advisory locks, and waits for
//! another one, or for the locks of any operation of its own). Only these can be part of a cycle. What is granted waits for
//! nothing, so a grant closes none.

use std::collections::BTreeSet;

use sql::footprint::Footprint;
use sql::operation::{SessionId, TransactionId};

use super::super::advisory::AdvisoryRequest;
use super::super::mode::Locks;
use super::Logical;

/// What is looked at in one search, at most: a cycle of more stays until the time limit of transactions ends it.
const STEPS_MAX: usize = 65_536;

/// Somebody who may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Waiter {
    Transaction(TransactionId),
    Session(SessionId),
    /// A one-shot or a Begin, by its order.
    Operation(u64),
}

impl Logical {
    /// Whether the holders that an Extend waits for wait, in the end, for its own transaction, or for what its session holds.
    pub(super) fn closes_cycle(&self, transaction: TransactionId, footprint: &Footprint) -> bool {
        let blockers = self.blockers(transaction, footprint);
        let own = [
            Waiter::Transaction(transaction),
            Waiter::Session(transaction.session_id()),
        ];
        let first = blockers.into_iter().map(Waiter::Transaction).collect();
        self.reaches(first, |waiter| own.contains(&waiter))
    }

    /// The same for a one-shot or a Begin of a session, which may hold advisory locks.
    pub(super) fn operation_closes_cycle(&self, session: SessionId, order: u64, locks: &Locks) -> bool {
        self.advisory.knows(session)
            && self.reaches(self.before(order, locks), |waiter| waiter == Waiter::Session(session))
    }

    /// The same for a session that asks for an advisory lock: it may hold others, and the locks of its transaction.
    pub(super) fn advisory_closes_cycle(&self, session: SessionId, request: AdvisoryRequest, at: u64) -> bool {
        let blockers = self.advisory.blockers(session, request, at);
        let first = blockers.into_iter().map(Waiter::Session).collect();
        self.reaches(first, |waiter| match waiter {
            Waiter::Session(id) => id == session,
            Waiter::Transaction(id) => id.session_id() == session,
            Waiter::Operation(_) => false,
        })
    }

    fn reaches(&self, first: Vec<Waiter>, is_own: impl Fn(Waiter) -> bool) -> bool {
        let (mut reached, mut frontier, mut steps) = (BTreeSet::new(), first, 0);
        while let Some(waiter) = frontier.pop() {
            if is_own(waiter) {
                return true;
            }
            if steps < STEPS_MAX && reached.insert(waiter) {
                let next = self.waited_for(waiter);
                steps += next.len();
                frontier.extend(next);
            }
        }
        false
    }

    /// Whom somebody waits for.
    fn waited_for(&self, waiter: Waiter) -> Vec<Waiter> {
        match waiter {
            Waiter::Transaction(id) => {
                let mut waited_for = self.extend_waits_for(id);
                // While its session waits, it does not end.
                let session = self.advisory.waits_for(id.session_id());
                waited_for.extend(session.into_iter().map(Waiter::Session));
                waited_for
            }
            Waiter::Session(id) => self.session_waits_for(id),
            Waiter::Operation(order) => match self.waiting.get(&order) {
                Some(waiting) => self.before(order, &waiting.locks),
                None => Vec::new(),
            },
        }
    }

    fn extend_waits_for(&self, id: TransactionId) -> Vec<Waiter> {
        let extend = self.transactions.get(&id).and_then(|open| open.extend.as_ref());
        let blockers = extend.map(|(_, wanted)| self.blockers(id, wanted)).unwrap_or_default();
        blockers.into_iter().map(Waiter::Transaction).collect()
    }

    /// A session waits for what its transactions, its one-shots and itself wait for.
    fn session_waits_for(&self, id: SessionId) -> Vec<Waiter> {
        let advisory = self.advisory.waits_for(id);
        let mut waited_for: Vec<_> = advisory.into_iter().map(Waiter::Session).collect();
        let transaction = |number| TransactionId {
            client: id.client,
            session: id.session,
            number,
        };
        let all = transaction(0)..=transaction(u64::MAX);
        for (id, _) in self.transactions.range(all.clone()) {
            waited_for.extend(self.extend_waits_for(*id));
        }
        let begins = self.waiting_begins.range(all).map(|(_, order)| *order);
        let one_shots = self.waiting_one_shots.range((id, 0)..=(id, u64::MAX));
        let operations = begins.chain(one_shots.map(|(_, order)| *order));
        waited_for.extend(operations.map(Waiter::Operation));
        waited_for
    }

    /// What a one-shot or a Begin waits for, at an order: holders, Extends, and what came before it.
    fn before(&self, order: u64, locks: &Locks) -> Vec<Waiter> {
        let mut before = Vec::new();
        for (resource, mode) in locks {
            let Some(state) = self.resources.get(resource) else {
                continue;
            };
            let holders = state.holders.iter().filter(|(_, held)| mode.conflicts(**held));
            before.extend(holders.map(|(id, _)| Waiter::Transaction(*id)));
            let extends = state.extends.iter().filter(|(_, wanted)| mode.conflicts(**wanted));
            let extending = extends.filter_map(|(order, _)| self.waiting_extends.get(order));
            before.extend(extending.map(|id| Waiter::Transaction(*id)));
            let earlier = state
                .waiting
                .conflicting(*mode)
                .flat_map(|orders| orders.range(..order));
            before.extend(earlier.take(STEPS_MAX).map(|order| Waiter::Operation(*order)));
        }
        before
    }
}
