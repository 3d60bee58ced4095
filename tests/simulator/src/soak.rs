//! A long run: logs are cut, machines come and go, one is away for longer than the others' logs go back; and neither
//! logs nor memory grow.

use std::time::{Duration, Instant};

use ordering::identifiers::MachineId;

use crate::campaign;
use crate::cluster::Cluster;
use crate::options::Overrides;
use crate::protocol::Protocol;
use crate::violation::Violation;

/// What happens in a long run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Orders altogether.
    pub orders: u64,
    /// Orders in a second of virtual time.
    pub orders_per_second: u64,
    /// A machine is away for so many of them.
    pub absence: u64,
    /// Every so many orders the next machine is restarted.
    pub restart_every: u64,
    /// What a log may weigh before a machine that is away holds it back no longer, in bytes. On disk it may be twice
    /// that: the weight is estimated, and logs are cut in steps.
    pub log_bytes_max: u64,
}

/// How it stands.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Orders that are decided.
    pub orders: u64,
    /// The largest log, in bytes.
    pub log_bytes: usize,
    /// Memory of the whole process, in bytes: all machines, voters, clients and checkers.
    pub memory_bytes: u64,
    /// How long it took so far.
    pub duration: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Soaked {
    /// One for each tenth.
    pub samples: Vec<Sample>,
    /// Times that logs were cut.
    pub cuts: u64,
    /// Databases that were left behind by the logs, and repaired.
    pub repairs: u64,
    /// How long the machine that was away needed until it had everything, in microseconds of virtual time.
    pub returned_us: u64,
}

/// A long run under way.
struct Soak<P: Protocol> {
    cluster: Cluster<P>,
    plan: Plan,
    begun: Instant,
    samples: Vec<Sample>,
    returned_us: u64,
}

/// Lets a cluster run for so many orders. `report` sees each sample.
///
/// # Errors
/// The property that did not hold.
pub fn soak<P: Protocol>(plan: Plan, report: impl FnMut(&Sample)) -> Result<Soaked, Violation> {
    let clients = 4;
    let mut overrides = Overrides::default();
    for (name, value) in [
        ("faults", 1),
        ("groups", 2),
        ("clients", clients),
        ("byzantine_clients", 0),
        ("requests", plan.orders / clients),
        ("operation_bytes_max", 64),
        ("batch_entries_max", 256),
        ("safety_ms", plan.orders * 1000 / plan.orders_per_second),
        ("loss_percent", 0),
        ("duplication_percent", 0),
        ("delay_max_us", 300),
        ("sync_max_us", 300),
        ("crashes", 0),
        ("power_cuts", 0),
        ("partitions", 0),
        ("slow_disks", 0),
        ("clock_offset_max_ms", 0),
        ("log_bytes_max", plan.log_bytes_max),
        ("cut_bytes", plan.log_bytes_max / 8),
    ] {
        overrides.0.push((name.to_owned(), value.to_string()));
    }
    overrides.0.push(("adversaries".to_owned(), String::new()));
    let options = campaign::options::<P>(1, &overrides).map_err(|error| Violation::safety("options", error))?;
    let mut soak = Soak {
        cluster: Cluster::<P>::new(options, None),
        plan,
        begun: Instant::now(),
        samples: Vec::new(),
        returned_us: 0,
    };
    soak.run(report)?;
    let counts = &soak.cluster.counts;
    Ok(Soaked {
        cuts: counts.cuts,
        repairs: counts.repairs,
        returned_us: soak.returned_us,
        samples: soak.samples,
    })
}

impl<P: Protocol> Soak<P> {
    fn run(&mut self, mut report: impl FnMut(&Sample)) -> Result<(), Violation> {
        let (orders, absence) = (self.plan.orders, self.plan.absence);
        let (absent, other) = (MachineId(2), MachineId(3));
        self.until(orders / 10, &mut report)?;
        self.cluster.stop(absent);
        self.until(orders / 10 + absence, &mut report)?;
        self.cluster.restart(absent);
        let returned_us = self.cluster.now_us;
        self.wait(|cluster| cluster.has_reached(absent, cluster.last_decided()))?;
        self.returned_us = self.cluster.now_us - returned_us;
        // It takes part: without it there is no quorum now.
        self.cluster.stop(other);
        let reached = self.cluster.last_decided().0;
        self.until(reached + 100, &mut report)?;
        self.cluster.restart(other);
        let mut turn = 0;
        while self.cluster.last_decided().0 < orders {
            let next = (self.cluster.last_decided().0 + self.plan.restart_every).min(orders);
            self.until(next, &mut report)?;
            let machines = self.cluster.machines().count() as u64;
            let machine = MachineId(u8::try_from(turn % machines).unwrap_or(0));
            turn += 1;
            self.cluster.stop(machine);
            self.until((self.cluster.last_decided().0 + 50).min(orders), &mut report)?;
            self.cluster.restart(machine);
            self.wait(Cluster::is_live)?;
        }
        self.wait(Cluster::is_done)?;
        self.cluster.end();
        self.cluster.violation.clone().map_or(Ok(()), Err)
    }

    /// Goes on until so many orders are decided.
    fn until(&mut self, orders: u64, report: &mut impl FnMut(&Sample)) -> Result<(), Violation> {
        let mut moved_us = self.cluster.now_us;
        while self.cluster.last_decided().0 < orders {
            let before = self.cluster.last_decided();
            self.pass()?;
            if self.cluster.last_decided() > before {
                moved_us = self.cluster.now_us;
            } else if self.cluster.now_us > moved_us + self.cluster.options.patience_ms * 1000 {
                let description = format!("order {orders} is not reached:\n{}", self.cluster.describe());
                return Err(Violation::liveness("liveness", description));
            }
            let tenth = (self.plan.orders / 10).max(1);
            if before.0 / tenth != self.cluster.last_decided().0 / tenth {
                let sample = self.sample();
                report(&sample);
                self.samples.push(sample);
            }
        }
        Ok(())
    }

    fn wait(&mut self, is_over: impl Fn(&Cluster<P>) -> bool) -> Result<(), Violation> {
        let until_us = self.cluster.now_us + self.cluster.options.patience_ms * 1000;
        while !is_over(&self.cluster) {
            if self.cluster.now_us > until_us {
                return Err(Violation::liveness("liveness", self.cluster.describe()));
            }
            self.pass()?;
        }
        Ok(())
    }

    /// A moment of virtual time.
    fn pass(&mut self) -> Result<(), Violation> {
        self.cluster.run_until(self.cluster.now_us + 20_000);
        self.cluster.forget_what_all_have();
        let log_bytes = self.cluster.log_bytes_max();
        if log_bytes as u64 > 2 * self.plan.log_bytes_max {
            let description = format!("a log has {log_bytes} bytes:\n{}", self.cluster.describe());
            return Err(Violation::safety("bounded log", description));
        }
        self.cluster.violation.clone().map_or(Ok(()), Err)
    }

    fn sample(&self) -> Sample {
        Sample {
            orders: self.cluster.last_decided().0,
            log_bytes: self.cluster.log_bytes_max(),
            memory_bytes: memory_bytes(),
            duration: self.begun.elapsed(),
        }
    }
}

/// What the process holds in memory.
fn memory_bytes() -> u64 {
    const PAGE_BYTES: u64 = 4096;
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident = pages
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    resident.unwrap_or(0) * PAGE_BYTES
}
