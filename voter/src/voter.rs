//! The voter's face towards its node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ordering::identifiers::{ClientId, Digest, MachineId, Order};
use ordering::message::{
    BodyName, CommitDb, Direct, EffectDigests, Notifications, ReplyCommitDb, ResultKey, ResultMessage,
};
use tokio::sync::{mpsc, watch};

use crate::config::VoterConfig;
use crate::doubts::Doubts;
use crate::effects::{Divergence, Effects, EffectsReport};
use crate::owner::{End, Outside, Owner, release, send_unavailable};
use crate::postgres::PostgresError;
use crate::postgres::bootstrap::Bookkeeper;
use crate::reporter::Reporter;
use crate::results::ResultStore;

/// What the node hands to the voter. Senders are authenticated by the links.
#[derive(Clone, Debug)]
pub enum VoterInput {
    /// COMMIT-DB of a replica.
    CommitDb {
        /// The replica's machine.
        from: MachineId,
        /// The message.
        message: CommitDb,
    },
    /// A direct statement of a proxy.
    Direct {
        /// The proxy.
        client: ClientId,
        /// The message.
        direct: Direct,
    },
    /// A replica's log does not go back to what this voter has asked for: it begins with this order.
    LogBegins {
        /// The replica's machine.
        from: MachineId,
        /// The first order that it can give.
        first: Order,
    },
    /// The machine's own replica knows everything up to this order to be decided: how far the voter is behind.
    Decided(Order),
    /// The voter of another machine has executed everything up to this order.
    Executed {
        /// Its machine.
        from: MachineId,
        /// The order.
        order: Order,
    },
    /// The voter of another machine says what its server has changed.
    Effects {
        /// Its machine.
        from: MachineId,
        /// The message.
        message: EffectDigests,
    },
    /// A client lives.
    KeepAlive(ClientId),
    /// A client waits for a read no more.
    GiveUp {
        /// The client.
        client: ClientId,
        /// Which read.
        key: ResultKey,
    },
    /// A proxy asks again for a result, whole.
    Recall {
        /// The proxy.
        client: ClientId,
        /// Which result.
        key: ResultKey,
    },
    /// A proxy asks for a chunk of a large result.
    RecallChunk {
        /// The proxy.
        client: ClientId,
        /// Which result.
        key: ResultKey,
        /// The chunk's number, from 0.
        index: u32,
    },
    /// A proxy needs a large result no more.
    Release {
        /// The proxy.
        client: ClientId,
        /// Which result.
        key: ResultKey,
    },
}

/// What the voter hands to its node to send.
#[derive(Clone, Debug)]
pub enum VoterOutput {
    /// RESULT to a proxy.
    Result {
        /// The proxy.
        client: ClientId,
        /// The message.
        message: ResultMessage,
    },
    /// NOTIFICATIONS to a proxy: before the RESULT of the same order.
    Notifications {
        /// The proxy.
        client: ClientId,
        /// The message.
        message: Notifications,
    },
    /// REPLY-COMMIT-DB to the replicas.
    Reply(ReplyCommitDb),
    /// What this voter's server has changed, to the voters of other machines.
    Effects {
        /// The machine; `None`: all of them.
        to: Option<MachineId>,
        /// The message.
        message: EffectDigests,
    },
    /// Something that the machine has ordered under its own client: signed and sent by the node as a REQUEST, again until it
    /// is ordered or another takes its place. ([`sql::operation::Work::Abandon`], [`sql::operation::Work::Nothing`].)
    Order {
        /// The encoded [`sql::operation::Operation`].
        operation: bytes::Bytes,
        /// The home's number.
        home: u64,
    },
    /// The voter needs COMMIT-DBs from this order on, of all groups, from the replicas' logs.
    Fetch {
        /// The first order that is missing.
        from: Order,
    },
    /// The voter needs the body of a decided request, as a COMMIT-DB entry with its request.
    FetchRequest {
        /// The order.
        order: Order,
        /// The request's digest.
        digest: Digest,
    },
    /// The voter needs a body that its machine's store lacks: what the other machine answers goes to the store
    /// ([`crate::BodyStore::fetched`]). Asked again, of another machine, while it does not come.
    FetchBody {
        /// Whom to ask.
        from: MachineId,
        /// The body.
        name: BodyName,
    },
}

/// What a voter is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VoterState {
    /// No database: not voting. It tries again every second.
    Down(String),
    /// f+1 replicas have cut off what the database lacks: it has to be repaired from the others.
    LeftBehind {
        /// The first order that it lacks.
        next: Order,
    },
    /// The database answers otherwise than f+1 voters have certified: it has to be repaired from the others. It tries again
    /// every second, as the cause may pass.
    Contradicts {
        /// The order of the Commit.
        order: Order,
    },
    /// The database has changed, or holds, something else than f+1 others: it has to be repaired from the others.
    Diverged {
        /// The order.
        order: Order,
        /// Which tables and rows it had changed then.
        changed: String,
    },
    /// Running operations; `executed` is the last order without gap.
    Serving {
        /// Every order up to this one has been executed.
        executed: Order,
        /// Every order up to this one is durable in the database.
        flushed: Order,
    },
}

/// A voter.
#[derive(Debug)]
pub struct Voter;

/// How many inputs wait at most.
pub const INPUT_QUEUE_MAX: usize = 8192;

impl Voter {
    /// Starts a voter on the current Tokio runtime. Outputs are sent in order; a full channel holds the voter up.
    pub fn start(config: VoterConfig, outputs: mpsc::Sender<VoterOutput>) -> VoterHandle {
        crate::measures::describe();
        let (input, inputs) = mpsc::channel(INPUT_QUEUE_MAX);
        let (state_sender, state) = watch::channel(VoterState::Down("starting".into()));
        let clients = config.client_roles.len().max(1) as u64;
        let bytes_max = config.limits.kept_result_bytes_max / clients;
        // As much again is left for results that are on their way into their files.
        let large_bytes_max = config.spool.bytes_max() / 2 / clients;
        let config = Arc::new(config);
        let (divergence_sender, divergences) = mpsc::channel(1);
        let (report, effects) = watch::channel(EffectsReport::default());
        let doubts = Doubts::default();
        let start_effects = || {
            let divergences = divergence_sender.clone();
            Effects::start(
                Arc::clone(&config),
                outputs.clone(),
                divergences,
                report,
                doubts.clone(),
            )
        };
        let started = config.compare_effects.then(start_effects);
        let (comparing, comparing_task) = started.unzip();
        let outside = Outside {
            reporter: Reporter::new(
                outputs.clone(),
                ResultStore::new(bytes_max, large_bytes_max),
                doubts.clone(),
            ),
            doubts,
            config,
            outputs,
            state: state_sender,
            contradicted: AtomicU64::new(0),
            effects: comparing,
            _divergences: divergence_sender,
        };
        let tasks = std::iter::once(tokio::spawn(live(outside, inputs, divergences)));
        let tasks = tasks.chain(comparing_task).collect();
        VoterHandle {
            input,
            state,
            effects,
            tasks,
        }
    }
}

/// How long the voter waits before it tries the database again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// One life after another, until the node drops the voter.
async fn live(outside: Outside, mut inputs: mpsc::Receiver<VoterInput>, mut divergences: mpsc::Receiver<Divergence>) {
    // What is not yet noted in the database.
    let mut found = None;
    loop {
        let down = match start(&outside, &mut found).await {
            Ok(owner) => match owner.serve(&mut inputs, &mut divergences).await {
                End::Stopped => return,
                End::Diverged(divergence) => {
                    let state = VoterState::Diverged {
                        order: Order(divergence.order),
                        changed: divergence.shown.clone(),
                    };
                    found = Some(divergence);
                    outside.doubts.forget();
                    state
                }
                End::Noted { order, shown } => {
                    outside.doubts.forget();
                    VoterState::Diverged {
                        order: Order(order),
                        changed: shown,
                    }
                }
                End::Lost(reason) => VoterState::Down(reason),
                End::Contradicted(order) => {
                    outside.contradicted.store(order, Ordering::Relaxed);
                    VoterState::Contradicts { order: Order(order) }
                }
            },
            Err(PostgresError::Diverged { order, shown }) => VoterState::Diverged {
                order: Order(order),
                changed: shown,
            },
            Err(error) => VoterState::Down(error.to_string()),
        };
        tracing::warn!(?down, "the voter is down");
        metrics::counter!("cloudbft_voter_outages_total").increment(1);
        outside.state.send_replace(down);
        if !stay_down(&outside, &mut inputs).await {
            return;
        }
    }
}

/// Begins a life, once it is noted in the database what was found of it.
async fn start<'a>(outside: &'a Outside, found: &mut Option<Divergence>) -> Result<Owner<'a>, PostgresError> {
    if let Some(divergence) = found {
        let mut bookkeeper = Bookkeeper::open(&outside.config).await?;
        bookkeeper.note_divergence(divergence).await?;
        *found = None;
    }
    Owner::start(outside).await
}

/// Consumes inputs without a database; false when the node has dropped the voter.
async fn stay_down(outside: &Outside, inputs: &mut mpsc::Receiver<VoterInput>) -> bool {
    let retry = tokio::time::sleep(RETRY_INTERVAL);
    tokio::pin!(retry);
    loop {
        let input = tokio::select! {
            () = &mut retry => return true,
            input = inputs.recv() => input,
        };
        match input {
            None => return false,
            // It is fetched again from the replicas' logs.
            Some(
                VoterInput::CommitDb { .. }
                | VoterInput::LogBegins { .. }
                | VoterInput::Decided(_)
                | VoterInput::Executed { .. }
                | VoterInput::KeepAlive(_)
                | VoterInput::GiveUp { .. },
            ) => {}
            Some(VoterInput::Effects { from, message }) => outside.effects(from, message),
            Some(VoterInput::Direct { client, direct }) => {
                send_unavailable(&outside.reporter, client, direct.number, Order(0)).await;
            }
            Some(VoterInput::Recall { client, key }) => outside.reporter.recall(client, key).await,
            Some(VoterInput::RecallChunk { client, key, index }) => outside.reporter.recall_chunk(client, key, index),
            Some(VoterInput::Release { client, key }) => release(&outside.reporter, client, key),
        }
    }
}

/// A running voter. Dropping every handle's sender ends it.
#[derive(Debug)]
pub struct VoterHandle {
    input: mpsc::Sender<VoterInput>,
    state: watch::Receiver<VoterState>,
    effects: watch::Receiver<EffectsReport>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl VoterHandle {
    /// The bounded queue into the voter. When it is full, COMMIT-DBs may be dropped: the voter fetches them again.
    pub fn input(&self) -> mpsc::Sender<VoterInput> {
        self.input.clone()
    }

    /// What the voter is doing, to watch.
    pub fn state(&self) -> watch::Receiver<VoterState> {
        self.state.clone()
    }

    /// What the comparison of effects is doing, to watch.
    pub fn effects(&self) -> watch::Receiver<EffectsReport> {
        self.effects.clone()
    }

    /// Ends the voter: open transactions are rolled back by the server as its connections close.
    pub async fn stop(self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}
