//! What a proxy is told at its start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::{SigningKey, VerifyingKey};
use ordering::identifiers::{ClientId, MachineId};
use spool::SpoolDirectory;
use sql::rules::PartitionRules;

/// Bytes of results that a proxy keeps in files, at most, unless it is told otherwise.
const SPOOL_BYTES_MAX: u64 = 8 << 30;

/// Cursors WITH HOLD of a session, at most, unless it is told otherwise.
const HELD_CURSORS_MAX: usize = 64;
/// Bytes that they keep, at most, unless it is told otherwise.
const HELD_BYTES_MAX: u64 = 4 << 30;

/// A proxy's configuration. No globals: everything a session needs comes from here.
#[derive(Clone)]
pub struct ProxyConfig {
    /// The proxy's identity in the cluster file.
    pub client: ClientId,
    /// The key that signs its requests.
    pub signing_key: SigningKey,
    /// Distinguishes this run of the proxy from all earlier ones: strictly greater at every start. The Unix time in
    /// seconds will do when starts are more than a second apart; a durable counter is better.
    pub incarnation: u32,
    /// How many machines may be faulty (f).
    pub faults: usize,
    /// The machines that hold a voter: 2f+1 of them, ascending (m1..m(2f+1)).
    pub voters: Vec<MachineId>,
    /// The keys with which the machines sign words. A word of a machine without a key here is taken unverified: a lying voter
    /// can then make commits fail, and nothing worse, since the voters verify words themselves.
    pub voter_keys: BTreeMap<MachineId, VerifyingKey>,
    /// The partition rules of the cluster file.
    pub rules: PartitionRules,
    /// The databases that applications may name.
    pub databases: Vec<String>,
    /// The roles that applications may log in as.
    pub roles: Vec<RoleConfig>,
    /// How applications prove who they are.
    pub authentication: Authentication,
    /// The superuser role under which voters answer the catalog query.
    pub catalog_role: String,
    /// TLS towards applications; without it SSLRequest is answered `N`.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Refuse applications that do not use TLS.
    pub tls_required: bool,
    /// Application connections at once; more are refused with 53300.
    pub connections_max: usize,
    /// Without an answer from the cluster for this long, a statement fails with BF005.
    pub statement_timeout: Duration,
    /// A transaction that is open for longer, and idle, is aborted (25P03).
    pub transaction_timeout: Duration,
    /// Where results lie that must be read to their end before anything of them is released.
    pub spool: SpoolDirectory,
    /// Cursors WITH HOLD that one session may have at once.
    pub held_cursors_max: usize,
    /// Bytes of the rows of one session's cursors WITH HOLD, at most.
    pub held_bytes_max: u64,
    /// How long sessions may go on with an open transaction after shutdown was asked for.
    pub shutdown_grace: Duration,
}

/// A role that applications may log in as.
#[derive(Clone, Debug)]
pub struct RoleConfig {
    /// The database role.
    pub name: String,
    /// The stored verifier, `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, as in Postgres's
    /// `pg_authid.rolpassword`; needed under [`Authentication::ScramSha256`].
    pub verifier: Option<String>,
}

/// How applications prove who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// Anyone who can connect may be any configured role: for loopback addresses only.
    #[default]
    Trust,
    /// SCRAM-SHA-256 (RFC 5802, RFC 7677) against the roles' stored verifiers.
    ScramSha256,
}

impl ProxyConfig {
    /// A configuration with the usual limits: trust, no TLS, 500 connections, 30 s per statement, 60 s per transaction.
    pub fn new(client: ClientId, signing_key: SigningKey, incarnation: u32, faults: usize) -> Self {
        let machines = u8::try_from(2 * faults + 1).unwrap_or(u8::MAX);
        Self {
            client,
            signing_key,
            incarnation,
            faults,
            voters: (1..=machines).map(MachineId).collect(),
            voter_keys: BTreeMap::new(),
            rules: PartitionRules::default(),
            databases: vec!["postgres".into()],
            roles: vec![RoleConfig {
                name: "postgres".into(),
                verifier: None,
            }],
            authentication: Authentication::Trust,
            catalog_role: "postgres".into(),
            tls: None,
            tls_required: false,
            connections_max: 500,
            statement_timeout: Duration::from_secs(30),
            transaction_timeout: Duration::from_secs(60),
            spool: SpoolDirectory::new(std::env::temp_dir(), SPOOL_BYTES_MAX),
            held_cursors_max: HELD_CURSORS_MAX,
            held_bytes_max: HELD_BYTES_MAX,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

impl std::fmt::Debug for ProxyConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ProxyConfig")
            .field("client", &self.client)
            .field("faults", &self.faults)
            .field("voters", &self.voters)
            .field("authentication", &self.authentication)
            .finish_non_exhaustive()
    }
}
