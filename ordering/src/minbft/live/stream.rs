//! The PREPARE stream: all batches of the primary, followed strictly in counter order (rule NoHoles), for all groups.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::assignment::Assignment;
use crate::configuration::PREPARE_WINDOW;
use crate::identifiers::{Digest, GroupId, MachineId, Order};
use crate::ledger::HistoryPoint;
use crate::message::{CommitDbEntry, Request};
use crate::minbft::wire::ordered::Prepare;

/// PREPAREs that are kept to be sent again to machines that lag.
pub(crate) const PREPARES_KEPT: usize = 512;

/// How far this machine is with one group's share of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Bodies may be missing, or the COMMIT's turn has not come.
    Waiting,
    /// The COMMIT is being certified or written.
    Committing,
    /// The COMMIT and the bodies are durable here.
    Logged,
}

/// One group's share of a batch.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) group: GroupId,
    /// Its part of [`Slot::by_group`].
    range: Range<usize>,
    /// How many of its bodies are not here.
    pub(crate) missing: usize,
    /// One bit for each machine whose COMMIT covers it.
    votes: u64,
    pub(crate) stage: Stage,
    pub(crate) delivered: bool,
}

impl Share {
    pub(crate) fn votes(&self) -> u32 {
        self.votes.count_ones()
    }
}

/// One batch.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The value of the primary's counter.
    pub(crate) value: u64,
    pub(crate) prepare: Arc<Prepare>,
    pub(crate) digest: Digest,
    /// Body of each entry, if it is here.
    bodies: Vec<Option<Arc<Request>>>,
    /// Indices of the entries, sorted by group.
    by_group: Vec<usize>,
    /// Ascending by group.
    pub(crate) shares: Vec<Share>,
    /// Which groups are in charge of its entries.
    pub(crate) assignment: Assignment,
    /// The time stamp was too old when it came: needs f+1 COMMITs of others first.
    pub(crate) late: bool,
    /// The PREPARE stands in the log.
    pub(crate) logged: bool,
    /// Shares that are not logged.
    pub(crate) unlogged: usize,
    /// Shares that are not delivered.
    pub(crate) undelivered: usize,
}

impl Slot {
    fn new(prepare: Arc<Prepare>, digest: Digest, assignment: Assignment) -> Self {
        let mut by_group: Vec<usize> = (0..prepare.entries.len()).collect();
        let name = |index: &usize| prepare.entries.get(*index).map(|entry| entry.group);
        let group_of = |index: &usize| name(index).unwrap_or_default().deciding();
        by_group.sort_by_key(group_of);
        let mut shares: Vec<Share> = Vec::new();
        for (position, index) in by_group.iter().enumerate() {
            let group = group_of(index);
            match shares.last_mut().filter(|share| share.group == group) {
                Some(share) => {
                    share.range.end = position + 1;
                    share.missing += 1;
                }
                None => shares.push(Share {
                    group,
                    range: position..position + 1,
                    missing: 1,
                    votes: 0,
                    stage: Stage::Waiting,
                    delivered: false,
                }),
            }
        }
        Slot {
            value: prepare.warrant.value,
            bodies: vec![None; prepare.entries.len()],
            by_group,
            unlogged: shares.len(),
            undelivered: shares.len(),
            shares,
            assignment,
            late: false,
            logged: false,
            digest,
            prepare,
        }
    }

    pub(crate) fn share(&self, group: GroupId) -> Option<&Share> {
        let index = self.shares.binary_search_by_key(&group, |share| share.group).ok()?;
        self.shares.get(index)
    }

    pub(crate) fn share_mut(&mut self, group: GroupId) -> Option<&mut Share> {
        let index = self.shares.binary_search_by_key(&group, |share| share.group).ok()?;
        self.shares.get_mut(index)
    }

    fn bytes(&self) -> usize {
        self.bodies
            .iter()
            .flatten()
            .map(|request| request.operation.len())
            .sum()
    }

    /// Puts a body in its place; false when there is one.
    fn fill(&mut self, index: usize, request: Arc<Request>) -> bool {
        let Some(place) = self.bodies.get_mut(index).filter(|place| place.is_none()) else {
            return false;
        };
        *place = Some(request);
        let group = self
            .prepare
            .entries
            .get(index)
            .map(|entry| entry.group.deciding())
            .unwrap_or_default();
        if let Some(share) = self.share_mut(group) {
            share.missing -= 1;
        }
        true
    }

    /// The body at an order of this batch.
    pub(crate) fn body(&self, order: Order) -> Option<&Arc<Request>> {
        let index = usize::try_from(order.0.checked_sub(self.prepare.first.0)?).ok()?;
        self.bodies.get(index)?.as_ref()
    }

    /// All operations of the batch, with their groups.
    pub(crate) fn operations(&self) -> impl Iterator<Item = (GroupId, CommitDbEntry)> + '_ {
        (0..self.prepare.entries.len()).filter_map(|index| self.operation(index))
    }

    /// The operations of one group's share.
    pub(crate) fn share_operations(&self, group: GroupId) -> impl Iterator<Item = CommitDbEntry> + '_ {
        let range = self.share(group).map(|share| share.range.clone()).unwrap_or_default();
        let indices = self.by_group.get(range).unwrap_or_default();
        indices.iter().filter_map(|index| Some(self.operation(*index)?.1))
    }

    fn operation(&self, index: usize) -> Option<(GroupId, CommitDbEntry)> {
        let entry = self.prepare.entries.get(index)?;
        let operation = CommitDbEntry {
            order: Order(self.prepare.first.0 + index as u64),
            time_us: self.prepare.time_us + index as u64,
            digest: entry.digest,
            request: self.bodies.get(index)?.clone(),
        };
        Some((entry.group.deciding(), operation))
    }

    /// Whether it changes which groups are in charge of what follows.
    pub(crate) fn is_change(&self) -> bool {
        self.prepare.entries.last().is_some_and(|entry| entry.group.is_change())
    }
}

/// About how many bytes a PREPARE has in a message.
fn encoded_bytes(prepare: &Prepare) -> usize {
    128 + 34 * prepare.entries.len()
}

/// The stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The last value that was followed. Invariant: every value up to it was, since the view began (rule NoHoles).
    pub(crate) value: u64,
    /// The order after the last one that was followed.
    pub(crate) next: Order,
    /// The time of the last order that was followed.
    pub(crate) time_us: u64,
    /// Which groups are in charge of what follows.
    pub(crate) assignment: Assignment,
    /// The values of the batches in `slots` that change that, ascending.
    changes: VecDeque<u64>,
    /// Batches that are not delivered; values without gap, up to `value`.
    pub(crate) slots: VecDeque<Slot>,
    /// PREPAREs ahead of a gap, by value.
    window: BTreeMap<u64, (Arc<Prepare>, Digest)>,
    /// The last PREPAREs that were followed, to be sent again, and all that are above the stable checkpoint, for a
    /// view change; values without gap, up to `value`.
    kept: VecDeque<Arc<Prepare>>,
    /// Encoded bytes of those in `kept` that a VIEW-CHANGE would have to show: above `trimmed`.
    pub(crate) shown_bytes: usize,
    /// The stable order that `kept` was last trimmed for.
    trimmed: Order,
    /// COMMITs for batches whose PREPARE has not come, by value: (group, machine, digest).
    pub(crate) early: BTreeMap<u64, Vec<(GroupId, MachineId, Digest)>>,
    /// Bytes of the bodies in `slots`.
    pub(crate) bytes: usize,
    /// The primary broke the rules: nothing more is followed in this view.
    pub(crate) stopped: bool,
}

impl Stream {
    pub(crate) fn new(value: u64, next: Order, time_us: u64, assignment: Assignment) -> Self {
        Stream {
            value,
            next,
            time_us,
            assignment,
            changes: VecDeque::new(),
            slots: VecDeque::new(),
            window: BTreeMap::new(),
            kept: VecDeque::new(),
            shown_bytes: 0,
            trimmed: Order(0),
            early: BTreeMap::new(),
            bytes: 0,
            stopped: false,
        }
    }

    /// Keeps a PREPARE until its turn comes. Known ones and those too far ahead are dropped: what is lacking will
    /// be asked for.
    pub(crate) fn offer(&mut self, prepare: &Arc<Prepare>, digest: Digest) {
        let value = prepare.warrant.value;
        if value <= self.value || value > self.value + PREPARE_WINDOW || self.stopped {
            return;
        }
        self.window
            .entry(value)
            .or_insert_with(|| (Arc::clone(prepare), digest));
    }

    /// The PREPARE whose turn it is.
    pub(crate) fn due(&self) -> Option<&Arc<Prepare>> {
        if self.stopped {
            return None;
        }
        self.window.get(&(self.value + 1)).map(|(prepare, _)| prepare)
    }

    /// Whether the PREPARE whose turn it is continues what was followed: orders without gap, times that rise.
    pub(crate) fn continues(&self, prepare: &Prepare) -> bool {
        prepare.first == self.next && prepare.time_us > self.time_us
    }

    /// Follows the PREPARE whose turn it is.
    pub(crate) fn follow(&mut self) -> Option<&mut Slot> {
        let (prepare, digest) = self.window.remove(&(self.value + 1))?;
        self.value += 1;
        self.next = prepare.last().next();
        self.time_us = prepare.time_us + prepare.entries.len() as u64 - 1;
        self.shown_bytes += encoded_bytes(&prepare);
        self.kept.push_back(Arc::clone(&prepare));
        let slot = Slot::new(prepare, digest, self.assignment);
        if let Some(last) = slot.prepare.entries.last() {
            self.assignment = self
                .assignment
                .after_entry(slot.prepare.last(), last.group, &last.digest);
        }
        if slot.is_change() {
            self.changes.push_back(slot.value);
        }
        self.slots.push_back(slot);
        self.slots.back_mut()
    }

    /// The batch of a value.
    pub(crate) fn slot(&self, value: u64) -> Option<&Slot> {
        let index = value.checked_sub(self.slots.front()?.value)?;
        self.slots.get(usize::try_from(index).ok()?)
    }

    /// The batch of a value.
    pub(crate) fn slot_mut(&mut self, value: u64) -> Option<&mut Slot> {
        let index = value.checked_sub(self.slots.front()?.value)?;
        self.slots.get_mut(usize::try_from(index).ok()?)
    }

    /// The name of an entry of a batch (its group, or what it changes), and the assignment in force there.
    pub(crate) fn name_at(&self, value: u64, index: usize) -> Option<(GroupId, Assignment)> {
        let slot = self.slot(value)?;
        Some((slot.prepare.entries.get(index)?.group, slot.assignment))
    }

    /// The last batch that may be committed: the first one that changes the assignment, as long as that is not part of the history
    /// (rule ChangesDivide).
    pub(crate) fn divide(&self) -> u64 {
        self.changes.front().copied().unwrap_or(u64::MAX)
    }

    /// An operation that its group has decided, whole, although others have not.
    pub(crate) fn decided_at(&self, order: Order) -> Option<(GroupId, CommitDbEntry)> {
        let slot = self.slots.iter().find(|slot| slot.prepare.last() >= order)?;
        let is_decided = |group: &GroupId| slot.share(*group).is_some_and(|share| share.delivered);
        let mut operations = slot.operations();
        operations.find(|(group, entry)| entry.order == order && entry.request.is_some() && is_decided(group))
    }

    /// The body at an order that is not delivered.
    pub(crate) fn body(&self, order: Order) -> Option<&Arc<Request>> {
        let behind = self.slots.partition_point(|slot| slot.prepare.first <= order);
        self.slots.get(behind.checked_sub(1)?)?.body(order)
    }

    /// Puts a body in its place in a batch; tells the order, unless there is no such place or it is filled.
    pub(crate) fn fill(&mut self, value: u64, index: usize, request: Arc<Request>) -> Option<(Order, GroupId)> {
        let bytes = request.operation.len();
        let slot = self.slot_mut(value)?;
        let group = slot.prepare.entries.get(index)?.group.deciding();
        let order = Order(slot.prepare.first.0 + index as u64);
        if !slot.fill(index, request) {
            return None;
        }
        self.bytes += bytes;
        Some((order, group))
    }

    /// Takes the first batch away if all of it was delivered.
    pub(crate) fn pop_delivered(&mut self) -> Option<Slot> {
        self.slots.front().filter(|slot| slot.undelivered == 0)?;
        self.pop()
    }

    fn pop(&mut self) -> Option<Slot> {
        let slot = self.slots.pop_front()?;
        self.bytes -= slot.bytes();
        self.changes.pop_front_if(|value| *value == slot.value);
        Some(slot)
    }

    /// Counts a COMMIT; false when it contradicts the batch.
    pub(crate) fn vote(&mut self, value: u64, group: GroupId, machine: MachineId, digest: &Digest) -> bool {
        if value > self.value {
            self.early.entry(value).or_default().push((group, machine, *digest));
            return true;
        }
        // Delivered batches need no votes.
        let Some(slot) = self.slot_mut(value) else { return true };
        if slot.digest != *digest {
            return false;
        }
        let Some(share) = slot.share_mut(group) else {
            return false;
        };
        share.votes |= 1 << machine.0;
        true
    }

    /// Forgets the oldest PREPAREs that nobody needs any more.
    pub(crate) fn trim(&mut self, stable: Order) {
        while self.kept.len() > PREPARES_KEPT && self.kept.front().is_some_and(|oldest| oldest.last() <= stable) {
            self.kept.pop_front();
        }
        if self.trimmed != stable {
            self.trimmed = stable;
            self.shown_bytes = self.kept_above(stable).map(|prepare| encoded_bytes(prepare)).sum();
        }
    }

    /// PREPAREs above an order, in counter order.
    pub(crate) fn kept_above(&self, order: Order) -> impl Iterator<Item = &Arc<Prepare>> {
        self.kept.iter().filter(move |prepare| prepare.last() > order)
    }

    /// PREPAREs after this value that can be sent again.
    pub(crate) fn kept_after(&self, value: u64) -> impl Iterator<Item = &Arc<Prepare>> {
        self.kept.iter().filter(move |prepare| prepare.warrant.value > value)
    }

    /// Whether something shows that PREPAREs are missing here.
    pub(crate) fn has_gap(&self) -> bool {
        !self.stopped && (!self.window.is_empty() || !self.early.is_empty())
    }

    /// Jumps: everything up to this place is decided and logged.
    pub(crate) fn jump(&mut self, point: &HistoryPoint) {
        let value = point.value;
        while self.slots.front().is_some_and(|slot| slot.value <= value) {
            self.pop();
        }
        if value > self.value {
            self.value = value;
            self.next = point.order.next();
            self.time_us = point.time_us;
            self.assignment = point.assignment;
            self.kept.clear();
            self.shown_bytes = 0;
            self.window = self.window.split_off(&(value + 1));
            self.early = self.early.split_off(&(value + 1));
        }
    }

    /// Values and orders have no gap.
    pub(crate) fn check_invariants(&self) {
        assert!(self.slots.iter().zip(self.slots.iter().skip(1)).all(|(left, right)| {
            left.value + 1 == right.value && left.prepare.last().next() == right.prepare.first
        }));
        if let Some(last) = self.slots.back() {
            assert_eq!((last.value, last.prepare.last().next()), (self.value, self.next));
        }
        let shown = self.kept_above(self.trimmed).map(|prepare| encoded_bytes(prepare));
        assert_eq!(self.shown_bytes, shown.sum::<usize>());
        assert!(self.window.len() as u64 <= PREPARE_WINDOW);
        assert!(
            self.window
                .first_key_value()
                .is_none_or(|(value, _)| *value > self.value)
        );
        assert!(
            self.early
                .first_key_value()
                .is_none_or(|(value, _)| *value > self.value)
        );
        assert_eq!(self.bytes, self.slots.iter().map(Slot::bytes).sum::<usize>());
        let changes = self.slots.iter().filter(|slot| slot.is_change());
        assert!(changes.map(|slot| slot.value).eq(self.changes.iter().copied()));
        for slot in &self.slots {
            assert_eq!(
                slot.unlogged,
                slot.shares.iter().filter(|share| share.stage != Stage::Logged).count()
            );
            assert_eq!(
                slot.undelivered,
                slot.shares.iter().filter(|share| !share.delivered).count()
            );
            assert!(
                slot.shares
                    .iter()
                    .all(|share| !share.delivered || share.stage == Stage::Logged)
            );
        }
    }
}
