//! The processes that `up` starts: `cloudbft node` and `cloudbft proxy`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::file::ClusterFile;
use ordering::identifiers::MachineId;
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;

/// `cloudbft node`.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeOptions {
    /// The cluster file
    #[arg(long)]
    config: PathBuf,
    /// The machine: m0, m1, ...
    #[arg(long)]
    machine: String,
    /// End when standard input ends: it is held open by `up`
    #[arg(long)]
    lifeline: bool,
}

/// `cloudbft proxy`.
#[derive(Debug, clap::Args)]
pub(crate) struct ProxyOptions {
    /// The cluster file
    #[arg(long)]
    config: PathBuf,
    /// End when standard input ends: it is held open by `up`
    #[arg(long)]
    lifeline: bool,
}

/// `cloudbft counter`.
#[derive(Debug, clap::Args)]
pub(crate) struct CounterOptions {
    /// The cluster file
    #[arg(long)]
    config: PathBuf,
    /// The machine: m0, m1, ...
    #[arg(long)]
    machine: String,
    /// End when standard input ends: it is held open by `up`
    #[arg(long)]
    lifeline: bool,
}

/// Runs the trusted counter of a machine to its end.
pub(crate) fn counter(options: &CounterOptions) -> Result<ExitCode, Failure> {
    crate::logging::start();
    let file = ClusterFile::read(&options.config)?;
    let machine = machine(&file, &options.machine)?;
    let ended = AtomicBool::new(false);
    let runtime = runtime(1)?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| cluster::counter::serve(&file, machine, &ended));
        let failed = async {
            while !serving.is_finished() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                () = shutdown(options.lifeline) => {}
                () = failed => {}
            }
        });
        ended.store(true, Ordering::Relaxed);
        serving
            .join()
            .map_err(|_| "the counter panicked")?
            .map_err(Failure::from)
    })?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

fn machine(file: &ClusterFile, name: &str) -> Result<MachineId, Failure> {
    let known = file
        .machines
        .iter()
        .find(|machine| cluster::file::machine_name(machine.id) == name);
    Ok(known
        .ok_or_else(|| format!("there is no machine {name} in the cluster file"))?
        .id)
}

/// Runs a node to its end.
pub(crate) fn node(options: &NodeOptions) -> Result<ExitCode, Failure> {
    crate::logging::start();
    let file = ClusterFile::read(&options.config)?;
    let machine = machine(&file, &options.machine)?;
    let runtime = runtime(file.tunables.limits.node_threads)?;
    let outcome = runtime.block_on(cluster::node::run(&file, machine, shutdown(options.lifeline)));
    if let Err(error) = &outcome {
        tracing::error!(%error, "the node ends");
    }
    runtime.shutdown_background();
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the proxy to its end.
pub(crate) fn proxy(options: &ProxyOptions) -> Result<ExitCode, Failure> {
    crate::logging::start();
    let file = ClusterFile::read(&options.config)?;
    let runtime = runtime(file.tunables.limits.proxy_threads)?;
    runtime.block_on(cluster::front::run(&file, shutdown(options.lifeline)))?;
    // Sessions that did not end in time are cut.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    if threads == 1 {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
    }
}

/// Completes on SIGTERM, SIGINT, or the end of the lifeline.
async fn shutdown(lifeline: bool) {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => drop(signals.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    let lost = async {
        if !lifeline {
            std::future::pending::<()>().await;
        }
        let (sender, ended) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let _held = sender;
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        });
        let _ = ended.await;
    };
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = terminated => tracing::info!("SIGTERM"),
        () = interrupted => tracing::info!("SIGINT"),
        () = lost => tracing::warn!("the process that started this one is gone"),
    }
}
