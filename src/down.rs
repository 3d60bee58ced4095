//! `cloudbft down`: stops the cluster of a directory, also what a killed `up` has left.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cluster::file::ClusterFile;

use crate::state::{self, UpState};
use crate::{Failure, up};

/// How long a cluster may take to stop.
const STOP_MS_MAX: u64 = 120_000;

/// Stops what runs.
pub(crate) async fn run(directory: &Path) -> Result<ExitCode, Failure> {
    let directory = directory
        .canonicalize()
        .map_err(|error| format!("{}: {error}", directory.display()))?;
    let file = ClusterFile::read(&directory.join("cluster.toml"))?;
    let layout = file.layout();
    let deadline = Instant::now() + Duration::from_millis(STOP_MS_MAX);
    let mut asked = false;
    let _lock = loop {
        if let Some(lock) = state::lock(&layout)? {
            break lock;
        }
        let pid = UpState::read(&layout).up_pid;
        if !asked && pid > 0 {
            state::terminate(pid);
            asked = true;
        }
        if Instant::now() > deadline {
            return Err(format!("`cloudbft up` (process {pid}) does not end").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let leftovers: Vec<_> = UpState::read(&layout)
        .children()
        .filter(|pid| state::is_ours(*pid, layout.directory()))
        .collect();
    leftovers.into_iter().for_each(state::terminate);
    state::clear_leftovers(&layout, Duration::from_secs(10)).await;
    for server in up::databases(&file)? {
        server.stop().await?;
    }
    Ok(ExitCode::SUCCESS)
}
