//! Results on their way to clients, and to whom they go.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ordering::identifiers::{ClientId, Order};
use ordering::message::{self, ResultKey, ResultMessage};
use tokio::sync::{Semaphore, mpsc};

use crate::doubts::Doubts;
use crate::outcome::{LargeResult, Outcome, Report};
use crate::results::ResultStore;
use crate::voter::VoterOutput;

/// Chunks of large results that are read and sent at once.
const CHUNKS_AT_ONCE: usize = 4;

/// Chunks that are asked for at once, at most.
const CHUNKS_ASKED_MAX: usize = 256;

/// A client is told for the first time after this that what it asked for is being done.
const RUNNING_FIRST: Duration = Duration::from_millis(200);

/// It is told again as often as this.
const RUNNING_INTERVAL: Duration = Duration::from_millis(400);

async fn read_chunk(large: Arc<LargeResult>, index: u32) -> Option<Bytes> {
    let read = tokio::task::spawn_blocking(move || large.stored.chunk(usize::try_from(index).unwrap_or(usize::MAX)));
    let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    match read {
        Ok(chunk) => chunk.map(Bytes::from),
        Err(error) => {
            tracing::warn!(%error, "a result cannot be read back");
            None
        }
    }
}

/// Sends results, and keeps them for those who ask again.
#[derive(Clone)]
pub(crate) struct Reporter {
    outputs: mpsc::Sender<VoterOutput>,
    store: Arc<Mutex<ResultStore>>,
    /// Chunks that are read and sent at once.
    chunks: Arc<Semaphore>,
    /// The same with those that wait.
    asked_chunks: Arc<Semaphore>,
    /// While an effect is in doubt, clients are told that this voter cannot say.
    doubts: Doubts,
}

impl Reporter {
    /// A reporter to the node.
    pub(crate) fn new(outputs: mpsc::Sender<VoterOutput>, store: ResultStore, doubts: Doubts) -> Self {
        Self {
            outputs,
            store: Arc::new(Mutex::new(store)),
            chunks: Arc::new(Semaphore::new(CHUNKS_AT_ONCE)),
            asked_chunks: Arc::new(Semaphore::new(CHUNKS_ASKED_MAX)),
            doubts,
        }
    }

    /// Runs something on the kept results.
    pub(crate) fn with_store<T>(&self, action: impl FnOnce(&mut ResultStore) -> T) -> T {
        action(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a result and sends it, whole or as digests. While an effect is in doubt it is kept alone, for those who ask again.
    pub(crate) async fn report(&self, client: ClientId, report: Report, whole: bool) {
        let sent = match self.doubts.is_free() {
            true => report.message(whole),
            false => ResultMessage {
                key: report.key,
                order: report.order,
                outcome: message::Outcome::Unavailable,
            },
        };
        self.with_store(|store| store.keep(client, report));
        self.send(client, sent).await;
    }

    /// Answers a client that asks again; what is not kept is not answered, nor is anything while an effect is in doubt.
    pub(crate) async fn recall(&self, client: ClientId, key: ResultKey) {
        if !self.doubts.is_free() {
            return;
        }
        let found = self.with_store(|store| store.find(client, key).cloned());
        if let Some(report) = found {
            self.send(client, report.message(true)).await;
        }
    }

    /// Sends a chunk of a large result, in a task of its own; a client that asks for too many at once asks again.
    pub(crate) fn recall_chunk(&self, client: ClientId, key: ResultKey, index: u32) {
        let Ok(asked) = Arc::clone(&self.asked_chunks).try_acquire_owned() else {
            return;
        };
        if !self.doubts.is_free() {
            return;
        }
        let found = self.with_store(|store| store.find(client, key).cloned());
        let large = found.and_then(|report| match report.outcome {
            Outcome::Large(large) => Some((report.order, large)),
            _ => None,
        });
        let reporter = self.clone();
        tokio::spawn(async move {
            let Ok(_permit) = reporter.chunks.acquire().await else {
                return;
            };
            let (order, bytes) = match large {
                Some((order, large)) => (order, read_chunk(large, index).await),
                None => (Order(0), None),
            };
            let outcome = message::Outcome::Chunk { index, bytes };
            reporter.send(client, ResultMessage { key, order, outcome }).await;
            drop(asked);
        });
    }

    /// Does something for a client, and tells it from time to time that it is being done.
    pub(crate) async fn while_running<T>(&self, client: ClientId, key: ResultKey, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut pause = RUNNING_FIRST;
        loop {
            match tokio::time::timeout(pause, &mut work).await {
                Ok(done) => return done,
                Err(_) => {
                    let (order, outcome) = (Order(0), message::Outcome::Running);
                    self.send(client, ResultMessage { key, order, outcome }).await;
                }
            }
            pause = RUNNING_INTERVAL;
        }
    }

    /// Tells a proxy what a transaction has notified, but while an effect is in doubt: others tell.
    pub(crate) async fn notify(&self, client: ClientId, message: message::Notifications) {
        if self.doubts.is_free() {
            self.output(VoterOutput::Notifications { client, message }).await;
        }
    }

    /// Hands something to the node.
    pub(crate) async fn output(&self, output: VoterOutput) {
        let _ = self.outputs.send(output).await;
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
        let report = Report {
            key: self.key(),
            order: Order(self.order),
            outcome,
        };
        reporter.report(self.client, report, self.whole).await;
    }

    /// What is answered.
    pub(crate) fn key(&self) -> ResultKey {
        ResultKey::Request(self.number)
    }
}
