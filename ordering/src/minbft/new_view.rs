//! From VIEW-CHANGEs to a live view: the candidate's choice, endorsements, acknowledgements (rules QuorumsMeet and
//! EndorseThenAcknowledge).

use std::collections::BTreeSet;
use std::sync::Arc;

use trusted_counter::UniqueWarrant;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::{Mutant, replica_slot};
use crate::identifiers::{Digest, GroupId, MachineId, View};
use crate::minbft::journal::{Certifying, Persisting};
use crate::minbft::messages::Message;
use crate::minbft::outcome::NOTHING;
use crate::minbft::record::Record;
use crate::minbft::start_messages::{Hello, LiveProof, Outcome, OutcomeEntry};
use crate::minbft::view_change::LeadingChange;
use crate::minbft::view_messages::{CertifiedOutcome, Endorsement, NewView, RunItem, ViewAcknowledgement, ViewChange};
use crate::minbft::view_outcome::{compute_change, keep_fitting};
use crate::minbft::view_verification::endorses;
use crate::minbft::{Machine, Output};

/// The group whose replica endorses and acknowledges for its machine.
const FIRST: GroupId = GroupId(0);

fn length(value: &impl borsh::BorshSerialize) -> usize {
    borsh::object_length(value).unwrap_or(usize::MAX)
}

impl Machine {
    pub(crate) fn on_view_change(&mut self, change: &Arc<ViewChange>, out: &mut Vec<Output>) {
        let machine = change.machine;
        if let Some(live) = self.live.as_mut().filter(|live| live.view >= change.view) {
            if live.view == change.view {
                live.follow_change(change);
            }
            self.tell_live(machine, out);
            return;
        }
        let is_news = self.changes.get(&machine).is_none_or(|known| known.view < change.view);
        if is_news {
            self.changes.insert(machine, Arc::clone(change));
        }
        for request in &change.requests {
            self.learn_wish(request);
        }
        self.count_wishes(out);
        self.lead_change(change.view, out);
    }

    /// The candidate: chooses VIEW-CHANGEs as soon as all are there, or f+1 and some time has passed.
    pub(crate) fn lead_change(&mut self, view: View, out: &mut Vec<Output>) {
        let is_ours = self.configuration.primary(view) == self.configuration.machine;
        if !is_ours || self.current_view().is_some_and(|current| current > view) || self.journal.is_certifying() {
            return;
        }
        let changes: Vec<_> = self
            .changes
            .values()
            .filter(|change| change.view == view && !change.requests.is_empty())
            .cloned()
            .collect();
        let quorum = if self.configuration.is(Mutant::OneViewChange) {
            1
        } else {
            self.configuration.quorum() as usize
        };
        if changes.len() < quorum {
            return;
        }
        let now_us = self.now.monotonic_us;
        let grace_us = self.configuration.retransmission_us / 4;
        if self.leading_change.as_ref().is_none_or(|leading| leading.view < view) {
            self.leading_change = Some(LeadingChange {
                view,
                choose_us: now_us + grace_us,
                new_view: None,
            });
        }
        let Some(leading) = self.leading_change.as_mut() else {
            return;
        };
        let is_complete = changes.len() == usize::from(self.configuration.replicas());
        if leading.view != view || leading.new_view.is_some() || !(is_complete || leading.choose_us <= now_us) {
            return;
        }
        leading.choose_us = now_us + grace_us;
        self.choose(view, changes, out);
    }

    fn choose(&mut self, view: View, mut changes: Vec<Arc<ViewChange>>, out: &mut Vec<Output>) {
        let own = self.configuration.machine;
        keep_fitting(&mut changes);
        let basis = changes
            .iter()
            .map(|change| change.basis())
            .max_by_key(|basis| basis.view);
        let is_newer = |hello: &&Arc<Hello>| {
            let known = basis.and_then(|basis| basis.admission(hello.machine));
            known.is_none_or(|known| known.epoch < hello.admission.epoch)
        };
        let hellos = self.start.hellos.values().filter(is_newer).cloned().collect();
        let mut new_view = NewView {
            view,
            admission: self.journal.counter.clone(),
            changes,
            hellos,
            signature: [0; 64],
        };
        // A liar's VIEW-CHANGE may be larger than those of the correct ones, f+1 of which fit.
        let quorum = self.configuration.quorum() as usize;
        while new_view.changes.len() > quorum && length(&new_view) > self.configuration.message_bytes_max {
            let largest = (0..)
                .zip(&new_view.changes)
                .max_by_key(|(_, change)| length(change.as_ref()));
            let largest = largest.map_or(0, |(index, _)| index);
            new_view.changes.remove(largest);
        }
        new_view.signature = self.sign(&new_view.digest());
        if compute_change(&new_view, &self.configuration).is_none() {
            // Somebody's VIEW-CHANGE does not fit to the others'; further ones may.
            self.report(own, MisbehaviourKind::WrongRecovery, out);
            return;
        }
        let new_view = Arc::new(new_view);
        if let Some(leading) = self.leading_change.as_mut() {
            leading.new_view = Some(Arc::clone(&new_view));
        }
        self.send(To::Others, Message::NewView(Arc::clone(&new_view)), out);
        self.on_new_view(&new_view, out);
    }

    /// The candidate: time to choose, or to say again what was chosen.
    pub(crate) fn leading_change_timer(&mut self, out: &mut Vec<Output>) {
        let now_us = self.now.monotonic_us;
        let interval_us = self.configuration.retransmission_us / 2;
        let Some(leading) = self
            .leading_change
            .as_mut()
            .filter(|leading| leading.choose_us <= now_us)
        else {
            return;
        };
        leading.choose_us = now_us + interval_us;
        let view = leading.view;
        let live_view = self.live.as_ref().map(|live| live.view);
        let is_past = live_view.max(self.start.joined_view()) >= Some(view);
        if is_past || self.changing.as_ref().is_some_and(|changing| changing.view > view) {
            self.leading_change = None;
        } else if let Some(new_view) = leading.new_view.clone() {
            self.send(To::Others, Message::NewView(new_view), out);
        } else {
            leading.choose_us = now_us;
            self.lead_change(view, out);
            if let Some(leading) = self.leading_change.as_mut() {
                leading.choose_us = leading.choose_us.max(now_us + interval_us);
            }
        }
    }

    pub(crate) fn on_new_view(&mut self, new_view: &Arc<NewView>, out: &mut Vec<Output>) {
        let view = new_view.view;
        if self.live.as_ref().is_some_and(|live| live.view >= view) {
            return;
        }
        for request in new_view.changes.iter().flat_map(|change| &change.requests) {
            self.learn_wish(request);
        }
        self.count_wishes(out);
        // m0 goes where f+1 have gone, not where somebody says; and not to a view that an attempt to start has passed.
        let current = self.current_view().max(self.start.joined_view());
        let is_higher = current.is_none_or(|current| current < view);
        if !self.configuration.has_replicas() && is_higher && compute_change(new_view, &self.configuration).is_some() {
            self.observe(view, out);
        }
        let is_ours = |changing: &&mut Box<super::Changing>| changing.view == view && changing.outcome.is_none();
        if self.changing.as_mut().filter(is_ours).is_none() {
            return;
        }
        let Some(outcome) = compute_change(new_view, &self.configuration) else {
            self.report(self.configuration.primary(view), MisbehaviourKind::WrongRecovery, out);
            return;
        };
        let digest = outcome.digest();
        self.take_outcome(outcome, digest, out);
        self.advance_change(out);
    }

    /// Takes over how the view is to begin.
    pub(crate) fn take_outcome(&mut self, outcome: Outcome, digest: Digest, out: &mut Vec<Output>) {
        let own = self.history.point.order;
        let is_here = |entry: &OutcomeEntry| {
            // A body that belongs to another group does not count (`take_changing`).
            let held = self.start.held.get(&entry.digest);
            held.is_some_and(|(_, request)| self.configuration.group_of(request.home) == entry.group)
        };
        let numbered = outcome.entries.iter().zip(outcome.base.order.0 + 1..);
        let wanted = numbered
            .filter(|(entry, order)| *order > own.0 && entry.digest != NOTHING && !is_here(entry))
            .map(|(entry, _)| entry.digest)
            .collect();
        let Some(changing) = self.changing.as_mut() else { return };
        changing.outcome = Some((Arc::new(outcome), digest));
        changing.wanted = if self.configuration.has_replicas() {
            wanted
        } else {
            Default::default()
        };
        let pending: Vec<_> = changing
            .wanted
            .iter()
            .filter_map(|digest| Some((*digest, self.bodies.pending(digest)?.clone())))
            .collect();
        for (digest, request) in pending {
            self.take_changing(digest, &request);
        }
        self.repeat_soon(out);
    }

    /// Bodies are asked for at once.
    fn repeat_soon(&mut self, _out: &mut Vec<Output>) {
        let now_us = self.now.monotonic_us;
        if let Some(changing) = self.changing.as_mut().filter(|changing| !changing.wanted.is_empty()) {
            changing.repeat_us = now_us + 1;
        }
    }

    /// Steps 4 to 6 of a change (`view_change.rs`).
    pub(crate) fn advance_outcome(&mut self, out: &mut Vec<Output>) {
        let has_replicas = self.configuration.has_replicas();
        let Some(changing) = self.changing.as_ref() else { return };
        let Some((outcome, _)) = changing.outcome.clone() else {
            return;
        };
        if has_replicas {
            if self.history.point.order < outcome.base.order {
                self.fetch_history(outcome.base.order, out);
                return;
            }
            if self.lacks_bodies(&outcome, out) {
                return;
            }
            let Some(changing) = self.changing.as_ref() else { return };
            if !changing.is_logging {
                self.log_change(&outcome, out);
                return;
            }
            if !changing.is_logged {
                return;
            }
            self.endorse(&outcome, out);
            self.acknowledge_view(&outcome, out);
        }
        self.finish_change(out);
    }

    /// Whether bodies of the outcome are missing. Those of a view that has been live for long are with nobody any more:
    /// then the history that followed is fetched, beyond the outcome.
    fn lacks_bodies(&mut self, outcome: &Outcome, out: &mut Vec<Output>) -> bool {
        let own = self.history.point.order;
        let ahead = self.checkpoints.ahead.as_ref().map(|ahead| ahead.point.order);
        let Some(changing) = self.changing.as_mut().filter(|changing| !changing.wanted.is_empty()) else {
            return false;
        };
        let numbered = outcome.entries.iter().zip(outcome.base.order.0 + 1..);
        let open = numbered
            .filter(|(_, order)| *order > own.0)
            .map(|(entry, _)| entry.digest);
        let open: BTreeSet<Digest> = open.collect();
        changing.wanted.retain(|digest| open.contains(digest));
        let is_missing = !changing.wanted.is_empty();
        let beyond = ahead.filter(|ahead| changing.proof.is_some() && ahead.next() >= outcome.end());
        if let Some(target) = beyond.filter(|_| is_missing) {
            self.fetch_history(target, out);
        }
        is_missing
    }

    fn log_change(&mut self, outcome: &Arc<Outcome>, out: &mut Vec<Output>) {
        if let Some(changing) = self.changing.as_mut() {
            changing.is_logging = true;
        }
        self.log_taken_over(outcome, out);
        self.journal.persist(
            Record::Start(Arc::clone(outcome)),
            Persisting::Change(outcome.view, outcome.digest()),
            out,
        );
    }

    pub(crate) fn on_change_logged(&mut self, view: View, outcome: Digest, out: &mut Vec<Output>) {
        let is_current = |changing: &&mut Box<super::Changing>| {
            let known = changing.outcome.as_ref().map(|(_, known)| *known);
            changing.view == view && known == Some(outcome)
        };
        let changing = self.changing.as_mut().or(self.given_up.as_mut());
        if let Some(changing) = changing.filter(is_current) {
            changing.is_logged = changing.is_logging;
            self.advance_change(out);
        }
    }

    /// Whether our VIEW-CHANGE is one of those that the outcome follows from.
    fn is_member(&self, outcome: &Outcome) -> bool {
        let own = self.configuration.machine;
        let change = self.changing.as_ref().and_then(|changing| changing.change.as_ref());
        let value = change
            .and_then(|change| change.warrants.first())
            .map(|warrant| warrant.value);
        outcome.changed.contains(&own) && value.is_some() && value == outcome.position(own, replica_slot(FIRST))
    }

    fn endorse(&mut self, outcome: &Arc<Outcome>, out: &mut Vec<Output>) {
        let is_member = self.is_member(outcome);
        let Some(changing) = self.changing.as_mut() else { return };
        if !is_member || changing.is_endorsing {
            return;
        }
        changing.is_endorsing = true;
        let Some((_, outcome)) = changing.outcome else { return };
        let view = changing.view;
        let digest = Endorsement::digest(view, &outcome);
        self.journal
            .certify(replica_slot(FIRST), digest, Certifying::Endorse { view, outcome }, out);
    }

    pub(crate) fn on_endorse_certified(
        &mut self,
        view: View,
        outcome: Digest,
        warrant: UniqueWarrant,
        out: &mut Vec<Output>,
    ) {
        self.runs.push(FIRST, RunItem::Endorsed { view, outcome, warrant });
        let machine = self.configuration.machine;
        let endorsement = Endorsement {
            machine,
            view,
            outcome,
            warrant,
        };
        let Some(changing) = self.change_to(view) else {
            return;
        };
        changing.endorsement = Some(endorsement.clone());
        self.send(To::Others, Message::Endorse(Arc::new(endorsement.clone())), out);
        self.on_endorse(&endorsement, out);
    }

    pub(crate) fn on_endorse(&mut self, endorsement: &Endorsement, out: &mut Vec<Output>) {
        if let Some(live) = self.live.as_mut().filter(|live| live.view >= endorsement.view) {
            live.follow_endorsement(endorsement);
            self.tell_live(endorsement.machine, out);
            return;
        }
        let Some(changing) = self
            .changing
            .as_mut()
            .filter(|changing| changing.view == endorsement.view)
        else {
            return;
        };
        changing.endorsements.insert(endorsement.machine, endorsement.clone());
        self.advance_change(out);
    }

    /// Acknowledges an outcome that f+1 have endorsed (rule EndorseThenAcknowledge).
    fn acknowledge_view(&mut self, outcome: &Arc<Outcome>, out: &mut Vec<Output>) {
        let quorum =
            if self.configuration.is(Mutant::AcknowledgeUnendorsed) || self.configuration.is(Mutant::OneViewChange) {
                1
            } else {
                self.configuration.quorum() as usize
            };
        let Some(changing) = self.changing.as_mut() else { return };
        let Some(digest) = changing.outcome.as_ref().map(|(_, digest)| *digest) else {
            return;
        };
        let is_endorsed = changing.endorsement.as_ref().is_some_and(|own| own.outcome == digest);
        if !is_endorsed || changing.is_acknowledging {
            return;
        }
        let endorsements: Vec<(MachineId, UniqueWarrant)> = match &changing.proof {
            Some(proof) => {
                let all = proof.acknowledgements.iter();
                all.map(|known| (known.machine, known.endorsed)).collect()
            }
            None => changing
                .endorsements
                .values()
                .filter(|known| known.outcome == digest && endorses(outcome, known.machine, &known.warrant))
                .map(|known| (known.machine, known.warrant))
                .collect(),
        };
        if endorsements.len() < quorum {
            return;
        }
        changing.is_acknowledging = true;
        let view = changing.view;
        changing.certified = Some(Arc::new(CertifiedOutcome {
            outcome: outcome.as_ref().clone(),
            endorsements,
        }));
        // From here on our VIEW-CHANGEs must show it.
        self.acknowledged.clone_from(&changing.certified);
        let purpose = Certifying::AcknowledgeView { view, outcome: digest };
        let signed = ViewAcknowledgement::digest(view, &digest);
        self.journal.certify(replica_slot(FIRST), signed, purpose, out);
    }

    pub(crate) fn on_acknowledge_certified(
        &mut self,
        view: View,
        outcome: Digest,
        warrant: UniqueWarrant,
        out: &mut Vec<Output>,
    ) {
        self.runs.push(FIRST, RunItem::Acknowledged { view, outcome, warrant });
        let machine = self.configuration.machine;
        let Some(changing) = self.change_to(view) else {
            return;
        };
        let Some(endorsement) = &changing.endorsement else {
            return;
        };
        let acknowledgement = ViewAcknowledgement {
            machine,
            view,
            outcome,
            endorsed: endorsement.warrant,
            acknowledged: warrant,
        };
        changing.acknowledgement = Some(acknowledgement.clone());
        self.send(
            To::Others,
            Message::AcknowledgeView(Arc::new(acknowledgement.clone())),
            out,
        );
        self.on_acknowledge_view(&acknowledgement, out);
    }

    pub(crate) fn on_acknowledge_view(&mut self, acknowledgement: &ViewAcknowledgement, out: &mut Vec<Output>) {
        let machine = acknowledgement.machine;
        if let Some(live) = self.live.as_mut().filter(|live| live.view >= acknowledgement.view) {
            if live.view == acknowledgement.view {
                live.follow_acknowledgement(acknowledgement);
            }
            self.tell_live(machine, out);
            return;
        }
        let view = acknowledgement.view;
        let Some(changing) = self.changing.as_mut().filter(|changing| changing.view == view) else {
            return;
        };
        changing.acknowledgements.insert(machine, acknowledgement.clone());
        self.advance_change(out);
    }

    /// m0 follows the others into a view.
    fn observe(&mut self, view: View, out: &mut Vec<Output>) {
        self.leave_view();
        self.start.joined = None;
        self.start.leading = None;
        self.watch_change(view, out);
    }

    /// The view is live when f+1 have acknowledged; then this machine takes part, once it has done its own part.
    fn finish_change(&mut self, out: &mut Vec<Output>) {
        let quorum =
            if self.configuration.is(Mutant::EnterUnacknowledged) || self.configuration.is(Mutant::OneViewChange) {
                1
            } else {
                self.configuration.quorum() as usize
            };
        let has_replicas = self.configuration.has_replicas();
        let is_fresh = self.is_fresh();
        let Some(changing) = self.changing.as_mut() else { return };
        let Some((outcome, digest)) = changing.outcome.clone() else {
            return;
        };
        if changing.proof.is_none() {
            let acknowledgements: Vec<_> = changing
                .acknowledgements
                .values()
                .filter(|known| known.outcome == digest && endorses(&outcome, known.machine, &known.endorsed))
                .cloned()
                .collect();
            if acknowledgements.len() < quorum {
                return;
            }
            changing.proof = Some(Arc::new(LiveProof {
                outcome: outcome.as_ref().clone(),
                signatures: Vec::new(),
                acknowledgements,
            }));
        }
        let is_member = self.is_member(&outcome);
        let Some(changing) = self.changing.as_mut() else { return };
        let has_endorsed_another = changing.endorsement.as_ref().is_some_and(|own| own.outcome != digest);
        let is_joined = match (&changing.change, &changing.acknowledgement) {
            (_, Some(_)) => true,
            (Some(_), None) => !is_member || has_endorsed_another,
            (None, None) => is_fresh,
        };
        let Some(proof) = changing.proof.clone() else { return };
        let is_certifying = changing.is_endorsing && changing.endorsement.is_none();
        if changing.is_finishing || has_replicas && (!is_joined || is_certifying) {
            // Whoever is not among them needs a VIEW-CHANGE of its own to join.
            return;
        }
        changing.is_finishing = true;
        self.log_live(&proof, out);
    }

    /// Tells a machine which view is live, if it seems not to know.
    pub(crate) fn tell_live(&mut self, machine: MachineId, out: &mut Vec<Output>) {
        let live = self.live.as_ref().map(|live| &live.proof);
        // Whoever was admitted into a view that all others have left meanwhile can only come back through it: its
        // counter counts since then, so it is not lost, and it must be where that view begins to leave it too.
        let left = self.changing.as_ref().and(self.start.last_live.as_ref());
        let Some(proof) = live.or(left).cloned() else { return };
        let interval_us = self.configuration.retransmission_us / 2;
        if self.may_answer(machine, super::serving::Expense::Live, interval_us) {
            self.send(To::Machine(machine), Message::Live(proof), out);
        }
    }
}
