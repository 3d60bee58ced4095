//! Reading the log after a restart: what a machine knows before it hears of anybody.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::identifiers::{Digest, Order, View};
use crate::ledger::bodies::Bodies;
use crate::ledger::history::DecidedHistory;
use crate::ledger::retained::Retained;
use crate::ledger::{CertifiedCheckpoint, HistoryPoint, Restored};
use crate::message::{CommitDbEntry, Request};
use crate::minbft::core::Past;
use crate::minbft::log::provenance::{Fetched, ViewBase};
use crate::minbft::log::record::{Record, Resume};
use crate::minbft::wire::ordered::Prepare;
use crate::minbft::wire::outcome::LiveProof;

/// Collects what a restart needs from the log; feed it every record, oldest first.
///
/// Memory: only what is above the last stable checkpoint ([`crate::configuration::WATERMARK_ORDERS`]).
#[derive(Debug, Default)]
pub struct Recovery {
    stable: Option<Arc<CertifiedCheckpoint>>,
    /// The first order that can be read from the log, once something was cut off.
    first: Option<Order>,
    live: Option<Arc<LiveProof>>,
    view: Option<View>,
    views: Vec<ViewBase>,
    fetched: Fetched,
    /// PREPAREs of the last live view, above the stable checkpoint.
    prepares: Vec<Arc<Prepare>>,
    /// Bodies above the stable checkpoint.
    bodies: BTreeMap<Digest, (Order, Arc<Request>)>,
    /// Stable checkpoints that the log can be cut at.
    retained: Retained,
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
        self.view = self.view.max(resume.view);
        // `Live` may stand before it and not have been taken up yet when it was written.
        let known = resume.live.as_ref().map(|live| live.outcome.view);
        let last = self.live.as_ref().map(|live| live.outcome.view);
        if last <= known {
            self.live.clone_from(&resume.live);
        }
        let point = self.point().order;
        let newer = self
            .views
            .iter()
            .filter(|view| Some(view.view) > known)
            .map(|view| ViewBase {
                base: view.base.max(point),
                ..*view
            });
        let newer: Vec<ViewBase> = newer.collect();
        self.views.clone_from(&resume.views);
        self.views.extend(newer);
        self.fetched.clone_from(&resume.fetched);
    }

    /// Whether the log may begin with anything but its very first record.
    pub fn has_foundation(&self) -> bool {
        self.first.is_some()
    }

    /// The shared state and the views that the log tells of.
    pub(crate) fn restore(self) -> (Restored, Past, Vec<ViewBase>, Fetched) {
        let clients = self.stable.as_ref().map(|checkpoint| checkpoint.clients.clone());
        let restored = Restored {
            history: DecidedHistory::new(self.point()),
            clients: clients.unwrap_or_default(),
            bodies: Bodies::default(),
            stable: self.stable,
            retained: self.retained,
            first: self.first,
        };
        let past = Past {
            mentioned: self.view,
            live: self.live,
            prepares: self.prepares,
            held: self.bodies,
            ..Past::default()
        };
        (restored, past, self.views, self.fetched)
    }

    /// The end of the proven history.
    fn point(&self) -> HistoryPoint {
        self.stable
            .as_ref()
            .map_or(HistoryPoint::GENESIS, |checkpoint| checkpoint.stable.point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::minbft::log::provenance::Fetched;
    use crate::minbft::wire::outcome::{Outcome, Proof};

    fn live(view: u64) -> Arc<LiveProof> {
        let outcome = Outcome {
            view: View(view),
            base: HistoryPoint::GENESIS,
            entries: Vec::new(),
            admitted: Vec::new(),
            changed: Vec::new(),
        };
        Arc::new(LiveProof {
            outcome,
            decided_by: Proof::Start(Vec::new()),
        })
    }

    fn resume(view: u64) -> Record {
        let live = live(view);
        let views = vec![ViewBase {
            view: View(view),
            base: Order(0),
            outcome: live.outcome.digest(),
        }];
        Record::Resume(Arc::new(Resume {
            checkpoint: None,
            first: Order(1),
            view: Some(View(view)),
            live: Some(live),
            views,
            fetched: Fetched::default(),
        }))
    }

    #[test]
    fn a_view_that_went_live_is_not_forgotten_when_the_log_is_cut_before_it_is_entered() {
        let mut recovery = Recovery::new();
        recovery.push(Record::Live(live(4)));
        recovery.push(Record::Live(live(5)));
        recovery.push(resume(4));
        assert_eq!(recovery.live.map(|live| live.outcome.view), Some(View(5)));
        let views: Vec<View> = recovery.views.iter().map(|view| view.view).collect();
        assert_eq!((views, recovery.view), (vec![View(4), View(5)], Some(View(5))));
    }

    #[test]
    fn a_log_that_begins_with_a_foundation_knows_the_view() {
        let mut recovery = Recovery::new();
        assert!(!recovery.has_foundation());
        recovery.push(resume(4));
        assert!(recovery.has_foundation());
        assert_eq!(recovery.live.map(|live| live.outcome.view), Some(View(4)));
    }
}
