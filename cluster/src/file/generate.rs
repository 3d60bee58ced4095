//! Making a cluster: identities, free ports, and the documented cluster file.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ordering::identifiers::MachineId;
use sql::rules::{MultiPartition, PartitionRules};

use super::ports::free_ports;
use super::raw::{self, Authentication, Role, Tunables};
use super::{ClusterFile, FileError, GROUPS_MAX_DEFAULT, Layout, machine_name, socket_directory};
use crate::hex;
use crate::identity::{Identity, IdentityError};
use crate::private;

/// The port that names a server's socket; each server has a socket directory of its own.
const DATABASE_PORT: u16 = 5432;

/// Why a cluster cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The tunables are not right.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key cannot be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The trusted counter of a machine cannot be made.
    #[error("cannot make a trusted counter: {0}")]
    Counter(String),
    /// The log of a machine cannot be made.
    #[error(transparent)]
    Log(#[from] crate::log::LogError),
    /// The file system or the network refuses.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> GenerateError {
    let what = what.into();
    move |source| GenerateError::System { what, source }
}

/// Reads tunables from a file without members.
///
/// # Errors
/// When the file is not right.
pub fn read_tunables(path: &Path) -> Result<Tunables, FileError> {
    let text = fs::read_to_string(path).map_err(|error| FileError {
        path: path.to_owned(),
        line: 0,
        message: format!("cannot be read: {error}"),
        remedy: String::from("name an existing file"),
    })?;
    raw::parse_tunables(path, &text)
}

/// Makes the cluster of a directory: keys, and the cluster file, which is written last.
///
/// `counter` makes the trusted counter of a machine in a directory, and returns its public identity.
///
/// # Errors
/// When anything cannot be written.
pub fn generate(
    directory: &Path,
    tunables: &Tunables,
    mut counter: impl FnMut(&Path) -> Result<[u8; 32], String>,
) -> Result<ClusterFile, GenerateError> {
    let layout = Layout::new(directory);
    let machines = tunables.agreement.machines(tunables.faults);
    let promised = [tunables.listen.port()];
    let ports = free_ports(IpAddr::V4(Ipv4Addr::LOCALHOST), 2 * machines + 1, &promised);
    let mut ports = ports.map_err(system("no free port on 127.0.0.1"))?.into_iter();
    let mut port = || ports.next().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut text = tunables_text(tunables, port());
    for index in (0_u8..).take(machines) {
        let id = MachineId(index);
        let identity = make_identity(&layout.machine(id), &layout.machine_identity(id))?;
        let counter = counter(&layout.machine_counter(id)).map_err(GenerateError::Counter)?;
        crate::log::provision(&layout.machine_log(id))?;
        let (name, identity, counter) = (machine_name(id), hex::encode(&identity), hex::encode(&counter));
        let (link, metrics) = (port(), port());
        let _ = write!(
            text,
            "\n[[machines]]\nname = \"{name}\"\nlink = \"{link}\"\nmetrics = \"{metrics}\"\n\
             identity = \"{identity}\"\ncounter = \"{counter}\"\n"
        );
        if (1..=2 * tunables.faults + 1).contains(&usize::from(index)) {
            let socket = quoted(&socket_directory(&layout, id));
            let _ = write!(
                text,
                "[machines.database]\nsocket_directory = {socket}\nport = {DATABASE_PORT}\n"
            );
        }
    }
    let identity = make_identity(&layout.proxy(), &layout.proxy_identity())?;
    let roles: Vec<_> = tunables.roles.iter().map(|role| format!("{:?}", role.name)).collect();
    let _ = write!(
        text,
        "\n# Proxies, by their public keys, and the database roles that each may use.\n\
         [[clients]]\nname = \"proxy\"\nidentity = \"{}\"\nroles = [{}]\n",
        hex::encode(&identity),
        roles.join(", ")
    );
    let administrator = make_identity(&layout.administrator(), &layout.administrator_identity())?;
    let _ = write!(
        text,
        "\n# Who may change the number of groups while the cluster runs (`cloudbft scale`), by public key. The private key is in\n\
         # DIR/administrator/identity.pem; no other process needs it.\n\
         [administrator]\nidentity = \"{}\"\n",
        hex::encode(&administrator)
    );
    let path = layout.cluster_file();
    let file = ClusterFile::parse(&path, &text)?;
    let unfinished = path.with_extension("toml.unfinished");
    private::write_file(&unfinished, text.as_bytes())
        .map_err(system(format!("cannot write {}", unfinished.display())))?;
    fs::rename(&unfinished, &path).map_err(system(format!("cannot write {}", path.display())))?;
    Ok(file)
}

fn make_identity(directory: &Path, path: &Path) -> Result<[u8; 32], GenerateError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(directory);
    made.map_err(system(format!("cannot make {}", directory.display())))?;
    // Left by an earlier `up` that did not get as far as the cluster file.
    let _ = fs::remove_file(path);
    let identity = Identity::generate().map_err(system("no randomness"))?;
    identity.write(path)?;
    Ok(identity.public().to_bytes())
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn tunables_text(tunables: &Tunables, proxy_metrics: SocketAddr) -> String {
    let Tunables {
        faults,
        groups,
        agreement,
        counter,
        listen,
        database,
        multi_partition,
        ..
    } = tunables;
    let Tunables {
        authentication,
        automatic_repair,
        scrub_interval_seconds,
        limits,
        timeouts,
        ..
    } = tunables;
    let groups_max = match tunables.groups_max {
        0 => GROUPS_MAX_DEFAULT.max(*groups),
        most => most,
    };
    let agreement = agreement.name();
    let counter = counter.name();
    let multi_partition = match multi_partition {
        MultiPartition::Footprint => "footprint",
        MultiPartition::Global => "global",
    };
    let authentication = match authentication {
        Authentication::Trust => "trust",
        Authentication::ScramSha256 => "scram-sha-256",
    };
    let mut text = format!(
        "# The cluster file of CloudBFT: written by `cloudbft up`, read by every process of the cluster.\n\
         # Tunables may be changed while the cluster is down, and must be the same on all machines.\n\n\
         # f: how many machines may be Byzantine. m1 to m(2f+1) hold a database each.\n\
         faults = {faults}\n\
         # Groups of replicas that share the ordering work at first (`cloudbft scale` changes that while the cluster runs, and what\n\
         # was changed stays), and how many there may ever be. To be set before the first start.\n\
         groups = {groups}\n\
         groups_max = {groups_max}\n\
         # Agreement: minbft (2f+2 machines with trusted counters; m0 only orders) or pbft (3f+1 machines, no counter).\n\
         agreement = \"{agreement}\"\n\
         # Trusted counter: ed25519 (anyone can verify), blake3 (faster), process (ed25519 in its own process).\n\
         counter = \"{counter}\"\n\
         # Where applications connect, and where the proxy serves /metrics.\n\
         listen = \"{listen}\"\n\
         proxy_metrics = \"{proxy_metrics}\"\n\
         # The database that applications see.\n\
         database = \"{database}\"\n\
         # What an operation that touches several partitions locks: footprint (what it touches) or global.\n\
         multi_partition = \"{multi_partition}\"\n\
         # How applications prove who they are: trust (loopback only) or scram-sha-256.\n\
         authentication = \"{authentication}\"\n\
         # Whether `cloudbft up` makes a database anew from another that lacks orders, or contradicts f+1 others, without being asked.\n\
         automatic_repair = {automatic_repair}\n\
         # How often `cloudbft up` compares all contents of all databases (`cloudbft scrub`), in seconds between the end of one pass and the\n\
         # next; 0: never. A pass works for a quarter of the time.\n\
         scrub_interval_seconds = {scrub_interval_seconds}\n"
    );
    if let Some(tls) = &tunables.tls {
        let (certificate, key, required) = (quoted(&tls.certificate), quoted(&tls.key), tls.required);
        let _ = write!(
            text,
            "\n[tls]\ncertificate = {certificate}\nkey = {key}\nrequired = {required}\n"
        );
    }
    let _ = write!(
        text,
        "\n[limits]\napplication_connections_max = {}\nopen_transactions_max = {}\nbatch_entries_max = {}\n\
         batches_in_flight_max = {}\n\
         # A machine's log, in bytes. It is cut where every database has what it says. When it grows beyond this, the f\n\
         # slowest databases do not count any more: one that was down for so long must be repaired from the others.\n\
         log_bytes_max = {}\n\
         # What one transaction may write, COPY data included, and what a machine keeps of such data on its disk until every\n\
         # database has it, in bytes.\n\
         transaction_bytes_max = {}\nbodies_bytes_max = {}\n\
         # What a machine, and what a proxy, keeps on its disk of results above 1 MiB until applications have read them, in\n\
         # bytes. One result may have half of it; with several proxies, half of a proxy's equal share.\n\
         results_bytes_max = {}\n\
         # Cursors WITH HOLD that one application connection may have, and the bytes of their rows, which count as results.\n\
         held_cursors_max = {}\nheld_bytes_max = {}\nshared_buffers_mib = {}\nnode_threads = {}\n\
         proxy_threads = {}\n",
        limits.application_connections_max,
        limits.open_transactions_max,
        limits.batch_entries_max,
        limits.batches_in_flight_max,
        limits.log_bytes_max,
        limits.transaction_bytes_max,
        limits.bodies_bytes_max,
        limits.results_bytes_max,
        limits.held_cursors_max,
        limits.held_bytes_max,
        limits.shared_buffers_mib,
        limits.node_threads,
        limits.proxy_threads,
    );
    let _ = write!(
        text,
        "\n[timeouts]\nstatement_ms = {}\ntransaction_ms = {}\n\
         # The open transactions of a proxy that has been silent for this long are aborted.\n\
         client_silence_ms = {}\nrequest_ms = {}\nclock_skew_ms_max = {}\n\
         heartbeat_ms = {}\n",
        timeouts.statement_ms,
        timeouts.transaction_ms,
        timeouts.client_silence_ms,
        timeouts.request_ms,
        timeouts.clock_skew_ms_max,
        timeouts.heartbeat_ms,
    );
    let _ = write!(
        text,
        "\n[effects]\n\
         # Whether each voter reads what its database changes (by logical decoding) and compares it with what the others' change.\n\
         # A database that changed something else than f+1 others goes out of service until it is repaired.\n\
         compare = {}\n",
        tunables.effects.compare,
    );
    tunables.roles.iter().for_each(|role| text.push_str(&role_text(role)));
    text.push_str(&partitions_text(&tunables.partitions));
    text.push_str("\n# Machines with their public keys; the private ones are in DIR/<machine>/identity.pem.\n");
    text
}

fn role_text(role: &Role) -> String {
    let verifier = role
        .scram_verifier
        .as_ref()
        .map(|verifier| format!("scram_verifier = {verifier:?}\n"));
    format!("\n[[roles]]\nname = {:?}\n{}", role.name, verifier.unwrap_or_default())
}

fn partitions_text(rules: &PartitionRules) -> String {
    let mut text = format!(
        "\n# Which column of which table holds the partition key. Reference tables are read under any lock.\n\
         [partitions]\nreference_tables = {:?}\n\
         # true: rows of tables without a rule are locked, not the tables. To be set before the first start; see docs/decisions/0046.\n\
         lock_rows = {}\n",
        rules.reference_tables, rules.lock_rows
    );
    for family in &rules.families {
        let _ = write!(text, "[[partitions.families]]\nname = {:?}\ntables = [\n", family.name);
        family.tables.iter().for_each(|(table, column)| {
            let _ = writeln!(text, "  [{table:?}, {column:?}],");
        });
        text.push_str("]\n");
    }
    text
}

/// The absolute form of a cluster's directory, which is made if it is missing.
///
/// # Errors
/// When it cannot be made.
pub fn make_directory(directory: &Path) -> Result<PathBuf, GenerateError> {
    let what = format!("cannot make {}", directory.display());
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(directory);
    made.and_then(|()| directory.canonicalize()).map_err(system(what))
}
