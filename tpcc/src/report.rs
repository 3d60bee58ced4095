//! What a run has measured, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::options::Protocol;
use crate::transaction::TransactionKind;

/// The result of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Warehouses that were used.
    pub warehouses: i32,
    /// Terminals, each on a connection of its own.
    pub terminals: u32,
    /// How statements were sent.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether terminals kept keying and think times.
    pub think: bool,
    /// Seed of all inputs.
    pub seed: u64,
    /// Seconds that were measured, without warm-up.
    pub seconds: f64,
    /// Committed transactions of all kinds per second.
    pub transactions_per_second: f64,
    /// Committed New-Orders per minute.
    pub tpm_c: f64,
    /// One entry for each kind, in the order of the specification.
    pub transactions: Vec<TransactionReport>,
    /// Serialization failures and deadlocks by SQLSTATE (class 40); the transactions were run again.
    pub aborts: BTreeMap<String, u64>,
    /// Unexpected errors by SQLSTATE, also of the warm-up; "connection", "missing row" and
    /// "malformed value" are those without one.
    pub errors: BTreeMap<String, u64>,
    /// The first unexpected errors.
    pub error_samples: Vec<ErrorSample>,
    /// COMMITs whose outcome the terminal did not learn.
    pub unknown_outcomes: u64,
    /// Connections that had to be made again.
    pub reconnects: u64,
    /// Statements that were sent in the measured time, with BEGIN and COMMIT, and those of aborted attempts.
    #[serde(default)]
    pub statements: u64,
    /// Terminals that still waited for the server when the run ended.
    pub stuck_terminals: u64,
    /// Committed transactions in each complete second of the measurement.
    pub committed_each_second: Vec<u64>,
}

/// What was measured of one kind of transaction. Response times include running it again after aborts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransactionReport {
    /// Which kind.
    pub kind: TransactionKind,
    /// Committed, rolled back and failed ones.
    pub count: u64,
    /// Those that were committed.
    pub committed: u64,
    /// New-Orders with an unused item: rolled back, as the specification asks.
    pub rolled_back: u64,
    /// Those that met an unexpected error, or were aborted too often.
    pub failed: u64,
    /// Mean response time in milliseconds.
    pub mean_ms: f64,
    /// Median response time in milliseconds.
    pub p50_ms: f64,
    /// 95th percentile in milliseconds.
    pub p95_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
    /// Longest response time in milliseconds.
    pub max_ms: f64,
}

/// One unexpected error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorSample {
    /// When, in seconds after the measurement began.
    pub second: u64,
    /// In which transaction, unless it was while connecting.
    pub transaction: Option<TransactionKind>,
    /// SQLSTATE, "connection", "missing row" or "malformed value".
    pub code: String,
    /// The whole of what the server said.
    pub message: String,
}

impl Report {
    /// Committed transactions of all kinds.
    pub fn committed(&self) -> u64 {
        self.transactions.iter().map(|line| line.committed).sum()
    }

    /// What was measured of one kind.
    pub fn transaction(&self, kind: TransactionKind) -> Option<&TransactionReport> {
        self.transactions.iter().find(|line| line.kind == kind)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "TPC-C: {} warehouses, {} terminals, {} statements{}, {:.1} s, seed {}",
            self.warehouses,
            self.terminals,
            self.protocol.word(),
            if self.think { " with think times" } else { "" },
            self.seconds,
            self.seed
        )?;
        writeln!(out, "{:.1} tx/s, {:.1} tpmC", self.transactions_per_second, self.tpm_c)?;
        writeln!(
            out,
            "\n{:<13}{:>8}{:>10}{:>12}{:>7}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "", "count", "committed", "rolled back", "failed", "mean ms", "p50 ms", "p95 ms", "p99 ms", "max ms"
        )?;
        for line in &self.transactions {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "\naborts: {}", Counts(&self.aborts))?;
        writeln!(out, "unexpected errors: {}", Counts(&self.errors))?;
        for sample in &self.error_samples {
            let place = sample.transaction.map_or("connecting", TransactionKind::name);
            writeln!(
                out,
                "  second {}, {place}: {} ({})",
                sample.second, sample.message, sample.code
            )?;
        }
        let Self {
            unknown_outcomes,
            reconnects,
            stuck_terminals,
            ..
        } = self;
        if unknown_outcomes + reconnects + stuck_terminals > 0 {
            writeln!(
                out,
                "commits of unknown outcome: {unknown_outcomes}, connections made again: {reconnects}, \
                 terminals still waiting at the end: {stuck_terminals}"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for TransactionReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:<13}{:>8}{:>10}{:>12}{:>7}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}",
            self.kind.name(),
            self.count,
            self.committed,
            self.rolled_back,
            self.failed,
            self.mean_ms,
            self.p50_ms,
            self.p95_ms,
            self.p99_ms,
            self.max_ms
        )
    }
}

/// Counters by SQLSTATE on one line.
struct Counts<'a>(&'a BTreeMap<String, u64>);

impl fmt::Display for Counts<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(out, "none");
        }
        let parts: Vec<String> = self.0.iter().map(|(code, count)| format!("{code} × {count}")).collect();
        write!(out, "{}", parts.join(", "))
    }
}
