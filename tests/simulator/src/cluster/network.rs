//! The network: what it loses, repeats, delays, and does not carry at all.

use std::collections::{BTreeMap, BTreeSet};

use ordering::identifiers::MachineId;
use rand::{Rng, RngExt};

/// What the network does with each message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) loss_percent: u32,
    pub(crate) duplication_percent: u32,
    pub(crate) delay_max_us: u64,
}

/// A timely network.
pub(crate) const CALM: Weather = Weather {
    loss_percent: 0,
    duplication_percent: 0,
    delay_max_us: 300,
};

/// The shortest delay, in microseconds.
const DELAY_MIN_US: u64 = 10;

/// All links between machines.
pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// Links that carry nothing: (from, to), each with how many partitions cut it.
    cut: BTreeMap<(MachineId, MachineId), u32>,
}

impl Network {
    pub(crate) fn new(weather: Weather) -> Self {
        Network {
            weather,
            cut: BTreeMap::new(),
        }
    }

    /// Delays of the copies of a message that arrive, in microseconds: usually one.
    pub(crate) fn delays(&self, from: MachineId, to: MachineId, rng: &mut impl Rng) -> Vec<u64> {
        if self.cut.contains_key(&(from, to)) || rng.random_ratio(self.weather.loss_percent, 100) {
            return Vec::new();
        }
        let copies = 1 + usize::from(rng.random_ratio(self.weather.duplication_percent, 100));
        let most = self.weather.delay_max_us.max(DELAY_MIN_US + 1);
        (0..copies).map(|_| rng.random_range(DELAY_MIN_US..=most)).collect()
    }

    pub(crate) fn cut(&mut self, links: &[(MachineId, MachineId)]) {
        for link in links {
            *self.cut.entry(*link).or_default() += 1;
        }
    }

    pub(crate) fn mend(&mut self, links: &[(MachineId, MachineId)]) {
        for link in links {
            if let Some(partitions) = self.cut.get_mut(link) {
                *partitions -= 1;
                if *partitions == 0 {
                    self.cut.remove(link);
                }
            }
        }
    }

    /// All links carry again.
    pub(crate) fn mend_all(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.weather = CALM;
    }
}

/// Links that a partition cuts: a machine is isolated, the machines are split, or single directions fail.
pub(crate) fn draw_partition(machines: u8, rng: &mut impl Rng) -> Vec<(MachineId, MachineId)> {
    let pairs = (0..machines).flat_map(|from| (0..machines).map(move |to| (MachineId(from), MachineId(to))));
    let pairs = pairs.filter(|(from, to)| from != to);
    match rng.random_range(0..3) {
        0 => {
            let alone = MachineId(rng.random_range(0..machines));
            pairs.filter(|(from, to)| *from == alone || *to == alone).collect()
        }
        1 => {
            let side: BTreeSet<MachineId> = (0..machines).map(MachineId).filter(|_| rng.random_bool(0.5)).collect();
            pairs
                .filter(|(from, to)| side.contains(from) != side.contains(to))
                .collect()
        }
        _ => pairs.filter(|_| rng.random_bool(0.3)).collect(),
    }
}
