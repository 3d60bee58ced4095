//! Runs granted work on backends, each piece in a task of its own; what is decided here is only when it runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::{ClientId, Order};
use ordering::message::{Outcome, ResultKey, ResultMessage};
use sql::operation::{ExchangeResult, SessionContext};
use tokio::sync::mpsc;

use crate::config::VoterConfig;
use crate::postgres::PostgresError;
use crate::postgres::backend::{Answer, Job, Record};
use crate::postgres::bootstrap::Bookkeeper;
use crate::postgres::pool::{Pool, Purpose};
use crate::results::{ResultStore, without_whole};
use crate::voter::VoterOutput;
use crate::work::{Catalog, Refused, changes_settings, outside};

/// How often work is tried again after an error that speaks of the server.
pub(crate) const ATTEMPTS_MAX: u32 = 3;

const RETRY_DELAY: Duration = Duration::from_millis(50);

/// What tasks tell the owner. At most a few for each piece of work in flight.
pub(crate) enum Event {
    /// The snapshot of an ordered read, or of a Begin, is open.
    SnapshotOpen(u64),
    /// Work has finished; with the new catalog if it may have changed it.
    Finished(u64, Option<sql::analysis::Analyzer>),
    /// The floor is durable.
    FloorWritten(u64),
    /// The server is lost, or cannot do its work.
    Lost(String),
}

/// What all tasks of one life of the database connection share.
pub(crate) struct Shared {
    /// The configuration.
    pub(crate) config: Arc<VoterConfig>,
    /// Backends.
    pub(crate) pool: Arc<Pool>,
    /// The voter's own connection.
    pub(crate) bookkeeper: tokio::sync::Mutex<Bookkeeper>,
    /// Results.
    pub(crate) reporter: Reporter,
    /// To the owner.
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

impl Shared {
    /// Tells the owner; it is gone only when the voter stops.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Reads the catalog again.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) async fn reload(&self) -> Result<sql::analysis::Analyzer, PostgresError> {
        self.bookkeeper.lock().await.analyzer(&self.config).await
    }
}

/// Sends results, and keeps them for those who ask again.
#[derive(Clone)]
pub(crate) struct Reporter {
    outputs: mpsc::Sender<VoterOutput>,
    store: Arc<Mutex<ResultStore>>,
}

impl Reporter {
    /// A reporter to the node.
    pub(crate) fn new(outputs: mpsc::Sender<VoterOutput>, store: ResultStore) -> Self {
        let store = Arc::new(Mutex::new(store));
        Self { outputs, store }
    }

    /// Runs something on the kept results.
    pub(crate) fn with_store<T>(&self, action: impl FnOnce(&mut ResultStore) -> T) -> T {
        action(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a result and sends it, whole or as digests.
    pub(crate) async fn report(&self, client: ClientId, message: ResultMessage, whole: bool) {
        let sent = if whole {
            message.clone()
        } else {
            without_whole(message.clone())
        };
        self.with_store(|store| store.keep(client, message));
        self.send(client, sent).await;
    }

    /// Sends a result without keeping it.
    pub(crate) async fn send(&self, client: ClientId, message: ResultMessage) {
        let _ = self.outputs.send(VoterOutput::Result { client, message }).await;
    }
}

/// Whom an ordered operation's result goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    /// The client.
    pub(crate) client: ClientId,
    /// Its number.
    pub(crate) number: u64,
    /// The operation's order.
    pub(crate) order: u64,
    /// Whether this voter sends the whole result.
    pub(crate) whole: bool,
}

impl Asker {
    /// Reports an outcome.
    pub(crate) async fn answer(&self, reporter: &Reporter, outcome: Outcome) {
        let message = ResultMessage {
            key: ResultKey::Request(self.number),
            order: Order(self.order),
            outcome,
        };
        reporter.report(self.client, message, self.whole).await;
    }
}

/// The outcome of what a backend answered; `None` when it answered nothing that counts.
pub(crate) fn outcome(answer: Answer) -> Option<Outcome> {
    match answer {
        Answer::Result(result) => Some(done(&result)),
        Answer::TooLarge => {
            let mut refused = Refused::new("54000", "the result is larger than the limit");
            refused.detail = "The statement's effect, if any, is not undone.".into();
            Some(refused.into())
        }
        Answer::Fault(_) => None,
    }
}

fn done(result: &ExchangeResult) -> Outcome {
    match (result.digests(), borsh::to_vec(result)) {
        (Ok(digests), Ok(whole)) => Outcome::Done {
            sequence: digests.sequence,
            multiset: digests.multiset,
            whole: Some(Bytes::from(whole)),
        },
        _ => Outcome::Unavailable,
    }
}

/// A one-shot, ready to run.
pub(crate) struct OneShot {
    /// Whom to answer.
    pub(crate) asker: Asker,
    /// Who asks.
    pub(crate) context: SessionContext,
    /// What to run.
    pub(crate) job: Job,
    /// What to record.
    pub(crate) record: Record,
    /// The catalog of its order.
    pub(crate) catalog: Catalog,
    /// Whether it may change the catalog.
    pub(crate) changes_catalog: bool,
}

/// Runs a one-shot, answers, and tells the owner.
pub(crate) async fn run_one_shot(shared: Arc<Shared>, work: OneShot) {
    let order = work.asker.order;
    match try_one_shot(&shared, &work).await {
        Ok(analyzer) => shared.tell(Event::Finished(order, analyzer)),
        Err(error) => shared.tell(Event::Lost(format!("order {order}: {error}"))),
    }
}

async fn try_one_shot(shared: &Shared, work: &OneShot) -> Result<Option<sql::analysis::Analyzer>, PostgresError> {
    let started = Instant::now();
    for attempt in 1..=ATTEMPTS_MAX {
        let answer = one_shot_once(shared, work).await?;
        if let Answer::Fault(fault) = &answer {
            tracing::warn!(
                order = work.asker.order,
                attempt,
                fault,
                "the server could not run a one-shot"
            );
            tokio::time::sleep(RETRY_DELAY).await;
            continue;
        }
        observe("one_shot", started);
        if let Some(outcome) = outcome(answer) {
            work.asker.answer(&shared.reporter, outcome).await;
        }
        return if work.changes_catalog {
            shared.reload().await.map(Some)
        } else {
            Ok(None)
        };
    }
    Err(PostgresError::Unfit("it cannot run an ordered operation".into()))
}

async fn one_shot_once(shared: &Shared, work: &OneShot) -> Result<Answer, PostgresError> {
    let context = &work.context;
    let mut borrowed = shared
        .pool
        .borrow(Purpose::OneShot, &context.role, &context.settings)
        .await?;
    let backend = &mut borrowed.backend;
    let answer = match backend.prepare(&context.settings, work.catalog.generation).await? {
        Some(answer) => answer,
        None if outside(&work.job.analysis) => backend.outside_transaction(&work.job).await?,
        None => backend.one_shot(&work.job, &work.record).await?,
    };
    if changes_settings(&work.job.analysis) {
        backend.forget_settings();
    }
    if !matches!(answer, Answer::Fault(_)) {
        borrowed.give_back();
    }
    Ok(answer)
}

/// An ordered read outside transactions, ready to run.
pub(crate) struct OrderedRead {
    /// Whom to answer.
    pub(crate) asker: Asker,
    /// Who asks.
    pub(crate) context: SessionContext,
    /// What to run.
    pub(crate) job: Job,
    /// The catalog of its order.
    pub(crate) catalog: Catalog,
}

/// Runs an ordered read: tells the owner when its snapshot is open, and when it has finished.
pub(crate) async fn run_read(shared: Arc<Shared>, work: OrderedRead) {
    let order = work.asker.order;
    let started = Instant::now();
    match try_read(&shared, &work).await {
        Ok(answer) => {
            observe("read", started);
            let outcome = outcome(answer).unwrap_or(Outcome::Unavailable);
            work.asker.answer(&shared.reporter, outcome).await;
            shared.tell(Event::Finished(order, None));
        }
        Err(error) => shared.tell(Event::Lost(format!("order {order}: {error}"))),
    }
}

async fn try_read(shared: &Shared, work: &OrderedRead) -> Result<Answer, PostgresError> {
    let context = &work.context;
    let order = work.asker.order;
    let mut borrowed = shared
        .pool
        .borrow(Purpose::OrderedRead, &context.role, &context.settings)
        .await?;
    let backend = &mut borrowed.backend;
    let answer = match backend.prepare(&context.settings, work.catalog.generation).await? {
        Some(answer) => answer,
        None => {
            backend
                .snapshot_read(&work.job, || shared.tell(Event::SnapshotOpen(order)))
                .await?
        }
    };
    borrowed.give_back();
    Ok(answer)
}

/// A direct read outside transactions.
pub(crate) struct DirectRead {
    /// The client.
    pub(crate) client: ClientId,
    /// The answer's number, and whether it is wanted whole.
    pub(crate) number: u64,
    /// Whether the result is wanted whole.
    pub(crate) whole: bool,
    /// The last order that this voter had executed.
    pub(crate) executed: Order,
    /// Who asks.
    pub(crate) context: SessionContext,
    /// What to run.
    pub(crate) job: Job,
    /// The catalog.
    pub(crate) catalog: Catalog,
}

/// Runs a direct read and answers.
pub(crate) async fn run_direct_read(shared: Arc<Shared>, work: DirectRead) {
    let started = Instant::now();
    let outcome = match try_direct_read(&shared, &work).await {
        Ok(answer) => outcome(answer).unwrap_or(Outcome::Unavailable),
        Err(error) => {
            shared.tell(Event::Lost(format!("direct read: {error}")));
            Outcome::Unavailable
        }
    };
    observe("direct_read", started);
    let message = ResultMessage {
        key: ResultKey::Direct(work.number),
        order: work.executed,
        outcome,
    };
    shared.reporter.report(work.client, message, work.whole).await;
}

async fn try_direct_read(shared: &Shared, work: &DirectRead) -> Result<Answer, PostgresError> {
    let context = &work.context;
    let mut borrowed = shared
        .pool
        .borrow(Purpose::DirectRead, &context.role, &context.settings)
        .await?;
    let backend = &mut borrowed.backend;
    let answer = match backend.prepare(&context.settings, work.catalog.generation).await? {
        Some(answer) => answer,
        None => backend.read(&work.job).await?,
    };
    borrowed.give_back();
    Ok(answer)
}

/// Notes how long a stage of execution took.
pub(crate) fn observe(stage: &'static str, started: Instant) {
    metrics::histogram!("cloudbft_voter_execution_duration_seconds", "stage" => stage)
        .record(started.elapsed().as_secs_f64());
}
