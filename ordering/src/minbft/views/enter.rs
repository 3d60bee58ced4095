//! The way into every view: the state with which it begins.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, Output, To};
use crate::identifiers::{GroupId, Order, View};
use crate::ledger::history::{by_group, to_history};
use crate::minbft::core::Core;
use crate::minbft::live::Live;
use crate::minbft::live::primary::Primary;
use crate::minbft::phase::Phase;
use crate::minbft::views::Views;
use crate::minbft::wire::message::Message;
use crate::minbft::wire::outcome::{LiveProof, Outcome, Proof};
use crate::timers::Timer;

impl Views {
    /// That a view is live is in our log: takes part in it, if we are still on the way to it.
    pub(crate) fn enter_view(&mut self, core: &mut Core, proof: &Arc<LiveProof>) {
        let outcome = &proof.outcome;
        let on_the_way = match &self.phase {
            Phase::Starting(attempt) => Some(attempt.view()),
            Phase::Changing(change) => Some(change.view),
            Phase::Waiting | Phase::Live(_) => None,
        };
        let primary = core.ledger.configuration.primary(outcome.view);
        let admission = outcome.admission(primary);
        let Some(admission) = admission.filter(|_| on_the_way == Some(outcome.view)) else {
            return;
        };
        if !core.is_sequencer() && !continues_history(core, outcome) {
            return;
        }
        if core.views.last().is_none_or(|last| last.view < outcome.view) {
            let base = core.view_base(outcome);
            core.views.push(base);
        }
        let before = core.ledger.history.point;
        let value = admission.positions.first().copied().unwrap_or(0);
        take_over(core, outcome, value);
        let mut live = Live::new(core, proof, primary, admission);
        // A counter that was restarted, or has gone on since, cannot continue the view's PREPAREs.
        let counter = &core.counter.position;
        let can_lead = counter.epoch == admission.epoch && counter.positions.first() == Some(&value);
        if primary == core.own() && can_lead {
            live.leading = Some(Primary::begin(core, outcome, value));
        }
        self.follow_into(core, &mut live);
        core.ledger
            .timers
            .stop_all(&[Timer::NextView, Timer::Repeat, Timer::Hello]);
        self.candidate.entered(core, outcome.view);
        core.view = Some(live.view);
        let own = core.own();
        core.runs.admit(proof, own, &core.counter.position);
        self.starts.leader = None;
        self.starts.roster.forget();
        self.given_up = None;
        core.forget_past(proof);
        core.ledger.catch_up = None;
        self.suspicion.entered(core);
        if core.ledger.history.point.order != before.order {
            live.history_extended(core, &before);
        }
        if matches!(proof.decided_by, Proof::Change(_)) {
            announce(core, &mut live);
        }
        if core.is_sequencer() {
            // Its log holds nothing but the views that it was in.
            core.cut_log(outcome.end());
        }
        self.phase = Phase::Live(Box::new(live));
    }

    /// Peers whose counters are known to be further than the outcome says: they have acknowledged, or joined late.
    fn follow_into(&self, core: &Core, live: &mut Live) {
        let proof = Arc::clone(&live.proof);
        for acknowledgement in proof.decided_by.acknowledgements() {
            live.follow_acknowledgement(acknowledgement);
        }
        let change = match &self.phase {
            Phase::Changing(change) => Some(change),
            _ => None,
        };
        if let Some(change) = change {
            for acknowledgement in change.acknowledgements.values() {
                live.follow_acknowledgement(acknowledgement);
            }
            let value = core.counter.position.positions.get(1).copied().unwrap_or(0);
            live.joining = (value, change.joining());
        }
        for change in self.candidate.changes_to(live.view) {
            live.follow_change(change);
        }
        for endorsement in change.iter().flat_map(|change| change.endorsements.values()) {
            live.follow_endorsement(endorsement);
        }
        live.touch_all();
    }
}

/// Whether the outcome agrees with what is decided here; it must not be entered behind a history of later views.
fn continues_history(core: &mut Core, outcome: &Outcome) -> bool {
    let point = core.ledger.history.point;
    if point.view > outcome.view {
        return false;
    }
    let mut numbered = outcome.entries.iter().zip((outcome.base.order.0 + 1..).map(Order));
    let agrees = numbered.all(|(entry, order)| {
        let known = core.ledger.history.digest_at(order);
        known.is_none_or(|known| known == entry.digest)
    });
    if !agrees || (point.view < outcome.view && point.order.next() > outcome.end()) {
        // More than f are faulty, or we are: nothing that was decided may change.
        core.ledger.stop(MisbehaviourKind::Contradiction);
    }
    agrees
}

/// What the outcome takes over is decided; what of it was decided here before stays as it is.
fn take_over(core: &mut Core, outcome: &Outcome, value: u64) {
    let point = core.ledger.history.point;
    if core.is_sequencer() || point.view == outcome.view && outcome.view > View(0) {
        return;
    }
    let mut operations = core.taken_over(outcome);
    operations.retain(|(_, operation)| operation.order > point.order);
    for (_, operation) in &operations {
        core.ledger.bodies.take(&operation.digest);
        core.ledger.bodies.locate(operation.digest, operation.order);
        if let Some(request) = &operation.request {
            core.ledger.clients.add(request);
        }
    }
    let is_news = |group: &GroupId, order: Order| order > core.past.delivered(*group);
    let news = operations
        .iter()
        .filter(|(group, operation)| is_news(group, operation.order));
    let news = by_group(news.cloned());
    core.ledger.out.extend(news.into_iter().map(Output::Deliver));
    let operations = operations.into_iter();
    let history = operations.map(|(group, operation)| to_history(group, operation));
    core.append(history, outcome.view, value);
    // The point says the same on all machines, although some had decided more of the outcome before than others.
    core.ledger.history.point.view = outcome.view;
    core.ledger.history.point.value = value;
}

/// Tells the others how the view began, and the primary what waits.
fn announce(core: &mut Core, live: &mut Live) {
    if live.primary == core.own() {
        let proof = Arc::clone(&live.proof);
        core.ledger.send(To::Others, Message::Live(proof));
    }
    if !core.is_sequencer() {
        live.sign_checkpoint(core);
        live.forward_pending(core);
    }
}
