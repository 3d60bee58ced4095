//! A cluster of production machines in virtual time: network, clocks, disks, counters, voters and clients, all
//! driven by one seed.
//!
//! | file | what |
//! |---|---|
//! | `setup.rs` | keys, configurations and clocks |
//! | `instance.rs` | one running copy of a machine |
//! | `network.rs` | what the network does with messages |
//! | `faults.rs`, `life.rs` | crashes, power cuts, partitions, corruption: drawn, and carried out |
//! | `step.rs` | feeding a machine, and carrying out what it wants |
//! | `send.rs` | sending, and what adversaries make of it |
//! | `voters.rs` | the voters' and clients' side |
//! | `hand.rs` | what a scenario does by hand |

mod faults;
mod hand;
mod instance;
mod life;
mod network;
mod send;
mod setup;
mod step;
mod voters;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use ordering::agreement::{Agreement, MisbehaviourKind, Phase};
use ordering::configuration::{Configuration, Faults};
use ordering::directory::Directory;
use ordering::identifiers::{ClientId, MachineId, Order};
use ordering::message::{CommitDb, ReplyCommitDb, Request};
use ordering::verified::{Rejection, Verified};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trusted_counter::UniqueWarrant;

use crate::adversary::Conspiracy;
use crate::checkers::{Checkers, Observation};
use crate::client::{Administrator, ByzantineClient, Client};
use crate::lies::Told;
use crate::options::Options;
use crate::protocol::Protocol;
use crate::run::Trace;
use crate::violation::Violation;
use crate::voter::{Voter, Wanted};
use faults::Fault;
pub(crate) use hand::Submitted;
pub use hand::{Decided, Filter, Hand, Lies, Watch};
use instance::Instance;
use network::Network;
pub(crate) use network::Weather;
pub use setup::test_directory;
use setup::{administrator_key, configuration, directory, draw_clock, draw_reached};

/// How often clients and voters look what they have to do, in microseconds.
const TICK_US: u64 = 25_000;

/// Verified messages that are remembered, so that a message to many is verified once.
const VERIFIED_MAX: usize = 20_000;

/// Something that is on its way to an instance or its voter.
#[derive(Clone)]
enum Packet {
    Agreement { bytes: Arc<Vec<u8>>, is_forged: bool },
    Request(Verified<Arc<Request>>),
    CommitDb(Arc<CommitDb>),
    Wanted(Wanted),
    Reply(ReplyCommitDb),
    LogBegins(Order),
}

/// What verification says of a message.
type Verification<M> = Result<Verified<M>, Rejection>;

enum Event {
    Arrive {
        from: MachineId,
        to: usize,
        packet: Packet,
    },
    Certified {
        to: usize,
        life: u64,
        ticket: u64,
        warrant: UniqueWarrant,
    },
    Synced {
        to: usize,
        life: u64,
        sequence: u64,
        bytes: usize,
    },
    Timer {
        to: usize,
        life: u64,
    },
    Look {
        to: usize,
        life: u64,
    },
    Fault(Fault),
    Tick,
}

/// What a run counts, for reports and tests of the simulator itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that were sent, per receiver.
    pub sent: u64,
    /// Messages that verification rejected, by reason.
    pub rejected: BTreeMap<Rejection, u64>,
    /// Forged messages that arrived; every one was rejected.
    pub forged: u64,
    /// Messages that could not be decoded.
    pub undecodable: u64,
    /// Arbitrary messages that were sent.
    pub arbitrary: u64,
    /// Requests that were signed wrongly.
    pub requests_rejected: u64,
    /// Steps of all machines.
    pub steps: u64,
    /// What correct machines reported.
    pub reports: BTreeMap<(MachineId, MisbehaviourKind), u64>,
    /// Lies that adversaries told.
    pub lies: Told,
    /// Times that a log was cut.
    pub cuts: u64,
    /// Times that a correct voter lacked what f+1 logs had no longer, and was repaired.
    pub repairs: u64,
    /// Times that a crash found something unsynced on the disk.
    pub unsynced_crashes: u64,
}

/// The cluster.
pub struct Cluster<P: Protocol> {
    /// What the run does.
    pub options: Options,
    /// Virtual time, in microseconds.
    pub now_us: u64,
    /// What was counted.
    pub counts: Counts,
    /// The first property that did not hold; nothing happens any more.
    pub violation: Option<Violation>,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) directory: Directory,
    pub(crate) keys: Vec<SigningKey>,
    pub(crate) instances: Vec<Instance<P>>,
    /// Which twin each machine is connected to: one bit for each machine.
    sides: u64,
    pub(crate) network: Network,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    next_event: u64,
    /// The counter epoch of each machine.
    epochs: Vec<u64>,
    /// By machine; none: the machine has no voter.
    voters: Vec<Option<Voter>>,
    pub(crate) clients: Vec<Client>,
    /// Machines that each correct client reaches, as bits.
    reached: Vec<u64>,
    byzantine_clients: Vec<ByzantineClient>,
    /// Requests that each correct client has still to submit.
    to_submit: Vec<u32>,
    submits_until_us: u64,
    checkers: Checkers,
    /// Has the number of groups changed.
    administrator: Administrator,
    last_decided: Order,
    verified: HashMap<(MachineId, blake3::Hash), Verification<P::Message>>,
    is_corrupted: bool,
    conspiracy: Conspiracy,
    /// More machines than f lacked their counters or were Byzantine at once: the cluster has to start anew.
    pub(crate) is_cold: bool,
    trace: Option<Trace>,
    /// What a scenario does by hand.
    pub(crate) hand: Option<Hand<P>>,
}

impl<P: Protocol> Cluster<P> {
    /// A cluster at virtual time 0, with all machines started. `trace` gets every event as a line.
    pub fn new(options: Options, trace: Option<Trace>) -> Self {
        Self::tuned(options, trace, None, |_| {})
    }

    /// A cluster whose machines are configured a little differently, and that a scenario may have in hand.
    pub(crate) fn tuned(
        options: Options,
        trace: Option<Trace>,
        hand: Option<Hand<P>>,
        tune: impl Fn(&mut Configuration),
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed ^ 0x5eed);
        let faults = Faults(options.faults);
        let machines = P::machines(faults);
        let mut key = || {
            let mut bytes = [0; 32];
            rng.fill_bytes(&mut bytes);
            SigningKey::from_bytes(&bytes)
        };
        let keys: Vec<SigningKey> = (0..machines).map(|_| key()).collect();
        let everybody = options.clients + options.byzantine_clients;
        let client_keys: Vec<SigningKey> = (0..everybody).map(|_| key()).collect();
        let directory = directory(&options, &keys, &client_keys);
        let instances = (0..machines)
            .map(|number| {
                let mut configuration = configuration::<P>(&options, number);
                tune(&mut configuration);
                Instance::new(configuration, draw_clock(&options, &mut rng))
            })
            .collect();
        let network = Network::new(Weather {
            loss_percent: options.loss_percent,
            duplication_percent: options.duplication_percent,
            delay_max_us: options.delay_max_us,
        });
        let voters = (0..machines).map(|number| {
            let has_voter = (1..=2 * options.faults + 1).contains(&number);
            let groups = (options.groups, options.groups_in_all());
            has_voter.then(|| Voter::new(usize::from(options.faults) + 1, groups))
        });
        let mut client_keys = client_keys.into_iter().zip(0..).map(|(key, id)| (ClientId(id), key));
        let clients = client_keys.by_ref().take(options.clients as usize);
        let clients: Vec<Client> = clients.map(|(id, key)| Client::new(id, key)).collect();
        let byzantine_clients = client_keys.map(|(id, key)| ByzantineClient::new(id, key)).collect();
        let mut cluster = Cluster {
            now_us: 0,
            counts: Counts::default(),
            violation: None,
            directory,
            keys,
            instances,
            sides: rng.random(),
            network,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            next_event: 0,
            epochs: vec![0; usize::from(machines)],
            voters: voters.collect(),
            to_submit: vec![options.requests; clients.len()],
            reached: draw_reached::<P>(&options, &mut rng),
            clients,
            byzantine_clients,
            submits_until_us: options.safety_ms * 1000,
            checkers: Checkers::new(
                everybody as usize + usize::from(options.scalings > 0),
                (options.groups, options.groups_in_all()),
            ),
            administrator: Administrator::new(administrator_key(&options)),
            last_decided: Order(0),
            verified: HashMap::new(),
            is_corrupted: false,
            conspiracy: Conspiracy::default(),
            is_cold: false,
            trace,
            hand,
            rng,
            options,
        };
        cluster.begin(machines);
        cluster
    }

    fn begin(&mut self, machines: u8) {
        for (at_us, fault) in faults::schedule(&self.options, machines, &mut self.rng) {
            self.schedule(at_us, Event::Fault(fault));
        }
        for number in 0..machines {
            self.start_machine(MachineId(number));
        }
        self.schedule(0, Event::Tick);
    }

    /// Lets time pass until then, or until something is violated.
    pub fn run_until(&mut self, end_us: u64) {
        while self.violation.is_none() {
            let Some(Reverse((at_us, number))) = self.queue.peek().copied() else {
                break;
            };
            if at_us > end_us {
                break;
            }
            self.queue.pop();
            self.now_us = self.now_us.max(at_us);
            if let Some(event) = self.events.remove(&number) {
                self.happen(event);
            }
        }
        self.now_us = self.now_us.max(end_us);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { from, to, packet } => self.arrive(from, to, packet),
            Event::Certified {
                to,
                life,
                ticket,
                warrant,
            } => self.certified(to, life, ticket, warrant),
            Event::Synced {
                to,
                life,
                sequence,
                bytes,
            } => self.synced(to, life, sequence, bytes),
            Event::Timer { to, life } => self.timer(to, life),
            Event::Look { to, life } => self.look(to, life),
            Event::Fault(fault) => self.fault(fault),
            Event::Tick => self.tick(),
        }
    }

    fn schedule(&mut self, at_us: u64, event: Event) {
        self.next_event += 1;
        self.queue.push(Reverse((at_us, self.next_event)));
        self.events.insert(self.next_event, event);
    }

    fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = self.trace.as_mut() {
            trace(&format!("{:>10} {}", self.now_us, line()));
        }
    }

    pub(crate) fn observe(&mut self, observation: &Observation<'_>) {
        if let Err(violation) = self.checkers.observe(observation) {
            self.violation.get_or_insert(violation);
        }
    }

    /// Whether the machine is not the adversary's.
    pub fn is_correct(&self, machine: MachineId) -> bool {
        let lies = |hand: &Hand<P>| hand.liars.contains_key(&machine);
        self.options.behaviours(machine).is_empty() && !self.hand.as_ref().is_some_and(lies)
    }

    /// How many machines there are.
    pub fn machines(&self) -> impl Iterator<Item = MachineId> + use<P> {
        (0..P::machines(Faults(self.options.faults))).map(MachineId)
    }

    fn correct(&self) -> impl Iterator<Item = &Instance<P>> {
        self.instances
            .iter()
            .filter(|instance| self.is_correct(instance.machine))
    }

    /// Whether every correct machine is up and takes part.
    pub fn is_live(&self) -> bool {
        self.correct().all(|instance| {
            instance
                .running
                .as_ref()
                .is_some_and(|machine| machine.status().phase == Phase::Live)
        })
    }

    /// Whether every request of a correct client has ended, and every correct machine and voter has got everything.
    pub fn is_done(&self) -> bool {
        let has_ended = self.to_submit.iter().all(|left| *left == 0)
            && self.clients.iter().all(|client| client.unended().next().is_none());
        let last = self.last_decided;
        let reached = |instance: &Instance<P>| {
            let voter = self.voters[usize::from(instance.machine.0)].as_ref();
            let has_history = instance
                .running
                .as_ref()
                .is_some_and(|machine| machine.status().decided >= last);
            voter.is_none() || (has_history && voter.is_some_and(|voter| voter.executed() >= last))
        };
        has_ended && self.is_live() && self.correct().all(reached)
    }

    /// Shows the final state to the checkers.
    pub fn end(&mut self) {
        let ends: Vec<_> = self
            .correct()
            .filter_map(|instance| {
                let voter = self.voters[usize::from(instance.machine.0)].as_ref()?;
                let history = P::history(instance.running.as_ref()?);
                Some((instance.machine, history, Some(voter.executed())))
            })
            .collect();
        for (machine, history, executed) in ends {
            self.observe(&Observation::Ended {
                machine,
                history,
                executed,
            });
        }
    }

    /// Requests of correct clients that have not ended.
    pub fn unended(&self) -> Vec<(ClientId, u64)> {
        self.clients.iter().flat_map(|client| client.unended()).collect()
    }

    /// The last order that any correct machine has decided.
    pub fn last_decided(&self) -> Order {
        self.last_decided
    }

    /// Kills a machine, as a long run wants it.
    pub fn stop(&mut self, machine: MachineId) {
        self.crash_machine(machine);
        self.note_cold();
    }

    /// Starts it again.
    pub fn restart(&mut self, machine: MachineId) {
        self.start_machine(machine);
        self.note_cold();
    }

    /// Whether a machine takes part and has everything up to an order, and so has its voter.
    pub fn has_reached(&self, machine: MachineId, order: Order) -> bool {
        let voter = self.voters[usize::from(machine.0)].as_ref();
        let mut running = self.correct().filter(|instance| instance.machine == machine);
        voter.is_none_or(|voter| voter.executed() >= order)
            && running.any(|instance| {
                let status = instance.running.as_ref().map(|machine| machine.status());
                status.is_some_and(|status| status.phase == Phase::Live && status.decided >= order)
            })
    }

    /// In a long run: checkers need not remember what every voter's database has, and a little more.
    pub fn forget_what_all_have(&mut self) {
        let voters = self.voters.iter().flatten();
        let executed = voters.map(|voter| voter.database().order).min().unwrap_or_default();
        self.checkers.forget_below(Order(executed.0.saturating_sub(10_000)));
    }

    /// Bytes of the largest log of a correct machine.
    pub fn log_bytes_max(&self) -> usize {
        self.correct()
            .map(|instance| instance.disk.bytes())
            .max()
            .unwrap_or_default()
    }

    /// All machines, for whoever looks into a violation.
    pub fn describe(&self) -> String {
        let describe = |instance: &Instance<P>| {
            let machine = instance.machine;
            let voter = self.voters[usize::from(machine.0)].as_ref().map(Voter::describe);
            match &instance.running {
                None => format!("  m{machine}: down, {voter:?}\n"),
                Some(running) => format!("  m{machine}: {:?}, {voter:?}\n", running.status()),
            }
        };
        self.instances.iter().map(describe).collect()
    }
}
