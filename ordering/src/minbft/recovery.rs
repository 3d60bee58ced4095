//! Reading the log after a restart: what a machine knows before it hears of anybody.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::client_table::ClientTable;
use crate::identifiers::{Digest, Order, View};
use crate::message::{CommitDbEntry, Request};
use crate::minbft::messages::{HistoryPoint, Prepare, StableCheckpoint};
use crate::minbft::reader::{Fetched, ViewBase};
use crate::minbft::record::Record;
use crate::minbft::start_messages::LiveProof;

/// Collects what a restart needs from the log; feed it every record, oldest first.
///
/// Memory: only what is above the last stable checkpoint ([`crate::configuration::WATERMARK_ORDERS`]).
#[derive(Debug, Default)]
pub struct Recovery {
    pub(crate) stable: Option<StableCheckpoint>,
    pub(crate) live: Option<Arc<LiveProof>>,
    pub(crate) view: Option<View>,
    pub(crate) views: Vec<ViewBase>,
    pub(crate) fetched: Fetched,
    /// PREPAREs of the last live view, above the stable checkpoint.
    pub(crate) prepares: Vec<Arc<Prepare>>,
    /// Bodies above the stable checkpoint.
    pub(crate) bodies: BTreeMap<Digest, (Order, Request)>,
    /// Which numbers of clients are decided.
    pub(crate) clients: ClientTable,
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
                for request in entries.iter().filter_map(|entry| entry.request.as_ref()) {
                    self.clients.record(request.client, request.number, request.floor);
                }
            }
            Record::Stable(stable) => self.cut(stable),
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

    fn cut(&mut self, stable: StableCheckpoint) {
        let order = stable.point.order;
        self.prepares.retain(|prepare| prepare.last() > order);
        let mut decided: Vec<(Order, Request)> = Vec::new();
        self.bodies.retain(|_, (held, request)| {
            if *held <= order {
                decided.push((*held, request.clone()));
            }
            *held > order
        });
        decided.sort_by_key(|(order, _)| *order);
        for (_, request) in decided {
            self.clients.record(request.client, request.number, request.floor);
        }
        self.stable = Some(stable);
    }

    /// The end of the proven history.
    pub(crate) fn point(&self) -> HistoryPoint {
        self.stable
            .as_ref()
            .map_or(HistoryPoint::GENESIS, |stable| stable.point)
    }
}
