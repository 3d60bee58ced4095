//! What a voter is told when it starts. Everything that decides an operation's outcome must be equal on all voters.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use ed25519_dalek::{SigningKey, VerifyingKey};
use ordering::identifiers::{ClientId, MachineId};
use ordering::message::CHUNK_BYTES;
use spool::SpoolDirectory;
use sql::rules::PartitionRules;

use crate::bodies::BodyStore;

/// How a voter finds and uses its PostgreSQL server.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// The directory of the server's Unix socket.
    pub socket_directory: PathBuf,
    /// The server's port (it names the socket).
    pub port: u16,
    /// The database that is served.
    pub database: String,
    /// The superuser for bookkeeping; logs in over the socket without a password (trust or peer).
    pub superuser: String,
    /// What `server_version_num` must be, without the minor version (15 for 15.x); 0 accepts any.
    pub major_version: u32,
}

/// Limits. Those marked *equal* decide outcomes and must be equal on all voters.
#[derive(Clone, Debug)]
pub struct VoterLimits {
    /// *Equal.* Open interactive transactions (granted or waiting); each holds one backend. A further Begin is refused.
    pub transactions_max: usize,
    /// *Equal.* Operations that wait for locks; a further one is refused.
    pub waiting_max: usize,
    /// *Equal.* Bytes of operations that wait for locks.
    pub waiting_bytes_max: usize,
    /// *Equal.* Bytes of ordered writes that one open transaction may retain in memory.
    pub transaction_ordered_bytes_max: usize,
    /// *Equal.* Bytes of all that one transaction lists, bodies outside the order included.
    pub transaction_bytes_max: u64,
    /// *Equal.* The largest result, in bytes.
    pub result_bytes_max: u64,
    /// *Equal.* A larger result goes into a file, and travels in chunks of about this size, in bytes.
    pub chunk_bytes: usize,
    /// Backends that run one-shot operations.
    pub one_shot_backends: usize,
    /// Backends that run ordered reads, and as many again for direct reads.
    pub read_backends: usize,
    /// Direct reads that wait for a backend; further ones are answered `Unavailable`.
    pub direct_queue_max: usize,
    /// Bytes of results that are kept for retransmitted requests and recalls; each client's last one is kept, however large.
    pub kept_result_bytes_max: u64,
    /// How long a direct statement, or an ordered one of a transaction, waits for the transaction's earlier writes.
    pub direct_wait: Duration,
    /// How long the server may take to commit a transaction that has run. Then the backend is ended, and the voter looks
    /// whether it committed.
    pub commit_wait: Duration,
    /// How often the floor is written while orders are executed.
    pub floor_interval: Duration,
    /// A client that has sent nothing for so long is dead: its open transactions are to be abandoned. Clients send something
    /// every second.
    pub client_silence_max: Duration,
    /// A transaction that has been open for so long is to be abandoned, whatever its client says.
    pub transaction_time_max: Duration,
}

impl Default for VoterLimits {
    fn default() -> Self {
        Self {
            transactions_max: 64,
            waiting_max: 65_536,
            waiting_bytes_max: 256 << 20,
            transaction_ordered_bytes_max: 64 << 20,
            transaction_bytes_max: 4 << 30,
            result_bytes_max: 64 << 30,
            chunk_bytes: CHUNK_BYTES,
            one_shot_backends: 12,
            read_backends: 6,
            direct_queue_max: 1024,
            kept_result_bytes_max: 32 << 20,
            direct_wait: Duration::from_secs(2),
            commit_wait: Duration::from_secs(300),
            floor_interval: Duration::from_secs(1),
            client_silence_max: Duration::from_secs(5),
            transaction_time_max: Duration::from_secs(60),
        }
    }
}

impl VoterLimits {
    /// The connections that a voter may open at once: `max_connections` of the server must exceed it.
    pub fn backends_max(&self) -> usize {
        self.transactions_max + self.one_shot_backends + 2 * self.read_backends + 4
    }
}

/// A voter's configuration.
#[derive(Clone, Debug)]
pub struct VoterConfig {
    /// The machine that the voter runs on: m1..m(2f+1).
    pub machine: MachineId,
    /// f: how many machines may be Byzantine.
    pub faults: usize,
    /// The machines that hold replicas: m1..m(2f+1) under MinBFT, m0..m(3f) under PBFT.
    pub replicas: Range<u8>,
    /// The number of groups that there may be; which one is in charge of what, replicas know.
    pub groups: u16,
    /// *Equal.* Which column of which table holds the partition key.
    pub rules: PartitionRules,
    /// The database server.
    pub postgres: PostgresConfig,
    /// The machine's key: signs words.
    pub signing_key: SigningKey,
    /// *Equal.* The keys of the machines that hold voters: whose words count.
    pub voter_keys: BTreeMap<MachineId, VerifyingKey>,
    /// *Equal.* The clients under which nodes order [`sql::operation::Work::Abandon`] and [`sql::operation::Work::Nothing`].
    pub node_clients: BTreeMap<ClientId, MachineId>,
    /// *Equal.* Which database roles a client may use.
    pub client_roles: BTreeMap<ClientId, BTreeSet<String>>,
    /// Whether what the server changes is compared with what the others' servers change.
    pub compare_effects: bool,
    /// Limits.
    pub limits: VoterLimits,
    /// Where results lie that travel in chunks, and how many bytes of them.
    pub spool: SpoolDirectory,
    /// The machine's store of bodies.
    pub bodies: BodyStore,
}
