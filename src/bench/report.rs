//! What a comparison has found.

use std::collections::BTreeMap;

use serde::Serialize;
use tpcc::report::TransactionReport;
use tpcc::{Protocol, TransactionKind};

use super::CompareOptions;
use super::machine::Machine;
use super::process::{CpuSeconds, PeakKib, Sleeps};
use super::round::{Measured, Round};
use super::share::Share;
use super::stages::Stage;
use super::statistics::{Percentiles, Spread, per, ratio};
use super::system::{System, SystemName};

const MILLIS_PER_SECOND: f64 = 1_000.0;
const MICROS_PER_SECOND: f64 = 1_000_000.0;

/// Everything, as JSON and (by `Display`) as a table.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// Throughput of the cluster as it is by default over that of the plain PostgreSQL: the median of
    /// the rounds' ratios. The higher the better.
    pub(crate) throughput_ratio: Option<f64>,
    /// CPU time per committed transaction, likewise. The lower the better.
    pub(crate) cpu_ratio: Option<f64>,
    pub(crate) machine: Machine,
    pub(crate) version: &'static str,
    pub(crate) run: RunDescription,
    pub(crate) systems: Vec<SystemReport>,
    /// Each other system against the plain PostgreSQL, under the same protocol.
    pub(crate) ratios: Vec<Ratios>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RunDescription {
    pub(crate) warehouses: i32,
    pub(crate) terminals: u32,
    pub(crate) seconds: u64,
    pub(crate) warmup_seconds: u64,
    pub(crate) latency_seconds: u64,
    pub(crate) rounds: u32,
    pub(crate) small: bool,
    pub(crate) seed: u64,
    pub(crate) groups: Option<u16>,
    pub(crate) counter: Option<String>,
    /// The part of one processor that each machine was held to.
    pub(crate) share: Option<f64>,
}

/// One system over all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct SystemReport {
    pub(crate) name: SystemName,
    pub(crate) protocol: Protocol,
    /// Settings of its (first) database server.
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) load_seconds: f64,
    pub(crate) transactions_per_second: Option<Spread>,
    pub(crate) tpm_c: Option<Spread>,
    /// Medians over the rounds of the kit's percentiles.
    pub(crate) transactions: Vec<TransactionLatency>,
    /// CPU milliseconds of all server processes per committed transaction.
    pub(crate) cpu_ms_per_transaction: Option<Spread>,
    /// The same by processes, as means over all rounds.
    pub(crate) cpu_ms_split: CpuSplit,
    /// Statements that the kit sent per committed transaction, with BEGIN, COMMIT and those of aborted attempts.
    pub(crate) statements_per_transaction: f64,
    /// CPU microseconds per statement that the kit sent, as means over all rounds; of all processes of a kind.
    pub(crate) cpu_us_per_statement: CpuSplit,
    /// How often threads of nodes and of the proxy went to sleep (voluntary context switches) per committed transaction.
    pub(crate) sleeps_per_transaction: SleepSplit,
    /// Writes with fdatasync of all nodes' logs per committed transaction.
    pub(crate) log_fsyncs_per_transaction: f64,
    /// CPU milliseconds of the kit per committed transaction.
    pub(crate) kit_cpu_ms_per_transaction: Option<Spread>,
    /// Peak resident memory by process, in KiB; that of PostgreSQL includes the shared buffers it touched.
    pub(crate) peak_kib: PeakKib,
    /// Autocommit UPDATE of one row, at one client.
    pub(crate) update: Percentiles,
    /// Autocommit SELECT by primary key, at one client.
    pub(crate) read: Percentiles,
    /// Histograms of the cluster's processes.
    pub(crate) stages: StagesReport,
    pub(crate) rounds: Vec<Round>,
}

/// Response times of one kind of transaction.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TransactionLatency {
    pub(crate) kind: TransactionKind,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
}

/// How often threads went to sleep per committed transaction.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct SleepSplit {
    pub(crate) nodes: f64,
    pub(crate) proxy: f64,
}

/// CPU time per something, by processes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CpuSplit {
    pub(crate) postgres: f64,
    pub(crate) nodes: f64,
    pub(crate) proxy: f64,
    pub(crate) supervisor: f64,
}

/// Means of the stages, by what was running.
#[derive(Debug, Serialize)]
pub(crate) struct StagesReport {
    pub(crate) tpcc: Vec<Stage>,
    pub(crate) update: Vec<Stage>,
    pub(crate) read: Vec<Stage>,
}

/// A cluster, or Pgpool-II, against the plain PostgreSQL.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratios {
    pub(crate) name: SystemName,
    pub(crate) protocol: Protocol,
    /// Throughput, cluster / plain, round by round.
    pub(crate) throughput: Option<Spread>,
    /// CPU time per committed transaction, cluster / plain, round by round.
    pub(crate) cpu: Option<Spread>,
    /// 95th percentile by kind of transaction, cluster / plain, round by round.
    pub(crate) p95: BTreeMap<TransactionKind, Option<Spread>>,
    /// What the cluster adds to an UPDATE of one row.
    pub(crate) update_added: Added,
    /// What the cluster adds to a read by key.
    pub(crate) read_added: Added,
}

/// Differences of percentiles.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Added {
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Comparison {
    /// Sums up.
    pub(crate) fn new(options: &CompareOptions, machine: Machine, systems: Vec<SystemReport>) -> Self {
        let plain = |protocol| {
            let of_protocol = |system: &&SystemReport| system.name == SystemName::Plain && system.protocol == protocol;
            systems.iter().find(of_protocol)
        };
        let others = systems.iter().filter(|system| system.name != SystemName::Plain);
        let ratios: Vec<_> = others
            .filter_map(|other| Some(Ratios::of(other, plain(other.protocol)?)))
            .collect();
        let default = ratios.iter().find(|ratios| ratios.name == SystemName::Voted);
        let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
        Self {
            throughput_ratio: default.and_then(|ratios| median(ratios.throughput)),
            cpu_ratio: default.and_then(|ratios| median(ratios.cpu)),
            machine,
            version: env!("CARGO_PKG_VERSION"),
            run: RunDescription {
                warehouses: options.warehouses,
                terminals: options.terminals,
                seconds: options.seconds,
                warmup_seconds: options.warmup_seconds,
                latency_seconds: options.latency_seconds,
                rounds: options.rounds,
                small: options.small,
                seed: options.seed,
                groups: options.groups,
                counter: options.counter.clone(),
                share: options.share.map(Share::processors),
            },
            systems,
            ratios,
        }
    }
}

impl SystemReport {
    /// Sums one system up.
    pub(crate) fn new(
        system: &System,
        settings: BTreeMap<String, String>,
        load_seconds: f64,
        measured: Measured,
    ) -> Self {
        Self::of(system.name, system.protocol, settings, load_seconds, measured)
    }

    fn of(
        name: SystemName,
        protocol: Protocol,
        settings: BTreeMap<String, String>,
        load_seconds: f64,
        measured: Measured,
    ) -> Self {
        let Measured {
            rounds,
            updates,
            reads,
            peaks,
            during_tpcc,
            during_updates,
            during_reads,
        } = measured;
        let each = |value: fn(&Round) -> f64| Spread::of(rounds.iter().map(value));
        let committed = sum(&rounds, |round| round.tpcc.committed());
        let statements = sum(&rounds, |round| round.tpcc.statements);
        let sleeps = |part: fn(&Sleeps) -> u64| ratio(sum(&rounds, |round| part(&round.sleeps)), committed);
        Self {
            name,
            protocol,
            settings,
            load_seconds,
            transactions_per_second: each(|round| round.tpcc.transactions_per_second),
            tpm_c: each(|round| round.tpcc.tpm_c),
            transactions: TransactionKind::ALL
                .into_iter()
                .map(|kind| TransactionLatency::of(kind, &rounds))
                .collect(),
            cpu_ms_per_transaction: each(Round::cpu_ms_per_transaction),
            cpu_ms_split: CpuSplit::of(&rounds, MILLIS_PER_SECOND, committed),
            statements_per_transaction: ratio(statements, committed),
            cpu_us_per_statement: CpuSplit::of(&rounds, MICROS_PER_SECOND, statements),
            sleeps_per_transaction: SleepSplit {
                nodes: sleeps(|sleeps| sleeps.nodes),
                proxy: sleeps(|sleeps| sleeps.proxy),
            },
            log_fsyncs_per_transaction: per(rounds.iter().map(|round| round.log_fsyncs).sum(), committed),
            kit_cpu_ms_per_transaction: each(|round| per(round.kit_cpu_seconds * 1_000.0, round.tpcc.committed())),
            peak_kib: peaks,
            update: Percentiles::of(updates),
            read: Percentiles::of(reads),
            stages: StagesReport {
                tpcc: during_tpcc.stages(),
                update: during_updates.stages(),
                read: during_reads.stages(),
            },
            rounds,
        }
    }

    fn of_rounds(&self, value: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(value).collect()
    }
}

fn sum(rounds: &[Round], value: impl Fn(&Round) -> u64) -> u64 {
    rounds.iter().map(value).sum()
}

impl Round {
    fn cpu_ms_per_transaction(&self) -> f64 {
        per(self.cpu_seconds.total() * 1_000.0, self.tpcc.committed())
    }

    fn percentile(&self, kind: TransactionKind, percentile: fn(&TransactionReport) -> f64) -> f64 {
        self.tpcc.transaction(kind).map_or(0.0, percentile)
    }
}

impl TransactionLatency {
    fn of(kind: TransactionKind, rounds: &[Round]) -> Self {
        let median = |percentile: fn(&TransactionReport) -> f64| {
            let spread = Spread::of(rounds.iter().map(|round| round.percentile(kind, percentile)));
            spread.map_or(0.0, |spread| spread.median)
        };
        Self {
            kind,
            p50_ms: median(|line| line.p50_ms),
            p95_ms: median(|line| line.p95_ms),
            p99_ms: median(|line| line.p99_ms),
        }
    }
}

impl CpuSplit {
    /// The time of all rounds, in units of which a second has so many, for each of `count`.
    fn of(rounds: &[Round], units_per_second: f64, count: u64) -> Self {
        let mean = |part: fn(&CpuSeconds) -> f64| {
            let seconds: f64 = rounds.iter().map(|round| part(&round.cpu_seconds)).sum();
            per(seconds * units_per_second, count)
        };
        Self {
            postgres: mean(|cpu| cpu.postgres),
            nodes: mean(|cpu| cpu.nodes),
            proxy: mean(|cpu| cpu.proxy),
            supervisor: mean(|cpu| cpu.supervisor),
        }
    }
}

impl Ratios {
    fn of(cluster: &SystemReport, plain: &SystemReport) -> Self {
        let ratio =
            |value: &dyn Fn(&Round) -> f64| Spread::of_ratios(&cluster.of_rounds(value), &plain.of_rounds(value));
        let p95 = |kind| ratio(&|round: &Round| round.percentile(kind, |line| line.p95_ms));
        Self {
            name: cluster.name,
            protocol: cluster.protocol,
            throughput: ratio(&|round| round.tpcc.transactions_per_second),
            cpu: ratio(&Round::cpu_ms_per_transaction),
            p95: TransactionKind::ALL.into_iter().map(|kind| (kind, p95(kind))).collect(),
            update_added: Added::of(&cluster.update, &plain.update),
            read_added: Added::of(&cluster.read, &plain.read),
        }
    }
}

impl Added {
    fn of(cluster: &Percentiles, plain: &Percentiles) -> Self {
        Self {
            p50_ms: cluster.p50_ms - plain.p50_ms,
            p95_ms: cluster.p95_ms - plain.p95_ms,
            p99_ms: cluster.p99_ms - plain.p99_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(throughput: f64, committed: u64, cpu: f64) -> Round {
        let line = TransactionReport {
            kind: TransactionKind::NewOrder,
            count: committed,
            committed,
            rolled_back: 0,
            failed: 0,
            mean_ms: 1.0,
            p50_ms: 1.0,
            p95_ms: 1_000.0 / throughput,
            p99_ms: 3.0,
            max_ms: 4.0,
        };
        let tpcc = tpcc::Report {
            transactions_per_second: throughput,
            transactions: vec![line],
            statements: committed * 20,
            ..tpcc::Report::default()
        };
        let cpu_seconds = CpuSeconds {
            postgres: cpu,
            ..CpuSeconds::default()
        };
        Round {
            tpcc,
            cpu_seconds,
            sleeps: Sleeps {
                nodes: 3 * committed,
                proxy: committed,
            },
            log_fsyncs: 500.0,
            kit_cpu_seconds: 1.0,
            others_cpu_seconds: 0.0,
            strangers_cpu_seconds: 0.0,
        }
    }

    fn system(name: SystemName, rounds: Vec<Round>) -> SystemReport {
        SystemReport::of(
            name,
            Protocol::Prepared,
            BTreeMap::new(),
            1.0,
            Measured {
                rounds,
                ..Measured::default()
            },
        )
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let plain = vec![
            round(100.0, 1_000, 2.0),
            round(200.0, 2_000, 2.0),
            round(100.0, 1_000, 4.0),
        ];
        let cluster = vec![round(50.0, 500, 3.0), round(50.0, 500, 3.0), round(80.0, 800, 3.2)];
        let ratios = Ratios::of(&system(SystemName::Voted, cluster), &system(SystemName::Plain, plain));
        let throughput = ratios.throughput.unwrap();
        assert_eq!((throughput.min, throughput.median, throughput.max), (0.25, 0.5, 0.8));
        let cpu = ratios.cpu.unwrap();
        // 6 ms over 2, 6 over 1, 4 over 4.
        assert_eq!((cpu.min, cpu.median, cpu.max), (1.0, 3.0, 6.0));
        assert_eq!(ratios.p95[&TransactionKind::NewOrder].unwrap().median, 2.0);
        assert_eq!(ratios.p95[&TransactionKind::Payment], None, "none was measured");
    }

    #[test]
    fn statements_and_sleeps_are_divided_over_all_rounds() {
        let both = system(SystemName::Voted, vec![round(100.0, 1_000, 2.0), round(50.0, 500, 4.0)]);
        assert_eq!(both.statements_per_transaction, 20.0);
        // 6 s over 30,000 statements.
        assert_eq!(both.cpu_us_per_statement.postgres, 200.0);
        assert_eq!(
            (both.sleeps_per_transaction.nodes, both.sleeps_per_transaction.proxy),
            (3.0, 1.0)
        );
        assert!((both.log_fsyncs_per_transaction - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_cluster_alone_has_no_ratio() {
        use clap::Parser;
        #[derive(Parser)]
        struct Arguments {
            #[command(flatten)]
            options: CompareOptions,
        }
        let options = Arguments::parse_from(["compare"]).options;
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::of(directory.path()).unwrap();
        let cluster = system(SystemName::Voted, vec![round(50.0, 500, 3.0)]);
        let comparison = Comparison::new(&options, machine.clone(), vec![cluster]);
        assert_eq!(comparison.throughput_ratio, None);

        let systems = [SystemName::Plain, SystemName::Global, SystemName::Voted].map(|name| {
            let throughput = if name == SystemName::Voted { 50.0 } else { 100.0 };
            system(name, vec![round(throughput, 1_000, 1.0)])
        });
        let comparison = Comparison::new(&options, machine, systems.into());
        assert_eq!(comparison.throughput_ratio, Some(0.5), "that of the default settings");
        assert_eq!(serde_json::to_value(&comparison).unwrap()["throughput_ratio"], 0.5);
        assert!(comparison.to_string().contains("0.50"), "{comparison}");
    }
}
