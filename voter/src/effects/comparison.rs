//! What this voter's server has changed at each order, against what the voters of other machines say of theirs. Pure; time is
//! an argument.
//!
//! f+1 equal digests are the truth of an order: one of them is a correct voter's. A voter alone, or f of them, can say what
//! they like: nobody goes out of service for it, and each fills only its own table here.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ordering::identifiers::{Digest, MachineId, Order};
use ordering::message::{EFFECT_DIGESTS_MAX, EffectDigest, EffectDigests};

use super::effect::{NOTHING, Shown};

/// Digests that are remembered of each voter, and of this one.
pub(crate) const WINDOW: usize = 16_384;

/// Orders of which tables and keys are remembered until they are compared.
const SHOWN_MAX: usize = 1_024;

/// The others are asked for their digests of an order when it has not been settled for so long, and again after twice the time.
const ASK_AFTER: Duration = Duration::from_secs(2);

/// How often they are asked.
const ASKED_MAX: u32 = 4;

/// What stands between this voter and the truth of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not enough is known.
    Open,
    /// f+1 voters say this.
    Truth(Digest),
    /// No f+1 voters can say the same any more.
    None,
}

/// What the digests of one order, one of each voter at most, say together; of `2 * faults + 1` voters.
pub(crate) fn verdict(faults: usize, digests: &[Digest]) -> Verdict {
    let mut most = 0;
    for digest in digests {
        let equal = digests.iter().filter(|other| *other == digest).count();
        if equal > faults {
            return Verdict::Truth(*digest);
        }
        most = most.max(equal);
    }
    let missing = (2 * faults + 1).saturating_sub(digests.len());
    match most + missing > faults {
        true => Verdict::Open,
        false => Verdict::None,
    }
}

/// Something that is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// f+1 voters say otherwise than this voter's server: it has diverged.
    Diverged { order: u64, shown: Shown },
    /// No f+1 voters say the same.
    Disputed { order: u64, shown: Shown },
    /// f+1 voters say what this one says.
    Agreed { order: u64 },
    /// Another voter says otherwise than this one.
    Mismatch { from: MachineId, order: u64 },
    /// An order was forgotten before enough was known of it.
    Skipped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Own {
    /// It is not known what was changed: it is not compared.
    Unknown,
    /// Waits for the others.
    Open(Digest),
    /// Nothing more is to be found of it.
    Settled(Digest),
}

/// An open order is asked for.
#[derive(Clone, Copy, Debug)]
struct Asking {
    due: Duration,
    times: u32,
}

/// From where on it is known that what was not read has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coverage {
    /// It is not.
    Unknown,
    /// A fence was read. What was begun before the next one is written may have been committed before the reading began.
    Fenced,
    /// Above this order, up to `executed`, what is not in `own` has changed nothing.
    From(u64),
}

/// The comparison of one voter.
#[derive(Debug)]
pub(crate) struct Comparison {
    faults: usize,
    others: BTreeMap<MachineId, BTreeMap<u64, Digest>>,
    own: BTreeMap<u64, Own>,
    shown: BTreeMap<u64, Shown>,
    open: BTreeMap<u64, Asking>,
    coverage: Coverage,
    executed: u64,
    unsent: VecDeque<u64>,
    answers: BTreeMap<MachineId, VecDeque<u64>>,
    /// It has diverged: its digests mean nothing any more.
    has_diverged: bool,
}

impl Comparison {
    /// `others`: the other machines that hold voters.
    pub(crate) fn new(faults: usize, others: impl Iterator<Item = MachineId>) -> Self {
        Self {
            faults,
            others: others.map(|machine| (machine, BTreeMap::new())).collect(),
            own: BTreeMap::new(),
            shown: BTreeMap::new(),
            open: BTreeMap::new(),
            coverage: Coverage::Unknown,
            executed: 0,
            unsent: VecDeque::new(),
            answers: BTreeMap::new(),
            has_diverged: false,
        }
    }

    /// The server's changes are read from now on, without what was before, or it is another server.
    pub(crate) fn begin_anew(&mut self) {
        let others = std::mem::take(&mut self.others);
        *self = Self::new(self.faults, std::iter::empty());
        self.others = others;
    }

    /// The voter serves. If its database had diverged, it was repaired, or somebody has decided so: what it changed before says nothing.
    pub(crate) fn resume(&mut self) {
        if self.has_diverged {
            self.begin_anew();
        }
    }

    /// Orders that wait for the digests of others.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    /// What the transaction of an order has changed here; `None` if that is not known.
    pub(crate) fn changed(&mut self, order: u64, digest: Option<Digest>, shown: Shown, now: Duration) -> Vec<Finding> {
        let Entry::Vacant(vacant) = self.own.entry(order) else {
            // Read again, after the connection was lost.
            return Vec::new();
        };
        let Some(digest) = digest else {
            vacant.insert(Own::Unknown);
            return self.forget_old();
        };
        vacant.insert(Own::Open(digest));
        self.shown.insert(order, shown);
        while self.shown.len() > SHOWN_MAX {
            self.shown.pop_first();
        }
        let due = now + ASK_AFTER;
        self.open.insert(order, Asking { due, times: 0 });
        self.unsent.push_back(order);
        let mut findings = self.judge(order);
        for (from, digests) in &self.others {
            if digests.get(&order).is_some_and(|other| *other != digest) {
                findings.push(Finding::Mismatch { from: *from, order });
            }
        }
        findings.extend(self.forget_old());
        findings
    }

    /// What the voter has written into its server's log: see [`super::change::Decoded::Fence`].
    pub(crate) fn fence(&mut self, executed: u64, ceiling: u64, now: Duration) -> Vec<Finding> {
        self.coverage = match self.coverage {
            Coverage::Unknown => Coverage::Fenced,
            // It was begun after the first one was written.
            Coverage::Fenced => Coverage::From(ceiling),
            covered => covered,
        };
        let covered_from = match self.coverage {
            Coverage::From(order) => order,
            _ => u64::MAX,
        };
        let from = self.executed.max(covered_from);
        self.executed = self.executed.max(executed);
        if from >= self.executed {
            return Vec::new();
        }
        let told = self
            .others
            .values()
            .flat_map(|digests| digests.range(from + 1..=executed));
        let mut orders: Vec<u64> = told.map(|(order, _)| *order).collect();
        orders.sort_unstable();
        orders.dedup();
        let mut findings = Vec::new();
        for order in orders {
            findings.extend(self.changed_nothing(order, now));
        }
        findings
    }

    /// An order of which another voter has told, and of which nothing was read here.
    fn changed_nothing(&mut self, order: u64, now: Duration) -> Vec<Finding> {
        let is_covered = matches!(self.coverage, Coverage::From(from) if order > from) && order <= self.executed;
        match is_covered && !self.own.contains_key(&order) {
            true => self.changed(order, Some(NOTHING), Shown::default(), now),
            false => Vec::new(),
        }
    }

    /// Takes what another voter says.
    pub(crate) fn told(&mut self, from: MachineId, message: &EffectDigests, now: Duration) -> Vec<Finding> {
        let mut findings = Vec::new();
        for EffectDigest { order, digest } in message.entries.iter().take(EFFECT_DIGESTS_MAX) {
            if self.take(from, order.0, *digest) {
                findings.extend(match self.own.contains_key(&order.0) {
                    true => self.compare(from, order.0, *digest),
                    false => self.changed_nothing(order.0, now),
                });
            }
            let asked = self.answers.entry(from).or_default();
            if message.asks && asked.len() < WINDOW && self.others.contains_key(&from) {
                asked.push_back(order.0);
            }
        }
        self.bound(from);
        findings
    }

    /// Notes a digest; false if nothing new was said. A voter may say something else than before: it was repaired.
    fn take(&mut self, from: MachineId, order: u64, digest: Digest) -> bool {
        let Some(digests) = self.others.get_mut(&from) else {
            return false;
        };
        digests.insert(order, digest) != Some(digest)
    }

    /// Keeps a voter's table small. What is past goes first; then what is furthest ahead, which is asked for later.
    fn bound(&mut self, from: MachineId) {
        let newest = self.own.last_key_value().map_or(self.executed, |(order, _)| *order);
        let Some(digests) = self.others.get_mut(&from) else {
            return;
        };
        while digests.len() > WINDOW {
            match digests.first_key_value().is_some_and(|(first, _)| *first < newest) {
                true => digests.pop_first(),
                false => digests.pop_last(),
            };
        }
    }

    fn compare(&mut self, from: MachineId, order: u64, digest: Digest) -> Vec<Finding> {
        let differs = match self.own.get(&order) {
            Some(Own::Open(own) | Own::Settled(own)) => *own != digest,
            _ => false,
        };
        let mut findings = self.judge(order);
        if differs {
            findings.push(Finding::Mismatch { from, order });
        }
        findings
    }

    /// Looks whether an order is settled now.
    fn judge(&mut self, order: u64) -> Vec<Finding> {
        let Some(Own::Open(own)) = self.own.get(&order) else {
            return Vec::new();
        };
        if self.has_diverged {
            return Vec::new();
        }
        let own = *own;
        let mut digests = vec![own];
        digests.extend(self.others.values().filter_map(|digests| digests.get(&order)));
        let verdict = verdict(self.faults, &digests);
        if verdict == Verdict::Open {
            return Vec::new();
        }
        self.own.insert(order, Own::Settled(own));
        self.open.remove(&order);
        let shown = self.shown.remove(&order).unwrap_or_default();
        vec![match verdict {
            Verdict::Truth(truth) if truth == own => Finding::Agreed { order },
            Verdict::Truth(_) => {
                self.has_diverged = true;
                Finding::Diverged { order, shown }
            }
            Verdict::None | Verdict::Open => Finding::Disputed { order, shown },
        }]
    }

    fn forget_old(&mut self) -> Vec<Finding> {
        let mut findings = Vec::new();
        while self.own.len() > WINDOW
            && let Some((order, own)) = self.own.pop_first()
        {
            self.open.remove(&order);
            self.shown.remove(&order);
            if let Coverage::From(from) = &mut self.coverage {
                *from = order.max(*from);
            }
            if matches!(own, Own::Open(_)) {
                findings.push(Finding::Skipped);
            }
        }
        findings
    }

    fn entry(&self, order: u64) -> Option<EffectDigest> {
        match self.own.get(&order)? {
            Own::Unknown => None,
            Own::Open(digest) | Own::Settled(digest) => Some(EffectDigest {
                order: Order(order),
                digest: *digest,
            }),
        }
    }

    fn message(&self, asks: bool, orders: impl Iterator<Item = u64>) -> Option<EffectDigests> {
        let entries: Vec<_> = orders.filter_map(|order| self.entry(order)).collect();
        (!entries.is_empty()).then_some(EffectDigests { asks, entries })
    }

    /// What is to be sent now, one message of each kind at most; without a machine: to all others.
    pub(crate) fn outgoing(&mut self, now: Duration) -> Vec<(Option<MachineId>, EffectDigests)> {
        if self.has_diverged {
            self.unsent.clear();
            self.answers.clear();
            return Vec::new();
        }
        let mut messages = Vec::new();
        let orders: Vec<_> = drain(&mut self.unsent);
        messages.extend(self.message(false, orders.into_iter()).map(|message| (None, message)));
        let mut due = Vec::new();
        for (order, asking) in &mut self.open {
            if asking.due <= now && asking.times < ASKED_MAX && due.len() < EFFECT_DIGESTS_MAX {
                asking.times += 1;
                asking.due = now + ASK_AFTER * 2_u32.pow(asking.times);
                due.push(*order);
            }
        }
        messages.extend(self.message(true, due.into_iter()).map(|message| (None, message)));
        let mut answers = std::mem::take(&mut self.answers);
        for (machine, orders) in &mut answers {
            let orders: Vec<_> = drain(orders);
            let message = self.message(false, orders.into_iter());
            messages.extend(message.map(|message| (Some(*machine), message)));
        }
        self.answers = answers;
        messages
    }
}

fn drain(orders: &mut VecDeque<u64>) -> Vec<u64> {
    let count = orders.len().min(EFFECT_DIGESTS_MAX);
    orders.drain(..count).collect()
}

#[cfg(test)]
mod tests;
