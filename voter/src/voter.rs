//! The voter's face towards its node.

use ordering::identifiers::{ClientId, Digest, MachineId, Order};
use ordering::message::{CommitDb, Direct, ReplyCommitDb, ResultKey, ResultMessage};
use tokio::sync::{mpsc, watch};

use crate::config::VoterConfig;

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
    /// A proxy asks again for a result, whole.
    Recall {
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
    /// REPLY-COMMIT-DB to the replicas.
    Reply(ReplyCommitDb),
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
}

/// What a voter is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VoterState {
    /// No database: not voting. It tries again every second.
    Down(String),
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
        let (input, inputs) = mpsc::channel(INPUT_QUEUE_MAX);
        let (state_sender, state) = watch::channel(VoterState::Down("starting".into()));
        let task = tokio::spawn(async move {
            let _ = (config, outputs, inputs, state_sender);
        });
        VoterHandle { input, state, task }
    }
}

/// A running voter. Dropping every handle's sender ends it.
#[derive(Debug)]
pub struct VoterHandle {
    input: mpsc::Sender<VoterInput>,
    state: watch::Receiver<VoterState>,
    task: tokio::task::JoinHandle<()>,
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

    /// Ends the voter: open transactions are rolled back by the server as its connections close.
    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
