//! Our core: f = 1, all four machines of MinBFT, one group.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use ordering::agreement::{Agreement, Now, Phase, To};
use ordering::configuration::{CHECKPOINT_ORDERS, Configuration, Faults};
use ordering::directory::{Directory, MachineEntry};
use ordering::identifiers::{ClientId, MachineId};
use ordering::message::Request;
use ordering::minbft::{Admission, Input, Machine, Message, Output, Recovery, verify_message};
use ordering::verified::Verified;
use trusted_counter::{SoftwareCounter, TrustedCounter};

use crate::authenticator::{Authenticator, CLIENTS, PAYLOAD_BYTES};

const MACHINES: u8 = 4;
/// Inputs that a machine takes at once at most.
const INPUTS_TOGETHER: usize = 256;
/// Requests that a client has outstanding at most.
const WINDOW: u64 = 512;
/// After so many orders the replicas agree on a checkpoint.
pub(crate) const ORDERS_PER_CHECKPOINT: u64 = CHECKPOINT_ORDERS;

/// All machines, and what is on the way between them.
pub(crate) struct Cluster {
    machines: Vec<Machine>,
    counters: Vec<SoftwareCounter>,
    directory: Directory,
    requests: Vec<Verified<Arc<Request>>>,
    inputs: VecDeque<(usize, Input)>,
    now_us: u64,
    delivered: u64,
}

impl Cluster {
    /// A cluster that is live, and this many requests for it.
    pub(crate) fn new(authenticator: Authenticator, batch: usize, orders: u64) -> Self {
        let client = SigningKey::from_bytes(&[1; 32]);
        let clients = (0..CLIENTS).map(|id| (client_id(id), client.verifying_key()));
        let counters: Vec<_> = (0..MACHINES).map(|id| authenticator.counter(id)).collect();
        let keys: Vec<_> = (0..MACHINES)
            .map(|id| SigningKey::from_bytes(&[id + 100; 32]))
            .collect();
        let entry = |((counter, key), id): ((&SoftwareCounter, &SigningKey), u8)| {
            let (key, counter) = (key.verifying_key(), counter.identity());
            (MachineId(id), MachineEntry { key, counter })
        };
        let directory = Directory {
            faults: Faults(1),
            groups: 1,
            machines: counters.iter().zip(&keys).zip(0..).map(entry).collect(),
            clients: clients.collect(),
            verifier: counters[0].verifier(counters.iter().map(|counter| counter.identity())),
        };
        let machine = |(id, key): (u8, SigningKey)| {
            let mut configuration = Configuration::new(MachineId(id), Faults(1), 1);
            configuration.batch_entries_max = batch;
            let (epoch, positions) = (1, vec![0; 2]);
            Machine::new(configuration, key, Admission { epoch, positions }, Recovery::new())
        };
        let mut cluster = Cluster {
            machines: (0..MACHINES).zip(keys).map(machine).collect(),
            counters,
            requests: (0..orders).map(|number| request(&client, &directory, number)).collect(),
            directory,
            inputs: VecDeque::new(),
            now_us: 0,
            delivered: 0,
        };
        (0..usize::from(MACHINES)).for_each(|id| cluster.inputs.push_back((id, Input::Timeout)));
        cluster.settle();
        let is_live = |machine: &Machine| machine.status().phase == Phase::Live;
        assert!(cluster.machines.iter().all(is_live), "the cluster starts");
        cluster
    }

    /// Orders all requests, so many of them on the way at once.
    pub(crate) fn run(&mut self, at_once: usize) {
        let requests = std::mem::take(&mut self.requests);
        for chunk in requests.chunks(at_once) {
            // The replicas have the bodies from the client before the primary orders them.
            for id in [1, 2, 3, 0] {
                let arriving = chunk.iter().map(|request| (id, Input::Request(request.clone())));
                self.inputs.extend(arriving);
            }
            self.settle();
        }
        assert_eq!(self.delivered, requests.len() as u64, "everything is ordered");
    }

    /// Takes what is there for a machine, as a node does.
    fn step(&mut self, id: usize, outputs: &mut Vec<Output>) {
        let inputs = std::iter::from_fn(|| Some(self.inputs.pop_front_if(|(to, _)| *to == id)?.1));
        self.now_us += 1;
        let now = Now {
            monotonic_us: self.now_us,
            wall_us: 1_700_000_000_000_000 + self.now_us,
        };
        self.machines[id].step_all(now, inputs.take(INPUTS_TOGETHER), outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Persist { sequence, .. } => self.inputs.push_back((id, Input::Persisted(sequence))),
                Output::Certify { slot, digest, ticket } => {
                    let warrant = self.counters[id].create_uw(slot, &digest).expect("a warrant");
                    self.inputs.push_back((id, Input::Certified { ticket, warrant }));
                }
                Output::Send { to, message } => self.send(id, to, &message),
                Output::Deliver(message) if id == 1 => self.delivered += message.entries.len() as u64,
                _ => {}
            }
        }
    }

    fn send(&mut self, from: usize, to: To, message: &Message) {
        let from = MachineId(u8::try_from(from).expect("few machines"));
        let is_meant = |target: &MachineId| match to {
            To::Machine(machine) => *target == machine,
            To::Others => true,
            To::Replicas => target.0 > 0,
        };
        let targets = (0..MACHINES).map(MachineId).filter(|target| *target != from);
        for target in targets.filter(is_meant) {
            // Each receiver verifies for itself.
            let message = verify_message(from, message.clone(), &self.directory).expect("a right message");
            self.inputs
                .push_back((usize::from(target.0), Input::Message { from, message }));
        }
    }

    fn settle(&mut self) {
        let mut outputs = Vec::new();
        while let Some((id, _)) = self.inputs.front() {
            self.step(*id, &mut outputs);
        }
    }
}

fn client_id(id: u64) -> ClientId {
    ClientId(u32::try_from(id).expect("few clients"))
}

fn request(client: &SigningKey, directory: &Directory, number: u64) -> Verified<Arc<Request>> {
    let mut request = Request {
        client: client_id(number % CLIENTS),
        number: number / CLIENTS,
        floor: (number / CLIENTS).saturating_sub(WINDOW),
        home: 1,
        operation: Bytes::from_static(&[7; PAYLOAD_BYTES]),
        signature: [0; 64],
    };
    request.signature = client.sign(&request.digest()).to_bytes();
    directory.verify_request(request).expect("a right signature")
}
