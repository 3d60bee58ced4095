//! Leaving a view, and what a machine does until the next one is live (`docs/protocol.md`, rules NoHoles, QuorumsMeet,
//! NoLateCommit, CommittedView, JustifiedChange and OnceOnly; `docs/decisions/0012`).
//!
//! 1. A machine that waits too long for the primary wants the next view: REQ-VIEW-CHANGE (`suspicion.rs`).
//! 2. f+1 such wishes make it leave: VIEW-CHANGE, with one warrant of each of its replicas, so that nothing that
//!    they commit afterwards can count. It shows everything that they have certified since proven positions.
//! 3. The candidate of the view chooses f+1 VIEW-CHANGEs or more: NEW-VIEW (`new_view.rs`). Everybody computes from
//!    it how the view begins (`view_outcome.rs`).
//! 4. A machine that has that with all bodies in its durable log endorses it, with the warrant that follows its
//!    VIEW-CHANGE: so a view has one endorsed outcome at most, whatever its primary does.
//! 5. f+1 endorsements prove the outcome to anybody. Who has seen them acknowledges, with the next warrant.
//! 6. f+1 acknowledgements decide (rule CommittedView): the view is live.
//!
//! A machine that was not among those f+1 joins late: its own VIEW-CHANGE to that view shows the others that its
//! counters are without hole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trusted_counter::UniqueWarrant;

use crate::agreement::To;
use crate::configuration::replica_slot;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::minbft::journal::Certifying;
use crate::minbft::messages::{Message, Standing};
use crate::minbft::start_messages::{LiveProof, Outcome};
use crate::minbft::verification::FETCH_REQUESTS_MAX;
use crate::minbft::view_messages::{
    CertifiedOutcome, Endorsement, NewView, RequestViewChange, RunItem, RunStart, ViewAcknowledgement, ViewChange,
};
use crate::minbft::{Machine, Output};

/// What a machine knows that has left a view, and is not yet in the next one.
#[derive(Debug)]
pub(crate) struct Changing {
    /// The view that it goes to.
    pub(crate) view: View,
    /// Why it left.
    requests: Vec<RequestViewChange>,
    /// Our own VIEW-CHANGE, while its warrants are being made.
    building: Option<ViewChange>,
    /// Our own VIEW-CHANGE.
    pub(crate) change: Option<Arc<ViewChange>>,
    pub(crate) outcome: Option<(Arc<Outcome>, Digest)>,
    /// Bodies of the outcome that are not here.
    pub(crate) wanted: BTreeSet<Digest>,
    /// The outcome is on its way to the log.
    pub(crate) is_logging: bool,
    /// It is in the log.
    pub(crate) is_logged: bool,
    pub(crate) is_endorsing: bool,
    pub(crate) endorsement: Option<Endorsement>,
    pub(crate) endorsements: BTreeMap<MachineId, Endorsement>,
    pub(crate) certified: Option<Arc<CertifiedOutcome>>,
    pub(crate) is_acknowledging: bool,
    pub(crate) acknowledgement: Option<ViewAcknowledgement>,
    pub(crate) acknowledgements: BTreeMap<MachineId, ViewAcknowledgement>,
    /// The view is live.
    pub(crate) proof: Option<Arc<LiveProof>>,
    /// That is on its way to our log.
    pub(crate) is_finishing: bool,
    /// When to want the next view, monotonic.
    pub(crate) deadline_us: u64,
    /// When to say again what may have got lost, monotonic.
    pub(crate) repeat_us: u64,
    rounds: u64,
}

impl Changing {
    fn new(view: View, requests: Vec<RequestViewChange>, deadline_us: u64, repeat_us: u64) -> Self {
        Changing {
            view,
            requests,
            building: None,
            change: None,
            outcome: None,
            wanted: BTreeSet::new(),
            is_logging: false,
            is_logged: false,
            is_endorsing: false,
            endorsement: None,
            endorsements: BTreeMap::new(),
            certified: None,
            is_acknowledging: false,
            acknowledgement: None,
            acknowledgements: BTreeMap::new(),
            proof: None,
            is_finishing: false,
            deadline_us,
            repeat_us,
            rounds: 0,
        }
    }
}

/// The NEW-VIEW that this machine makes as the candidate of a view.
#[derive(Debug)]
pub(crate) struct LeadingChange {
    pub(crate) view: View,
    /// When not to wait for further VIEW-CHANGEs any more, monotonic.
    pub(crate) choose_us: u64,
    pub(crate) new_view: Option<Arc<NewView>>,
}

impl Machine {
    /// The view that this machine is in, or goes to; once it has abandoned that, it goes to higher ones only.
    pub(crate) fn current_view(&self) -> Option<View> {
        let live = self.live.as_ref().map(|live| live.view);
        let changing = self.changing.as_ref().map(|changing| changing.view);
        live.max(changing)
            .max(self.start.last_live_view())
            .max(self.runs.left_for())
    }

    /// f+1 machines want this view: leaves for it.
    pub(crate) fn change_view(&mut self, view: View, requests: Vec<RequestViewChange>, out: &mut Vec<Output>) {
        let may_leave = self.start.joined.is_none() && self.runs.is_admitted() && self.configuration.has_replicas();
        // For a view that was given up our counter may be making a VIEW-CHANGE right now: a second one would be refused by all.
        let given_up = self.given_up.as_ref().map(|changing| changing.view);
        let is_past = self.current_view().is_none_or(|current| current >= view);
        if !may_leave || is_past || given_up >= Some(view) {
            return;
        }
        self.leave_view();
        self.suspicion.left();
        self.go_to(view, requests, out);
    }

    fn go_to(&mut self, view: View, requests: Vec<RequestViewChange>, out: &mut Vec<Output>) {
        let deadline_us = self.now.monotonic_us.saturating_add(self.patience_us());
        let repeat_us = self
            .now
            .monotonic_us
            .saturating_add(self.configuration.retransmission_us / 2);
        self.changing = Some(Box::new(Changing::new(view, requests, deadline_us, repeat_us)));
        self.start.mentioned = self.start.mentioned.max(Some(view));
        self.advance_change(out);
    }

    /// m0 only looks how the others change.
    pub(crate) fn watch_change(&mut self, view: View, out: &mut Vec<Output>) {
        self.go_to(view, Vec::new(), out);
    }

    /// Ends what belongs to the view; keeps what the next one may take over.
    pub(crate) fn leave_view(&mut self) {
        self.catch_up = None;
        let Some(live) = self.live.take() else { return };
        let stable = self.checkpoints.point().order;
        self.delivered = live.groups.iter().map(|group| group.decided).collect();
        self.start.last_live = Some(Arc::clone(&live.proof));
        self.start.mentioned = self.start.mentioned.max(Some(live.view));
        self.start.prepares = live.stream.kept_above(stable).cloned().collect();
        self.start.held.clear();
        for (order, operation) in self.history.tail_above(stable) {
            if let Some(request) = &operation.request {
                self.start.held.insert(operation.digest, (order, request.clone()));
            }
        }
        self.bodies.forget_missing();
        for (_, operation) in live.stream.slots.iter().flat_map(|slot| slot.operations()) {
            let Some(request) = operation.request else { continue };
            // It waits to be ordered again, unless the next view takes it over (rule OnceOnly).
            self.bodies.forget_location(&operation.digest, operation.order);
            if self.clients.is_new(request.client, request.number, request.floor) {
                let bytes_max = self.configuration.client_bytes_max;
                self.bodies
                    .arrive(operation.digest, &request, self.now.monotonic_us, bytes_max);
            }
            self.start.held.insert(operation.digest, (operation.order, request));
        }
    }

    /// Does whatever the change can do now.
    pub(crate) fn advance_change(&mut self, out: &mut Vec<Output>) {
        if self.changing.is_none() || self.live.is_some() {
            return;
        }
        self.begin_change(out);
        self.advance_outcome(out);
    }

    /// Makes our VIEW-CHANGE, once nothing else is at the counter: it must show all warrants that were made.
    fn begin_change(&mut self, out: &mut Vec<Output>) {
        let is_fresh = self.is_fresh();
        let Some(changing) = self.changing.as_mut() else { return };
        let is_begun = changing.change.is_some() || changing.building.is_some();
        // Without requests it is for joining a live view: only when that has admitted us.
        let is_needed = !changing.requests.is_empty() || changing.proof.is_some() && !is_fresh;
        if is_begun || !is_needed || self.journal.is_certifying() || !self.configuration.has_replicas() {
            return;
        }
        let (view, requests) = (changing.view, changing.requests.clone());
        let Some(change) = self.build_change(view, requests) else {
            return;
        };
        let content = change.content();
        let digest = ViewChange::digest(change.machine, view, &content);
        if let Some(changing) = self.changing.as_mut() {
            changing.building = Some(change);
        }
        for group in 0..self.configuration.groups {
            let group = GroupId(group);
            let purpose = Certifying::ViewChange { view, group, content };
            self.journal.certify(replica_slot(group), digest, purpose, out);
        }
    }

    fn build_change(&self, view: View, requests: Vec<RequestViewChange>) -> Option<ViewChange> {
        let live = self.start.last_live.clone()?;
        let (start, runs) = self.runs.show(&live)?;
        let point = self.checkpoints.point();
        let certified = self.acknowledged.clone();
        let certified = certified.filter(|certified| certified.outcome.view > live.outcome.view);
        let is_later = point.view > live.outcome.view;
        let prepares = self
            .start
            .prepares
            .iter()
            .filter(|prepare| prepare.last() > point.order && !is_later);
        let start = match start {
            RunStart::Followed(statements) => {
                // They must not speak of orders beyond what the checkpoint proves.
                let within = statements
                    .iter()
                    .all(|statement| statement.followed.order <= point.order);
                within.then_some(RunStart::Followed(statements))?
            }
            other => other,
        };
        Some(ViewChange {
            machine: self.configuration.machine,
            view,
            requests,
            stable: self.checkpoints.stable.clone(),
            prepares: prepares.cloned().collect(),
            live,
            certified,
            start,
            runs,
            warrants: Vec::new(),
        })
    }

    /// A warrant for our VIEW-CHANGE is made.
    pub(crate) fn on_change_certified(
        &mut self,
        view: View,
        group: GroupId,
        content: Digest,
        warrant: UniqueWarrant,
        out: &mut Vec<Output>,
    ) {
        let groups = usize::from(self.configuration.groups);
        self.runs.push(group, RunItem::Left { view, content, warrant });
        let changing = self.change_to(view);
        let Some(building) = changing.and_then(|changing| changing.building.as_mut()) else {
            return;
        };
        building.warrants.push(warrant);
        if building.warrants.len() < groups {
            return;
        }
        let Some(changing) = self.changing.as_mut() else { return };
        let change = changing.building.take().map(Arc::new);
        changing.change.clone_from(&change);
        if let Some(change) = change {
            self.send(To::Others, Message::ViewChange(Arc::clone(&change)), out);
            self.on_view_change(&change, out);
        }
        self.advance_change(out);
    }

    /// What we know of the change to this view, also if we have given it up.
    pub(crate) fn change_to(&mut self, view: View) -> Option<&mut Box<Changing>> {
        let known = self.changing.as_mut().into_iter().chain(self.given_up.as_mut());
        known.into_iter().find(|changing| changing.view == view)
    }

    /// Whether the view that is live has admitted our counter where it is: nothing needs to be shown.
    pub(crate) fn is_fresh(&self) -> bool {
        let own = self.configuration.machine;
        let proof = self.changing.as_ref().and_then(|changing| changing.proof.as_ref());
        proof.is_some_and(|proof| {
            let outcome = &proof.outcome;
            let admission = outcome.admission(own).filter(|_| !outcome.changed.contains(&own));
            let counter = &self.journal.counter;
            admission.is_some_and(|admission| {
                admission.epoch == counter.epoch && admission.positions.get(1..) == counter.positions.get(1..)
            })
        })
    }

    /// A view is live that is not the one that we are in, and was changed to.
    pub(crate) fn join_live(&mut self, proof: &Arc<LiveProof>, out: &mut Vec<Output>) {
        let own = self.configuration.machine;
        let view = proof.outcome.view;
        let given_up = self.given_up.as_ref().is_some_and(|given_up| given_up.view == view);
        if self.changing.is_none() && self.live.is_none() && given_up && self.start.joined.is_none() {
            self.changing = self.given_up.take();
        }
        let is_going = self.changing.as_ref().is_some_and(|changing| changing.view == view);
        let may_return = is_going || self.live.is_none() && !self.configuration.has_replicas();
        if self
            .current_view()
            .is_some_and(|current| current > view || current == view && !may_return)
            // A start of this very view cannot succeed any more: it needs the word of all, and some are in the view. m0 has
            // not given its word.
            || self.configuration.has_replicas() && self.start.joined_view().is_some_and(|joined| joined > view)
            || self.must_be_replaced(proof)
        {
            return;
        }
        let epoch = proof.outcome.admission(own).map(|admission| admission.epoch);
        if self.configuration.has_replicas() && epoch != Some(self.journal.counter.epoch) {
            // It has not admitted us: our HELLO asks for that.
            return;
        }
        if self.changing.as_ref().is_none_or(|changing| changing.view != view) {
            self.leave_view();
            self.start.joined = None;
            self.start.leading = None;
            self.go_to(view, Vec::new(), out);
        }
        let digest = proof.outcome.digest();
        let Some(changing) = self.changing.as_mut() else { return };
        if changing.outcome.as_ref().is_none_or(|(_, known)| *known != digest) {
            // What we may have endorsed did not come: its primary has proposed two outcomes.
            changing.is_logging = false;
            changing.is_logged = false;
            self.take_outcome(proof.outcome.clone(), digest, out);
        }
        if let Some(changing) = self.changing.as_mut() {
            changing.proof = Some(Arc::clone(proof));
        }
        self.advance_change(out);
    }

    /// Whether this is m0, is to lead that view, and cannot: it stays out and says hello, until the others replace it.
    fn must_be_replaced(&self, proof: &LiveProof) -> bool {
        let own = self.configuration.machine;
        let counter = &self.journal.counter;
        let can_lead = proof.outcome.admission(own).is_some_and(|admission| {
            admission.epoch == counter.epoch && admission.positions.first() == counter.positions.first()
        });
        let leads = self.configuration.primary(proof.outcome.view) == own;
        leads && !can_lead && !self.configuration.has_replicas()
    }

    /// More than f machines came back with new counters: no view can go on, so the cluster must start again.
    pub(crate) fn abandon_view(&mut self, out: &mut Vec<Output>) {
        self.leave_view();
        // It may become live without us: then we go on where we were.
        let given_up = self
            .changing
            .take()
            .filter(|changing| changing.change.is_some() || changing.building.is_some());
        self.given_up = given_up.or(self.given_up.take());
        self.leading_change = None;
        self.start.next_us = 0;
        self.start_timer(out);
    }

    /// Says again whatever the others may have missed, and gives up on a view that does not come.
    pub(crate) fn change_timer(&mut self, out: &mut Vec<Output>) {
        let now_us = self.now.monotonic_us;
        let interval_us = self.configuration.retransmission_us / 2;
        let Some(changing) = self.changing.as_mut() else { return };
        if changing.deadline_us <= now_us && !self.configuration.has_replicas() {
            // m0 only watches: what it watches may have been given up, and a start may wait for it.
            self.abandon_view(out);
            return;
        }
        let Some(changing) = self.changing.as_mut() else { return };
        if changing.deadline_us <= now_us {
            let wanted = View(changing.view.0 + 1);
            changing.deadline_us = u64::MAX;
            let patience_us = self.give_up(wanted, out);
            if let Some(changing) = self.changing.as_mut().filter(|changing| changing.view < wanted) {
                changing.deadline_us = now_us.saturating_add(patience_us);
            }
        }
        let Some(changing) = self.changing.as_mut().filter(|changing| changing.repeat_us <= now_us) else {
            return;
        };
        changing.repeat_us = now_us + interval_us;
        changing.rounds += 1;
        self.repeat_change(out);
        self.fetch_change_bodies(out);
        self.advance_change(out);
    }

    fn repeat_change(&self, out: &mut Vec<Output>) {
        let Some(changing) = &self.changing else { return };
        if let Some(change) = &changing.change {
            self.send(To::Others, Message::ViewChange(Arc::clone(change)), out);
        }
        if let Some(acknowledgement) = &changing.acknowledgement {
            self.send(
                To::Others,
                Message::AcknowledgeView(Arc::new(acknowledgement.clone())),
                out,
            );
        }
        if let Some(endorsement) = &changing.endorsement {
            self.send(To::Others, Message::Endorse(Arc::new(endorsement.clone())), out);
        }
    }

    /// Asks the machines in turn for bodies that the outcome needs.
    fn fetch_change_bodies(&mut self, out: &mut Vec<Output>) {
        let Some(changing) = self.changing.as_ref().filter(|changing| !changing.wanted.is_empty()) else {
            return;
        };
        let digests = changing.wanted.iter().take(FETCH_REQUESTS_MAX).copied().collect();
        let turn = changing.rounds % u64::from(self.configuration.replicas());
        let peer = self.next_peer(MachineId(u8::try_from(turn).unwrap_or(0) + 1));
        self.send(To::Machine(peer), Message::FetchRequests(digests), out);
        if changing.proof.is_some() {
            // The view is live, perhaps for long: how far it has got.
            let standing = Standing {
                view: changing.view,
                prepares_wanted: false,
                prepares: 0,
                commits: Vec::new(),
                decided: Order(0),
                stable: self.checkpoints.point().order,
            };
            self.send(To::Machine(peer), Message::Standing(standing), out);
        }
    }

    /// Takes a body that the outcome needs.
    pub(crate) fn take_changing(&mut self, digest: Digest, request: &Arc<crate::message::Request>) {
        let group = self.configuration.group_of(request.home);
        let Some(changing) = self.changing.as_mut() else { return };
        let outcome = changing.outcome.as_ref();
        let is_misplaced = outcome.is_some_and(|(outcome, _)| {
            let mut entries = outcome.entries.iter();
            entries.any(|entry| entry.digest == digest && entry.group != group)
        });
        if is_misplaced {
            // It was not decided, since no correct machine has committed it: a view that begins with it is not
            // endorsed here, and does not come.
            return;
        }
        if changing.wanted.remove(&digest) {
            self.start.held.insert(digest, (Order(0), request.clone()));
        }
    }
}
