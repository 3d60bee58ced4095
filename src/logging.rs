//! Logs of the processes: one line per event on standard error, which `up` sends to a file per process.

use tracing_subscriber::EnvFilter;

/// Starts logging; `RUST_LOG` chooses what (default: `info`).
pub(crate) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}
