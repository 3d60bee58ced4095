//! One run: a safety phase with all faults, then a healed liveness phase.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::checkers::Liveness;
use crate::cluster::{Cluster, Counts};
use crate::counter::Trust;
use crate::options::Options;
use crate::protocol::Protocol;
use crate::violation::Violation;

/// Requests of each correct client in the liveness phase.
const LIVENESS_REQUESTS: u32 = 3;

/// How often the liveness phase looks whether everything has ended, in microseconds.
const LOOK_US: u64 = 20_000;

/// Receives the lines of an event log.
pub type Trace = Box<dyn FnMut(&str)>;

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was done.
    pub options: Options,
    /// What did not hold.
    pub violation: Option<Violation>,
    /// What was counted.
    pub counts: Counts,
    /// The last order that was decided.
    pub orders: u64,
    /// Whether the run demanded that every request ends.
    pub demands_liveness: bool,
    /// How long that took after healing, in microseconds of virtual time.
    pub healed_us: Option<u64>,
    /// Bytes of the largest log.
    pub log_bytes: usize,
    /// How long the run took.
    pub duration: Duration,
}

/// Runs the options. A panic of a state machine is a violation like any other.
pub fn run<P: Protocol>(options: &Options, trace: Option<Trace>) -> Outcome {
    let begun = Instant::now();
    let mut outcome = Outcome {
        options: options.clone(),
        violation: None,
        counts: Counts::default(),
        orders: 0,
        demands_liveness: false,
        healed_us: None,
        log_bytes: 0,
        duration: Duration::ZERO,
    };
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut cluster = Cluster::<P>::new(options.clone(), trace);
        phases(&mut cluster, &mut outcome);
    }));
    if let Err(panic) = result {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        let description = message.unwrap_or("a panic without a message").to_owned();
        outcome.violation = Some(Violation::safety("no panic", description));
    }
    outcome.duration = begun.elapsed();
    outcome
}

fn phases<P: Protocol>(cluster: &mut Cluster<P>, outcome: &mut Outcome) {
    cluster.run_until(cluster.options.safety_ms * 1000);
    if cluster.violation.is_none() {
        heal(cluster);
        outcome.demands_liveness = demands_liveness(cluster);
        let healed_us = cluster.now_us;
        cluster.submit_more(LIVENESS_REQUESTS);
        let ended_us = wait(cluster, outcome.demands_liveness);
        outcome.healed_us = ended_us.map(|ended_us| ended_us - healed_us);
    }
    outcome.violation = cluster.violation.clone();
    outcome.counts = cluster.counts.clone();
    outcome.orders = cluster.last_decided().0;
    outcome.log_bytes = cluster.log_bytes_max();
}

fn heal<P: Protocol>(cluster: &mut Cluster<P>) {
    cluster.heal();
    let options = &cluster.options;
    let has_crashed = options.crashes > 0 || options.power_cuts > 0;
    if !P::REJOINS && has_crashed && options.adversaries.is_empty() {
        cluster.power_cycle();
    }
}

/// Whether every request of a correct client must end now.
fn demands_liveness<P: Protocol>(cluster: &Cluster<P>) -> bool {
    let options = &cluster.options;
    if options.adversaries.len() > usize::from(options.faults) || options.counters == Trust::Broken {
        return false;
    }
    let is_attacked = !options.adversaries.is_empty();
    !is_attacked || (P::REPLACES_PRIMARY && P::REJOINS && !(P::STARTS_WITH_ALL && cluster.is_cold))
}

/// Lets time pass until everything has ended; tells when. A violation when that takes too long.
fn wait<P: Protocol>(cluster: &mut Cluster<P>, is_demanded: bool) -> Option<u64> {
    let liveness = Liveness {
        healed_us: cluster.now_us,
        // Where nothing is demanded, a second shows whether the healed cluster does something wrong.
        patience_us: if is_demanded {
            cluster.options.patience_ms * 1000
        } else {
            1_000_000
        },
    };
    loop {
        cluster.run_until(cluster.now_us + LOOK_US);
        if cluster.violation.is_some() {
            return None;
        }
        if cluster.is_done() {
            cluster.end();
            return Some(cluster.now_us);
        }
        if liveness.is_over(cluster.now_us) {
            if is_demanded {
                let violation = liveness.violation(&cluster.unended(), &cluster.describe());
                cluster.violation = Some(violation);
            }
            return None;
        }
    }
}
