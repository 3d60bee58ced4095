//! All contents are compared now and then without being asked: `up` runs `cloudbft scrub` (`scrub_interval_seconds` in the cluster file).

use std::fs::File;
use std::time::Duration;

use cluster::file::ClusterFile;

use super::own_command;
use crate::Failure;

/// After a pass that found something, or could not compare everything, the next one comes so soon.
const SOON: Duration = Duration::from_secs(300);

/// Compares for ever. The pause is between the end of a pass and the next one.
pub(super) async fn scrub_unasked(file: ClusterFile, interval: Duration) {
    let mut pause = interval;
    loop {
        tokio::time::sleep(pause).await;
        let log = file.layout().scrub_log();
        let log = log.display();
        let code = scrub(&file).await;
        match &code {
            Ok(Some(0)) => {}
            Ok(Some(1)) => eprintln!("cloudbft: DATABASES DIFFER: {log}"),
            Ok(Some(2)) => eprintln!("cloudbft: not all of the databases could be compared: {log}"),
            Ok(_) => eprintln!("cloudbft: the comparison of the databases ended early: {log}"),
            Err(error) => eprintln!("cloudbft: the databases cannot be compared: {error}"),
        }
        pause = match code {
            Ok(Some(0)) => interval,
            _ => interval.min(SOON),
        };
    }
}

/// Runs `cloudbft scrub`. The log holds the last pass.
async fn scrub(file: &ClusterFile) -> Result<Option<i32>, Failure> {
    let log = File::create(file.layout().scrub_log())?;
    let status = own_command::run(file, &["scrub", "--gentle"], log).await?;
    Ok(status.code())
}
