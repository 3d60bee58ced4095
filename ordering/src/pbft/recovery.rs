//! Reading the log after a restart. Everything that a replica has ever said is in it, so it simply goes on: in the
//! view that it was in or wanted, with the batches that it has accepted, its certificates, and its history.
//!
//! Only the primary does not go on: what it proposed may not be in its log. It resigns, and the next one leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::bodies::Bodies;
use crate::ledger::client_table::ClientTable;
use crate::ledger::history::{DecidedHistory, ENTRY_BYTES, to_history};
use crate::ledger::retained::Retained;
use crate::ledger::{CertifiedCheckpoint, HistoryEntry, HistoryPoint, Restored, StableCheckpoint};
use crate::message::Request;
use crate::pbft::messages::{Batch, Certificate, Commit, Prepare, RequestViewChange};
use crate::pbft::outcome::{End, point_of};
use crate::pbft::record::{Record, Resume};
use crate::pbft::window::{Slot, Stage, Votes, Window, operations};
use crate::pbft::{HISTORY_VIEW, Machine};

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
    pub(crate) restored: Restored,
    /// The low end of the window.
    pub(crate) low: Option<StableCheckpoint>,
    /// The view that the machine was in, or wanted; none: the log is empty.
    pub(crate) view: Option<View>,
    pub(crate) is_active: bool,
    /// How that view began.
    pub(crate) outcome: Vec<Arc<Batch>>,
    /// Why it wanted that view.
    pub(crate) requests: Vec<RequestViewChange>,
    accepted: BTreeMap<u64, Accepted>,
    pub(crate) certificates: BTreeMap<u64, Arc<Certificate>>,
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
        let is_next = number == self.restored.history.point.value + 1;
        let accepted = self.accepted.get_mut(&number);
        let Some(accepted) = accepted.filter(|accepted| is_next && accepted.digest == digest) else {
            return;
        };
        accepted.is_delivered = true;
        let bodies: Vec<_> = std::mem::take(&mut accepted.requests).into_iter().map(Some).collect();
        let batch = Arc::clone(&accepted.batch);
        let decided: Vec<_> = operations(&batch, &bodies).collect();
        for (_, operation) in &decided {
            self.restored.bodies.locate(operation.digest, operation.order);
            if let Some(request) = &operation.request {
                self.restored
                    .clients
                    .record(request.client, request.number, request.floor);
            }
        }
        let stable = self
            .restored
            .stable
            .as_ref()
            .map_or(HistoryPoint::GENESIS, |checkpoint| checkpoint.stable.point);
        let point = self.restored.history.point;
        let above = point.bytes.saturating_sub(stable.bytes)
            + (point.order.0.saturating_sub(stable.order.0) + decided.len() as u64) * ENTRY_BYTES as u64
            + bodies
                .iter()
                .flatten()
                .map(|body| body.operation.len() as u64)
                .sum::<u64>();
        let bytes_max = TAIL_BYTES_MAX.saturating_add(usize::try_from(above).unwrap_or(usize::MAX));
        let entries = decided
            .into_iter()
            .map(|(group, operation)| to_history(group, operation));
        for gone in self
            .restored
            .history
            .append(entries, HISTORY_VIEW, number, (bytes_max, Order(u64::MAX)))
        {
            self.restored.bodies.forget_location(&gone.digest, gone.order);
        }
    }

    fn cut(&mut self, checkpoint: Arc<CertifiedCheckpoint>) {
        let point = checkpoint.stable.point;
        if point.order > self.restored.history.point.order {
            self.restored.clients = checkpoint.clients.clone();
            for gone in self.restored.history.jump(point) {
                self.restored.bodies.forget_location(&gone.digest, gone.order);
            }
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

    /// The batches above the low end, as they were; those of the view in the stage that the log proves.
    pub(crate) fn window(&mut self) -> Window {
        let mut window = Window {
            committing: point_of(&self.low).value,
            ..Window::default()
        };
        for (number, accepted) in std::mem::take(&mut self.accepted) {
            let slot = if accepted.is_delivered {
                Slot::delivered(&accepted.batch, accepted.digest)
            } else {
                self.restore_slot(accepted.requests, &accepted.batch, accepted.digest)
            };
            let mut slot = slot;
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

    fn restore_slot(&mut self, requests: Vec<Arc<Request>>, batch: &Arc<Batch>, digest: Digest) -> Slot {
        let mut slot = Slot::new(batch, digest);
        slot.is_logged = true;
        for (index, (request, entry)) in requests.into_iter().zip(&batch.entries).enumerate() {
            slot.fill(index, request);
            let order = crate::identifiers::Order(batch.first.0 + index as u64);
            self.restored.bodies.locate(entry.digest, order);
        }
        slot
    }
}

/// What the first step of a machine has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// The log is empty: view 0.
    Fresh,
    /// Go on in the view.
    Resume,
    /// Say again that we want the view.
    Leave,
}

impl Machine {
    /// The first step.
    pub(crate) fn begin(&mut self, begin: Begin) {
        let view = self.view.view;
        self.view.progress_us = self.ledger.now.monotonic_us;
        let low = self.low.clone();
        if let Some(low) = low.filter(|low| low.point.order > self.ledger.history.point.order) {
            self.on_stable(low);
        }
        match begin {
            Begin::Fresh => self.enter_first_view(),
            Begin::Leave => self.on_left(view),
            Begin::Resume if self.ledger.configuration.primary(view) == self.ledger.configuration.machine => {
                self.resign();
            }
            Begin::Resume => {
                let outcome = self.view.outcome.clone();
                self.resume(&outcome);
            }
        }
    }

    fn resume(&mut self, outcome: &[Arc<Batch>]) {
        self.count_own_votes();
        let waiting: Vec<Digest> = self
            .window
            .undelivered()
            .flat_map(|slot| slot.batch.entries.iter().map(|entry| entry.digest))
            .collect();
        for digest in waiting {
            self.waiting.add(digest, self.ledger.now.monotonic_us);
        }
        self.view.next = End::after(&self.low_point());
        for batch in outcome {
            let slot = self.window.slots.get(&batch.number);
            if slot.is_some_and(|slot| slot.stage != Stage::Waiting) {
                self.view.next = End::of(batch);
            } else if batch.number > self.low_point().value {
                self.install_again(batch);
            }
        }
        self.view.fresh = self.view.next.number;
        self.skip_accepted();
    }

    /// The votes that the log proves.
    fn count_own_votes(&mut self) {
        let (own, view) = (self.ledger.configuration.machine, self.view.view);
        let voted: Vec<_> = self
            .window
            .slots
            .iter()
            .filter(|(_, slot)| slot.stage != Stage::Waiting)
            .map(|(number, slot)| (*number, slot.digest, slot.stage))
            .collect();
        for (number, digest, stage) in voted {
            let signature = self.ledger.sign(&Prepare::signed(view, number, &digest));
            let votes: &mut Votes = self.window.votes.entry(number).or_default();
            votes.prepare(own, digest, signature);
            if stage == Stage::Prepared {
                let commit = Commit { view, number, digest };
                votes.commit(own, commit.digest);
            }
        }
    }
}
