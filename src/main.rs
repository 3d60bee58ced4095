//! The `cloudbft` command: runs, watches and checks a cluster (see `cloudbft --help`).

mod bench;
mod children;
mod databases;
mod down;
mod explain;
mod logging;
mod process;
mod repair;
mod scale;
mod scrub;
mod state;
mod status;
mod up;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Many small, short-lived buffers per statement: glibc's allocator takes twice as long for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A Byzantine-fault-tolerant Postgres for unmodified applications.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster on this machine: databases, nodes and a proxy
    Up(up::UpOptions),
    /// Stop the cluster of a directory
    Down(DirectoryOptions),
    /// Show the machines of a cluster, and how far each is
    Status(status::StatusOptions),
    /// Compare the contents of all database nodes; exits with 1 when they differ, with 2 when not all could be compared
    Verify(verify::VerifyOptions),
    /// Make the database of one machine anew from another, while the cluster goes on
    Repair(repair::RepairOptions),
    /// Compare all contents of all databases while applications write, and take one that differs out of service, so that it is repaired;
    /// exits with 1 when one differs, with 2 when not all could be compared
    Scrub(scrub::ScrubOptions),
    /// Change how many groups share the ordering work, while applications run
    Scale(scale::ScaleOptions),
    /// Show what a statement locks, and why
    Explain(explain::ExplainOptions),
    /// Run the node of one machine (`up` does this)
    Node(process::NodeOptions),
    /// Run the proxy (`up` does this)
    Proxy(process::ProxyOptions),
    /// Run the trusted counter of one machine as a process of its own (`up` does this)
    #[command(hide = true)]
    Counter(process::CounterOptions),
    /// Load, run and check TPC-C against anything that speaks the Postgres protocol
    Tpcc {
        #[command(subcommand)]
        command: tpcc::command::TpccCommand,
    },
    /// Measure what replication costs
    Bench {
        #[command(subcommand)]
        command: bench::BenchCommand,
    },
}

#[derive(Debug, clap::Args)]
struct DirectoryOptions {
    /// The directory of the cluster
    #[arg(long, default_value = "cloudbft-data")]
    dir: PathBuf,
}

/// What a command fails with; printed with its causes.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let outcome = match command {
        Command::Node(options) => process::node(&options),
        Command::Proxy(options) => process::proxy(&options),
        Command::Counter(options) => process::counter(&options),
        Command::Up(options) => up::run(options),
        other => run(other),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("cloudbft: {}", with_causes(&*error));
        ExitCode::FAILURE
    })
}

/// An error with its causes, as far as it does not tell them itself: some libraries say only "db error".
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// What a program ends with whose reader has gone, as a shell says it (128 and SIGPIPE).
const READER_GONE: i32 = 141;

/// Has a command end silently when nobody reads its output any more (`cloudbft status | head -1`): `println!` would panic.
fn end_with_the_reader() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            std::process::exit(READER_GONE);
        }
        report(panic);
    }));
}

/// The commands that do something once, and end.
fn run(command: Command) -> Result<ExitCode, Failure> {
    end_with_the_reader();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Down(options) => down::run(&options.dir).await,
            Command::Status(options) => status::run(&options).await,
            Command::Verify(options) => verify::run(&options).await,
            Command::Repair(options) => repair::run(&options).await,
            Command::Scrub(options) => scrub::run(&options).await,
            Command::Scale(options) => scale::run(&options).await,
            Command::Explain(options) => explain::run(&options).await,
            Command::Bench { command } => Ok(bench::execute(command).await?),
            Command::Tpcc { command } => Ok(tpcc::command::execute(command).await?),
            Command::Up(_) | Command::Node(_) | Command::Proxy(_) | Command::Counter(_) => Ok(ExitCode::FAILURE),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Caused(&'static str, #[source] std::io::Error);

    #[test]
    fn each_cause_is_told_once() {
        let cause = || std::io::Error::other("out of shared memory");
        assert_eq!(
            with_causes(&Caused("db error", cause())),
            "db error: out of shared memory"
        );
        let told = Caused("m1: out of shared memory", cause());
        assert_eq!(with_causes(&told), "m1: out of shared memory");
    }
}
