//! Three real voters, each with a PostgreSQL server of its own; only the agreement is replaced, by a counter.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ordering::identifiers::{ClientId, GroupId, MachineId, Order};
use ordering::message::{
    BodyName, ClientMessage, CommitDb, CommitDbEntry, Outcome, Request, StoreReceipt, StoredBody, body_digest,
};
use proxy::{ClusterPort, Destination, FromNode, MachineSet, ToNode};
use spool::SpoolDirectory;
use sql::operation::Operation;
use sql::rules::PartitionRules;
use tokio::sync::mpsc;
use voter::{BodyLimits, BodyStore, Voter, VoterConfig, VoterHandle, VoterInput, VoterLimits, VoterOutput, VoterState};

use super::cluster::machine_key;
use super::faults::{Faults, direct_kind};
use super::postgres::Postgres;

type Log = Arc<Mutex<Vec<CommitDbEntry>>>;

/// Starts the voters; gives the proxy's port.
pub async fn start(servers: &[Arc<Postgres>], rules: PartitionRules) -> (ClusterPort, Faults) {
    let (to, requests) = mpsc::channel(1024);
    let (results, from) = mpsc::channel(1024);
    let (own, owns) = mpsc::channel(64);
    let (faults, log) = (Faults::default(), Log::default());
    let mut handles = Vec::new();
    let directory = tempfile::tempdir().unwrap();
    let stores: Vec<_> = (1..=3).map(|machine| open_store(directory.path(), machine)).collect();
    for ((machine, server), store) in (1..).map(MachineId).zip(servers).zip(&stores) {
        let (outputs, received) = mpsc::channel(1024);
        let spool = faults.spool.clone();
        let handle = Voter::start(config(machine, server, rules.clone(), (spool, store.clone())), outputs);
        tokio::spawn(pump(
            machine,
            received,
            handle.input(),
            Arc::clone(&log),
            (results.clone(), own.clone()),
            faults.clone(),
            stores.clone(),
        ));
        handles.push(handle);
    }
    for handle in &handles {
        let mut state = handle.state();
        let serving = state.wait_for(|state| matches!(state, VoterState::Serving { .. }));
        let serving = tokio::time::timeout(Duration::from_secs(30), serving).await.is_ok();
        assert!(serving, "a voter does not start: {:?}", *handle.state().borrow());
    }
    // A voter takes what comes at first for a replay.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let keeping = Keeping {
        stores,
        results,
        _directory: directory,
    };
    tokio::spawn(sequence(requests, owns, handles, log, faults.clone(), keeping));
    (ClusterPort { to, from }, faults)
}

fn open_store(directory: &std::path::Path, machine: u8) -> BodyStore {
    let limits = BodyLimits {
        client_bytes_max: 1 << 30,
        transaction_bytes_max: 1 << 30,
    };
    let voters = (1..=3).map(MachineId);
    BodyStore::open(directory.join(machine.to_string()), limits, voters, 1).unwrap()
}

/// The machines' stores of bodies.
struct Keeping {
    stores: Vec<BodyStore>,
    results: mpsc::Sender<(MachineId, FromNode)>,
    _directory: tempfile::TempDir,
}

impl Keeping {
    async fn keep(&self, stored: StoredBody, machines: MachineSet, faults: &Faults) {
        let name = BodyName {
            client: ClientId(0),
            session: stored.session,
            number: stored.number,
            digest: body_digest(&stored.body),
        };
        for (machine, store) in (1..).map(MachineId).zip(&self.stores) {
            if !machines.contains(machine) || faults.is_mute(machine) {
                continue;
            }
            let (results, runtime) = (self.results.clone(), tokio::runtime::Handle::current());
            let done = move |kept| {
                let receipt = FromNode::Receipt(StoreReceipt { name, kept });
                runtime.spawn(async move { results.send((machine, receipt)).await });
            };
            store.store(name, stored.body.clone(), done).await;
        }
    }
}

fn config(
    machine: MachineId,
    server: &Postgres,
    rules: PartitionRules,
    (spool, bodies): (SpoolDirectory, BodyStore),
) -> VoterConfig {
    VoterConfig {
        machine,
        faults: 1,
        replicas: 1..4,
        groups: 1,
        rules,
        postgres: server.config(),
        signing_key: machine_key(machine),
        voter_keys: (1..=3)
            .map(|id| (MachineId(id), machine_key(MachineId(id)).verifying_key()))
            .collect(),
        node_clients: (1..=3).map(|id| (node_client(MachineId(id)), MachineId(id))).collect(),
        client_roles: BTreeMap::from([(ClientId(0), BTreeSet::from(["postgres".into(), "application".into()]))]),
        compare_effects: false,
        limits: VoterLimits {
            transactions_max: 20,
            one_shot_backends: 4,
            read_backends: 3,
            ..VoterLimits::default()
        },
        spool,
        bodies,
    }
}

/// The client under which a machine orders what its voter wants.
fn node_client(machine: MachineId) -> ClientId {
    ClientId(100 + u32::from(machine.0))
}

/// What a voter wants to be ordered: the encoded operation, and its home's number.
type Own = (MachineId, bytes::Bytes, u64);

async fn pump(
    machine: MachineId,
    mut outputs: mpsc::Receiver<VoterOutput>,
    input: mpsc::Sender<VoterInput>,
    log: Log,
    (results, own): (mpsc::Sender<(MachineId, FromNode)>, mpsc::Sender<Own>),
    faults: Faults,
    stores: Vec<BodyStore>,
) {
    while let Some(output) = outputs.recv().await {
        if std::env::var_os("VOTERS_TRACE").is_some() {
            eprintln!("{machine} {output:?}");
        }
        match output {
            VoterOutput::Result { mut message, .. } if !faults.is_mute(machine) => {
                if let Outcome::Chunk {
                    index,
                    bytes: Some(bytes),
                } = &mut message.outcome
                {
                    let forged = faults.is_forger(machine);
                    faults.see(if forged { "forged chunk" } else { "chunk" });
                    if forged && *index > 1 {
                        let mut lie = bytes.to_vec();
                        *lie.last_mut().unwrap() ^= 1;
                        *bytes = lie.into();
                    }
                }
                let _ = results.send((machine, FromNode::Result(message))).await;
            }
            VoterOutput::Notifications { mut message, .. } if !faults.is_mute(machine) => {
                if faults.is_forger(machine) {
                    for notification in &mut message.notifications {
                        notification.payload.push_str(" forged");
                    }
                }
                let _ = results.send((machine, FromNode::Notifications(message))).await;
            }
            VoterOutput::Reply(reply) => {
                stores.iter().for_each(|store| store.flushed(machine, reply.flushed.0));
            }
            VoterOutput::FetchBody { from, name } if !faults.is_mute(from) => {
                faults.see("fetch body");
                if let Some(body) = stores[usize::from(from.0) - 1].read(name).await {
                    stores[usize::from(machine.0) - 1].fetched(name, body);
                }
            }
            VoterOutput::Order { operation, home } => {
                let _ = own.send((machine, operation, home)).await;
            }
            VoterOutput::Fetch { from } => {
                let entries = log.lock().unwrap().clone();
                let input = input.clone();
                tokio::spawn(async move {
                    for entry in entries.into_iter().filter(|entry| entry.order >= from) {
                        commit_db(&input, entry).await;
                    }
                });
            }
            _ => {}
        }
    }
}

async fn commit_db(input: &mpsc::Sender<VoterInput>, entry: CommitDbEntry) {
    for from in [1, 2].map(MachineId) {
        let message = CommitDb {
            group: GroupId(0),
            entries: vec![entry.clone()],
        };
        let _ = input.send(VoterInput::CommitDb { from, message }).await;
    }
}

/// Orders what comes, one after the other.
struct Sequencer {
    inputs: Vec<mpsc::Sender<VoterInput>>,
    log: Log,
    time_us: u64,
    numbers: u64,
}

impl Sequencer {
    async fn order(&mut self, request: Request) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        self.time_us = now.max(self.time_us + 1);
        let order = Order(self.log.lock().unwrap().len() as u64 + 1);
        let entry = CommitDbEntry {
            order,
            time_us: self.time_us,
            digest: request.digest(),
            request: Some(Arc::new(request)),
        };
        self.log.lock().unwrap().push(entry.clone());
        for input in &self.inputs {
            commit_db(input, entry.clone()).await;
        }
    }

    async fn order_own(&mut self, (machine, operation, home): Own) {
        self.numbers += 1;
        let request = Request {
            client: node_client(machine),
            number: self.numbers,
            floor: self.numbers,
            home,
            operation,
            signature: [0; 64],
        };
        self.order(request).await;
    }

    async fn tell(&self, machines: MachineSet, input: VoterInput) {
        for (machine, voter) in (1..).map(MachineId).zip(&self.inputs) {
            if machines.contains(machine) {
                let _ = voter.send(input.clone()).await;
            }
        }
    }
}

async fn sequence(
    mut requests: mpsc::Receiver<(Destination, ToNode)>,
    mut owns: mpsc::Receiver<Own>,
    voters: Vec<VoterHandle>,
    log: Log,
    faults: Faults,
    keeping: Keeping,
) {
    let client = ClientId(0);
    let mut sequencer = Sequencer {
        inputs: voters.iter().map(VoterHandle::input).collect(),
        log,
        time_us: 0,
        numbers: 0,
    };
    let mut done = HashSet::new();
    let mut asked = HashSet::new();
    loop {
        let (destination, message) = tokio::select! {
            Some(own) = owns.recv() => {
                sequencer.order_own(own).await;
                continue;
            }
            request = requests.recv() => match request {
                Some(request) => request,
                None => return,
            },
        };
        match (message, destination) {
            (ToNode::Request(request), _) => {
                if !done.insert(request.number) {
                    // A voter answers again what it is asked again.
                    continue;
                }
                let operation: Operation = borsh::from_slice(&request.operation).unwrap();
                faults.see_ordered(&operation.work);
                sequencer.order(request).await;
            }
            (ToNode::Client(ClientMessage::Direct(direct)), Destination::Machines(machines)) => {
                if asked.insert(direct.number) {
                    faults.see(direct_kind(&direct));
                }
                sequencer.tell(machines, VoterInput::Direct { client, direct }).await;
            }
            (ToNode::Client(ClientMessage::GiveUp(key)), Destination::Machines(machines)) => {
                sequencer.tell(machines, VoterInput::GiveUp { client, key }).await;
            }
            (ToNode::Client(ClientMessage::Recall(key)), Destination::Machines(machines)) => {
                sequencer.tell(machines, VoterInput::Recall { client, key }).await;
            }
            (ToNode::Client(ClientMessage::RecallChunk { key, index }), Destination::Machines(machines)) => {
                let recall = VoterInput::RecallChunk { client, key, index };
                sequencer.tell(machines, recall).await;
            }
            (ToNode::Client(ClientMessage::Release(key)), Destination::Machines(machines)) => {
                sequencer.tell(machines, VoterInput::Release { client, key }).await;
            }
            (ToNode::Client(ClientMessage::Store(stored)), Destination::Machines(machines)) => {
                faults.see("store");
                keeping.keep(stored, machines, &faults).await;
            }
            (ToNode::Client(ClientMessage::KeepAlive), Destination::Machines(machines)) => {
                sequencer.tell(machines, VoterInput::KeepAlive(client)).await;
            }
            (ToNode::Client(_), Destination::All) => panic!("direct to all"),
        }
    }
}
