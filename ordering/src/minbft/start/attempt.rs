//! An attempt to start that a machine takes part in.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::assignment::Assignment;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::ledger::HistoryPoint;
use crate::minbft::adoption::{Adoption, Stage};
use crate::minbft::core::{Core, Then};
use crate::minbft::start::leader::Leader;
use crate::minbft::start::outcome::compute;
use crate::minbft::start::replicas_of;
use crate::minbft::wire::message::Message;
use crate::minbft::wire::ordered::Prepare;
use crate::minbft::wire::outcome::{Acknowledgement, LiveProof, Outcome, Proof};
use crate::minbft::wire::start::{Collect, Hello, Report, Start};

/// An attempt that we take part in.
#[derive(Debug)]
pub(crate) struct Attempt {
    collect: Arc<Collect>,
    digest: Digest,
    /// The report that this machine has sent.
    report: Option<Arc<Report>>,
    adoption: Option<Adoption>,
    /// The outcome is in our log, and we have said so.
    acknowledgement: Option<Acknowledgement>,
    acknowledgements: BTreeMap<MachineId, (Digest, [u8; 64])>,
    /// How often this machine has announced itself: whose turn it is to be asked.
    rounds: u64,
}

/// The assignments in force above a base, ascending, as far as our log knows: from how the last live view began, and what was
/// prepared in it. An order that was decided above the base was committed under one of them.
fn known_assignments(core: &Core, base: &HistoryPoint) -> Vec<Assignment> {
    let mut known = vec![base.assignment];
    let mut follow = |order: Order, name: GroupId, digest: &Digest| {
        let last = known.last().copied().unwrap_or(base.assignment);
        let next = last.after_entry(order, name, digest);
        if order > base.order && next != last && order > last.since {
            known.push(next);
        }
    };
    let live = core.past.live.iter();
    for (order, _, entry) in live.flat_map(|live| live.outcome.assigned()) {
        follow(order, entry.group, &entry.digest);
    }
    for prepare in &core.past.prepares {
        if let Some(last) = prepare.entries.last() {
            follow(prepare.last(), last.group, &last.digest);
        }
    }
    known
}

/// Whether this machine may take part in an attempt at all: its counter is the one that was collected, and so is everybody
/// who must take part.
pub(crate) fn is_for_us(core: &Core, collect: &Collect) -> bool {
    let is_ours = |hello: &Arc<Hello>| hello.admission == core.counter.position;
    let lost = &core.ledger.configuration.lost;
    let mut needed = core.ledger.configuration.replica_machines();
    collect.hello(core.own()).is_some_and(is_ours)
        && needed.all(|machine| collect.hello(machine).is_some() || lost.contains(&machine))
}

impl Attempt {
    pub(crate) fn new(collect: &Arc<Collect>, digest: Digest, rounds: u64) -> Self {
        Attempt {
            collect: Arc::clone(collect),
            digest,
            report: None,
            adoption: None,
            acknowledgement: None,
            acknowledgements: BTreeMap::new(),
            rounds,
        }
    }

    pub(crate) fn view(&self) -> View {
        self.collect.view
    }

    pub(crate) fn adoption_mut(&mut self) -> Option<&mut Adoption> {
        self.adoption.as_mut()
    }

    /// A later attempt replaces an earlier one; one of the same view only as long as nothing of it is in the log.
    pub(crate) fn gives_way_to(&self, view: View, digest: &Digest) -> bool {
        if self.view() != view {
            return self.view() < view;
        }
        let adoption = self.adoption.as_ref();
        self.digest != *digest && adoption.is_none_or(|adoption| adoption.stage == Stage::Gathering)
    }

    pub(crate) fn has_acknowledged(&self, machine: MachineId) -> bool {
        self.acknowledgements.contains_key(&machine)
    }

    /// Does whatever can be done now. `leader`: our own attempt, if we lead one.
    pub(crate) fn advance(&mut self, core: &mut Core, leader: Option<&mut Leader>) {
        if !core.is_sequencer() && self.report.is_none() {
            let base = self.collect.base().order;
            if core.ledger.history.point.order < base {
                core.ledger.fetch_history(base);
            } else {
                self.report(core, leader);
            }
            return;
        }
        let Some(adoption) = self.adoption.as_mut() else { return };
        let then = |adoption: &Adoption| Then::Start(Arc::clone(&adoption.outcome));
        if adoption.advance(core, false, then) {
            self.finish(core);
        }
    }

    /// Tells the leader what our log holds above the base.
    fn report(&mut self, core: &mut Core, leader: Option<&mut Leader>) {
        let point = self.collect.base();
        let base = point.order;
        let configuration = &core.ledger.configuration;
        let assignments = known_assignments(core, &point);
        let above = |prepare: &&Arc<Prepare>| prepare.last() > base;
        let held = core.past.held.iter().filter(|(_, (order, _))| *order > base);
        let held = held.map(|(digest, (order, request))| {
            let mut before = assignments.iter().rev();
            let assignment = before.find(|assignment| assignment.since < *order);
            (
                *digest,
                configuration.name_of(assignment.unwrap_or(&point.assignment), request),
            )
        });
        let mut report = Report {
            machine: core.own(),
            collect: self.digest,
            live: core.past.live.clone(),
            prepares: core.past.prepares.iter().filter(above).cloned().collect(),
            held: held.collect(),
            signature: [0; 64],
        };
        report.signature = core.ledger.sign(&report.digest());
        let report = Arc::new(report);
        self.report = Some(Arc::clone(&report));
        let primary = configuration.primary(self.view());
        core.ledger
            .send(To::Machine(primary), Message::Report(Arc::clone(&report)));
        let Some(leader) = leader.filter(|_| primary == core.own()) else {
            return;
        };
        if let Some(start) = leader.on_report(core, &report) {
            self.on_start(core, &start);
        }
    }

    /// The leader's evidence for how the view begins.
    pub(crate) fn on_start(&mut self, core: &mut Core, start: &Arc<Start>) {
        let own = core.own();
        let has_own = start.reports.iter().find(|report| report.machine == own) == self.report.as_ref();
        if self.adoption.is_some() || start.collect.digest() != self.digest || !has_own {
            return;
        }
        let Some(outcome) = compute(&start.collect, &start.reports) else {
            let leader = core.ledger.configuration.primary(start.collect.view);
            core.ledger.report(leader, MisbehaviourKind::WrongRecovery);
            return;
        };
        let digest = outcome.digest();
        self.adoption = Some(Adoption::new(core, outcome, digest));
        self.ask_for_bodies(core);
        self.advance(core, None);
    }

    fn ask_for_bodies(&self, core: &mut Core) {
        if let Some(adoption) = &self.adoption {
            adoption.ask(core, self.rounds);
        }
    }

    /// Says again whatever the others may have missed, and asks again for what is missing.
    pub(crate) fn repeat(&mut self, core: &mut Core, leader: Option<&mut Leader>, rounds: u64) {
        self.rounds = rounds;
        let primary = To::Machine(core.ledger.configuration.primary(self.view()));
        if let Some(acknowledgement) = self.acknowledgement.clone() {
            core.ledger.send(To::Others, Message::Acknowledge(acknowledgement));
        } else if let Some(report) = self.report.clone().filter(|_| self.adoption.is_none()) {
            core.ledger.send(primary, Message::Report(report));
        }
        self.ask_for_bodies(core);
        self.advance(core, leader);
    }

    /// The outcome is in the log: gives our word for it. (A later attempt may have replaced the one that it was of.)
    pub(crate) fn on_written(&mut self, core: &mut Core, outcome: &Outcome) {
        let digest = outcome.digest();
        let Some(adoption) = self.adoption.as_mut().filter(|adoption| adoption.digest == digest) else {
            return;
        };
        adoption.written();
        let acknowledgement = Acknowledgement {
            machine: core.own(),
            view: outcome.view,
            outcome: digest,
            signature: core.ledger.sign(&Acknowledgement::digest(outcome.view, &digest)),
        };
        self.acknowledgement = Some(acknowledgement.clone());
        core.ledger
            .send(To::Others, Message::Acknowledge(acknowledgement.clone()));
        self.on_acknowledge(core, &acknowledgement);
    }

    /// A replica has the outcome in its log.
    pub(crate) fn on_acknowledge(&mut self, core: &mut Core, acknowledgement: &Acknowledgement) {
        if self.view() == acknowledgement.view {
            let word = (acknowledgement.outcome, acknowledgement.signature);
            self.acknowledgements.insert(acknowledgement.machine, word);
            self.finish(core);
        }
    }

    /// When all replicas have acknowledged the outcome: writes that down, and then takes part in the view.
    fn finish(&mut self, core: &mut Core) {
        let Some(adoption) = self.adoption.as_ref() else { return };
        let agreed = |machine: MachineId| {
            let (acknowledged, signature) = self.acknowledgements.get(&machine)?;
            (*acknowledged == adoption.digest).then_some((machine, *signature))
        };
        let signatures: Option<Vec<_>> = replicas_of(&self.collect).map(agreed).collect();
        if let Some(signatures) = signatures {
            let proof = LiveProof {
                outcome: adoption.outcome.as_ref().clone(),
                decided_by: Proof::Start(signatures),
            };
            self.on_live(core, &Arc::new(proof));
        }
    }

    /// The view is live that this attempt is of: takes part, once the outcome is in our log too.
    pub(crate) fn on_live(&mut self, core: &mut Core, proof: &Arc<LiveProof>) {
        let is_logged = self.acknowledgement.is_some() || core.is_sequencer();
        let adoption = self.adoption.as_mut().filter(|_| is_logged);
        let adoption = adoption.filter(|adoption| *adoption.outcome == proof.outcome);
        if let Some(adoption) = adoption.filter(|adoption| adoption.stage != Stage::Entering) {
            adoption.stage = Stage::Entering;
            core.log_live(proof);
        }
    }
}
