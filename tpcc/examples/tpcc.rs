//! The kit without CloudBFT: `cargo run --release -p tpcc --example tpcc -- load --dsn ...`

use std::process::ExitCode;

use clap::Parser;
use tpcc::command::{TpccCommand, execute};

#[derive(Parser)]
#[command(about = "TPC-C against anything that speaks Postgres wire")]
struct CommandLine {
    #[command(subcommand)]
    command: TpccCommand,
}

#[tokio::main]
async fn main() -> ExitCode {
    match execute(CommandLine::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
