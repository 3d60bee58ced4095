//! Physical dependencies: which granted work must have finished in Postgres before other work starts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sql::footprint::Resource;
use sql::operation::TransactionId;

use super::mode::{ByMode, LockMode, Locks};

/// What kind of granted work starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A one-shot.
    OneShot,
    /// A Begin or an Extend.
    Within {
        /// The transaction.
        transaction: TransactionId,
        /// Whether it opens a snapshot of the whole database at its place.
        snapshot: bool,
    },
    /// An ordered read.
    Read {
        /// The open transaction that it belongs to.
        transaction: Option<TransactionId>,
    },
    /// The end of a transaction, with what it held.
    End {
        /// The transaction.
        transaction: TransactionId,
    },
}

/// How a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeKind {
    /// It changes committed state: later conflicting nodes wait for its end.
    Access,
    /// It runs inside an open transaction: nobody waits for it but that transaction's later work.
    Within { snapshot: bool },
    /// It reads committed state: later changes wait until its snapshot is open.
    Barrier,
}

#[derive(Debug, Default)]
struct Accessors {
    accesses: ByMode<BTreeSet<u64>>,
    barriers: ByMode<BTreeSet<u64>>,
}

impl Accessors {
    fn is_empty(&self) -> bool {
        let slots = self.accesses.slots().iter().chain(self.barriers.slots());
        slots.into_iter().all(BTreeSet::is_empty)
    }
}

#[derive(Debug, Default)]
struct NodeState {
    waits_for: usize,
    /// Who waits until this node has finished.
    dependents: Vec<u64>,
    /// Who waits until this node's snapshot is open.
    snapshot_dependents: Vec<u64>,
    accesses: Locks,
    barriers: Locks,
}

/// Invariant: acyclic, as a node depends only on nodes that were started before it.
#[derive(Debug, Default)]
pub(super) struct Physical {
    nodes: BTreeMap<u64, NodeState>,
    resources: HashMap<Resource, Accessors>,
}

impl Physical {
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Adds a node after all earlier ones that it conflicts with, and after `before`; true when it may run.
    pub(super) fn start(&mut self, order: u64, kind: NodeKind, locks: &Locks, before: &[u64]) -> bool {
        let whole_database = vec![(Resource::Everything, LockMode::Shared)];
        let snapshot = kind == NodeKind::Within { snapshot: true };
        let mut finished_first: BTreeSet<u64> = before.iter().copied().collect();
        let mut opened_first = BTreeSet::new();
        self.conflicts(locks, kind == NodeKind::Access, &mut finished_first, &mut opened_first);
        if snapshot {
            self.conflicts(&whole_database, false, &mut finished_first, &mut opened_first);
        }
        finished_first.retain(|other| self.nodes.contains_key(other));
        opened_first.retain(|other| !finished_first.contains(other));
        let node = NodeState {
            waits_for: finished_first.len() + opened_first.len(),
            accesses: if kind == NodeKind::Access {
                locks.clone()
            } else {
                Vec::new()
            },
            barriers: match kind {
                NodeKind::Barrier => locks.clone(),
                NodeKind::Within { snapshot: true } => whole_database,
                NodeKind::Access | NodeKind::Within { snapshot: false } => Vec::new(),
            },
            ..NodeState::default()
        };
        self.register(order, &node);
        for other in &finished_first {
            self.nodes.entry(*other).or_default().dependents.push(order);
        }
        for other in &opened_first {
            self.nodes.entry(*other).or_default().snapshot_dependents.push(order);
        }
        let ready = node.waits_for == 0;
        self.nodes.insert(order, node);
        ready
    }

    fn conflicts(&self, locks: &Locks, changes: bool, finished: &mut BTreeSet<u64>, opened: &mut BTreeSet<u64>) {
        for (resource, mode) in locks {
            let Some(accessors) = self.resources.get(resource) else {
                continue;
            };
            finished.extend(accessors.accesses.conflicting(*mode).flatten());
            if changes {
                opened.extend(accessors.barriers.conflicting(*mode).flatten());
            }
        }
    }

    fn register(&mut self, order: u64, node: &NodeState) {
        for (resource, mode) in &node.accesses {
            let accessors = self.resources.entry(resource.clone()).or_default();
            accessors.accesses.of(*mode).insert(order);
        }
        for (resource, mode) in &node.barriers {
            let accessors = self.resources.entry(resource.clone()).or_default();
            accessors.barriers.of(*mode).insert(order);
        }
    }

    pub(super) fn snapshot_open(&mut self, order: u64) -> Vec<u64> {
        let Some(node) = self.nodes.get_mut(&order) else {
            return Vec::new();
        };
        let barriers = std::mem::take(&mut node.barriers);
        let dependents = std::mem::take(&mut node.snapshot_dependents);
        self.unregister(&barriers, |accessors, mode| accessors.barriers.of(mode).remove(&order));
        self.release(&dependents)
    }

    pub(super) fn finish(&mut self, order: u64) -> Vec<u64> {
        let mut ready = self.snapshot_open(order);
        let Some(node) = self.nodes.remove(&order) else {
            return ready;
        };
        self.unregister(&node.accesses, |accessors, mode| {
            accessors.accesses.of(mode).remove(&order)
        });
        ready.extend(self.release(&node.dependents));
        ready
    }

    fn unregister(&mut self, locks: &Locks, mut remove: impl FnMut(&mut Accessors, LockMode) -> bool) {
        for (resource, mode) in locks {
            let Some(accessors) = self.resources.get_mut(resource) else {
                continue;
            };
            remove(accessors, *mode);
            if accessors.is_empty() {
                self.resources.remove(resource);
            }
        }
    }

    fn release(&mut self, dependents: &[u64]) -> Vec<u64> {
        let mut ready = Vec::new();
        for dependent in dependents {
            let Some(node) = self.nodes.get_mut(dependent) else {
                continue;
            };
            node.waits_for = node.waits_for.saturating_sub(1);
            if node.waits_for == 0 {
                ready.push(*dependent);
            }
        }
        ready
    }
}
