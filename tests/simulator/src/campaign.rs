//! Many seeds on all cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ordering::configuration::Faults;

use crate::lies::Told;
use crate::options::{Options, Overrides};
use crate::protocol::Protocol;
use crate::run::{Outcome, run};

/// What a campaign found.
#[derive(Debug, Default)]
pub struct Summary {
    /// Runs.
    pub runs: u64,
    /// Runs that demanded liveness.
    pub demanding: u64,
    /// Runs with an adversary.
    pub attacked: u64,
    /// Orders that were decided, over all runs.
    pub orders: u64,
    /// Steps of machines, over all runs.
    pub steps: u64,
    /// Forged messages that verification rejected.
    pub forged: u64,
    /// Lies that adversaries told.
    pub lies: Told,
    /// Runs by f and number of groups.
    pub sizes: BTreeMap<(u8, u16), u64>,
    /// Times that logs were cut.
    pub cuts: u64,
    /// Times that a voter was left behind by the logs, and repaired.
    pub repairs: u64,
    /// How long it took everything to end after healing: the longest, in microseconds of virtual time.
    pub healed_us_max: u64,
    /// Runs that violated something, by seed.
    pub failures: Vec<Outcome>,
    /// How long it took.
    pub duration: Duration,
}

impl Summary {
    fn add(&mut self, outcome: Outcome) {
        self.runs += 1;
        self.demanding += u64::from(outcome.demands_liveness);
        self.attacked += u64::from(!outcome.options.adversaries.is_empty());
        self.orders += outcome.orders;
        self.steps += outcome.counts.steps;
        self.forged += outcome.counts.forged;
        self.cuts += outcome.counts.cuts;
        self.repairs += outcome.counts.repairs;
        self.lies.add(&outcome.counts.lies);
        *self
            .sizes
            .entry((outcome.options.faults, outcome.options.groups))
            .or_default() += 1;
        self.healed_us_max = self.healed_us_max.max(outcome.healed_us.unwrap_or(0));
        if outcome.violation.is_some() {
            self.failures.push(outcome);
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let seconds = self.duration.as_secs_f64();
        format!(
            "{} seeds in {seconds:.1} s ({:.1} seeds/s), {} of them attacked, {} demanded liveness; \
             {} orders, {} steps, {} forged messages rejected; logs cut {} times, {} databases repaired; slowest to end after healing {} ms; {} failed",
            self.runs,
            self.runs as f64 / seconds.max(0.001),
            self.attacked,
            self.demanding,
            self.orders,
            self.steps,
            self.forged,
            self.cuts,
            self.repairs,
            self.healed_us_max / 1000,
            self.failures.len()
        )
    }

    /// How many runs each size of cluster had.
    pub fn sizes_line(&self) -> String {
        let each = self.sizes.iter();
        let each = each.map(|((faults, groups), runs)| format!("f={faults} with {groups} groups {runs}"));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// The options of a seed.
pub fn options<P: Protocol>(seed: u64, overrides: &Overrides) -> Result<Options, String> {
    Options::draw_with(seed, |faults| P::machines(Faults(faults)), overrides)
}

/// Runs seeds on as many threads; `progress` sees the summary after each run. Ends early after `failures_max`.
pub fn campaign<P: Protocol>(
    seeds: Range<u64>,
    overrides: &Overrides,
    threads: usize,
    failures_max: usize,
    mut progress: impl FnMut(&Summary),
) -> Result<Summary, String> {
    options::<P>(seeds.start, overrides)?;
    let begun = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let mut summary = Summary::default();
    thread::scope(|scope| {
        let (sender, outcomes) = mpsc::channel();
        for _ in 0..threads.max(1) {
            let (sender, next, end) = (sender.clone(), &next, seeds.end);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let Some(options) = (seed < end).then(|| options::<P>(seed, overrides)) else {
                        return;
                    };
                    let outcome = options.map(|options| run::<P>(&options, None));
                    if sender.send(outcome).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for outcome in outcomes {
            summary.add(outcome?);
            summary.duration = begun.elapsed();
            progress(&summary);
            if summary.failures.len() >= failures_max {
                next.store(seeds.end, Ordering::Relaxed);
            }
        }
        Ok::<(), String>(())
    })?;
    summary.failures.sort_by_key(|outcome| outcome.options.seed);
    Ok(summary)
}

/// How many threads this machine is good for.
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
