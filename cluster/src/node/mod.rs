//! One `cloudbft node` process: the roles of one machine, and the tasks between them.
//!
//! | task | what it does |
//! |---|---|
//! | link readers (one per peer) | verify what arrives, and hand it to the owner task or to the voter |
//! | owner task | steps the agreement, and carries out its outputs |
//! | log writer (a thread) | makes records durable, many at a time |
//! | voter (tasks of its crate) | counts decisions, runs them on the database server |
//! | voter outputs | sends results to proxies, and progress and questions to replicas |
//! | HTTP | `/metrics` and `/status` |

mod bodies;
#[cfg(feature = "byzantine-primary")]
mod byzantine;
mod configuration;
mod history;
mod measures;
mod output_carrier;
mod own_client;
mod owner;
mod receiver;
mod status;
mod voter_queue;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ordering::agreement::MisbehaviourKind;
use ordering::configuration::Protocol;
use ordering::hosting::Hosted;
use ordering::identifiers::MachineId;
use ordering::{minbft, pbft};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use voter::{Voter, VoterConfig, VoterHandle, VoterOutput};

pub use status::{DATABASE_DOWN, EffectsStatus, NEEDS_REPAIR, NodeStatus, STOPPED};

use crate::clock::Clock;
use crate::counter::{self, CounterSetupError, OpenCounter};
use crate::file::{Agreement, ClusterFile, machine_name};
use crate::http::{self, Answer};
use crate::identity::{Identity, IdentityError};
use crate::incarnation::next_incarnation;
use crate::link::{Links, Peer};
use crate::log::{Log, LogError, LogEvent};
use crate::metrics::Metrics;
use crate::tls::TlsError;
use bodies::BodyDesk;
pub use configuration::backends_max;
use configuration::{configuration, directory, open_bodies, peers, segment_bytes, voter_config};
use measures::Measures;
use output_carrier::OutputCarrier;
use own_client::{OwnClient, Undecided};
use owner::Owner;
use receiver::{Arrival, NodeReceiver};
use status::StatusBoard;
use voter_queue::VoterQueue;

/// Inputs that wait for the owner task at most.
const ARRIVALS_MAX: usize = 4096;
/// Outputs of the voter that wait at most.
const VOTER_OUTPUTS_MAX: usize = 4096;
/// How long an address, a log or a counter of a node that was just stopped is waited for.
const LEFTOVERS_MS_MAX: u64 = 10_000;

/// Why a node ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The machine is not in the cluster file.
    #[error("machine m{0} is not in the cluster file")]
    Unlisted(MachineId),
    /// The key is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The key is not the one that the cluster file lists.
    #[error("the identity of m{0} is not the one that the cluster file lists: restore the machine's directory")]
    AnotherIdentity(MachineId),
    /// The trusted counter cannot be opened.
    #[error(transparent)]
    CounterSetup(#[from] CounterSetupError),
    /// The trusted counter failed.
    #[error("the trusted counter failed: {0}")]
    Counter(trusted_counter::CounterError),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log is gone, and with it what this replica has voted for.
    #[error(
        "{0}: this machine's log is gone. Under pbft a replica that has forgotten what it voted for could vote again, for \
         something else: it must stay down (docs/decisions/0028); the cluster goes on without it. Never restore an old copy"
    )]
    LogLost(std::path::PathBuf),
    /// The log holds what this version does not understand.
    #[error("the log cannot be replayed: {0}")]
    Replay(String),
    /// The log cannot be written.
    #[error("the log cannot be written: nothing can be promised any more")]
    LogFailed,
    /// The starts of the node cannot be counted.
    #[error("cannot count starts in {path}: {source}")]
    Incarnation {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The store of bodies cannot be opened.
    #[error("cannot open the store of bodies in {path}: {source}")]
    Bodies {
        /// The directory.
        path: std::path::PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something of ours cannot be encoded.
    #[error("encoding: {0}")]
    Encoding(io::Error),
    /// The links cannot be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The sizes in the cluster file do not fit together.
    #[error("the agreement refuses the cluster file's sizes")]
    Configuration,
    /// A key in the cluster file is none.
    #[error("a public key in the cluster file is not a point of the curve")]
    Key,
    /// An address is not free.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The metrics recorder cannot be installed.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// Runs the node of a machine until `shutdown` completes.
///
/// # Errors
/// When it cannot be set up, or when its log or counter fails.
pub async fn run(file: &ClusterFile, me: MachineId, shutdown: impl Future<Output = ()>) -> Result<(), NodeError> {
    match file.tunables.agreement {
        #[cfg(feature = "byzantine-primary")]
        Agreement::MinBft if byzantine::is_wanted() => host::<byzantine::Byzantine>(file, me, shutdown).await,
        Agreement::MinBft => host::<minbft::Machine>(file, me, shutdown).await,
        Agreement::Pbft => host::<pbft::Machine>(file, me, shutdown).await,
    }
}

/// [`run`], with the protocol's machine.
async fn host<H: Hosted>(
    file: &ClusterFile,
    me: MachineId,
    shutdown: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    let metrics = crate::metrics::install(file, &machine_name(me))?;
    let node = Node::<H>::assemble(file, me, |config, outputs| Some(Voter::start(config, outputs))).await?;
    let machine = file.machine(me).ok_or(NodeError::Unlisted(me))?;
    serve_http(listen(machine.metrics).await?, metrics, node.owner.board.clone());
    tracing::info!(machine = %machine_name(me), link = %machine.link, "node started");
    node.run(shutdown).await
}

/// A node whose links are up, before its owner task runs.
struct Node<H: Hosted> {
    owner: Owner<H>,
    arrivals: mpsc::Receiver<Arrival<H>>,
    durable: watch::Receiver<LogEvent>,
    voter: Option<VoterHandle>,
}

impl<H: Hosted> Node<H> {
    /// Opens what the machine has, and connects its parts. `start_voter` is called on a machine with a database.
    async fn assemble(
        file: &ClusterFile,
        me: MachineId,
        start_voter: impl FnOnce(VoterConfig, mpsc::Sender<VoterOutput>) -> Option<VoterHandle>,
    ) -> Result<Self, NodeError> {
        let machine = file.machine(me).ok_or(NodeError::Unlisted(me))?;
        let identity = Identity::read(&file.layout().machine_identity(me))?;
        if identity.public().to_bytes() != machine.identity {
            return Err(NodeError::AnotherIdentity(me));
        }
        let OpenCounter { mut counter, verifier } = patiently(|| counter::open(file, me)).await?;
        let (log, durable) = open_log(file, me).await?;
        if H::PROTOCOL == Protocol::Pbft && log.is_lost() {
            return Err(NodeError::LogLost(file.layout().machine_log(me)));
        }
        let directory = directory(file, verifier)?;
        let configuration = configuration(file, me)?;
        let replicas = peers_of(me, configuration.replica_machines());
        let restored = history::restore::<H>(&log, configuration, &identity, &mut *counter)?;
        let undecided = Undecided::default();
        let own_client = own_client(file, me, &identity, undecided.clone())?;

        let (voter_outputs, outputs) = mpsc::channel(VOTER_OUTPUTS_MAX);
        let store = machine.database.as_ref().map(|_| open_bodies(file, me)).transpose()?;
        let voter = store
            .clone()
            .and_then(|bodies| start_voter(voter_config(file, machine, &identity, bodies), voter_outputs));
        let watched = voter.as_ref().map(|voter| (voter.state(), voter.effects()));
        let board = StatusBoard::new(machine_name(me), watched);
        let (owner_inputs, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let addresses = peers(file, me);
        let queue = |voter: &VoterHandle| Arc::new(VoterQueue::new(me, voter.input(), addresses.len()));
        let voter_queue = voter.as_ref().map(queue);
        let everybody = addresses.iter().map(|address| address.peer);
        let (answers, body_answers) = mpsc::unbounded_channel();
        let desk = store.map(|store| BodyDesk::new(store, answers, everybody.clone()));
        let receiver = NodeReceiver::<H>::new(
            directory.clone(),
            owner_inputs.clone(),
            voter_queue.clone(),
            desk,
            everybody,
        );
        let links = Arc::new(Links::start(
            Peer::Machine(me),
            &identity,
            &addresses,
            Some(listen(machine.link).await?),
            Arc::new(receiver),
        )?);
        tokio::spawn(bodies::send_answers(Arc::downgrade(&links), body_answers));
        let others = peers_of(me, file.machines.iter().map(|other| other.id));
        let carrier = OutputCarrier {
            me,
            links: Arc::clone(&links),
            others: others.clone(),
            voters: peers_of(me, receiver::voters(file.tunables.faults)),
            owner: owner_inputs,
            directory,
            own_client,
        };
        tokio::spawn(carrier.run(outputs));
        let owner = Owner {
            me,
            machine: restored.machine,
            counter,
            log: Arc::new(log),
            index: restored.index,
            links,
            voter: voter_queue,
            others,
            replicas,
            undecided,
            board,
            clock: Clock::start(),
            durable: 0,
            persisting: VecDeque::new(),
            gauges_set: Instant::now(),
            measures: Measures::new(),
        };
        Ok(Self {
            owner,
            arrivals,
            durable,
            voter,
        })
    }

    /// Runs until `shutdown` completes.
    async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), NodeError> {
        let outcome = self.owner.run(self.arrivals, self.durable, shutdown).await;
        if let Some(voter) = self.voter {
            voter.stop().await;
        }
        outcome
    }
}

/// The others among some machines.
fn peers_of(me: MachineId, machines: impl Iterator<Item = MachineId>) -> Vec<Peer> {
    machines.filter(|id| *id != me).map(Peer::Machine).collect()
}

/// The client under which this machine has things ordered itself.
fn own_client(
    file: &ClusterFile,
    me: MachineId,
    identity: &Identity,
    undecided: Undecided,
) -> Result<OwnClient, NodeError> {
    let path = file.layout().machine_incarnation(me);
    let incarnation = next_incarnation(&path).map_err(|source| NodeError::Incarnation { path, source })?;
    Ok(OwnClient::new(
        me,
        identity.signing_key().clone(),
        incarnation,
        undecided,
    ))
}

/// Tries for a while what a node that is just ending may still hold.
async fn patiently<T, E>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + Duration::from_millis(LEFTOVERS_MS_MAX);
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(100)).await,
            outcome => return outcome,
        }
    }
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, NodeError> {
    let deadline = Instant::now() + Duration::from_millis(LEFTOVERS_MS_MAX);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(source) => return Err(NodeError::Listen { address, source }),
        }
    }
}

async fn open_log(file: &ClusterFile, me: MachineId) -> Result<(Log, watch::Receiver<LogEvent>), NodeError> {
    let directory = file.layout().machine_log(me);
    let (sender, durable) = watch::channel(LogEvent::Durable(0));
    let sender = Arc::new(sender);
    let opening = || {
        let sender = Arc::clone(&sender);
        let notify = move |event| {
            // Nobody listens once the node ends.
            let _ = sender.send(event);
        };
        match Log::open(&directory, segment_bytes(file), notify) {
            // Only a lock passes with time.
            Err(LogError::Locked { path }) => Err(LogError::Locked { path }),
            other => Ok(other),
        }
    };
    Ok((patiently(opening).await??, durable))
}

fn serve_http(listener: TcpListener, metrics: Metrics, board: StatusBoard) {
    tokio::spawn(http::serve(listener, move |path| match path {
        "/metrics" => Some(metrics.answer()),
        "/status" => {
            let body = serde_json::to_string(&board.read()).unwrap_or_default();
            Some(Answer {
                content_type: "application/json",
                body,
            })
        }
        _ => None,
    }));
}

/// A bounded label for metrics.
fn misbehaviour_label(kind: MisbehaviourKind) -> &'static str {
    match kind {
        MisbehaviourKind::WrongPrepare => "wrong_prepare",
        MisbehaviourKind::WrongCommit => "wrong_commit",
        MisbehaviourKind::Contradiction => "contradiction",
        MisbehaviourKind::WrongRecovery => "wrong_recovery",
        MisbehaviourKind::WrongContent => "wrong_content",
        MisbehaviourKind::WrongEpoch => "wrong_epoch",
        MisbehaviourKind::ClockSkew => "clock_skew",
        MisbehaviourKind::OwnCounter => "own_counter",
        MisbehaviourKind::OwnState => "own_state",
    }
}

#[cfg(test)]
mod tests;
