//! What all sessions of a proxy share.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::advisory::Board;
use crate::cancels::Cancels;
use crate::catalog::Catalog;
use crate::client::Client;
use crate::config::{Authentication, ProxyConfig};
use crate::measures::Measures;
use crate::proxy::ProxyError;
use crate::scram::Verifier;
use crate::session::{Descriptions, HeldRoom};

/// Separates the use of the signing key for salts from all others.
const SALTS_CONTEXT: &str = "CloudBFT proxy 2026-11 salts of unknown roles";
/// The protocol that a client names in a TLS handshake (ALPN); libpq insists on it with `sslnegotiation=direct`.
const TLS_PROTOCOL: &[u8] = b"postgresql";

/// Defaults of reported settings, by role and database.
type Defaults = HashMap<(String, String), Arc<BTreeMap<String, String>>>;

/// Shared by all sessions.
pub(crate) struct Shared {
    pub(crate) config: ProxyConfig,
    pub(crate) client: Arc<Client>,
    pub(crate) catalogs: HashMap<String, Arc<Catalog>>,
    pub(crate) cancels: Arc<Cancels>,
    pub(crate) advisory: Arc<Board>,
    pub(crate) descriptions: Descriptions,
    pub(crate) held: Arc<HeldRoom>,
    pub(crate) metrics: Measures,
    pub(crate) verifiers: BTreeMap<String, Verifier>,
    /// Makes the salts of roles that do not exist: the same after each start, as those of roles that do are.
    pub(crate) secret: [u8; 32],
    next_session: AtomicU64,
    defaults: Mutex<Defaults>,
}

impl Shared {
    pub(crate) fn new(mut config: ProxyConfig, client: Arc<Client>) -> Result<Self, ProxyError> {
        config.tls = config.tls.map(|tls| {
            let mut tls = (*tls).clone();
            tls.alpn_protocols = vec![TLS_PROTOCOL.to_vec()];
            Arc::new(tls)
        });
        let catalog = |database: &String| {
            let catalog = Catalog::new(client.id().0, &config.catalog_role, database, config.rules.clone());
            (database.clone(), Arc::new(catalog))
        };
        Ok(Self {
            catalogs: config.databases.iter().map(catalog).collect(),
            verifiers: verifiers(&config)?,
            cancels: Arc::default(),
            advisory: Arc::default(),
            descriptions: Descriptions::default(),
            held: Arc::new(HeldRoom::new(config.spool.clone())),
            metrics: Measures::new(),
            secret: blake3::derive_key(SALTS_CONTEXT, config.signing_key.as_bytes()),
            next_session: AtomicU64::new(u64::from(config.incarnation) << 32 | 1),
            defaults: Mutex::default(),
            client,
            config,
        })
    }

    /// A session number: never used before.
    pub(crate) fn next_session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// The known defaults of reported settings.
    pub(crate) fn defaults(&self, role: &str, database: &str) -> Option<Arc<BTreeMap<String, String>>> {
        let defaults = self.defaults.lock().unwrap_or_else(PoisonError::into_inner);
        defaults.get(&(role.to_owned(), database.to_owned())).cloned()
    }

    /// Remembers the defaults of reported settings. Bounded: roles and databases come from the configuration.
    pub(crate) fn remember_defaults(&self, role: &str, database: &str, values: Arc<BTreeMap<String, String>>) {
        let mut defaults = self.defaults.lock().unwrap_or_else(PoisonError::into_inner);
        defaults.insert((role.to_owned(), database.to_owned()), values);
    }
}

fn verifiers(config: &ProxyConfig) -> Result<BTreeMap<String, Verifier>, ProxyError> {
    if config.authentication == Authentication::Trust {
        return Ok(BTreeMap::new());
    }
    let parse = |role: &crate::config::RoleConfig| {
        let verifier = role.verifier.as_deref().and_then(Verifier::parse);
        let verifier = verifier
            .ok_or_else(|| ProxyError::Configuration(format!("role {} has no SCRAM-SHA-256 verifier", role.name)))?;
        Ok((role.name.clone(), verifier))
    };
    config.roles.iter().map(parse).collect()
}
