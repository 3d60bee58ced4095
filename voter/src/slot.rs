//! The task of one open interactive transaction: it holds the backend, and runs what belongs to the transaction one
//! after the other.
//!
//! A *live* voter runs statements as they come. A *lazy* one keeps what was ordered and runs nothing before the Commit,
//! unless the client joins it. Either can run the list of what has run again at any time, on another backend: whatever
//! is not known to be exactly that list is thrown away.

mod command;
pub(crate) mod ending;
mod list;
mod object_numbers;
mod replay;
mod running;
pub(crate) mod signal;
mod stored;
mod waiting;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ordering::identifiers::{ClientId, Order};
use ordering::message::{Direct, DirectKind, DirectTransaction, ResultKey};
use sql::footprint::Footprint;
use sql::names::Made;
use sql::operation::ExchangeResult;
use tokio::sync::mpsc;

use crate::ending::End;
use crate::executor::{Event, Shared, observe, outcome};
use crate::outcome::{Outcome, Report};
use crate::postgres::PostgresError;
use crate::postgres::backend::Answer;
use crate::postgres::capture::command_complete;
use crate::postgres::notified::Notified;
use crate::postgres::pool::Borrowed;
use crate::postgres::written::Written;
use crate::transactions::{History, OrderedTransaction};
use crate::work::Catalog;
pub(crate) use command::{Command, Commit, Finish};
use object_numbers::LeftOut;
use signal::Signal;
use waiting::Waiting;

/// Direct statements that wait in one transaction, at most.
const DIRECT_QUEUE_MAX: usize = 8192;

/// Bytes of direct statements that wait in one transaction, at most.
const DIRECT_QUEUE_BYTES_MAX: usize = 32 << 20;

/// Cancelled Extends that are remembered, at most.
const CANCELLED_MAX: usize = 1024;

/// The owner's end of a transaction's task.
#[derive(Clone)]
pub(crate) struct SlotHandle {
    sender: mpsc::UnboundedSender<Command>,
    signal: Arc<Signal>,
    queued: Arc<AtomicUsize>,
    queued_bytes: Arc<AtomicUsize>,
}

impl SlotHandle {
    /// An ordered command; given back when the transaction's task has ended.
    pub(crate) fn send(&self, command: Command) -> Option<Command> {
        self.sender.send(command).err().map(|unsent| unsent.0)
    }

    /// The end of the transaction is ordered: what runs and does not belong to it is stopped.
    pub(crate) fn end(&self, end: End) {
        self.signal.end(end);
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
        if matches!(place.kind, DirectKind::Cancel { .. }) && !self.signal.cancel(place.writes_before) {
            return false;
        }
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.sender.send(Command::Direct(client, direct, place)).is_ok()
    }
}

pub(crate) struct Slot {
    shared: Arc<Shared>,
    transaction: OrderedTransaction,
    catalog: Catalog,
    held: Footprint,
    executed: Arc<AtomicU64>,
    signal: Arc<Signal>,
    queued: Arc<AtomicUsize>,
    queued_bytes: Arc<AtomicUsize>,
    /// Statements run as they come.
    live: bool,
    /// Ordered commands of a lazy voter, whose orders are over for the owner.
    kept: Vec<Command>,
    /// Requests whose Extend was cancelled by the client.
    cancelled: BTreeSet<u64>,
    /// The listed exchanges that have run.
    history: History,
    backend: Option<Borrowed>,
    /// The backend's open transaction has run exactly `history`.
    built: bool,
    /// A read has run that may have left something in the backend: it does not commit.
    tainted: bool,
    /// What is deferred has been run: nothing more is listed in this backend, where no constraint is deferred any more.
    /// What came of it, for the answer of the COMMIT.
    settled: Option<Answer>,
    /// A read failed, so that the backend's transaction has failed though no write has.
    failed_by_read: bool,
    /// The snapshot of Begin is gone; what runs again has a newer one.
    snapshot_lost: bool,
    /// This voter cannot follow: a statement that the others have run failed here. It runs the list at the Commit.
    lost: bool,
    /// Everything listed so far is short.
    all_short: bool,
    /// A listed exchange notifies, as its text says.
    notifies: bool,
    /// What the COMMIT of this transaction notified.
    notified: Notified,
    /// A listed exchange has changed the search path or the role.
    names_changed: bool,
    /// Which names the listed exchanges that ran here have given another meaning.
    made: Made,
    /// Statements of this transaction may have changed the catalog: nothing stays prepared.
    catalog_changed: bool,
    /// What the COMMIT of this transaction wrote to the catalog.
    catalog_written: Written,
    /// Object numbers that the server may still be made to leave out.
    left_out: LeftOut,
    /// Settings of the backend may have been changed by statements.
    settings_changed: bool,
    /// Its Begin has had its turn. Before, nothing that it waits for can be said to be missing.
    begun: bool,
    waiting: VecDeque<Waiting>,
}

/// What a transaction's task starts with.
pub(crate) struct Start {
    /// What all voters know of it.
    pub(crate) transaction: OrderedTransaction,
    /// The catalog of its Begin.
    pub(crate) catalog: Catalog,
    /// What it holds.
    pub(crate) held: Footprint,
    /// Whether its statements run as they come.
    pub(crate) live: bool,
}

/// Starts the task of a transaction.
pub(crate) fn start(
    shared: Arc<Shared>,
    start: Start,
    executed: Arc<AtomicU64>,
    tasks: &mut tokio::task::JoinSet<()>,
) -> SlotHandle {
    let (sender, commands) = mpsc::unbounded_channel();
    let handle = SlotHandle {
        sender,
        signal: Arc::default(),
        queued: Arc::default(),
        queued_bytes: Arc::default(),
    };
    let slot = Slot {
        shared,
        transaction: start.transaction,
        catalog: start.catalog,
        held: start.held,
        executed,
        signal: Arc::clone(&handle.signal),
        queued: Arc::clone(&handle.queued),
        queued_bytes: Arc::clone(&handle.queued_bytes),
        live: start.live,
        kept: Vec::new(),
        cancelled: BTreeSet::new(),
        history: History::default(),
        backend: None,
        built: false,
        tainted: false,
        settled: None,
        failed_by_read: false,
        snapshot_lost: false,
        lost: false,
        all_short: true,
        notifies: false,
        notified: Notified::default(),
        names_changed: false,
        made: Made::default(),
        catalog_changed: false,
        catalog_written: Written::Nothing,
        left_out: LeftOut::default(),
        settings_changed: false,
        begun: false,
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
                        self.expire().await;
                        continue;
                    }
                },
            };
            let Some(command) = command else { return };
            match self.take(command).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(PostgresError::Contradicts(order)) => return shared.tell(Event::Contradicted(order)),
                Err(error) => {
                    let began = self.transaction.began;
                    return shared.tell(Event::Lost(format!("transaction begun at {began}: {error}")));
                }
            }
        }
    }

    /// Takes a command; false when the transaction has ended.
    async fn take(&mut self, command: Command) -> Result<bool, PostgresError> {
        match command {
            Command::Begin(asker) => {
                self.begun = true;
                if self.live {
                    let shared = Arc::clone(&self.shared);
                    let begin = self.begin(Some(asker.order));
                    let begin = shared.reporter.while_running(asker.client, asker.key(), begin);
                    let outcome = begin.await?;
                    self.answer(Command::Begin(asker), outcome).await;
                } else {
                    self.shared.tell(Event::Finished(asker.order, None));
                    self.kept.push(Command::Begin(asker));
                }
                // Statements that came while the Begin waited for what was before it.
                let deadline = self.missing_at();
                self.waiting.iter_mut().for_each(|waiting| waiting.deadline = deadline);
                if !self.waiting.is_empty() {
                    self.join().await?;
                }
                self.run_waiting().await?;
            }
            Command::Ending => self.drop_waiting().await,
            Command::Commit(commit) => {
                self.drop_waiting().await;
                self.commit(*commit).await?;
                return Ok(false);
            }
            Command::Abort(finish, asker) => {
                self.drop_waiting().await;
                self.abort(&finish, asker).await?;
                return Ok(false);
            }
            Command::Refused(asker, refused, held) => {
                self.held = held;
                asker.answer(&self.shared.reporter, refused.into()).await;
                self.shared.tell(Event::Finished(asker.order, None));
            }
            Command::Direct(client, direct, place) => self.direct(client, direct, place).await?,
            Command::Extend(asker, exchange, before, held) => {
                self.held = held.clone();
                let extend = Command::Extend(asker, exchange, before, held);
                if self.live {
                    self.wait_or_run(extend).await?;
                } else {
                    self.shared.tell(Event::Finished(asker.order, None));
                    self.kept.push(extend);
                }
            }
            Command::Read(asker, ..) if !self.live => self.shared.tell(Event::Finished(asker.order, None)),
            Command::Read(..) => self.wait_or_run(command).await?,
        }
        Ok(true)
    }

    async fn direct(
        &mut self,
        client: ClientId,
        direct: Direct,
        place: DirectTransaction,
    ) -> Result<(), PostgresError> {
        match place.kind {
            DirectKind::Cancel { request } => {
                self.count_direct(&direct);
                self.signal.cancelled();
                self.cancel(place.writes_before, request).await
            }
            DirectKind::Join => {
                self.count_direct(&direct);
                self.join().await?;
                self.run_waiting().await
            }
            DirectKind::Replay => {
                self.join().await?;
                let deadline = self.missing_at();
                let command = Command::Direct(client, direct, place);
                self.waiting.push_back(Waiting { command, deadline });
                Ok(())
            }
            DirectKind::Read | DirectKind::Write | DirectKind::Word | DirectKind::ObjectNumber => {
                self.join().await?;
                self.wait_or_run(Command::Direct(client, direct, place)).await
            }
        }
    }

    fn count_direct(&self, direct: &Direct) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.queued_bytes.fetch_sub(direct.exchange.len(), Ordering::Relaxed);
    }

    /// From now on runs statements as they come: first what was ordered.
    async fn join(&mut self) -> Result<(), PostgresError> {
        if self.live || !self.begun {
            return Ok(());
        }
        self.live = true;
        for command in std::mem::take(&mut self.kept) {
            match command {
                Command::Begin(asker) => {
                    let shared = Arc::clone(&self.shared);
                    let begin = self.begin(None);
                    let begin = shared.reporter.while_running(asker.client, asker.key(), begin);
                    let outcome = begin.await?;
                    asker.answer(&self.shared.reporter, outcome).await;
                }
                Command::Extend(asker, ..) if self.cancelled.contains(&asker.number) => {}
                extend => {
                    let deadline = self.missing_at();
                    self.waiting.push_back(Waiting {
                        command: extend,
                        deadline,
                    });
                }
            }
        }
        self.run_waiting().await
    }

    /// The client has given up what comes after these many listed exchanges.
    async fn cancel(&mut self, writes_before: u32, request: u64) -> Result<(), PostgresError> {
        if request != 0 && self.cancelled.len() < CANCELLED_MAX {
            self.cancelled.insert(request);
        }
        let beyond = |command: &Command| match command {
            Command::Direct(_, _, place) => place.writes_before >= writes_before,
            Command::Extend(asker, ..) => asker.number == request,
            _ => false,
        };
        let (cancelled, kept) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting: &Waiting| beyond(&waiting.command));
        self.waiting = kept;
        for waiting in cancelled {
            self.refuse(waiting.command).await;
        }
        self.kept.retain(|command| !beyond(command));
        if self.history.len() > writes_before {
            self.history.truncate(writes_before);
            self.built = false;
        }
        Ok(())
    }

    /// Answers that this voter cannot say, and lets the ordered history go on.
    async fn refuse(&mut self, command: Command) {
        self.answer(command, Outcome::Unavailable).await;
    }

    /// Answers a command. Its order is over for the owner (which may have been told before).
    async fn answer(&self, command: Command, outcome: Outcome) {
        match command {
            Command::Direct(client, direct, place) => {
                self.count_direct(&direct);
                if place.kind == DirectKind::Replay {
                    return;
                }
                let report = Report {
                    key: ResultKey::Direct(direct.number),
                    order: Order(self.executed.load(Ordering::Relaxed)),
                    outcome,
                };
                self.shared.reporter.report(client, report, direct.whole).await;
            }
            Command::Begin(asker)
            | Command::Extend(asker, ..)
            | Command::Refused(asker, ..)
            | Command::Read(asker, ..) => {
                asker.answer(&self.shared.reporter, outcome).await;
                self.shared.tell(Event::Finished(asker.order, None));
            }
            Command::Commit(commit) => {
                commit.asker.answer(&self.shared.reporter, outcome).await;
                self.shared.tell(Event::Finished(commit.asker.order, None));
            }
            Command::Abort(..) | Command::Ending => {}
        }
    }

    async fn run_now(&mut self, command: Command) -> Result<(), PostgresError> {
        let started = Instant::now();
        let (client, key) = match &command {
            Command::Direct(client, direct, _) => (*client, ResultKey::Direct(direct.number)),
            Command::Extend(asker, ..) | Command::Read(asker, ..) => (asker.client, asker.key()),
            _ => return Ok(()),
        };
        let shared = Arc::clone(&self.shared);
        let run = self.run_statement(&command);
        let (outcome, stage) = shared.reporter.while_running(client, key, run).await?;
        observe(stage, started);
        self.answer(command, outcome).await;
        Ok(())
    }

    async fn run_statement(&mut self, command: &Command) -> Result<(Outcome, &'static str), PostgresError> {
        Ok(match command {
            Command::Direct(_, direct, place) => match place.kind {
                DirectKind::Write => (self.run_write(&direct.exchange).await?, "direct_write"),
                DirectKind::Word => (self.word().await?, "word"),
                DirectKind::ObjectNumber => (self.object_number().await?, "object_number"),
                _ => (self.run_read(&direct.exchange).await?, "direct"),
            },
            Command::Extend(_, exchange, ..) => (self.run_write(exchange).await?, "extend"),
            Command::Read(_, exchange, _) => (self.run_read(exchange).await?, "read"),
            _ => (Outcome::Unavailable, "nothing"),
        })
    }

    /// Runs Begin's exchanges; the last one's outcome. `announce`: the order of a Begin whose snapshot the owner waits for.
    async fn begin(&mut self, announce: Option<u64>) -> Result<Outcome, PostgresError> {
        let started = Instant::now();
        if self.signal.is_ending() {
            return Ok(Outcome::Unavailable);
        }
        if let Some(refused) = self.open(announce).await? {
            return Ok(refused);
        }
        // A Begin without an exchange opens the snapshot.
        let mut last = begun();
        for exchange in self.transaction.first_exchanges().to_vec() {
            let before = self.history.len();
            last = self.run_write(&exchange).await?;
            if self.history.len() == before {
                break;
            }
        }
        observe("begin", started);
        Ok(last)
    }
}

fn begun() -> Outcome {
    let result = ExchangeResult {
        messages: command_complete("BEGIN"),
        status: b'T',
    };
    outcome(Answer::Result(result)).unwrap_or(Outcome::Unavailable)
}

/// How long a task sleeps before it tries a Commit again.
const RETRY_DELAY: Duration = Duration::from_millis(50);
