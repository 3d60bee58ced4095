//! The proxy's view of the catalog: read through the agreement like everything else, and refreshed when it is found old.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sql::analysis::Analyzer;
use sql::footprint::{Footprint, Mode, Resource};
use sql::operation::{Exchange, Operation, SessionContext, Work};
use sql::rules::PartitionRules;
use sql::schema::{CATALOG_QUERY, Schema};
use tokio::sync::watch;

use crate::client::{Client, Rows};
use crate::wire::{first_error, read_rows};

/// The pause before a failed read of the catalog is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// One state of the catalog.
pub(crate) struct CatalogState {
    /// Counts refreshes; 0 before the first.
    pub(crate) version: u64,
    /// Analyses statements against it.
    pub(crate) analyzer: Arc<Analyzer>,
}

/// The catalog of one database.
pub(crate) struct Catalog {
    context: SessionContext,
    rules: PartitionRules,
    current: RwLock<Arc<CatalogState>>,
    /// Counts changes that sessions of this proxy made; caches of descriptions are as old as this says.
    epoch: AtomicU64,
    refresh: tokio::sync::Mutex<()>,
    /// The version from which on all changes by sessions of this proxy are known.
    wanted: AtomicU64,
    loaded: watch::Sender<u64>,
}

/// Why the catalog could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogError {
    #[error("the catalog query failed: {0}")]
    Query(String),
    #[error(transparent)]
    Schema(#[from] sql::schema::SchemaError),
}

impl Catalog {
    pub(crate) fn new(client: u32, role: &str, database: &str, rules: PartitionRules) -> Self {
        let schema = Arc::new(Schema::empty());
        let context = SessionContext {
            client,
            session: 0,
            role: role.into(),
            database: database.into(),
            settings: Vec::new(),
        };
        Self {
            context,
            rules,
            current: RwLock::new(Arc::new(CatalogState {
                version: 0,
                analyzer: Arc::new(Analyzer::new(schema)),
            })),
            epoch: AtomicU64::new(0),
            refresh: tokio::sync::Mutex::new(()),
            wanted: AtomicU64::new(1),
            loaded: watch::Sender::new(0),
        }
    }

    /// Who reads it, in no session.
    pub(crate) fn context(&self) -> &SessionContext {
        &self.context
    }

    /// The newest state that was read.
    pub(crate) fn current(&self) -> Arc<CatalogState> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Rises at each change that a session of this proxy made, and at each refresh.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Waits for the first state.
    pub(crate) async fn wait_loaded(&self) {
        let mut loaded = self.loaded.subscribe();
        let _ = loaded.wait_for(|version| *version > 0).await;
    }

    /// Reads the catalog again unless that has happened since `seen`.
    pub(crate) async fn refresh_after(&self, client: &Client, seen: u64) -> Result<(), CatalogError> {
        let _alone = self.refresh.lock().await;
        if self.current().version > seen {
            return Ok(());
        }
        let schema = self.read(client).await?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let version = current.version + 1;
        // An equal catalog keeps its analyses.
        let unchanged = version > 1 && current.analyzer.schema().digest() == schema.digest();
        let analyzer = match unchanged {
            true => Arc::clone(&current.analyzer),
            false => Arc::new(Analyzer::new(Arc::new(schema))),
        };
        *current = Arc::new(CatalogState { version, analyzer });
        if !unchanged {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        drop(current);
        self.loaded.send_replace(version);
        Ok(())
    }

    /// A session of this proxy changed the catalog: descriptions are stale at once, the analyses follow soon.
    pub(crate) fn changed(self: &Arc<Self>, client: &Arc<Client>) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        // A refresh that is on its way may have read before the change.
        let distance = if self.refresh.try_lock().is_ok() { 1 } else { 2 };
        let wanted = self.current().version + distance;
        self.wanted.fetch_max(wanted, Ordering::AcqRel);
        let (catalog, client, seen) = (Arc::clone(self), Arc::clone(client), wanted - 1);
        tokio::spawn(async move {
            if let Err(error) = catalog.refresh_after(&client, seen).await {
                tracing::warn!(%error, "the catalog could not be refreshed");
            }
        });
    }

    /// The version to be surpassed, when a change by a session of this proxy is not known yet.
    pub(crate) fn stale_version(&self) -> Option<u64> {
        let wanted = self.wanted.load(Ordering::Acquire);
        (self.current().version < wanted).then(|| wanted - 1)
    }

    /// Reads the catalog until it succeeds.
    pub(crate) async fn load(&self, client: &Client) {
        while let Err(error) = self.refresh_after(client, 0).await {
            tracing::warn!(%error, database = self.context.database, "the catalog could not be read yet");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn read(&self, client: &Client) -> Result<Schema, CatalogError> {
        let exchange = Exchange::Simple {
            text: CATALOG_QUERY.into(),
        };
        let operation = Operation {
            context: self.context.clone(),
            footprint: Footprint::of(Resource::Everything, Mode::Shared),
            nonce: rand::random(),
            work: Work::Read {
                transaction: None,
                writes_before: 0,
                exchange: exchange.encode(),
            },
        };
        let voted = client.order(&operation, Rows::Ordered, None).await;
        let voted = voted.map_err(|failure| CatalogError::Query(failure.into_error().message.into_owned()))?;
        let result = client.gather(voted.result).await;
        let result = result.map_err(|failure| CatalogError::Query(failure.into_error().message.into_owned()))?;
        if let Some(error) = first_error(&result.messages) {
            return Err(CatalogError::Query(error.message.into_owned()));
        }
        let rows = read_rows(&result.messages).unwrap_or_default();
        let texts = rows.iter().filter_map(|row| row.first()?.as_deref());
        Ok(Schema::parse(texts, &self.rules)?)
    }
}
