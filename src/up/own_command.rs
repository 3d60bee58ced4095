//! Commands of this program that `up` runs by itself.

use std::fs::File;
use std::process::{ExitStatus, Stdio};

use cluster::file::ClusterFile;
use tokio::process::Command;

use crate::Failure;

/// Runs a command on the cluster's directory to its end, or to that of `up`. What it says goes to the log.
pub(super) async fn run(file: &ClusterFile, arguments: &[&str], log: File) -> Result<ExitStatus, Failure> {
    let status = Command::new(std::env::current_exe()?)
        .args(arguments)
        .arg("--dir")
        .arg(file.layout().directory())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .process_group(0)
        .status()
        .await?;
    Ok(status)
}
