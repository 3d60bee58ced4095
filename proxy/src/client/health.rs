//! Which voters seem to be there: decides only whom to ask first, never what is true.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ordering::identifiers::MachineId;

use crate::port::MachineSet;

/// A voter that leaves direct statements unanswered for this long is not asked first any more.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Whom a transaction would rather ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Preference {
    /// Voters that answered its last statement before the others: one that lags would be waited for.
    pub(crate) prompt: MachineSet,
    /// Voters that missed one of its statements.
    pub(crate) stale: MachineSet,
}

#[derive(Debug)]
struct Machine {
    id: MachineId,
    link_up: AtomicBool,
    /// Microseconds since `start` at which it was asked for something and has said nothing since; 0 for none.
    silent_since_us: AtomicU64,
}

/// What is known about the voters.
#[derive(Debug)]
pub(super) struct Health {
    start: Instant,
    machines: Vec<Machine>,
    next: AtomicUsize,
    /// Transactions take turns of their own: each asks a few times, and that would lead back to the same voters.
    next_live: AtomicUsize,
}

impl Health {
    pub(super) fn new(voters: &[MachineId]) -> Self {
        let machine = |id: &MachineId| Machine {
            id: *id,
            link_up: AtomicBool::new(true),
            silent_since_us: AtomicU64::new(0),
        };
        Self {
            start: Instant::now(),
            machines: voters.iter().map(machine).collect(),
            next: AtomicUsize::new(0),
            next_live: AtomicUsize::new(0),
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    fn machine(&self, id: MachineId) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.id == id)
    }

    pub(super) fn link(&self, id: MachineId, up: bool) {
        if let Some(machine) = self.machine(id) {
            machine.link_up.store(up, Ordering::Relaxed);
            machine.silent_since_us.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn asked(&self, machines: MachineSet) {
        let now = self.now_us();
        for machine in self.machines.iter().filter(|machine| machines.contains(machine.id)) {
            let _ = machine
                .silent_since_us
                .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    pub(super) fn answered(&self, id: MachineId) {
        if let Some(machine) = self.machine(id) {
            machine.silent_since_us.store(0, Ordering::Relaxed);
        }
    }

    /// The voters that seem to be there.
    pub(super) fn live(&self) -> MachineSet {
        let now = self.now_us();
        let limit = u64::try_from(SILENCE_MAX.as_micros()).unwrap_or(u64::MAX);
        let live = self.machines.iter().filter(|machine| {
            let since = machine.silent_since_us.load(Ordering::Relaxed);
            machine.link_up.load(Ordering::Relaxed) && (since == 0 || now.saturating_sub(since) < limit)
        });
        live.map(|machine| machine.id).collect()
    }

    /// `count` voters that shall run a transaction, in turn.
    pub(super) fn pick_live(&self, count: usize) -> MachineSet {
        let turn = self.next_live.fetch_add(1, Ordering::Relaxed);
        let all = self.machines.iter().map(|machine| machine.id).collect();
        self.in_turn(turn, count, Preference::default(), all)
            .into_iter()
            .collect()
    }

    /// `count` voters of these to ask: stale ones last, before them those that seem down, and the prompt ones first; in turn, so
    /// that the work is spread.
    pub(super) fn pick(&self, count: usize, preference: Preference, among: MachineSet) -> Vec<MachineId> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.in_turn(turn, count, preference, among)
    }

    fn in_turn(&self, turn: usize, count: usize, preference: Preference, among: MachineSet) -> Vec<MachineId> {
        let live = self.live();
        let length = self.machines.len().max(1);
        let rotated = self.machines.iter().cycle().skip(turn % length).take(length);
        let mut picked: Vec<_> = rotated.map(|machine| machine.id).collect();
        picked.retain(|machine| among.contains(*machine));
        let rank = |id: MachineId| {
            let Preference { prompt, stale } = preference;
            (stale.contains(id), !live.contains(id), !prompt.contains(id))
        };
        picked.sort_by_key(|id| rank(*id));
        picked.truncate(count);
        picked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> MachineSet {
        [1, 2, 3].map(MachineId).into_iter().collect()
    }

    #[test]
    fn transactions_take_turns_however_often_each_asks() {
        let health = Health::new(&[1, 2, 3].map(MachineId));
        let mut live = MachineSet::EMPTY;
        for _ in 0..3 {
            live = live.union(health.pick_live(1));
            health.pick(1, Preference::default(), all());
            health.pick(1, Preference::default(), all());
        }
        assert_eq!(live, all());
    }

    #[test]
    fn only_those_are_picked_that_may_be() {
        let health = Health::new(&[1, 2, 3].map(MachineId));
        let two = MachineSet::one(MachineId(2));
        assert_eq!(health.pick(3, Preference::default(), two), [MachineId(2)]);
    }

    #[test]
    fn work_is_spread_and_dead_voters_are_avoided() {
        let health = Health::new(&[1, 2, 3].map(MachineId));
        let all = all();
        let picks = (0..3).flat_map(|_| health.pick(1, Preference::default(), all));
        assert_eq!(picks.collect::<MachineSet>().len(), 3);
        health.link(MachineId(2), false);
        for _ in 0..4 {
            assert!(!health.pick(2, Preference::default(), all).contains(&MachineId(2)));
            assert_eq!(health.pick(3, Preference::default(), all).last(), Some(&MachineId(2)));
        }
    }

    #[test]
    fn prompt_voters_are_asked_first_and_stale_ones_last() {
        let health = Health::new(&[1, 2, 3].map(MachineId));
        let one = |id| MachineSet::one(MachineId(id));
        let (prompt, stale) = (one(1).union(one(3)), one(3));
        for _ in 0..4 {
            let picked = health.pick(3, Preference { prompt, stale }, all());
            assert_eq!(picked, [1, 2, 3].map(MachineId));
        }
    }
}
