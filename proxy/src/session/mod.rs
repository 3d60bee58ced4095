//! One application connection: the state machine that makes a cluster look like one PostgreSQL server.

mod advisory;
mod block;
mod configs;
mod connection;
mod context;
mod control;
mod copy;
mod describe;
mod ending;
mod execute;
mod extended;
mod function_call;
mod handshake;
mod held;
mod listening;
mod object_numbers;
mod opening;
mod pipeline;
mod prepared;
mod release;
mod routing;
mod set;
mod settings;
mod simple;
mod special;
mod tokens;
mod transaction;
mod waiting;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sql::analysis::TextAnalysis;
use sql::names::Made;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::advisory::Station;
use crate::cancels::Registered;
use crate::catalog::Catalog;
use crate::client::Cancel;
use crate::error::ApplicationError;
use crate::leftovers;
use crate::notifications::Ear;
use crate::shared::Shared;
use crate::wire::{FrameError, Frontend};
use connection::Connection;
use context::Context;
use held::HeldCursors;
use pipeline::{Pipeline, Portal};
use prepared::Statements;
use settings::Settings;
use transaction::Transaction;

pub(crate) use describe::Descriptions;
pub(crate) use handshake::greet;
pub(crate) use held::HeldRoom;
pub(crate) use listening::keep_listening;

/// A session after its application has logged in.
pub(crate) struct Session {
    shared: Arc<Shared>,
    connection: Connection,
    catalog: Arc<Catalog>,
    id: u64,
    role: String,
    database: String,
    registered: Registered,
    cancel: Arc<Cancel>,
    /// When the last statement's result has to be with the application, by its `statement_timeout`.
    release_until: Option<std::time::Instant>,
    settings: Settings,
    /// The settings of the startup packet: what RESET goes back to.
    startup_settings: Settings,
    /// The values of reported settings when nothing is set.
    defaults: Arc<BTreeMap<String, String>>,
    context: Option<Arc<Context>>,
    transaction: Option<Transaction>,
    next_transaction: u64,
    /// Room for transactions of this session that are open, or are not known to have ended.
    unended: Arc<Semaphore>,
    statements: Statements,
    portals: HashMap<String, Portal>,
    /// The session's cursors WITH HOLD whose transactions are committed.
    held: HeldCursors,
    pipeline: Pipeline,
    /// After an error in the extended protocol, everything up to Sync is skipped.
    skip_to_sync: bool,
    /// The session has run a statement that makes temporary objects, which may have failed or been rolled back since.
    made_temporary: bool,
    /// The application left while a statement ran.
    is_gone: bool,
    /// What the session listens to, and what waits for it.
    ear: Ear,
    /// The session's advisory locks.
    station: Arc<Station>,
    /// A transaction with advisory locks that is being aborted: they are free when the session is ready again.
    ending: Option<JoinHandle<()>>,
    /// The order at which the session has committed last, until it is ready again.
    committed_at: Option<u64>,
}

/// An application that sends nothing for this long, with neither Sync nor Flush behind what it sent, may be waiting for
/// an error of it: Postgres runs each message as it comes.
const PIPELINE_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// How long a session waits, at the end of a transaction without effect, until its advisory locks are free.
const ENDING_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Why a session ends.
#[derive(Debug)]
enum End {
    /// The application left, or its connection broke.
    Gone,
    /// The application is told why.
    Told(ApplicationError),
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Connection(_) | FrameError::Closed => End::Gone,
            other => End::Told((&other).into()),
        }
    }
}

impl Session {
    /// Serves the application until it leaves or must leave. An open transaction is aborted at the end.
    pub(crate) async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let end = self.serve(&mut shutdown).await;
        self.abandon_transaction();
        if let Err(End::Told(error)) = end {
            self.shared.metrics.error(&error.sqlstate);
            self.connection.out.error(&error);
            let _ = self.connection.flush().await;
        }
        self.shared
            .metrics
            .prepared_statements
            .decrement(self.statements.len() as f64);
        let context = self.context();
        let Session {
            shared,
            station,
            catalog,
            id,
            made_temporary,
            connection,
            ..
        } = self;
        // The application need not wait.
        drop(connection);
        station.leave(&shared.client, &context.decoded).await;
        if made_temporary {
            leftovers::discard(&shared, &catalog, id).await;
        }
    }

    async fn serve(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<(), End> {
        loop {
            match self.next_message(shutdown).await {
                Ok(Frontend::Terminate) => return Ok(()),
                Ok(message) => self.handle(message).await?,
                Err(End::Told(error)) if error.severity == crate::error::Severity::Error => {
                    self.broken_message(error).await?;
                }
                Err(end) => return Err(end),
            }
        }
    }

    /// How long the application may be silent now, and how the session ends when it is silent for longer.
    fn idle_limit(&self) -> (Option<std::time::Duration>, ApplicationError) {
        if self.transaction.is_some() {
            // With or without a wish of the application's: nobody may hold locks for ever.
            let longest = self.is_begun().then_some(self.shared.config.transaction_timeout);
            let asked = self.time_limit("idle_in_transaction_session_timeout");
            let limit = asked.into_iter().chain(longest).min();
            let message = "terminating connection due to idle-in-transaction timeout";
            return (limit, ApplicationError::fatal("25P03", message));
        }
        let limit = self
            .time_limit("idle_session_timeout")
            .filter(|_| self.pipeline.is_empty());
        let message = "terminating connection due to idle-session timeout";
        (limit, ApplicationError::fatal("57P05", message))
    }

    /// The next message; ends the session on shutdown, and when the application has gone or is idle for too long.
    async fn next_message(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<Frontend, End> {
        if self.is_gone {
            return Err(End::Gone);
        }
        if self.station.is_lost() {
            return Err(End::Told(advisory::lost()));
        }
        if !self.pipeline.is_empty() {
            let pause = self.connection.message();
            match tokio::time::timeout(PIPELINE_PAUSE, pause).await {
                Ok(message) => return Ok(message?),
                Err(_) => self.run_paused_pipeline().await?,
            }
        }
        let grace = self.shared.config.shutdown_grace;
        let busy = self.transaction.is_some();
        let hears = !busy && self.ear.is_active() && self.pipeline.is_empty();
        let (idle_limit, idle_end) = self.idle_limit();
        let deadline = idle_limit.map(|limit| Instant::now() + limit);
        let mut end_at = None;
        let (cancel, station) = (Arc::clone(&self.cancel), Arc::clone(&self.station));
        cancel.set_idle(true);
        let next = loop {
            tokio::select! {
                biased;
                message = self.connection.message() => break message.map_err(End::from),
                // Nothing has arrived that it could be meant for.
                () = cancel.outlive() => cancel.reset(),
                () = self.ear.heard(), if hears => {
                    self.notify().await;
                    if let Err(error) = self.connection.flush().await {
                        break Err(error.into());
                    }
                }
                () = station.lost() => break Err(End::Told(advisory::lost())),
                () = sleep_until(deadline) => break Err(End::Told(idle_end)),
                () = sleep_until(end_at) => break Err(End::Told(ApplicationError::shutting_down())),
                () = ended(shutdown), if end_at.is_none() => {
                    end_at = Some(Instant::now() + if busy { grace } else { std::time::Duration::ZERO });
                }
            }
        };
        cancel.set_idle(false);
        next
    }

    async fn handle(&mut self, message: Frontend) -> Result<(), End> {
        match message {
            Frontend::Query(text) => self.simple_query(text).await,
            Frontend::Sync => self.sync().await,
            // Left over from a COPY that failed: ignored, as by Postgres.
            Frontend::CopyData(_) | Frontend::CopyDone | Frontend::CopyFail(_) => Ok(()),
            Frontend::FunctionCall(call) => self.function_call(call).await,
            Frontend::Authentication(_) => Err(End::Told(ApplicationError::fatal(
                "08P01",
                "unexpected authentication message",
            ))),
            _ if self.skip_to_sync => Ok(()),
            message => self.extended(message).await,
        }
    }

    /// A message whose frame is sound and whose content is not.
    async fn broken_message(&mut self, error: ApplicationError) -> Result<(), End> {
        if self.skip_to_sync {
            return Ok(());
        }
        if Frontend::is_extended(self.connection.last_tag) {
            return self.pipeline_error(&error).await.map(|_| ());
        }
        self.report(&error);
        self.fail_transaction();
        self.ready().await
    }

    /// Puts an error into the response.
    fn report(&mut self, error: &ApplicationError) {
        self.shared.metrics.error(&error.sqlstate);
        self.connection.out.error(error);
    }

    /// ReadyForQuery, and everything gathered goes out.
    async fn ready(&mut self) -> Result<(), End> {
        let status = match &self.transaction {
            None => b'I',
            Some(transaction) if transaction.failed => b'E',
            Some(_) => b'T',
        };
        if let Some(ending) = self.ending.take() {
            // A transaction that has not ended in time ends later.
            let _ = tokio::time::timeout(ENDING_PATIENCE, ending).await;
            self.shared.advisory.moved();
        }
        self.connection.write_limit = self.is_begun().then_some(self.shared.config.transaction_timeout);
        self.notify().await;
        self.connection.out.ready_for_query(status);
        // Before the application can know that it is ready: a wish that it has from then on is meant for nothing.
        self.cancel.reset();
        self.cancel.set_idle(true);
        self.connection.flush().await?;
        Ok(())
    }

    /// Analyses a text as this session means it at present.
    fn analysis_of(&mut self, text: &str) -> Arc<TextAnalysis> {
        let (state, context) = (self.catalog.current(), self.context());
        let names = state.analyzer.names(&context.decoded, &self.made());
        state.analyzer.text_of(text, &names)
    }

    /// Which names the open transaction has given another meaning; nothing, without one.
    fn made(&self) -> Made {
        let transaction = self.transaction.as_ref();
        transaction
            .map(|transaction| transaction.made.clone())
            .unwrap_or_default()
    }

    /// The context of statements outside the voters' transaction.
    fn context(&mut self) -> Arc<Context> {
        let (id, role, database, settings) = (self.id, &self.role, &self.database, &self.settings);
        let client = self.shared.client.id();
        let context = self
            .context
            .get_or_insert_with(|| Context::new(client, id, role, database, settings));
        Arc::clone(context)
    }
}

/// Completes when the proxy is to end.
async fn ended(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|ends| *ends).await;
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
