//! `cloudbft bench`: what replication costs, measured against a plain PostgreSQL on the same machine.

mod compare;
mod latency;
mod machine;
mod pgpool;
mod process;
mod report;
mod round;
mod share;
mod stages;
mod statistics;
mod system;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use compare::compare;
use share::Share;
use system::SystemName;
use tpcc::Protocol;

/// What can be measured.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Run TPC-C and single statements against a plain PostgreSQL and against a cluster, in turns
    Compare(CompareOptions),
}

/// `cloudbft bench compare`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompareOptions {
    /// TPC-C warehouses
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(i32).range(1..=1_000))]
    pub(crate) warehouses: i32,
    /// TPC-C terminals, without think times
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=90))]
    pub(crate) terminals: u32,
    /// Seconds of TPC-C in each round
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
    /// Seconds of TPC-C before each round that are not measured
    #[arg(long, default_value_t = 3)]
    pub(crate) warmup_seconds: u64,
    /// Seconds of each single-statement loop in each round; 0 leaves them out
    #[arg(long, default_value_t = 4)]
    pub(crate) latency_seconds: u64,
    /// Rounds; each runs every system once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Also write everything as JSON
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Only the plain PostgreSQL
    #[arg(long, conflicts_with = "cluster_only")]
    pub(crate) direct_only: bool,
    /// Only the cluster
    #[arg(long)]
    pub(crate) cluster_only: bool,
    /// What the cluster locks for operations on several partitions
    #[arg(long, value_enum, default_value_t = Locking::Footprint)]
    pub(crate) multi_partition: Locking,
    /// When an answer inside a transaction is certified, with footprints
    #[arg(long, value_enum, default_value_t = Answers::Both)]
    pub(crate) answers: Answers,
    /// Also Pgpool-II in native replication mode over three servers (Debian's package pgpool2)
    #[arg(long)]
    pub(crate) pgpool: bool,
    /// How the kit sends statements
    #[arg(long, value_enum, default_value_t = Protocols::Prepared)]
    pub(crate) protocol: Protocols,
    /// Hold each machine (a server, and the node beside it) to so much of one processor, by control groups
    #[arg(long)]
    pub(crate) share: Option<Share>,
    /// Groups of the cluster [default: that of `up`]
    #[arg(long)]
    pub(crate) groups: Option<u16>,
    /// Trusted counter of the cluster [default: that of `up`]
    #[arg(long)]
    pub(crate) counter: Option<String>,
    /// Far fewer customers and items than the specification asks, for tests
    #[arg(long)]
    pub(crate) small: bool,
    /// Seed of the load and of the first round
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Where a directory for all data is made [default: that for temporary files]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// The program that is run as `PROGRAM up` [default: this one]
    #[arg(long, hide = true)]
    pub(crate) program: Option<PathBuf>,
}

/// Settings of `multi_partition` to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Locking {
    /// A cluster of each.
    Both,
    /// Only what is touched.
    Footprint,
    /// Everything.
    Global,
}

/// Settings of `cloudbft.answers` to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Answers {
    /// Each, on the same cluster.
    Both,
    /// Before the application sees it.
    Voted,
    /// At COMMIT.
    AtCommit,
}

/// Protocols to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocols {
    /// Each, on the same systems.
    Both,
    /// Statements that are prepared once.
    Prepared,
    /// Texts with literals.
    Simple,
}

impl CompareOptions {
    /// The protocols that are asked for.
    fn protocols(&self) -> &'static [Protocol] {
        match self.protocol {
            Protocols::Both => &[Protocol::Prepared, Protocol::Simple],
            Protocols::Prepared => &[Protocol::Prepared],
            Protocols::Simple => &[Protocol::Simple],
        }
    }

    /// The systems that are asked for.
    fn systems(&self) -> Vec<SystemName> {
        let mut systems = Vec::new();
        if !self.cluster_only {
            systems.push(SystemName::Plain);
        }
        if self.pgpool {
            systems.push(SystemName::Pgpool);
        }
        let with_footprints = !self.direct_only && self.multi_partition != Locking::Global;
        if with_footprints && self.answers != Answers::AtCommit {
            systems.push(SystemName::Voted);
        }
        if with_footprints && self.answers != Answers::Voted {
            systems.push(SystemName::AtCommit);
        }
        if !self.direct_only && self.multi_partition != Locking::Footprint {
            systems.push(SystemName::Global);
        }
        systems
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kit failed.
    #[error(transparent)]
    Kit(#[from] tpcc::Error),
    /// A plain PostgreSQL cannot be managed.
    #[error(transparent)]
    Server(#[from] cluster::postgres::PostgresError),
    /// A statement failed.
    #[error("{}", described(.0))]
    Statement(#[from] tokio_postgres::Error),
    /// A file, process or network operation failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A system did something else than it should.
    #[error("{0}")]
    Answer(String),
    /// A run met errors that the application would have seen.
    #[error("the run on `{system}` met errors; its figures mean nothing\n{report}\n{logs}")]
    Run {
        /// Where.
        system: &'static str,
        /// The kit's report, with samples.
        report: Box<tpcc::Report>,
        /// The end of the logs.
        logs: String,
    },
    /// The report cannot be written.
    #[error("report as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Somebody has asked us to end.
    #[error("interrupted; everything that was started is stopped")]
    Interrupted,
}

fn system_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::System { what, source }
}

/// What the server said, with its SQLSTATE.
fn described(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(refusal) => format!("{}: {}", refusal.code().code(), refusal.message()),
        None => error.to_string(),
    }
}

/// Does what the command line asks for.
///
/// # Errors
/// When a system cannot be run, or a run on it met errors.
pub(crate) async fn execute(command: BenchCommand) -> Result<ExitCode, Error> {
    let BenchCommand::Compare(options) = command;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system_error("signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system_error("signals"))?;
    let interrupted = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let comparison = compare(&options, interrupted).await?;
    println!("{comparison}");
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&comparison)? + "\n";
        std::fs::write(path, text).map_err(system_error(path.display().to_string()))?;
    }
    Ok(ExitCode::SUCCESS)
}
