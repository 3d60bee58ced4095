//! The proxy process: the links to all nodes, and the Postgres front on top of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use ordering::identifiers::{ClientId, MachineId};
use proxy::{ClusterPort, Destination, FromNode, Proxy, ProxyConfig, RoleConfig, ToNode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::file::{ApplicationTls, Authentication, ClusterFile};
use crate::http;
use crate::identity::{Identity, IdentityError};
use crate::incarnation::next_incarnation;
use crate::link::{Frame, Links, Peer, PeerAddress, Receiver};
use crate::private;
use crate::tls::TlsError;

/// Messages between the front and the links that wait at most.
const PORT_MESSAGES_MAX: usize = 4096;

/// Why the proxy process ended.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The key is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The links cannot be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The identity is not in the cluster file.
    #[error("{0} is not the key of any client in the cluster file: list it under [[clients]]")]
    Unlisted(PathBuf),
    /// A file or the listener fails.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The certificate for applications is not usable.
    #[error("the TLS certificate for applications: {0}")]
    Certificate(String),
    /// The metrics recorder cannot be installed.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The front failed.
    #[error(transparent)]
    Proxy(#[from] proxy::ProxyError),
}

fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> FrontError {
    let what = what.into();
    move |source| FrontError::System { what, source }
}

/// Serves applications until `shutdown` completes.
///
/// # Errors
/// When the proxy cannot be set up, or its listener fails.
pub async fn run(file: &ClusterFile, shutdown: impl Future<Output = ()> + Send) -> Result<(), FrontError> {
    let metrics = crate::metrics::install(file, "proxy")?;
    let address = file.tunables.proxy_metrics;
    let scraped = TcpListener::bind(address)
        .await
        .map_err(system(format!("cannot listen on {address}")))?;
    tokio::spawn(http::serve(scraped, move |path| {
        (path == "/metrics").then(|| metrics.answer())
    }));
    let layout = file.layout();
    let path = layout.proxy_identity();
    let identity = Identity::read(&path)?;
    let public = identity.public().to_bytes();
    let client = file
        .clients
        .iter()
        .find(|client| client.identity == public)
        .ok_or(FrontError::Unlisted(path))?;
    let starts = layout.proxy_incarnation();
    let incarnation =
        next_incarnation(&starts).map_err(system(format!("cannot count starts in {}", starts.display())))?;
    let config = configuration(file, &identity, client.id, incarnation)?;
    let listen = file.tunables.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(system(format!("cannot listen on {listen}")))?;
    let port = connect(file, &identity, client.id)?;
    tracing::info!(%listen, incarnation, "proxy started");
    Ok(Proxy::run(listener, config, port, shutdown).await?)
}

fn configuration(
    file: &ClusterFile,
    identity: &Identity,
    client: ClientId,
    incarnation: u32,
) -> Result<ProxyConfig, FrontError> {
    let tunables = &file.tunables;
    let mut config = ProxyConfig::new(client, identity.signing_key().clone(), incarnation, tunables.faults);
    config.databases = vec![tunables.database.clone()];
    let role = |role: &crate::file::Role| RoleConfig {
        name: role.name.clone(),
        verifier: role.scram_verifier.clone(),
    };
    config.roles = tunables.roles.iter().map(role).collect();
    config.authentication = match tunables.authentication {
        Authentication::Trust => proxy::Authentication::Trust,
        Authentication::ScramSha256 => proxy::Authentication::ScramSha256,
    };
    // The catalog is readable for every role; voters let a client be its own roles only.
    config.catalog_role = tunables.roles.first().map(|role| role.name.clone()).unwrap_or_default();
    config.rules = tunables.partitions.clone();
    let voters = file
        .machines
        .iter()
        .filter(|machine| config.voters.contains(&machine.id));
    config.voter_keys = voters
        .filter_map(|machine| Some((machine.id, VerifyingKey::from_bytes(&machine.identity).ok()?)))
        .collect();
    if let Some(tls) = &tunables.tls {
        config.tls = Some(application_tls(tls)?);
        config.tls_required = tls.required;
    }
    config.connections_max = tunables.limits.application_connections_max;
    config.statement_timeout = Duration::from_millis(tunables.timeouts.statement_ms);
    config.transaction_timeout = Duration::from_millis(tunables.timeouts.transaction_ms);
    config.spool = spool::SpoolDirectory::new(file.layout().proxy_results(), tunables.limits.results_bytes_max);
    config.held_cursors_max = tunables.limits.held_cursors_max;
    config.held_bytes_max = tunables.limits.held_bytes_max;
    Ok(config)
}

fn application_tls(tls: &ApplicationTls) -> Result<Arc<rustls::ServerConfig>, FrontError> {
    let refused = |error: &dyn std::fmt::Display| FrontError::Certificate(error.to_string());
    private::check_key(&tls.key).map_err(|error| refused(&error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&tls.certificate)
        .map_err(|error| refused(&error))?
        .collect();
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| refused(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(chain.unwrap_or_default(), key))
        .map(Arc::new)
        .map_err(|error| refused(&error))
}

/// All machines, as a client dials them.
pub fn machine_addresses(file: &ClusterFile) -> Vec<PeerAddress> {
    let machines = file.machines.iter();
    let addresses = machines.map(|machine| PeerAddress {
        peer: Peer::Machine(machine.id),
        key: machine.identity,
        dial: Some(machine.link),
    });
    addresses.collect()
}

/// Makes the links, and the tasks between them and the front.
fn connect(file: &ClusterFile, identity: &Identity, client: ClientId) -> Result<ClusterPort, FrontError> {
    let addresses = machine_addresses(file);
    let (to, outgoing) = mpsc::channel(PORT_MESSAGES_MAX);
    let (incoming, from) = mpsc::channel(PORT_MESSAGES_MAX);
    let receiver = Arc::new(FrontReceiver { incoming });
    let links = Links::start(Peer::Client(client), identity, &addresses, None, receiver)?;
    tokio::spawn(forward(links, outgoing));
    Ok(ClusterPort { to, from })
}

async fn forward(links: Links, mut outgoing: mpsc::Receiver<(Destination, ToNode)>) {
    while let Some((destination, message)) = outgoing.recv().await {
        let frame = match message {
            ToNode::Request(request) => Frame::Request(request),
            ToNode::Client(message) => Frame::Client(message),
        };
        match destination {
            Destination::All => links.send_to_all(links.peers(), &frame),
            Destination::Machines(set) => links.send_to_all(set.iter().map(Peer::Machine), &frame),
        }
    }
}

struct FrontReceiver {
    incoming: mpsc::Sender<(MachineId, FromNode)>,
}

impl Receiver for FrontReceiver {
    async fn receive(&self, from: Peer, frame: Frame, _bytes: usize) {
        let Peer::Machine(machine) = from else { return };
        let message = match frame {
            Frame::Result(result) => FromNode::Result(result),
            Frame::Receipt(receipt) => FromNode::Receipt(receipt),
            Frame::Notifications(notifications) => FromNode::Notifications(notifications),
            _ => return,
        };
        let _ = self.incoming.send((machine, message)).await;
    }

    fn changed(&self, peer: Peer, up: bool) {
        let Peer::Machine(machine) = peer else { return };
        let event = (machine, if up { FromNode::LinkUp } else { FromNode::LinkDown });
        if let Err(mpsc::error::TrySendError::Full(event)) = self.incoming.try_send(event) {
            let incoming = self.incoming.clone();
            tokio::spawn(async move { incoming.send(event).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tls_key_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed(vec![String::from("localhost")]).unwrap();
        let tls = ApplicationTls {
            certificate: directory.path().join("certificate.pem"),
            key: directory.path().join("key.pem"),
            required: true,
        };
        fs::write(&tls.certificate, pair.cert.pem()).unwrap();
        fs::write(&tls.key, pair.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&tls.key, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = application_tls(&tls).unwrap_err().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
        fs::set_permissions(&tls.key, fs::Permissions::from_mode(0o600)).unwrap();
        application_tls(&tls).unwrap();
    }
}
