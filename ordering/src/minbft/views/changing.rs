//! Machines want another view, leave for it, and agree on how it begins.

use std::sync::Arc;

use trusted_counter::UniqueWarrant;

use crate::agreement::{MisbehaviourKind, To};
use crate::identifiers::{Digest, View};
use crate::minbft::change::outcome::compute_change;
use crate::minbft::core::Core;
use crate::minbft::phase::Phase;
use crate::minbft::views::Views;
use crate::minbft::wire::change::{NewView, RequestViewChange, ViewChange};
use crate::minbft::wire::message::Message;
use crate::minbft::wire::outcome::{Endorsement, ViewAcknowledgement};
use crate::timers::Timer;

impl Views {
    /// Wants a view, for as long as the waiting time.
    pub(crate) fn want(&mut self, core: &mut Core, view: View) {
        if !core.is_sequencer() {
            self.suspicion.want(core, view);
            self.say_wish(core);
        }
    }

    /// Says again that we want a view, if it is time.
    pub(crate) fn say_wish(&mut self, core: &mut Core) {
        if let Some(request) = self.suspicion.say_wish(core) {
            self.on_request_view_change(core, &request);
        }
    }

    pub(crate) fn on_request_view_change(&mut self, core: &mut Core, request: &RequestViewChange) {
        self.suspicion.learn_wish(core, request);
        self.count_wishes(core);
        if self.phase.live().is_some_and(|live| live.view >= request.view) {
            self.tell_live(core, request.machine);
        }
    }

    /// Leaves for a view that f+1 machines want.
    fn count_wishes(&mut self, core: &mut Core) {
        let Some((view, requests)) = self.suspicion.wanted_view(core) else {
            return;
        };
        let may_leave = matches!(self.phase, Phase::Waiting | Phase::Changing(_) | Phase::Live(_))
            && core.runs.is_admitted()
            && !core.is_sequencer();
        // For a view that was given up our counter may be making a VIEW-CHANGE right now: a second one would be refused by all.
        let given_up = self.given_up.as_ref().map(|change| change.view);
        let is_past = core.current_view().is_none_or(|current| current >= view);
        if may_leave && !is_past && given_up < Some(view) {
            self.leave_view(core);
            self.suspicion.left();
            self.go_to(core, view, requests);
        }
    }

    pub(crate) fn on_view_change(&mut self, core: &mut Core, change: &Arc<ViewChange>) {
        if let Phase::Live(live) = &mut self.phase
            && live.view >= change.view
        {
            if live.view == change.view {
                live.follow_change(change);
            }
            self.tell_live(core, change.machine);
            return;
        }
        self.candidate.hear(change);
        for request in &change.requests {
            self.suspicion.learn_wish(core, request);
        }
        self.count_wishes(core);
        let new_view = self.candidate.lead(core, &self.starts.roster, change.view);
        self.take_new_view(core, new_view);
    }

    fn take_new_view(&mut self, core: &mut Core, new_view: Option<Arc<NewView>>) {
        if let Some(new_view) = new_view {
            self.on_new_view(core, &new_view);
        }
    }

    /// The candidate: time to choose, or to say again what was chosen.
    pub(crate) fn candidate_timer(&mut self, core: &mut Core) {
        let Some(view) = self.candidate.due(core) else { return };
        let is_past = match &self.phase {
            Phase::Waiting => false,
            Phase::Starting(attempt) => attempt.view() >= view,
            Phase::Changing(change) => change.view > view,
            Phase::Live(live) => live.view >= view,
        };
        if is_past {
            self.candidate.resign(core);
            return;
        }
        let new_view = self.candidate.lead_on(core, &self.starts.roster);
        self.take_new_view(core, new_view);
    }

    pub(crate) fn on_new_view(&mut self, core: &mut Core, new_view: &Arc<NewView>) {
        let view = new_view.view;
        if self.phase.live().is_some_and(|live| live.view >= view) {
            return;
        }
        for request in new_view.changes.iter().flat_map(|change| &change.requests) {
            self.suspicion.learn_wish(core, request);
        }
        self.count_wishes(core);
        // m0 goes where f+1 have gone, not where somebody says; and not to a view that an attempt to start has passed.
        let current = core.current_view().max(self.phase.starting_view());
        let is_higher = current.is_none_or(|current| current < view);
        if core.is_sequencer() && is_higher && compute_change(new_view, &core.ledger.configuration).is_some() {
            self.starts.leader = None;
            self.go_to(core, view, Vec::new());
        }
        let change = self.phase.change_to(view);
        let Some(change) = change.filter(|change| change.adoption.is_none()) else {
            return;
        };
        let Some(outcome) = compute_change(new_view, &core.ledger.configuration) else {
            let primary = core.ledger.configuration.primary(view);
            core.ledger.report(primary, MisbehaviourKind::WrongRecovery);
            return;
        };
        let digest = outcome.digest();
        change.take_outcome(core, outcome, digest);
        change.advance(core);
    }

    pub(crate) fn on_endorse(&mut self, core: &mut Core, endorsement: &Endorsement) {
        match &mut self.phase {
            Phase::Live(live) if live.view >= endorsement.view => {
                live.follow_endorsement(endorsement);
                self.tell_live(core, endorsement.machine);
            }
            Phase::Changing(change) if change.view == endorsement.view => {
                change.endorsements.insert(endorsement.machine, endorsement.clone());
                change.advance(core);
            }
            _ => {}
        }
    }

    pub(crate) fn on_acknowledge_view(&mut self, core: &mut Core, acknowledgement: &ViewAcknowledgement) {
        let (machine, view) = (acknowledgement.machine, acknowledgement.view);
        match &mut self.phase {
            Phase::Live(live) if live.view >= view => {
                if live.view == view {
                    live.follow_acknowledgement(acknowledgement);
                }
                self.tell_live(core, machine);
            }
            Phase::Changing(change) if change.view == view => {
                change.acknowledgements.insert(machine, acknowledgement.clone());
                change.advance(core);
            }
            _ => {}
        }
    }

    /// A warrant for our VIEW-CHANGE is made.
    pub(crate) fn on_change_certified(&mut self, core: &mut Core, view: View, warrant: UniqueWarrant) {
        let Some(change) = self.change_to(view) else { return };
        let Some(shown) = change.on_warrant(core, warrant) else {
            return;
        };
        // If the view was given up meanwhile, it is said once we go there again.
        if self.phase.change_to(view).is_some() {
            core.ledger.send(To::Others, Message::ViewChange(Arc::clone(&shown)));
            self.on_view_change(core, &shown);
        }
    }

    /// Our endorsement is certified.
    pub(crate) fn on_endorse_certified(
        &mut self,
        core: &mut Core,
        view: View,
        outcome: Digest,
        warrant: UniqueWarrant,
    ) {
        let change = self.change_to(view);
        if let Some(endorsement) = change.map(|change| change.on_endorse_certified(core, outcome, warrant)) {
            self.on_endorse(core, &endorsement);
        }
    }

    /// Our acknowledgement is certified.
    pub(crate) fn on_acknowledge_certified(
        &mut self,
        core: &mut Core,
        view: View,
        outcome: Digest,
        warrant: UniqueWarrant,
    ) {
        let change = self.change_to(view);
        let made = change.and_then(|change| change.on_acknowledge_certified(core, outcome, warrant));
        if let Some(acknowledgement) = made {
            self.on_acknowledge_view(core, &acknowledgement);
        }
    }

    /// Between views: says again whatever the others may have missed, and gives up on a view that does not come.
    pub(crate) fn change_timer(&mut self, core: &mut Core) {
        let now_us = core.now_us();
        if core.ledger.timers.is_due(Timer::NextView, now_us) {
            if core.is_sequencer() {
                // m0 only watches: what it watches may have been given up, and a start may wait for it.
                self.abandon_view(core);
                return;
            }
            self.give_up(core);
        }
        if let Phase::Changing(change) = &mut self.phase
            && core.ledger.timers.is_due(Timer::Repeat, now_us)
        {
            change.repeat(core);
        }
    }

    /// The view that we go to does not come: wants the next one.
    fn give_up(&mut self, core: &mut Core) {
        let Phase::Changing(change) = &self.phase else { return };
        let wanted = View(change.view.0 + 1);
        core.ledger.timers.stop(Timer::NextView);
        let next_us = core.now_us().saturating_add(self.suspicion.patience_us(core));
        if core.runs.is_admitted() {
            self.want(core, wanted);
        }
        if let Phase::Changing(change) = &self.phase
            && change.view < wanted
        {
            core.ledger.timers.set(Timer::NextView, next_us);
        }
    }
}
