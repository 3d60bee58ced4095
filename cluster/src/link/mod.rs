//! Links: one TLS connection per pair of processes carries everything between them.
//!
//! Between machines the lower index dials; proxies dial every machine. A connection that fails is dialled
//! again with back-off. Sending never waits (see [`queue`]); receiving exerts back-pressure on the peer.

mod connection;
pub mod frame;
mod handshakes;
pub mod queue;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ordering::identifiers::administrator;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

pub use frame::{EncodedFrame, Frame, Peer};
use handshakes::Handshakes;
use queue::Queue;

use crate::identity::Identity;
use crate::tls::{self, TlsError};

/// A handshake that takes longer is given up.
const HANDSHAKE_MS_MAX: u64 = 5_000;
/// The first pause before dialling again.
const BACKOFF_MS_MIN: u64 = 20;
/// The longest pause before dialling again.
const BACKOFF_MS_MAX: u64 = 1_000;

/// Takes what arrives. Waiting in `receive` slows the sending peer down, and nobody else.
pub trait Receiver: Send + Sync + 'static {
    /// A frame from an authenticated peer whose role may send it; `bytes` is its size on the wire.
    fn receive(&self, from: Peer, frame: Frame, bytes: usize) -> impl Future<Output = ()> + Send;

    /// A link came up or went down.
    fn changed(&self, _peer: Peer, _up: bool) {}
}

/// Whom to expect on a link.
#[derive(Clone, Debug)]
pub struct PeerAddress {
    /// Who it is.
    pub peer: Peer,
    /// Its public key.
    pub key: [u8; 32],
    /// Where it is dialled; `None` when it dials us.
    pub dial: Option<SocketAddr>,
}

/// What is known about one peer.
pub(crate) struct PeerState {
    peer: Peer,
    queue: Queue,
    up: AtomicBool,
    /// How many connections there have been: only the end of the latest one means that the link is down.
    connections: AtomicU64,
    round_trip_us: AtomicU64,
    started: Instant,
    running: Mutex<Option<AbortHandle>>,
    label: String,
    received_bytes: metrics::Counter,
    sent_bytes: metrics::Counter,
}

impl PeerState {
    fn new(peer: Peer) -> Self {
        let label = peer.to_string();
        Self {
            peer,
            queue: Queue::default(),
            up: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            round_trip_us: AtomicU64::new(0),
            started: Instant::now(),
            running: Mutex::new(None),
            label,
            received_bytes: metrics::counter!("cloudbft_link_received_bytes_total"),
            sent_bytes: metrics::counter!("cloudbft_link_sent_bytes_total"),
        }
    }

    fn stamp_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn send(&self, frame: EncodedFrame) {
        let dropped = self.queue.push(frame);
        if dropped > 0 {
            metrics::counter!("cloudbft_link_dropped_total", "peer" => self.label.clone()).increment(dropped as u64);
        }
    }

    fn send_frame(&self, frame: &Frame) {
        if let Some(encoded) = frame.encode() {
            self.send(encoded);
        }
    }

    fn record_round_trip(&self, stamp_us: u64) {
        let round_trip_us = self.stamp_us().saturating_sub(stamp_us);
        self.round_trip_us.store(round_trip_us, Ordering::Relaxed);
        let seconds = Duration::from_micros(round_trip_us).as_secs_f64();
        metrics::histogram!("cloudbft_peer_rtt_seconds", "peer" => self.label.clone()).record(seconds);
    }

    fn count_received(&self, bytes: usize) {
        self.received_bytes.increment(bytes as u64);
    }

    fn count_sent(&self, bytes: usize) {
        self.sent_bytes.increment(bytes as u64);
    }

    fn count_invalid(&self, reason: &'static str) {
        metrics::counter!("cloudbft_invalid_messages_total", "peer" => self.label.clone(), "reason" => reason)
            .increment(1);
    }

    fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
        self.queue.set_connected(up);
        // The administrator comes only when something is to be changed: that this link is down says nothing.
        if self.peer != Peer::Client(administrator()) {
            metrics::gauge!("cloudbft_peer_up", "peer" => self.label.clone()).set(if up { 1.0 } else { 0.0 });
        }
    }

    /// Makes `task` the connection of this peer, and ends the previous one.
    fn replace(&self, task: Option<AbortHandle>) {
        let previous = std::mem::replace(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner), task);
        if let Some(previous) = previous {
            previous.abort();
        }
    }
}

/// All links of a process. Dropping it ends them.
pub struct Links {
    peers: Arc<BTreeMap<Peer, Arc<PeerState>>>,
    tasks: Vec<AbortHandle>,
}

impl Links {
    /// Starts to dial and, with a listener, to accept. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When the identity yields no certificate.
    pub fn start<R: Receiver>(
        me: Peer,
        identity: &Identity,
        addresses: &[PeerAddress],
        listener: Option<TcpListener>,
        receiver: Arc<R>,
    ) -> Result<Links, TlsError> {
        let peers: BTreeMap<_, _> = addresses
            .iter()
            .map(|address| (address.peer, Arc::new(PeerState::new(address.peer))))
            .collect();
        let peers = Arc::new(peers);
        peers.values().for_each(|peer| peer.set_up(false));
        let mut tasks = Vec::new();
        for address in addresses {
            if let (Some(dial), Some(peer)) = (address.dial, peers.get(&address.peer)) {
                let connector = TlsConnector::from(tls::client(identity, address.key)?);
                let dialling = dial_forever(me, Arc::clone(peer), dial, connector, Arc::clone(&receiver));
                tasks.push(tokio::spawn(dialling).abort_handle());
            }
        }
        if let Some(listener) = listener {
            let accepted: Vec<_> = addresses.iter().filter(|address| address.dial.is_none()).collect();
            let keys = accepted
                .iter()
                .map(|address| (address.key, address.peer))
                .collect::<BTreeMap<_, _>>();
            let acceptor = TlsAcceptor::from(tls::server(identity, keys.keys().copied().collect())?);
            let accepting = accept_forever(me, Arc::clone(&peers), keys, listener, acceptor, receiver);
            tasks.push(tokio::spawn(accepting).abort_handle());
        }
        Ok(Links { peers, tasks })
    }

    /// Queues a frame for a peer; never waits. Unknown peers are ignored.
    pub fn send(&self, to: Peer, frame: &EncodedFrame) {
        if let Some(peer) = self.peers.get(&to) {
            peer.send(frame.clone());
        }
    }

    /// Encodes a frame and queues it for one peer.
    pub fn send_frame(&self, to: Peer, frame: &Frame) {
        if let Some(peer) = self.peers.get(&to) {
            peer.send_frame(frame);
        }
    }

    /// Encodes a frame once and queues it for each of the peers.
    pub fn send_to_all(&self, to: impl IntoIterator<Item = Peer>, frame: &Frame) {
        let Some(encoded) = frame.encode() else {
            tracing::error!("a frame exceeds its limit and is not sent");
            return;
        };
        to.into_iter().for_each(|peer| self.send(peer, &encoded));
    }

    /// Whether the link to a peer is up.
    pub fn is_up(&self, peer: Peer) -> bool {
        self.peers
            .get(&peer)
            .is_some_and(|peer| peer.up.load(Ordering::Relaxed))
    }

    /// What waits for a peer, in bytes.
    pub fn queued_bytes(&self, peer: Peer) -> usize {
        self.peers.get(&peer).map_or(0, |peer| peer.queue.bytes())
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = Peer> + '_ {
        self.peers.keys().copied()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.peers.values().for_each(|peer| peer.replace(None));
    }
}

/// Runs one connection to its end, and tells the receiver of both.
async fn serve<R: Receiver>(stream: TlsStream<TcpStream>, me: Peer, peer: &Arc<PeerState>, receiver: &Arc<R>) {
    /// Marks the link as down also when the task is aborted.
    struct Down<'a, R: Receiver>(&'a PeerState, &'a R, u64);
    impl<R: Receiver> Drop for Down<'_, R> {
        fn drop(&mut self) {
            if self.0.connections.load(Ordering::SeqCst) == self.2 {
                self.0.set_up(false);
                self.1.changed(self.0.peer, false);
            }
        }
    }
    let connection = peer.connections.fetch_add(1, Ordering::SeqCst) + 1;
    peer.set_up(true);
    receiver.changed(peer.peer, true);
    tracing::info!(peer = %peer.label, "link up");
    let down = Down(peer, &**receiver, connection);
    let error = connection::run(stream, me, peer, receiver).await;
    drop(down);
    tracing::info!(peer = %peer.label, %error, "link down");
}

async fn dial_forever<R: Receiver>(
    me: Peer,
    peer: Arc<PeerState>,
    address: SocketAddr,
    connector: TlsConnector,
    receiver: Arc<R>,
) {
    let mut backoff_ms = BACKOFF_MS_MIN;
    loop {
        match timeout(Duration::from_millis(HANDSHAKE_MS_MAX), dial(address, &connector)).await {
            Ok(Ok(stream)) => {
                backoff_ms = BACKOFF_MS_MIN;
                serve(stream, me, &peer, &receiver).await;
            }
            Ok(Err(error)) => tracing::debug!(peer = %peer.label, %error, "dialling failed"),
            Err(_) => tracing::debug!(peer = %peer.label, "dialling timed out"),
        }
        sleep(Duration::from_millis(backoff_ms)).await;
        backoff_ms = (backoff_ms * 2).min(BACKOFF_MS_MAX);
    }
}

async fn dial(address: SocketAddr, connector: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(tls::SERVER_NAME).map_err(io::Error::other)?;
    Ok(TlsStream::Client(connector.connect(name, stream).await?))
}

async fn accept_forever<R: Receiver>(
    me: Peer,
    peers: Arc<BTreeMap<Peer, Arc<PeerState>>>,
    keys: BTreeMap<[u8; 32], Peer>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    receiver: Arc<R>,
) {
    let keys = Arc::new(keys);
    let mut handshakes = Handshakes::default();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                tracing::warn!(%error, "accepting a link failed");
                sleep(Duration::from_millis(BACKOFF_MS_MAX)).await;
                continue;
            }
        };
        let (peers, keys) = (Arc::clone(&peers), Arc::clone(&keys));
        let (acceptor, receiver) = (acceptor.clone(), Arc::clone(&receiver));
        let handshake = tokio::spawn(async move {
            let accepting = accept(stream, &acceptor, &keys);
            let accepted = timeout(Duration::from_millis(HANDSHAKE_MS_MAX), accepting).await;
            let Ok(Ok((stream, peer))) = accepted else {
                metrics::counter!("cloudbft_link_refused_total").increment(1);
                return;
            };
            if let Some(peer) = peers.get(&peer).cloned() {
                let state = Arc::clone(&peer);
                let serving = tokio::spawn(async move { serve(stream, me, &peer, &receiver).await });
                state.replace(Some(serving.abort_handle()));
            }
        });
        handshakes.add(from, handshake.abort_handle());
    }
}

async fn accept(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    keys: &BTreeMap<[u8; 32], Peer>,
) -> io::Result<(TlsStream<TcpStream>, Peer)> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let key = certificates.first().and_then(tls::certificate_key);
    let peer = key.and_then(|key| keys.get(&key).copied());
    let peer = peer.ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
    Ok((TlsStream::Server(stream), peer))
}

#[cfg(test)]
mod tests;
