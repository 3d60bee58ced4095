//! The batches above the stable checkpoint: what was accepted, which bodies are here, what is prepared.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::assignment::Assignment;
use crate::identifiers::{Digest, GroupId, Order};
use crate::ledger::{HistoryPoint, StableCheckpoint};
use crate::message::{CommitDbEntry, Request};
use crate::pbft::wire::ordered::{Batch, Certificate, PrePrepare, WINDOW};

/// Where a history goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The number of the next batch.
    pub(crate) number: u64,
    /// The next order.
    pub(crate) order: Order,
    /// The time of the last order.
    pub(crate) time_us: u64,
    /// Which groups are in charge of what follows.
    pub(crate) assignment: Assignment,
}

impl End {
    pub(crate) fn after(point: &HistoryPoint) -> Self {
        End {
            number: point.value + 1,
            order: point.order.next(),
            time_us: point.time_us,
            assignment: point.assignment,
        }
    }

    /// After a batch in which this assignment was in force.
    pub(crate) fn of(batch: &Batch, assignment: Assignment) -> Self {
        let last = batch.entries.last();
        End {
            number: batch.number + 1,
            order: batch.last().next(),
            time_us: batch.last_us(),
            assignment: last.map_or(assignment, |last| {
                assignment.after_entry(batch.last(), last.group, &last.digest)
            }),
        }
    }

    /// Whether a batch is the next one: number and orders without gap, times that rise.
    pub(crate) fn continues(&self, batch: &Batch) -> bool {
        batch.number == self.number && batch.first == self.order && batch.time_us > self.time_us
    }
}

/// The point of a stable checkpoint.
pub(crate) fn point_of(stable: &Option<StableCheckpoint>) -> HistoryPoint {
    stable.as_ref().map_or(HistoryPoint::GENESIS, |stable| stable.point)
}

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
    /// Which groups are in charge of its entries.
    pub(crate) assignment: Assignment,
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
    pub(crate) fn new(batch: &Arc<Batch>, digest: Digest, assignment: Assignment) -> Self {
        Slot {
            digest,
            assignment,
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
    pub(crate) fn delivered(batch: &Arc<Batch>, digest: Digest, assignment: Assignment) -> Self {
        let mut slot = Slot::new(batch, digest, assignment);
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
            Some((entry.group.deciding(), operation))
        })
}

/// The batches above the stable checkpoint, by number: accepted and prepared in the view that the machine is in, or was in last.
#[derive(Debug)]
pub(crate) struct Window {
    /// The low end: the highest stable checkpoint that this machine has reached, or that its view began with.
    pub(crate) low: Option<StableCheckpoint>,
    pub(crate) slots: BTreeMap<u64, Slot>,
    /// For each number the certificate of the highest view, of whatever view.
    pub(crate) certificates: BTreeMap<u64, Arc<Certificate>>,
    /// The next batch to accept.
    pub(crate) next: End,
    /// Every number up to this one was prepared in this view (or is stable), and its COMMIT begun.
    pub(crate) committing: u64,
}

impl Window {
    /// An empty window above a stable checkpoint.
    pub(crate) fn above(low: Option<StableCheckpoint>) -> Self {
        let point = point_of(&low);
        Window {
            low,
            slots: BTreeMap::new(),
            certificates: BTreeMap::new(),
            next: End::after(&point),
            committing: point.value,
        }
    }

    /// The point of the low end.
    pub(crate) fn low_point(&self) -> HistoryPoint {
        point_of(&self.low)
    }

    /// Whether a number may be voted on: above the low end, and not too far.
    pub(crate) fn is_within(&self, number: u64) -> bool {
        let low = self.low_point().value;
        number > low && number - low <= WINDOW
    }

    /// The batch with this number, if it is still this one.
    pub(crate) fn slot_mut(&mut self, number: u64, digest: &Digest) -> Option<&mut Slot> {
        self.slots.get_mut(&number).filter(|slot| slot.digest == *digest)
    }

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
        let mut undelivered = self.undelivered();
        let slot = undelivered.find(|slot| slot.batch.first <= order && order <= slot.batch.last())?;
        slot.body(order)
    }

    /// Batches that were accepted before a restart need not be proposed again.
    pub(crate) fn skip_accepted(&mut self) {
        while let Some(slot) = self.slots.get(&self.next.number) {
            if !self.next.continues(&slot.batch) {
                return;
            }
            self.next = End::of(&slot.batch, self.next.assignment);
        }
    }

    /// The next batch is above this point.
    pub(crate) fn skip_to(&mut self, point: &HistoryPoint) {
        if self.next.number <= point.value {
            self.next = End::after(point);
        }
    }

    /// Everything up to a stable checkpoint is done with: 2f+1 machines have decided it.
    pub(crate) fn raise_low(&mut self, stable: StableCheckpoint) {
        let number = stable.point.value;
        self.low = Some(stable);
        self.slots = self.slots.split_off(&(number + 1));
        self.certificates = self.certificates.split_off(&(number + 1));
        self.committing = self.committing.max(number);
    }

    /// Whether a view begins with every batch that we have decided above its base and our own checkpoint. (What is
    /// below ours may have been decided in this view, and fetched, before we heard how it began.)
    pub(crate) fn is_kept_by(&self, base: &HistoryPoint, batches: &[Arc<Batch>]) -> bool {
        let base = base.value.max(self.low_point().value);
        let decided = self.slots.range(base.saturating_add(1)..);
        let mut decided = decided.filter(|(_, slot)| slot.is_delivered);
        let stays = |number: u64, digest| {
            let mut batches = batches.iter();
            batches.any(|batch| batch.number == number && batch.digest() == digest)
        };
        decided.all(|(number, slot)| stays(*number, slot.digest))
    }

    /// Removes the batches of earlier views that the new one does not begin with, and their certificates. They were not
    /// decided.
    pub(crate) fn remove_others(&mut self, stay: &[Arc<Batch>]) -> Vec<Slot> {
        let stay: BTreeMap<u64, _> = stay.iter().map(|batch| (batch.number, batch.digest())).collect();
        let leaves = |number: &u64, slot: &mut Slot| !slot.is_delivered && stay.get(number) != Some(&slot.digest);
        self.certificates
            .retain(|number, certificate| stay.get(number) == Some(&certificate.batch.digest()));
        self.slots.extract_if(.., leaves).map(|(_, slot)| slot).collect()
    }

    pub(crate) fn check_invariants(&self, delivered: u64) {
        assert!(self.slots.keys().all(|number| self.is_within(*number)));
        assert!(self.certificates.keys().all(|number| self.is_within(*number)));
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
