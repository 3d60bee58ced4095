//! The fake order, what carries it to the voters, and what the voters answer: with lag, and with a voter that lies.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ordering::identifiers::{ClientId, GroupId, MachineId, Order};
use ordering::message::{
    ClientMessage, CommitDb, CommitDbEntry, Direct, EffectDigests, Outcome, Request, ResultKey, ResultMessage,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sql::operation::Operation;
use tokio::sync::{mpsc, watch};
use voter::{VoterInput, VoterOutput};

/// How many voters there are.
pub const VOTERS: usize = 3;

/// The client under which machine `m` orders what its voter wants ordered is this one plus `m`.
pub const NODE_CLIENTS: u32 = 100;

/// The latest answers of the machines to one question.
pub type Answers = BTreeMap<u8, ResultMessage>;

/// What reaches one voter.
#[derive(Default)]
struct Port {
    input: Option<mpsc::Sender<VoterInput>>,
    /// Entries of the log before this index were sent to the voter.
    next: usize,
    /// The voter lags: what is ordered does not reach it.
    held: bool,
    /// Counts the voter's lives: a fetch of an earlier one means nothing.
    life: u64,
}

#[derive(Default)]
struct State {
    entries: Vec<CommitDbEntry>,
    ports: [Port; VOTERS],
    answers: HashMap<(ClientId, ResultKey), Answers>,
    numbers: HashMap<ClientId, u64>,
}

/// The network of one seed.
pub struct Network {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    liar: Option<u8>,
    lies: Mutex<ChaCha8Rng>,
    trace: bool,
}

impl Network {
    /// A network without voters. `liar`: the machine whose voter's answers are altered.
    pub fn new(liar: Option<u8>, seed: u64, trace: bool) -> Arc<Self> {
        let network = Arc::new(Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            liar,
            lies: Mutex::new(ChaCha8Rng::seed_from_u64(seed ^ 0x6c69_6172)),
            trace,
        });
        for machine in 1..=VOTERS as u8 {
            tokio::spawn(deliver(Arc::downgrade(&network), machine));
        }
        network
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Says something about the run if it is traced.
    pub fn note(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{}", text());
        }
    }

    /// The last order.
    pub fn last_order(&self) -> u64 {
        self.state().entries.len() as u64
    }

    /// A number of this client that was never used.
    pub fn number(&self, client: ClientId) -> u64 {
        let mut state = self.state();
        let number = state.numbers.entry(client).or_default();
        *number += 1;
        *number
    }

    /// Orders an operation under a number; its order.
    pub fn order(&self, client: ClientId, number: u64, operation: &Operation) -> u64 {
        let request = Request {
            client,
            number,
            floor: 0,
            home: operation.footprint.home().home_number(),
            operation: Bytes::from(borsh::to_vec(operation).unwrap()),
            signature: [0; 64],
        };
        let mut state = self.state();
        let order = state.entries.len() as u64 + 1;
        state.entries.push(CommitDbEntry {
            order: Order(order),
            time_us: 1_700_000_000_000_000 + order,
            digest: request.digest(),
            request: Some(Arc::new(request)),
        });
        drop(state);
        self.change();
        order
    }

    /// Sends a direct statement to a machine's voter, if there is one.
    pub async fn direct(&self, machine: u8, client: ClientId, direct: Direct) {
        self.send(machine, VoterInput::Direct { client, direct }).await;
    }

    /// Sends what a client sends besides requests to a machine's voter.
    pub async fn client_message(&self, machine: u8, client: ClientId, message: ClientMessage) {
        let input = match message {
            ClientMessage::Direct(direct) => VoterInput::Direct { client, direct },
            ClientMessage::Recall(key) => VoterInput::Recall { client, key },
            // No script keeps anything outside the order.
            ClientMessage::Store(_) => return,
            ClientMessage::GiveUp(key) => VoterInput::GiveUp { client, key },
            ClientMessage::RecallChunk { key, index } => VoterInput::RecallChunk { client, key, index },
            ClientMessage::Release(key) => VoterInput::Release { client, key },
            ClientMessage::KeepAlive => VoterInput::KeepAlive(client),
        };
        self.send(machine, input).await;
    }

    async fn send(&self, machine: u8, input: VoterInput) {
        let sender = self.state().ports[usize::from(machine) - 1].input.clone();
        if let Some(sender) = sender {
            let _ = sender.send(input).await;
        }
    }

    /// The answers so far.
    pub fn answers(&self, client: ClientId, key: ResultKey) -> Answers {
        self.state().answers.get(&(client, key)).cloned().unwrap_or_default()
    }

    /// Waits until `wanted` makes something of the answers, at most this long.
    pub async fn wait<T>(
        &self,
        client: ClientId,
        key: ResultKey,
        within: Duration,
        mut wanted: impl FnMut(&Answers) -> Option<T>,
    ) -> Option<T> {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                changed.mark_unchanged();
                if let Some(found) = wanted(&self.answers(client, key)) {
                    return Some(found);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(within, waiting).await.ok().flatten()
    }

    /// Lets a voter lag, or catch up.
    pub fn hold(&self, machine: u8, held: bool) {
        self.state().ports[usize::from(machine) - 1].held = held;
        self.change();
    }

    /// A voter begins a life; the number of that life.
    pub fn attach(&self, machine: u8, input: mpsc::Sender<VoterInput>) -> u64 {
        let mut state = self.state();
        let all = state.entries.len();
        let port = &mut state.ports[usize::from(machine) - 1];
        port.input = Some(input);
        port.life += 1;
        // It fetches what it lacks.
        port.next = all;
        port.life
    }

    /// A voter has ended.
    pub fn detach(&self, machine: u8) {
        self.state().ports[usize::from(machine) - 1].input = None;
    }

    /// Takes a voter's outputs until it ends.
    pub async fn pump(self: Arc<Self>, machine: u8, life: u64, mut outputs: mpsc::Receiver<VoterOutput>) {
        while let Some(output) = outputs.recv().await {
            match output {
                VoterOutput::Result { message, .. } if message.outcome == Outcome::Running => {}
                VoterOutput::Result { client, message } => self.take(machine, client, message),
                VoterOutput::Fetch { from } => {
                    let mut state = self.state();
                    let port = &mut state.ports[usize::from(machine) - 1];
                    if port.life == life {
                        let from = usize::try_from(from.0.saturating_sub(1)).unwrap_or(usize::MAX);
                        port.next = port.next.min(from);
                    }
                    drop(state);
                    self.change();
                }
                VoterOutput::Order { operation, .. } => {
                    let client = ClientId(NODE_CLIENTS + u32::from(machine));
                    let operation: Operation = borsh::from_slice(&operation).unwrap();
                    let order = self.order(client, self.number(client), &operation);
                    self.note(|| format!("    m{machine} orders {:?} at {order}", operation.work));
                }
                VoterOutput::Effects { to, message } => self.effects(machine, to, &message),
                VoterOutput::Notifications { .. }
                | VoterOutput::Reply(_)
                | VoterOutput::FetchRequest { .. }
                | VoterOutput::FetchBody { .. } => {}
            }
        }
    }

    /// Brings what a voter says of its server's changes to the others. A lying one says anything to each.
    fn effects(&self, machine: u8, to: Option<MachineId>, message: &EffectDigests) {
        for other in (1..=VOTERS as u8).filter(|other| *other != machine && to.is_none_or(|to| to.0 == *other)) {
            let mut message = message.clone();
            if self.liar == Some(machine) {
                let mut random = self.lies.lock().unwrap_or_else(PoisonError::into_inner);
                let lies = message.entries.iter_mut().filter(|_| random.random_ratio(1, 2));
                lies.for_each(|entry| entry.digest[0] ^= other);
            }
            let input = self.state().ports[usize::from(other) - 1].input.clone();
            let from = MachineId(machine);
            // What finds no room is asked for again.
            if let Some(input) = input {
                drop(input.try_send(VoterInput::Effects { from, message }));
            }
        }
    }

    fn take(&self, machine: u8, client: ClientId, message: ResultMessage) {
        let message = if self.liar == Some(machine) {
            self.lie(message)
        } else {
            message
        };
        self.note(|| {
            let (key, order) = (message.key, message.order.0);
            format!(
                "      m{machine} to {}: {key:?} at {order}: {}",
                client.0,
                brief(&message.outcome)
            )
        });
        let mut state = self.state();
        let answers = state.answers.entry((client, message.key)).or_default();
        let says_nothing = matches!(message.outcome, Outcome::Unavailable | Outcome::Running);
        if !says_nothing || !answers.contains_key(&machine) {
            answers.insert(machine, message);
        }
        drop(state);
        self.change();
    }

    /// What a lying voter says in place of the truth.
    fn lie(&self, mut message: ResultMessage) -> ResultMessage {
        let mut random = self.lies.lock().unwrap_or_else(PoisonError::into_inner);
        if random.random_ratio(1, 3) {
            return message;
        }
        match &mut message.outcome {
            Outcome::Word { answers, signature } => match random.random_range(0..3) {
                0 => answers[0] ^= 1,
                1 => signature[0] ^= 1,
                _ => message.outcome = Outcome::Unavailable,
            },
            outcome => {
                *outcome = match random.random_range(0..4) {
                    0 => Outcome::Unavailable,
                    1 => Outcome::Executed,
                    2 => Outcome::Refused {
                        sqlstate: "40001".into(),
                        message: "a lie".into(),
                        detail: String::new(),
                        hint: String::new(),
                    },
                    _ => invented(&mut random),
                }
            }
        }
        message
    }
}

/// A result that no server gave.
fn invented(random: &mut impl Rng) -> Outcome {
    let result = sql::operation::ExchangeResult {
        messages: Bytes::from_static(b"C\0\0\0\x0bCOMMIT\0"),
        status: if random.random() { b'I' } else { b'T' },
    };
    let digests = result.digests().unwrap();
    Outcome::Done {
        sequence: digests.sequence,
        multiset: digests.multiset,
        whole: Some(Bytes::from(borsh::to_vec(&result).unwrap())),
    }
}

/// An outcome in a few words.
pub fn brief(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done { sequence, whole, .. } => {
            let result = whole.as_ref().and_then(|whole| borsh::from_slice(whole).ok());
            let said = result.map_or_else(|| "a digest".into(), |result| crate::answer::brief(&result));
            format!("{said} ({:02x}{:02x})", sequence[0], sequence[1])
        }
        Outcome::Refused {
            sqlstate,
            message,
            detail,
            ..
        } => format!("refused {sqlstate}: {message} {detail}"),
        Outcome::Word { answers, .. } => format!("word {:02x}{:02x}", answers[0], answers[1]),
        other => format!("{other:?}"),
    }
}

/// Sends the log to one voter as far as it may know it, again from where it asks.
async fn deliver(network: std::sync::Weak<Network>, machine: u8) {
    let Some(mut changed) = network.upgrade().map(|network| network.changed.subscribe()) else {
        return;
    };
    loop {
        changed.mark_unchanged();
        let Some(strong) = network.upgrade() else { return };
        let due = {
            let mut state = strong.state();
            let all = state.entries.len();
            let port = &mut state.ports[usize::from(machine) - 1];
            let next = port.next;
            if port.held || next >= all {
                None
            } else {
                port.input.clone().map(|input| {
                    port.next += 1;
                    (input, next)
                })
            }
            .map(|(input, next)| (input, state.entries[next].clone()))
        };
        drop(strong);
        match due {
            Some((input, entry)) => {
                for from in [1, 2].map(MachineId) {
                    let message = CommitDb {
                        group: GroupId(0),
                        entries: vec![entry.clone()],
                    };
                    let _ = input.send(VoterInput::CommitDb { from, message }).await;
                }
            }
            None => {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}
