//! The self-contained operation (`docs/design.md#operations`): what a proxy signs, replicas order, and any voter can
//! run on any backend connection. Nothing in it refers to session state by name.

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;

use crate::footprint::Footprint;

/// A transaction of one client: unique for ever, since sessions and numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct TransactionId {
    /// The client (proxy identity), as its index in the cluster file.
    pub client: u32,
    /// The session (application connection) on that client; the high bits hold the proxy's incarnation.
    pub session: u64,
    /// The transaction's number within the session.
    pub number: u64,
}

impl TransactionId {
    /// The name of a session itself, where a transaction is named: no transaction has this number.
    #[must_use]
    pub fn of_session(session: SessionId) -> Self {
        Self {
            client: session.client,
            session: session.session,
            number: SESSION_NUMBER,
        }
    }

    /// The session that the transaction belongs to.
    #[must_use]
    pub fn session_id(&self) -> SessionId {
        SessionId {
            client: self.client,
            session: self.session,
        }
    }

    /// Whether a session itself is meant ([`TransactionId::of_session`]).
    #[must_use]
    pub fn is_session(&self) -> bool {
        self.number == SESSION_NUMBER
    }
}

/// The number by which a session itself is named among transactions.
const SESSION_NUMBER: u64 = u64::MAX;

/// A session of one client, unique for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct SessionId {
    /// The client (proxy identity), as its index in the cluster file.
    pub client: u32,
    /// The session (application connection) on that client; the high bits hold the proxy's incarnation.
    pub session: u64,
}

/// The key of an advisory lock. Keys of the two forms are different ones, as in Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum AdvisoryKey {
    /// `(bigint)`.
    One(i64),
    /// `(int, int)`.
    Two(i32, i32),
}

/// What a session asks of the table of advisory locks (`docs/decisions/0054`). The session is that of the operation's context.
/// Answered by a command tag, one of [`advisory_tag`], but for [`Advisory::Report`].
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Advisory {
    /// Takes a lock, or waits for it. A session waits for one lock at most: what it waited for before is given up.
    Lock {
        /// The key.
        key: AdvisoryKey,
        /// Shared rather than exclusive.
        shared: bool,
        /// The open transaction with which it ends; `None`: it is the session's.
        transaction: Option<TransactionId>,
        /// Whether it is waited for.
        waits: bool,
    },
    /// Gives back a lock of the session's once.
    Unlock {
        /// The key.
        key: AdvisoryKey,
        /// The mode that was taken.
        shared: bool,
    },
    /// Gives back all locks of the session's own.
    UnlockAll,
    /// The session does not wait any longer for the lock that it asked for at this order.
    GiveUp {
        /// The order.
        since: u64,
    },
    /// Which sessions of the client wait, and which hold locks: rows of a session, and the order since which it waits or
    /// [`advisory_tag::HELD`].
    Report,
}

/// How an [`Advisory`] is answered.
pub mod advisory_tag {
    /// The lock is held now.
    pub const GRANTED: &str = "GRANTED";
    /// The lock is waited for.
    pub const WAITS: &str = "WAITS";
    /// Another session holds it, or waits for it.
    pub const TAKEN: &str = "TAKEN";
    /// The lock is given back.
    pub const RELEASED: &str = "RELEASED";
    /// The session holds locks.
    pub const HELD: &str = "held";
    /// The session does not hold it in this mode.
    pub const NOT_HELD: &str = "NOT HELD";
    /// The session waits no more.
    pub const GIVEN_UP: &str = "GIVEN UP";
    /// The session does not wait: what it waited for was granted before, or has ended with its transaction.
    pub const NOT_WAITING: &str = "NOT WAITING";
}

/// Who asks, and under which settings: what a backend must be set to before a statement runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct SessionContext {
    /// The client (proxy identity), as its index in the cluster file; with the session it tells whose temporary objects names
    /// may mean.
    pub client: u32,
    /// The session on the client.
    pub session: u64,
    /// The database role that the application logged in as.
    pub role: String,
    /// The database.
    pub database: String,
    /// The settings (GUCs) that the session has changed, sorted by name; values as `SHOW` prints them.
    pub settings: Vec<(String, String)>,
}

impl SessionContext {
    /// The session.
    #[must_use]
    pub fn id(&self) -> SessionId {
        SessionId {
            client: self.client,
            session: self.session,
        }
    }
}

/// One unit of work, as ordered.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Operation {
    /// Who asks.
    pub context: SessionContext,
    /// The resources that the client declares; voters derive them again and refuse too few (BF003).
    pub footprint: Footprint,
    /// Random bytes of the client: what the operation's seeds are made of, with its order. Nobody who only sees results
    /// can tell them, so nobody can tell what `gen_random_uuid()` gives next. (Not the signature: a client can sign
    /// one request in two ways, and voters must draw alike.)
    pub nonce: [u8; 16],
    /// What to do.
    pub work: Work,
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Work {
    /// An autocommit exchange that writes: runs in a transaction of its own under its footprint's locks.
    OneShot {
        /// The exchange.
        exchange: Bytes,
    },
    /// An ordered read: takes no lock, runs on the snapshot of its order (`docs/design.md#statements`).
    Read {
        /// The open transaction in whose backend the read runs, so that it sees that transaction's writes.
        transaction: Option<TransactionId>,
        /// Writes of that transaction that must have run before.
        writes_before: u32,
        /// The exchange.
        exchange: Bytes,
    },
    /// Opens an interactive transaction with its first exchange, under the footprint's locks, to the end.
    Begin {
        /// The transaction.
        transaction: TransactionId,
        /// The isolation that the application asked for.
        isolation: Isolation,
        /// Whether the transaction is READ ONLY.
        read_only: bool,
        /// The machines (bit `1 << machine`) whose voters run the statements as they come. The others run nothing before
        /// COMMIT, unless the client joins them by a direct message.
        live: u64,
        /// Exchanges that must run first (savepoints set before the first statement that needed a lock), then
        /// the first exchange; each is a [`Bytes`]-encoded [`Exchange`]. Only the last one's result is sent.
        exchanges: Vec<Bytes>,
    },
    /// A further exchange that needs resources which the transaction does not hold, or that is large.
    Extend {
        /// The transaction.
        transaction: TransactionId,
        /// Writes of that transaction that must have run before.
        writes_before: u32,
        /// The exchange.
        exchange: Bytes,
    },
    /// Ends a transaction: it commits exactly this list of writes (`docs/design.md#statements`, step 4).
    Commit {
        /// The transaction.
        transaction: TransactionId,
        /// Every write since Begin, in order, Begin's and Extend's exchanges included.
        writes: Vec<TransactionWrite>,
        /// The words of f+1 voters that ran the list and may commit it; none if everything listed is short.
        words: Vec<Word>,
    },
    /// Ends a transaction without effect.
    Abort {
        /// The transaction.
        transaction: TransactionId,
    },
    /// A node says that these transactions are abandoned: their client's keep-alives have stopped, or they have been open for
    /// too long. A transaction ends without effect at the order at which f+1 nodes have said so of it.
    Abandon {
        /// The transactions.
        transactions: Vec<TransactionId>,
    },
    /// Nothing: a node orders it to learn how far the order has come.
    Nothing,
    /// A one-shot of the same client is not to run, if it still waits for its locks at this order.
    Cancel {
        /// The number of its request.
        request: u64,
    },
    /// What has changed of the catalog since an operation that was ordered at `since`. Its answer's rows are those of
    /// [`crate::schema::CatalogChange::rows`]. Takes no lock, and runs nothing.
    Catalog {
        /// The order of that operation.
        since: u64,
    },
    /// The channels to which sessions of the client listen, all of them: voters send it what transactions that commit after this
    /// order notify there. Takes no lock, and runs nothing.
    Listen {
        /// Their names; at most [`CHANNELS_MAX`], of at most [`CHANNEL_BYTES_MAX`] bytes.
        channels: Vec<String>,
    },
    /// A session's wish to the table of advisory locks. Runs nothing.
    Advisory(Advisory),
}

/// Channels that one client may listen to, at most.
pub const CHANNELS_MAX: usize = 1024;

/// The longest name of a channel, in bytes (Postgres's NAMEDATALEN - 1).
pub const CHANNEL_BYTES_MAX: usize = 63;

impl Work {
    /// The transaction that the work belongs to, if there is one.
    #[must_use]
    pub fn transaction(&self) -> Option<TransactionId> {
        match self {
            Work::OneShot { .. }
            | Work::Abandon { .. }
            | Work::Nothing
            | Work::Cancel { .. }
            | Work::Catalog { .. }
            | Work::Listen { .. } => None,
            Work::Advisory(Advisory::Lock { transaction, .. }) => *transaction,
            Work::Advisory(_) => None,
            Work::Read { transaction, .. } => *transaction,
            Work::Begin { transaction, .. }
            | Work::Extend { transaction, .. }
            | Work::Commit { transaction, .. }
            | Work::Abort { transaction } => Some(*transaction),
        }
    }
}

/// A voter's word on an open transaction: it ran exactly this list, nothing of the application's runs after it, and it can
/// commit.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Word {
    /// The voter's machine.
    pub machine: u8,
    /// The chain over the digests of what the listed exchanges answered, whose last bit says whether they may have written
    /// ([`answers_with_effect`]).
    pub answers: [u8; 32],
    /// Ed25519 signature of the machine over [`word_digest`].
    pub signature: [u8; 64],
}

/// What a word signs: the transaction, the order of its Begin, the chain over the listed exchanges, and the chain over
/// their answers. (The context is Begin's, and ordered with it.)
pub fn word_digest(transaction: TransactionId, began: u64, list: &[u8; 32], answers: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("cloudbft word v1");
    hasher.update(&transaction.client.to_le_bytes());
    hasher.update(&transaction.session.to_le_bytes());
    hasher.update(&transaction.number.to_le_bytes());
    hasher.update(&began.to_le_bytes());
    hasher.update(list);
    hasher.update(answers);
    *hasher.finalize().as_bytes()
}

/// The bit of a word's answers that says whether the transaction may have written; the rest is the chain.
const EFFECT_BIT: u8 = 1;

/// What a word says: the chain over the answers, whose last bit is replaced by whether the transaction may have `written`.
#[must_use]
pub fn answers_with_effect(mut answers: [u8; 32], written: bool) -> [u8; 32] {
    let [.., last] = &mut answers;
    *last = (*last & !EFFECT_BIT) | if written { EFFECT_BIT } else { 0 };
    answers
}

/// Whether a word with these answers says that the transaction has written nothing.
#[must_use]
pub fn says_nothing_written(answers: &[u8; 32]) -> bool {
    let [.., last] = answers;
    last & EFFECT_BIT == 0
}

/// Whether two chains over answers are the same, whatever is said of the effect.
#[must_use]
pub fn same_answers(one: &[u8; 32], other: &[u8; 32]) -> bool {
    answers_with_effect(*one, true) == answers_with_effect(*other, true)
}

/// One write of an interactive transaction, as listed by its Commit.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum TransactionWrite {
    /// A direct statement: the encoded [`Exchange`].
    Direct(Bytes),
    /// The exchanges of the ordered Begin or Extend at this order.
    Ordered(u64),
}

/// The isolation level that the application asked for (`docs/design.md#isolation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum Isolation {
    /// READ UNCOMMITTED and READ COMMITTED.
    #[default]
    ReadCommitted,
    /// REPEATABLE READ: a snapshot at the order of Begin.
    RepeatableRead,
    /// SERIALIZABLE: everything read is locked exclusively.
    Serializable,
}

/// One protocol exchange: what the application sent up to Sync (or one simple Query).
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum Exchange {
    /// A simple Query message: one or more statements.
    Simple {
        /// The text as sent.
        text: String,
    },
    /// Extended-protocol messages.
    Extended {
        /// The statements that the steps name by index.
        statements: Vec<StatementText>,
        /// The messages in the order sent.
        steps: Vec<Step>,
    },
    /// Opens COPY ... FROM STDIN on the transaction's backend; answered by CopyInResponse.
    CopyStart {
        /// The COPY statement.
        text: String,
    },
    /// A piece of COPY data, at most 1 MiB, at any boundary; answered by nothing.
    CopyData {
        /// The bytes, without framing.
        data: Bytes,
    },
    /// The end of COPY data: CopyDone, or CopyFail with the application's reason.
    CopyEnd {
        /// The reason of a CopyFail.
        failure: Option<String>,
    },
    /// Another exchange, whose encoding is a body in the machines' stores, outside the order. (A body cannot be this again.)
    Stored {
        /// The body's digest.
        digest: [u8; 32],
        /// Its bytes.
        length: u32,
    },
    /// From here on the server numbers objects from this number, as far as it has not given it before. Answered by nothing, alike
    /// by all voters; only what holds everything exclusively may list it (`docs/decisions/0047-servers-number-objects-alike.md`).
    ObjectNumbers {
        /// The number of the next object.
        next: u32,
    },
}

/// A prepared statement by its text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct StatementText {
    /// The text as sent.
    pub text: String,
    /// The parameter types that Parse declared (0 = unspecified); may be shorter than the parameters.
    pub parameter_types: Vec<u32>,
}

/// One extended-protocol message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum Step {
    /// Parse: answered by ParseComplete. (A Bind of a statement that an earlier exchange parsed has no Parse
    /// step: the voter prepares it silently when its backend lacks it.)
    Parse {
        /// Index into the exchange's statements.
        statement: u16,
    },
    /// Describe of a statement: ParameterDescription, then RowDescription or NoData.
    DescribeStatement {
        /// Index into the exchange's statements.
        statement: u16,
    },
    /// Bind: answered by BindComplete.
    Bind {
        /// The portal's name; portals live to the end of the transaction.
        portal: String,
        /// Index into the exchange's statements.
        statement: u16,
        /// Parameter format codes, as sent: none, one for all, or one each.
        parameter_formats: Vec<i16>,
        /// The parameters' bytes, as sent.
        parameters: Vec<Option<Bytes>>,
        /// Result format codes, as sent.
        result_formats: Vec<i16>,
    },
    /// Describe of a portal: RowDescription or NoData.
    DescribePortal {
        /// The portal.
        portal: String,
    },
    /// Execute: rows, then CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute {
        /// The portal.
        portal: String,
        /// At most this many rows; 0 = all.
        max_rows: u32,
    },
    /// Close of a portal: answered by CloseComplete.
    ClosePortal {
        /// The portal.
        portal: String,
    },
}

impl Exchange {
    /// The bytes that are sent, hashed and listed.
    pub fn encode(&self) -> Bytes {
        // Serialising into memory cannot fail.
        Bytes::from(borsh::to_vec(self).unwrap_or_default())
    }

    /// The exchange from its bytes.
    ///
    /// # Errors
    /// When the bytes are not exactly one exchange.
    pub fn decode(bytes: &[u8]) -> Result<Self, std::io::Error> {
        borsh::from_slice(bytes)
    }
}

/// What a voter's backend answered to an exchange, as sent to the application.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ExchangeResult {
    /// Backend messages, framed as on the wire, without ReadyForQuery.
    pub messages: Bytes,
    /// The transaction status byte of the ReadyForQuery that ended it: `I`, `T` or `E`.
    pub status: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_whether_anything_was_written_beside_the_answers() {
        for answers in [[0; 32], [0xff; 32]] {
            let (written, nothing) = (answers_with_effect(answers, true), answers_with_effect(answers, false));
            assert!(!says_nothing_written(&written) && says_nothing_written(&nothing));
            assert!(same_answers(&written, &nothing) && same_answers(&written, &answers));
            assert_ne!(written, nothing, "they do not certify each other");
        }
        assert!(!same_answers(&[0; 32], &[2; 32]), "only one bit is not of the answers");
    }
}
