//! Orders per second of the agreement core in one thread: f = 1, all four machines, all cryptography of warrants
//! and messages included, no network, no disk. (Clients' signatures are verified beforehand.)
//!
//! `cargo run --release -p ordering --example core_throughput`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use ordering::agreement::{Agreement, Now, Phase, To};
use ordering::configuration::{Configuration, Faults};
use ordering::directory::{Directory, MachineEntry};
use ordering::identifiers::{ClientId, MachineId};
use ordering::message::Request;
use ordering::minbft::{Admission, Input, Machine, Message, Output, Recovery, verify_message};
use ordering::verified::Verified;
use trusted_counter::{CounterIdentity, SoftwareCounter, TrustedCounter};

const ORDERS: u64 = 40_000;
const MACHINES: u8 = 4;

struct World {
    machines: Vec<Machine>,
    counters: Vec<SoftwareCounter>,
    directory: Directory,
    inputs: VecDeque<(usize, Input)>,
    now_us: u64,
    delivered: u64,
}

fn counters(keyed: bool) -> Vec<SoftwareCounter> {
    let keyed_counter = |id| SoftwareCounter::volatile_keyed(CounterIdentity([id; 32]), [9; 32], 1);
    let signing_counter = |id| SoftwareCounter::volatile_ed25519([id + 1; 32], 1);
    (0..MACHINES)
        .map(|id| if keyed { keyed_counter(id) } else { signing_counter(id) })
        .collect()
}

impl World {
    fn new(keyed: bool, batch: usize, client: &SigningKey) -> Self {
        let counters = counters(keyed);
        let keys: Vec<_> = (0..MACHINES)
            .map(|id| SigningKey::from_bytes(&[id + 100; 32]))
            .collect();
        let entries = counters.iter().zip(&keys).zip(0..).map(|((counter, key), id)| {
            (
                MachineId(id),
                MachineEntry {
                    key: key.verifying_key(),
                    counter: counter.identity(),
                },
            )
        });
        let directory = Directory {
            faults: Faults(1),
            groups: 1,
            machines: entries.collect(),
            clients: [(ClientId(0), client.verifying_key())].into(),
            verifier: counters[0].verifier(counters.iter().map(|counter| counter.identity())),
        };
        let machine = |(id, key): (u8, SigningKey)| {
            let mut configuration = Configuration::new(MachineId(id), Faults(1), 1);
            configuration.batch_entries_max = batch;
            let counter = Admission {
                epoch: 1,
                positions: vec![0; 2],
            };
            Machine::new(configuration, key, counter, Recovery::new())
        };
        let machines = (0..MACHINES).zip(keys).map(machine).collect();
        World {
            machines,
            counters,
            directory,
            inputs: VecDeque::new(),
            now_us: 0,
            delivered: 0,
        }
    }

    fn step(&mut self, id: usize, input: Input) {
        self.now_us += 1;
        let now = Now {
            monotonic_us: self.now_us,
            wall_us: 1_700_000_000_000_000 + self.now_us,
        };
        let mut outputs = Vec::new();
        self.machines[id].step(now, input, &mut outputs);
        for output in outputs {
            match output {
                Output::Persist { sequence, .. } => self.inputs.push_back((id, Input::Persisted(sequence))),
                Output::Certify { slot, digest, ticket } => {
                    let warrant = self.counters[id].create_uw(slot, &digest).unwrap();
                    self.inputs.push_back((id, Input::Certified { ticket, warrant }));
                }
                Output::Send { to, message } => self.send(id, to, &message),
                Output::Deliver(message) if id == 1 => self.delivered += message.entries.len() as u64,
                _ => {}
            }
        }
    }

    fn send(&mut self, from: usize, to: To, message: &Message) {
        let from = MachineId(from as u8);
        let targets = (0..MACHINES).map(MachineId).filter(|target| match to {
            To::Machine(machine) => *target == machine,
            To::Others => true,
            To::Replicas => target.0 > 0,
        });
        for target in targets.filter(|target| *target != from) {
            // Each receiver verifies for itself.
            let message = verify_message(from, message.clone(), &self.directory).unwrap();
            self.inputs
                .push_back((usize::from(target.0), Input::Message { from, message }));
        }
    }

    fn settle(&mut self) {
        while let Some((id, input)) = self.inputs.pop_front() {
            self.step(id, input);
        }
    }
}

fn requests(client: &SigningKey, directory: &Directory) -> Vec<Verified<Request>> {
    let operation = Bytes::from(vec![7; 300]);
    let signed = |number: u64| {
        let mut request = Request {
            client: ClientId(0),
            number,
            floor: number.saturating_sub(2_000),
            home: 1,
            operation: operation.clone(),
            signature: [0; 64],
        };
        request.signature = client.sign(&request.digest()).to_bytes();
        directory.verify_request(request).unwrap()
    };
    (0..ORDERS).map(signed).collect()
}

fn main() {
    let client = SigningKey::from_bytes(&[1; 32]);
    let all = requests(&client, &World::new(true, 1, &client).directory);
    let all = Arc::new(all);
    println!(
        "{:10} {:>6} {:>14} {:>10}",
        "warrants", "batch", "orders/second", "us/order"
    );
    for keyed in [false, true] {
        for batch in [1, 16, 256] {
            let mut world = World::new(keyed, batch, &client);
            for id in 0..usize::from(MACHINES) {
                world.inputs.push_back((id, Input::Timeout));
            }
            world.settle();
            assert!(
                world
                    .machines
                    .iter()
                    .all(|machine| machine.status().phase == Phase::Live)
            );
            let count = if batch == 1 { ORDERS / 4 } else { ORDERS };
            let begin = Instant::now();
            for chunk in all[..count as usize].chunks(batch * 4) {
                // The replicas have the bodies from the client before the primary orders them.
                for id in [1, 2, 3, 0] {
                    for request in chunk {
                        world.inputs.push_back((id, Input::Request(request.clone())));
                    }
                }
                world.settle();
            }
            let seconds = begin.elapsed().as_secs_f64();
            assert_eq!(world.delivered, count);
            let name = if keyed { "BLAKE3" } else { "Ed25519" };
            println!(
                "{name:10} {batch:>6} {:>14.0} {:>10.2}",
                count as f64 / seconds,
                seconds * 1e6 / count as f64
            );
        }
    }
}
