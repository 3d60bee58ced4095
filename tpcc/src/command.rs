//! The subcommands of `cloudbft tpcc`.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{CheckOptions, Error, LoadOptions, RunOptions, check, load, run_until};

/// The name of a file that stands for standard output.
const STANDARD_OUTPUT: &str = "-";
const BAR: &str = "{msg:14} {bar:40} {percent:>3} % {pos}/{len} rows {per_sec}, {eta} left";

/// What the kit can do.
#[derive(Debug, Clone, Subcommand)]
pub enum TpccCommand {
    /// Create the tables and fill them
    Load(LoadOptions),
    /// Run the transaction mix and report what it achieved
    Run(RunOptions),
    /// Check the twelve consistency conditions of clause 3.3.2
    Check(CheckOptions),
}

/// Does what the command line asks for. The exit code is a failure if a check found a violation, or if a run
/// committed nothing.
///
/// # Errors
/// As [`load`], [`crate::run`] and [`check`]; also if the JSON file cannot be written.
pub async fn execute(command: TpccCommand) -> Result<ExitCode, Error> {
    match command {
        TpccCommand::Load(options) => execute_load(&options).await,
        TpccCommand::Run(options) => execute_run(options).await,
        TpccCommand::Check(options) => execute_check(&options).await,
    }
}

async fn execute_load(options: &LoadOptions) -> Result<ExitCode, Error> {
    let begun = Instant::now();
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    load(options, bar).await?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("loaded {} warehouses in {seconds:.1} s", options.warehouses);
    Ok(ExitCode::SUCCESS)
}

async fn execute_run(options: RunOptions) -> Result<ExitCode, Error> {
    let options = RunOptions {
        progress: true,
        ..options
    };
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without the signal the run ends by its time.
            std::future::pending::<()>().await;
        }
    };
    let report = run_until(&options, interrupted).await?;
    output(&report, options.json.as_deref())?;
    Ok(exit_code(report.committed() > 0))
}

async fn execute_check(options: &CheckOptions) -> Result<ExitCode, Error> {
    let report = check(options).await?;
    output(&report, options.json.as_deref())?;
    Ok(exit_code(report.passed()))
}

fn exit_code(is_success: bool) -> ExitCode {
    if is_success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Text to standard output and JSON to the file, or only JSON to standard output.
fn output<R: Serialize + std::fmt::Display>(report: &R, json: Option<&Path>) -> Result<(), Error> {
    let Some(path) = json else {
        println!("{report}");
        return Ok(());
    };
    let text = serde_json::to_string_pretty(report)?;
    if path == Path::new(STANDARD_OUTPUT) {
        println!("{text}");
        return Ok(());
    }
    println!("{report}");
    std::fs::write(path, text + "\n").map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}
