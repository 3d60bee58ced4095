//! Reading the log after a restart: what a machine knows before it hears of anybody.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::identifiers::{Digest, Order, View};
use crate::message::{CommitDbEntry, Request};
use crate::minbft::messages::{CertifiedCheckpoint, HistoryPoint, Prepare};
use crate::minbft::reader::{Fetched, ViewBase};
use crate::minbft::record::{Record, Resume};
use crate::minbft::start_messages::LiveProof;
use crate::minbft::truncation::Retained;

/// Collects what a restart needs from the log; feed it every record, oldest first.
///
/// Memory: only what is above the last stable checkpoint ([`crate::configuration::WATERMARK_ORDERS`]).
#[derive(Debug, Default)]
pub struct Recovery {
    pub(crate) stable: Option<Arc<CertifiedCheckpoint>>,
    /// The first order that can be read from the log, once something was cut off.
    pub(crate) first: Option<Order>,
    pub(crate) live: Option<Arc<LiveProof>>,
    pub(crate) view: Option<View>,
    pub(crate) views: Vec<ViewBase>,
    pub(crate) fetched: Fetched,
    /// PREPAREs of the last live view, above the stable checkpoint.
    pub(crate) prepares: Vec<Arc<Prepare>>,
    /// Bodies above the stable checkpoint.
    pub(crate) bodies: BTreeMap<Digest, (Order, Request)>,
    /// Stable checkpoints that the log can be cut at.
    pub(crate) retained: Retained,
}

impl Recovery {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next record of the log.
    pub fn push(&mut self, record: Record) {
        match record {
            Record::Prepare(prepare) => self.prepares.push(prepare),
            Record::Commit { share, .. } => self.hold(share),
            Record::TakenOver { entries, .. } => self.hold(entries.into_iter().map(|(_, operation)| operation)),
            Record::History { first, entries } => {
                self.fetched.add(first, entries.len());
            }
            Record::Stable(checkpoint) => self.cut(checkpoint),
            Record::Resume(resume) => self.resume(&resume),
            Record::Start(outcome) => self.view = self.view.max(Some(outcome.view)),
            Record::Live(proof) => {
                let view = proof.outcome.view;
                self.view = self.view.max(Some(view));
                if self.views.last().is_none_or(|last| last.view < view) {
                    let base = proof.outcome.base.order.max(self.point().order);
                    let outcome = proof.outcome.digest();
                    self.views.push(ViewBase { view, base, outcome });
                }
                self.prepares.clear();
                self.live = Some(proof);
            }
        }
    }

    fn hold(&mut self, operations: impl IntoIterator<Item = CommitDbEntry>) {
        for operation in operations {
            if let Some(request) = operation.request {
                self.bodies.insert(operation.digest, (operation.order, request));
            }
        }
    }

    fn cut(&mut self, checkpoint: Arc<CertifiedCheckpoint>) {
        let order = checkpoint.stable.point.order;
        self.prepares.retain(|prepare| prepare.last() > order);
        self.bodies.retain(|_, (held, _)| *held > order);
        self.retained.push(&checkpoint.stable.point);
        self.stable = Some(checkpoint);
    }

    /// What was before this may be missing, all of it or a part.
    fn resume(&mut self, resume: &Resume) {
        if let Some(checkpoint) = &resume.checkpoint {
            self.cut(Arc::clone(checkpoint));
        }
        self.first = Some(resume.first);
        self.retained.forget_below(resume.first);
        self.view = resume.view;
        self.live.clone_from(&resume.live);
        self.views.clone_from(&resume.views);
        self.fetched.clone_from(&resume.fetched);
    }

    /// Whether the log may begin with anything but its very first record.
    pub fn has_foundation(&self) -> bool {
        self.first.is_some()
    }

    /// The end of the proven history.
    pub(crate) fn point(&self) -> HistoryPoint {
        self.stable
            .as_ref()
            .map_or(HistoryPoint::GENESIS, |checkpoint| checkpoint.stable.point)
    }
}
