//! Accepting application connections, and ending.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::advisory::keep_asking;
use crate::client::Client;
use crate::config::{Authentication, ProxyConfig};
use crate::leftovers;
use crate::port::{ClusterPort, MachineSet};
use crate::session::{greet, keep_listening};
use crate::shared::Shared;
use crate::strangers::{STRANGERS_MAX, Strangers};

/// Connections beside those that are logged in: those that log in, with some that are just being ended.
const GREETING_MAX: usize = STRANGERS_MAX + 100;
/// The pause after a failed accept (no file descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long outstanding requests (aborts of lost sessions) may take at the end.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

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
        check(&config)?;
        if let Some(warning) = exposure(&config, listener.local_addr()?.ip()) {
            tracing::warn!("{warning}");
        }
        metrics::gauge!("cloudbft_client_connections_max").set(config.connections_max as f64);
        let client = Client::new(&config, port.to);
        let shared = Arc::new(Shared::new(config, Arc::clone(&client))?);
        let dispatcher = tokio::spawn(Arc::clone(&client).dispatch(port.from));
        let keeper = tokio::spawn(Arc::clone(&client).keep_alive());
        let listener_keeper = tokio::spawn(keep_listening(Arc::clone(&shared)));
        let locks_keeper = tokio::spawn(keep_asking(Arc::clone(&shared)));
        let loaders: Vec<_> = shared
            .catalogs
            .values()
            .map(|catalog| {
                let (catalog, shared) = (Arc::clone(catalog), Arc::clone(&shared));
                tokio::spawn(async move {
                    catalog.load(&shared.client).await;
                    leftovers::sweep(&shared, &catalog).await;
                })
            })
            .collect();
        let (ending, end) = watch::channel(false);
        let sessions = Arc::new(Semaphore::new(shared.config.connections_max + GREETING_MAX));
        let acceptor = Acceptor {
            logged_in: Arc::new(Semaphore::new(shared.config.connections_max)),
            all: Arc::clone(&sessions),
            strangers: Arc::default(),
            shared: Arc::clone(&shared),
            end,
        };
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => acceptor.take(stream, address.ip()),
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        ending.send_replace(true);
        let all = u32::try_from(shared.config.connections_max + GREETING_MAX).unwrap_or(u32::MAX);
        let limit = shared.config.shutdown_grace + DRAIN_LIMIT;
        let _ = tokio::time::timeout(limit, sessions.acquire_many(all)).await;
        let drained = async {
            while client.outstanding() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(DRAIN_LIMIT, drained).await;
        loaders.iter().for_each(tokio::task::JoinHandle::abort);
        keeper.abort();
        listener_keeper.abort();
        locks_keeper.abort();
        dispatcher.abort();
        Ok(())
    }
}

fn check(config: &ProxyConfig) -> Result<(), ProxyError> {
    let wrong = |message: &str| Err(ProxyError::Configuration(message.into()));
    if config.voters.len() != 2 * config.faults + 1 {
        return wrong("there must be 2f+1 voters");
    }
    if config.voters.iter().any(|machine| machine.0 >= MachineSet::CAPACITY) {
        return wrong("a machine's number is too high");
    }
    if config.voters.iter().copied().collect::<MachineSet>().len() != config.voters.len() {
        return wrong("a voter is named twice");
    }
    if config.databases.is_empty() || config.roles.is_empty() {
        return wrong("at least one database and one role must be allowed");
    }
    if config.statement_timeout.is_zero() || config.transaction_timeout.is_zero() {
        return wrong("time limits must be positive");
    }
    Ok(())
}

/// What strangers on the way can do to applications under this configuration, if anything.
fn exposure(config: &ProxyConfig, address: IpAddr) -> Option<&'static str> {
    if address.is_loopback() || config.tls.is_some() && config.tls_required {
        return None;
    }
    Some(match (&config.tls, config.authentication) {
        (_, Authentication::Trust) => {
            "WITHOUT PASSWORDS: applications are trusted on an address that is not loopback; \
             set authentication to scram-sha-256, and require TLS"
        }
        (None, Authentication::ScramSha256) => {
            "WITHOUT TLS: passwords' proofs, statements and results pass in clear on an address that is not loopback; \
             whoever listens can guess passwords off line, whoever is in between can be the server; set up TLS"
        }
        (Some(_), Authentication::ScramSha256) => {
            "TLS IS NOT REQUIRED: applications may connect in clear on an address that is not loopback; require TLS"
        }
    })
}

/// Starts a task per connection.
struct Acceptor {
    logged_in: Arc<Semaphore>,
    all: Arc<Semaphore>,
    strangers: Arc<Strangers>,
    shared: Arc<Shared>,
    end: watch::Receiver<bool>,
}

impl Acceptor {
    fn take(&self, stream: TcpStream, address: IpAddr) {
        let stranger = self.strangers.admit(address);
        // Beyond this, not even a refusal is worth a task.
        let Ok(permit) = Arc::clone(&self.all).try_acquire_owned() else {
            return;
        };
        let (shared, logged_in, mut end) = (Arc::clone(&self.shared), Arc::clone(&self.logged_in), self.end.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let greeted = tokio::select! {
                greeted = greet(stream, Arc::clone(&shared), logged_in) => greeted,
                () = stranger.evicted() => None,
                _ = end.wait_for(|ends| *ends) => None,
            };
            drop(stranger);
            if let Some((session, _slot)) = greeted {
                shared.metrics.connections.increment(1.0);
                session.run(end).await;
                shared.metrics.connections.decrement(1.0);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use ordering::identifiers::{ClientId, MachineId};
    use ordering::message::ClientMessage;
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::RoleConfig;
    use crate::port::{Destination, ToNode};

    #[tokio::test]
    async fn an_idle_proxy_shows_the_voters_that_it_lives() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = ProxyConfig::new(ClientId(0), SigningKey::from_bytes(&[1; 32]), 1, 1);
        config.databases = vec!["app".into()];
        config.roles = vec![RoleConfig {
            name: "app".into(),
            verifier: None,
        }];
        let (to, mut sent) = mpsc::channel(64);
        let (_nodes, from) = mpsc::channel(64);
        let running = tokio::spawn(Proxy::run(
            listener,
            config,
            ClusterPort { to, from },
            std::future::pending(),
        ));
        let voters: MachineSet = [1, 2, 3].map(MachineId).into_iter().collect();
        let mut signs = 0;
        let three = async {
            while signs < 3 {
                let (destination, message) = sent.recv().await.unwrap();
                if message == ToNode::Client(ClientMessage::KeepAlive) {
                    assert_eq!(destination, Destination::Machines(voters));
                    signs += 1;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(4), three).await.unwrap();
        running.abort();
    }

    #[test]
    fn what_passes_in_clear_off_loopback_is_warned_of() {
        let mut config = ProxyConfig::new(ClientId(0), SigningKey::from_bytes(&[1; 32]), 1, 1);
        let warned = |config: &ProxyConfig, address: &str| {
            let warning = exposure(config, address.parse().unwrap());
            warning.and_then(|warning| warning.split(':').next())
        };
        assert_eq!(warned(&config, "0.0.0.0"), Some("WITHOUT PASSWORDS"));
        config.authentication = Authentication::ScramSha256;
        assert_eq!(warned(&config, "127.0.0.1"), None);
        assert_eq!(warned(&config, "::1"), None);
        assert_eq!(warned(&config, "0.0.0.0"), Some("WITHOUT TLS"));
        let certified = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        config.tls = Some(Arc::new(tls));
        assert_eq!(warned(&config, "192.0.2.1"), Some("TLS IS NOT REQUIRED"));
        config.tls_required = true;
        assert_eq!(warned(&config, "192.0.2.1"), None);
    }
}
