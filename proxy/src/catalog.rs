//! The proxy's view of the catalog: read through the agreement like everything else, and refreshed when it is found old.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ordering::identifiers::Order;
use sql::analysis::Analyzer;
use sql::footprint::{Footprint, Mode, Resource};
use sql::operation::{Exchange, Operation, SessionContext, Work};
use sql::rules::PartitionRules;
use sql::schema::{CATALOG_QUERY, CatalogChange, Schema};
use tokio::sync::watch;

use crate::client::{Client, Failure, Rows};
use crate::wire::{first_error, read_rows};

/// The pause before a failed read of the catalog is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// One state of the catalog.
pub(crate) struct CatalogState {
    /// Counts refreshes; 0 before the first.
    pub(crate) version: u64,
    /// The order of the reading that it is from: what took effect from there on is not in it.
    order: Order,
    /// Analyses statements against it.
    pub(crate) analyzer: Arc<Analyzer>,
}

/// Rows as the voters give them.
type Answer = Vec<Vec<Option<String>>>;

/// The names in what the catalog says are printed as voters print them for themselves: with their schemas.
const SEARCH_PATH: &str = "pg_catalog";

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
    #[error("the cluster makes no progress")]
    NoProgress,
    /// f+1 voters gave it alike, so that no single one is to blame.
    #[error("the answer to the catalog query is malformed")]
    Malformed,
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
            settings: vec![("search_path".into(), SEARCH_PATH.into())],
        };
        Self {
            context,
            rules,
            current: RwLock::new(Arc::new(CatalogState {
                version: 0,
                order: Order(0),
                analyzer: Arc::new(Analyzer::new(schema)),
            })),
            epoch: AtomicU64::new(0),
            refresh: tokio::sync::Mutex::new(()),
            wanted: AtomicU64::new(1),
            loaded: watch::Sender::new(0),
        }
    }

    /// The context under which the proxy itself reads this catalog: its own client and role, in no session.
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
        let before = self.current();
        if before.version > seen {
            return Ok(());
        }
        let (order, schema) = self.read(client, &before).await?;
        let version = before.version + 1;
        // An equal catalog keeps its analyses.
        let analyzer = match &schema {
            None => Arc::clone(&before.analyzer),
            Some(schema) => Arc::new(Analyzer::new(Arc::clone(schema))),
        };
        let state = CatalogState {
            version,
            order,
            analyzer,
        };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        if schema.is_some() {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
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

    /// The order of a reading, and the catalog there if it is another than before.
    async fn read(&self, client: &Client, before: &CatalogState) -> Result<(Order, Option<Arc<Schema>>), CatalogError> {
        if before.version > 0 {
            match self.read_changes(client, before).await {
                Ok(read) => return Ok(read),
                Err(error @ CatalogError::NoProgress) => return Err(error),
                // The voters remember only so much, and those that were started at different times not the same.
                Err(error) => tracing::info!(%error, "the changes of the catalog cannot be had: it is read as a whole"),
            }
        }
        let (order, schema) = self.read_whole(client).await?;
        let is_another = before.version == 0 || before.analyzer.schema().digest() != schema.digest();
        Ok((order, is_another.then(|| Arc::new(schema))))
    }

    /// The catalog after the changes since `before` that f+1 voters give alike; `None` where there are none.
    async fn read_changes(
        &self,
        client: &Client,
        before: &CatalogState,
    ) -> Result<(Order, Option<Arc<Schema>>), CatalogError> {
        let work = Work::Catalog { since: before.order.0 };
        let (order, rows) = self.order(client, work, Footprint::empty()).await?;
        let change = change_of(&rows)?;
        if change.is_empty() {
            return Ok((order, None));
        }
        let schema = before.analyzer.schema().patched(&change)?;
        Ok((order, Some(Arc::new(schema))))
    }

    async fn read_whole(&self, client: &Client) -> Result<(Order, Schema), CatalogError> {
        let exchange = Exchange::Simple {
            text: CATALOG_QUERY.into(),
        };
        let work = Work::Read {
            transaction: None,
            writes_before: 0,
            exchange: exchange.encode(),
        };
        let footprint = Footprint::of(Resource::Everything, Mode::Shared);
        let (order, rows) = self.order(client, work, footprint).await?;
        Ok((order, whole_of(&rows, &self.rules)?))
    }

    /// Has something ordered; its order, and its rows.
    async fn order(&self, client: &Client, work: Work, footprint: Footprint) -> Result<(Order, Answer), CatalogError> {
        let operation = Operation {
            context: self.context.clone(),
            footprint,
            nonce: rand::random(),
            work,
        };
        let voted = client.order(&operation, Rows::Ordered, None).await?;
        let order = voted.order;
        let result = client.gather(voted.result).await?;
        Ok((order, rows_of(&result.messages)?))
    }
}

/// The rows of an answer. One that cannot be read is none, and not an empty catalog.
fn rows_of(messages: &[u8]) -> Result<Answer, CatalogError> {
    if let Some(error) = first_error(messages) {
        return Err(CatalogError::Query(error.message.into_owned()));
    }
    read_rows(messages).ok_or(CatalogError::Malformed)
}

/// The change in the rows of an answer.
fn change_of(rows: &Answer) -> Result<CatalogChange, CatalogError> {
    let pairs = rows.iter().map(|row| match row.as_slice() {
        [Some(label), Some(text)] => Some((label.as_str(), text.as_str())),
        _ => None,
    });
    let pairs: Option<Vec<_>> = pairs.collect();
    Ok(CatalogChange::from_rows(
        pairs.ok_or(CatalogError::Malformed)?.into_iter(),
    )?)
}

/// The whole catalog in the rows of an answer.
fn whole_of(rows: &Answer, rules: &PartitionRules) -> Result<Schema, CatalogError> {
    let texts: Option<Vec<&str>> = rows.iter().map(|row| row.first()?.as_deref()).collect();
    let texts = texts.ok_or(CatalogError::Malformed)?;
    Ok(Schema::parse(texts.into_iter(), rules)?)
}

impl From<Failure> for CatalogError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoProgress => CatalogError::NoProgress,
            failure => CatalogError::Query(failure.into_error().message.into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    fn row(texts: &[Option<&str>]) -> Vec<Option<String>> {
        texts.iter().map(|text| text.map(str::to_owned)).collect()
    }

    #[test]
    fn a_malformed_answer_is_no_empty_catalog() {
        let whole = message(b'D', b"\0\x01\0\0\0\x02{}");
        assert_eq!(rows_of(&whole).unwrap(), [row(&[Some("{}")])]);
        for body in [
            &b"\0\x01\0\0\0\x03{}"[..],
            b"\0\x02\0\0\0\x02{}",
            b"\0",
            b"\0\x01\0\0\0\x01\xff",
        ] {
            let answer = [whole.clone(), message(b'D', body)].concat();
            assert!(matches!(rows_of(&answer), Err(CatalogError::Malformed)), "{body:?}");
        }
        let failed = message(b'E', b"SERROR\0C42501\0Mno\0\0");
        assert!(matches!(rows_of(&failed), Err(CatalogError::Query(_))));
        let rules = PartitionRules::default();
        assert!(whole_of(&vec![row(&[None])], &rules).is_err());
        assert!(whole_of(&vec![row(&[])], &rules).is_err());
        for malformed in [
            row(&[Some("more")]),
            row(&[Some("more"), None]),
            row(&[Some("less"), Some("{}")]),
            row(&[Some("gone"), Some("public.t")]),
            row(&[Some("relation"), Some("{}")]),
        ] {
            assert!(change_of(&vec![malformed.clone()]).is_err(), "{malformed:?}");
        }
    }
}
