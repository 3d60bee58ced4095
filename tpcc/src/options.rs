//! What can be chosen, as values and as command-line arguments at once.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::scale::Scale;

/// How rows get into the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LoadMethod {
    /// COPY, or INSERT where the server refuses COPY with SQLSTATE 0A000 or BF004.
    #[default]
    Auto,
    /// COPY FROM STDIN.
    Copy,
    /// INSERT statements of several hundred rows, each on one warehouse, in autocommit.
    Insert,
}

/// The isolation level asked for in BEGIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Isolation {
    /// A plain BEGIN: what the server is set to.
    #[default]
    Default,
    /// READ COMMITTED.
    ReadCommitted,
    /// REPEATABLE READ.
    RepeatableRead,
    /// SERIALIZABLE.
    Serializable,
}

impl Isolation {
    /// The statement that begins a transaction.
    pub(crate) fn begin_statement(self) -> &'static str {
        match self {
            Self::Default => "BEGIN",
            Self::ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
            Self::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Self::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        }
    }
}

/// How the transactions' statements are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Prepared once on each connection, with binary parameters and results.
    #[default]
    Prepared,
    /// Texts with literals, by the simple query protocol.
    Simple,
}

impl Protocol {
    /// As on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Simple => "simple",
        }
    }
}

/// Options of [`load`](crate::load).
#[derive(Debug, Clone, Args)]
pub struct LoadOptions {
    /// Connection string, as URL or as key=value pairs
    #[arg(long)]
    pub dsn: String,
    /// Warehouses to make
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub warehouses: i32,
    /// How rows are sent
    #[arg(long, value_enum, default_value_t = LoadMethod::Auto)]
    pub method: LoadMethod,
    /// Connections that load warehouses side by side
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub connections: u32,
    /// Drop tables of an earlier load first
    #[arg(long)]
    pub drop: bool,
    /// Declare the foreign keys of clause 1.4
    #[arg(long)]
    pub foreign_keys: bool,
    /// Seed of all random values
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Far fewer customers and items than the specification asks, for tests
    #[arg(long, hide = true)]
    pub small: bool,
}

impl LoadOptions {
    /// The defaults of the command line, for this server.
    pub fn new(dsn: impl Into<String>) -> Self {
        Self {
            dsn: dsn.into(),
            warehouses: 1,
            method: LoadMethod::Auto,
            connections: 4,
            drop: false,
            foreign_keys: false,
            seed: 1,
            small: false,
        }
    }

    /// The cardinalities to load.
    pub fn scale(&self) -> Scale {
        if self.small {
            Scale::small(self.warehouses)
        } else {
            Scale::standard(self.warehouses)
        }
    }
}

/// Options of [`run`](crate::run).
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// Connection string, as URL or as key=value pairs
    #[arg(long)]
    pub dsn: String,
    /// Use only the first so many warehouses [default: all]
    #[arg(long)]
    pub warehouses: Option<i32>,
    /// Terminals, each with a connection of its own
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub terminals: u32,
    /// Seconds to measure
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
    /// Seconds to run before measuring
    #[arg(long, default_value_t = 0)]
    pub warmup_seconds: u64,
    /// Keying and think times of clause 5.2.5 (otherwise each terminal works without pause)
    #[arg(long)]
    pub think: bool,
    /// Seed of all inputs
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How often a transaction is run again after a serialization failure or deadlock
    #[arg(long, default_value_t = 10)]
    pub retries: u32,
    /// Isolation level asked for in BEGIN
    #[arg(long, value_enum, default_value_t = Isolation::Default)]
    pub isolation: Isolation,
    /// How statements are sent
    #[arg(long, value_enum, default_value_t = Protocol::Prepared)]
    pub protocol: Protocol,
    /// Append every acknowledged New-Order and Payment to this file, for `check --ledger`
    #[arg(long)]
    pub ledger: Option<PathBuf>,
    /// Also write the report as JSON ("-": to standard output instead of text)
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Show progress on standard error
    #[arg(skip)]
    pub progress: bool,
}

impl RunOptions {
    /// The defaults of the command line, for this server.
    pub fn new(dsn: impl Into<String>) -> Self {
        Self {
            dsn: dsn.into(),
            warehouses: None,
            terminals: 8,
            seconds: 30,
            warmup_seconds: 0,
            think: false,
            seed: 1,
            retries: 10,
            isolation: Isolation::Default,
            protocol: Protocol::Prepared,
            ledger: None,
            json: None,
            progress: false,
        }
    }
}

/// Options of [`check`](crate::check).
#[derive(Debug, Clone, Args)]
pub struct CheckOptions {
    /// Connection string, as URL or as key=value pairs
    #[arg(long)]
    pub dsn: String,
    /// Also look for every transaction in this file, which `run --ledger` wrote
    #[arg(long)]
    pub ledger: Option<PathBuf>,
    /// Also write the report as JSON ("-": to standard output instead of text)
    #[arg(long)]
    pub json: Option<PathBuf>,
}

impl CheckOptions {
    /// The defaults of the command line, for this server.
    pub fn new(dsn: impl Into<String>) -> Self {
        Self {
            dsn: dsn.into(),
            ledger: None,
            json: None,
        }
    }
}
