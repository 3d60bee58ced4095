//! What a run does: drawn from its seed, printed, and overridable as `name=value`.

use std::fmt;
use std::str::FromStr;

use ordering::identifiers::MachineId;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::adversary::Behaviour;
use crate::counter::Trust;

/// The machines that an adversary has, and what it does with them.
pub type Adversaries = Vec<(MachineId, Vec<Behaviour>)>;

/// What a campaign demands of every seed, whatever the seed draws.
#[derive(Clone, Debug, Default)]
pub struct Overrides(pub Vec<(String, String)>);

macro_rules! options {
    ($($(#[$meta:meta])* $name:ident: $kind:ty),* $(,)?) => {
        /// The options of a run. The same options and seed give the same run.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Options {
            /// The seed.
            pub seed: u64,
            $($(#[$meta])* pub $name: $kind,)*
            /// Byzantine machines (at most f, unless a test wants the checkers to fail).
            pub adversaries: Adversaries,
        }

        impl Options {
            /// Sets an option by its name.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
                match name {
                    $(stringify!($name) => self.$name = parse(name, value)?,)*
                    "adversaries" => self.adversaries = parse_adversaries(value)?,
                    _ => return Err(format!("no option is called {name}")),
                }
                Ok(())
            }
        }

        impl fmt::Display for Options {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "seed={}", self.seed)?;
                $(write!(formatter, " {}={}", stringify!($name), self.$name)?;)*
                let adversaries: Vec<String> = self.adversaries.iter().map(|(machine, behaviours)| {
                    let names: Vec<&str> = behaviours.iter().map(|behaviour| behaviour.name()).collect();
                    format!("m{machine}:{}", names.join("+"))
                }).collect();
                write!(formatter, " adversaries={}", adversaries.join(","))
            }
        }
    };
}

options! {
    /// f.
    faults: u8,
    /// How many groups are in charge at first.
    groups: u16,
    /// How many more groups there are, which may be in charge later.
    groups_spare: u16,
    /// Times that the administrator changes how many groups are in charge.
    scalings: u32,
    /// Correct clients.
    clients: u32,
    /// Byzantine clients.
    byzantine_clients: u32,
    /// Requests of each correct client in the safety phase.
    requests: u32,
    /// The largest operation, in bytes.
    operation_bytes_max: usize,
    /// Most entries of a batch.
    batch_entries_max: usize,
    /// Length of the safety phase in milliseconds of virtual time.
    safety_ms: u64,
    /// How long requests may take once everything is healed, in milliseconds of virtual time.
    patience_ms: u64,
    /// Messages that get lost, in percent.
    loss_percent: u32,
    /// Messages that arrive twice, in percent.
    duplication_percent: u32,
    /// The longest ordinary delay of a message, in microseconds; delays are drawn, so messages overtake.
    delay_max_us: u64,
    /// The longest sync of a disk, in microseconds.
    sync_max_us: u64,
    /// Machines that crash and come back, one after the other or together.
    crashes: u32,
    /// Times that whoever leads is cut off for a while.
    primary_cuts: u32,
    /// Times that everything loses power at once.
    power_cuts: u32,
    /// Partitions, one-way ones among them.
    partitions: u32,
    /// Times that a disk becomes very slow for a while.
    slow_disks: u32,
    /// How far wall clocks differ from the true time, in milliseconds.
    clock_offset_max_ms: u64,
    /// How much too fast or slow monotonic clocks run, in millionths.
    clock_rate_max_ppm: u64,
    /// Of what was not synced, nothing survives a crash.
    loses_unsynced: bool,
    /// When the adversaries begin, in milliseconds of virtual time; until then their machines are correct.
    corrupted_ms: u64,
    /// What a log may weigh before databases that lag hold it back no longer, in bytes.
    log_bytes_max: u64,
    /// A log is cut when that frees so many bytes.
    cut_bytes: u64,
    /// A machine looks at its inputs only so often, and takes what has come together; in microseconds, 0: at once.
    together_us: u64,
    /// Correct replicas that each client reaches, drawn for each client, for the whole run; 0: it reaches every machine.
    clients_reach: u8,
    /// The last of several clients reaches every machine, and submits on for as long as a request of the others is open.
    busy_client: bool,
    /// Times that the counter of a machine is spent on something that the machine did not ask for: it must stop.
    spent_counters: u32,
    /// Whether the adversaries' trusted counters keep their promise (`True`), or certify everything (`Broken`).
    counters: Trust,
}

impl Options {
    /// Draws options.
    pub fn draw(seed: u64, machines: impl Fn(u8) -> u8) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let faults = if rng.random_bool(0.3) { 2 } else { 1 };
        let is_calm = rng.random_bool(0.2);
        let few = |rng: &mut ChaCha8Rng, most: u32| if is_calm { 0 } else { rng.random_range(0..=most) };
        let mut options = Options {
            seed,
            faults,
            groups: rng.random_range(1..=3),
            groups_spare: 0,
            scalings: 0,
            clients: rng.random_range(1..=4),
            byzantine_clients: if rng.random_bool(0.3) { 1 } else { 0 },
            requests: rng.random_range(5..=60),
            operation_bytes_max: *pick(&mut rng, &[16, 200, 2000]),
            batch_entries_max: *pick(&mut rng, &[1, 4, 8, 64]),
            safety_ms: rng.random_range(500..=4_000),
            patience_ms: 60_000,
            loss_percent: few(&mut rng, 20),
            duplication_percent: few(&mut rng, 10),
            delay_max_us: *pick(&mut rng, &[300, 1_000, 8_000, 40_000]),
            sync_max_us: *pick(&mut rng, &[300, 2_000, 15_000]),
            crashes: few(&mut rng, 3),
            primary_cuts: few(&mut rng, 3),
            power_cuts: few(&mut rng, 2),
            partitions: few(&mut rng, 3),
            slow_disks: few(&mut rng, 2),
            clock_offset_max_ms: *pick(&mut rng, &[0, 10, 1_500]),
            clock_rate_max_ppm: *pick(&mut rng, &[0, 100, 5_000]),
            loses_unsynced: rng.random_bool(0.3),
            corrupted_ms: *pick(&mut rng, &[0, 300, 800]),
            log_bytes_max: 1 << 32,
            cut_bytes: 1 << 24,
            together_us: 0,
            clients_reach: 0,
            busy_client: false,
            spent_counters: 0,
            counters: Trust::True,
            adversaries: Vec::new(),
        };
        options.adversaries = draw_adversaries(faults, machines(faults), &mut rng);
        options.log_bytes_max = *pick(&mut rng, &[1 << 32, 1 << 32, 2_000]);
        options.cut_bytes = *pick(&mut rng, &[1, 5_000, 1 << 24]);
        options.calm_for_changes(&mut rng);
        options.together_us = *pick(&mut rng, &[0, 0, 200, 5_000]);
        // A request that the only replica which has it cannot bring to a liar needs f+1 that have it.
        let reach_min = if options.adversaries.is_empty() { 1 } else { faults + 1 };
        options.clients_reach = *pick(&mut rng, &[0, 0, reach_min]);
        options.busy_client = rng.random_bool(0.3);
        options.spent_counters = if is_calm { 0 } else { *pick(&mut rng, &[0, 0, 1]) };
        options.let_some_hoard();
        options
    }

    /// Some adversaries hoard besides. Drawn apart: what does nothing under MinBFT takes the place of nothing there.
    fn let_some_hoard(&mut self) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x40a2d);
        for (_, behaviours) in &mut self.adversaries {
            if rng.random_bool(0.2) && !behaviours.contains(&Behaviour::Twins) {
                behaviours.push(Behaviour::Hoarding);
            }
        }
    }

    /// Who lies in view changes is mostly tried where there are many of them, and no restart in between: a restarted
    /// machine and a liar are too many for a view to go on.
    fn calm_for_changes(&mut self, rng: &mut impl Rng) {
        let mut behaviours = self.adversaries.iter().flat_map(|(_, behaviours)| behaviours);
        if behaviours.any(|behaviour| Behaviour::OF_CHANGES.contains(behaviour)) && rng.random_bool(0.6) {
            self.crashes = 0;
            self.power_cuts = 0;
            self.primary_cuts = rng.random_range(1..=4);
            self.safety_ms = self.safety_ms.max(2_500);
            // From the beginning, a liar can hold the start up, and nothing can be demanded (rule AllLogsAtStart).
            self.corrupted_ms = *pick(rng, &[0, 800, 800]);
        }
    }

    /// Draws options, then sets what is overridden; a different f draws its adversaries again.
    pub fn draw_with(seed: u64, machines: impl Fn(u8) -> u8, overrides: &Overrides) -> Result<Self, String> {
        let mut options = Options::draw(seed, &machines);
        for (name, value) in &overrides.0 {
            options.set(name, value)?;
            if name == "faults" {
                let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xfa);
                options.adversaries = draw_adversaries(options.faults, machines(options.faults), &mut rng);
                options.let_some_hoard();
            }
        }
        Ok(options)
    }

    /// How many groups there are, whether they are in charge or not.
    pub fn groups_in_all(&self) -> u16 {
        self.groups + self.groups_spare
    }

    /// What an adversary does with a machine, if it has it.
    pub fn behaviours(&self, machine: MachineId) -> &[Behaviour] {
        self.adversaries
            .iter()
            .find(|(other, _)| *other == machine)
            .map_or(&[], |(_, behaviours)| behaviours)
    }
}

fn draw_adversaries(faults: u8, machines: u8, rng: &mut impl Rng) -> Adversaries {
    if rng.random_bool(0.3) {
        return Vec::new();
    }
    let mut free: Vec<u8> = (0..machines).collect();
    let count = rng.random_range(1..=faults);
    let mut adversaries: Adversaries = (0..count)
        .map(|_| {
            // Half of them begin with the first primary: it has the most power.
            let index = if rng.random_bool(0.5) {
                0
            } else {
                rng.random_range(0..free.len())
            };
            (MachineId(free.remove(index)), Behaviour::draw(rng))
        })
        .collect();
    for (machine, behaviours) in &mut adversaries {
        // Under MinBFT, m0 takes part in no view change.
        let other = free.iter().position(|other| *other != 0);
        if let (0, true, Some(other)) = (machine.0, behaviours.contains(&Behaviour::LyingViewChanges), other) {
            free.push(0);
            *machine = MachineId(free.remove(other));
        }
    }
    adversaries.sort_by_key(|(machine, _)| *machine);
    adversaries
}

fn pick<'a, T>(rng: &mut impl Rng, choices: &'a [T]) -> &'a T {
    &choices[rng.random_range(0..choices.len())]
}

fn parse<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name}={value} is not understood"))
}

fn parse_adversaries(text: &str) -> Result<Adversaries, String> {
    let each = text.split(',').filter(|part| !part.is_empty());
    each.map(|part| {
        let not_understood = || format!("adversary {part} is not understood: m1:twins+selective");
        let (machine, names) = part.split_once(':').ok_or_else(not_understood)?;
        let number = machine.strip_prefix('m').and_then(|number| number.parse().ok());
        let behaviours: Option<Vec<Behaviour>> = names.split('+').map(Behaviour::from_name).collect();
        Ok((
            MachineId(number.ok_or_else(not_understood)?),
            behaviours.ok_or_else(not_understood)?,
        ))
    })
    .collect()
}

impl fmt::Display for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

impl FromStr for Trust {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "True" => Ok(Trust::True),
            "Broken" => Ok(Trust::Broken),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_gives_the_same_options() {
        for seed in 0..500 {
            let options = Options::draw(seed, |faults| 2 * faults + 2);
            let mut again = Options::draw(seed + 1, |faults| 2 * faults + 2);
            again.seed = seed;
            for part in options.to_string().split(' ').skip(1) {
                let (name, value) = part.split_once('=').unwrap();
                again.set(name, value).unwrap();
            }
            assert_eq!(options, again);
            assert!(options.adversaries.len() <= usize::from(options.faults));
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let mut options = Options::draw(1, |faults| 2 * faults + 2);
        assert!(options.set("faulds", "1").unwrap_err().contains("faulds"));
        assert!(options.set("faults", "one").unwrap_err().contains("one"));
        assert!(options.set("adversaries", "m1:nice").unwrap_err().contains("nice"));
    }
}
