//! The task of one open interactive transaction: it holds the backend, and runs what belongs to the transaction one
//! after the other.

pub(crate) mod ending;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::{ClientId, Order};
use ordering::message::{Direct, DirectKind, DirectTransaction, Outcome, ResultKey, ResultMessage};
use sql::footprint::Footprint;
use sql::operation::Exchange;
use sql::statement::Effect;
use tokio::sync::mpsc;

use crate::executor::{Asker, Event, Shared, observe, outcome};
use crate::postgres::PostgresError;
use crate::postgres::backend::{Answer, Clock, Job, Record};
use crate::postgres::pool::{Borrowed, Purpose};
use crate::transactions::{OrderedTransaction, Progress, Turn};
use crate::work::{Catalog, Place, Refused, changes_catalog, changes_settings, check, decode, seed};

/// Direct statements that wait in one transaction, at most.
const DIRECT_QUEUE_MAX: usize = 256;

/// Bytes of direct statements that wait in one transaction, at most.
const DIRECT_QUEUE_BYTES_MAX: usize = 32 << 20;

/// What the owner asks of a transaction's task. The owner bounds direct statements by [`SlotHandle::direct`]; of the
/// others at most one Extend, and what ends the transaction, is on its way, and reads up to the client's window.
pub(crate) enum Command {
    /// Opens the transaction and runs Begin's exchanges; tells the owner.
    Begin(Asker),
    /// A direct statement.
    Direct(ClientId, Direct, DirectTransaction),
    /// An Extend that has its locks, with what the transaction holds now.
    Extend(Asker, Bytes, u32, Footprint),
    /// An ordered read in this transaction.
    Read(Asker, Bytes, u32),
    /// The end of the transaction is ordered, and follows: what is still missing is not waited for.
    Ending,
    /// Commits exactly these writes.
    Commit(Asker, Vec<Bytes>, Record, Footprint),
    /// Rolls back; tells the owner that this order has finished. The client is answered if it asked.
    Abort(u64, Option<Asker>),
}

impl Command {
    /// The order that is finished with it; none for a direct statement.
    pub(crate) fn order(&self) -> Option<u64> {
        match self {
            Command::Direct(..) | Command::Ending => None,
            Command::Begin(asker)
            | Command::Extend(asker, ..)
            | Command::Read(asker, ..)
            | Command::Commit(asker, ..) => Some(asker.order),
            Command::Abort(order, _) => Some(*order),
        }
    }
}

/// The owner's end of a transaction's task.
#[derive(Clone)]
pub(crate) struct SlotHandle {
    sender: mpsc::UnboundedSender<Command>,
    queued: Arc<AtomicUsize>,
    queued_bytes: Arc<AtomicUsize>,
}

impl SlotHandle {
    /// An ordered command; given back when the transaction's task has ended.
    pub(crate) fn send(&self, command: Command) -> Option<Command> {
        self.sender.send(command).err().map(|unsent| unsent.0)
    }

    /// The end of the transaction is ordered.
    pub(crate) fn end(&self) {
        let _ = self.sender.send(Command::Ending);
    }

    /// A direct statement; false when too many wait.
    pub(crate) fn direct(&self, client: ClientId, direct: Direct, place: DirectTransaction) -> bool {
        let bytes = direct.exchange.len();
        let queued = self.queued.load(Ordering::Relaxed);
        let queued_bytes = self.queued_bytes.load(Ordering::Relaxed);
        if queued >= DIRECT_QUEUE_MAX || queued_bytes.saturating_add(bytes) > DIRECT_QUEUE_BYTES_MAX {
            return false;
        }
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.sender.send(Command::Direct(client, direct, place)).is_ok()
    }
}

/// A statement that waits for writes before it.
struct Waiting {
    command: Command,
    deadline: Instant,
}

pub(crate) struct Slot {
    shared: Arc<Shared>,
    transaction: OrderedTransaction,
    catalog: Catalog,
    held: Footprint,
    executed: Arc<AtomicU64>,
    queued: Arc<AtomicUsize>,
    queued_bytes: Arc<AtomicUsize>,
    progress: Progress,
    /// A read failed, so that the backend's transaction has failed though no write has.
    failed_by_read: bool,
    /// Statements of this transaction may have changed the catalog: nothing stays prepared.
    catalog_changed: bool,
    /// Settings of the backend may have been changed by statements.
    settings_unknown: bool,
    backend: Option<Borrowed>,
    /// Its Begin has had its turn. Before, nothing that it waits for can be said to be missing.
    begun: bool,
    /// Its end is ordered.
    ending: bool,
    waiting: VecDeque<Waiting>,
}

/// Starts the task of a transaction. `stale`: its Begin is not run (it is being replayed); its Commit runs everything.
pub(crate) fn start(
    shared: Arc<Shared>,
    transaction: OrderedTransaction,
    catalog: Catalog,
    held: Footprint,
    executed: Arc<AtomicU64>,
    stale: bool,
    tasks: &mut tokio::task::JoinSet<()>,
) -> SlotHandle {
    let (sender, commands) = mpsc::unbounded_channel();
    let handle = SlotHandle {
        sender,
        queued: Arc::default(),
        queued_bytes: Arc::default(),
    };
    let slot = Slot {
        shared,
        transaction,
        catalog,
        held,
        executed,
        queued: Arc::clone(&handle.queued),
        queued_bytes: Arc::clone(&handle.queued_bytes),
        progress: Progress {
            stale,
            ..Progress::default()
        },
        failed_by_read: false,
        catalog_changed: false,
        settings_unknown: false,
        backend: None,
        begun: false,
        ending: false,
        waiting: VecDeque::new(),
    };
    tasks.spawn(slot.run(commands));
    handle
}

impl Slot {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let shared = Arc::clone(&self.shared);
        loop {
            let command = match self.next_deadline() {
                None => commands.recv().await,
                Some(deadline) => match tokio::time::timeout_at(deadline.into(), commands.recv()).await {
                    Ok(command) => command,
                    Err(_) => {
                        if let Err(error) = self.expire().await {
                            return shared.tell(Event::Lost(error.to_string()));
                        }
                        continue;
                    }
                },
            };
            let Some(command) = command else { return };
            match self.take(command).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let began = self.transaction.began;
                    return shared.tell(Event::Lost(format!("transaction begun at {began}: {error}")));
                }
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.waiting.iter().map(|waiting| waiting.deadline);
        deadlines.min().filter(|_| self.begun)
    }

    /// When a statement that waits from now on has waited too long.
    fn missing_at(&self) -> Instant {
        Instant::now() + self.shared.config.limits.direct_wait
    }

    /// Takes a command; false when the transaction has ended.
    async fn take(&mut self, command: Command) -> Result<bool, PostgresError> {
        match command {
            Command::Begin(asker) => {
                self.begin(asker).await?;
                self.begun = true;
                // Statements that came while the Begin waited for what was before it.
                let deadline = self.missing_at();
                self.waiting.iter_mut().for_each(|waiting| waiting.deadline = deadline);
                self.run_waiting().await?;
            }
            Command::Ending => {
                self.ending = true;
                self.drop_waiting().await;
            }
            Command::Commit(asker, listed, record, held) => {
                self.drop_waiting().await;
                self.commit(asker, &listed, &record, &held).await?;
                return Ok(false);
            }
            Command::Abort(order, asker) => {
                self.drop_waiting().await;
                self.abort(order, asker).await?;
                return Ok(false);
            }
            other => self.wait_or_run(other).await?,
        }
        Ok(true)
    }

    /// Runs a statement whose turn it is, and then those that waited for it.
    async fn wait_or_run(&mut self, command: Command) -> Result<(), PostgresError> {
        if let Command::Extend(_, _, _, held) = &command {
            self.held.extend(held);
        }
        match self.turn(&command) {
            Turn::Never => self.refuse(command).await,
            Turn::Later if self.ending => self.refuse(command).await,
            Turn::Later => {
                let deadline = self.missing_at();
                self.waiting.push_back(Waiting { command, deadline });
            }
            Turn::Now => {
                self.run_now(command).await?;
                self.run_waiting().await?;
            }
        }
        Ok(())
    }

    /// Runs the statements that waited and whose turn has come.
    async fn run_waiting(&mut self) -> Result<(), PostgresError> {
        let due = |slot: &Self| {
            let turn = |waiting: &Waiting| slot.turn(&waiting.command) != Turn::Later;
            slot.waiting.iter().position(turn)
        };
        while let Some(waiting) = due(self).and_then(|at| self.waiting.remove(at)) {
            match self.turn(&waiting.command) {
                Turn::Now => self.run_now(waiting.command).await?,
                Turn::Later | Turn::Never => self.refuse(waiting.command).await,
            }
        }
        Ok(())
    }

    fn turn(&self, command: &Command) -> Turn {
        match command {
            Command::Direct(_, _, place) => self.progress.turn(place.writes_before, Some(&place.chain)),
            Command::Extend(_, _, before, _) | Command::Read(_, _, before) => self.progress.turn(*before, None),
            Command::Begin(_) | Command::Ending | Command::Commit(..) | Command::Abort(..) => Turn::Now,
        }
    }

    /// Statements that waited too long: the writes before them are not coming. A write that this voter misses makes its
    /// transaction stale.
    async fn expire(&mut self) -> Result<(), PostgresError> {
        let now = Instant::now();
        while let Some(at) = self.waiting.iter().position(|waiting| waiting.deadline <= now) {
            let Some(waiting) = self.waiting.remove(at) else { break };
            let write = match &waiting.command {
                Command::Direct(_, _, place) => place.kind == DirectKind::Write,
                Command::Extend(..) => true,
                _ => false,
            };
            if write {
                self.become_stale().await?;
            }
            self.refuse(waiting.command).await;
        }
        Ok(())
    }

    async fn drop_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            self.refuse(waiting.command).await;
        }
    }

    /// Answers that this voter cannot say, and lets the ordered history go on.
    async fn refuse(&mut self, command: Command) {
        self.answer(command, Outcome::Unavailable).await;
    }

    async fn answer(&self, command: Command, outcome: Outcome) {
        match command {
            Command::Direct(client, direct, _) => {
                self.queued.fetch_sub(1, Ordering::Relaxed);
                self.queued_bytes.fetch_sub(direct.exchange.len(), Ordering::Relaxed);
                let message = ResultMessage {
                    key: ResultKey::Direct(direct.number),
                    order: Order(self.executed.load(Ordering::Relaxed)),
                    outcome,
                };
                self.shared.reporter.report(client, message, direct.whole).await;
            }
            Command::Begin(asker)
            | Command::Extend(asker, ..)
            | Command::Read(asker, ..)
            | Command::Commit(asker, ..) => {
                asker.answer(&self.shared.reporter, outcome).await;
                self.shared.tell(Event::Finished(asker.order, None));
            }
            Command::Abort(order, _) => self.shared.tell(Event::Finished(order, None)),
            Command::Ending => {}
        }
    }

    async fn become_stale(&mut self) -> Result<(), PostgresError> {
        self.progress.stale = true;
        if let Some(borrowed) = self.backend.as_mut()
            && borrowed.backend.status() != b'I'
        {
            let sequences = crate::work::sequences(&self.held);
            borrowed.backend.roll_back(&sequences).await?;
        }
        Ok(())
    }

    async fn begin(&mut self, asker: Asker) -> Result<(), PostgresError> {
        if self.progress.stale {
            self.refuse(Command::Begin(asker)).await;
            return Ok(());
        }
        let started = Instant::now();
        let mut last = self.open(Some(asker.order)).await?;
        if last.is_none() {
            for exchange in self.transaction.first_exchanges().to_vec() {
                last = Some(self.run_write(&exchange).await?);
                if self.progress.stale {
                    break;
                }
            }
        }
        observe("begin", started);
        let outcome = last.unwrap_or(Outcome::Unavailable);
        self.answer(Command::Begin(asker), outcome).await;
        Ok(())
    }

    /// Borrows a backend if there is none, and opens the transaction on it. Settings that the server refuses are a result.
    async fn open(&mut self, announce: Option<u64>) -> Result<Option<Outcome>, PostgresError> {
        let context = &self.transaction.context;
        let mut borrowed = match self.backend.take() {
            Some(borrowed) => borrowed,
            None => {
                self.shared
                    .pool
                    .borrow(Purpose::Transaction, &context.role, &context.settings)
                    .await?
            }
        };
        let refused = borrowed
            .backend
            .prepare(&context.settings, self.catalog.generation)
            .await?;
        if refused.is_none() {
            let announced = || {
                if let Some(order) = announce {
                    self.shared.tell(Event::SnapshotOpen(order));
                }
            };
            borrowed
                .backend
                .begin(self.transaction.isolation, self.transaction.read_only, announced)
                .await?;
        }
        self.backend = Some(borrowed);
        match refused {
            Some(answer) => {
                self.progress.stale = true;
                Ok(Some(outcome(answer).unwrap_or(Outcome::Unavailable)))
            }
            None => Ok(None),
        }
    }

    async fn run_now(&mut self, command: Command) -> Result<(), PostgresError> {
        let started = Instant::now();
        let (outcome, stage) = match &command {
            Command::Direct(_, direct, place) if place.kind == DirectKind::Write => {
                (self.run_write(&direct.exchange.clone()).await?, "direct_write")
            }
            Command::Direct(_, direct, _) => (self.run_read(&direct.exchange.clone()).await?, "direct"),
            Command::Extend(_, exchange, ..) => (self.run_write(&exchange.clone()).await?, "extend"),
            Command::Read(_, exchange, _) => (self.run_read(&exchange.clone()).await?, "read"),
            Command::Begin(_) | Command::Ending | Command::Commit(..) | Command::Abort(..) => return Ok(()),
        };
        observe(stage, started);
        self.answer(command, outcome).await;
        Ok(())
    }

    fn place(&self) -> Place {
        Place::Transaction {
            isolation: self.transaction.isolation,
            read_only: self.transaction.read_only,
        }
    }

    /// The exchange as the next one of this transaction.
    fn job(&mut self, exchange: &[u8]) -> Result<Job, Refused> {
        let exchange = decode(exchange)?;
        let copies = matches!(exchange, Exchange::CopyData { .. } | Exchange::CopyEnd { .. });
        if copies != self.copying() {
            return Err(Refused::new(
                "08P01",
                "COPY data and nothing else must follow COPY FROM STDIN",
            ));
        }
        let context = &self.transaction.context;
        let analysis = check(&self.catalog.analyzer, &exchange, context, self.place(), &self.held)?;
        self.settings_unknown |= changes_settings(&analysis);
        self.catalog_changed |= changes_catalog(&analysis);
        let clock = Clock {
            time_us: self.transaction.time_us,
            seed: seed(&self.transaction.nonce, self.transaction.began, self.progress.writes),
        };
        Ok(Job {
            exchange,
            analysis,
            clock,
        })
    }

    /// Runs an exchange that counts as a write. A refusal leaves the transaction as it was.
    async fn run_write(&mut self, exchange: &[u8]) -> Result<Outcome, PostgresError> {
        let job = match self.job(exchange) {
            Ok(job) => job,
            Err(refused) => return Ok(refused.into()),
        };
        let still_failed = self.failed_by_read;
        let answer = self.within(&job).await?;
        self.progress.wrote(exchange);
        self.failed_by_read = still_failed && self.status() == b'E';
        if self.failed_by_read {
            // The others ran this write in a healthy transaction.
            self.become_stale().await?;
            return Ok(Outcome::Unavailable);
        }
        self.finish_statement(answer).await
    }

    async fn run_read(&mut self, exchange: &[u8]) -> Result<Outcome, PostgresError> {
        let job = match self.job(exchange) {
            Ok(job) if job.analysis.effect <= Effect::Read => job,
            Ok(_) => return Ok(Refused::new("25006", "a direct read must not write").into()),
            Err(refused) => return Ok(refused.into()),
        };
        let before = self.status();
        let answer = self.within(&job).await?;
        self.failed_by_read |= before == b'T' && self.status() == b'E';
        self.finish_statement(answer).await
    }

    fn copying(&self) -> bool {
        self.backend.as_ref().is_some_and(|borrowed| borrowed.backend.copying())
    }

    fn status(&self) -> u8 {
        self.backend.as_ref().map_or(b'I', |borrowed| borrowed.backend.status())
    }

    async fn within(&mut self, job: &Job) -> Result<Answer, PostgresError> {
        let Some(borrowed) = self.backend.as_mut() else {
            return Ok(Answer::Fault("no backend".into()));
        };
        if self.catalog_changed {
            borrowed.backend.forget_prepared();
        }
        borrowed.backend.within(job).await
    }

    async fn finish_statement(&mut self, answer: Answer) -> Result<Outcome, PostgresError> {
        match outcome(answer) {
            Some(outcome) => Ok(outcome),
            None => {
                self.become_stale().await?;
                Ok(Outcome::Unavailable)
            }
        }
    }

    fn give_back(&mut self) {
        let Some(mut borrowed) = self.backend.take() else {
            return;
        };
        if self.settings_unknown {
            borrowed.backend.forget_settings();
        }
        if self.catalog_changed {
            borrowed.backend.forget_prepared();
        }
        borrowed.give_back();
    }
}

/// How long a task sleeps before it tries a Commit again.
const RETRY_DELAY: Duration = Duration::from_millis(50);
