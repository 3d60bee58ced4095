//! Reading the log after a restart. Everything that a replica has ever said is in it, so it simply goes on
//! (`views/starting.rs`): in the view that it was in or wanted, with the batches that it has accepted, its certificates, and
//! its history.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::assignment::Assignment;
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::bodies::Bodies;
use crate::ledger::client_table::ClientTable;
use crate::ledger::history::{DecidedHistory, ENTRY_BYTES, to_history};
use crate::ledger::retained::Retained;
use crate::ledger::{CertifiedCheckpoint, HistoryEntry, HistoryPoint, Restored, StableCheckpoint};
use crate::message::Request;
use crate::pbft::core::{HISTORY_VIEW, LoggedView};
use crate::pbft::log::record::{Record, Resume};
use crate::pbft::phase::Begin;
use crate::pbft::window::{End, Slot, Stage, Window, operations, point_of};
use crate::pbft::wire::change::RequestViewChange;
use crate::pbft::wire::ordered::{Batch, Certificate};

/// Bytes of decided bodies below the stable checkpoint that are kept in memory while the log is read.
const TAIL_BYTES_MAX: usize = 16 << 20;

/// A batch that was accepted.
#[derive(Debug)]
struct Accepted {
    /// The last view in which it was.
    view: View,
    batch: Arc<Batch>,
    digest: Digest,
    requests: Vec<Arc<Request>>,
    is_delivered: bool,
}

/// Collects what a restart needs from the log; feed it every record, oldest first.
///
/// Memory: only what is above the last stable checkpoint, and a bounded tail of the history below.
#[derive(Debug)]
pub struct Recovery {
    restored: Restored,
    /// The low end of the window.
    low: Option<StableCheckpoint>,
    /// The view that the machine was in, or wanted; none: the log is empty.
    view: Option<View>,
    is_active: bool,
    /// How that view began.
    outcome: Vec<Arc<Batch>>,
    /// Why it wanted that view.
    requests: Vec<RequestViewChange>,
    accepted: BTreeMap<u64, Accepted>,
    certificates: BTreeMap<u64, Arc<Certificate>>,
    /// Fetched operations whose proof has not been read.
    fetched: Vec<HistoryEntry>,
}

impl Default for Recovery {
    fn default() -> Self {
        Recovery {
            restored: Restored {
                history: DecidedHistory::new(HistoryPoint::GENESIS),
                clients: ClientTable::default(),
                bodies: Bodies::default(),
                stable: None,
                retained: Retained::default(),
                first: None,
            },
            low: None,
            view: None,
            is_active: false,
            outcome: Vec::new(),
            requests: Vec::new(),
            accepted: BTreeMap::new(),
            certificates: BTreeMap::new(),
            fetched: Vec::new(),
        }
    }
}

impl Recovery {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next record of the log.
    pub fn push(&mut self, record: Record) {
        match record {
            Record::Entered { view, stable, batches } => self.enter(view, stable, batches),
            Record::Accepted { view, batch, requests } => self.accept(view, batch, requests),
            Record::AcceptedAgain { view, batch } => {
                let accepted = self.accepted.get_mut(&batch.number);
                if let Some(accepted) = accepted.filter(|accepted| accepted.batch == batch) {
                    accepted.view = view;
                }
            }
            Record::Prepared {
                view,
                number,
                digest,
                signatures,
            } => self.prepare(view, number, digest, signatures),
            Record::Decided { number, digest } => self.decide(number, digest),
            Record::Stable(checkpoint) => self.cut(checkpoint),
            Record::Resume(resume) => self.resume_from(&resume),
            Record::History { entries, .. } => self.fetched.extend(entries),
            Record::ViewChange { view, requests } => {
                self.view = Some(view);
                self.is_active = false;
                self.requests = requests;
            }
        }
    }

    fn enter(&mut self, view: View, stable: Option<StableCheckpoint>, batches: Vec<Arc<Batch>>) {
        self.view = Some(view);
        self.is_active = true;
        if let Some(stable) = stable {
            self.raise_low(stable);
        }
        let stay: BTreeMap<u64, Digest> = batches.iter().map(|batch| (batch.number, batch.digest())).collect();
        self.accepted
            .retain(|number, accepted| accepted.is_delivered || stay.get(number) == Some(&accepted.digest));
        self.certificates
            .retain(|number, certificate| stay.get(number) == Some(&certificate.batch.digest()));
        self.outcome = batches;
    }

    fn accept(&mut self, view: View, batch: Arc<Batch>, requests: Vec<Arc<Request>>) {
        let accepted = Accepted {
            view,
            digest: batch.digest(),
            requests,
            is_delivered: false,
            batch,
        };
        self.accepted.insert(accepted.batch.number, accepted);
    }

    fn prepare(&mut self, view: View, number: u64, digest: Digest, signatures: Vec<(MachineId, [u8; 64])>) {
        let accepted = self.accepted.get(&number);
        if let Some(accepted) = accepted.filter(|accepted| accepted.digest == digest) {
            let certificate = Certificate {
                view,
                batch: Arc::clone(&accepted.batch),
                signatures,
            };
            self.certificates.insert(number, Arc::new(certificate));
        }
    }

    fn decide(&mut self, number: u64, digest: Digest) {
        let restored = &mut self.restored;
        let is_next = number == restored.history.point.value + 1;
        let accepted = self.accepted.get_mut(&number);
        let Some(accepted) = accepted.filter(|accepted| is_next && accepted.digest == digest) else {
            return;
        };
        accepted.is_delivered = true;
        let bodies: Vec<_> = std::mem::take(&mut accepted.requests).into_iter().map(Some).collect();
        let decided: Vec<_> = operations(&accepted.batch, &bodies).collect();
        for (_, operation) in &decided {
            restored.bodies.locate(operation.digest, operation.order);
            if let Some(request) = &operation.request {
                restored.clients.add(request);
            }
        }
        let stable = restored.stable.as_ref().map(|checkpoint| checkpoint.stable.point);
        let (stable, point) = (stable.unwrap_or(HistoryPoint::GENESIS), restored.history.point);
        let coming: u64 = bodies.iter().flatten().map(|body| body.operation.len() as u64).sum();
        let orders = point.order.0.saturating_sub(stable.order.0) + decided.len() as u64;
        let above = point.bytes.saturating_sub(stable.bytes) + orders * ENTRY_BYTES as u64 + coming;
        let bytes_max = TAIL_BYTES_MAX.saturating_add(usize::try_from(above).unwrap_or(usize::MAX));
        let entries = decided.into_iter();
        let entries = entries.map(|(group, operation)| to_history(group, operation));
        let limits = (bytes_max, Order(u64::MAX));
        let bodies = &mut restored.bodies;
        restored.history.append(bodies, entries, HISTORY_VIEW, number, limits);
    }

    fn cut(&mut self, checkpoint: Arc<CertifiedCheckpoint>) {
        let point = checkpoint.stable.point;
        if point.order > self.restored.history.point.order {
            self.restored.clients = checkpoint.clients.clone();
            self.restored.history.jump(&mut self.restored.bodies, point);
        }
        self.restored.retained.push(&point);
        self.raise_low(checkpoint.stable.clone());
        self.restored.stable = Some(checkpoint);
    }

    /// What was before this may be missing, all of it or a part.
    fn resume_from(&mut self, resume: &Resume) {
        self.cut(Arc::clone(&resume.checkpoint));
        if let Some(low) = resume.low.clone() {
            self.raise_low(low);
        }
        self.restored.first = Some(resume.first);
        self.restored.retained.forget_below(resume.first);
        // A record that is not cut off may already say more.
        let is_known = self.view >= Some(resume.view) && (self.is_active || !resume.is_active);
        if self.view > Some(resume.view) || is_known {
            return;
        }
        self.view = Some(resume.view);
        self.is_active = resume.is_active;
        self.outcome.clone_from(&resume.outcome);
        self.requests.clone_from(&resume.requests);
    }

    /// Whether the log may begin with anything but its very first record.
    pub fn has_foundation(&self) -> bool {
        self.restored.first.is_some()
    }

    fn raise_low(&mut self, stable: StableCheckpoint) {
        let number = stable.point.value;
        if number <= point_of(&self.low).value {
            return;
        }
        self.low = Some(stable);
        self.accepted = self.accepted.split_off(&(number + 1));
        self.certificates = self.certificates.split_off(&(number + 1));
    }

    /// The state that a machine goes on with, and how.
    pub(crate) fn restore(mut self) -> (Restored, Window, LoggedView, Begin) {
        let begin = match self.view {
            None => Begin::Fresh,
            Some(_) if self.is_active => Begin::Resume,
            Some(_) => Begin::Leave,
        };
        let window = self.window();
        let logged = LoggedView {
            view: self.view.unwrap_or_default(),
            is_active: self.is_active,
            outcome: self.outcome,
            requests: self.requests,
        };
        (self.restored, window, logged, begin)
    }

    /// The batches above the low end, as they were; those of the view in the stage that the log proves.
    fn window(&mut self) -> Window {
        let mut window = Window::above(self.low.take());
        let mut end = window.next;
        for (number, accepted) in std::mem::take(&mut self.accepted) {
            let mut slot = if accepted.is_delivered {
                Slot::delivered(&accepted.batch, accepted.digest, end.assignment)
            } else {
                self.restore_slot(accepted.requests, &accepted.batch, accepted.digest, end.assignment)
            };
            end = End::of(&accepted.batch, end.assignment);
            if self.is_active && Some(accepted.view) == self.view {
                let certificate = self.certificates.get(&number);
                let is_prepared = certificate.is_some_and(|certificate| certificate.view == accepted.view)
                    && window.committing + 1 == number;
                slot.stage = if is_prepared { Stage::Prepared } else { Stage::Accepted };
                window.committing += u64::from(is_prepared);
            }
            window.slots.insert(number, slot);
        }
        window.certificates = std::mem::take(&mut self.certificates);
        window
    }

    fn restore_slot(
        &mut self,
        requests: Vec<Arc<Request>>,
        batch: &Arc<Batch>,
        digest: Digest,
        assignment: Assignment,
    ) -> Slot {
        let mut slot = Slot::new(batch, digest, assignment);
        slot.is_logged = true;
        for (index, (request, entry)) in requests.into_iter().zip(&batch.entries).enumerate() {
            slot.fill(index, request);
            self.restored
                .bodies
                .locate(entry.digest, Order(batch.first.0 + index as u64));
        }
        slot
    }
}
