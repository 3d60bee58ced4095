//! Descriptions of statements and portals. Those of statements are kept for a short while: drivers ask for the same ones again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sql::operation::{Exchange, StatementText, Step};

use super::Session;
use super::configs::parameter_types;
use super::context::Context;
use super::extended::{no_portal, step_messages};
use super::pipeline::Portal;
use super::prepared::{Prepared, no_statement};
use super::routing::Kind;
use super::simple::is_cursor;
use super::special::describe_special;
use crate::error::{ApplicationError, Routine};
use crate::wire::{first_error, step_boundaries};

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

impl Session {
    /// Describes a prepared statement; what it looks like may be known.
    pub(super) fn describe_statement(&mut self, name: &str) -> Result<(), ApplicationError> {
        let prepared = self.statements.get(name).cloned().ok_or_else(|| no_statement(name))?;
        if prepared.special {
            self.pipeline.insert(|out| {
                out.parameters(&parameter_types(
                    &prepared.class,
                    &prepared.statement.parameter_types,
                    prepared.parameters,
                ));
                describe_special(&prepared, &[], out);
            });
            return Ok(());
        }
        if self.held.concerns(&prepared.class) {
            let description = self.held.description(&prepared.class, &[]);
            self.pipeline.insert(|out| {
                out.parameters(&prepared.statement.parameter_types);
                match description {
                    Some(description) => out.raw(&description),
                    None => out.no_data(),
                }
            });
            return Ok(());
        }
        // The columns of FETCH depend on a cursor of the session's.
        let is_common = !is_cursor(&prepared.class);
        if is_common && let Some(description) = self.known_description(&prepared.statement) {
            prepared.is_described_by(&description, self.catalog.epoch());
            self.pipeline.insert(|out| out.raw(&description));
            return Ok(());
        }
        let statement = self.pipeline.index(&prepared);
        self.pipeline.steps.push(Step::DescribeStatement { statement });
        if is_common && self.is_catalog_settled() {
            let key = self.description_key(&prepared.statement);
            self.pipeline.described.push((self.pipeline.steps.len(), key, prepared));
        }
        Ok(())
    }

    /// Describes a statement of SQL's PREPARE, which also shows whether it can run.
    pub(super) async fn describe_as_prepared(&mut self, prepared: &Prepared) -> Result<Bytes, ApplicationError> {
        let (statement, epoch) = (prepared.described(), self.catalog.epoch());
        let keeps = self.is_catalog_settled();
        self.describe_again(statement, keeps.then_some(epoch)).await
    }

    /// Makes sure that a statement still gives the columns that it was described with: applications decode rows by these.
    pub(super) async fn check_shape(&mut self, name: &str) -> Result<(), ApplicationError> {
        let epoch = self.catalog.epoch();
        let stale = self
            .statements
            .get(name)
            .filter(|prepared| prepared.may_have_changed(epoch));
        let Some(prepared) = stale.cloned().filter(|_| self.is_catalog_settled()) else {
            return Ok(());
        };
        let description = match self.known_description(prepared.described()) {
            Some(description) => description,
            None => self.describe_again(prepared.described(), Some(epoch)).await?,
        };
        match prepared.is_described_by(&description, epoch) {
            true => Ok(()),
            // Drivers that prepare it anew know the error by the function that raises it.
            false => Err(
                ApplicationError::new("0A000", "cached plan must not change result type")
                    .routine(Routine::RevalidateCachedQuery),
            ),
        }
    }

    /// Asks for a description, and keeps it if it is of a known epoch of the catalog.
    async fn describe_again(
        &mut self,
        statement: &StatementText,
        epoch: Option<u64>,
    ) -> Result<Bytes, ApplicationError> {
        let exchange = Exchange::Extended {
            statements: vec![statement.clone()],
            steps: vec![Step::DescribeStatement { statement: 0 }],
        };
        let described = self.execute_and_gather(&exchange, Kind::Plain).await?;
        if let Some(error) = first_error(&described.messages) {
            return Err(error);
        }
        let boundaries = step_boundaries(&described.messages);
        if let Some(epoch) = epoch
            && let Some(messages) = step_messages(&described.messages, &boundaries, 1)
        {
            let key = self.description_key(statement);
            self.shared.descriptions.keep(key, epoch, messages);
        }
        Ok(described.messages)
    }

    /// Whether no uncommitted DDL of this session hides the common catalog, and no failure its own state.
    pub(super) fn is_catalog_settled(&self) -> bool {
        self.transaction
            .as_ref()
            .is_none_or(|transaction| !transaction.catalog_changed && !transaction.failed)
    }

    pub(super) fn description_key(&mut self, statement: &StatementText) -> DescriptionKey {
        let context = self.context();
        let of_session = self.made_temporary || mentions_temporary(&statement.text);
        DescriptionKey::new(&context, &statement.text, &statement.parameter_types, of_session)
    }

    pub(super) fn known_description(&mut self, statement: &StatementText) -> Option<Bytes> {
        if !self.is_catalog_settled() {
            return None;
        }
        let key = self.description_key(statement);
        self.shared.descriptions.get(key, self.catalog.epoch())
    }

    /// Describes a portal.
    pub(super) fn describe_portal(&mut self, name: String) -> Result<(), ApplicationError> {
        match self.portals.get(&name) {
            Some(Portal::Special { prepared, formats, .. }) => {
                let (prepared, formats) = (Arc::clone(prepared), formats.clone());
                let held = self.held.description(&prepared.class, &formats);
                self.pipeline.insert(|out| match held {
                    Some(description) => out.raw(&description),
                    None => describe_special(&prepared, &formats, out),
                });
                return Ok(());
            }
            Some(Portal::Backend) => {}
            None if self.is_held(&name) => {
                let description = self.held.description_of(&name);
                self.pipeline.insert(|out| out.raw(&description.unwrap_or_default()));
                return Ok(());
            }
            // A cursor of DECLARE is a portal too.
            None if self.is_begun() => {}
            None => return Err(no_portal(&name)),
        }
        self.pipeline.stateful |= !self.pipeline.bound.contains(&name);
        self.pipeline.steps.push(Step::DescribePortal { portal: name });
        Ok(())
    }
}

/// Whether a text may name temporary objects of its session's by the name of their schema.
fn mentions_temporary(text: &str) -> bool {
    let mut places = text.match_indices('_').map(|(at, _)| at);
    places.any(|at| {
        let named = at.checked_sub(2).and_then(|start| text.get(start..at + 5));
        named.is_some_and(|named| named.eq_ignore_ascii_case("pg_temp"))
    })
}
