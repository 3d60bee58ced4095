use std::path::Path;

use bytes::Bytes;
use ordering::identifiers::{administrator, node_client};
use ordering::message::Request;
use sql::footprint::Footprint;
use sql::operation::{Operation, SessionContext, Work};
use voter::VoterInput;

use super::*;
use crate::counter::Provisioner;
use crate::file::{CounterKind, Tunables, generate};

/// How long four nodes may take to connect, start and order.
const WITHIN: Duration = Duration::from_secs(60);

fn cluster(directory: &Path, agreement: Agreement) -> ClusterFile {
    let mut tunables = Tunables::default();
    tunables.agreement = agreement;
    let counters = Provisioner::new(CounterKind::Ed25519).unwrap();
    let counter = |directory: &Path| counters.provision(directory).map_err(|error| error.to_string());
    generate(directory, &tunables, counter).unwrap()
}

/// The no-op that a voter has its node order after its start.
fn nothing() -> Bytes {
    let operation = Operation {
        context: SessionContext::default(),
        footprint: Footprint::default(),
        nonce: [3; 16],
        work: Work::Nothing,
    };
    Bytes::from(borsh::to_vec(&operation).unwrap())
}

/// Runs the nodes of a cluster; a stand-in for m1's voter has something ordered. Gives the first request that m2's voter
/// would be handed.
async fn first_decision<H: Hosted>(agreement: Agreement) -> Arc<Request> {
    let directory = tempfile::tempdir().unwrap();
    let file = cluster(directory.path(), agreement);
    let mut nodes = tokio::task::JoinSet::new();
    let mut wanting = None;
    let (decisions, mut decided) = mpsc::channel(1024);
    for machine in &file.machines {
        let outputs = &mut wanting;
        let start_voter = |config: VoterConfig, sender| {
            if config.machine == MachineId(1) {
                *outputs = Some(sender);
            }
            None
        };
        let mut node = Node::<H>::assemble(&file, machine.id, start_voter).await.unwrap();
        if machine.id == MachineId(2) {
            node.owner.voter = Some(Arc::new(VoterQueue::new(machine.id, decisions.clone(), 4)));
        }
        nodes.spawn(node.run(std::future::pending()));
    }
    let order = VoterOutput::Order {
        operation: nothing(),
        home: 0,
    };
    let outputs = wanting.unwrap();
    outputs.send(order).await.unwrap();
    let request = tokio::time::timeout(WITHIN, async {
        loop {
            let input = decided.recv().await.unwrap();
            let entries = match input {
                VoterInput::CommitDb { message, .. } => message.entries,
                _ => Vec::new(),
            };
            if let Some(request) = entries.into_iter().find_map(|entry| entry.request) {
                return request;
            }
        }
    });
    request.await.unwrap()
}

fn check(request: &Request) {
    assert_eq!(request.client, node_client(MachineId(1)));
    assert_eq!(request.operation, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_voter_wants_ordered_is_ordered_by_minbft() {
    check(&*first_decision::<minbft::Machine>(Agreement::MinBft).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_voter_wants_ordered_is_ordered_by_pbft() {
    check(&*first_decision::<pbft::Machine>(Agreement::Pbft).await);
}

#[test]
fn the_machines_that_hold_voters_and_the_administrator_are_clients_and_no_others() {
    for (agreement, machines) in [(Agreement::MinBft, 4), (Agreement::Pbft, 4)] {
        let directory = tempfile::tempdir().unwrap();
        let file = cluster(directory.path(), agreement);
        let m1 = file.machine(MachineId(1)).unwrap();
        let counter = counter::open(&file, MachineId(1)).unwrap();
        let keys = super::directory(&file, counter.verifier).unwrap();
        let voters = [1, 2, 3].map(|index| node_client(MachineId(index)));
        assert_eq!(file.machines.len(), machines);
        assert!(voters.iter().all(|client| keys.clients.contains_key(client)));
        assert!(!keys.clients.contains_key(&node_client(MachineId(0))));
        let administrator = keys.clients[&administrator()].to_bytes();
        assert_eq!(Some(administrator), file.administrator);
        assert_eq!(keys.clients.len(), file.clients.len() + voters.len() + 1);
        assert_eq!(keys.clients[&voters[0]].to_bytes(), m1.identity);
        let identity = Identity::read(&file.layout().machine_identity(MachineId(1))).unwrap();
        let bodies = open_bodies(&file, MachineId(1)).unwrap();
        let config = voter_config(&file, m1, &identity, bodies);
        assert!(config.node_clients.keys().eq(&voters));
        assert!(
            !peers(&file, MachineId(0))
                .iter()
                .any(|address| voters.iter().any(|client| address.peer == Peer::Client(*client)))
        );
    }
}
