//! Backends that are not in use, by role; bounded per kind of work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PostgresError;
use super::backend::{Backend, Kind};
use super::functions::Functions;
use crate::config::VoterConfig;

/// What a backend is wanted for: each has its own bound, so that none can starve another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An interactive transaction.
    Transaction,
    /// A one-shot.
    OneShot,
    /// An ordered read.
    OrderedRead,
    /// A direct read.
    DirectRead,
}

/// How long the server may count connections that are closed.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is tried again meanwhile.
const OPEN_INTERVAL: Duration = Duration::from_millis(10);

/// The SQLSTATE of a server that has too many connections.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// The pool.
#[derive(Debug)]
pub struct Pool {
    config: Arc<VoterConfig>,
    functions: Arc<Functions>,
    idle: Mutex<Vec<Backend>>,
    transactions: Arc<Semaphore>,
    one_shots: Arc<Semaphore>,
    ordered_reads: Arc<Semaphore>,
    direct_reads: Arc<Semaphore>,
}

/// A backend in use; back to the pool when it is given back, closed when it is dropped.
#[derive(Debug)]
pub struct Borrowed {
    /// The backend.
    pub backend: Backend,
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
}

impl Pool {
    /// An empty pool.
    pub fn new(config: Arc<VoterConfig>, functions: Arc<Functions>) -> Self {
        let limits = &config.limits;
        let semaphore = |count: usize| Arc::new(Semaphore::new(count.max(1)));
        Self {
            transactions: semaphore(limits.transactions_max),
            one_shots: semaphore(limits.one_shot_backends),
            ordered_reads: semaphore(limits.read_backends),
            direct_reads: semaphore(limits.read_backends),
            idle: Mutex::new(Vec::new()),
            config,
            functions,
        }
    }

    /// A backend of a role, preferably one with these settings; waits while too many are in use for this purpose.
    ///
    /// # Errors
    /// When no connection can be opened.
    pub async fn borrow(
        self: &Arc<Self>,
        purpose: Purpose,
        role: &str,
        settings: &[(String, String)],
    ) -> Result<Borrowed, PostgresError> {
        let (semaphore, kind) = match purpose {
            Purpose::Transaction => (&self.transactions, Kind::Write),
            Purpose::OneShot => (&self.one_shots, Kind::Write),
            Purpose::OrderedRead => (&self.ordered_reads, Kind::Read),
            Purpose::DirectRead => (&self.direct_reads, Kind::Read),
        };
        let permit = Arc::clone(semaphore).acquire_owned().await;
        let permit = permit.map_err(|_| PostgresError::protocol("the pool is closed"))?;
        let backend = match self.take_idle(kind, role, settings) {
            Some(backend) => backend,
            None => self.open(kind, role).await?,
        };
        let pool = Arc::clone(self);
        Ok(Borrowed { backend, pool, permit })
    }

    /// Opens a connection. One that was closed a moment ago may still count for the server.
    async fn open(&self, kind: Kind, role: &str) -> Result<Backend, PostgresError> {
        let deadline = Instant::now() + OPEN_PATIENCE;
        loop {
            match Backend::open(&self.config, kind, role, &self.functions).await {
                Err(PostgresError::Server { sqlstate, .. })
                    if sqlstate == TOO_MANY_CONNECTIONS && Instant::now() < deadline =>
                {
                    tokio::time::sleep(OPEN_INTERVAL).await;
                }
                opened => return opened,
            }
        }
    }

    fn take_idle(&self, kind: Kind, role: &str, settings: &[(String, String)]) -> Option<Backend> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |backend: &Backend| backend.kind() == kind && backend.role() == role && backend.serves(settings);
        let same = idle
            .iter()
            .rposition(|backend| fits(backend) && backend.settings() == Some(settings));
        match same.or_else(|| idle.iter().rposition(fits)) {
            Some(at) => Some(idle.remove(at)),
            None => {
                // Those of the role that have settings of others would never be used again by it.
                idle.retain(|backend| backend.kind() != kind || backend.role() != role || backend.serves(&[]));
                // A new one will be opened: the server's connections are for those in use.
                if self.connections(idle.len()) >= self.config.limits.backends_max() && !idle.is_empty() {
                    idle.remove(0);
                }
                None
            }
        }
    }

    fn connections(&self, idle: usize) -> usize {
        let limits = &self.config.limits;
        let all = limits.transactions_max + limits.one_shot_backends + 2 * limits.read_backends;
        let free = [
            &self.transactions,
            &self.one_shots,
            &self.ordered_reads,
            &self.direct_reads,
        ];
        let free: usize = free.iter().map(|semaphore| semaphore.available_permits()).sum();
        idle + all.saturating_sub(free) + 2
    }
}

impl Borrowed {
    /// Gives the backend back, for the next operation of its role; closes it if it cannot serve another.
    pub fn give_back(self) {
        if !self.backend.is_reusable() {
            return;
        }
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(self.backend);
        drop(self.permit);
    }
}
