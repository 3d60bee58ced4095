//! Taking over how a view begins, alike for a start and for a view change: fetch what is lacking, write it down with all
//! bodies, and only then give one's word for it.
//!
//! The two differ in what the outcome follows from (`start/`, `change/`) and in whose words make the view live: all
//! replicas' signatures after a start, the warrants of f+1 after a change.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::assignment::Assignment;
use crate::configuration::FETCH_REQUESTS_MAX;
use crate::identifiers::{Digest, MachineId, Order};
use crate::ledger::history::{ANSWER_BYTES_MAX, bytes_of};
use crate::ledger::piece::NOTHING;
use crate::message::Request;
use crate::minbft::core::{Core, Then};
use crate::minbft::log::record::Record;
use crate::minbft::wire::outcome::{Outcome, OutcomeEntry};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// History or bodies may be missing.
    Gathering,
    /// The outcome is on its way to the log.
    Writing,
    /// The outcome is in the log.
    Written,
    /// The view is live; that is on its way to the log.
    Entering,
}

/// An outcome that this machine takes over.
#[derive(Debug)]
pub(crate) struct Adoption {
    pub(crate) outcome: Arc<Outcome>,
    pub(crate) digest: Digest,
    pub(crate) stage: Stage,
    /// Bodies that are not here.
    wanted: BTreeSet<Digest>,
}

/// The entries above an order, with the assignment in force there.
fn above(outcome: &Outcome, above: Order) -> impl Iterator<Item = (Assignment, &OutcomeEntry)> {
    let open = outcome.assigned().filter(move |(order, ..)| *order > above);
    open.map(|(_, assignment, entry)| (assignment, entry))
}

impl Adoption {
    pub(crate) fn new(core: &mut Core, outcome: Outcome, digest: Digest) -> Self {
        let mut adoption = Adoption {
            outcome: Arc::new(outcome),
            digest,
            stage: Stage::Gathering,
            wanted: BTreeSet::new(),
        };
        let is_here = |assignment: &Assignment, entry: &OutcomeEntry| {
            // A body that belongs to another group does not count (see `take`).
            let held = core.past.held.get(&entry.digest);
            held.is_some_and(|(_, request)| core.ledger.configuration.name_of(assignment, request) == entry.group)
        };
        let open = above(&adoption.outcome, core.ledger.history.point.order);
        let lacking = open.filter(|(assignment, entry)| entry.digest != NOTHING && !is_here(assignment, entry));
        adoption.wanted = lacking.map(|(_, entry)| entry.digest).collect();
        // Clients may have sent them again meanwhile.
        let bodies = &core.ledger.bodies;
        let sent = adoption.wanted.iter();
        let sent: Vec<_> = sent
            .filter_map(|digest| Some((*digest, Arc::clone(bodies.pending(digest)?))))
            .collect();
        for (digest, request) in sent {
            adoption.take(core, digest, &request);
        }
        adoption
    }

    /// Takes a body if the outcome needs it.
    pub(crate) fn take(&mut self, core: &mut Core, digest: Digest, request: &Arc<Request>) {
        let configuration = &core.ledger.configuration;
        let mut entries = self.outcome.assigned();
        let is_other = |assignment: &Assignment, entry: &OutcomeEntry| {
            entry.digest == digest && entry.group != configuration.name_of(assignment, request)
        };
        if entries.any(|(_, assignment, entry)| is_other(&assignment, entry)) {
            // A liar has named another group for it: no correct machine has committed that, so it was not decided. We give no
            // word for a view that begins with it, and it does not come.
            return;
        }
        if self.wanted.remove(&digest) {
            core.past.held.insert(digest, (Order(0), Arc::clone(request)));
        }
    }

    /// m0 holds no bodies.
    pub(crate) fn without_bodies(mut self) -> Self {
        self.wanted.clear();
        self
    }

    pub(crate) fn lacks_bodies(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Asks the replicas in turn for bodies that are not here; returns who was asked.
    pub(crate) fn ask(&self, core: &mut Core, rounds: u64) -> Option<MachineId> {
        let digests: Vec<_> = self.wanted.iter().take(FETCH_REQUESTS_MAX).copied().collect();
        (!digests.is_empty()).then(|| core.ask_in_turn(rounds, digests))
    }

    /// Does what can be done now towards having the outcome in the durable log; whether it is there. `is_live`: the view is
    /// live, perhaps for long; `then`: what follows when the outcome is durable.
    pub(crate) fn advance(&mut self, core: &mut Core, is_live: bool, then: impl FnOnce(&Self) -> Then) -> bool {
        if core.is_sequencer() {
            return true;
        }
        if core.ledger.history.point.order < self.outcome.base.order {
            core.ledger.fetch_history(self.outcome.base.order);
            return false;
        }
        if self.is_lacking(core, is_live) {
            return false;
        }
        if self.stage == Stage::Gathering {
            self.stage = Stage::Writing;
            self.write_operations(core);
            core.ledger
                .persist(Record::Start(Arc::clone(&self.outcome)), then(self));
            return false;
        }
        self.stage >= Stage::Written
    }

    /// Whether bodies are missing. Those of a view that has been live for long are with nobody any more: then the history
    /// that followed is fetched, beyond the outcome.
    fn is_lacking(&mut self, core: &mut Core, is_live: bool) -> bool {
        if self.wanted.is_empty() {
            return false;
        }
        let open = above(&self.outcome, core.ledger.history.point.order);
        let open: BTreeSet<Digest> = open.map(|(_, entry)| entry.digest).collect();
        self.wanted.retain(|digest| open.contains(digest));
        let is_lacking = !self.wanted.is_empty();
        let ahead = core.ledger.checkpoints.ahead.as_ref().map(|ahead| ahead.point.order);
        let beyond = ahead.filter(|ahead| is_live && ahead.next() >= self.outcome.end());
        if let Some(target) = beyond.filter(|_| is_lacking) {
            core.ledger.fetch_history(target);
        }
        is_lacking
    }

    /// Writes the operations that are taken over to the log; those that only older records have stay there.
    fn write_operations(&self, core: &mut Core) {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let record = |entries| Record::TakenOver {
            view: self.outcome.view,
            outcome: self.digest,
            entries,
        };
        for (group, operation) in core.taken_over(&self.outcome) {
            if operation.request.is_none() && operation.digest != NOTHING {
                continue;
            }
            bytes += bytes_of(&operation.request);
            entries.push((group, operation));
            if bytes >= ANSWER_BYTES_MAX {
                bytes = 0;
                core.ledger.write(record(std::mem::take(&mut entries)));
            }
        }
        if !entries.is_empty() {
            core.ledger.write(record(entries));
        }
    }

    /// The outcome is in the log.
    pub(crate) fn written(&mut self) {
        if self.stage == Stage::Writing {
            self.stage = Stage::Written;
        }
    }
}
