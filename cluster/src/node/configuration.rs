//! What the cluster file says to each part of a node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use ordering::configuration::{Configuration, Faults};
use ordering::directory::{Directory, MachineEntry};
use ordering::identifiers::{ClientId, MachineId, administrator, node_client};
use spool::SpoolDirectory;
use voter::{BodyLimits, BodyStore, PostgresConfig, VoterConfig, VoterLimits};

use super::{NodeError, receiver};
use crate::file::{ClusterFile, Machine};
use crate::identity::Identity;
use crate::link::{Peer, PeerAddress};
use crate::log::SEGMENT_BYTES;
use crate::postgres::SUPERUSER;

/// The clients of the machines that hold voters: no others have anything to order of their own.
pub(super) fn node_clients(file: &ClusterFile) -> impl Iterator<Item = (ClientId, &Machine)> {
    receiver::voters(file.tunables.faults)
        .filter_map(|id| file.machine(id))
        .map(|machine| (node_client(machine.id), machine))
}

pub(super) fn directory(
    file: &ClusterFile,
    verifier: Arc<dyn trusted_counter::WarrantVerifier>,
) -> Result<Directory, NodeError> {
    let key = |bytes: &[u8; 32]| ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| NodeError::Key);
    let entry = |machine: &Machine| {
        let counter = trusted_counter::CounterIdentity(machine.counter);
        Ok((
            machine.id,
            MachineEntry {
                key: key(&machine.identity)?,
                counter,
            },
        ))
    };
    let machines: Result<BTreeMap<_, _>, NodeError> = file.machines.iter().map(entry).collect();
    let clients: Result<BTreeMap<_, _>, NodeError> = file
        .clients
        .iter()
        .map(|client| Ok((client.id, key(&client.identity)?)))
        .chain(node_clients(file).map(|(client, machine)| Ok((client, key(&machine.identity)?))))
        .chain(
            file.administrator
                .iter()
                .map(|identity| Ok((administrator(), key(identity)?))),
        )
        .collect();
    let (faults, groups) = (faults(file), file.tunables.groups_max);
    Ok(Directory {
        faults,
        groups,
        machines: machines?,
        clients: clients?,
        verifier,
    })
}

/// The log is cut by whole segments: a small log needs small ones.
pub(super) fn segment_bytes(file: &ClusterFile) -> u64 {
    (file.tunables.limits.log_bytes_max / 16).min(SEGMENT_BYTES)
}

fn faults(file: &ClusterFile) -> Faults {
    Faults(u8::try_from(file.tunables.faults).unwrap_or(u8::MAX))
}

pub(super) fn configuration(file: &ClusterFile, me: MachineId) -> Result<Configuration, NodeError> {
    let mut configuration = Configuration::new(me, faults(file), file.tunables.groups_max);
    configuration.groups_at_first = file.tunables.groups;
    configuration.protocol = file.tunables.agreement.protocol();
    configuration.batch_entries_max = file.tunables.limits.batch_entries_max;
    configuration.batches_in_flight_max = file.tunables.limits.batches_in_flight_max;
    configuration.log_bytes_max = file.tunables.limits.log_bytes_max;
    configuration.cut_bytes = segment_bytes(file) / 4;
    configuration.request_us = file.tunables.timeouts.request_ms.saturating_mul(1000);
    configuration.clock_ahead_max_us = file.tunables.timeouts.clock_skew_ms_max.saturating_mul(1000);
    if configuration.is_valid() {
        Ok(configuration)
    } else {
        Err(NodeError::Configuration)
    }
}

/// Between machines the lower index dials; proxies dial us.
pub(super) fn peers(file: &ClusterFile, me: MachineId) -> Vec<PeerAddress> {
    let machines = file
        .machines
        .iter()
        .filter(|machine| machine.id != me)
        .map(|machine| PeerAddress {
            peer: Peer::Machine(machine.id),
            key: machine.identity,
            dial: (me < machine.id).then_some(machine.link),
        });
    let clients = file.clients.iter().map(|client| PeerAddress {
        peer: Peer::Client(client.id),
        key: client.identity,
        dial: None,
    });
    let administrator = file.administrator.iter().map(|key| PeerAddress {
        peer: Peer::Client(administrator()),
        key: *key,
        dial: None,
    });
    machines.chain(clients).chain(administrator).collect()
}

fn limits(file: &ClusterFile) -> VoterLimits {
    VoterLimits {
        transactions_max: file.tunables.limits.open_transactions_max,
        client_silence_max: Duration::from_millis(file.tunables.timeouts.client_silence_ms),
        transaction_time_max: Duration::from_millis(file.tunables.timeouts.transaction_ms),
        transaction_bytes_max: file.tunables.limits.transaction_bytes_max,
        // As much as a voter keeps of one client: as much again is for what is on its way into its file.
        result_bytes_max: file.tunables.limits.results_bytes_max / 2 / clients(file),
        ..VoterLimits::default()
    }
}

/// The connections that a voter may open to its database server.
pub fn backends_max(file: &ClusterFile) -> usize {
    limits(file).backends_max()
}

/// How many clients share what is kept for them.
fn clients(file: &ClusterFile) -> u64 {
    u64::try_from(file.clients.len()).unwrap_or(u64::MAX).max(1)
}

/// Opens a machine's store of bodies: each client has an equal share of it.
pub(super) fn open_bodies(file: &ClusterFile, me: MachineId) -> Result<BodyStore, NodeError> {
    let limits = &file.tunables.limits;
    let limits = BodyLimits {
        client_bytes_max: limits.bodies_bytes_max / clients(file),
        transaction_bytes_max: limits.transaction_bytes_max,
    };
    let path = file.layout().machine_bodies(me);
    let faults = file.tunables.faults;
    let opened = BodyStore::open(path.clone(), limits, receiver::voters(faults), faults);
    opened.map_err(|source| NodeError::Bodies { path, source })
}

pub(super) fn voter_config(
    file: &ClusterFile,
    machine: &Machine,
    identity: &Identity,
    bodies: BodyStore,
) -> VoterConfig {
    let database = machine.database.as_ref();
    VoterConfig {
        machine: machine.id,
        faults: file.tunables.faults,
        replicas: file.tunables.agreement.replicas(file.tunables.faults),
        groups: file.tunables.groups_max,
        rules: file.rules().clone(),
        postgres: PostgresConfig {
            socket_directory: database
                .map(|database| database.socket_directory.clone())
                .unwrap_or_default(),
            port: database.map_or(0, |database| database.port),
            database: file.tunables.database.clone(),
            superuser: SUPERUSER.to_owned(),
            major_version: 0,
        },
        signing_key: identity.signing_key().clone(),
        voter_keys: receiver::voters(file.tunables.faults)
            .filter_map(|id| file.machine(id))
            .filter_map(|machine| Some((machine.id, VerifyingKey::from_bytes(&machine.identity).ok()?)))
            .collect(),
        node_clients: node_clients(file)
            .map(|(client, machine)| (client, machine.id))
            .collect(),
        client_roles: file
            .clients
            .iter()
            .map(|client| (client.id, client.roles.clone()))
            .collect(),
        compare_effects: file.tunables.effects.compare,
        limits: limits(file),
        spool: SpoolDirectory::new(
            file.layout().machine_results(machine.id),
            file.tunables.limits.results_bytes_max,
        ),
        bodies,
    }
}
