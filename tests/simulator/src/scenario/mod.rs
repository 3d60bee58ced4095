//! A cluster that a test has in hand: nothing goes wrong but what the test does, step by step. It is the cluster of the seeds, with
//! its voters and its checkers.
//!
//! What a scenario may do to messages, and what it has seen, are the fields of [`Hand`]. `asking.rs` has its questions.

mod asking;

use std::ops::{Deref, DerefMut, Range};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use ordering::agreement::Input;
use ordering::configuration::Configuration;
use ordering::directory::Directory;
use ordering::identifiers::{Digest, MachineId};
use ordering::verified::{Rejection, Verified};
use rand::{Rng, RngExt};

use crate::checkers::Observation;
use crate::cluster::{Cluster, Hand, Submitted, Weather};
use crate::counter::{SharedCounter, Trust};
use crate::options::Options;
use crate::protocol::Protocol;

/// Clients that submit.
const CLIENTS: u32 = 2;

/// How often a condition is looked at, in microseconds.
const LOOK_US: u64 = 5_000;

/// A cluster in a test's hand.
pub struct Scenario<P: Protocol> {
    cluster: Cluster<P>,
    /// The next number of each client.
    next_numbers: [u64; CLIENTS as usize],
}

impl<P: Protocol> Deref for Scenario<P> {
    type Target = Hand<P>;

    fn deref(&self) -> &Hand<P> {
        self.cluster.hand.as_ref().expect("a scenario has its cluster in hand")
    }
}

impl<P: Protocol> DerefMut for Scenario<P> {
    fn deref_mut(&mut self) -> &mut Hand<P> {
        self.cluster.hand.as_mut().expect("a scenario has its cluster in hand")
    }
}

/// Options by which nothing goes wrong by itself, and no log is cut.
fn options(seed: u64, faults: u8, groups: u16) -> Options {
    Options {
        seed,
        faults,
        groups,
        groups_spare: 0,
        scalings: 0,
        clients: CLIENTS,
        byzantine_clients: 0,
        requests: 0,
        operation_bytes_max: 200,
        batch_entries_max: 8,
        safety_ms: u64::MAX / 2_000,
        patience_ms: 0,
        loss_percent: 0,
        duplication_percent: 0,
        delay_max_us: 300,
        sync_max_us: 2_000,
        crashes: 0,
        primary_cuts: 0,
        power_cuts: 0,
        partitions: 0,
        slow_disks: 0,
        clock_offset_max_ms: 0,
        clock_rate_max_ppm: 0,
        loses_unsynced: false,
        corrupted_ms: 0,
        log_bytes_max: 1 << 32,
        cut_bytes: u64::MAX,
        together_us: 0,
        clients_reach: 0,
        busy_client: false,
        spent_counters: 0,
        counters: Trust::True,
        adversaries: Vec::new(),
    }
}

impl<P: Protocol> Scenario<P> {
    /// A cluster whose machines have all just started.
    pub fn new(seed: u64, faults: u8, groups: u16) -> Self {
        Self::tuned(seed, faults, groups, |_| {})
    }

    /// The same, with so many more groups, which may be in charge later.
    pub fn scalable(seed: u64, faults: u8, groups: u16, groups_spare: u16) -> Self {
        let options = Options {
            groups_spare,
            // The one that is drawn comes at the end of all times.
            scalings: 1,
            ..options(seed, faults, groups)
        };
        let tune = |configuration: &mut Configuration| configuration.tail_bytes_max = 0;
        Scenario {
            cluster: Cluster::tuned(options, None, Some(Hand::new()), tune),
            next_numbers: [0; CLIENTS as usize],
        }
    }

    /// The same, with machines that are configured a little differently.
    pub fn tuned(seed: u64, faults: u8, groups: u16, tune: fn(&mut Configuration)) -> Self {
        // What voters and peers ask for is read from the logs, not from memory.
        let tune = |configuration: &mut Configuration| {
            configuration.tail_bytes_max = 0;
            tune(configuration);
        };
        Scenario {
            cluster: Cluster::tuned(options(seed, faults, groups), None, Some(Hand::new()), tune),
            next_numbers: [0; CLIENTS as usize],
        }
    }

    /// Lets time pass. Panics when something is violated.
    #[track_caller]
    pub fn run(&mut self, duration_us: u64) {
        self.cluster.run_until(self.cluster.now_us + duration_us);
        if let Some(violation) = &self.cluster.violation {
            panic!("{violation}");
        }
    }

    /// Lets time pass until the condition holds; false when it does not in time.
    #[track_caller]
    pub fn run_until(&mut self, limit_us: u64, condition: impl Fn(&Self) -> bool) -> bool {
        let end_us = self.now_us() + limit_us;
        while self.now_us() < end_us {
            if condition(self) {
                return true;
            }
            self.run(LOOK_US);
        }
        condition(self)
    }

    /// Virtual time, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.cluster.now_us
    }

    /// Starts a machine from its log, with its counter in a new epoch.
    pub fn start(&mut self, machine: MachineId) {
        self.cluster.restart(machine);
    }

    /// Starts every machine that is down.
    pub fn start_all(&mut self) {
        for machine in self.cluster.machines() {
            self.cluster.restart(machine);
        }
    }

    /// Kills a machine: what it had not synced may survive in part.
    pub fn crash(&mut self, machine: MachineId) {
        self.cluster.stop(machine);
    }

    /// Kills all machines.
    pub fn crash_all(&mut self) {
        for machine in self.cluster.machines() {
            self.cluster.stop(machine);
        }
    }

    /// From now on a crash loses everything that was not synced, or perhaps a part only.
    pub fn lose_unsynced(&mut self, loses_unsynced: bool) {
        self.cluster.options.loses_unsynced = loses_unsynced;
    }

    /// No link of the machine carries anything, and no client reaches it.
    pub fn isolate(&mut self, machine: MachineId) {
        let others = self.cluster.machines();
        let links: Vec<_> = others.flat_map(|other| [(machine, other), (other, machine)]).collect();
        self.cluster.network.cut(&links);
    }

    /// All links carry again.
    pub fn mend(&mut self) {
        self.cluster.network.mend_all();
    }

    /// The network loses, repeats and delays messages from now on, as the seed draws it.
    pub fn storm(&mut self) {
        self.cluster.network.weather = Weather {
            loss_percent: self.random(0..20) as u32,
            duplication_percent: self.random(0..10) as u32,
            delay_max_us: self.random(100..8_000),
        };
    }

    /// The network is timely and whole, and clients reach every machine.
    pub fn heal(&mut self) {
        self.cluster.network.heal();
        self.deaf.clear();
        self.filter = |_, _, _| true;
    }

    /// A machine lies from now on: it sends to each machine what this makes of its messages.
    pub fn corrupt(
        &mut self,
        machine: MachineId,
        lies: impl FnMut(&SigningKey, MachineId, &P::Message) -> Vec<P::Message> + 'static,
    ) {
        self.liars.insert(machine, Box::new(lies));
    }

    /// A client signs a request and sends it to all machines that it reaches, until it is decided.
    pub fn submit(&mut self) -> Digest {
        let client = self.random(0..u64::from(CLIENTS)) as u32;
        let number = self.next_numbers[client as usize];
        self.next_numbers[client as usize] += 1;
        let home = self.random(0..1000);
        self.submit_as(client, number, home)
    }

    /// The same, with this number and home.
    pub fn submit_as(&mut self, client: u32, number: u64, home: u64) -> Digest {
        let mut operation = vec![0; self.cluster.rng.random_range(1..200)];
        self.cluster.rng.fill_bytes(&mut operation);
        let request = self.cluster.clients[client as usize].sign(number, home, Bytes::from(operation));
        let verified = self.cluster.directory.verify_request(request).expect("it is signed");
        let digest = *verified.digest();
        let request = verified.message().clone();
        self.cluster.observe(&Observation::Signed {
            request: &request,
            digest,
        });
        let next_us = Some(self.now_us());
        self.submitted.push(Submitted { verified, next_us });
        self.cluster.resend_by_hand();
        digest
    }

    /// The administrator has the number of groups changed: sends that to all machines that clients reach, until it is decided.
    pub fn scale(&mut self, version: u64, groups: u16) -> Digest {
        self.has_scaled = true;
        let verified = self.cluster.sign_change(version, groups);
        let (digest, next_us) = (*verified.digest(), Some(self.now_us()));
        self.submitted.push(Submitted { verified, next_us });
        self.cluster.resend_by_hand();
        digest
    }

    /// Submits some requests, with short pauses that the seed draws.
    #[track_caller]
    pub fn submit_for(&mut self, requests: u64) {
        for _ in 0..requests {
            self.submit();
            let pause_us = self.random(0..3_000);
            self.run(pause_us);
        }
    }

    /// How many requests were submitted.
    pub fn submitted(&self) -> usize {
        self.submitted.len()
    }

    /// Gives one machine a request, by the number of requests that were submitted before it.
    pub fn send_request(&mut self, index: usize, to: MachineId) {
        let verified = self.submitted[index].verified.clone();
        self.cluster.give_request(&verified, to);
    }

    /// The clients send nothing again.
    pub fn give_up_requests(&mut self) {
        self.submitted.iter_mut().for_each(|submitted| submitted.next_us = None);
    }

    /// Feeds a machine that is up, and returns nothing but its answers to voters.
    pub fn ask(&mut self, machine: MachineId, input: Input<P::Message>) -> Vec<ordering::message::CommitDb> {
        self.cluster.ask(machine, input)
    }

    /// `to` hears a message of `from` at once, that `from` has not sent.
    pub fn inject(&mut self, from: MachineId, to: MachineId, message: P::Message) {
        let message = self.verify(from, message).expect("it verifies");
        self.framed.insert(from);
        self.ask(to, Input::Message { from, message });
    }

    /// The network gets a message of `from`, that `from` has not sent.
    pub fn transmit(&mut self, from: MachineId, to: MachineId, message: &P::Message) {
        self.framed.insert(from);
        for index in self.cluster.indices(from) {
            self.cluster.transmit_by_hand(index, to, message);
        }
    }

    fn verify(&self, from: MachineId, message: P::Message) -> Result<Verified<P::Message>, Rejection> {
        P::verify(from, message, &self.cluster.directory)
    }

    /// The directory of the cluster.
    pub fn directory(&self) -> &Directory {
        &self.cluster.directory
    }

    /// The ordinary keys of the machines.
    pub fn keys(&self) -> &[SigningKey] {
        &self.cluster.keys
    }

    /// The trusted counter of a machine, as it is in this life.
    pub fn counter(&self, machine: MachineId) -> SharedCounter {
        SharedCounter::clone(&self.cluster.instances[usize::from(machine.0)].counter)
    }

    /// A machine of the seed.
    pub fn random_machine(&mut self) -> MachineId {
        let machines = self.machines().count() as u64;
        MachineId(self.random(0..machines) as u8)
    }

    /// A machine of the seed that holds replicas.
    pub fn random_replica(&mut self) -> MachineId {
        let replicas: Vec<_> = self.replicas().collect();
        replicas[self.random(0..replicas.len() as u64) as usize]
    }

    /// A number of the seed.
    pub fn random(&mut self, range: Range<u64>) -> u64 {
        self.cluster.rng.random_range(range)
    }
}
