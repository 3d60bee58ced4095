//! A comparison as text.

use std::fmt;

use tpcc::Protocol;

use super::report::{Added, Comparison, Ratios, SystemReport};
use super::stages::Stage;
use super::statistics::{Percentiles, Spread};
use super::system::SystemName;

/// The widths of the first column and the others.
const LABEL: usize = 34;
const COLUMN: usize = 23;

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = &self.run;
        writeln!(out, "cloudbft {} on {}", self.version, self.machine)?;
        let first_protocol = self.systems.first().map(|system| system.protocol);
        let each_once = self.systems.iter();
        for system in each_once.filter(|system| Some(system.protocol) == first_protocol) {
            let settings: Vec<_> = system
                .settings
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            writeln!(out, "{} database: {}", system.name.word(), settings.join(" "))?;
        }
        writeln!(
            out,
            "TPC-C: {} warehouses{}, {} terminals, {} rounds of {} s after {} s of warm-up{}; median (min .. max)\n",
            run.warehouses,
            if run.small { " (small)" } else { "" },
            run.terminals,
            run.rounds,
            run.seconds,
            run.warmup_seconds,
            run.share.map_or_else(String::new, |share| format!(
                ", {share} of a processor for each machine"
            ))
        )?;
        for protocol in [Protocol::Prepared, Protocol::Simple] {
            let of_protocol = |system: &&SystemReport| system.protocol == protocol;
            let table = Table {
                protocol,
                systems: self.systems.iter().filter(of_protocol).collect(),
                ratios: &self.ratios,
            };
            table.write(out)?;
        }
        self.systems.iter().try_for_each(|system| stage_rows(out, system))
    }
}

/// The systems under one protocol, side by side.
struct Table<'a> {
    protocol: Protocol,
    systems: Vec<&'a SystemReport>,
    ratios: &'a [Ratios],
}

impl Table<'_> {
    fn write(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.systems.is_empty() {
            return Ok(());
        }
        self.throughput_rows(out)?;
        self.cpu_rows(out)?;
        self.statement_rows(out)?;
        self.memory_rows(out)?;
        self.ratio_rows(out)
    }

    fn ratios(&self) -> impl Iterator<Item = &Ratios> {
        self.ratios.iter().filter(|ratios| ratios.protocol == self.protocol)
    }

    fn row(&self, out: &mut fmt::Formatter<'_>, label: &str, value: impl Fn(&SystemReport) -> String) -> fmt::Result {
        write!(out, "{label:<LABEL$}")?;
        self.systems
            .iter()
            .try_for_each(|system| write!(out, "{:>COLUMN$}", value(system)))?;
        writeln!(out)
    }

    fn throughput_rows(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = format!("statements: {}", self.protocol.word());
        self.row(out, &heading, |system| system.name.title().to_owned())?;
        self.row(out, "transactions/s", |system| {
            spread(system.transactions_per_second, 1)
        })?;
        self.row(out, "New-Orders/min (tpmC)", |system| spread(system.tpm_c, 0))?;
        let kinds = self
            .systems
            .first()
            .map(|system| system.transactions.as_slice())
            .unwrap_or_default();
        for (index, line) in kinds.iter().enumerate() {
            self.row(out, &format!("{} p50 / p95 / p99 ms", line.kind.name()), |system| {
                let line = system.transactions.get(index);
                line.map_or_else(String::new, |line| three(line.p50_ms, line.p95_ms, line.p99_ms))
            })?;
        }
        self.row(out, "one UPDATE p50 / p95 / p99 ms", |system| {
            percentiles(&system.update)
        })?;
        self.row(out, "one read by key, likewise", |system| percentiles(&system.read))?;
        self.row(out, "aborts that were run again", |system| {
            let aborts: u64 = system.rounds.iter().flat_map(|round| round.tpcc.aborts.values()).sum();
            aborts.to_string()
        })
    }

    fn cpu_rows(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.row(out, "CPU ms per transaction", |system| {
            spread(system.cpu_ms_per_transaction, 2)
        })?;
        self.row(out, "  times plain PostgreSQL", |system| {
            let mut ratios = self.ratios();
            let ratios = ratios.find(|ratios| ratios.name == system.name);
            spread(ratios.and_then(|ratios| ratios.cpu), 2)
        })?;
        self.row(out, "  of PostgreSQL", |system| {
            format!("{:.2}", system.cpu_ms_split.postgres)
        })?;
        self.row(out, "  of nodes", |system| {
            of_nodes(system, system.cpu_ms_split.nodes, 2)
        })?;
        self.row(out, "  of the proxy, or Pgpool-II", |system| {
            of_proxy(system, system.cpu_ms_split.proxy, 2)
        })?;
        self.row(out, "  of the supervisor", |system| {
            of_nodes(system, system.cpu_ms_split.supervisor, 2)
        })?;
        self.row(out, "CPU ms of the kit (not included)", |system| {
            spread(system.kit_cpu_ms_per_transaction, 2)
        })?;
        self.row(out, "CPU s of strangers in a round", |system| {
            let strangers = system.rounds.iter().map(|round| round.strangers_cpu_seconds);
            spread(Spread::of(strangers), 1)
        })
    }

    /// Statements are those that the kit sent; the times are those of all processes of a kind together.
    fn statement_rows(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.row(out, "statements per transaction (1)", |system| {
            format!("{:.1}", system.statements_per_transaction)
        })?;
        self.row(out, "CPU µs per statement, PostgreSQL", |system| {
            format!("{:.0}", system.cpu_us_per_statement.postgres)
        })?;
        self.row(out, "  all nodes", |system| {
            of_nodes(system, system.cpu_us_per_statement.nodes, 0)
        })?;
        self.row(out, "  the proxy, or Pgpool-II", |system| {
            of_proxy(system, system.cpu_us_per_statement.proxy, 0)
        })?;
        self.row(out, "sleeps per transaction, nodes (2)", |system| {
            of_nodes(system, system.sleeps_per_transaction.nodes, 1)
        })?;
        self.row(out, "  the proxy, or Pgpool-II", |system| {
            of_proxy(system, system.sleeps_per_transaction.proxy, 1)
        })?;
        self.row(out, "log fsyncs per transaction, nodes", |system| {
            of_nodes(system, system.log_fsyncs_per_transaction, 2)
        })
    }

    fn memory_rows(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.systems.iter().flat_map(|system| system.peak_kib.keys());
        let names: std::collections::BTreeSet<_> = names.collect();
        for name in names {
            self.row(out, &format!("peak MiB, {name}"), |system| {
                match system.peak_kib.get(name) {
                    Some(kib) => (kib >> 10).to_string(),
                    None => String::from("-"),
                }
            })?;
        }
        writeln!(
            out,
            "(1) sent by the kit, with BEGIN, COMMIT and those of aborted attempts, per committed transaction; CPU µs per\n\
             statement is the time of all processes of a kind over them\n\
             (2) voluntary context switches of all threads, per committed transaction\n"
        )
    }

    fn ratio_rows(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ratios in self.ratios() {
            let Ratios {
                name,
                protocol: _,
                throughput,
                cpu,
                p95,
                update_added,
                read_added,
            } = ratios;
            writeln!(out, "{} / plain PostgreSQL, round by round:", name.title())?;
            writeln!(out, "  throughput              {}", spread(*throughput, 3))?;
            writeln!(out, "  CPU per transaction     {}", spread(*cpu, 2))?;
            for (kind, ratio) in p95 {
                writeln!(out, "  p95 of {:<16} {}", kind.name(), spread(*ratio, 2))?;
            }
            writeln!(out, "  added to one UPDATE     {}", added(*update_added))?;
            writeln!(out, "  added to a read by key  {}\n", added(*read_added))?;
        }
        Ok(())
    }
}

fn stage_rows(out: &mut fmt::Formatter<'_>, system: &SystemReport) -> fmt::Result {
    let name = format!("{}, {} statements", system.name.title(), system.protocol.word());
    section(out, &format!("{name}, during TPC-C"), &system.stages.tpcc)?;
    section(out, &format!("{name}, during single UPDATEs"), &system.stages.update)?;
    section(out, &format!("{name}, during single reads"), &system.stages.read)
}

fn section(out: &mut fmt::Formatter<'_>, title: &str, stages: &[Stage]) -> fmt::Result {
    if stages.is_empty() {
        return Ok(());
    }
    writeln!(out, "{title}: histogram, count, mean")?;
    stages.iter().try_for_each(|stage| writeln!(out, "  {stage}"))?;
    writeln!(out)
}

fn spread(spread: Option<Spread>, decimals: usize) -> String {
    match spread {
        Some(Spread { min, median, max }) => format!("{median:.decimals$} ({min:.decimals$} .. {max:.decimals$})"),
        None => String::from("-"),
    }
}

/// A figure of nodes: the other systems have none.
fn of_nodes(system: &SystemReport, value: f64, decimals: usize) -> String {
    if system.name.is_cluster() {
        format!("{value:.decimals$}")
    } else {
        String::from("-")
    }
}

/// A figure of the proxy or Pgpool-II.
fn of_proxy(system: &SystemReport, value: f64, decimals: usize) -> String {
    match system.name {
        SystemName::Plain => String::from("-"),
        _ => format!("{value:.decimals$}"),
    }
}

fn three(p50: f64, p95: f64, p99: f64) -> String {
    format!("{} / {} / {}", brief(p50), brief(p95), brief(p99))
}

/// Three digits are enough.
fn brief(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn percentiles(all: &Percentiles) -> String {
    if all.count == 0 {
        String::from("-")
    } else {
        three(all.p50_ms, all.p95_ms, all.p99_ms)
    }
}

fn added(added: Added) -> String {
    format!(
        "p50 {:+.2} ms, p95 {:+.2} ms, p99 {:+.2} ms",
        added.p50_ms, added.p95_ms, added.p99_ms
    )
}
