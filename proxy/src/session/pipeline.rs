//! What an application has sent since the last Sync.

use std::sync::Arc;

use bytes::Bytes;
use sql::operation::{Exchange, Step};

use super::configs::Bound;
use super::describe::DescriptionKey;
use super::prepared::Prepared;
use crate::wire::Backend;

/// Steps of one exchange with the proxy's own responses and what may have to be taken back, at most; a longer pipeline is
/// run in several.
const STEPS_MAX: usize = 5_000;
/// Bytes of one exchange's parameters and texts, of responses, and of texts that were replaced, at most; a longer
/// pipeline is run in several.
const PIPELINE_BYTES_MAX: usize = 4 << 20;

/// A portal, as the proxy knows it.
#[derive(Debug)]
pub(super) enum Portal {
    /// On the voters' backends.
    Backend,
    /// Of a statement that the proxy answers itself.
    Special {
        prepared: Arc<Prepared>,
        /// Of its columns: none, one for all, or one each.
        formats: Vec<i16>,
        bound: Arc<Bound>,
    },
}

impl Portal {
    /// Bytes of the parameters that it keeps in the proxy, nearly.
    pub(super) fn bound_bytes(&self) -> usize {
        match self {
            Portal::Backend => 0,
            Portal::Special { bound, .. } => bound.bytes(),
        }
    }
}

/// What to take back when a pipeline fails before it.
#[derive(Debug)]
pub(super) enum Undo {
    /// A Parse; the statement of this name before.
    Parse(String, Option<Arc<Prepared>>),
    /// A Close; the statement of this name before.
    Close(String, Option<Arc<Prepared>>),
    Portal(String, Option<Portal>),
}

impl Undo {
    /// Bytes that are kept for it, nearly.
    fn bytes(&self) -> usize {
        match self {
            Undo::Parse(name, before) | Undo::Close(name, before) => {
                name.len() + before.as_ref().map_or(0, |before| before.bytes())
            }
            Undo::Portal(name, Some(Portal::Special { prepared, bound, .. })) => {
                name.len() + prepared.bytes() + bound.bytes()
            }
            Undo::Portal(name, _) => name.len(),
        }
    }
}

/// Messages that wait for Sync.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    pub(super) statements: Vec<Arc<Prepared>>,
    pub(super) steps: Vec<Step>,
    pub(super) bytes: usize,
    /// Responses of the proxy's own, each to be sent after so many steps were completed.
    pub(super) inserts: Vec<(usize, Bytes)>,
    /// Changes of the session, each to be taken back when fewer steps than this were completed.
    pub(super) undo: Vec<(usize, Undo)>,
    /// Portals that this pipeline bound.
    pub(super) bound: Vec<String>,
    /// The exchange needs or leaves state on the backend.
    pub(super) stateful: bool,
    /// Steps that describe a statement, to be remembered.
    pub(super) described: Vec<(usize, DescriptionKey, Arc<Prepared>)>,
}

impl Pipeline {
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.inserts.is_empty()
    }

    pub(super) fn has_bind(&self) -> bool {
        self.steps
            .iter()
            .any(|step| matches!(step, Step::Bind { .. } | Step::Execute { .. }))
    }

    pub(super) fn is_full(&self) -> bool {
        self.steps.len() + self.inserts.len() + self.undo.len() >= STEPS_MAX || self.bytes >= PIPELINE_BYTES_MAX
    }

    /// The index of a statement in the exchange.
    pub(super) fn index(&mut self, prepared: &Arc<Prepared>) -> u16 {
        let found = self.statements.iter().position(|known| Arc::ptr_eq(known, prepared));
        let index = found.unwrap_or_else(|| {
            self.bytes += prepared.statement.text.len();
            self.statements.push(Arc::clone(prepared));
            self.statements.len() - 1
        });
        u16::try_from(index).unwrap_or(u16::MAX)
    }

    pub(super) fn insert(&mut self, write: impl FnOnce(&mut Backend)) {
        let mut messages = Backend::new();
        write(&mut messages);
        let messages = messages.take();
        self.bytes += messages.len();
        self.inserts.push((self.steps.len(), messages));
    }

    /// Notes a change of the session that is to be taken back unless all steps so far are completed.
    pub(super) fn changed(&mut self, undo: Undo) {
        self.bytes += undo.bytes();
        self.undo.push((self.steps.len(), undo));
    }

    pub(super) fn exchange(&mut self) -> Exchange {
        let statements = self
            .statements
            .iter()
            .map(|prepared| prepared.statement.clone())
            .collect();
        Exchange::Extended {
            statements,
            steps: std::mem::take(&mut self.steps),
        }
    }
}
