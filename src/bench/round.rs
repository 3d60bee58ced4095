//! One round on one system: TPC-C, then single statements.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::latency::{OneShot, closed_loop};
use super::process::{CpuSeconds, PeakKib, SleepCounts, Sleeps, machine_cpu_seconds, own_cpu_seconds};
use super::stages::Histograms;
use super::system::System;
use super::{CompareOptions, Error};

/// After a run, so long do servers finish what they still do for it (slower replicas, ending backends).
const SETTLE_MS: u64 = 1_000;
/// The pause between looks at the memory of processes.
const MEMORY_POLL_MS: u64 = 1_000;

/// The nodes' histogram of writes of their logs.
const LOG_FSYNC: &str = "cloudbft_log_fsync_duration_seconds";

/// What TPC-C gave in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    /// The kit's report.
    pub(crate) tpcc: tpcc::Report,
    /// CPU time of the system over the run and what it did for it afterwards.
    pub(crate) cpu_seconds: CpuSeconds,
    /// How often threads of nodes and proxy went to sleep meanwhile.
    pub(crate) sleeps: Sleeps,
    /// Writes with fdatasync of the nodes' logs meanwhile.
    pub(crate) log_fsyncs: f64,
    /// CPU time of the kit.
    pub(crate) kit_cpu_seconds: f64,
    /// CPU time that the other systems took meanwhile, idle as they are.
    pub(crate) others_cpu_seconds: f64,
    /// CPU time that everything else on the machine took meanwhile: when it is much, so is the noise.
    pub(crate) strangers_cpu_seconds: f64,
}

impl std::fmt::Display for Round {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{:.1} tx/s; CPU seconds: {:.1} servers, {:.1} kit, {:.1} idle systems, {:.1} strangers",
            self.tpcc.transactions_per_second,
            self.cpu_seconds.total(),
            self.kit_cpu_seconds,
            self.others_cpu_seconds,
            self.strangers_cpu_seconds
        )
    }
}

/// What all rounds gave on one system.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) rounds: Vec<Round>,
    pub(crate) updates: Vec<Duration>,
    pub(crate) reads: Vec<Duration>,
    pub(crate) peaks: PeakKib,
    pub(crate) during_tpcc: Histograms,
    pub(crate) during_updates: Histograms,
    pub(crate) during_reads: Histograms,
}

impl Measured {
    /// Runs round number `round` on one of the systems, while the others that run idle.
    ///
    /// # Errors
    /// When the system fails, or the run met errors that an application would have seen.
    pub(crate) async fn run_round(
        &mut self,
        options: &CompareOptions,
        running: &[System],
        system: &System,
        round: u32,
    ) -> Result<(), Error> {
        let kit = kit_options(options, system, round);
        if options.warmup_seconds > 0 {
            let warm_up = tpcc::RunOptions {
                seconds: options.warmup_seconds,
                ..kit.clone()
            };
            check(system, tpcc::run(&warm_up).await?)?;
            settle().await;
        }
        self.run_tpcc(&kit, running, system).await?;
        system.processes()?.raise_peaks(&mut self.peaks);
        if options.latency_seconds > 0 {
            let time = Duration::from_secs(options.latency_seconds);
            let before = system.histograms().await?;
            self.updates
                .extend(closed_loop(&system.dsn, OneShot::Update, time).await?);
            let between = system.histograms().await?;
            self.reads.extend(closed_loop(&system.dsn, OneShot::Read, time).await?);
            self.during_updates.add(&between.since(&before));
            self.during_reads.add(&system.histograms().await?.since(&between));
        }
        Ok(())
    }

    async fn run_tpcc(&mut self, kit: &tpcc::RunOptions, running: &[System], system: &System) -> Result<(), Error> {
        let before = Readings::take(running, system).await?;
        let report = tokio::select! {
            report = tpcc::run(kit) => report?,
            never = watch_memory(system, &mut self.peaks) => match never {},
        };
        let report = check(system, report)?;
        let kit_cpu_seconds = own_cpu_seconds() - before.kit;
        settle().await;
        let after = Readings::take(running, system).await?;
        let histograms = after.histograms.since(&before.histograms);
        self.during_tpcc.add(&histograms);
        let cpu_seconds = after.system.since(before.system);
        let others_cpu_seconds = after.others - before.others;
        let known = cpu_seconds.total() + others_cpu_seconds + after.kit - before.kit;
        let round = Round {
            tpcc: report,
            cpu_seconds,
            sleeps: after.sleeps.since(&before.sleeps),
            log_fsyncs: histograms.count("node", LOG_FSYNC),
            kit_cpu_seconds,
            others_cpu_seconds,
            strangers_cpu_seconds: (after.machine - before.machine - known).max(0.0),
        };
        let seconds = (after.at - before.at).as_secs_f64();
        let (name, protocol) = (system.name.word(), system.protocol.word());
        super::compare::progress(&format!("{name}, {protocol}: {round} within {seconds:.1} s"));
        self.rounds.push(round);
        Ok(())
    }
}

/// What is read before and after a run.
struct Readings {
    at: Instant,
    system: CpuSeconds,
    sleeps: SleepCounts,
    others: f64,
    kit: f64,
    machine: f64,
    histograms: Histograms,
}

impl Readings {
    async fn take(running: &[System], system: &System) -> Result<Self, Error> {
        let mut others = 0.0;
        for other in running.iter().filter(|other| !other.shares_processes(system)) {
            others += other.processes()?.cpu().total();
        }
        let histograms = system.histograms().await?;
        let (kit, machine) = (own_cpu_seconds(), machine_cpu_seconds());
        let processes = system.processes()?;
        Ok(Self {
            at: Instant::now(),
            system: processes.cpu(),
            sleeps: processes.sleeps(),
            others,
            kit,
            machine,
            histograms,
        })
    }
}

fn kit_options(options: &CompareOptions, system: &System, round: u32) -> tpcc::RunOptions {
    tpcc::RunOptions {
        terminals: options.terminals,
        seconds: options.seconds,
        // The same inputs for all systems, and others in every round.
        seed: options.seed + u64::from(round),
        protocol: system.protocol,
        ..tpcc::RunOptions::new(&system.dsn)
    }
}

/// Passes a report on, unless an application would have seen errors.
fn check(system: &System, report: tpcc::Report) -> Result<tpcc::Report, Error> {
    let is_sound = report.errors.is_empty() && report.unknown_outcomes == 0 && report.stuck_terminals == 0;
    if is_sound && report.committed() > 0 {
        return Ok(report);
    }
    Err(Error::Run {
        system: system.name.word(),
        report: Box::new(report),
        logs: system.last_words(),
    })
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(SETTLE_MS)).await;
}

/// Backends end with the run, and their peaks with them.
async fn watch_memory(system: &System, peaks: &mut PeakKib) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(Duration::from_millis(MEMORY_POLL_MS)).await;
        if let Ok(processes) = system.processes() {
            processes.raise_peaks(peaks);
        }
    }
}
