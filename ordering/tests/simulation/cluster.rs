//! A cluster of production machines, its network, clocks, logs and counters, all driven by one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use ordering::agreement::{Agreement, MisbehaviourKind, Now, Phase, To};
use ordering::configuration::{Configuration, Faults, group_of, replica_slot};
use ordering::directory::{Directory, MachineEntry};
use ordering::identifiers::{ClientId, Digest, GroupId, MachineId, Order, View};
use ordering::ledger::client_table::ClientTable;
use ordering::ledger::{LogAnswer, LogIndex, PrepareEntry};
use ordering::message::{CommitDb, Request};
use ordering::minbft::{
    Admission, Commit, Endorsement, Hello, Input, LogReader, Machine, Message, Output, Prepare, Record, Recovery,
    ViewAcknowledgement, verify_message,
};
use ordering::verified::{Rejection, Verified};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trusted_counter::{CounterIdentity, SoftwareCounter, TrustedCounter};

const SHARED_KEY: [u8; 32] = [42; 32];
const CLIENTS: u32 = 2;
const START_WALL_US: u64 = 1_700_000_000_000_000;

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

enum Event {
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

struct Scheduled {
    machine: MachineId,
    /// The life of the machine that the event belongs to; none: whatever life it has.
    life: Option<u64>,
    event: Event,
}

/// What a machine leaves behind when it dies.
#[derive(Default)]
struct Disk {
    log: Vec<Vec<u8>>,
    /// Written, not synced.
    buffer: Vec<(u64, Vec<u8>)>,
    epoch: u64,
}

struct Node {
    machine: Option<Machine>,
    counter: SoftwareCounter,
    disk: Disk,
    life: u64,
    sync_scheduled: bool,
    /// Everything that this machine has delivered in this life.
    delivered: BTreeMap<Order, Digest>,
}

struct Submitted {
    verified: Verified<Arc<Request>>,
    next_us: u64,
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
    rng: ChaCha8Rng,
    directory: Directory,
    keys: Vec<SigningKey>,
    client_keys: Vec<SigningKey>,
    nodes: Vec<Node>,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    scheduled: BTreeMap<u64, Scheduled>,
    next_event: u64,
    pub(crate) weather: Weather,
    /// Links that carry nothing.
    pub(crate) cut: BTreeSet<(MachineId, MachineId)>,
    submitted: Vec<Submitted>,
    /// Indices of requests that are not decided anywhere.
    unfinished: Vec<usize>,
    done: BTreeSet<Digest>,
    retransmit_us: u64,
    next_numbers: Vec<u64>,
    pub(crate) decided: BTreeMap<Order, Decided>,
    pub(crate) reports: Vec<(MachineId, MisbehaviourKind)>,
    /// Messages that were not accepted: there must be none, since only correct machines send here.
    rejected: Vec<(MachineId, Rejection)>,
    /// A primary that gives requests to wrong groups, its counter, and what it has said.
    misplacing: Option<(MachineId, SoftwareCounter, BTreeMap<u64, Prepare>)>,
    orders_twice: bool,
    tune: fn(&mut Configuration),
    /// Messages that this machine's link drops.
    pub(crate) filter: fn(MachineId, MachineId, &Message) -> bool,
    pub(crate) sent: u64,
    /// Machines that clients do not reach.
    pub(crate) deaf: BTreeSet<MachineId>,
    /// A crash loses everything that was not synced.
    pub(crate) lose_unsynced: bool,
    injected: u64,
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

    /// Uses up a value of a machine's counter.
    pub(crate) fn spend_warrant(&mut self, id: MachineId, slot: u32) {
        self.nodes[usize::from(id.0)].counter.create_uw(slot, &[1; 32]).unwrap();
    }

    /// Gives `to` a COMMIT that `from`'s counter has certified in another epoch.
    pub(crate) fn inject_commit(&mut self, from: MachineId, to: MachineId, commit: &Commit, epoch: u64) {
        let identity = self.nodes[usize::from(from.0)].counter.identity();
        let mut counter = SoftwareCounter::volatile_keyed(identity, SHARED_KEY, epoch);
        let digest = Commit::digest(commit.view, commit.group, &commit.batches);
        let mut commit = commit.clone();
        while commit.warrant.epoch != epoch || commit.warrant.value < self.injected + 1 {
            commit.warrant = counter.create_uw(commit.warrant.slot, &digest).unwrap();
        }
        self.injected += 1;
        let message = verify_message(from, Message::Commit(Arc::new(commit)), &self.directory).unwrap();
        self.step(to, Input::Message { from, message });
    }

    /// `to` hears a HELLO of `from` with a counter of this epoch.
    pub(crate) fn inject_hello(&mut self, from: MachineId, to: MachineId, epoch: u64, view: Option<View>) {
        let mut hello = Hello {
            machine: from,
            admission: Admission {
                epoch,
                positions: vec![0; usize::from(self.groups) + 1],
            },
            view,
            stable: None,
            signature: [0; 64],
        };
        hello.signature = self.keys[usize::from(from.0)].sign(&hello.digest()).to_bytes();
        self.inject(from, to, Message::Hello(Arc::new(hello)));
    }

    /// `to` hears that `from` acknowledges a view that never was.
    pub(crate) fn inject_acknowledgement(&mut self, from: MachineId, to: MachineId, view: View) {
        let (slot, outcome) = (replica_slot(GroupId(0)), [7; 32]);
        let counter = &mut self.nodes[usize::from(from.0)].counter;
        let endorsed = counter.create_uw(slot, &Endorsement::digest(view, &outcome)).unwrap();
        let acknowledged = counter
            .create_uw(slot, &ViewAcknowledgement::digest(view, &outcome))
            .unwrap();
        let acknowledgement = ViewAcknowledgement {
            machine: from,
            view,
            outcome,
            endorsed,
            acknowledged,
        };
        self.inject(from, to, Message::AcknowledgeView(Arc::new(acknowledgement)));
    }

    fn inject(&mut self, from: MachineId, to: MachineId, message: Message) {
        let message = verify_message(from, message, &self.directory).unwrap();
        self.step(to, Input::Message { from, message });
    }

    /// The primary orders the first request for both groups in one batch: for the one in charge, and for the other.
    pub(crate) fn order_twice(&mut self, primary: MachineId) {
        self.misplace_requests(primary);
        self.orders_twice = true;
    }

    /// This primary, which has ordered nothing yet, gives every request to a wrong group from now on.
    pub(crate) fn misplace_requests(&mut self, primary: MachineId) {
        let node = &self.nodes[usize::from(primary.0)];
        let counter = SoftwareCounter::volatile_keyed(node.counter.identity(), SHARED_KEY, node.disk.epoch);
        self.misplacing = Some((primary, counter, BTreeMap::new()));
    }

    /// What is sent instead of a PREPARE.
    fn misplaced(&mut self, from: MachineId, message: &Message) -> Option<Message> {
        let Message::Prepare(prepare) = message else {
            return None;
        };
        let (groups, twice) = (self.groups, self.orders_twice);
        let (_, counter, said) = self.misplacing.as_mut().filter(|(liar, ..)| *liar == from)?;
        let lie = said.entry(prepare.warrant.value).or_insert_with(|| {
            let mut lie = prepare.as_ref().clone();
            let other = |entry: &PrepareEntry| PrepareEntry {
                group: GroupId((entry.group.0 + 1) % groups),
                digest: entry.digest,
            };
            let misplaced: Vec<_> = lie.entries.iter().map(other).collect();
            if twice {
                lie.entries.extend(misplaced);
            } else {
                lie.entries = misplaced;
            }
            let digest = Prepare::digest(lie.view, lie.first, lie.time_us, &lie.entries);
            lie.warrant = counter.create_uw(lie.warrant.slot, &digest).unwrap();
            assert_eq!(lie.warrant.value, prepare.warrant.value);
            lie
        });
        Some(Message::Prepare(Arc::new(lie.clone())))
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

    fn retransmit_requests(&mut self) {
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

    fn schedule(&mut self, at_us: u64, machine: MachineId, life: Option<u64>, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((at_us, self.next_event)));
        self.scheduled
            .insert(self.next_event, Scheduled { machine, life, event });
    }

    fn schedule_timer(&mut self, id: MachineId) {
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

    fn happen(&mut self, scheduled: Scheduled) {
        let id = scheduled.machine;
        let node = &mut self.nodes[usize::from(id.0)];
        if node.machine.is_none() || scheduled.life.is_some_and(|life| life != node.life) {
            return;
        }
        let input = match scheduled.event {
            Event::Arrive { from, bytes } => {
                let message: Message = borsh::from_slice(&bytes).unwrap();
                match verify_message(from, message, &self.directory) {
                    Ok(message) => Input::Message { from, message },
                    Err(rejection) => {
                        self.rejected.push((from, rejection));
                        return;
                    }
                }
            }
            Event::Request { index } => Input::Request(self.submitted[index].verified.clone()),
            Event::Certified { ticket, warrant } => Input::Certified { ticket, warrant },
            Event::Synced { sequence } => {
                node.sync_scheduled = false;
                let records = std::mem::take(&mut node.disk.buffer);
                let (synced, rest): (Vec<_>, Vec<_>) =
                    records.into_iter().partition(|(written, _)| *written <= sequence);
                node.disk.log.extend(synced.into_iter().map(|(_, record)| record));
                node.disk.buffer = rest;
                if let Some((last, _)) = node.disk.buffer.last() {
                    let last = *last;
                    self.schedule_sync(id, last);
                }
                Input::Persisted(sequence)
            }
            Event::Timer => Input::Timeout,
        };
        self.step(id, input);
    }

    fn schedule_sync(&mut self, id: MachineId, sequence: u64) {
        let at_us = self.now_us + self.rng.random_range(200..2_000);
        let node = &mut self.nodes[usize::from(id.0)];
        node.sync_scheduled = true;
        let life = node.life;
        self.schedule(at_us, id, Some(life), Event::Synced { sequence });
    }

    pub(crate) fn step(&mut self, id: MachineId, input: Input) -> Vec<CommitDb> {
        let now = Now {
            monotonic_us: self.now_us,
            wall_us: START_WALL_US + self.now_us,
        };
        let mut outputs = Vec::new();
        let machine = self.nodes[usize::from(id.0)].machine.as_mut().unwrap();
        let before = machine.deadline();
        let is_timeout = matches!(input, Input::Timeout);
        machine.step(now, input, &mut outputs);
        machine.check_invariants();
        let deadline = machine.deadline();
        assert!(
            deadline.is_none_or(|deadline| deadline > self.now_us),
            "a step must move its deadline on: m{id}"
        );
        let mut answers = Vec::new();
        for output in outputs {
            self.carry_out(id, output, &mut answers);
        }
        if is_timeout || deadline < before || before.is_none() {
            self.schedule_timer(id);
        }
        answers
    }

    fn carry_out(&mut self, id: MachineId, output: Output, answers: &mut Vec<CommitDb>) {
        let life = self.nodes[usize::from(id.0)].life;
        match output {
            Output::Persist { sequence, record } => {
                let node = &mut self.nodes[usize::from(id.0)];
                node.disk.buffer.push((sequence, borsh::to_vec(&record).unwrap()));
                if !node.sync_scheduled {
                    self.schedule_sync(id, sequence);
                }
            }
            Output::Certify { slot, digest, ticket } => {
                let node = &mut self.nodes[usize::from(id.0)];
                let warrant = node.counter.create_uw(slot, &digest).unwrap();
                // The counter answers in order.
                self.schedule(self.now_us + 30, id, Some(life), Event::Certified { ticket, warrant });
            }
            Output::Send { to, message } => self.send(id, to, &message),
            Output::Deliver(message) => self.delivered(id, &message),
            Output::Answer { message, .. } => answers.push(message),
            Output::ReadLog { reader } => match self.read_log(id, reader) {
                LogAnswer::Voter { messages, .. } => answers.extend(messages),
                LogAnswer::Peer { to, message } => self.send(id, To::Machine(to), &message),
            },
            // Only m0's may: `tests/simulator` cuts the others.
            Output::CutLog { .. } => assert_eq!(id, MachineId(0)),
            Output::LogBegins { .. } => panic!("these histories are too short to be cut"),
            Output::Report(misbehaviour) => self.reports.push((misbehaviour.machine, misbehaviour.kind)),
        }
    }

    /// As the shell does it: through the index, until the reader is full.
    fn read_log(&self, id: MachineId, mut reader: LogReader) -> LogAnswer<Message> {
        let log = &self.nodes[usize::from(id.0)].disk.log;
        let (mut index, mut offset) = (LogIndex::default(), 0);
        let mut offsets = Vec::new();
        for bytes in log {
            let record: Record = borsh::from_slice(bytes).unwrap();
            index.add(offset, &record);
            offsets.push(offset);
            offset += bytes.len() as u64;
        }
        let begin = index.offset(reader.from());
        for (bytes, _) in log.iter().zip(offsets).filter(|(_, offset)| *offset >= begin) {
            if reader.is_full() {
                break;
            }
            reader.push(borsh::from_slice(bytes).unwrap());
        }
        reader.finish()
    }

    fn send(&mut self, from: MachineId, to: To, message: &Message) {
        let targets: Vec<MachineId> = match to {
            To::Machine(id) => vec![id],
            To::Others => self.machines().collect(),
            To::Replicas => self.replicas().collect(),
        };
        let misplaced = self.misplaced(from, message);
        let message = misplaced.as_ref().unwrap_or(message);
        let bytes = Arc::new(borsh::to_vec(message).unwrap());
        self.largest = self.largest.max(bytes.len());
        self.new_views += u64::from(matches!(message, Message::NewView(_)));
        for to in targets.into_iter().filter(|to| *to != from) {
            self.sent += 1;
            let is_lost = self.rng.random_bool(self.weather.loss)
                || self.cut.contains(&(from, to))
                || !(self.filter)(from, to, message);
            if is_lost {
                continue;
            }
            let copies = if self.rng.random_bool(self.weather.duplication) {
                2
            } else {
                1
            };
            for _ in 0..copies {
                let at_us = self.now_us + self.rng.random_range(10..=self.weather.delay_max_us.max(11));
                self.schedule(
                    at_us,
                    to,
                    None,
                    Event::Arrive {
                        from,
                        bytes: Arc::clone(&bytes),
                    },
                );
            }
        }
    }

    fn delivered(&mut self, id: MachineId, message: &CommitDb) {
        for entry in &message.entries {
            let decided = Decided {
                group: message.group,
                time_us: entry.time_us,
                digest: entry.digest,
            };
            let known = self.decided.entry(entry.order).or_insert(decided);
            self.done.insert(entry.digest);
            assert_eq!(*known, decided, "agreement: m{id} differs at order {}", entry.order);
            let is_nothing = entry.digest == [0; 32];
            assert_eq!(
                entry.request.is_none(),
                is_nothing,
                "whole operations go to the local voter"
            );
            if let Some(request) = &entry.request {
                assert_eq!(request.digest(), entry.digest);
                assert_eq!(group_of(request.home, self.groups), message.group);
            }
            let node = &mut self.nodes[usize::from(id.0)];
            let before = node.delivered.insert(entry.order, entry.digest);
            assert!(before.is_none(), "m{id} delivers order {} twice", entry.order);
        }
    }

    // What the scenarios ask.

    pub(crate) fn is_live(&self) -> bool {
        self.machines()
            .all(|id| !self.is_up(id) || self.machine(id).status().phase == Phase::Live)
    }

    /// Whether every machine that is up has decided everything that was submitted.
    pub(crate) fn is_done(&self) -> bool {
        let is_all = self
            .submitted
            .iter()
            .all(|submitted| self.done.contains(submitted.verified.digest()));
        let last = self
            .decided
            .last_key_value()
            .map(|(order, _)| *order)
            .unwrap_or_default();
        let reached = |id: MachineId| !self.is_up(id) || self.machine(id).status().decided >= last;
        is_all && self.replicas().all(reached)
    }

    /// All machines, for the message of a failed test.
    pub(crate) fn describe(&self) -> String {
        let up = self.machines().filter(|id| self.is_up(*id));
        up.map(|id| format!("m{id}: {:?}\n", self.machine(id).status()))
            .collect()
    }

    pub(crate) fn is_decided(&self, digest: &Digest) -> bool {
        self.decided.values().any(|decided| decided.digest == *digest)
    }

    /// [`Cluster::check_safety`], and no gaps: for when nothing is in flight.
    pub(crate) fn check(&self) {
        self.check_safety();
        let orders = self.decided.keys().copied();
        assert!(orders.eq((1..=self.decided.len() as u64).map(Order)), "no gaps");
    }

    /// No message refused, times that rise, nothing invented, nothing that runs twice, one history on all machines that have got
    /// equally far. (That one order is never decided twice differently is checked at each delivery.)
    pub(crate) fn check_safety(&self) {
        assert_eq!(self.rejected, [], "correct machines send what others accept");
        let mut clients = ClientTable::default();
        let submitted: BTreeMap<Digest, &Request> = self
            .submitted
            .iter()
            .map(|entry| (*entry.verified.digest(), &**entry.verified.message()))
            .collect();
        let mut ran = BTreeSet::new();
        let mut last_us = 0;
        for decided in self.decided.values() {
            assert!(decided.time_us > last_us, "times rise");
            last_us = decided.time_us;
            if decided.digest == [0; 32] {
                continue;
            }
            let request = submitted
                .get(&decided.digest)
                .expect("validity: only what clients have signed");
            if clients.record(request.client, request.number, request.floor) {
                assert!(ran.insert(decided.digest), "exactly once");
            }
        }
        let mut points = BTreeMap::new();
        for id in self.replicas().filter(|id| self.is_up(*id)) {
            let point = self.machine(id).history_point();
            let known = points.entry(point.order).or_insert(point.history);
            assert_eq!(*known, point.history, "one history");
        }
    }

    /// Orders that were decided for the same digest more than once.
    pub(crate) fn duplicates(&self) -> usize {
        let digests: Vec<_> = self
            .decided
            .values()
            .map(|decided| decided.digest)
            .filter(|digest| *digest != [0; 32])
            .collect();
        digests.len() - digests.iter().collect::<BTreeSet<_>>().len()
    }

    /// What a voter gets that fetches everything from this machine.
    pub(crate) fn fetch_everything(&mut self, id: MachineId) -> BTreeMap<Order, Decided> {
        let mut got = BTreeMap::new();
        let last = self.machine(id).history_point().order;
        for _ in 0..10_000 {
            let next = got
                .last_key_value()
                .map_or(Order(1), |(order, _): (&Order, &Decided)| order.next());
            if next > last {
                break;
            }
            for message in self.step(
                id,
                Input::FetchCommitDb {
                    from: MachineId(1),
                    order: next,
                },
            ) {
                for entry in message.entries {
                    let is_whole = entry.request.is_some() || entry.digest == [0; 32];
                    assert!(is_whole, "fetched operations are whole");
                    got.insert(
                        entry.order,
                        Decided {
                            group: message.group,
                            time_us: entry.time_us,
                            digest: entry.digest,
                        },
                    );
                }
            }
            self.run(5_000);
        }
        got
    }

    /// All logs hold, and serve, the same history.
    pub(crate) fn check_logs(&mut self) {
        for id in self.replicas().filter(|id| self.is_up(*id)).collect::<Vec<_>>() {
            let last = self.machine(id).history_point().order;
            let expected: BTreeMap<_, _> = self
                .decided
                .range(..=last)
                .map(|(order, entry)| (*order, *entry))
                .collect();
            let served = self.fetch_everything(id);
            let differs: Vec<_> = expected
                .iter()
                .filter(|(order, decided)| served.get(order) != Some(decided))
                .map(|(order, _)| (*order, served.get(order)))
                .collect();
            assert!(differs.is_empty(), "m{id} serves what was decided, but at {differs:?}");
            assert!(
                served.range(..=last).count() == expected.len(),
                "m{id} serves nothing else"
            );
        }
    }

    /// Who leads the highest view that a machine is live in.
    pub(crate) fn leader(&self) -> MachineId {
        let up = self.machines().filter(|id| self.is_up(*id));
        let statuses = up.map(|id| self.machine(id).status());
        let live = statuses.filter(|status| status.phase == Phase::Live);
        live.max_by_key(|status| status.view)
            .map(|status| status.primary)
            .unwrap_or_default()
    }

    pub(crate) fn random_replica(&mut self) -> MachineId {
        MachineId(self.rng.random_range(1..self.nodes.len() as u8))
    }

    pub(crate) fn random(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.rng.random_range(range)
    }

    pub(crate) fn log_of(&self, id: MachineId) -> Vec<Record> {
        self.nodes[usize::from(id.0)]
            .disk
            .log
            .iter()
            .map(|bytes| borsh::from_slice(bytes).unwrap())
            .collect()
    }
}
