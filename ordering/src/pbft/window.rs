//! The batches above the stable checkpoint: what was accepted, who has voted, what is prepared.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::identifiers::{Digest, GroupId, MachineId, Order};
use crate::message::{CommitDbEntry, Request};
use crate::pbft::messages::{Batch, Certificate, PrePrepare};

/// Batches above the last stable checkpoint that a replica takes part in deciding.
pub const WINDOW: u64 = 512;

/// How far this machine is with a batch, in its view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Bodies may be missing, or the time is not believed yet.
    Waiting,
    /// The own PREPARE is being written.
    Accepting,
    /// The own PREPARE is durable and was sent.
    Accepted,
    /// The certificate is being written.
    Preparing,
    /// The certificate is durable and the own COMMIT was sent.
    Prepared,
}

/// An accepted batch.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) batch: Arc<Batch>,
    pub(crate) digest: Digest,
    /// The primary's message; none for a batch that the view began with.
    pub(crate) pre_prepare: Option<Arc<PrePrepare>>,
    pub(crate) stage: Stage,
    /// The time stamp was too old when it came: needs f+1 PREPAREs of others first.
    pub(crate) is_late: bool,
    /// The batch and its bodies stand in the log.
    pub(crate) is_logged: bool,
    /// Decided, and part of the history; its bodies are there.
    pub(crate) is_delivered: bool,
    bodies: Vec<Option<Arc<Request>>>,
    /// How many bodies are not here.
    pub(crate) missing: usize,
    /// Bytes of the bodies here.
    pub(crate) bytes: usize,
}

impl Slot {
    pub(crate) fn new(batch: &Arc<Batch>, digest: Digest) -> Self {
        Slot {
            digest,
            pre_prepare: None,
            stage: Stage::Waiting,
            is_late: false,
            is_logged: false,
            is_delivered: false,
            bodies: vec![None; batch.entries.len()],
            missing: batch.entries.len(),
            bytes: 0,
            batch: Arc::clone(batch),
        }
    }

    /// A batch that is part of the history.
    pub(crate) fn delivered(batch: &Arc<Batch>, digest: Digest) -> Self {
        let mut slot = Slot::new(batch, digest);
        slot.set_delivered();
        slot.is_logged = true;
        slot
    }

    /// The bodies are in the history now.
    pub(crate) fn set_delivered(&mut self) {
        self.is_delivered = true;
        self.bodies = Vec::new();
        self.missing = 0;
        self.bytes = 0;
    }

    /// Puts a body in its place; false when there is one.
    pub(crate) fn fill(&mut self, index: usize, request: Arc<Request>) -> bool {
        let Some(place) = self.bodies.get_mut(index).filter(|place| place.is_none()) else {
            return false;
        };
        self.bytes += request.operation.len();
        *place = Some(request);
        self.missing -= 1;
        true
    }

    /// The body at an order of this batch.
    pub(crate) fn body(&self, order: Order) -> Option<&Arc<Request>> {
        let index = usize::try_from(order.0.checked_sub(self.batch.first.0)?).ok()?;
        self.bodies.get(index)?.as_ref()
    }

    /// The bodies that are here.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &Arc<Request>> {
        self.bodies.iter().flatten()
    }

    /// The operations whose bodies are here, with their groups.
    pub(crate) fn operations(&self) -> impl Iterator<Item = (GroupId, CommitDbEntry)> + '_ {
        operations(&self.batch, &self.bodies)
    }
}

/// The operations of a batch whose bodies are given.
pub(crate) fn operations<'a>(
    batch: &'a Batch,
    bodies: &'a [Option<Arc<Request>>],
) -> impl Iterator<Item = (GroupId, CommitDbEntry)> + 'a {
    (0..)
        .zip(batch.entries.iter().zip(bodies))
        .filter_map(|(index, (entry, body))| {
            let operation = CommitDbEntry {
                order: Order(batch.first.0 + index),
                time_us: batch.time_us + index,
                digest: entry.digest,
                request: Some(body.clone()?),
            };
            Some((entry.group, operation))
        })
}

/// The votes for one number in one view.
#[derive(Debug, Default)]
pub(crate) struct Votes {
    /// The first PREPARE of each machine.
    prepares: BTreeMap<MachineId, (Digest, [u8; 64])>,
    /// The first COMMIT of each machine.
    commits: BTreeMap<MachineId, Digest>,
}

impl Votes {
    /// Counts a PREPARE; false when it contradicts an earlier one.
    pub(crate) fn prepare(&mut self, machine: MachineId, digest: Digest, signature: [u8; 64]) -> bool {
        self.prepares.entry(machine).or_insert((digest, signature)).0 == digest
    }

    /// Counts a COMMIT; false when it contradicts an earlier one.
    pub(crate) fn commit(&mut self, machine: MachineId, digest: Digest) -> bool {
        *self.commits.entry(machine).or_insert(digest) == digest
    }

    /// PREPAREs for a batch.
    pub(crate) fn prepares(&self, digest: &Digest) -> impl Iterator<Item = (MachineId, [u8; 64])> {
        let digest = *digest;
        self.prepares
            .iter()
            .filter(move |(_, (voted, _))| *voted == digest)
            .map(|(machine, (_, signature))| (*machine, *signature))
    }

    /// The signature of a machine's PREPARE for a batch.
    pub(crate) fn prepare_of(&self, machine: MachineId, digest: &Digest) -> Option<[u8; 64]> {
        let (voted, signature) = self.prepares.get(&machine)?;
        (voted == digest).then_some(*signature)
    }

    /// How many machines have sent COMMIT for a batch.
    pub(crate) fn commits(&self, digest: &Digest) -> usize {
        self.commits.values().filter(|voted| *voted == digest).count()
    }
}

/// The batches above the stable checkpoint, by number.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub(crate) slots: BTreeMap<u64, Slot>,
    /// Votes of the current view; also for batches whose PRE-PREPARE has not come.
    pub(crate) votes: BTreeMap<u64, Votes>,
    /// For each number the certificate of the highest view, of whatever view.
    pub(crate) certificates: BTreeMap<u64, Arc<Certificate>>,
    /// PRE-PREPAREs of the current view ahead of a gap, or that have to wait.
    pub(crate) waiting: BTreeMap<u64, (Arc<PrePrepare>, Digest)>,
    /// Every number up to this one was prepared in this view (or is stable), and its COMMIT begun.
    pub(crate) committing: u64,
}

impl Window {
    /// Bytes of the bodies that are not part of the history.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.values().map(|slot| slot.bytes).sum()
    }

    /// Batches that are not part of the history.
    pub(crate) fn undelivered(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values().filter(|slot| !slot.is_delivered)
    }

    /// The body at an order that is not part of the history.
    pub(crate) fn body(&self, order: Order) -> Option<&Arc<Request>> {
        self.slot_of(order)?.body(order)
    }

    /// The undelivered batch with an order.
    pub(crate) fn slot_of(&self, order: Order) -> Option<&Slot> {
        self.undelivered()
            .find(|slot| slot.batch.first <= order && order <= slot.batch.last())
    }

    /// Everything up to a stable number is done with.
    pub(crate) fn forget(&mut self, stable: u64) {
        self.slots = self.slots.split_off(&(stable + 1));
        self.votes = self.votes.split_off(&(stable + 1));
        self.certificates = self.certificates.split_off(&(stable + 1));
        self.waiting = self.waiting.split_off(&(stable + 1));
        self.committing = self.committing.max(stable);
    }

    pub(crate) fn check_invariants(&self, stable: u64, delivered: u64) {
        let is_within = |number: &u64| *number > stable && *number - stable <= WINDOW;
        assert!(self.slots.keys().all(is_within));
        assert!(self.votes.keys().all(is_within));
        assert!(self.waiting.keys().all(is_within));
        assert!(self.certificates.keys().all(is_within));
        for (number, slot) in &self.slots {
            assert_eq!(*number, slot.batch.number);
            assert_eq!(
                slot.is_delivered,
                *number <= delivered,
                "number {number}, delivered {delivered}"
            );
            assert!(slot.stage != Stage::Prepared || *number <= self.committing);
            if !slot.is_delivered {
                assert_eq!(slot.missing, slot.bodies.iter().filter(|body| body.is_none()).count());
                assert!(slot.missing == 0 || slot.stage == Stage::Waiting);
            }
        }
    }
}
