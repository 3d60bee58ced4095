//! The cluster file: who belongs to the cluster, where everybody is, and the tunables.
//!
//! Read by every process of the cluster. An error names the line and what to do about it; a key that means
//! nothing is refused, so that a misspelt one cannot pass unnoticed.

mod check;
mod generate;
mod layout;
mod ports;
mod raw;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ordering::identifiers::{ClientId, MachineId};
use sql::rules::PartitionRules;

pub use generate::{GenerateError, generate, make_directory, read_tunables};
pub use layout::{Layout, socket_directory};
pub use ports::free_ports;
pub use raw::{
    Agreement, ApplicationTls, Authentication, CounterKind, Effects, Limits, Role, Timeouts, Tunables, parse_word,
};

/// The most faults that a cluster file may ask for.
pub const FAULTS_MAX: usize = 10;
/// The smallest `transaction_bytes_max`, `bodies_bytes_max` and `results_bytes_max`.
const TRANSACTION_BYTES_MIN: u64 = 16 << 20;
/// The smallest `log_bytes_max`.
pub const LOG_BYTES_MIN: u64 = 1 << 20;
/// The least that a client may be silent before it counts as dead, in milliseconds: it sends something every second.
pub const CLIENT_SILENCE_MS_MIN: u64 = 2_000;
/// The most groups.
pub const GROUPS_MAX: u16 = 256;
/// How many groups there may be in a new cluster that does not say.
pub const GROUPS_MAX_DEFAULT: u16 = 8;

/// Why a cluster file is refused.
#[derive(Debug, thiserror::Error)]
#[error("{path}:{line}: {message}\n  remedy: {remedy}")]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// A machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its number: m0 first.
    pub id: MachineId,
    /// Where its node accepts links.
    pub link: SocketAddr,
    /// Where its node serves `/metrics` and `/status`.
    pub metrics: SocketAddr,
    /// Its public identity key.
    pub identity: [u8; 32],
    /// The public identity of its trusted counter.
    pub counter: [u8; 32],
    /// Its database node: m1..m(2f+1) have one.
    pub database: Option<Database>,
}

/// Where a database node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// The directory of the Unix socket.
    pub socket_directory: PathBuf,
    /// The port, which names the socket.
    pub port: u16,
}

/// A proxy identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its number: its place in the file.
    pub id: ClientId,
    /// Its name.
    pub name: String,
    /// Its public key.
    pub identity: [u8; 32],
    /// The database roles that it may use.
    pub roles: BTreeSet<String>,
}

/// A checked cluster file.
#[derive(Clone, Debug)]
pub struct ClusterFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// What may be tuned.
    pub tunables: Tunables,
    /// All machines, m0 first: 2f+2 under MinBFT, 3f+1 under PBFT.
    pub machines: Vec<Machine>,
    /// All clients.
    pub clients: Vec<Client>,
    /// The public key of whoever may change the number of groups; none in files of earlier builds.
    pub administrator: Option<[u8; 32]>,
}

impl ClusterFile {
    /// Reads and checks a cluster file.
    ///
    /// # Errors
    /// When it cannot be read or is not right; the error names line and remedy.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(path).map_err(|error| FileError {
            path: path.to_owned(),
            line: 0,
            message: format!("cannot be read: {error}"),
            remedy: String::from("name an existing cluster file, or let `cloudbft up --dir DIR` write one"),
        })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a cluster file.
    ///
    /// # Errors
    /// When it is not right.
    pub fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        raw::parse(path, text)?.resolve()
    }

    /// Lets nobody but its owner read a cluster file: it holds verifiers of passwords. (Earlier builds wrote it readable.)
    ///
    /// # Errors
    /// When it is somebody else's.
    pub fn restrict(path: &Path) -> Result<(), FileError> {
        crate::private::restrict_file(path).map_err(|error| FileError {
            path: path.to_owned(),
            line: 0,
            message: format!("others can read it, and that cannot be changed: {error}"),
            remedy: String::from("run `cloudbft up` as the owner of the file"),
        })
    }

    /// The machine with a number.
    pub fn machine(&self, id: MachineId) -> Option<&Machine> {
        self.machines.get(usize::from(id.0))
    }

    /// The directory of the file: everything else that belongs to the cluster is found from here.
    pub fn layout(&self) -> Layout {
        Layout::new(self.path.parent().unwrap_or(Path::new(".")))
    }

    /// The partition rules.
    pub fn rules(&self) -> &PartitionRules {
        &self.tunables.partitions
    }

    /// Where applications connect.
    pub fn dsn(&self) -> String {
        let Tunables {
            listen,
            database,
            roles,
            ..
        } = &self.tunables;
        let role = roles.first().map_or("app", |role| role.name.as_str());
        format!("postgresql://{role}@{listen}/{database}")
    }

    /// A digest of everything in the file that decides outcomes: equal on all processes of a healthy cluster.
    pub fn hash(&self) -> String {
        let Self {
            tunables,
            machines,
            clients,
            administrator,
            ..
        } = self;
        let described = format!("{tunables:?} {machines:?} {clients:?} {administrator:?}");
        crate::hex::encode(
            blake3::hash(described.as_bytes())
                .as_bytes()
                .get(..8)
                .unwrap_or_default(),
        )
    }
}

/// The name of a machine, as in the file and in `status`.
pub fn machine_name(id: MachineId) -> String {
    format!("m{id}")
}

#[cfg(test)]
mod tests;
