//! One correct voter, as `voter/src/owner/` has it: production types decide, and this drives them. (What the model leaves out as a
//! whole: see `voters.rs`.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use borsh::BorshDeserialize;
use bytes::Bytes;
use ordering::identifiers::{ClientId, Digest, GroupId, MachineId, Order};
use ordering::message::{CommitDbEntry, Direct, DirectTransaction, Request};
use sql::footprint::Footprint;
use sql::operation::{Operation, SessionContext, TransactionId, TransactionWrite, Word, Work};
use voter::client_window::{Admission, ClientWindows};
use voter::ending::{Abandoned, Due, End, OrderedCommit, count_abandoned};
use voter::floors::{Candidate, FloorState, Floors};
use voter::lock_table::{BeginKind, Grant, LockLimits, LockRefusal, LockTable, Node, Position};
use voter::outcome::Outcome;
use voter::survived::Survived;
use voter::transactions::{Begin, OrderedTransaction};
use voter::vote::{Decided, VoteCounter};
use voter::work::{Place, Refused, check, decode, decode_listed, recorded_home, seed};

use super::database::{Backend, Database};
use super::scenarios::Fault;
use super::slot::{Around, Command, Commit, SaidWord, Slot, Told, tables};
use super::world::{FAULTS, MACHINES, World, node_client};

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

    /// Feeds one decided order.
    fn feed(&mut self, decided: Decided) {
        let order = decided.order.0;
        self.life.last_fed = order;
        self.life.unfinished.insert(order);
        self.life.floors.fed(order);
        let Some(request) = decided.request else {
            return self.finished(order);
        };
        let asker = Asker {
            client: request.client,
            number: request.number,
            order,
        };
        let admission = self.life.windows.admit(request.client, request.number, request.floor);
        if admission != Admission::New {
            return self.finished(order);
        }
        let Ok(operation) = Operation::try_from_slice(&request.operation) else {
            return self.refuse(asker, Refused::new("08P01", "malformed operation"));
        };
        let home = operation.footprint.home().home_number();
        if home != request.home || self.life.votes.group_of(home) != decided.group {
            let refused = Refused::new("08P01", "the operation's home is not the one it was routed by");
            return self.refuse(asker, refused);
        }
        let operation = Arc::new(operation);
        let node = MACHINES
            .into_iter()
            .find(|machine| node_client(*machine) == request.client);
        if let Some(node) = node {
            return self.feed_node(order, node, &operation);
        }
        let fed = Fed {
            asker,
            operation: Arc::clone(&operation),
        };
        self.life.fed.insert(order, fed);
        self.feed_operation(asker, &operation, decided.time_us, request.operation.len());
    }

    fn feed_node(&mut self, order: u64, node: MachineId, operation: &Operation) {
        if let Work::Abandon { transactions } = &operation.work {
            let life = &mut self.life;
            let is_open = |id| life.locks.is_open(id);
            let over = count_abandoned(&mut life.abandoned, node, transactions, FAULTS, is_open);
            return self.abandon(order, over);
        }
        self.finished(order);
    }

    /// Ends transactions at the order of what abandoned them.
    fn abandon(&mut self, order: u64, transactions: BTreeSet<TransactionId>) {
        let (mut held, mut slots) = (Footprint::empty(), Vec::new());
        for id in &transactions {
            if let Some((held_by_it, began)) = self.leave(order, *id) {
                held.extend(&held_by_it);
                slots.push(began);
            }
        }
        if slots.is_empty() {
            return self.finished(order);
        }
        self.life.ends.insert(order, slots.len());
        let aborts = slots
            .iter()
            .map(|began| (*began, Command::Abort { order, asker: None }));
        let start = Start::Slots(aborts.collect());
        for began in &slots {
            self.with_slot(*began, |slot, around| slot.end(End::Abort, around));
        }
        let transactions: Vec<_> = transactions.into_iter().collect();
        let may_run = self.life.locks.run_ends(order, &transactions, &held);
        self.run(order, may_run, start);
    }

    fn feed_operation(&mut self, asker: Asker, operation: &Operation, time_us: u64, bytes: usize) {
        let order = asker.order;
        let footprint = &operation.footprint;
        if transaction_of(&operation.work).is_some_and(|id| id.client != asker.client.0) {
            return self.refuse(
                asker,
                Refused::new("42501", "the transaction belongs to another client"),
            );
        }
        match &operation.work {
            Work::OneShot { .. } => {
                if let Err(refusal) = self.life.locks.one_shot(order, footprint, bytes) {
                    self.refuse(asker, refusal);
                }
            }
            Work::Begin {
                transaction,
                isolation,
                read_only,
                live,
                exchanges,
            } => {
                let begin = Begin {
                    id: *transaction,
                    client: asker.client,
                    order,
                    time_us,
                    isolation: *isolation,
                    read_only: *read_only,
                    live: *live,
                    context: operation.context.clone(),
                    nonce: operation.nonce,
                    exchanges: exchanges.clone(),
                };
                self.feed_begin(asker, begin, footprint, bytes);
            }
            Work::Extend {
                transaction, exchange, ..
            } => self.feed_extend(asker, *transaction, footprint, exchange.clone()),
            Work::Commit {
                transaction,
                writes,
                words,
            } => self.feed_commit(asker, *transaction, writes, words),
            Work::Abort { transaction } => self.end_by_client(asker, *transaction),
            Work::Read { .. } | Work::Abandon { .. } | Work::Nothing | Work::Cancel { .. } => {
                self.refuse(asker, Refused::new("42501", "only nodes order such an operation"));
            }
        }
    }

    fn feed_begin(&mut self, asker: Asker, begin: Begin, footprint: &Footprint, bytes: usize) {
        let (order, id) = (begin.order, begin.id);
        let ordered = OrderedTransaction::new(begin);
        let kind = BeginKind {
            snapshot: ordered.reads_snapshot(),
        };
        if let Err(refusal) = self.life.locks.begin(order, id, footprint, kind, bytes) {
            return self.refuse(asker, refusal);
        }
        self.life.floors.begun(order);
        self.life.transactions.insert(id, (ordered, false));
    }

    fn feed_extend(&mut self, asker: Asker, id: TransactionId, footprint: &Footprint, exchange: Bytes) {
        if let Some((open, _)) = self.life.transactions.get_mut(&id)
            && let Err(refused) = open.extend(asker.order, exchange, BYTES_MAX)
        {
            return self.refuse(asker, refused);
        }
        let (replaced, waits) = self.life.locks.extend(asker.order, id, footprint);
        if let Some(replaced) = replaced
            .and_then(|order| self.life.fed.get(&order))
            .map(|fed| fed.asker)
        {
            self.refuse(
                replaced,
                Refused::new("57014", "canceling statement due to user request"),
            );
        }
        if let Err(refusal) = waits {
            self.refuse(asker, refusal);
        }
    }

    fn feed_commit(&mut self, asker: Asker, id: TransactionId, writes: &[TransactionWrite], words: &[Word]) {
        let listed = match self.life.transactions.get(&id) {
            Some((open, _)) => open.committed(writes, BYTES_MAX as u64),
            None => Ok(Vec::new()),
        };
        match listed {
            Ok(listed) => self.end_by_commit(asker, id, listed, words),
            Err(refused) => {
                self.say(asker.client, asker.key(), Answer::refused(&refused));
                match self.leave(asker.order, id) {
                    Some((held, began)) => self.end_slot(asker, began, id, &held, End::Abort, None),
                    None => self.finished(asker.order),
                }
            }
        }
    }

    /// Takes an open transaction out of all tables at an order, and releases its locks; what it held, and its slot.
    fn leave(&mut self, order: u64, id: TransactionId) -> Option<(Footprint, u64)> {
        let ended = self.life.locks.end(order, id);
        self.life.abandoned.remove(&id);
        let waited = ended.cancelled.filter(|cancelled| *cancelled != order);
        let waited = waited.and_then(|cancelled| self.life.fed.get(&cancelled));
        if let Some(asker) = waited.map(|fed| fed.asker) {
            self.refuse(asker, Refused::ended_before());
        }
        let (open, has_slot) = self.life.transactions.remove(&id)?;
        self.life.floors.ending(open.began, order);
        Some((ended.held?, has_slot.then_some(open.began)?))
    }

    fn end_by_commit(&mut self, asker: Asker, id: TransactionId, listed: Vec<Bytes>, words: &[Word]) {
        let over = self.is_over(id);
        let began = self.life.transactions.get(&id).map_or(0, |(open, _)| open.began);
        let Some((held, slot)) = self.leave(asker.order, id) else {
            return match over {
                true => self.settle(asker, Answer::Unavailable),
                false => self.refuse(asker, LockRefusal::NoTransaction),
            };
        };
        let ordered = OrderedCommit {
            order: asker.order,
            transaction: id,
            began,
            listed,
            words,
            held: &held,
        };
        let faults = match self.fault {
            Some(Fault::OneWordCertifies) => 0,
            _ => FAULTS,
        };
        let due = ordered.due(&self.life.survived, self.world.electorate(faults));
        let mut end = due.end();
        if let (Some(Fault::WordsUnchecked), End::Commit { certified, .. }) = (self.fault, &mut end) {
            *certified = !words.is_empty();
        }
        let commit = match due {
            Due::Over(outcome) => {
                self.say(asker.client, asker.key(), outcome.into());
                None
            }
            Due::Run {
                listed,
                certified,
                applied,
            } => Some(Command::Commit(Box::new(Commit {
                asker,
                listed,
                certified,
                applied,
                held: held.clone(),
            }))),
        };
        self.end_slot(asker, slot, id, &held, end, commit);
    }

    fn end_by_client(&mut self, asker: Asker, id: TransactionId) {
        let over = self.is_over(id);
        match self.leave(asker.order, id) {
            Some((held, slot)) => {
                let abort = Command::Abort {
                    order: asker.order,
                    asker: Some(asker),
                };
                self.end_slot(asker, slot, id, &held, End::Abort, Some(abort));
            }
            None if over => self.settle(asker, Answer::Unavailable),
            None => self.settle(asker, Answer::RolledBack),
        }
    }

    /// Whether an open transaction began before this life of the voter.
    fn is_over(&self, id: TransactionId) -> bool {
        self.life.locks.held(id).is_some() && !self.life.transactions.contains_key(&id)
    }

    /// Ends a slot at an order; without a command, with an abort that nobody is answered.
    fn end_slot(
        &mut self,
        asker: Asker,
        began: u64,
        id: TransactionId,
        held: &Footprint,
        end: End,
        command: Option<Command>,
    ) {
        let order = asker.order;
        self.with_slot(began, |slot, around| slot.end(end, around));
        let command = command.unwrap_or(Command::Abort { order, asker: None });
        let may_run = self.life.locks.run(order, Node::End { transaction: id }, held);
        self.run(order, may_run, Start::Slots(vec![(began, command)]));
    }

    /// Runs, or refuses, what the lock table has granted.
    fn granted(&mut self, grant: Grant) {
        if grant.order <= self.life.resumed_from {
            return;
        }
        let Some(fed) = self.life.fed.get(&grant.order) else {
            return;
        };
        let (asker, operation) = (fed.asker, Arc::clone(&fed.operation));
        match &operation.work {
            Work::OneShot { exchange } => self.grant_one_shot(asker, grant, &operation, exchange),
            Work::Begin {
                transaction, exchanges, ..
            } => self.grant_begin(asker, grant, *transaction, exchanges),
            Work::Extend {
                transaction,
                writes_before,
                exchange,
            } => self.grant_extend(asker, grant, *transaction, exchange, *writes_before),
            _ => {}
        }
    }

    fn grant_one_shot(&mut self, asker: Asker, grant: Grant, operation: &Operation, exchange: &Bytes) {
        let footprint = &operation.footprint;
        let applied = recorded_home(footprint).map(|home| (home, grant.position()));
        let over = applied
            .as_ref()
            .filter(|(home, position)| self.life.survived.includes(home, *position));
        if let Some((home, position)) = over {
            let outcome = self.life.survived.outcome(home, *position);
            return self.settle(asker, outcome.into());
        }
        let checked = decode(exchange).and_then(|exchange| {
            let context = &operation.context;
            check(&self.world.analyzer, &exchange, context, Place::OneShot, footprint)
        });
        if let Err(refused) = checked {
            return self.refuse(asker, refused);
        }
        let one_shot = OneShot {
            asker,
            exchange: exchange.clone(),
            clock: seed(&operation.nonce, grant.order, 0),
            applied,
        };
        let may_run = self.life.locks.run(grant.order, Node::OneShot, footprint);
        self.run(grant.order, may_run, Start::OneShot(Box::new(one_shot)));
    }

    fn run_one_shot(&mut self, order: u64) {
        let Some(one_shot) = self.life.one_shots.remove(&order) else {
            return;
        };
        let mut backend = Backend::default();
        let tables = tables(self.world, &one_shot.exchange);
        backend.run(&self.database, one_shot.exchange, tables, one_shot.clock);
        self.database.commit(order, backend, one_shot.applied);
        self.settle(one_shot.asker, Answer::Committed);
    }

    fn grant_begin(&mut self, asker: Asker, grant: Grant, id: TransactionId, exchanges: &[Bytes]) {
        let (open, held) = (self.life.transactions.get_mut(&id), self.life.locks.held(id).cloned());
        let (Some((open, has_slot)), Some(held)) = (open, held) else {
            if self.fault != Some(Fault::BeginsNeverEnd) {
                self.refuse(asker, Refused::ended_before());
            }
            return;
        };
        let ordered = open.clone();
        *has_slot = true;
        let refused = check_all(self.world, exchanges, &ordered, &held).err();
        let live = ordered.is_live(self.machine) && refused.is_none();
        let snapshot = ordered.reads_snapshot();
        let slot = Slot::new(ordered, held.clone(), live);
        self.life.slots.insert(grant.order, slot);
        let node = Node::Within {
            transaction: id,
            snapshot,
        };
        let command = match refused {
            Some(refused) => Command::Refused(asker, refused, held.clone()),
            None => Command::Begin(asker),
        };
        let may_run = self.life.locks.run(grant.order, node, &held);
        self.run(grant.order, may_run, Start::Slots(vec![(grant.order, command)]));
        self.retry_early();
    }

    fn grant_extend(&mut self, asker: Asker, grant: Grant, id: TransactionId, exchange: &Bytes, before: u32) {
        let open = self.life.transactions.get(&id);
        let (Some((open, has_slot)), Some(held)) = (open, self.life.locks.held(id).cloned()) else {
            return self.refuse(asker, Refused::ended_before());
        };
        if !has_slot {
            return self.finished(asker.order);
        }
        let began = open.began;
        let checked = match grant.written_since {
            true => Err(Refused::written_since()),
            false => check_all(self.world, std::slice::from_ref(exchange), open, &held),
        };
        let command = match checked {
            Ok(()) => Command::Extend(asker, exchange.clone(), before, held.clone()),
            Err(refused) => Command::Refused(asker, refused, held.clone()),
        };
        let node = Node::Within {
            transaction: id,
            snapshot: false,
        };
        let may_run = self.life.locks.run(grant.order, node, &held);
        self.run(grant.order, may_run, Start::Slots(vec![(began, command)]));
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

fn check_all(
    world: &World,
    exchanges: &[Bytes],
    ordered: &OrderedTransaction,
    held: &Footprint,
) -> Result<(), Refused> {
    if exchanges.is_empty() && !ordered.reads_snapshot() {
        return Err(Refused::new("08P01", "a Begin without an exchange"));
    }
    for bytes in exchanges {
        let exchange = decode_listed(bytes)?;
        check(&world.analyzer, &exchange, &ordered.context, Place::Listed, held)?;
    }
    Ok(())
}

fn transaction_of(work: &Work) -> Option<TransactionId> {
    match work {
        Work::OneShot { .. } | Work::Abandon { .. } | Work::Nothing | Work::Cancel { .. } => None,
        Work::Read { transaction, .. } => *transaction,
        Work::Begin { transaction, .. }
        | Work::Extend { transaction, .. }
        | Work::Commit { transaction, .. }
        | Work::Abort { transaction } => Some(*transaction),
    }
}

/// The context of every direct message: voters take that of the Begin.
pub(crate) fn no_context() -> Bytes {
    Bytes::from(borsh::to_vec(&SessionContext::default()).expect("contexts encode"))
}
