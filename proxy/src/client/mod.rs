//! The client side of the agreement (`docs/design.md` and `docs/protocol.md`): signs and numbers requests, asks voters
//! directly, and believes only what enough of them say alike.

mod calls;
mod collect;
mod direct;
mod disputed;
mod gathering;
mod health;
mod large;
mod live;
mod numbers;
mod object_numbers;
mod order;
mod store;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{SigningKey, VerifyingKey};
use ordering::identifiers::{ClientId, MachineId, Order};
use ordering::message::{ClientMessage, Outcome, ResultKey, ResultMessage};
use spool::SpoolDirectory;
use sql::operation::ExchangeResult;
use sql::result::ResultDigests;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use crate::config::ProxyConfig;
use crate::error::{ApplicationError, NO_MAJORITY, NO_PROGRESS};
use crate::notifications::Hub;
use crate::port::{Destination, FromNode, MachineSet, ToNode};
use calls::Calls;
use collect::{Agreed, Refused};
use gathering::Gathering;

pub(crate) use collect::Rows;
use health::Health;
use numbers::Numbers;
use object_numbers::Absent;
use store::Stores;

pub(crate) use direct::{Question, Quorum, Statement};
pub(crate) use health::Preference;
pub(crate) use large::{Large, VotedResult};
pub(crate) use live::{Live, Lockstep};

/// How long other voters may take to say in which order the rows come, when f+1 agree on all but that.
const ROWS_PATIENCE: Duration = Duration::from_secs(2);

/// How much later than the first of a transaction's live voters the others may be, before the rest are joined.
const OTHERS_PATIENCE: Duration = Duration::from_millis(25);
/// How long the live voters may say nothing at all before the rest are joined: a statement that waits for locks, or that takes
/// its time, is no reason.
const SILENCE_PATIENCE: Duration = Duration::from_millis(500);
/// The proxy says that it lives as often as this.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// A statement that comes so soon after a wish to cancel was sent in the same moment as that: a client that waits until its
/// CancelRequest is taken sends none.
const SAME_MOMENT: Duration = Duration::from_millis(20);
/// How long a session may take to see a wish to cancel while it waits for a message.
const SEEN_PATIENCE: Duration = Duration::from_millis(200);
/// How often that is looked after.
const SEEN_INTERVAL: Duration = Duration::from_millis(1);

/// How many results the dispatcher takes at once.
const DISPATCH_BATCH: usize = 256;

/// The client side of the agreement, shared by all sessions.
#[derive(Debug)]
pub(crate) struct Client {
    id: ClientId,
    signing_key: SigningKey,
    faults: usize,
    voters: Vec<MachineId>,
    voter_set: MachineSet,
    voter_keys: BTreeMap<MachineId, VerifyingKey>,
    statement_timeout: Duration,
    to: mpsc::Sender<(Destination, ToNode)>,
    calls: Calls,
    fetches: Arc<large::Fetches>,
    spool: SpoolDirectory,
    stores: Stores,
    numbers: Numbers,
    next_direct: AtomicU64,
    health: Health,
    gathering: Arc<Gathering>,
    absent: Absent,
    /// The highest order that a vote has named.
    acknowledged: AtomicU64,
    /// Who listens to what voters tell of notifications.
    pub(crate) hub: Arc<Hub>,
}

/// What enough voters said.
#[derive(Debug)]
pub(crate) struct Voted<R = VotedResult> {
    /// The order at which it ran (requests), or 0.
    pub(crate) order: Order,
    /// The result.
    pub(crate) result: R,
    /// Who said so before the others: they are not behind.
    pub(crate) prompt: MachineSet,
    /// Voters that could not say, or were too late: not to be asked first again.
    pub(crate) unavailable: MachineSet,
}

/// Why there is no voted result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The voters refuse, alike.
    Refused(ApplicationError),
    /// Voters differ, and cannot come to agree.
    NoMajority(String),
    /// Not all voters say the same (at this moment): to be ordered.
    Undecided,
    /// So many voters cannot say that no majority is left.
    Unavailable,
    /// Nothing for the time limit.
    NoProgress,
    /// What was asked for may be committed, now or later.
    OutcomeUnknown,
    /// It is committed, and what it answered is gone.
    ResultLost,
    /// The application cancelled it, and it has no effect.
    Cancelled,
    /// It is larger than an operation may be.
    TooLarge,
}

impl Failure {
    /// The transaction is lost before its COMMIT, with no effect: as Postgres says it of what applications run again.
    pub(crate) fn transaction_lost() -> Self {
        let error = ApplicationError::new("40001", "the transaction was lost with a database node")
            .detail("Fewer than f+1 database nodes hold the state of this transaction.")
            .hint("Run the transaction again.");
        Failure::Refused(error)
    }

    /// f+1 voters answer otherwise than the one that the application has listened to.
    fn not_certified() -> Self {
        let error = ApplicationError::new("40001", "the transaction's answers are not certified")
            .detail("f+1 database nodes give other answers than the one that answered its statements.")
            .hint("Run the transaction again; its answers so far may be wrong.");
        Failure::Refused(error)
    }

    /// What the application is told, for a statement that has had no lasting effect.
    pub(crate) fn into_error(self) -> ApplicationError {
        match self {
            Failure::Refused(error) => error,
            Failure::NoMajority(detail) => {
                ApplicationError::new(NO_MAJORITY, "no majority of the database nodes gives the same result")
                    .detail(detail)
                    .hint("Ask for a total order (ORDER BY), or run `cloudbft verify` to find a node that diverged.")
            }
            Failure::Undecided | Failure::Unavailable => {
                ApplicationError::new(NO_PROGRESS, "too few database nodes can answer")
                    .detail("Fewer than f+1 database nodes hold the state of this transaction.")
                    .hint("Run the transaction again.")
            }
            Failure::NoProgress => ApplicationError::new(NO_PROGRESS, "the cluster makes no progress")
                .detail(
                    "The statement was not answered within statement_ms. One that waits for the locks of another session's \
                     transaction waits no longer than that either.",
                )
                .hint("Look for long transactions and at the cluster's health; run the transaction again."),
            Failure::OutcomeUnknown => {
                ApplicationError::new("08007", "the cluster did not say whether the transaction is committed")
                    .detail("It may be committed later, or never.")
                    .hint("Look at the data before you run it again.")
            }
            Failure::ResultLost => ApplicationError::new("08007", "the statement is committed, and its result is lost")
                .detail(
                    "Database nodes were restarted after they had committed it; what it answered is gone with them.",
                )
                .hint("Do not run it again; look at the data for what it did."),
            Failure::Cancelled => ApplicationError::cancelled(),
            Failure::TooLarge => ApplicationError::new("54000", "the statement with its parameters is too large")
                .hint("Send large data with COPY FROM STDIN."),
        }
    }
}

impl From<Refused> for ApplicationError {
    fn from(refused: Refused) -> Self {
        ApplicationError::new(Cow::Owned(refused.sqlstate), refused.message)
            .detail(refused.detail)
            .hint(refused.hint)
    }
}

/// A session's wish to cancel what it waits for.
///
/// A wish counts for a message that has arrived before it, whether the session has read that message or not. So a session forgets
/// a wish only when it has nothing to read, and when the statement that the wish was meant for has ended.
#[derive(Debug, Default)]
pub(crate) struct Cancel {
    requested: AtomicBool,
    notify: Notify,
    /// The session has nothing to do, as far as it knows.
    idle: AtomicBool,
}

impl Cancel {
    /// A wish that is there from the beginning.
    fn requested() -> Self {
        let cancel = Self::default();
        cancel.request();
        cancel
    }

    /// The application asks for it.
    pub(crate) fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }

    /// Forgets a wish: there is nothing (any more) that it could be meant for.
    pub(crate) fn reset(&self) {
        self.requested.store(false, Ordering::Relaxed);
    }

    /// Says whether the session waits for its next message.
    pub(crate) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::Relaxed);
    }

    /// Completes when a session that had nothing to do has seen the wish: what its application sends from then on is not
    /// meant. A session that is busy is not waited for.
    pub(crate) async fn seen(&self) {
        let until = tokio::time::Instant::now() + SEEN_PATIENCE;
        while self.is_requested() && self.idle.load(Ordering::Relaxed) && tokio::time::Instant::now() < until {
            tokio::time::sleep(SEEN_INTERVAL).await;
        }
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Waits for a wish, and a moment longer: what has not arrived then is not meant.
    pub(crate) async fn outlive(&self) {
        self.wait().await;
        tokio::time::sleep(SAME_MOMENT).await;
    }

    pub(crate) async fn wait(&self) {
        while !self.is_requested() {
            self.notify.notified().await;
        }
    }
}

impl Client {
    /// A client, and the channel from which [`Client::dispatch`] must be fed.
    pub(crate) fn new(config: &ProxyConfig, to: mpsc::Sender<(Destination, ToNode)>) -> Arc<Self> {
        Arc::new(Self {
            id: config.client,
            signing_key: config.signing_key.clone(),
            faults: config.faults,
            voters: config.voters.clone(),
            voter_set: config.voters.iter().copied().collect(),
            voter_keys: config.voter_keys.clone(),
            statement_timeout: config.statement_timeout,
            to,
            calls: Calls::default(),
            fetches: Arc::default(),
            spool: config.spool.clone(),
            stores: Stores::default(),
            numbers: Numbers::new(config.incarnation),
            next_direct: AtomicU64::new(numbers::first_number(config.incarnation)),
            health: Health::new(&config.voters),
            gathering: Arc::default(),
            absent: Absent::default(),
            acknowledged: AtomicU64::new(0),
            hub: Arc::new(Hub::new(config.client, config.faults)),
        })
    }

    /// The client's identity.
    pub(crate) fn id(&self) -> ClientId {
        self.id
    }

    /// The highest order that a vote has named so far.
    pub(crate) fn acknowledged(&self) -> Order {
        Order(self.acknowledged.load(Ordering::Relaxed))
    }

    /// How many requests are outstanding.
    pub(crate) fn outstanding(&self) -> usize {
        self.numbers.outstanding()
    }

    /// Routes what comes from the nodes, until the channel ends.
    pub(crate) async fn dispatch(self: Arc<Self>, mut from: mpsc::Receiver<(MachineId, FromNode)>) {
        let mut batch = Vec::with_capacity(DISPATCH_BATCH);
        while from.recv_many(&mut batch, DISPATCH_BATCH).await > 0 {
            for (machine, message) in batch.drain(..) {
                match message {
                    FromNode::Result(result) => {
                        self.health.answered(machine);
                        self.take_result(machine, result);
                    }
                    FromNode::Receipt(receipt) => self.stores.deliver(machine, receipt),
                    FromNode::Notifications(said) if self.voter_set.contains(machine) => self.hub.said(machine, said),
                    FromNode::Notifications(_) => {}
                    FromNode::LinkUp => self.health.link(machine, true),
                    FromNode::LinkDown => self.health.link(machine, false),
                }
            }
        }
    }

    fn take_result(&self, machine: MachineId, result: ResultMessage) {
        let key = result.key;
        match result.outcome {
            Outcome::Chunk { index, bytes } => self.fetches.deliver(machine, key, index, bytes),
            Outcome::Large { .. } => {
                let awaited = self.calls.deliver(machine, result);
                if !awaited && !self.fetches.is_wanted(key) {
                    self.release_unwanted(machine, key);
                }
            }
            _ => {
                self.calls.deliver(machine, result);
            }
        }
    }

    /// Whether the links to the cluster have ended: nothing will be answered any more.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.to.is_closed()
    }

    /// Tells the voters that this proxy lives, for ever: they have the transactions of a silent one aborted.
    pub(crate) async fn keep_alive(self: Arc<Self>) {
        let mut interval = tokio::time::interval(KEEP_ALIVE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let message = ToNode::Client(ClientMessage::KeepAlive);
            if self.send(Destination::Machines(self.voter_set), message).await.is_err() {
                return;
            }
        }
    }

    async fn send(&self, destination: Destination, message: ToNode) -> Result<(), Failure> {
        self.to
            .send((destination, message))
            .await
            .map_err(|_| Failure::NoProgress)
    }

    /// Sends what must not be lost when the queue is full, from where nobody can wait.
    fn send_later(&self, message: (Destination, ToNode)) {
        let Err(TrySendError::Full(message)) = self.to.try_send(message) else {
            return;
        };
        let to = self.to.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { to.send(message).await })),
            Err(error) => tracing::debug!(%error, "the proxy ends with a read that nobody waits for"),
        }
    }

    async fn recall(&self, key: ResultKey, machine: MachineId) -> Result<(), Failure> {
        let message = ToNode::Client(ClientMessage::Recall(key));
        metrics::counter!("cloudbft_recalls_total").increment(1);
        self.send(Destination::Machines(MachineSet::one(machine)), message)
            .await
    }

    /// Takes a whole result if it is what was agreed on.
    fn verify_whole(agreed: &Agreed, whole: &Bytes) -> Option<ExchangeResult> {
        let result = split_result(whole)?;
        let ResultDigests { sequence, multiset } = result.digests().ok()?;
        agreed.is_of(&sequence, &multiset).then_some(result)
    }

    /// A result that was agreed on, without texts of errors that only one voter gives. `others` are of those that agree.
    fn settled(&self, agreed: &Agreed, result: ExchangeResult, others: &[Bytes]) -> ExchangeResult {
        // Rows in another order are common, and need no second look.
        if !matches!(agreed, Agreed::Multiset(_)) || !disputed::has_error(&result) {
            return result;
        }
        let others = others.iter().filter_map(|whole| Self::verify_whole(agreed, whole));
        let results: Vec<_> = std::iter::once(result.clone()).chain(others).collect();
        disputed::undisputed(result, &results, self.faults + 1)
    }
}

/// A read that voters run. When it is dropped without an answer, they are told that nobody waits for it any more: an
/// application has left, or has cancelled it.
struct Reading<'client> {
    client: &'client Client,
    key: ResultKey,
    answered: bool,
}

impl Client {
    fn given_up_unless_answered(&self, key: ResultKey) -> Reading<'_> {
        Reading {
            client: self,
            key,
            answered: false,
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let message = ToNode::Client(ClientMessage::GiveUp(self.key));
            let voters = Destination::Machines(self.client.voter_set);
            self.client.send_later((voters, message));
        }
    }
}

/// Decodes an [`ExchangeResult`] without copying its messages.
fn split_result(whole: &Bytes) -> Option<ExchangeResult> {
    let length = usize::try_from(u32::from_le_bytes(*whole.first_chunk::<4>()?)).ok()?;
    let end = length.checked_add(4)?;
    if whole.len() != end.checked_add(1)? {
        return None;
    }
    Some(ExchangeResult {
        messages: whole.slice(4..end),
        status: *whole.get(end)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_split_as_borsh_encodes_them() {
        let result = ExchangeResult {
            messages: Bytes::from_static(b"C\0\0\0\x05\0"),
            status: b'I',
        };
        let encoded = Bytes::from(borsh::to_vec(&result).unwrap());
        assert_eq!(split_result(&encoded), Some(result));
        assert_eq!(split_result(&encoded.slice(..encoded.len() - 1)), None);
        assert_eq!(split_result(&Bytes::from_static(b"\xff\xff\xff\xffI")), None);
    }
}
