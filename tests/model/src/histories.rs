//! Machines as functions of what they were fed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use ed25519_dalek::SigningKey;
use ordering::agreement::{Agreement, Input, Now, Output, To};
use ordering::configuration::Configuration;
use ordering::directory::Directory;
use ordering::identifiers::{Digest, GroupId, MachineId, Order};
use ordering::message::Request;
use ordering::verified::Verified;
use simulator::clock::START_WALL_US;
use simulator::counter::{Counter, Trust};
use simulator::protocol::Protocol;

/// Names a chain of inputs of one machine.
pub(crate) type HistoryId = [u8; 16];

/// Names a message and its sender.
pub(crate) type MessageId = [u8; 16];

/// How long a machine waits in vain: longer than every timer that leads to a view change, in microseconds.
const TIMEOUT_US: u64 = 700_000;

/// Something that a machine has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Decided {
    /// The order.
    pub order: Order,
    /// The group.
    pub group: GroupId,
    /// The time.
    pub time_us: u64,
    /// The request.
    pub digest: Digest,
}

/// What makes a machine step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stimulus {
    /// A message arrives.
    Message(MessageId),
    /// All of its timers are due.
    Timeout,
}

/// One history, and what came of it.
#[derive(Debug)]
pub(crate) struct History {
    machine: u8,
    /// Oldest first.
    stimuli: Vec<Stimulus>,
    /// What the last input made it send.
    pub sent: Vec<(u8, MessageId)>,
    /// Everything that it has decided.
    pub decided: Vec<Decided>,
    /// How far it says that everything is decided.
    pub decided_through: Order,
}

/// Messages of interest: what only speeds things up, or repeats them, would only multiply the states.
pub(crate) type Interest = fn(&'static str) -> bool;

/// All histories that were met.
pub struct Histories<P: Protocol> {
    directory: Directory,
    keys: Vec<SigningKey>,
    configurations: Vec<Configuration>,
    requests: Vec<Verified<Arc<Request>>>,
    interest: Interest,
    /// What every machine was fed before the exploration begins.
    prefixes: Vec<Vec<Input<P::Message>>>,
    known: Mutex<HashMap<HistoryId, Arc<History>>>,
    messages: Mutex<BTreeMap<MessageId, Sent<P::Message>>>,
}

/// A message with its sender.
type Sent<M> = (MachineId, Verified<M>);

/// One machine with its counter and log, both of which answer at once.
struct Running<P: Protocol> {
    machine: P::Machine,
    counter: Counter,
    now_us: u64,
    decided: Vec<Decided>,
}

impl<P: Protocol> Running<P> {
    /// Feeds one input, and all answers of counter and log; tells what was sent.
    fn feed(&mut self, input: Input<P::Message>) -> Vec<(To, P::Message)> {
        let now = Now {
            monotonic_us: self.now_us,
            wall_us: START_WALL_US + self.now_us,
        };
        let (mut inputs, mut sent) = (VecDeque::from([input]), Vec::new());
        while let Some(input) = inputs.pop_front() {
            let mut outputs = Vec::new();
            self.machine.step(now, input, &mut outputs);
            self.machine.check_invariants();
            for output in outputs {
                match output {
                    Output::Persist { sequence, .. } => inputs.push_back(Input::Persisted(sequence)),
                    Output::Certify { slot, digest, ticket } => {
                        let warrant = self.counter.create(slot, &digest);
                        inputs.push_back(Input::Certified { ticket, warrant });
                    }
                    Output::Send { to, message } => sent.push((to, message)),
                    Output::Deliver(message) => {
                        let decided = message.entries.iter().map(|entry| Decided {
                            order: entry.order,
                            group: message.group,
                            time_us: entry.time_us,
                            digest: entry.digest,
                        });
                        self.decided.extend(decided);
                    }
                    Output::Answer { .. }
                    | Output::ReadLog { .. }
                    | Output::LogBegins { .. }
                    | Output::CutLog { .. }
                    | Output::Report(_) => {}
                }
            }
        }
        sent
    }
}

impl<P: Protocol> Histories<P> {
    pub(crate) fn new(
        directory: Directory,
        keys: Vec<SigningKey>,
        configurations: Vec<Configuration>,
        requests: Vec<Verified<Arc<Request>>>,
        interest: Interest,
    ) -> Self {
        let mut histories = Histories {
            prefixes: vec![Vec::new(); keys.len()],
            directory,
            keys,
            configurations,
            requests,
            interest,
            known: Mutex::new(HashMap::new()),
            messages: Mutex::new(BTreeMap::new()),
        };
        histories.begin();
        histories
    }

    /// Starts the cluster on a perfect network, and gives every machine every request.
    fn begin(&mut self) {
        let count = self.keys.len();
        let mut running: Vec<Running<P>> = (0..count).map(|machine| self.fresh(machine)).collect();
        let mut queue: VecDeque<(usize, Input<P::Message>)> =
            (0..count).map(|machine| (machine, Input::Timeout)).collect();
        while let Some((machine, input)) = queue.pop_front() {
            self.prefixes[machine].push(input.clone());
            for (to, message) in running[machine].feed(input) {
                let from = MachineId(u8::try_from(machine).expect("few machines"));
                for target in targets(to, from, count) {
                    let verified = P::verify(from, message.clone(), &self.directory);
                    let message = verified.expect("nobody lies before the beginning");
                    queue.push_back((usize::from(target), Input::Message { from, message }));
                }
            }
        }
    }

    fn fresh(&self, machine: usize) -> Running<P> {
        let number = u8::try_from(machine).expect("few machines");
        let mut counter = Counter::new(number, 1, Trust::True);
        let configuration = self.configurations[machine].clone();
        let value = P::start(
            configuration,
            self.keys[machine].clone(),
            &mut counter,
            std::iter::empty(),
        );
        Running {
            machine: value,
            counter,
            now_us: 1_000_000,
            decided: Vec::new(),
        }
    }

    /// The machine with which the exploration begins: it has taken part in the start, and got the requests.
    pub(crate) fn first(&self, machine: u8) -> HistoryId {
        let id = blake3::hash(&[machine]);
        self.compute(shorten(&id), machine, Vec::new())
    }

    /// What came of a history.
    pub(crate) fn get(&self, id: HistoryId) -> Arc<History> {
        let known = self.known.lock().expect("no thread panics with it");
        Arc::clone(known.get(&id).expect("only known histories are named"))
    }

    /// The history that follows.
    pub(crate) fn after(&self, id: HistoryId, stimulus: Stimulus) -> HistoryId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&id);
        match stimulus {
            Stimulus::Message(message) => hasher.update(&message),
            Stimulus::Timeout => hasher.update(b"timeout"),
        };
        let next = shorten(&hasher.finalize());
        if self.known.lock().expect("no thread panics with it").contains_key(&next) {
            return next;
        }
        let before = self.get(id);
        let mut stimuli = before.stimuli.clone();
        stimuli.push(stimulus);
        self.compute(next, before.machine, stimuli)
    }

    fn compute(&self, id: HistoryId, machine: u8, stimuli: Vec<Stimulus>) -> HistoryId {
        let mut running = self.fresh(usize::from(machine));
        for input in &self.prefixes[usize::from(machine)] {
            running.feed(input.clone());
        }
        let mut last: Vec<(To, P::Message)> = Vec::new();
        for request in &self.requests {
            last.extend(running.feed(Input::Request(request.clone())));
        }
        for stimulus in &stimuli {
            let input = match stimulus {
                Stimulus::Message(message) => {
                    let (from, message) = self.message(*message);
                    Input::Message { from, message }
                }
                Stimulus::Timeout => {
                    running.now_us += TIMEOUT_US;
                    Input::Timeout
                }
            };
            last = running.feed(input);
        }
        let sent = last
            .into_iter()
            .flat_map(|(to, message)| self.intern(machine, to, message));
        let history = History {
            machine,
            stimuli,
            sent: sent.collect(),
            decided_through: running.machine.status().decided,
            decided: running.decided,
        };
        let mut known = self.known.lock().expect("no thread panics with it");
        known.insert(id, Arc::new(history));
        id
    }

    fn message(&self, id: MessageId) -> Sent<P::Message> {
        let messages = self.messages.lock().expect("no thread panics with it");
        messages.get(&id).expect("only known messages are sent").clone()
    }

    /// Names a message, for each of its receivers.
    pub(crate) fn intern(&self, from: u8, to: To, message: P::Message) -> Vec<(u8, MessageId)> {
        if !(self.interest)(P::kind(&message)) {
            return Vec::new();
        }
        let from = MachineId(from);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[from.0]);
        hasher.update(&borsh::to_vec(&message).expect("messages encode"));
        let id = shorten(&hasher.finalize());
        let verified = P::verify(from, message, &self.directory).expect("what is sent verifies");
        let mut messages = self.messages.lock().expect("no thread panics with it");
        messages.entry(id).or_insert((from, verified));
        targets(to, from, self.keys.len())
            .into_iter()
            .map(|to| (to, id))
            .collect()
    }
}

fn targets(to: To, from: MachineId, machines: usize) -> Vec<u8> {
    let all = 0..u8::try_from(machines).expect("few machines");
    match to {
        To::Machine(machine) => vec![machine.0],
        To::Others => all.filter(|machine| *machine != from.0).collect(),
        To::Replicas => all.filter(|machine| *machine != from.0 && *machine != 0).collect(),
    }
}

fn shorten(hash: &blake3::Hash) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&hash.as_bytes()[..16]);
    short
}
