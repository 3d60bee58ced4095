//! The trusted counter of a machine: made by `up`, opened by the node, or served by a process of its own.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ordering::identifiers::MachineId;
use trusted_counter::{
    CounterClient, CounterError, CounterIdentity, Ed25519Verifier, SoftwareCounter, TrustedCounter, WarrantVerifier,
};

use crate::file::{ClusterFile, CounterKind, Layout};
use crate::private;
use crate::warrants::RememberingVerifier;

/// How long a node waits for its counter process.
const CONNECT_MS_MAX: u64 = 15_000;
/// The file of the key that keyed counters share.
const SHARED_KEY_FILE: &str = "shared.key";

/// Why a counter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CounterSetupError {
    /// The counter itself.
    #[error("trusted counter: {0}")]
    Counter(#[from] CounterError),
    /// Its files.
    #[error("trusted counter: {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The counter is not the one in the cluster file.
    #[error("the trusted counter in {0} is not the one that the cluster file lists: restore the machine's directory")]
    Another(PathBuf),
}

/// Makes the counters of a new cluster.
pub struct Provisioner {
    kind: trusted_counter::CounterKind,
}

impl Provisioner {
    /// For counters of this kind; keyed ones get a new common key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new(kind: CounterKind) -> Result<Self, CounterSetupError> {
        let kind = match kind {
            CounterKind::Ed25519 | CounterKind::Process => trusted_counter::CounterKind::Ed25519,
            CounterKind::Blake3 => trusted_counter::CounterKind::Keyed(SoftwareCounter::random_shared_key()?),
        };
        Ok(Self { kind })
    }

    /// Makes the counter of a directory, and tells its identity.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn provision(&self, directory: &Path) -> Result<[u8; 32], CounterSetupError> {
        let identity = SoftwareCounter::provision(directory, &self.kind)?;
        if let trusted_counter::CounterKind::Keyed(key) = &self.kind {
            let path = directory.join(SHARED_KEY_FILE);
            let file = fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path);
            let written = file.and_then(|mut file| file.write_all(key).and_then(|()| file.sync_all()));
            written.map_err(|source| CounterSetupError::File { path, source })?;
        }
        Ok(identity.0)
    }
}

/// A counter with what verifies the others'.
pub struct OpenCounter {
    /// This machine's counter.
    pub counter: Box<dyn TrustedCounter + Send>,
    /// Verifies warrants of all machines of the cluster.
    pub verifier: Arc<dyn WarrantVerifier>,
}

/// Opens the counter of a machine: in this process, or at its own process.
///
/// # Errors
/// When it cannot be opened, or is not the one that the cluster file lists.
pub fn open(file: &ClusterFile, machine: MachineId) -> Result<OpenCounter, CounterSetupError> {
    let identities = identities(file);
    let mut opened = if file.tunables.counter == CounterKind::Process {
        let mut client = connect(&file.layout().counter_socket(machine))?;
        // The counter may be older than this process: what the node before us certified last is in nobody's log perhaps.
        client.begin_epoch()?;
        OpenCounter {
            counter: Box::new(client),
            verifier: Arc::new(Ed25519Verifier::new(identities)),
        }
    } else {
        let counter = open_software(file, machine)?;
        let verifier = counter.verifier(identities);
        OpenCounter {
            counter: Box::new(counter),
            verifier,
        }
    };
    opened.verifier = Arc::new(RememberingVerifier::new(opened.verifier));
    let listed = file.machine(machine).map(|machine| machine.counter);
    if listed != Some(opened.counter.identity().0) {
        return Err(CounterSetupError::Another(file.layout().machine_counter(machine)));
    }
    Ok(opened)
}

/// Serves the counter of a machine on its socket until `shutdown` is set.
///
/// # Errors
/// When it cannot be opened or the socket cannot be made.
pub fn serve(file: &ClusterFile, machine: MachineId, shutdown: &AtomicBool) -> Result<(), CounterSetupError> {
    let counter = open_software(file, machine)?;
    let verifier = counter.verifier(identities(file));
    let path = file.layout().counter_socket(machine);
    let failed = |source| CounterSetupError::File {
        path: path.clone(),
        source,
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    private::claim_directory(directory, None).map_err(failed)?;
    // The counter's own lock guarantees that nobody else serves there.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(failed)?;
    Ok(trusted_counter::serve(&listener, counter, &verifier, shutdown)?)
}

fn identities(file: &ClusterFile) -> Vec<CounterIdentity> {
    file.machines
        .iter()
        .map(|machine| CounterIdentity(machine.counter))
        .collect()
}

fn open_software(file: &ClusterFile, machine: MachineId) -> Result<SoftwareCounter, CounterSetupError> {
    let directory = file.layout().machine_counter(machine);
    let kind = match file.tunables.counter {
        CounterKind::Ed25519 | CounterKind::Process => trusted_counter::CounterKind::Ed25519,
        CounterKind::Blake3 => trusted_counter::CounterKind::Keyed(shared_key(&directory)?),
    };
    Ok(SoftwareCounter::open(&directory, kind)?)
}

fn shared_key(directory: &Path) -> Result<[u8; 32], CounterSetupError> {
    let path = directory.join(SHARED_KEY_FILE);
    let mut key = [0; 32];
    let read = fs::File::open(&path).and_then(|mut file| file.read_exact(&mut key));
    read.map_err(|source| CounterSetupError::File { path, source })?;
    Ok(key)
}

/// Connects to a counter process that may be starting.
fn connect(path: &Path) -> Result<CounterClient, CounterSetupError> {
    let deadline = Instant::now() + Duration::from_millis(CONNECT_MS_MAX);
    loop {
        match CounterClient::connect(path) {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The path of a counter's socket.
impl Layout {
    /// Where the counter process of a machine listens.
    pub fn counter_socket(&self, id: MachineId) -> PathBuf {
        crate::file::socket_directory(self, id)
            .with_extension("counter")
            .join("counter.sock")
    }
}
