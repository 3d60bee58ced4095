//! From one view to the next (`docs/protocol.md`, rules NoHoles, QuorumsMeet, NoLateCommit, CommittedView, JustifiedChange
//! and EndorseThenAcknowledge; `docs/decisions/0012`): what a machine knows that has left a view, until the next one is live.
//!
//! 1. A machine that waits too long for the primary wants the next view: REQ-VIEW-CHANGE (`suspicion.rs`).
//! 2. f+1 such wishes make it leave: VIEW-CHANGE, with one warrant of each of its replicas, so that nothing that
//!    they commit afterwards can count. It shows everything that they have certified since proven positions (`runs.rs`).
//! 3. The candidate of the view chooses f+1 VIEW-CHANGEs or more: NEW-VIEW (`candidate.rs`). Everybody computes from
//!    it how the view begins (`outcome.rs`), and takes that over (`adoption.rs`).
//! 4. A machine that has that with all bodies in its durable log endorses it, with the warrant that follows its
//!    VIEW-CHANGE: so a view has one endorsed outcome at most, whatever its primary does.
//! 5. f+1 endorsements prove the outcome to anybody. Who has seen them acknowledges, with the next warrant.
//! 6. f+1 acknowledgements decide (rule CommittedView): the view is live.
//!
//! A machine that was not among those f+1 joins late: its own VIEW-CHANGE to that view shows the others that its
//! counters are without hole.

pub(crate) mod candidate;
pub(crate) mod outcome;
pub(crate) mod runs;
pub(crate) mod suspicion;

use std::collections::BTreeMap;
use std::sync::Arc;

use trusted_counter::UniqueWarrant;

use crate::agreement::To;
use crate::configuration::{Mutant, replica_slot};
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::minbft::adoption::{Adoption, Stage};
use crate::minbft::core::{Core, Then};
use crate::minbft::counter::Certifying;
use crate::minbft::wire::change::{RequestViewChange, RunItem, RunStart, ViewChange};
use crate::minbft::wire::message::{Message, Standing};
use crate::minbft::wire::outcome::endorses;
use crate::minbft::wire::outcome::{CertifiedOutcome, Endorsement, ViewAcknowledgement};
use crate::minbft::wire::outcome::{LiveProof, Outcome, Proof};
use crate::timers::Timer;

/// The group whose replica endorses and acknowledges for its machine.
const FIRST: GroupId = GroupId(0);

/// Something that needs a warrant of our own counter.
#[derive(Debug)]
pub(crate) enum Warranted<T> {
    /// Its time has not come.
    Unasked,
    /// The counter is at it.
    Asked,
    Made(T),
}

impl<T> Warranted<T> {
    pub(crate) fn made(&self) -> Option<&T> {
        match self {
            Warranted::Made(made) => Some(made),
            _ => None,
        }
    }

    fn is_unasked(&self) -> bool {
        matches!(self, Warranted::Unasked)
    }
}

/// The state of a machine that has left a view and is not yet in the next one.
#[derive(Debug)]
pub(crate) struct Change {
    /// The view that it goes to.
    pub(crate) view: View,
    /// Why it left; nobody: it joins a view that is live.
    requests: Vec<RequestViewChange>,
    /// Our own VIEW-CHANGE, while its warrants are being made.
    building: Option<ViewChange>,
    /// Our own VIEW-CHANGE.
    pub(crate) shown: Option<Arc<ViewChange>>,
    pub(crate) adoption: Option<Adoption>,
    pub(crate) endorsement: Warranted<Endorsement>,
    pub(crate) endorsements: BTreeMap<MachineId, Endorsement>,
    pub(crate) acknowledgement: Warranted<ViewAcknowledgement>,
    pub(crate) acknowledgements: BTreeMap<MachineId, ViewAcknowledgement>,
    /// The view is live.
    pub(crate) proof: Option<Arc<LiveProof>>,
    /// How often something was said again.
    rounds: u64,
    /// While it is given up: when the next view was to be wanted, and what may be lost to be said again.
    paused: (Option<u64>, Option<u64>),
}

impl Change {
    /// Goes to a view; `patience_us`: how long to wait for it.
    pub(crate) fn new(core: &mut Core, view: View, requests: Vec<RequestViewChange>, patience_us: u64) -> Self {
        let now_us = core.now_us();
        let repeat_us = now_us.saturating_add(core.ledger.configuration.retransmission_us / 2);
        let timers = &mut core.ledger.timers;
        timers.set(Timer::NextView, now_us.saturating_add(patience_us));
        timers.set(Timer::Repeat, repeat_us);
        core.past.mention(view);
        Change {
            view,
            requests,
            building: None,
            shown: None,
            adoption: None,
            endorsement: Warranted::Unasked,
            endorsements: BTreeMap::new(),
            acknowledgement: Warranted::Unasked,
            acknowledgements: BTreeMap::new(),
            proof: None,
            rounds: 0,
            paused: (None, None),
        }
    }

    /// Whether our counter has made a VIEW-CHANGE for it, or is at it: then it can only be joined as what it was.
    pub(crate) fn has_left(&self) -> bool {
        self.shown.is_some() || self.building.is_some()
    }

    /// The view is not gone to for now.
    pub(crate) fn pause(&mut self, core: &mut Core) {
        let timers = &mut core.ledger.timers;
        self.paused = (timers.at_us(Timer::NextView), timers.at_us(Timer::Repeat));
        timers.stop_all(&[Timer::NextView, Timer::Repeat]);
    }

    /// Goes to this view again: its timers run on.
    pub(crate) fn resume(&mut self, core: &mut Core) {
        core.ledger.timers.set_or_stop(Timer::NextView, self.paused.0);
        core.ledger.timers.set_or_stop(Timer::Repeat, self.paused.1);
    }

    /// Does whatever can be done now.
    pub(crate) fn advance(&mut self, core: &mut Core) {
        self.begin(core);
        let (view, is_live) = (self.view, self.proof.is_some());
        let Some(adoption) = self.adoption.as_mut() else { return };
        if !adoption.advance(core, is_live, |adoption| Then::Change(view, adoption.digest)) {
            return;
        }
        let (outcome, digest) = (Arc::clone(&adoption.outcome), adoption.digest);
        if !core.is_sequencer() {
            self.endorse(core, &outcome, digest);
            self.acknowledge(core, &outcome, digest);
        }
        self.finish(core, &outcome, digest);
    }

    /// Makes our VIEW-CHANGE, once nothing else is at the counter: it must show all warrants that were made.
    fn begin(&mut self, core: &mut Core) {
        // Without requests it is for joining a live view: only when that has admitted us.
        let is_needed = !self.requests.is_empty() || self.proof.is_some() && !self.is_fresh(core);
        if self.has_left() || !is_needed || core.counter.is_busy() || core.is_sequencer() {
            return;
        }
        let Some(change) = self.build(core) else { return };
        let (view, content) = (self.view, change.content());
        let digest = ViewChange::digest(change.machine, view, &content);
        self.building = Some(change);
        for group in (0..core.ledger.configuration.groups).map(GroupId) {
            let purpose = Certifying::ViewChange { view, group, content };
            core.certify(replica_slot(group), digest, purpose);
        }
    }

    fn build(&self, core: &Core) -> Option<ViewChange> {
        let live = core.past.live.clone()?;
        let (start, runs) = core.runs.show(&live)?;
        let point = core.ledger.checkpoints.point();
        if let RunStart::Followed(statements) = &start {
            // They must not speak of orders beyond what the checkpoint proves.
            let mut statements = statements.iter();
            if !statements.all(|statement| statement.followed.order <= point.order) {
                return None;
            }
        }
        let certified = core.past.acknowledged.clone();
        let is_later = point.view > live.outcome.view;
        let prepares = core.past.prepares.iter();
        let prepares = prepares.filter(|prepare| prepare.last() > point.order && !is_later);
        Some(ViewChange {
            machine: core.own(),
            view: self.view,
            requests: self.requests.clone(),
            stable: core.ledger.checkpoints.stable.clone(),
            prepares: prepares.cloned().collect(),
            certified: certified.filter(|certified| certified.outcome.view > live.outcome.view),
            live,
            start,
            runs,
            warrants: Vec::new(),
        })
    }

    /// A warrant for our VIEW-CHANGE is made. Returns it when it is complete.
    pub(crate) fn on_warrant(&mut self, core: &mut Core, warrant: UniqueWarrant) -> Option<Arc<ViewChange>> {
        let building = self.building.as_mut()?;
        building.warrants.push(warrant);
        if building.warrants.len() < usize::from(core.ledger.configuration.groups) {
            return None;
        }
        let change = Arc::new(self.building.take()?);
        self.shown = Some(Arc::clone(&change));
        Some(change)
    }

    /// Whether the view that is live has admitted our counter where it is: nothing needs to be shown.
    fn is_fresh(&self, core: &Core) -> bool {
        let (own, counter) = (core.own(), &core.counter.position);
        let Some(outcome) = self.proof.as_ref().map(|proof| &proof.outcome) else {
            return false;
        };
        let admission = outcome.admission(own).filter(|_| !outcome.changed.contains(&own));
        admission.is_some_and(|admission| {
            admission.epoch == counter.epoch && admission.positions.get(1..) == counter.positions.get(1..)
        })
    }

    /// Takes over how the view is to begin.
    pub(crate) fn take_outcome(&mut self, core: &mut Core, outcome: Outcome, digest: Digest) {
        let mut adoption = Adoption::new(core, outcome, digest);
        if core.is_sequencer() {
            adoption = adoption.without_bodies();
        }
        if adoption.lacks_bodies() {
            // They are asked for at once.
            let now_us = core.now_us();
            core.ledger.timers.set(Timer::Repeat, now_us + 1);
        }
        self.adoption = Some(adoption);
    }

    /// The view is live, and begins like this.
    pub(crate) fn take_proof(&mut self, core: &mut Core, proof: &Arc<LiveProof>) {
        let digest = proof.outcome.digest();
        if self.adoption.as_ref().is_none_or(|adoption| adoption.digest != digest) {
            // What we may have endorsed did not come: its primary has proposed two outcomes.
            self.take_outcome(core, proof.outcome.clone(), digest);
        }
        self.proof = Some(Arc::clone(proof));
    }

    /// The outcome is in the log.
    pub(crate) fn on_written(&mut self, outcome: &Digest) {
        let adoption = self.adoption.as_mut();
        if let Some(adoption) = adoption.filter(|adoption| adoption.digest == *outcome) {
            adoption.written();
        }
    }

    /// Whether our VIEW-CHANGE is one of those that the outcome follows from.
    fn is_member(&self, core: &Core, outcome: &Outcome) -> bool {
        let own = core.own();
        let warrant = self.shown.as_ref().and_then(|change| change.warrants.first());
        let value = warrant.map(|warrant| warrant.value);
        outcome.changed.contains(&own) && value.is_some() && value == outcome.position(own, replica_slot(FIRST))
    }

    fn endorse(&mut self, core: &mut Core, outcome: &Outcome, digest: Digest) {
        if !self.endorsement.is_unasked() || !self.is_member(core, outcome) {
            return;
        }
        self.endorsement = Warranted::Asked;
        let purpose = Certifying::Endorse {
            view: self.view,
            outcome: digest,
        };
        core.certify(replica_slot(FIRST), Endorsement::digest(self.view, &digest), purpose);
    }

    /// Our endorsement is certified.
    pub(crate) fn on_endorse_certified(
        &mut self,
        core: &mut Core,
        outcome: Digest,
        warrant: UniqueWarrant,
    ) -> Endorsement {
        let endorsement = Endorsement {
            machine: core.own(),
            view: self.view,
            outcome,
            warrant,
        };
        self.endorsement = Warranted::Made(endorsement.clone());
        core.ledger
            .send(To::Others, Message::Endorse(Arc::new(endorsement.clone())));
        endorsement
    }

    /// Acknowledges an outcome that f+1 have endorsed (rule EndorseThenAcknowledge).
    fn acknowledge(&mut self, core: &mut Core, outcome: &Arc<Outcome>, digest: Digest) {
        let is_endorsed = self.endorsement.made().is_some_and(|own| own.outcome == digest);
        if !is_endorsed || !self.acknowledgement.is_unasked() {
            return;
        }
        let endorsements: Vec<(MachineId, UniqueWarrant)> = match &self.proof {
            Some(proof) => {
                let all = proof.decided_by.acknowledgements().iter();
                all.map(|known| (known.machine, known.endorsed)).collect()
            }
            None => {
                let all = self.endorsements.values();
                all.filter(|known| known.outcome == digest && endorses(outcome, known.machine, &known.warrant))
                    .map(|known| (known.machine, known.warrant))
                    .collect()
            }
        };
        if endorsements.len() < quorum_without(core, Mutant::AcknowledgeUnendorsed) {
            return;
        }
        self.acknowledgement = Warranted::Asked;
        // From here on our VIEW-CHANGEs must show it.
        core.past.acknowledged = Some(Arc::new(CertifiedOutcome {
            outcome: outcome.as_ref().clone(),
            endorsements,
        }));
        let purpose = Certifying::AcknowledgeView {
            view: self.view,
            outcome: digest,
        };
        core.certify(
            replica_slot(FIRST),
            ViewAcknowledgement::digest(self.view, &digest),
            purpose,
        );
    }

    /// Our acknowledgement is certified.
    pub(crate) fn on_acknowledge_certified(
        &mut self,
        core: &mut Core,
        outcome: Digest,
        warrant: UniqueWarrant,
    ) -> Option<ViewAcknowledgement> {
        let acknowledgement = ViewAcknowledgement {
            machine: core.own(),
            view: self.view,
            outcome,
            endorsed: self.endorsement.made()?.warrant,
            acknowledged: warrant,
        };
        self.acknowledgement = Warranted::Made(acknowledgement.clone());
        let message = Message::AcknowledgeView(Arc::new(acknowledgement.clone()));
        core.ledger.send(To::Others, message);
        Some(acknowledgement)
    }

    /// The view is live when f+1 have acknowledged; then this machine takes part, once it has done its own part.
    fn finish(&mut self, core: &mut Core, outcome: &Arc<Outcome>, digest: Digest) {
        let was_fresh = self.is_fresh(core);
        if self.proof.is_none() {
            let counted = self
                .acknowledgements
                .values()
                .filter(|known| known.outcome == digest && endorses(outcome, known.machine, &known.endorsed));
            let acknowledgements: Vec<_> = counted.cloned().collect();
            if acknowledgements.len() < quorum_without(core, Mutant::EnterUnacknowledged) {
                return;
            }
            self.proof = Some(Arc::new(LiveProof {
                outcome: outcome.as_ref().clone(),
                decided_by: Proof::Change(acknowledgements),
            }));
        }
        let is_ready = core.is_sequencer() || self.has_done_its_part(core, outcome, digest, was_fresh);
        let Some((adoption, proof)) = self.adoption.as_mut().zip(self.proof.as_ref()) else {
            return;
        };
        if is_ready && adoption.stage != Stage::Entering {
            adoption.stage = Stage::Entering;
            core.log_live(proof);
        }
    }

    /// Whether a replica has shown the others all that it needs to for its COMMITs to count in the view. One that is not
    /// among those whose VIEW-CHANGEs made the view needs a VIEW-CHANGE of its own to join.
    fn has_done_its_part(&self, core: &Core, outcome: &Outcome, digest: Digest, is_fresh: bool) -> bool {
        if matches!(self.endorsement, Warranted::Asked) {
            return false;
        }
        if self.acknowledgement.made().is_some() {
            return true;
        }
        let has_endorsed_another = self.endorsement.made().is_some_and(|own| own.outcome != digest);
        match &self.shown {
            Some(_) => !self.is_member(core, outcome) || has_endorsed_another,
            None => is_fresh,
        }
    }

    /// Says again whatever the others may have missed, and asks again for what is missing.
    pub(crate) fn repeat(&mut self, core: &mut Core) {
        let next_us = core.now_us() + core.ledger.configuration.retransmission_us / 2;
        core.ledger.timers.set(Timer::Repeat, next_us);
        self.rounds += 1;
        let shown = self.shown.iter().cloned().map(Message::ViewChange);
        let acknowledgement = self.acknowledgement.made().cloned().map(Arc::new);
        let endorsement = self.endorsement.made().cloned().map(Arc::new);
        let said = shown
            .chain(acknowledgement.map(Message::AcknowledgeView))
            .chain(endorsement.map(Message::Endorse));
        said.for_each(|message| core.ledger.send(To::Others, message));
        self.ask_for_bodies(core);
        self.advance(core);
    }

    fn ask_for_bodies(&self, core: &mut Core) {
        let Some(peer) = self
            .adoption
            .as_ref()
            .and_then(|adoption| adoption.ask(core, self.rounds))
        else {
            return;
        };
        if self.proof.is_some() {
            // The view is live, perhaps for long: how far it has got.
            let standing = Standing {
                view: self.view,
                prepares_wanted: false,
                prepares: 0,
                commits: Vec::new(),
                decided: Order(0),
                stable: core.ledger.checkpoints.point().order,
            };
            core.ledger.send(To::Machine(peer), Message::Standing(standing));
        }
    }

    /// Messages that show the other machines that this machine's counters have no hole, until its COMMITs follow.
    pub(crate) fn joining(&self) -> Vec<Message> {
        if let Some(acknowledgement) = self.acknowledgement.made() {
            return vec![Message::AcknowledgeView(Arc::new(acknowledgement.clone()))];
        }
        let shown = self.shown.iter().cloned().map(Message::ViewChange);
        let endorsed = self.endorsement.made().cloned().map(Arc::new);
        shown.chain(endorsed.map(Message::Endorse)).collect()
    }
}

/// f+1, unless the rule that demands them is taken out.
fn quorum_without(core: &Core, mutant: Mutant) -> usize {
    let configuration = &core.ledger.configuration;
    if configuration.is(mutant) || configuration.is(Mutant::OneViewChange) {
        return 1;
    }
    core.quorum()
}

/// What the own counter has made for a change stands in its run, whether the change still matters or not.
pub(crate) fn run_item(purpose: &Certifying, warrant: UniqueWarrant) -> Option<(GroupId, RunItem)> {
    match *purpose {
        Certifying::ViewChange { view, group, content } => Some((group, RunItem::Left { view, content, warrant })),
        Certifying::Endorse { view, outcome } => Some((FIRST, RunItem::Endorsed { view, outcome, warrant })),
        Certifying::AcknowledgeView { view, outcome } => {
            Some((FIRST, RunItem::Acknowledged { view, outcome, warrant }))
        }
        _ => None,
    }
}
