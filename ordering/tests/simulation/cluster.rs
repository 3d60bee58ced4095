//! A cluster of production machines, its network, clocks, logs and counters, all driven by one seed.

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use ordering::agreement::{Agreement, MisbehaviourKind};
use ordering::configuration::{Configuration, Faults};
use ordering::directory::{Directory, MachineEntry};
use ordering::identifiers::{ClientId, Digest, GroupId, MachineId, Order};
use ordering::message::Request;
use ordering::minbft::{Admission, Machine, Message, Prepare, Recovery};
use ordering::verified::{Rejection, Verified};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use trusted_counter::{CounterIdentity, SoftwareCounter, TrustedCounter};

pub(crate) const SHARED_KEY: [u8; 32] = [42; 32];
pub(crate) const CLIENTS: u32 = 2;
pub(crate) const START_WALL_US: u64 = 1_700_000_000_000_000;

/// What the network does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) delay_max_us: u64,
}

pub(crate) const CALM: Weather = Weather {
    loss: 0.0,
    duplication: 0.0,
    delay_max_us: 300,
};

pub(crate) enum Event {
    Arrive {
        from: MachineId,
        bytes: Arc<Vec<u8>>,
    },
    Request {
        index: usize,
    },
    Certified {
        ticket: u64,
        warrant: trusted_counter::UniqueWarrant,
    },
    Synced {
        sequence: u64,
    },
    Timer,
}

pub(crate) struct Scheduled {
    pub(crate) machine: MachineId,
    /// The life of the machine that the event belongs to; none: whatever life it has.
    pub(crate) life: Option<u64>,
    pub(crate) event: Event,
}

/// What a machine leaves behind when it dies.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) log: Vec<Vec<u8>>,
    /// Written, not synced.
    pub(crate) buffer: Vec<(u64, Vec<u8>)>,
    pub(crate) epoch: u64,
}

pub(crate) struct Node {
    pub(crate) machine: Option<Machine>,
    pub(crate) counter: SoftwareCounter,
    pub(crate) disk: Disk,
    pub(crate) life: u64,
    pub(crate) sync_scheduled: bool,
    /// Everything that this machine has delivered in this life.
    pub(crate) delivered: BTreeMap<Order, Digest>,
}

pub(crate) struct Submitted {
    pub(crate) verified: Verified<Arc<Request>>,
    pub(crate) next_us: u64,
}

/// What any machine has ever delivered at an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) group: GroupId,
    pub(crate) time_us: u64,
    pub(crate) digest: Digest,
}

pub(crate) struct Cluster {
    pub(crate) faults: Faults,
    pub(crate) groups: u16,
    pub(crate) now_us: u64,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) directory: Directory,
    pub(crate) keys: Vec<SigningKey>,
    pub(crate) client_keys: Vec<SigningKey>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) events: BinaryHeap<Reverse<(u64, u64)>>,
    pub(crate) scheduled: BTreeMap<u64, Scheduled>,
    pub(crate) next_event: u64,
    pub(crate) weather: Weather,
    /// Links that carry nothing.
    pub(crate) cut: BTreeSet<(MachineId, MachineId)>,
    pub(crate) submitted: Vec<Submitted>,
    /// Indices of requests that are not decided anywhere.
    pub(crate) unfinished: Vec<usize>,
    pub(crate) done: BTreeSet<Digest>,
    pub(crate) retransmit_us: u64,
    pub(crate) next_numbers: Vec<u64>,
    pub(crate) decided: BTreeMap<Order, Decided>,
    pub(crate) reports: Vec<(MachineId, MisbehaviourKind)>,
    /// Messages that were not accepted: there must be none, since only correct machines send here.
    pub(crate) rejected: Vec<(MachineId, Rejection)>,
    /// A primary that gives requests to wrong groups, its counter, and what it has said.
    pub(crate) misplacing: Option<(MachineId, SoftwareCounter, BTreeMap<u64, Prepare>)>,
    pub(crate) orders_twice: bool,
    pub(crate) tune: fn(&mut Configuration),
    /// Messages that this machine's link drops.
    pub(crate) filter: fn(MachineId, MachineId, &Message) -> bool,
    pub(crate) sent: u64,
    /// Machines that clients do not reach.
    pub(crate) deaf: BTreeSet<MachineId>,
    /// A crash loses everything that was not synced.
    pub(crate) lose_unsynced: bool,
    pub(crate) injected: u64,
    /// The largest message that was sent, in bytes, and how many NEW-VIEWs were.
    pub(crate) largest: usize,
    pub(crate) new_views: u64,
}

impl Cluster {
    pub(crate) fn new(seed: u64, faults: u8, groups: u16) -> Self {
        Self::tuned(seed, faults, groups, |_| {})
    }

    pub(crate) fn tuned(seed: u64, faults: u8, groups: u16, tune: fn(&mut Configuration)) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut key = || {
            let mut bytes = [0; 32];
            rng.fill_bytes(&mut bytes);
            SigningKey::from_bytes(&bytes)
        };
        let count = 2 * faults + 2;
        let keys: Vec<_> = (0..count).map(|_| key()).collect();
        let client_keys: Vec<_> = (0..CLIENTS).map(|_| key()).collect();
        let identity = |machine: u8| CounterIdentity([machine; 32]);
        let counter = |machine: u8, epoch| SoftwareCounter::volatile_keyed(identity(machine), SHARED_KEY, epoch);
        let entry = |machine: u8| MachineEntry {
            key: keys[usize::from(machine)].verifying_key(),
            counter: identity(machine),
        };
        let directory = Directory {
            faults: Faults(faults),
            groups,
            machines: (0..count).map(|machine| (MachineId(machine), entry(machine))).collect(),
            clients: client_keys
                .iter()
                .zip(0..)
                .map(|(key, id)| (ClientId(id), key.verifying_key()))
                .collect(),
            verifier: counter(0, 0).verifier((0..count).map(identity)),
        };
        let node = |machine| Node {
            machine: None,
            counter: counter(machine, 0),
            disk: Disk::default(),
            life: 0,
            sync_scheduled: false,
            delivered: BTreeMap::new(),
        };
        let mut cluster = Cluster {
            faults: Faults(faults),
            groups,
            now_us: 1_000,
            rng,
            directory,
            keys,
            client_keys,
            nodes: (0..count).map(node).collect(),
            events: BinaryHeap::new(),
            scheduled: BTreeMap::new(),
            next_event: 0,
            weather: CALM,
            cut: BTreeSet::new(),
            submitted: Vec::new(),
            unfinished: Vec::new(),
            done: BTreeSet::new(),
            retransmit_us: 0,
            next_numbers: vec![0; CLIENTS as usize],
            decided: BTreeMap::new(),
            reports: Vec::new(),
            rejected: Vec::new(),
            misplacing: None,
            orders_twice: false,
            tune,
            filter: |_, _, _| true,
            sent: 0,
            deaf: BTreeSet::new(),
            lose_unsynced: false,
            injected: 0,
            largest: 0,
            new_views: 0,
        };
        cluster.start_all();
        cluster
    }

    pub(crate) fn machines(&self) -> impl Iterator<Item = MachineId> + use<> {
        (0..self.nodes.len() as u8).map(MachineId)
    }

    pub(crate) fn replicas(&self) -> impl Iterator<Item = MachineId> + use<> {
        self.machines().skip(1)
    }

    pub(crate) fn machine(&self, id: MachineId) -> &Machine {
        self.nodes[usize::from(id.0)].machine.as_ref().unwrap()
    }

    pub(crate) fn is_up(&self, id: MachineId) -> bool {
        self.nodes[usize::from(id.0)].machine.is_some()
    }

    /// Starts every machine that is down.
    pub(crate) fn start_all(&mut self) {
        for id in self.machines() {
            if !self.is_up(id) {
                self.start(id);
            }
        }
    }

    /// Starts a machine from its log, with a counter in a new epoch.
    pub(crate) fn start(&mut self, id: MachineId) {
        let mut configuration = Configuration::new(id, self.faults, self.groups);
        configuration.batch_entries_max = 8;
        (self.tune)(&mut configuration);
        #[cfg(feature = "mutants")]
        if let Ok(name) = std::env::var("MUTANT") {
            configuration.mutant = ordering::configuration::Mutant::from_name(&name);
            assert!(configuration.mutant.is_some(), "no mutant {name}");
        }
        let groups = self.groups;
        let node = &mut self.nodes[usize::from(id.0)];
        node.disk.epoch += 1;
        node.life += 1;
        node.sync_scheduled = false;
        node.delivered.clear();
        node.counter = SoftwareCounter::volatile_keyed(node.counter.identity(), SHARED_KEY, node.disk.epoch);
        let mut recovery = Recovery::new();
        for record in &node.disk.log {
            recovery.push(borsh::from_slice(record).unwrap());
        }
        let counter = Admission {
            epoch: node.disk.epoch,
            positions: vec![0; usize::from(groups) + 1],
        };
        let key = self.keys[usize::from(id.0)].clone();
        node.machine = Some(Machine::new(configuration, key, counter, recovery));
        self.schedule_timer(id);
    }

    /// Kills a machine: what it had not synced may survive in part.
    pub(crate) fn crash(&mut self, id: MachineId) {
        let survives = !self.lose_unsynced;
        let survivors = self
            .rng
            .random_range(0..=self.nodes[usize::from(id.0)].disk.buffer.len());
        let node = &mut self.nodes[usize::from(id.0)];
        let buffer = std::mem::take(&mut node.disk.buffer);
        node.disk.log.extend(
            buffer
                .into_iter()
                .take(survivors)
                .filter(|_| survives)
                .map(|(_, record)| record),
        );
        node.machine = None;
    }

    pub(crate) fn crash_all(&mut self) {
        for id in self.machines() {
            if self.is_up(id) {
                self.crash(id);
            }
        }
    }

    pub(crate) fn isolate(&mut self, id: MachineId) {
        for other in self.machines() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.weather = CALM;
        self.filter = |_, _, _| true;
    }

    /// A client signs a request and begins to send it to all machines.
    pub(crate) fn submit(&mut self) -> Digest {
        let client = self.rng.random_range(0..CLIENTS);
        let number = self.next_numbers[client as usize];
        self.next_numbers[client as usize] += 1;
        let mut operation = vec![0; self.rng.random_range(1..200)];
        self.rng.fill_bytes(&mut operation);
        let mut request = Request {
            client: ClientId(client),
            number,
            floor: number.saturating_sub(1000),
            home: self.rng.random_range(0..1000),
            operation: Bytes::from(operation),
            signature: [0; 64],
        };
        request.signature = self.client_keys[client as usize].sign(&request.digest()).to_bytes();
        let verified = self.directory.verify_request(request).unwrap();
        let digest = *verified.digest();
        self.submitted.push(Submitted {
            verified,
            next_us: self.now_us,
        });
        self.unfinished.push(self.submitted.len() - 1);
        self.retransmit_us = 0;
        digest
    }

    /// Sends a request to one machine only.
    pub(crate) fn send_request(&mut self, index: usize, to: MachineId) {
        self.schedule(self.now_us + 1, to, None, Event::Request { index });
    }

    /// Sends the last request to all machines, deaf ones too.
    pub(crate) fn send_last_request_to_all(&mut self) {
        let last = self.submitted.len() - 1;
        self.machines().for_each(|to| self.send_request(last, to));
    }

    pub(crate) fn retransmit_requests(&mut self) {
        if self.retransmit_us > self.now_us {
            return;
        }
        let (submitted, done) = (&self.submitted, &self.done);
        self.unfinished
            .retain(|index| !done.contains(submitted[*index].verified.digest()));
        self.retransmit_us = self.now_us + 20_000;
        for index in self.unfinished.clone() {
            if self.submitted[index].next_us > self.now_us {
                continue;
            }
            self.submitted[index].next_us = self.now_us + 200_000;
            for to in self.machines() {
                let is_reached = !self.deaf.contains(&to) && !self.cut.contains(&(to, to));
                if is_reached && !self.rng.random_bool(self.weather.loss) {
                    let at_us = self.now_us + self.rng.random_range(1..=self.weather.delay_max_us);
                    self.schedule(at_us, to, None, Event::Request { index });
                }
            }
        }
    }

    pub(crate) fn schedule(&mut self, at_us: u64, machine: MachineId, life: Option<u64>, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((at_us, self.next_event)));
        self.scheduled
            .insert(self.next_event, Scheduled { machine, life, event });
    }

    pub(crate) fn schedule_timer(&mut self, id: MachineId) {
        let node = &self.nodes[usize::from(id.0)];
        let (life, deadline) = (node.life, node.machine.as_ref().and_then(|machine| machine.deadline()));
        if let Some(deadline) = deadline {
            self.schedule(deadline.max(self.now_us), id, Some(life), Event::Timer);
        }
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, duration_us: u64) {
        let end_us = self.now_us + duration_us;
        loop {
            self.retransmit_requests();
            let Some(Reverse((at_us, number))) = self.events.peek().copied() else {
                break;
            };
            if at_us > end_us {
                break;
            }
            self.events.pop();
            self.now_us = self.now_us.max(at_us);
            let scheduled = self.scheduled.remove(&number).unwrap();
            self.happen(scheduled);
        }
        self.now_us = end_us;
    }

    /// Lets time pass until the condition holds; false when it does not in time.
    pub(crate) fn run_until(&mut self, limit_us: u64, condition: impl Fn(&Self) -> bool) -> bool {
        let end_us = self.now_us + limit_us;
        while self.now_us < end_us {
            if condition(self) {
                return true;
            }
            self.run(5_000);
        }
        condition(self)
    }
}
