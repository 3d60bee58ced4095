//! `cloudbft scrub`: compares all contents of all databases while applications write, and takes one that differs out of service
//! (`docs/decisions/0052-contents-are-compared-all-the-time.md`).
//!
//! Ranges of rows are compared in snapshots of one state, which are held for a second at most, so that whoever changes the definition of
//! a table does not wait for long. What a machine's database holds otherwise than f+1 others is noted in it; its voter notices, and
//! `up` repairs it. Where no f+1 hold the same, nothing is done but saying so.

mod indexes;
mod pass;
mod report;
mod schema;
mod sequences;
mod tables;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use cluster::file::{ClusterFile, machine_name};
use nix::fcntl::{Flock, FlockArg};

use crate::verify::{INCOMPLETE, serves};
use crate::{Failure, status};
pub(crate) use indexes::check as check_indexes;
use pass::Pass;
pub(crate) use report::Report;
pub(crate) use schema::{defined, is_at};

/// `cloudbft scrub`.
#[derive(Debug, clap::Args)]
pub(crate) struct ScrubOptions {
    /// The directory of a running cluster
    #[arg(long, default_value = "cloudbft-data")]
    dir: PathBuf,
    /// Work for a quarter of the time only, so that applications notice little (`up` does this)
    #[arg(long)]
    gentle: bool,
}

/// The exit code is 0 when all databases hold the same, 1 when one differs, and 2 when not all was compared.
pub(crate) async fn run(options: &ScrubOptions) -> Result<ExitCode, Failure> {
    let directory = options
        .dir
        .canonicalize()
        .map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let file = ClusterFile::read(&directory.join("cluster.toml"))?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(file.layout().scrub_lock())?;
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        return Err(
            "another `cloudbft scrub` runs: `up` runs it by itself, see scrub.log in the cluster's directory".into(),
        );
    };
    let mut report = Report::begin();
    let (mut serving, mut missing) = (Vec::new(), 0);
    for (machine, node) in file.machines.iter().zip(status::ask_all(&file).await) {
        if machine.database.is_none() {
            continue;
        }
        if node.as_ref().and_then(serves).is_some() {
            serving.push(machine.id);
        } else {
            missing += 1;
            report.not_compared(format!("{}: not serving", machine_name(machine.id)));
        }
    }
    let needed = file.tunables.faults + 1;
    if serving.len() < needed {
        println!("fewer than f+1 = {needed} databases serve: there is nothing to compare");
        return Ok(ExitCode::from(INCOMPLETE));
    }
    let mut pass = Pass::begin(&file, &serving, missing, report, options.gentle).await?;
    let outcome = pass.run().await;
    pass.end(outcome).await
}
