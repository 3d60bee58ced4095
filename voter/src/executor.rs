//! Runs granted work on backends, each piece in a task of its own; what is decided here is only when it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::{ClientId, Order};
use ordering::message::ResultKey;
use sql::operation::{ExchangeResult, SessionContext};
use sql::refusal::NOT_SUPPORTED;
use tokio::sync::mpsc;

use crate::audience::Audience;
use crate::config::VoterConfig;
use crate::doubts::Doubts;
use crate::outcome::{Outcome, Report};
use crate::postgres::PostgresError;
use crate::postgres::backend::{Answer, Backend, Job, Record, Sequences, sequence_names};
use crate::postgres::bootstrap::Bookkeeper;
use crate::postgres::catalog::NewCatalog;
use crate::postgres::functions::Functions;
use crate::postgres::pool::{Borrowed, Pool, Purpose};
use crate::postgres::written::Written;
use crate::reads::Reads;
use crate::reporter::{Asker, Reporter};
use crate::work::{Catalog, Refused, changes_settings, outside};

/// How often work is tried again after an error that speaks of the server.
pub(crate) const ATTEMPTS_MAX: u32 = 3;

const RETRY_DELAY: Duration = Duration::from_millis(50);

/// What tasks tell the owner. At most a few for each piece of work in flight.
pub(crate) enum Event {
    /// The snapshot of an ordered read, or of a Begin, is open.
    SnapshotOpen(u64),
    /// Work has finished; with the new catalog if it has changed it.
    Finished(u64, Option<NewCatalog>),
    /// The floor is durable.
    FloorWritten(u64),
    /// A connection was lost: the server may be.
    Suspect,
    /// The server is lost, or cannot do its work.
    Lost(String),
    /// The database answers otherwise than f+1 voters have certified at this order.
    Contradicted(u64),
    /// A note in the database says that it holds something else than f+1 others do.
    Noted {
        /// The order at which that was found.
        order: u64,
        /// The difference.
        shown: String,
    },
}

/// How long a backend that is asked to end may take.
const TERMINATE_PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked after.
const TERMINATE_INTERVAL: Duration = Duration::from_millis(5);

/// What all tasks of one life of the database connection share.
pub(crate) struct Shared {
    /// The configuration.
    pub(crate) config: Arc<VoterConfig>,
    /// Backends.
    pub(crate) pool: Arc<Pool>,
    /// Reads that run.
    pub(crate) reads: Arc<Reads>,
    /// The bookkeeping functions.
    pub(crate) functions: Arc<Functions>,
    /// The voter's own connection.
    pub(crate) bookkeeper: tokio::sync::Mutex<Bookkeeper>,
    /// Results.
    pub(crate) reporter: Reporter,
    /// Orders whose effect is in doubt.
    pub(crate) doubts: Doubts,
    /// To the owner.
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

impl Shared {
    /// Tells the owner; it is gone only when the voter stops.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Reads again what committed work has changed of the catalog, if anything.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) async fn catalog_after(&self, written: Written) -> Result<Option<NewCatalog>, PostgresError> {
        let mut bookkeeper = self.bookkeeper.lock().await;
        bookkeeper.catalog_after(written, &self.config.rules).await
    }

    /// Ends a backend, whatever it runs, and waits until the server has let go of what it held.
    ///
    /// # Errors
    /// When the server is lost, or does not end it.
    pub(crate) async fn terminate(&self, process: i32) -> Result<(), PostgresError> {
        let deadline = Instant::now() + TERMINATE_PATIENCE;
        while !self.bookkeeper.lock().await.terminate(process).await? {
            if Instant::now() > deadline {
                return Err(PostgresError::Unfit(format!("its process {process} does not end")));
            }
            tokio::time::sleep(TERMINATE_INTERVAL).await;
        }
        Ok(())
    }

    /// Sets sequences back to where the last commit left them.
    ///
    /// # Errors
    /// When the server is lost.
    pub(crate) async fn restore_sequences(&self, sequences: &Sequences) -> Result<(), PostgresError> {
        let Some(names) = sequence_names(sequences) else {
            return Ok(());
        };
        let mut bookkeeper = self.bookkeeper.lock().await;
        bookkeeper.restore_sequences(&self.functions, names.as_deref()).await
    }

    /// Whether the database has what was recorded with exactly this position.
    ///
    /// # Errors
    /// When the server is lost.
    pub(crate) async fn is_applied(&self, record: &Record) -> Result<bool, PostgresError> {
        let Some((home, position)) = &record.applied else {
            return Ok(false);
        };
        let applied = self.bookkeeper.lock().await.applied_at(home).await?;
        Ok(applied == Some(*position))
    }
}

/// The outcome of what a backend answered; `None` when it answered nothing that counts.
pub(crate) fn outcome(answer: Answer) -> Option<Outcome> {
    match answer {
        Answer::Result(result) => Some(done(&result)),
        Answer::TooLarge => {
            let refused = Refused {
                detail: "One row may have 24 MiB, and all rows half of results_bytes_max (of the proxy's share). The \
                         statement's effect, if any, is not undone."
                    .into(),
                hint: "Ask for fewer rows at once (LIMIT, a cursor), or raise results_bytes_max in the cluster file."
                    .into(),
                ..Refused::new("54000", "the result is larger than the limit")
            };
            Some(refused.into())
        }
        Answer::Large(large) => Some(Outcome::Large(Arc::from(large))),
        Answer::NoRoom(reason) => {
            note_no_room(&reason);
            None
        }
        Answer::Unsettled => Some(unsettled().into()),
        Answer::Fault(_) => None,
    }
}

/// The outcome of a read: one that this machine has no room for is refused, so that its application hears of it if f+1 have none.
pub(crate) fn read_outcome(answer: Answer) -> Option<Outcome> {
    match answer {
        Answer::NoRoom(reason) => {
            note_no_room(&reason);
            Some(no_room().into())
        }
        answer => outcome(answer),
    }
}

fn note_no_room(reason: &str) {
    tracing::warn!(reason, "there is no room for a result");
    metrics::counter!("cloudbft_voter_results_without_room_total").increment(1);
}

fn no_room() -> Refused {
    Refused {
        detail: "The large results that applications have not read yet fill it.".into(),
        hint:
            "Run the statement again, with fewer large results at once, or raise results_bytes_max in the cluster file."
                .into(),
        ..Refused::new("53100", "the database nodes have no room for the result")
    }
}

fn unsettled() -> Refused {
    Refused {
        detail: "A trigger's function runs SET CONSTRAINTS ... DEFERRED and changes rows that fire it again.".into(),
        hint: "Let the trigger's function defer itself fewer times, or not at all.".into(),
        ..Refused::new(
            NOT_SUPPORTED,
            "deferred triggers defer themselves again and again at the end of the transaction",
        )
    }
}

fn done(result: &ExchangeResult) -> Outcome {
    match (result.digests(), borsh::to_vec(result)) {
        (Ok(digests), Ok(whole)) => Outcome::Done {
            sequence: digests.sequence,
            multiset: digests.multiset,
            whole: Bytes::from(whole),
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
    /// Who is told what it notifies.
    pub(crate) audience: Audience,
    /// The catalog of its order.
    pub(crate) catalog: Catalog,
    /// Whether it may change the catalog.
    pub(crate) changes_catalog: bool,
}

/// Runs a one-shot, answers, and tells the owner.
pub(crate) async fn run_one_shot(shared: Arc<Shared>, work: OneShot) {
    let order = work.asker.order;
    match try_one_shot(&shared, &work).await {
        Ok(catalog) => shared.tell(Event::Finished(order, catalog)),
        Err(error) => shared.tell(Event::Lost(format!("order {order}: {error}"))),
    }
}

async fn try_one_shot(shared: &Shared, work: &OneShot) -> Result<Option<NewCatalog>, PostgresError> {
    let started = Instant::now();
    for attempt in 1..=ATTEMPTS_MAX {
        let outcome = match one_shot_once(shared, work).await? {
            Some(outcome) => outcome,
            // It changes no data: a voter on which it fails says so and goes on.
            None if outside(&work.job.analysis) => Outcome::Unavailable,
            None => {
                tracing::warn!(order = work.asker.order, attempt, "the server could not run a one-shot");
                tokio::time::sleep(RETRY_DELAY).await;
                continue;
            }
        };
        observe("one_shot", started);
        work.asker.answer(&shared.reporter, outcome).await;
        return if work.changes_catalog {
            shared.catalog_after(Written::Unknown).await
        } else {
            Ok(None)
        };
    }
    Err(PostgresError::Unfit("it cannot run an ordered operation".into()))
}

/// One attempt; `None` when the server could not.
async fn one_shot_once(shared: &Shared, work: &OneShot) -> Result<Option<Outcome>, PostgresError> {
    let context = &work.context;
    let mut borrowed = shared
        .pool
        .borrow(Purpose::OneShot, &context.role, &context.settings)
        .await?;
    match one_shot_on(&mut borrowed.backend, work).await {
        Ok(answer) => {
            let notified = borrowed.backend.take_notified();
            // Before the answer: who notifies itself is told first.
            work.audience.tell(&shared.reporter, context, notified).await;
            if changes_settings(&work.job.analysis) {
                borrowed.backend.forget_settings();
            }
            // What it answered is gone, and its effect is not.
            let committed = matches!(answer, Answer::NoRoom(_)) && !outside(&work.job.analysis);
            let outcome = outcome(answer).or(committed.then_some(Outcome::Executed));
            if outcome.is_some() {
                borrowed.give_back();
            }
            Ok(outcome)
        }
        Err(error) => {
            tracing::warn!(order = work.asker.order, %error, "a one-shot lost its backend");
            let process = borrowed.backend.process();
            drop(borrowed);
            shared.terminate(process).await?;
            if shared.is_applied(&work.record).await? {
                return Ok(Some(Outcome::Executed));
            }
            shared.restore_sequences(&work.record.sequences).await?;
            Ok(None)
        }
    }
}

async fn one_shot_on(backend: &mut Backend, work: &OneShot) -> Result<Answer, PostgresError> {
    match backend.prepare(&work.context.settings, work.catalog.generation).await? {
        Some(answer) => Ok(answer),
        None if outside(&work.job.analysis) => backend.outside_transaction(&work.job).await,
        None => backend.one_shot(&work.job, &work.record).await,
    }
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

/// How long an ordered read waits for a backend: what it waits for keeps later writes from starting.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// Runs an ordered read: tells the owner when its snapshot is open, and when it has finished.
pub(crate) async fn run_read(shared: Arc<Shared>, work: OrderedRead) {
    let order = work.asker.order;
    let started = Instant::now();
    let key = (work.asker.client, work.asker.key());
    let session = (&work.context, &work.catalog);
    let answer = read_on(&shared, key, Purpose::OrderedRead, session, async |backend| {
        backend
            .snapshot_read(&work.job, || shared.tell(Event::SnapshotOpen(order)))
            .await
    });
    let answer = shared.reporter.while_running(key.0, key.1, answer);
    let outcome = answer.await.and_then(read_outcome).unwrap_or(Outcome::Unavailable);
    observe("read", started);
    work.asker.answer(&shared.reporter, outcome).await;
    shared.tell(Event::Finished(order, None));
}

/// How long a read that nobody waits for any more may go on before its backend is ended: a new backend costs the server more
/// than what is left of most reads, and each read of many milliseconds has a slowest voter, whose answer is not waited for.
const GIVEN_UP_PATIENCE: Duration = Duration::from_millis(100);

/// Runs a read on a backend of its own, until it ends or nobody waits for it any more; `None` when this server cannot.
async fn read_on(
    shared: &Shared,
    (client, key): (ClientId, ResultKey),
    purpose: Purpose,
    (context, catalog): (&SessionContext, &Catalog),
    read: impl AsyncFnOnce(&mut Backend) -> Result<Answer, PostgresError>,
) -> Option<Answer> {
    let running = shared.reads.begin(client, key)?;
    let borrowed = shared.pool.borrow(purpose, &context.role, &context.settings);
    let mut borrowed = match tokio::time::timeout(READ_PATIENCE, borrowed).await.ok()? {
        Ok(borrowed) => borrowed,
        Err(error) => {
            tracing::info!(%error, "a read got no backend");
            shared.tell(Event::Suspect);
            return None;
        }
    };
    let backend = &mut borrowed.backend;
    let reading = async {
        match backend.prepare(&context.settings, catalog.generation).await? {
            Some(refused) => Ok(refused),
            None => read(backend).await,
        }
    };
    let given_up = async {
        running.given_up().await;
        tokio::time::sleep(GIVEN_UP_PATIENCE).await;
    };
    let answer = tokio::select! {
        answer = reading => Some(answer),
        () = given_up => None,
    };
    match answer {
        Some(Ok(answer)) => {
            match borrowed.backend.is_left() {
                true => end_read(shared, borrowed).await,
                false => borrowed.give_back(),
            }
            Some(answer)
        }
        Some(Err(error)) => {
            tracing::info!(%error, "a read lost its backend");
            shared.tell(Event::Suspect);
            None
        }
        None => {
            end_read(shared, borrowed).await;
            None
        }
    }
}

/// Ends a read that still runs. Its place is free only when the server has ended it.
async fn end_read(shared: &Shared, borrowed: Borrowed) {
    if let Err(error) = shared.terminate(borrowed.backend.process()).await {
        shared.tell(Event::Lost(format!("a read that was given up: {error}")));
    }
    drop(borrowed);
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
    let key = (work.client, ResultKey::Direct(work.number));
    let session = (&work.context, &work.catalog);
    let answer = read_on(&shared, key, Purpose::DirectRead, session, async |backend| {
        backend.read(&work.job).await
    });
    let answer = shared.reporter.while_running(key.0, key.1, answer);
    let key = key.1;
    let outcome = answer.await.and_then(read_outcome).unwrap_or(Outcome::Unavailable);
    observe("direct_read", started);
    let report = Report {
        key,
        order: work.executed,
        outcome,
    };
    shared.reporter.report(work.client, report, work.whole).await;
}

/// Notes how long a stage of execution took.
pub(crate) fn observe(stage: &'static str, started: Instant) {
    metrics::histogram!("cloudbft_voter_execution_duration_seconds", "stage" => stage)
        .record(started.elapsed().as_secs_f64());
}
