//! One correct voter, as `voter/src/owner/` has it: production types decide, and this drives them. (What the model leaves out as a
//! whole: see `voters.rs`.)

mod orders;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use borsh::BorshDeserialize;
use bytes::Bytes;
use ordering::identifiers::{ClientId, Digest, GroupId, MachineId, Order};
use ordering::message::{CommitDbEntry, Direct, DirectTransaction, Request};
use sql::operation::{Operation, SessionContext, TransactionId, Work};
use voter::client_window::ClientWindows;
use voter::ending::Abandoned;
use voter::floors::{Candidate, FloorState, Floors};
use voter::listeners::Listeners;
use voter::lock_table::{LockLimits, LockTable, Position};
use voter::outcome::Outcome;
use voter::survived::Survived;
use voter::transactions::OrderedTransaction;
use voter::vote::VoteCounter;
use voter::work::Refused;

use super::database::Database;
use super::scenarios::Fault;
use super::slot::{Around, Command, SaidWord, Slot, Told};
use super::world::{FAULTS, MACHINES, World};

/// The bytes of a transaction that are kept, at most; never reached here.
const BYTES_MAX: usize = 1 << 20;

/// What an answer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// A request of this number.
    Ordered(u64),
    /// A direct statement of this number.
    Direct(u64),
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done(Digest),
    Committed,
    RolledBack,
    Refused(String),
    Word { began: u64, list: Digest, word: SaidWord },
    Unavailable,
}

impl Answer {
    pub(crate) fn refused(refused: &Refused) -> Self {
        Answer::Refused(refused.sqlstate.clone())
    }
}

impl From<Outcome> for Answer {
    /// What was over before this life of the voter.
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Executed => Answer::Committed,
            _ => Answer::Unavailable,
        }
    }
}

/// Who asked for an ordered operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub client: ClientId,
    pub number: u64,
    pub order: u64,
}

impl Asker {
    pub(crate) fn key(self) -> Key {
        Key::Ordered(self.number)
    }
}

/// A direct message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub client: ClientId,
    pub direct: Direct,
}

/// What makes a voter go on.
#[derive(Clone, Debug)]
pub(crate) enum Stimulus {
    /// The next order is decided.
    Order(Arc<Request>),
    /// A direct message arrives.
    Direct(u64, Arc<Message>),
    /// The task of the transaction that began at an order goes on.
    Step(u64),
    /// A one-shot runs in the database.
    Run(u64),
    /// Statements of the transaction that began at an order have waited too long.
    Expire(u64),
    /// A candidate for the floor is taken.
    Candidate,
    /// The server and the voter crash, and start again without so many commits.
    Crash(usize),
}

/// Work that waits for other work to finish in the database.
#[derive(Debug)]
enum Start {
    OneShot(Box<OneShot>),
    Slots(Vec<(u64, Command)>),
}

#[derive(Debug)]
struct OneShot {
    asker: Asker,
    exchange: Bytes,
    clock: String,
    applied: Option<(String, Position)>,
}

struct Fed {
    asker: Asker,
    operation: Arc<Operation>,
}

/// What one life of the voter knows.
struct Life {
    votes: VoteCounter,
    windows: ClientWindows,
    locks: LockTable,
    fed: BTreeMap<u64, Fed>,
    blocked: BTreeMap<u64, Start>,
    one_shots: BTreeMap<u64, Box<OneShot>>,
    transactions: BTreeMap<TransactionId, (OrderedTransaction, bool)>,
    /// By the order of their Begins.
    slots: BTreeMap<u64, Slot>,
    /// Transactions that have yet to end, for the orders that end several.
    ends: BTreeMap<u64, usize>,
    abandoned: Abandoned,
    survived: Survived,
    unfinished: BTreeSet<u64>,
    last_fed: u64,
    floors: Floors,
    resumed_from: u64,
    early: Vec<Arc<Message>>,
    delivered: BTreeSet<u64>,
}

/// Something that a client was told, in whatever life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub client: ClientId,
    pub key: Key,
    pub answer: Answer,
}

/// A voter with its server.
pub(crate) struct Voter<'world> {
    world: &'world World,
    machine: MachineId,
    fault: Option<Fault>,
    pub database: Database,
    life: Life,
    pub said: Vec<Said>,
    /// The lock state after each order, by whatever life.
    pub lock_states: BTreeMap<u64, Digest>,
    /// Whether two lives had different lock states after one order.
    pub forgot_locks: bool,
    pub is_down: bool,
    lives: u8,
}

impl Life {
    fn start(database: &Database, fault: Option<Fault>) -> Self {
        let (floor, mut state) = match database.floor() {
            Some((order, bytes)) => (
                *order,
                FloorState::try_from_slice(bytes).expect("what was written decodes"),
            ),
            None => (0, FloorState::default()),
        };
        if fault == Some(Fault::ForgetsLocks) {
            state.locks = voter::lock_table::LogicalSnapshot::default();
        }
        let survived = match fault {
            Some(Fault::ForgetsPositions) => Survived::default(),
            _ => Survived::new(database.applied()),
        };
        Self {
            votes: VoteCounter::new(FAULTS, 1, Order(floor + 1)),
            windows: state.windows,
            locks: LockTable::restore(LockLimits::default(), &state.locks),
            fed: BTreeMap::new(),
            blocked: BTreeMap::new(),
            one_shots: BTreeMap::new(),
            transactions: BTreeMap::new(),
            slots: BTreeMap::new(),
            ends: BTreeMap::new(),
            abandoned: state.abandoned,
            survived,
            unfinished: BTreeSet::new(),
            last_fed: floor,
            floors: Floors::new(floor),
            resumed_from: floor,
            early: Vec::new(),
            delivered: BTreeSet::new(),
        }
    }
}

impl<'world> Voter<'world> {
    pub(crate) fn new(world: &'world World, machine: MachineId, fault: Option<Fault>) -> Self {
        let database = Database::default();
        Self {
            world,
            machine,
            fault,
            life: Life::start(&database, fault),
            database,
            said: Vec::new(),
            lock_states: BTreeMap::new(),
            forgot_locks: false,
            is_down: false,
            lives: 1,
        }
    }

    /// Everything on which what it does from now on depends, and everything that is checked. (The physical part of the lock
    /// table is a function of what was fed and of what has not finished.)
    pub(crate) fn describe(&self) -> String {
        let life = &self.life;
        let slots: Vec<_> = life.slots.values().map(Slot::describe).collect();
        let transactions: Vec<_> = life.transactions.iter().collect();
        format!(
            "{:?}",
            (
                (
                    &self.database,
                    &self.said,
                    &self.lock_states,
                    self.forgot_locks,
                    self.is_down
                ),
                (self.machine, self.lives, &life.windows, life.locks.snapshot()),
                (life.fed.keys().collect::<Vec<_>>(), &life.blocked, &life.one_shots),
                (transactions, slots, &life.abandoned, &life.survived, &life.unfinished),
                (
                    life.last_fed,
                    &life.floors,
                    life.resumed_from,
                    &life.early,
                    &life.delivered,
                    &life.ends
                ),
            )
        )
    }

    /// How many orders have been fed.
    pub(crate) fn fed(&self) -> u64 {
        self.life.last_fed
    }

    /// What this voter can do by itself.
    pub(crate) fn own(&self) -> Vec<Stimulus> {
        let life = &self.life;
        let steps = life.slots.iter().filter(|(_, slot)| slot.can_step());
        let runs = life.one_shots.keys();
        let mut own: Vec<_> = steps.map(|(began, _)| Stimulus::Step(*began)).collect();
        own.extend(runs.map(|order| Stimulus::Run(*order)));
        own
    }

    /// Transactions of which statements wait for others before them.
    pub(crate) fn waiting(&self) -> Vec<u64> {
        let slots = self.life.slots.iter();
        slots
            .filter(|(_, slot)| slot.waits())
            .map(|(began, _)| *began)
            .collect()
    }

    /// Whether a message has arrived in this life.
    pub(crate) fn has(&self, message: u64) -> bool {
        self.life.delivered.contains(&message)
    }

    /// Whether a candidate for the floor would be new.
    pub(crate) fn can_propose(&self) -> bool {
        self.life.floors.newest() < self.life.last_fed
    }

    /// Orders whose work is not over, although nothing that is open holds it up.
    pub(crate) fn stuck(&self) -> Vec<u64> {
        let snapshot = self.life.locks.snapshot();
        let waits = |order: &u64| {
            let extends = snapshot.transactions.iter().filter_map(|open| open.extend.as_ref());
            let mut orders = snapshot
                .waiting
                .iter()
                .map(|waiting| waiting.order)
                .chain(extends.map(|extend| extend.0));
            orders.any(|waiting| waiting == *order)
        };
        // Whoever opened it can end it, and nodes can.
        let runs = |order: &u64| {
            let transaction = self.life.fed.get(order).and_then(|fed| match &fed.operation.work {
                Work::Begin { transaction, .. } | Work::Extend { transaction, .. } => Some(*transaction),
                _ => None,
            });
            let open = transaction.and_then(|id| self.life.transactions.get(&id));
            let slot = open.and_then(|(open, _)| self.life.slots.get(&open.began));
            slot.is_some_and(Slot::is_running)
        };
        let unfinished = self.life.unfinished.iter();
        unfinished
            .filter(|order| !waits(order) && !runs(order))
            .copied()
            .collect()
    }

    /// Takes a stimulus.
    pub(crate) fn take(&mut self, stimulus: &Stimulus) {
        if self.is_down {
            return;
        }
        match stimulus {
            Stimulus::Order(request) => self.decide(request),
            Stimulus::Direct(number, message) => {
                self.life.delivered.insert(*number);
                self.direct(Arc::clone(message));
            }
            Stimulus::Step(began) => self.with_slot(*began, Slot::step),
            Stimulus::Expire(began) => {
                self.with_slot(*began, Slot::expire);
                if self.fault == Some(Fault::LocalTimeout) {
                    let open = self.life.transactions.values().find(|(open, _)| open.began == *began);
                    if let Some(id) = open.map(|(open, _)| open.id) {
                        self.life.locks.end(self.life.last_fed, id);
                    }
                }
            }
            Stimulus::Run(order) => self.run_one_shot(*order),
            Stimulus::Candidate => {
                let candidate = Candidate {
                    order: self.life.last_fed,
                    state: FloorState {
                        windows: self.life.windows.clone(),
                        locks: self.life.locks.snapshot(),
                        abandoned: self.life.abandoned.clone(),
                        waiting: voter::floors::WaitingOneShots::new(),
                        // Nobody listens in the model.
                        listeners: Listeners::default(),
                    },
                };
                if self.fault == Some(Fault::FloorTooEarly) {
                    self.write_floor(candidate);
                } else {
                    self.life.floors.propose(candidate);
                }
            }
            Stimulus::Crash(lost) => {
                self.database.crash(*lost);
                self.life = Life::start(&self.database, self.fault);
                self.lives += 1;
            }
        }
        self.advance();
        if let Some(candidate) = self.life.floors.take_ready() {
            self.write_floor(candidate);
        }
    }

    fn write_floor(&mut self, candidate: Candidate) {
        let state = borsh::to_vec(&candidate.state).expect("floors encode");
        self.database.write_floor(candidate.order, state);
        self.life.floors.written(candidate.order);
    }

    /// The votes of the replicas arrive: of one liar's and of two correct ones' for each order.
    fn decide(&mut self, request: &Arc<Request>) {
        let order = self.life.votes.next_order();
        let entry = CommitDbEntry {
            order,
            time_us: order.0,
            digest: request.digest(),
            request: Some(Arc::clone(request)),
        };
        let lie = CommitDbEntry {
            digest: [0; 32],
            request: None,
            ..entry.clone()
        };
        for (machine, entry) in MACHINES.iter().rev().zip([lie, entry.clone(), entry]) {
            self.life.votes.count(*machine, GroupId(0), entry);
        }
    }

    /// Feeds and grants as far as it goes.
    fn advance(&mut self) {
        loop {
            while let Some(grant) = self.life.locks.next_grant() {
                self.granted(grant);
            }
            let order = self.life.last_fed;
            if order > self.life.resumed_from {
                let state = (&self.life.windows, self.life.locks.snapshot(), &self.life.abandoned);
                let digest = *blake3::hash(&borsh::to_vec(&state).expect("lock states encode")).as_bytes();
                let known = self.lock_states.entry(order).or_insert(digest);
                self.forgot_locks |= *known != digest;
            }
            let Some(decided) = self.life.votes.take_next() else {
                break;
            };
            self.feed(decided);
        }
    }

    fn around(&mut self) -> (Around<'_>, &mut Life) {
        let around = Around {
            world: self.world,
            database: &mut self.database,
            machine: self.machine,
            fault: self.fault,
            told: Vec::new(),
        };
        (around, &mut self.life)
    }

    /// Lets a slot do something, and hears what it tells.
    fn with_slot(&mut self, began: u64, act: impl FnOnce(&mut Slot, &mut Around<'_>)) {
        let (mut around, life) = self.around();
        let Some(slot) = life.slots.get_mut(&began) else { return };
        act(slot, &mut around);
        for told in around.told {
            match told {
                Told::Answer(client, key, answer) => self.say(client, key, answer),
                Told::Finished(order) => self.finished(order),
                Told::Ended(order) => self.ended(order),
                Told::Over => {
                    self.life.slots.remove(&began);
                }
                Told::Down => self.is_down = true,
            }
        }
    }

    fn say(&mut self, client: ClientId, key: Key, answer: Answer) {
        let said = Said { client, key, answer };
        if !self.said.contains(&said) {
            self.said.push(said);
        }
    }

    fn settle(&mut self, asker: Asker, answer: Answer) {
        self.say(asker.client, asker.key(), answer);
        self.finished(asker.order);
    }

    fn refuse(&mut self, asker: Asker, refused: impl Into<Refused>) {
        self.settle(asker, Answer::refused(&refused.into()));
    }

    /// The own work of an order is over.
    fn finished(&mut self, order: u64) {
        self.life.fed.remove(&order);
        self.life.unfinished.remove(&order);
        self.life.floors.finished(order);
        let ready = self.life.locks.finished(order);
        for order in ready {
            if let Some(start) = self.life.blocked.remove(&order) {
                self.start(start);
            }
        }
    }

    /// One of the transactions that end at an order has ended; the order is over when all have.
    fn ended(&mut self, order: u64) {
        let left = self.life.ends.remove(&order).unwrap_or(1);
        if left > 1 {
            self.life.ends.insert(order, left - 1);
        } else {
            self.finished(order);
        }
    }

    fn start(&mut self, start: Start) {
        match start {
            Start::OneShot(one_shot) => {
                self.life.one_shots.insert(one_shot.asker.order, one_shot);
            }
            Start::Slots(commands) => {
                for (began, command) in commands {
                    self.with_slot(began, |slot, around| slot.send(command, around));
                }
            }
        }
    }

    fn run(&mut self, order: u64, may_run: bool, start: Start) {
        if may_run || self.fault == Some(Fault::IgnoresDependencies) {
            self.start(start);
        } else {
            self.life.blocked.insert(order, start);
        }
    }

    fn direct(&mut self, message: Arc<Message>) {
        let Some(place) = &message.direct.transaction else {
            return;
        };
        match self.slot_of(message.client, place) {
            Some(began) => self.deliver(began, &message, place.clone()),
            None => self.life.early.push(message),
        }
    }

    fn slot_of(&self, client: ClientId, place: &DirectTransaction) -> Option<u64> {
        let id = TransactionId {
            client: client.0,
            session: place.session,
            number: place.number,
        };
        let (open, has_slot) = self.life.transactions.get(&id)?;
        has_slot.then_some(open.began)
    }

    fn deliver(&mut self, began: u64, message: &Message, place: DirectTransaction) {
        let command = Command::Direct(message.client, message.direct.clone(), place);
        self.with_slot(began, |slot, around| slot.send(command, around));
    }

    /// Takes up statements that waited for their transaction's Begin.
    fn retry_early(&mut self) {
        for message in std::mem::take(&mut self.life.early) {
            self.direct(message);
        }
    }
}

/// The context of every direct message: voters take that of the Begin.
pub(crate) fn no_context() -> Bytes {
    Bytes::from(borsh::to_vec(&SessionContext::default()).expect("contexts encode"))
}
