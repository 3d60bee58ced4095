//! The file as written.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ordering::configuration::{Faults, Protocol};
use serde::Deserialize;
use sql::rules::{MultiPartition, PartitionRules};
use toml::Spanned;

use super::FileError;

/// What an operator may tune; everything has a default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tunables {
    /// f: how many machines may be Byzantine.
    pub faults: usize,
    /// How many groups of replicas share the ordering work at first; `cloudbft scale` changes that.
    pub groups: u16,
    /// How many groups there may ever be; 0: as many as at first.
    pub groups_max: u16,
    /// The agreement protocol.
    pub agreement: Agreement,
    /// The kind of trusted counter.
    pub counter: CounterKind,
    /// Where applications connect.
    pub listen: SocketAddr,
    /// Where the proxy serves `/metrics`.
    pub proxy_metrics: SocketAddr,
    /// The database that is served.
    pub database: String,
    /// What an operation that touches several resources locks.
    pub multi_partition: MultiPartition,
    /// How applications prove who they are.
    pub authentication: Authentication,
    /// Whether `up` makes the database of a machine anew that needs it, without being asked.
    pub automatic_repair: bool,
    /// How often `up` compares all contents of all databases, in seconds between the end of one pass and the next; 0: never.
    pub scrub_interval_seconds: u64,
    /// TLS towards applications.
    pub tls: Option<ApplicationTls>,
    /// Limits.
    pub limits: Limits,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// The comparison of what databases change.
    pub effects: Effects,
    /// The roles that applications may be.
    pub roles: Vec<Role>,
    /// Which column of which table holds the partition key.
    pub partitions: PartitionRules,
    machines: Vec<RawMachine>,
    clients: Vec<RawClient>,
    administrator: Option<RawAdministrator>,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            faults: 1,
            groups: 1,
            groups_max: 0,
            agreement: Agreement::default(),
            counter: CounterKind::default(),
            listen: SocketAddr::from(([127, 0, 0, 1], 6432)),
            proxy_metrics: SocketAddr::from(([127, 0, 0, 1], 0)),
            database: String::from("app"),
            multi_partition: MultiPartition::default(),
            authentication: Authentication::default(),
            automatic_repair: true,
            scrub_interval_seconds: 3_600,
            tls: None,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            effects: Effects::default(),
            roles: vec![Role {
                name: String::from("app"),
                scram_verifier: None,
            }],
            partitions: PartitionRules::tpcc(),
            machines: Vec::new(),
            clients: Vec::new(),
            administrator: None,
        }
    }
}

impl Tunables {
    /// The pause between passes over all contents; `None`: there are none.
    pub fn scrub_interval(&self) -> Option<Duration> {
        (self.scrub_interval_seconds > 0).then(|| Duration::from_secs(self.scrub_interval_seconds))
    }
}

/// The agreement protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Agreement {
    /// MinBFT: 2f+1 replicas and trusted counters.
    #[default]
    MinBft,
    /// PBFT: 3f+1 replicas, no trusted counter.
    Pbft,
}

impl Agreement {
    /// As in the cluster file.
    pub fn name(self) -> &'static str {
        match self {
            Agreement::MinBft => "minbft",
            Agreement::Pbft => "pbft",
        }
    }

    /// As `ordering` calls it.
    pub fn protocol(self) -> Protocol {
        match self {
            Agreement::MinBft => Protocol::MinBft,
            Agreement::Pbft => Protocol::Pbft,
        }
    }

    /// The machines that hold replicas.
    pub fn replicas(self, faults: usize) -> Range<u8> {
        let faults = Faults(u8::try_from(faults).unwrap_or(u8::MAX / 4));
        let machines = self.protocol().machines(faults);
        machines - self.protocol().replicas(faults)..machines
    }

    /// How many machines a cluster has: 2f+2 or 3f+1.
    pub fn machines(self, faults: usize) -> usize {
        let faults = Faults(u8::try_from(faults).unwrap_or(u8::MAX / 4));
        usize::from(self.protocol().machines(faults))
    }
}

/// The kind of trusted counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CounterKind {
    /// Ed25519 in the node's process: anyone can verify.
    #[default]
    Ed25519,
    /// Keyed BLAKE3 in the node's process: faster, verified inside the counter.
    Blake3,
    /// Ed25519 in a process of its own.
    Process,
}

impl CounterKind {
    /// As in the cluster file.
    pub fn name(self) -> &'static str {
        match self {
            CounterKind::Ed25519 => "ed25519",
            CounterKind::Blake3 => "blake3",
            CounterKind::Process => "process",
        }
    }
}

/// How applications prove who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// Anyone who can connect may be any listed role: for loopback addresses only.
    #[default]
    Trust,
    /// SCRAM-SHA-256 against the roles' verifiers.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
}

/// TLS towards applications.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationTls {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// Refuse applications without TLS.
    #[serde(default)]
    pub required: bool,
}

/// Limits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Application connections at once.
    pub application_connections_max: usize,
    /// Interactive transactions that are open at once, over all applications.
    pub open_transactions_max: usize,
    /// Entries in one batch of the primary.
    pub batch_entries_max: usize,
    /// Batches that the primary keeps in flight.
    pub batches_in_flight_max: usize,
    /// What the durable log of a machine may weigh before databases that lag (f at most) hold it back no longer, in bytes.
    /// It is cut at checkpoints, which are 16 MiB of operations apart at most, so it may weigh up to twice that more.
    pub log_bytes_max: u64,
    /// What one transaction may write, in bytes: its statements and its COPY data.
    pub transaction_bytes_max: u64,
    /// What a machine keeps of COPY data and long statements on its disk until all databases have them, in bytes; each client
    /// (proxy) has an equal share.
    pub bodies_bytes_max: u64,
    /// Bytes of results above 1 MiB that each machine, and each proxy, keeps on its disk until applications have read them. One
    /// result may have half of its client's share, which is equal for each client.
    pub results_bytes_max: u64,
    /// Cursors WITH HOLD that one application connection may have at once.
    pub held_cursors_max: usize,
    /// Bytes of the rows of one connection's cursors WITH HOLD, which a proxy keeps on its disk within `results_bytes_max`.
    pub held_bytes_max: u64,
    /// `shared_buffers` of each database server that `up` makes, in MiB.
    pub shared_buffers_mib: usize,
    /// Threads that run a node's tasks (the log's writer has one of its own).
    pub node_threads: usize,
    /// Threads that run the proxy's tasks.
    pub proxy_threads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            application_connections_max: 500,
            open_transactions_max: 64,
            batch_entries_max: 64,
            batches_in_flight_max: 4,
            log_bytes_max: 8 << 30,
            transaction_bytes_max: 4 << 30,
            bodies_bytes_max: 8 << 30,
            results_bytes_max: 16 << 30,
            held_cursors_max: 64,
            held_bytes_max: 4 << 30,
            shared_buffers_mib: 128,
            node_threads: 1,
            proxy_threads: 1,
        }
    }
}

/// Timeouts, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// A statement without an answer from the cluster fails after this long (BF005).
    pub statement_ms: u64,
    /// An interactive transaction is aborted after this long.
    pub transaction_ms: u64,
    /// The open transactions of a client that has been silent for this long are aborted. Clients send something every second.
    pub client_silence_ms: u64,
    /// A replica suspects the primary when requests wait for this long and nothing is decided; doubles with each
    /// view change, and comes back slowly.
    pub request_ms: u64,
    /// How far the primary's clock may be off a replica's.
    pub clock_skew_ms_max: u64,
    /// How often the primary shows that it lives when there is nothing to order.
    pub heartbeat_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            statement_ms: 30_000,
            transaction_ms: 60_000,
            client_silence_ms: 5_000,
            request_ms: 300,
            clock_skew_ms_max: 5_000,
            heartbeat_ms: 500,
        }
    }
}

/// The comparison of what databases change (`docs/decisions/0051-effects-are-compared.md`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Effects {
    /// Whether each voter reads what its database changes and compares it with what the others' databases change.
    pub compare: bool,
}

impl Default for Effects {
    fn default() -> Self {
        Self { compare: true }
    }
}

/// A role that applications may be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// The database role.
    pub name: String,
    /// Its SCRAM-SHA-256 verifier, as in `pg_authid.rolpassword`.
    pub scram_verifier: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDatabase {
    pub(super) socket_directory: PathBuf,
    pub(super) port: u16,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMachine {
    pub(super) name: Spanned<String>,
    pub(super) link: SocketAddr,
    pub(super) metrics: SocketAddr,
    pub(super) identity: Spanned<String>,
    pub(super) counter: Spanned<String>,
    pub(super) database: Option<RawDatabase>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawClient {
    pub(super) name: Spanned<String>,
    pub(super) identity: Spanned<String>,
    pub(super) roles: Vec<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdministrator {
    pub(super) identity: Spanned<String>,
}

/// A parsed file whose membership has not been checked.
pub(super) struct Parsed<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
    pub(super) tunables: Tunables,
    pub(super) machines: Vec<RawMachine>,
    pub(super) clients: Vec<RawClient>,
    pub(super) administrator: Option<RawAdministrator>,
}

/// A value that the file writes as a word, from the command line.
///
/// # Errors
/// When there is no such value; the error lists those that there are.
pub fn parse_word<T: serde::de::DeserializeOwned>(word: &str) -> Result<T, String> {
    use serde::de::value::{Error, StrDeserializer};
    T::deserialize(StrDeserializer::<Error>::new(word)).map_err(|error| error.to_string())
}

/// Reads a file that may hold tunables only (for `up --config`).
///
/// # Errors
/// When it is not right, or lists machines.
pub(super) fn parse_tunables(path: &Path, text: &str) -> Result<Tunables, FileError> {
    let parsed = parse(path, text)?;
    if let Some(machine) = parsed.machines.first() {
        let remedy = "leave `machines` and `clients` out: `up` generates them; or run `up --dir` where this file lies";
        return Err(parsed.error(machine.name.span(), "this file lists machines", remedy));
    }
    parsed.check_tunables()?;
    Ok(parsed.tunables)
}

pub(super) fn parse<'a>(path: &'a Path, text: &'a str) -> Result<Parsed<'a>, FileError> {
    let mut tunables: Tunables = toml::from_str(text).map_err(|error| syntax_error(path, text, &error))?;
    let machines = std::mem::take(&mut tunables.machines);
    let clients = std::mem::take(&mut tunables.clients);
    let administrator = tunables.administrator.take();
    Ok(Parsed {
        path,
        text,
        tunables,
        machines,
        clients,
        administrator,
    })
}

fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> FileError {
    let message = error.message().to_owned();
    let remedy = if message.contains("unknown field") {
        "correct the spelling or remove the key"
    } else if message.contains("missing field") {
        "add the key; `cloudbft up --dir DIR` writes a complete file to copy from"
    } else if message.contains("unknown variant") {
        "use one of the values that are listed"
    } else if message.contains("invalid") {
        "write a value of the expected type"
    } else {
        "correct the TOML syntax (https://toml.io)"
    };
    let line = error.span().map_or(0, |span| line_of(text, span.start));
    FileError {
        path: path.to_owned(),
        line,
        message,
        remedy: remedy.to_owned(),
    }
}

pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}
