//! What travels between proxies and nodes about requests, direct statements and their results.
//!
//! Agreement's own messages (PREPARE, COMMIT, ...) stand beside it in the protocol's module.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;

use crate::hashing::{self, Context, context};
use crate::identifiers::{ClientId, Digest, GroupId, Order};

/// A REQUEST (`docs/protocol.md`), signed by the client.
///
/// Exactly once: replicas and voters run a (client, number) at most once. `floor` bounds what they must
/// remember: the client promises that every number below it is finished or given up, so they forget those
/// and refuse them; a number at or above `floor + REQUEST_WINDOW` is refused too.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Request {
    /// The client.
    pub client: ClientId,
    /// The request's number; unique per client for ever (high bits: the proxy's incarnation).
    pub number: u64,
    /// The lowest number that is still wanted.
    pub floor: u64,
    /// The home's number (`sql::footprint::Resource::home_number`): which group is in charge.
    pub home: u64,
    /// The encoded `sql::operation::Operation`; opaque to replicas.
    pub operation: Bytes,
    /// Ed25519 signature of the client over [`Request::digest`].
    pub signature: [u8; 64],
}

/// How many request numbers of one client may be outstanding.
pub const REQUEST_WINDOW: u64 = 4096;

/// The largest encoded operation, in bytes.
pub const OPERATION_BYTES_MAX: usize = 16 << 20;

/// The largest message between machines, in bytes: links carry nothing larger.
pub const MESSAGE_BYTES_MAX: usize = 2 * OPERATION_BYTES_MAX;

impl Request {
    /// The hash of everything but the signature: what is signed, ordered and agreed on.
    pub fn digest(&self) -> Digest {
        static CONTEXT: Context = context!("cloudbft request v1");
        let mut hasher = hashing::hasher(&CONTEXT);
        hasher.update(&self.client.0.to_le_bytes());
        hasher.update(&self.number.to_le_bytes());
        hasher.update(&self.floor.to_le_bytes());
        hasher.update(&self.home.to_le_bytes());
        hasher.update(&self.operation);
        *hasher.finalize().as_bytes()
    }
}

/// Proxy to voter.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ClientMessage {
    /// DIRECT: a statement that needs no agreement.
    Direct(Direct),
    /// Asks again for the result of a request or of a direct statement, this time whole.
    Recall(ResultKey),
    /// Nobody waits for the result of a read any more: the voter stops it.
    GiveUp(ResultKey),
    /// The client lives. Sent every second; voters of a client that has been silent for too long have its open transactions
    /// abandoned.
    KeepAlive,
    /// Asks for a chunk of a large result: [`Outcome::Chunk`].
    RecallChunk {
        /// Which result.
        key: ResultKey,
        /// The chunk's number, from 0.
        index: u32,
    },
    /// The client needs a large result no more.
    Release(ResultKey),
    /// Keep a body of a transaction: answered by a [`StoreReceipt`] when it is durable.
    Store(StoredBody),
}

/// The largest body, in bytes.
pub const BODY_BYTES_MAX: usize = OPERATION_BYTES_MAX;

/// The smallest body that machines keep outside the order, in bytes: what is smaller is cheap to order, and many small files
/// are not.
pub const BODY_BYTES_MIN: usize = 64 << 10;

/// A large part of a transaction (a piece of COPY data, a long statement) that is not ordered: the transaction names it by
/// its digest.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StoredBody {
    /// The session of the transaction (its client is the sender).
    pub session: u64,
    /// The transaction's number within the session.
    pub number: u64,
    /// The encoded `sql::operation::Exchange`.
    pub body: Bytes,
}

/// Which body of which transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct BodyName {
    /// The client that opened the transaction.
    pub client: ClientId,
    /// The session of the transaction.
    pub session: u64,
    /// The transaction's number within the session.
    pub number: u64,
    /// The [`body_digest`].
    pub digest: Digest,
}

/// The digest that names a body.
pub fn body_digest(body: &[u8]) -> Digest {
    static CONTEXT: Context = context!("cloudbft body v1");
    let mut hasher = hashing::hasher(&CONTEXT);
    hasher.update(body);
    *hasher.finalize().as_bytes()
}

/// A machine's answer to [`ClientMessage::Store`]. f+1 machines that say [`Kept::Durable`] are one that is correct at least:
/// the others can fetch the body from it. The client needs that only for itself, so that the link's authentication does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StoreReceipt {
    /// The body.
    pub name: BodyName,
    /// What became of it.
    pub kept: Kept,
}

/// What became of a body that a client wanted to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Kept {
    /// It is on the machine's disk.
    Durable,
    /// The transaction would be larger than `transaction_bytes_max`.
    TooLarge,
    /// The client's share of the machine's room for bodies is used up, or the disk is full.
    NoRoom,
}

/// DIRECT (`docs/design.md#statements`): a read outside transactions, or a statement of an interactive transaction
/// within its held footprint.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Direct {
    /// The client's number for the answer; unique per client for ever, counted apart from requests.
    pub number: u64,
    /// Whether this voter is the one that should answer with the whole result.
    pub whole: bool,
    /// The encoded `sql::operation::SessionContext`.
    pub context: Bytes,
    /// Which transaction the statement belongs to, if any.
    pub transaction: Option<DirectTransaction>,
    /// `cloudbft.reads = 'session'`: run only when every order up to this one has been executed (0: at once).
    pub not_before: Order,
    /// The encoded `sql::operation::Exchange`.
    pub exchange: Bytes,
}

/// A direct statement's place in its transaction.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct DirectTransaction {
    /// The encoded `sql::operation::TransactionId`'s session and number (the client is the sender).
    pub session: u64,
    /// The transaction's number within the session.
    pub number: u64,
    /// Writes of the transaction that must have run before this statement.
    pub writes_before: u32,
    /// [`chain`] over those writes.
    pub chain: Digest,
    /// What is asked.
    pub kind: DirectKind,
}

/// What a direct message asks of an open transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum DirectKind {
    /// Run a read that COMMIT does not list.
    Read,
    /// Run a statement that COMMIT lists.
    Write,
    /// From now on run the statements as they come: those that were ordered at once, the direct ones are sent again. The
    /// exchange is empty, and there is no answer.
    Join,
    /// Stop whatever runs or waits beyond `writes_before`: it will not be listed. The voter forgets what it ran beyond that.
    /// The exchange is empty, and there is no answer.
    Cancel {
        /// The number of the request that ordered the cancelled Extend, so that the voter does not run it when it is granted
        /// later; 0 if the statement was sent directly.
        request: u64,
    },
    /// Give the word on the transaction: [`Outcome::Word`], or the error of a deferred constraint. The exchange is empty.
    Word,
    /// Run a statement that COMMIT lists and that other voters have run before: when something that comes after it is asked, in one go
    /// with what stands beside it. There is no answer.
    Replay,
    /// Tell how far the server has numbered objects: [`Outcome::ObjectNumber`]. The transaction holds everything exclusively, and the
    /// exchange is empty.
    ObjectNumber,
}

/// The hash chain over a transaction's writes: each link hashes the previous one and the encoded exchange.
/// A transaction's chain starts at [`CHAIN_START`].
pub fn chain(previous: &Digest, exchange: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    hasher.update(exchange);
    *hasher.finalize().as_bytes()
}

/// The chain of a transaction that has written nothing.
pub const CHAIN_START: Digest = [0; 32];

/// What a RESULT answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum ResultKey {
    /// The ordered request with this number of the receiving client.
    Request(u64),
    /// The direct statement with this number of the receiving client.
    Direct(u64),
}

/// Results up to this size, in bytes, travel whole from every voter: a digest would save next to nothing, and the
/// proxy need not wait for the one voter that was picked.
pub const SMALL_RESULT_BYTES: usize = 512;

/// Results above this size, in bytes, travel in chunks: each chunk ends with the message with which it exceeds this size.
pub const CHUNK_BYTES: usize = 1 << 20;

/// The largest message of a database server that a voter takes, in bytes: the last one of a chunk.
pub const CHUNK_MESSAGE_BYTES_MAX: usize = 24 << 20;

/// RESULT: voter to proxy. Two results agree when their orders (of requests) and one of their digests are equal.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ResultMessage {
    /// What is answered.
    pub key: ResultKey,
    /// The order at which the request ran; for a direct statement the last order this voter had executed
    /// without gap (informative, enters no vote).
    pub order: Order,
    /// What happened.
    pub outcome: Outcome,
}

/// A voter's answer.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Outcome {
    /// The backend answered; the digests are over the encoded `sql::operation::ExchangeResult`.
    Done {
        /// Hash of the messages in sequence.
        sequence: Digest,
        /// The same with the rows of each statement sorted by hash (order of rows does not matter).
        multiset: Digest,
        /// The encoded `ExchangeResult`, from the voter that was picked or on recall.
        whole: Option<Bytes>,
    },
    /// The voter refuses, alike on all correct voters (for example BF003, 40P01).
    Refused {
        /// Five characters.
        sqlstate: String,
        /// What was refused.
        message: String,
        /// Rule or resource.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// The operation was committed before a restart of the voter, and what it answered is gone.
    Executed,
    /// The voter's word on the transaction (an answer to [`DirectKind::Word`]). Words agree when their answers are equal.
    Word {
        /// The chain over the digests of the listed exchanges' answers.
        answers: Digest,
        /// Ed25519 signature of the voter's machine over `sql::operation::word_digest`.
        signature: [u8; 64],
    },
    /// The voter cannot say (its transaction missed a statement, or its server is down): no vote.
    Unavailable,
    /// The backend answered more than travels at once; the digests are over the whole, as those of `Done`.
    Large {
        /// Hash of the messages in sequence.
        sequence: Digest,
        /// The same with the rows of each statement sorted by hash (order of rows does not matter).
        multiset: Digest,
        /// The status byte of the ReadyForQuery that ended the messages.
        status: u8,
        /// `sql::result::chunk_digest` of each chunk, in order. Each chunk consists of whole messages.
        chunks: Vec<Digest>,
    },
    /// A chunk of a large result: no vote.
    Chunk {
        /// The chunk's number, from 0.
        index: u32,
        /// The chunk; `None` when the voter does not have the result any more.
        bytes: Option<Bytes>,
    },
    /// The voter runs it at this moment: no vote.
    Running,
    /// The number that the voter's server gave last (an answer to [`DirectKind::ObjectNumber`]): no vote.
    ObjectNumber {
        /// An OID that no object has.
        number: u32,
    },
}

/// The largest size of one transaction's notifications in a message, in bytes ([`Notification::bytes`]).
pub const NOTIFICATIONS_BYTES_MAX: usize = 1 << 20;

/// Bytes of a notification beside its texts, nearly.
const NOTIFICATION_BYTES: usize = 16;

/// One notification of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Notification {
    /// The channel.
    pub channel: String,
    /// The payload.
    pub payload: String,
}

impl Notification {
    /// Bytes that it takes, nearly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.channel.len() + self.payload.len() + NOTIFICATION_BYTES
    }
}

/// NOTIFICATIONS: voter to proxy. What a transaction that committed has notified on channels to which sessions of the proxy listen.
/// A proxy believes what f+1 voters say alike of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Notifications {
    /// The order that let the transaction run: with `order` its place among all that committed.
    pub granted: Order,
    /// The order of the one-shot or the Commit.
    pub order: Order,
    /// Whose transaction it was.
    pub client: ClientId,
    /// The session of that client.
    pub session: u64,
    /// The transaction's notifications, in its order.
    pub notifications: Vec<Notification>,
    /// Notifications that were dropped because there were more than [`NOTIFICATIONS_BYTES_MAX`] allows.
    pub dropped: u64,
}

/// REPLY-COMMIT-DB: voter to replicas.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ReplyCommitDb {
    /// Every order up to this one has been executed.
    pub executed: Order,
    /// Every order up to this one is durable in the voter's database.
    pub flushed: Order,
}

/// How many digests one [`EffectDigests`] has at most.
pub const EFFECT_DIGESTS_MAX: usize = 1024;

/// EFFECT-DIGESTS: what a voter's database server has changed at some orders, to the voters of other machines
/// (`docs/decisions/0051`).
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct EffectDigests {
    /// The sender wants to know what the receiver's server has changed at these orders.
    pub asks: bool,
    /// At most [`EFFECT_DIGESTS_MAX`].
    pub entries: Vec<EffectDigest>,
}

/// The digest of one database server's changes at one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct EffectDigest {
    /// The order.
    pub order: Order,
    /// Over all that the order's transaction has changed; all zero if that is nothing.
    pub digest: Digest,
}

/// COMMIT-DB: a replica of the group in charge to the voters. One message covers the entries of one batch.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CommitDb {
    /// The group that decided.
    pub group: GroupId,
    /// The decided entries, ascending by order.
    pub entries: Vec<CommitDbEntry>,
}

/// One decided operation.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CommitDbEntry {
    /// The operation's order.
    pub order: Order,
    /// The primary's time, in microseconds since the Unix epoch; strictly monotone over orders.
    pub time_us: u64,
    /// The request's digest; all zero for an order that recovery filled with nothing.
    pub digest: Digest,
    /// The request itself: to the voter on the replica's own machine, or on demand.
    pub request: Option<Arc<Request>>,
}
