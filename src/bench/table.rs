//! A comparison as text.

use std::fmt;

use super::report::{Added, Comparison, Ratios, SystemReport};
use super::stages::Stage;
use super::statistics::{Percentiles, Spread};
use super::system::SystemName;

/// The widths of the first column and the others.
const LABEL: usize = 34;
const COLUMN: usize = 32;

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = &self.run;
        writeln!(out, "cloudbft {} on {}", self.version, self.machine)?;
        for system in &self.systems {
            let settings: Vec<_> = system
                .settings
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            writeln!(out, "{} database: {}", system.name.word(), settings.join(" "))?;
        }
        writeln!(
            out,
            "TPC-C: {} warehouses{}, {} terminals, {} rounds of {} s after {} s of warm-up; median (min .. max)\n",
            run.warehouses,
            if run.small { " (small)" } else { "" },
            run.terminals,
            run.rounds,
            run.seconds,
            run.warmup_seconds
        )?;
        self.throughput_rows(out)?;
        self.memory_rows(out)?;
        self.ratio_rows(out)?;
        self.systems.iter().try_for_each(|system| stage_rows(out, system))
    }
}

impl Comparison {
    fn row(&self, out: &mut fmt::Formatter<'_>, label: &str, value: impl Fn(&SystemReport) -> String) -> fmt::Result {
        write!(out, "{label:<LABEL$}")?;
        self.systems
            .iter()
            .try_for_each(|system| write!(out, "{:>COLUMN$}", value(system)))?;
        writeln!(out)
    }

    fn throughput_rows(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.row(out, "", |system| match system.name {
            SystemName::Plain => String::from("plain PostgreSQL"),
            name => format!("cluster ({})", name.word()),
        })?;
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
        self.row(out, "CPU ms per transaction", |system| {
            spread(system.cpu_ms_per_transaction, 2)
        })?;
        self.row(out, "  of PostgreSQL", |system| {
            format!("{:.2}", system.cpu_ms_split.postgres)
        })?;
        self.row(out, "  of nodes", |system| format!("{:.2}", system.cpu_ms_split.nodes))?;
        self.row(out, "  of the proxy", |system| {
            format!("{:.2}", system.cpu_ms_split.proxy)
        })?;
        self.row(out, "  of the supervisor", |system| {
            format!("{:.2}", system.cpu_ms_split.supervisor)
        })?;
        self.row(out, "CPU ms of the kit (not included)", |system| {
            spread(system.kit_cpu_ms_per_transaction, 2)
        })?;
        self.row(out, "CPU s of strangers in a round", |system| {
            let strangers = system.rounds.iter().map(|round| round.strangers_cpu_seconds);
            spread(Spread::of(strangers), 1)
        })?;
        self.row(out, "aborts that were run again", |system| {
            let aborts: u64 = system.rounds.iter().flat_map(|round| round.tpcc.aborts.values()).sum();
            aborts.to_string()
        })?;
        self.row(out, "one UPDATE p50 / p95 / p99 ms", |system| {
            percentiles(&system.update)
        })?;
        self.row(out, "one read by key, likewise", |system| percentiles(&system.read))
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
        writeln!(out)
    }

    fn ratio_rows(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ratios in &self.ratios {
            let Ratios {
                name,
                throughput,
                cpu,
                p95,
                update_added,
                read_added,
            } = ratios;
            writeln!(out, "cluster ({}) / plain PostgreSQL, round by round:", name.word())?;
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
    let name = system.name.word();
    section(out, &format!("cluster ({name}) during TPC-C"), &system.stages.tpcc)?;
    section(
        out,
        &format!("cluster ({name}) during single UPDATEs"),
        &system.stages.update,
    )?;
    section(
        out,
        &format!("cluster ({name}) during single reads"),
        &system.stages.read,
    )
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

fn three(p50: f64, p95: f64, p99: f64) -> String {
    format!("{p50:.2} / {p95:.2} / {p99:.2}")
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
