//! Descriptions of statements, kept for a short while: drivers ask for the same ones again and again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::context::Context;

/// How long a description is believed: another proxy's DDL is noticed this late (a change of a prepared statement's
/// result is as late in PostgreSQL, where it shows as an error at Execute).
const DESCRIPTION_AGE_MAX: Duration = Duration::from_secs(1);
/// Descriptions that are kept, at most.
const DESCRIPTIONS_MAX: usize = 4096;
/// The largest description that is kept, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 64 << 10;

/// What a description depends on, beside the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DescriptionKey([u8; 32]);

/// The columns of a statement's result: their names, types and modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape([u8; 32]);

impl Shape {
    /// The shape in a description.
    pub(super) fn of(messages: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for (tag, message) in sql::result::messages(messages).flatten() {
            if tag == b'T' {
                let body = message.get(HEADER_AND_COUNT_BYTES..).unwrap_or_default();
                hash_columns(body, &mut hasher);
            }
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// Before the columns of a RowDescription.
const HEADER_AND_COUNT_BYTES: usize = 7;
/// Behind a column's name: table, place in it, type, width, modifier, format.
const COLUMN_BYTES: usize = 18;

fn hash_columns(mut columns: &[u8], hasher: &mut blake3::Hasher) {
    while let Some(end) = columns.iter().position(|byte| *byte == 0) {
        let Some((column, rest)) = columns.split_at_checked(end + 1 + COLUMN_BYTES) else {
            return;
        };
        let (name, fields) = column.split_at(end + 1);
        hasher.update(name);
        // Where the column comes from may change.
        hasher.update(fields.get(6..10).unwrap_or_default());
        hasher.update(fields.get(12..16).unwrap_or_default());
        columns = rest;
    }
}

#[derive(Debug)]
struct Description {
    epoch: u64,
    at: Instant,
    messages: Bytes,
}

/// The descriptions of all sessions: ParameterDescription, then RowDescription or NoData.
#[derive(Debug, Default)]
pub(crate) struct Descriptions {
    table: Mutex<HashMap<DescriptionKey, Description>>,
}

impl DescriptionKey {
    /// `of_session`: names may mean objects of the session's own.
    pub(super) fn new(context: &Context, text: &str, parameter_types: &[u32], of_session: bool) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(context.decoded.role.as_bytes());
        part(context.decoded.database.as_bytes());
        for (name, value) in &context.decoded.settings {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(b"");
        if of_session {
            part(&context.decoded.session.to_le_bytes());
        }
        part(text.as_bytes());
        for parameter_type in parameter_types {
            part(&parameter_type.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

impl Descriptions {
    fn lock(&self) -> MutexGuard<'_, HashMap<DescriptionKey, Description>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The description, if it is known and fresh.
    pub(super) fn get(&self, key: DescriptionKey, epoch: u64) -> Option<Bytes> {
        let table = self.lock();
        let found = table
            .get(&key)
            .filter(|found| found.epoch == epoch && found.at.elapsed() < DESCRIPTION_AGE_MAX)?;
        Some(found.messages.clone())
    }

    /// Keeps a description.
    pub(super) fn keep(&self, key: DescriptionKey, epoch: u64, messages: Bytes) {
        if messages.len() > DESCRIPTION_BYTES_MAX {
            return;
        }
        let mut table = self.lock();
        if table.len() >= DESCRIPTIONS_MAX {
            table.clear();
        }
        // A copy of its own: a slice would keep the whole result alive.
        let messages = Bytes::copy_from_slice(&messages);
        table.insert(
            key,
            Description {
                epoch,
                at: Instant::now(),
                messages,
            },
        );
    }
}
