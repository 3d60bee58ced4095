//! Checkpoints: a quorum's signed word on how far the decided history goes, and its hash. They bound what a recovery must
//! carry. They are signed with ordinary keys, so under MinBFT they use up no warrant (rule CheckpointsSpendNothing).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::configuration::{CHECKPOINT_BYTES, CHECKPOINT_ORDERS, Configuration};
use crate::identifiers::{Digest, MachineId, Order};
use crate::ledger::checkpoint_message::{
    Attachment, CertifiedCheckpoint, Checkpoint, CheckpointSignature, StableCheckpoint,
};
use crate::ledger::client_table::ClientTable;
use crate::ledger::history::DecidedHistory;
use crate::ledger::point::HistoryPoint;

/// Checkpoints of one machine, above the stable one, that are remembered; the oldest is forgotten first.
const POINTS_PER_MACHINE: usize = 64;

/// What has been signed, by whom.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    /// The highest stable checkpoint that our own history has reached.
    pub(crate) stable: Option<StableCheckpoint>,
    /// The same with the client table there; none on a machine without history.
    pub(crate) certified: Option<Arc<CertifiedCheckpoint>>,
    /// The highest stable checkpoint that is beyond our own history: we lag.
    pub(crate) ahead: Option<StableCheckpoint>,
    votes: BTreeMap<MachineId, BTreeMap<(HistoryPoint, Digest), CheckpointSignature>>,
    /// The last order that we signed.
    pub(crate) signed: Order,
}

impl Checkpoints {
    /// What a restarted machine's log proves.
    pub(crate) fn new(certified: Option<Arc<CertifiedCheckpoint>>) -> Self {
        let stable = certified.as_ref().map(|certified| certified.stable.clone());
        let signed = stable.as_ref().map(|stable| stable.point.order).unwrap_or_default();
        Checkpoints {
            stable,
            certified,
            signed,
            ..Checkpoints::default()
        }
    }

    /// The stable point.
    pub(crate) fn point(&self) -> HistoryPoint {
        self.stable
            .as_ref()
            .map_or(HistoryPoint::GENESIS, |stable| stable.point)
    }

    /// The client table at a place between the stable point and the end of our history, both included: made anew from
    /// the operations between, so it is alike on all machines, whatever they have seen beyond.
    pub(crate) fn clients_at(&self, order: Order, history: &DecidedHistory) -> ClientTable {
        let certified = self.certified.as_ref();
        let mut clients = certified.map(|certified| certified.clients.clone()).unwrap_or_default();
        let between = history.tail_above(self.point().order);
        for (_, operation) in between.take_while(|(at, _)| *at <= order) {
            if let Some(request) = &operation.request {
                clients.add(request);
            }
        }
        clients
    }

    /// Whether all machines sign a checkpoint when their history goes from `before` to `after`: alike on all.
    pub(crate) fn is_due(before: &HistoryPoint, after: &HistoryPoint) -> bool {
        before.order.0 / CHECKPOINT_ORDERS != after.order.0 / CHECKPOINT_ORDERS
            || before.bytes / CHECKPOINT_BYTES as u64 != after.bytes / CHECKPOINT_BYTES as u64
    }

    /// Counts a checkpoint; returns the proof when a quorum has signed the same.
    pub(crate) fn vote<A: Attachment>(
        &mut self,
        checkpoint: &Checkpoint<A>,
        configuration: &Configuration,
    ) -> Option<StableCheckpoint> {
        if checkpoint.point.order <= self.point().order {
            return None;
        }
        let points = self.votes.entry(checkpoint.machine).or_default();
        let key = (checkpoint.point, checkpoint.clients);
        points.insert(key, checkpoint.own_signature());
        if points.len() > POINTS_PER_MACHINE {
            points.pop_first();
        }
        let signatures: Vec<_> = self
            .votes
            .values()
            .filter_map(|points| points.get(&key).cloned())
            .take(configuration.quorum() as usize)
            .collect();
        let is_stable = signatures.len() == configuration.quorum() as usize;
        is_stable.then_some(StableCheckpoint {
            point: checkpoint.point,
            clients: checkpoint.clients,
            signatures,
        })
    }

    /// Takes a stable checkpoint that our history has reached, with the client table there.
    pub(crate) fn set_certified(&mut self, certified: Arc<CertifiedCheckpoint>) {
        self.set_stable(certified.stable.clone());
        self.certified = Some(certified);
    }

    /// Takes a stable checkpoint on a machine without history.
    pub(crate) fn set_stable(&mut self, stable: StableCheckpoint) {
        let order = stable.point.order;
        for points in self.votes.values_mut() {
            points.retain(|(point, _), _| point.order > order);
        }
        if self.ahead.as_ref().is_some_and(|ahead| ahead.point.order <= order) {
            self.ahead = None;
        }
        self.stable = Some(stable);
    }

    pub(crate) fn check_invariants(&self) {
        assert!(
            self.certified
                .as_ref()
                .is_none_or(|certified| self.stable.as_ref() == Some(&certified.stable))
        );
        assert!(self.votes.values().all(|points| points.len() <= POINTS_PER_MACHINE));
        assert!(
            self.ahead
                .as_ref()
                .is_none_or(|ahead| ahead.point.order > self.point().order)
        );
    }
}
