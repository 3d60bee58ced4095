//! Test only (feature `byzantine-primary`): a primary that lies as a hacked machine with a true trusted counter can.
//!
//! The production machine runs inside; this wrapper chooses what it hears and alters what it says. The machine is promised
//! the next warrant of the primary's slot before there is one. The wrapper alters the message that the machine then wants
//! to send, and has the true counter certify the altered one (`docs/decisions/0021`). So every warrant is real, and the
//! primary can equivocate only as far as a true counter lets it. A file, named by the environment variable [`VARIABLE`] and read again all the time, says how to lie.
//!
//! For m0 only, which holds no replica: whatever it certifies is of the primary's slot.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use ordering::agreement::{Agreement, Input, Now, Output, Status, To};
use ordering::configuration::{BATCH_ENTRIES_LIMIT, Configuration, Faults, PRIMARY_SLOT, Protocol};
use ordering::directory::Directory;
use ordering::hosting::Hosted;
use ordering::identifiers::{GroupId, MachineId, Order, View};
use ordering::ledger::{LogAnswer, PrepareEntry};
use ordering::message::Request;
use ordering::minbft::{Admission, LogReader, Machine, Message, Prepare, Record, Recovery, verify_message};
use ordering::verified::{Rejection, Verified};
use trusted_counter::{Certificate, UniqueWarrant};

/// Names the file that holds the behaviour; without it the node is an honest one.
const VARIABLE: &str = "CLOUDBFT_BYZANTINE_FILE";
/// How often that file is read.
const LOOK_US: u64 = 100_000;
/// For so long a primary that reorders collects requests before it turns them round.
const REORDER_US: u64 = 60_000;
/// The group that a deaf primary does not hear.
const IGNORED: GroupId = GroupId(1);
/// The replica that everything is sent to.
const FAVOURITE: MachineId = MachineId(1);
/// Batches that are kept to be sent again.
const SAID_MAX: usize = 1024;
/// Tickets from here on are ours, those below are the production machine's.
const OWN_TICKETS: u64 = 1 << 63;
/// The certificate of a warrant that is promised only.
const PROMISED: Certificate = Certificate::Keyed([0; 32]);

/// Whether this node is to lie.
pub(super) fn is_wanted() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// How the primary lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Behaviour {
    /// It does not.
    #[default]
    Honest,
    /// Orders nothing of one group.
    Deaf,
    /// Holds each request back for so long.
    Delay(u64),
    /// Orders requests the other way round than they came.
    Reorder,
    /// Orders each request twice, and one of the batch before once more.
    Double,
    /// Orders each request under two groups.
    DoubleGroups,
    /// Tells one replica one order, and the others another one, each with a warrant of its own.
    Equivocate,
    /// Sends PREPAREs to one replica only.
    Withhold,
    /// Sends PREPAREs to nobody.
    Silent,
}

impl Behaviour {
    fn parse(text: &str) -> Behaviour {
        let mut words = text.split_whitespace();
        match words.next() {
            Some("deaf") => Behaviour::Deaf,
            Some("delay") => Behaviour::Delay(words.next().and_then(|word| word.parse().ok()).unwrap_or(0)),
            Some("reorder") => Behaviour::Reorder,
            Some("double") => Behaviour::Double,
            Some("double-groups") => Behaviour::DoubleGroups,
            Some("equivocate") => Behaviour::Equivocate,
            Some("withhold") => Behaviour::Withhold,
            Some("silent") => Behaviour::Silent,
            _ => Behaviour::Honest,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Behaviour::Honest => "honest",
            Behaviour::Deaf => "deaf",
            Behaviour::Delay(_) => "delay",
            Behaviour::Reorder => "reorder",
            Behaviour::Double => "double",
            Behaviour::DoubleGroups => "double_groups",
            Behaviour::Equivocate => "equivocate",
            Behaviour::Withhold => "withhold",
            Behaviour::Silent => "silent",
        }
    }
}

/// A batch as it is told, and to whom.
struct Told {
    audience: Vec<MachineId>,
    prepare: Arc<Prepare>,
    is_certified: bool,
}

/// The production machine, and the hand on it.
pub(super) struct Byzantine {
    inner: Machine,
    groups: u16,
    replicas: Vec<MachineId>,
    file: PathBuf,
    behaviour: Behaviour,
    /// When the file is read again, monotonic.
    look_us: u64,
    /// The warrant of the primary's slot that the production machine had last; its values are not always the true ones.
    epoch: u64,
    promised: u64,
    /// What was said instead of the batch with that promised value.
    said: BTreeMap<u64, Vec<Told>>,
    /// Which batch a ticket is for: the promised value, and which of its versions.
    certifying: BTreeMap<u64, (u64, usize)>,
    tickets: u64,
    /// Requests that are held back, and until when, monotonic.
    held: VecDeque<(u64, Input<Message>)>,
    /// What doubled requests have moved in this view.
    view: View,
    orders_added: u64,
    last_us: u64,
    /// An entry of the batch before.
    earlier: Option<PrepareEntry>,
}

impl Byzantine {
    fn lied(&self, count: usize) {
        metrics::counter!("cloudbft_lies_total", "behaviour" => self.behaviour.label()).increment(count as u64);
    }

    fn look(&mut self, now: Now) {
        if now.monotonic_us < self.look_us {
            return;
        }
        self.look_us = now.monotonic_us + LOOK_US;
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let behaviour = Behaviour::parse(&text);
        if behaviour != self.behaviour {
            tracing::warn!(?behaviour, "the primary lies");
            self.behaviour = behaviour;
        }
    }

    /// What the production machine hears of an input now.
    fn hear(&mut self, now: Now, input: Input<Message>) -> Option<Input<Message>> {
        let requests = requests(&input);
        if requests.is_empty() {
            return Some(input);
        }
        let until_us = match self.behaviour {
            Behaviour::Deaf if requests.iter().any(|request| self.group_of(request) == IGNORED) => {
                self.lied(requests.len());
                return None;
            }
            Behaviour::Delay(milliseconds) => now.monotonic_us + 1000 * milliseconds,
            Behaviour::Reorder => (now.monotonic_us / REORDER_US + 1) * REORDER_US,
            _ => return Some(input),
        };
        if self.behaviour != Behaviour::Reorder {
            self.lied(requests.len());
        }
        self.held.push_back((until_us, input));
        None
    }

    fn group_of(&self, request: &Request) -> GroupId {
        ordering::configuration::group_of(request.home, self.groups)
    }

    /// Hears what was held back for long enough.
    fn release(&mut self, now: Now, outputs: &mut Vec<Output<Message, Record, LogReader>>) {
        let mut due = Vec::new();
        while let Some((_, input)) = self.held.pop_front_if(|(until_us, _)| *until_us <= now.monotonic_us) {
            due.push(input);
        }
        if self.behaviour == Behaviour::Reorder && due.len() > 1 {
            self.lied(due.len());
            due.reverse();
        }
        for input in due {
            self.feed(now, input, outputs);
        }
    }

    /// Steps the production machine; warrants of the primary's slot are promised, PREPAREs altered.
    fn feed(&mut self, now: Now, input: Input<Message>, outputs: &mut Vec<Output<Message, Record, LogReader>>) {
        let mut inputs = VecDeque::from([input]);
        let mut wanted = Vec::new();
        while let Some(input) = inputs.pop_front() {
            self.inner.step(now, input, &mut wanted);
            for output in wanted.drain(..) {
                match output {
                    Output::Certify { slot, ticket, .. } if slot == PRIMARY_SLOT => {
                        self.promised += 1;
                        let warrant = UniqueWarrant {
                            epoch: self.epoch,
                            value: self.promised,
                            slot,
                            certificate: PROMISED,
                        };
                        inputs.push_back(Input::Certified { ticket, warrant });
                    }
                    Output::Send {
                        to,
                        message: Message::Prepare(prepare),
                    } if prepare.warrant.certificate == PROMISED => self.say(to, &prepare, outputs),
                    other => outputs.push(other),
                }
            }
        }
    }

    /// The production machine sends a batch, for the first time or again.
    fn say(&mut self, to: To, prepare: &Prepare, outputs: &mut Vec<Output<Message, Record, LogReader>>) {
        let value = prepare.warrant.value;
        if let Some(said) = self.said.get(&value) {
            let told = said.iter().filter(|told| told.is_certified);
            told.for_each(|told| tell(told, to, outputs));
            return;
        }
        let versions = self.versions(prepare);
        for (index, told) in versions.iter().enumerate() {
            self.tickets += 1;
            let ticket = OWN_TICKETS + self.tickets;
            self.certifying.insert(ticket, (value, index));
            outputs.push(Output::Certify {
                slot: PRIMARY_SLOT,
                digest: told.prepare.own_digest(),
                ticket,
            });
        }
        self.said.insert(value, versions);
        if self.said.len() > SAID_MAX {
            self.said.pop_first();
        }
    }

    /// The true counter has certified what is to be said.
    fn certified(
        &mut self,
        place: (u64, usize),
        warrant: UniqueWarrant,
        outputs: &mut Vec<Output<Message, Record, LogReader>>,
    ) {
        let versions = self.said.get_mut(&place.0);
        if let Some(told) = versions.and_then(|versions| versions.get_mut(place.1)) {
            Arc::make_mut(&mut told.prepare).warrant = warrant;
            told.is_certified = true;
            tell(told, To::Replicas, outputs);
        }
    }

    /// What is said instead of a batch.
    fn versions(&mut self, prepare: &Prepare) -> Vec<Told> {
        let mut prepare = prepare.clone();
        if self.view != prepare.view {
            (self.view, self.orders_added, self.last_us, self.earlier) = (prepare.view, 0, 0, None);
        }
        prepare.first = Order(prepare.first.0 + self.orders_added);
        prepare.time_us = prepare.time_us.max(self.last_us + 1);
        let count = prepare.entries.len();
        match self.behaviour {
            Behaviour::Double if 2 * count < BATCH_ENTRIES_LIMIT => {
                let twice = prepare.entries.iter().flat_map(|entry| [*entry, *entry]);
                prepare.entries = twice.chain(self.earlier).collect();
                self.lied(count);
            }
            Behaviour::DoubleGroups if 2 * count < BATCH_ENTRIES_LIMIT => {
                let groups = self.groups;
                let elsewhere = |entry: &PrepareEntry| PrepareEntry {
                    group: GroupId((entry.group.0 + 1) % groups),
                    digest: entry.digest,
                };
                let twice = prepare.entries.iter().flat_map(|entry| [*entry, elsewhere(entry)]);
                prepare.entries = twice.collect();
                self.lied(count);
            }
            _ => {}
        }
        self.orders_added += (prepare.entries.len() - count) as u64;
        self.last_us = prepare.time_us + prepare.entries.len() as u64;
        self.earlier = prepare.entries.first().copied();
        self.audiences(prepare)
    }

    /// To whom a batch is told.
    fn audiences(&self, prepare: Prepare) -> Vec<Told> {
        let (some, rest) = self.replicas.iter().partition(|replica| **replica == FAVOURITE);
        let told = |audience: Vec<MachineId>, prepare: Prepare| Told {
            audience,
            prepare: Arc::new(prepare),
            is_certified: false,
        };
        match self.behaviour {
            Behaviour::Equivocate => {
                let mut other = prepare.clone();
                other.time_us += 1;
                other.entries.reverse();
                self.lied(1);
                vec![told(some, prepare), told(rest, other)]
            }
            Behaviour::Withhold => {
                self.lied(rest.len());
                vec![told(some, prepare)]
            }
            Behaviour::Silent => {
                self.lied(1);
                vec![told(Vec::new(), prepare)]
            }
            _ => vec![told(self.replicas.clone(), prepare)],
        }
    }
}

/// Sends a batch to those of `to` that are to know it.
fn tell(told: &Told, to: To, outputs: &mut Vec<Output<Message, Record, LogReader>>) {
    let is_meant = |machine: &MachineId| match to {
        To::Machine(other) => *machine == other,
        To::Others | To::Replicas => true,
    };
    outputs.extend(
        told.audience
            .iter()
            .copied()
            .filter(is_meant)
            .map(|machine| Output::Send {
                to: To::Machine(machine),
                message: Message::Prepare(Arc::clone(&told.prepare)),
            }),
    );
}

/// The requests that an input brings to the primary.
fn requests(input: &Input<Message>) -> Vec<&Request> {
    match input {
        Input::Request(request) => vec![request.message()],
        Input::Message { message, .. } => match message.message() {
            Message::GiveRequests(requests) => requests.iter().map(Arc::as_ref).collect(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

impl Agreement for Byzantine {
    type Message = Message;
    type Record = Record;
    type LogReader = LogReader;

    fn replicas(faults: Faults) -> u8 {
        Machine::replicas(faults)
    }

    fn step_all(
        &mut self,
        now: Now,
        inputs: impl IntoIterator<Item = Input<Message>>,
        outputs: &mut Vec<Output<Message, Record, LogReader>>,
    ) {
        self.look(now);
        self.release(now, outputs);
        for input in inputs {
            if let Input::Certified { ticket, warrant } = &input
                && let Some(place) = self.certifying.remove(ticket)
            {
                self.certified(place, *warrant, outputs);
            } else if let Some(input) = self.hear(now, input) {
                self.feed(now, input, outputs);
            }
        }
    }

    fn deadline(&self) -> Option<u64> {
        let release = self.held.iter().map(|(until_us, _)| *until_us).min();
        self.inner
            .deadline()
            .into_iter()
            .chain(release)
            .chain([self.look_us])
            .min()
    }

    fn status(&self) -> Status {
        self.inner.status()
    }

    fn check_invariants(&self) {
        self.inner.check_invariants();
    }
}

impl Hosted for Byzantine {
    const PROTOCOL: Protocol = Protocol::MinBft;

    type Recovery = Recovery;

    fn recover(recovery: &mut Recovery, record: Record) {
        recovery.push(record);
    }

    fn has_foundation(recovery: &Recovery) -> bool {
        recovery.has_foundation()
    }

    fn start(configuration: Configuration, key: SigningKey, counter: Admission, recovery: Recovery) -> Self {
        let promised = counter.positions.get(PRIMARY_SLOT as usize).copied().unwrap_or(0);
        Byzantine {
            groups: configuration.groups_at_first,
            replicas: configuration.replica_machines().collect(),
            file: std::env::var_os(VARIABLE).unwrap_or_default().into(),
            behaviour: Behaviour::default(),
            look_us: 0,
            epoch: counter.epoch,
            promised,
            said: BTreeMap::new(),
            certifying: BTreeMap::new(),
            tickets: 0,
            held: VecDeque::new(),
            view: View(0),
            orders_added: 0,
            last_us: 0,
            earlier: None,
            inner: Machine::new(configuration, key, counter, recovery),
        }
    }

    fn verify(from: MachineId, message: Message, directory: &Directory) -> Result<Verified<Message>, Rejection> {
        verify_message(from, message, directory)
    }

    fn wanted_from(reader: &LogReader) -> Order {
        reader.from()
    }

    fn is_full(reader: &LogReader) -> bool {
        reader.is_full()
    }

    fn read(reader: &mut LogReader, record: Record) {
        reader.push(record);
    }

    fn answer(reader: LogReader) -> LogAnswer<Message> {
        reader.finish()
    }
}
