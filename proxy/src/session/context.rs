//! The session's context in both forms: as operations hold it, and encoded as direct statements carry it.

use std::sync::Arc;

use bytes::Bytes;
use ordering::identifiers::ClientId;
use sql::operation::SessionContext;

use super::settings::Settings;

/// A [`SessionContext`] and its encoding.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) decoded: SessionContext,
    pub(crate) encoded: Bytes,
}

impl Context {
    pub(super) fn new(client: ClientId, session: u64, role: &str, database: &str, settings: &Settings) -> Arc<Self> {
        let settings = settings.for_context();
        let decoded = SessionContext {
            client: client.0,
            session,
            role: role.into(),
            database: database.into(),
            settings,
        };
        let encoded = borsh::to_vec(&decoded).unwrap_or_default().into();
        Arc::new(Self { decoded, encoded })
    }
}
