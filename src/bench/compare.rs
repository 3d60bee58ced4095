//! The comparison: starts the systems, loads them, runs rounds in turns, and sums up.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use indicatif::ProgressBar;

use super::machine::Machine;
use super::report::{Comparison, SystemReport};
use super::round::Measured;
use super::share::{Limited, Share};
use super::system::System;
use super::{CompareOptions, Error, system_error};

/// Shows what is done, on standard error.
pub(crate) fn progress(what: &str) {
    eprintln!("bench: {what}");
}

/// Measures all systems that `options` ask for; ends early when `stop` is ready. Whatever was started is stopped, and
/// all data is removed unless something failed.
///
/// # Errors
/// When a system cannot be run, or a run on it met errors.
pub(crate) async fn compare(options: &CompareOptions, stop: impl Future<Output = ()>) -> Result<Comparison, Error> {
    let directory = make_directory(options)?;
    let machine = Machine::of(directory.path()).map_err(system_error("fdatasync"))?;
    progress(&machine.to_string());
    let outcome = measure(options, directory.path(), machine, stop).await;
    if outcome
        .as_ref()
        .is_err_and(|error| !matches!(error, Error::Interrupted))
    {
        progress(&format!("data and logs are kept in {}", directory.keep().display()));
    }
    outcome
}

/// A directory that the user who runs the servers may pass through.
fn make_directory(options: &CompareOptions) -> Result<tempfile::TempDir, Error> {
    use std::os::unix::fs::PermissionsExt;
    let above = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let above = above
        .canonicalize()
        .map_err(system_error(above.display().to_string()))?;
    let mut builder = tempfile::Builder::new();
    builder
        .prefix("cloudbft-bench.")
        .permissions(std::fs::Permissions::from_mode(0o711));
    builder
        .tempdir_in(&above)
        .map_err(system_error(format!("no directory in {}", above.display())))
}

async fn measure(
    options: &CompareOptions,
    directory: &Path,
    machine: Machine,
    stop: impl Future<Output = ()>,
) -> Result<Comparison, Error> {
    // Dropped after the systems: a control group is busy as long as they run.
    let mut limits = Vec::new();
    let mut systems = Vec::new();
    let names = options.systems();
    for name in names.iter().filter(|name| !name.is_cluster()) {
        // Not to be interrupted halfway: a server is ours to stop only once it runs.
        systems.push(System::start(directory, *name, options).await?);
    }
    let reports = tokio::select! {
        reports = run_rounds(options, directory, &mut systems, &mut limits) => reports?,
        () = stop => {
            progress("stopping");
            return Err(Error::Interrupted);
        }
    };
    progress("stopping");
    Ok(Comparison::new(options, machine, reports))
}

async fn run_rounds(
    options: &CompareOptions,
    directory: &Path,
    running: &mut Vec<System>,
    limits: &mut Vec<Limited>,
) -> Result<Vec<SystemReport>, Error> {
    let systems = &start_all(options, directory, running).await?;
    let mut load_seconds: Vec<f64> = Vec::new();
    for (index, system) in systems.iter().enumerate() {
        let mut earlier = systems.iter().zip(&load_seconds).take(index);
        let loaded = earlier.find(|(earlier, _)| earlier.shares_processes(system));
        let seconds = match loaded {
            Some((_, seconds)) => *seconds,
            None => load(options, system).await?,
        };
        load_seconds.push(seconds);
    }
    if let Some(share) = options.share {
        hold_machines(running, share, limits)?;
    }
    let mut measured: Vec<_> = systems.iter().map(|_| Measured::default()).collect();
    for round in 0..options.rounds {
        progress(&format!("round {} of {}", round + 1, options.rounds));
        let mut turns: Vec<_> = systems.iter().zip(&mut measured).collect();
        // Whoever is first in one round is last in the next: a machine that drifts favours nobody.
        if round % 2 == 1 {
            turns.reverse();
        }
        for (system, measured) in turns {
            measured.run_round(options, running, system, round).await?;
        }
    }
    let mut reports = Vec::new();
    for ((system, measured), load_seconds) in systems.iter().zip(measured).zip(load_seconds) {
        let settings: BTreeMap<_, _> = system.settings().await?;
        reports.push(SystemReport::new(system, settings, load_seconds, measured));
    }
    Ok(reports)
}

/// Starts in `running` what does not run yet; gives the systems of all columns.
async fn start_all(
    options: &CompareOptions,
    directory: &Path,
    running: &mut Vec<System>,
) -> Result<Vec<System>, Error> {
    let mut columns = Vec::new();
    for protocol in options.protocols() {
        for name in options.systems() {
            let find = |running: &[System]| running.iter().find_map(|system| system.also_as(name, *protocol));
            if find(running).is_none() {
                progress(&format!("starting a cluster ({})", name.word()));
                running.push(System::start(directory, name, options).await?);
            }
            columns.extend(find(running));
        }
    }
    Ok(columns)
}

/// Holds every machine of every system to a share of the CPU.
fn hold_machines(running: &[System], share: Share, limits: &mut Vec<Limited>) -> Result<(), Error> {
    for system in running {
        for machine in system.machines()? {
            limits.push(Limited::hold(&machine.pids(), share)?);
        }
    }
    Ok(())
}

async fn load(options: &CompareOptions, system: &System) -> Result<f64, Error> {
    let begun = Instant::now();
    let load = tpcc::LoadOptions {
        warehouses: options.warehouses,
        seed: options.seed,
        small: options.small,
        method: system.name.load_method(),
        ..tpcc::LoadOptions::new(&system.dsn)
    };
    let loaded = tpcc::load(&load, ProgressBar::hidden()).await;
    loaded.inspect_err(|_| eprintln!("{}", system.last_words()))?;
    let seconds = begun.elapsed().as_secs_f64();
    progress(&format!(
        "{}: loaded {} warehouses in {seconds:.1} s",
        system.name.word(),
        options.warehouses
    ));
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::BenchCommand;
    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(subcommand)]
        command: BenchCommand,
    }

    fn options(words: &str) -> CompareOptions {
        let words = ["bench", "compare"].into_iter().chain(words.split_whitespace());
        let BenchCommand::Compare(options) = Arguments::parse_from(words).command;
        options
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_plain_server_is_measured_and_removed() {
        let above = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(above.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let mut options = options(
            "--direct-only --small --warehouses 1 --seconds 2 --warmup-seconds 1 --latency-seconds 1 --rounds 2",
        );
        options.dir = Some(above.path().to_owned());
        let comparison = compare(&options, std::future::pending()).await.unwrap();
        let json = serde_json::to_value(&comparison).unwrap();
        assert_eq!(
            json["throughput_ratio"],
            serde_json::Value::Null,
            "nothing to compare with"
        );
        let plain = &json["systems"][0];
        assert_eq!(plain["name"], "plain");
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            assert_eq!(plain["settings"][setting], "on");
        }
        assert_eq!(plain["settings"]["shared_buffers"], "128MB");
        let positive = [
            &plain["transactions_per_second"]["min"],
            &plain["cpu_ms_per_transaction"]["min"],
            &plain["kit_cpu_ms_per_transaction"]["min"],
            &plain["statements_per_transaction"],
            &plain["cpu_us_per_statement"]["postgres"],
            &plain["peak_kib"]["postgres server"],
            &plain["peak_kib"]["postgres backend"],
            &plain["update"]["p50_ms"],
            &plain["read"]["p99_ms"],
        ];
        for value in positive {
            assert!(value.as_f64().unwrap() > 0.0, "{json:#}");
        }
        assert_eq!(plain["rounds"].as_array().unwrap().len(), 2);
        assert!(comparison.to_string().contains("plain"), "{comparison}");
        assert_eq!(
            std::fs::read_dir(above.path()).unwrap().count(),
            0,
            "all data is removed"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_interruption_stops_what_was_started() {
        let above = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(above.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let mut options = options("--direct-only --small --warehouses 1 --seconds 600");
        options.dir = Some(above.path().to_owned());
        let soon = tokio::time::sleep(std::time::Duration::from_secs(2));
        assert!(matches!(compare(&options, soon).await, Err(Error::Interrupted)));
        assert_eq!(
            std::fs::read_dir(above.path()).unwrap().count(),
            0,
            "all data is removed"
        );
    }

    #[test]
    fn both_settings_of_answers_and_the_plain_server_are_the_default() {
        use super::super::system::SystemName::{AtCommit, Global, Pgpool, Plain, Voted};
        assert_eq!(options("").systems(), [Plain, Voted, AtCommit]);
        assert_eq!(options("--direct-only").systems(), [Plain]);
        assert_eq!(options("--cluster-only --multi-partition global").systems(), [Global]);
        assert_eq!(
            options("--multi-partition both").systems(),
            [Plain, Voted, AtCommit, Global]
        );
        assert_eq!(options("--pgpool").systems(), [Plain, Pgpool, Voted, AtCommit]);
        assert_eq!(options("--answers voted").systems(), [Plain, Voted]);
        assert_eq!(options("--answers at-commit --cluster-only").systems(), [AtCommit]);
    }
}
