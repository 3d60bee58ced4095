//! An open transaction of one voter, as `voter/src/slot/` has it: what a backend is asked is asked of the abstract one, and nothing
//! else is left out of what decides. (What the model leaves out as a whole: see `voters.rs`.)

use std::collections::VecDeque;

use bytes::Bytes;
use ordering::identifiers::{ClientId, Digest};
use ordering::message::{Direct, DirectKind, DirectTransaction};
use sql::footprint::{Footprint, Mode};
use sql::names::Made;
use sql::operation::{Exchange, Word};
use voter::ending::{Answered, End, Verdict};
use voter::lock_table::Position;
use voter::transactions::{History, OrderedTransaction, Turn, WORDS_MISSING, chain_over};
use voter::work::{Place, Refused, check, decode_listed, seed};

use super::database::{Backend, Database};
use super::scenarios::Fault;
use super::voter::{Answer, Asker, Key};
use super::world::{World, is_endless};

/// What the owner asks of a transaction's task.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Begin(Asker),
    Refused(Asker, Refused, Footprint),
    Direct(ClientId, Direct, DirectTransaction),
    Extend(Asker, Bytes, u32, Footprint),
    Ending,
    Commit(Box<Commit>),
    Abort { order: u64, asker: Option<Asker> },
}

/// A Commit that has to run.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub asker: Asker,
    pub listed: Vec<Bytes>,
    pub certified: Result<Option<Digest>, Refused>,
    pub applied: Option<(String, Position)>,
    pub held: Footprint,
}

impl Command {
    /// Whether it takes its time: what others do may come before it.
    fn is_slow(&self) -> bool {
        matches!(self, Command::Begin(_) | Command::Commit(_) | Command::Abort { .. })
    }
}

/// What a slot tells.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// A client is answered.
    Answer(ClientId, Key, Answer),
    /// The work of an order is over.
    Finished(u64),
    /// One of the transactions that end at an order has ended.
    Ended(u64),
    /// The transaction has ended here.
    Over,
    /// The database answers otherwise than is certified: the voter is down.
    Down,
}

/// What the rest of the voter lends to a slot.
pub(crate) struct Around<'around> {
    pub world: &'around World,
    pub database: &'around mut Database,
    pub machine: ordering::identifiers::MachineId,
    pub fault: Option<Fault>,
    pub told: Vec<Told>,
}

/// What became of an exchange.
enum Played {
    Answer(Digest),
    /// The exchange was stopped; its backend is gone.
    Stopped,
    /// The exchange still runs.
    Runs,
}

/// A statement that runs and does not end by itself.
#[derive(Clone, Debug)]
struct Running {
    exchange: Bytes,
    command: Command,
    short: bool,
}

/// What became of a list.
enum List {
    All,
    Refused(Refused),
    /// The list runs, and nothing can stop it any more.
    Endless,
}

#[derive(Debug)]
pub(crate) struct Slot {
    transaction: OrderedTransaction,
    held: Footprint,
    live: bool,
    kept: Vec<Command>,
    history: History,
    backend: Option<Backend>,
    built: bool,
    lost: bool,
    all_short: bool,
    begun: bool,
    waiting: VecDeque<Command>,
    mailbox: VecDeque<Command>,
    end: Option<End>,
    running: Option<Running>,
    /// The slot runs a listed exchange that has no end.
    hangs: bool,
}

impl Slot {
    pub(crate) fn new(transaction: OrderedTransaction, held: Footprint, live: bool) -> Self {
        Self {
            transaction,
            held,
            live,
            kept: Vec::new(),
            history: History::default(),
            backend: None,
            built: false,
            lost: false,
            all_short: true,
            begun: false,
            waiting: VecDeque::new(),
            mailbox: VecDeque::new(),
            end: None,
            running: None,
            hangs: false,
        }
    }

    /// What tells two slots apart, but for the backend's answers, which its history tells.
    pub(crate) fn describe(&self) -> String {
        format!("{self:?}")
    }

    /// Whether the task has something to do that takes its time.
    pub(crate) fn can_step(&self) -> bool {
        if self.hangs {
            return false;
        }
        match &self.running {
            Some(running) => self.must_stop(Some((&running.exchange, running.short))),
            None => !self.mailbox.is_empty(),
        }
    }

    /// Whether a statement runs that does not end by itself.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether statements wait for others before them.
    pub(crate) fn waits(&self) -> bool {
        self.begun && !self.hangs && self.running.is_none() && !self.waiting.is_empty()
    }

    /// An end is ordered: what runs and does not belong to it must stop.
    pub(crate) fn end(&mut self, end: End, around: &mut Around<'_>) {
        self.end = Some(end);
        self.send(Command::Ending, around);
    }

    /// A command arrives. What takes no time is done at once, if nothing is before it.
    pub(crate) fn send(&mut self, command: Command, around: &mut Around<'_>) {
        self.mailbox.push_back(command);
        self.take_quick(around);
    }

    /// Goes on with what runs, or takes the next command.
    pub(crate) fn step(&mut self, around: &mut Around<'_>) {
        match self.running.take() {
            Some(running) => {
                self.discard();
                self.answer(running.command, Answer::Unavailable, around);
                self.run_waiting(around);
            }
            None => {
                if let Some(command) = self.mailbox.pop_front() {
                    self.take(command, around);
                }
            }
        }
        self.take_quick(around);
    }

    /// Statements that waited too long: the writes before them are not coming. A voter that misses a write does not follow.
    pub(crate) fn expire(&mut self, around: &mut Around<'_>) {
        for command in std::mem::take(&mut self.waiting) {
            self.lost |= match &command {
                Command::Direct(_, _, place) => place.kind == DirectKind::Write,
                Command::Extend(..) => true,
                _ => false,
            };
            self.answer(command, Answer::Unavailable, around);
        }
    }

    fn take_quick(&mut self, around: &mut Around<'_>) {
        while self.running.is_none()
            && !self.hangs
            && self.mailbox.front().is_some_and(|command| !command.is_slow())
            && let Some(command) = self.mailbox.pop_front()
        {
            self.take(command, around);
        }
    }

    fn take(&mut self, command: Command, around: &mut Around<'_>) {
        match command {
            Command::Begin(asker) => {
                self.begun = true;
                if self.live {
                    self.begin(asker, around);
                } else {
                    around.told.push(Told::Finished(asker.order));
                    self.kept.push(Command::Begin(asker));
                }
                if !self.waiting.is_empty() {
                    self.join(around);
                }
                self.run_waiting(around);
            }
            Command::Refused(asker, refused, held) => {
                self.held = held;
                self.answer(Command::Begin(asker), Answer::refused(&refused), around);
            }
            Command::Direct(client, direct, place) => match place.kind {
                DirectKind::Join => {
                    self.join(around);
                    self.run_waiting(around);
                }
                _ => {
                    self.join(around);
                    self.wait_or_run(Command::Direct(client, direct, place), around);
                }
            },
            Command::Extend(asker, exchange, before, held) => {
                self.held = held.clone();
                let extend = Command::Extend(asker, exchange, before, held);
                if self.live {
                    self.wait_or_run(extend, around);
                } else {
                    around.told.push(Told::Finished(asker.order));
                    self.kept.push(extend);
                }
            }
            Command::Ending => self.drop_waiting(around),
            Command::Commit(commit) => {
                self.drop_waiting(around);
                self.commit(&commit, around);
            }
            Command::Abort { order, asker } => {
                self.drop_waiting(around);
                self.discard();
                if let Some(asker) = asker {
                    around
                        .told
                        .push(Told::Answer(asker.client, asker.key(), Answer::RolledBack));
                }
                around.told.push(Told::Ended(order));
                around.told.push(Told::Over);
            }
        }
    }

    fn drop_waiting(&mut self, around: &mut Around<'_>) {
        for command in std::mem::take(&mut self.waiting) {
            self.answer(command, Answer::Unavailable, around);
        }
    }

    fn discard(&mut self) {
        self.backend = None;
        self.built = false;
    }

    fn must_stop(&self, next: Option<(&Bytes, bool)>) -> bool {
        let (exchange, short) = (next.map(|next| next.0), next.is_some_and(|next| next.1));
        self.end
            .as_ref()
            .is_some_and(|end| end.stops(&self.history, exchange, short))
    }

    /// From now on runs statements as they come: first what was ordered.
    fn join(&mut self, around: &mut Around<'_>) {
        if self.live || !self.begun {
            return;
        }
        self.live = true;
        for command in std::mem::take(&mut self.kept) {
            match command {
                Command::Begin(asker) => self.begin(asker, around),
                extend => self.waiting.push_back(extend),
            }
        }
        self.run_waiting(around);
    }

    fn begin(&mut self, asker: Asker, around: &mut Around<'_>) {
        let mut last = Answer::Unavailable;
        if self.end.is_none() {
            self.open();
            for exchange in self.transaction.first_exchanges().to_vec() {
                let before = self.history.len();
                match self.run_write(&exchange, &Command::Begin(asker), around) {
                    Some(answer) => last = answer,
                    None => return,
                }
                if self.history.len() == before {
                    break;
                }
            }
        }
        self.answer(Command::Begin(asker), last, around);
    }

    fn open(&mut self) {
        self.backend = Some(Backend::default());
        self.built = true;
        self.all_short = true;
    }

    fn wait_or_run(&mut self, command: Command, around: &mut Around<'_>) {
        match self.turn(&command) {
            Turn::Never => self.answer(command, Answer::Unavailable, around),
            Turn::Later if self.end.is_some() || self.lost => self.answer(command, Answer::Unavailable, around),
            Turn::Later => self.waiting.push_back(command),
            Turn::Now => {
                self.run_now(command, around);
                self.run_waiting(around);
            }
        }
    }

    fn run_waiting(&mut self, around: &mut Around<'_>) {
        while self.begun
            && self.running.is_none()
            && let Some(at) = self
                .waiting
                .iter()
                .position(|command| self.turn(command) != Turn::Later)
            && let Some(command) = self.waiting.remove(at)
        {
            match self.turn(&command) {
                Turn::Now => self.run_now(command, around),
                Turn::Later | Turn::Never => self.answer(command, Answer::Unavailable, around),
            }
        }
    }

    fn turn(&self, command: &Command) -> Turn {
        match command {
            _ if !self.begun || self.running.is_some() => Turn::Later,
            Command::Direct(_, _, place) => self.history.turn(place.writes_before, Some(&place.chain)),
            Command::Extend(_, _, before, _) => self.history.turn(*before, None),
            _ => Turn::Now,
        }
    }

    fn run_now(&mut self, command: Command, around: &mut Around<'_>) {
        let answer = match &command {
            Command::Direct(_, direct, place) if place.kind == DirectKind::Write => {
                self.run_write(&direct.exchange, &command, around)
            }
            Command::Direct(..) => Some(self.word(around)),
            Command::Extend(_, exchange, ..) => self.run_write(exchange, &command, around),
            _ => None,
        };
        if let Some(answer) = answer {
            self.answer(command, answer, around);
        }
    }

    /// Makes sure that the backend's transaction is exactly what has run here; false when that cannot be had.
    fn ensure_built(&mut self, around: &mut Around<'_>) -> bool {
        if self.lost {
            return false;
        }
        if self.built && self.backend.is_some() {
            return true;
        }
        let ran = std::mem::take(&mut self.history);
        let rebuilt = matches!(self.run_list(&ran.exchanges(), false, around), List::All);
        let same = rebuilt && self.history.answers() == ran.answers();
        if !same {
            self.lost = true;
            self.discard();
        }
        self.history = ran;
        same
    }

    /// Opens the transaction again and runs a list.
    fn run_list(&mut self, listed: &[Bytes], only_short: bool, around: &mut Around<'_>) -> List {
        self.history = History::default();
        self.open();
        for exchange in listed {
            let short = match self.job(exchange, around) {
                Ok(short) => short,
                Err(refused) => return List::Refused(refused),
            };
            if only_short && !short {
                return List::Refused(words_missing());
            }
            if is_endless(exchange) {
                return List::Endless;
            }
            let answer = self.perform(exchange, around);
            self.history.push(exchange.clone(), answer);
        }
        List::All
    }

    /// Checks an exchange against what is held; whether it is short.
    fn job(&mut self, exchange: &Bytes, around: &Around<'_>) -> Result<bool, Refused> {
        let decoded = decode_listed(exchange)?;
        let context = &self.transaction.context;
        let analysis = check(
            &around.world.analyzer,
            &decoded,
            context,
            Place::Listed,
            &self.held,
            &Made::default(),
        )?;
        self.all_short &= analysis.short;
        Ok(analysis.short)
    }

    fn perform(&mut self, exchange: &Bytes, around: &Around<'_>) -> Digest {
        let tables = tables(around.world, exchange);
        let clock = seed(&self.transaction.nonce, self.transaction.began, self.history.len());
        let backend = self.backend.get_or_insert_default();
        backend.run(around.database, exchange.clone(), tables, clock)
    }

    /// Runs an exchange that is listed; none: it still runs.
    fn run_write(&mut self, exchange: &Bytes, command: &Command, around: &mut Around<'_>) -> Option<Answer> {
        if !self.ensure_built(around) {
            return Some(Answer::Unavailable);
        }
        let short = match self.job(exchange, around) {
            Ok(short) => short,
            Err(refused) => return Some(Answer::refused(&refused)),
        };
        match self.play(exchange, short, around) {
            Played::Answer(answer) => {
                self.history.push(exchange.clone(), answer);
                Some(Answer::Done(answer))
            }
            Played::Stopped => Some(Answer::Unavailable),
            Played::Runs => {
                self.running = Some(Running {
                    exchange: exchange.clone(),
                    command: command.clone(),
                    short,
                });
                None
            }
        }
    }

    fn play(&mut self, exchange: &Bytes, short: bool, around: &Around<'_>) -> Played {
        if self.must_stop(Some((exchange, short))) {
            self.discard();
            return Played::Stopped;
        }
        if is_endless(exchange) {
            return Played::Runs;
        }
        Played::Answer(self.perform(exchange, around))
    }

    /// Gives this voter's word on what has run.
    fn word(&mut self, around: &mut Around<'_>) -> Answer {
        if !self.ensure_built(around) {
            return Answer::Unavailable;
        }
        let (id, began) = (self.transaction.id, self.transaction.began);
        let (list, answers) = (self.history.list(), self.history.answers());
        let word = around.world.word(around.machine, id, began, &list, answers);
        Answer::Word {
            began,
            list,
            word: SaidWord(word),
        }
    }

    /// Commits, and answers.
    fn commit(&mut self, commit: &Commit, around: &mut Around<'_>) {
        self.held = commit.held.clone();
        let asker = commit.asker;
        let Some(answer) = self.try_commit(commit, around) else {
            return;
        };
        around.told.push(Told::Answer(asker.client, asker.key(), answer));
        self.discard();
        around.told.push(Told::Finished(asker.order));
        around.told.push(Told::Over);
    }

    /// None: it runs without end, or this voter is down.
    fn try_commit(&mut self, commit: &Commit, around: &mut Around<'_>) -> Option<Answer> {
        let certified = match &commit.certified {
            Ok(certified) => *certified,
            Err(refused) => return Some(Answer::refused(refused)),
        };
        let list = chain_over(commit.listed.iter().map(Bytes::as_ref));
        let is_it = self.history.is(&list, certified) || around.fault == Some(Fault::CommitsWhatRan);
        let in_place = self.built && !self.lost && self.backend.is_some() && is_it;
        if !in_place {
            match self.run_list(&commit.listed, certified.is_none(), around) {
                List::All => {}
                List::Refused(refused) => return Some(Answer::refused(&refused)),
                List::Endless => {
                    self.hangs = true;
                    return None;
                }
            }
        }
        let answered = Answered {
            certified,
            answers: self.history.answers(),
            all_short: self.all_short,
            records: commit.applied.is_some(),
            is_sound: true,
        };
        let verdict = match around.fault {
            Some(Fault::CommitsWhatRan) => Verdict::Commit,
            _ => answered.verdict(),
        };
        match verdict {
            Verdict::Commit => {
                let backend = self.backend.take().unwrap_or_default();
                around
                    .database
                    .commit(commit.asker.order, backend, commit.applied.clone());
                Some(Answer::Committed)
            }
            Verdict::WordsMissing => Some(Answer::refused(&words_missing())),
            Verdict::Executed => Some(Answer::Committed),
            Verdict::RolledBack => Some(Answer::RolledBack),
            Verdict::Contradicted => {
                around.told.push(Told::Down);
                None
            }
        }
    }

    /// Answers a command; its order is over.
    fn answer(&self, command: Command, answer: Answer, around: &mut Around<'_>) {
        match command {
            Command::Direct(client, direct, _) => {
                around
                    .told
                    .push(Told::Answer(client, Key::Direct(direct.number), answer));
            }
            Command::Begin(asker) | Command::Extend(asker, ..) => {
                around.told.push(Told::Answer(asker.client, asker.key(), answer));
                around.told.push(Told::Finished(asker.order));
            }
            _ => {}
        }
    }
}

/// A word, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SaidWord(pub Word);

fn words_missing() -> Refused {
    Refused::new(
        WORDS_MISSING,
        "the transaction needs the words of f+1 voters to be committed",
    )
}

/// The tables that an exchange writes.
pub(crate) fn tables(world: &World, exchange: &Bytes) -> Vec<String> {
    let Ok(decoded) = Exchange::decode(exchange) else {
        return Vec::new();
    };
    let analysis = world
        .analyzer
        .exchange(&decoded, &sql::operation::SessionContext::default());
    let footprint = analysis.map(|analysis| analysis.footprint).unwrap_or_default();
    let written = footprint.entries().iter().filter(|(_, mode)| *mode == Mode::Exclusive);
    written.map(|(resource, _)| resource.to_string()).collect()
}
