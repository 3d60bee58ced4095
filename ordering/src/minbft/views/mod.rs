//! Which view a machine is in, and how it comes from one to another: every change of its phase is here.
//!
//! | from, to | why | where |
//! |---|---|---|
//! | Waiting to Starting | all have said hello, and the candidate has collected that | `starting.rs` |
//! | Live, Changing to Changing | f+1 want a higher view | `changing.rs` |
//! | any to Changing | a higher view is live, and has admitted us | `mod.rs`: `join_live` |
//! | Starting, Changing to Live | the view is live, and that is in our log | `enter.rs` |
//! | Live, Changing to Waiting | more than f counters were lost: only a start can go on | `mod.rs`: `abandon_view` |

mod changing;
mod enter;
mod starting;

use std::sync::Arc;

use crate::agreement::To;
use crate::identifiers::{MachineId, Order, View};
use crate::ledger::serving::Expense;
use crate::minbft::change::Change;
use crate::minbft::change::candidate::Candidate;
use crate::minbft::change::suspicion::Suspicion;
use crate::minbft::core::Core;
use crate::minbft::phase::Phase;
use crate::minbft::start::Starts;
use crate::minbft::wire::change::RequestViewChange;
use crate::minbft::wire::message::{Message, Standing};
use crate::minbft::wire::outcome::LiveProof;
use crate::timers::Timer;

/// The phase of a machine, and what it keeps to come to another.
#[derive(Debug, Default)]
pub(crate) struct Views {
    pub(crate) phase: Phase,
    /// A view that it no longer goes to, but has made a VIEW-CHANGE for: it can only be joined as what it was.
    given_up: Option<Box<Change>>,
    pub(crate) starts: Starts,
    candidate: Candidate,
    pub(crate) suspicion: Suspicion,
}

impl Views {
    fn set_phase(&mut self, core: &mut Core, phase: Phase) {
        core.view = phase.view();
        self.phase = phase;
    }

    /// Does whatever a start or a change can do now.
    pub(crate) fn advance(&mut self, core: &mut Core) {
        match &mut self.phase {
            Phase::Starting(attempt) => attempt.advance(core, self.starts.leader.as_mut()),
            Phase::Changing(change) => change.advance(core),
            Phase::Waiting | Phase::Live(_) => {}
        }
    }

    /// Does whatever a change can do now.
    pub(crate) fn advance_change(&mut self, core: &mut Core) {
        if let Phase::Changing(change) = &mut self.phase {
            change.advance(core);
        }
    }

    /// The state of the change to this view, also if this machine has given the view up.
    pub(crate) fn change_to(&mut self, view: View) -> Option<&mut Change> {
        let given_up = self.given_up.as_deref_mut().filter(|change| change.view == view);
        self.phase.change_to(view).or(given_up)
    }

    /// The primary has broken the rules, and its warrant proves it: it must be replaced.
    pub(crate) fn accuse(&mut self, core: &mut Core) {
        if let Phase::Live(live) = &mut self.phase
            && let Some(next) = live.take_accusation(core)
        {
            self.want(core, next);
        }
    }

    /// Tells a machine which view is live, if it seems not to know.
    ///
    /// A machine that is changing tells of the view that it has left. Machine M may have been admitted to that view after all
    /// others left it: M's counter is proven by that view's outcome alone, so M must enter the view before it can leave it.
    pub(crate) fn tell_live(&self, core: &mut Core, machine: MachineId) {
        let proof = match &self.phase {
            Phase::Live(live) => Some(Arc::clone(&live.proof)),
            Phase::Changing(_) => core.past.live.clone(),
            Phase::Waiting | Phase::Starting(_) => None,
        };
        let interval_us = core.ledger.configuration.retransmission_us / 2;
        if let Some(proof) = proof
            && core.ledger.may_answer(machine, Expense::View, interval_us)
        {
            core.ledger.send(To::Machine(machine), Message::Live(proof));
        }
    }

    /// A machine is in a later view: it is to tell us about that.
    pub(crate) fn ask_view(&self, core: &mut Core, from: MachineId) {
        let view = match &self.phase {
            Phase::Changing(change) => View(change.view.0.saturating_sub(1)),
            _ => core.current_view().unwrap_or_default(),
        };
        let standing = Standing {
            view,
            prepares_wanted: false,
            prepares: u64::MAX,
            commits: Vec::new(),
            decided: Order(0),
            stable: Order(u64::MAX),
        };
        let interval_us = core.ledger.configuration.retransmission_us;
        if core.ledger.may_answer(from, Expense::AskView, interval_us) {
            core.ledger.send(To::Machine(from), Message::Standing(standing));
        }
    }

    /// Ends what belongs to the view that we are in; keeps what the next one may take over.
    fn leave_view(&mut self, core: &mut Core) {
        core.ledger.catch_up = None;
        match std::mem::take(&mut self.phase) {
            Phase::Live(live) => {
                live.leave(core);
                core.view = None;
            }
            other => self.phase = other,
        }
    }

    /// Goes to a view. Requests: of those who want it; none: it is live, or this is m0, which only looks how others change.
    fn go_to(&mut self, core: &mut Core, view: View, requests: Vec<RequestViewChange>) {
        self.leave_view(core);
        core.ledger.timers.stop(Timer::Hello);
        let patience_us = self.suspicion.patience_us(core);
        let change = Change::new(core, view, requests, patience_us);
        self.set_phase(core, Phase::Changing(Box::new(change)));
        self.advance_change(core);
    }

    /// A view is live that is not the one that we are in, and was changed to.
    fn join_live(&mut self, core: &mut Core, proof: &Arc<LiveProof>) {
        let view = proof.outcome.view;
        let is_waiting = matches!(self.phase, Phase::Waiting);
        if let Some(mut change) = self.given_up.take_if(|given_up| is_waiting && given_up.view == view) {
            change.resume(core);
            core.ledger.timers.stop(Timer::Hello);
            self.set_phase(core, Phase::Changing(change));
        }
        let is_going = self.phase.change_to(view).is_some();
        let may_return = is_going || core.is_sequencer() && self.phase.live().is_none();
        let current = core.current_view();
        if current.is_some_and(|current| current > view || current == view && !may_return)
            || must_be_replaced(core, proof)
        {
            return;
        }
        if !core.is_sequencer() {
            // A start of this very view cannot succeed any more: it needs the word of all, and some are in the view. (m0 has
            // not given its word to any start.)
            let is_starting_higher = self.phase.starting_view().is_some_and(|starting| starting > view);
            let admission = proof.outcome.admission(core.own());
            let is_admitted = admission.is_some_and(|known| known.epoch == core.counter.position.epoch);
            // If it has not admitted us, our HELLO asks for that.
            if is_starting_higher || !is_admitted {
                return;
            }
        }
        if !is_going {
            self.starts.leader = None;
            self.go_to(core, view, Vec::new());
        }
        if let Phase::Changing(change) = &mut self.phase {
            change.take_proof(core, proof);
            change.advance(core);
        }
    }

    /// More than f machines came back with new counters: no view can go on, so the cluster must start again.
    fn abandon_view(&mut self, core: &mut Core) {
        self.leave_view(core);
        if let Phase::Changing(change) = &mut self.phase {
            change.pause(core);
            // It may become live without us: then we go on where we were.
            if let Phase::Changing(change) = std::mem::take(&mut self.phase)
                && change.has_left()
            {
                self.given_up = Some(change);
            }
            core.view = None;
        }
        self.candidate.resign(core);
        core.ledger.timers.set(Timer::Hello, 0);
        self.hello_timer(core);
    }
}

/// Whether this is m0, is to lead that view, and cannot: it stays out and says hello, until the others replace it.
fn must_be_replaced(core: &Core, proof: &LiveProof) -> bool {
    let (own, counter) = (core.own(), &core.counter.position);
    let admission = proof.outcome.admission(own);
    let can_lead = admission.is_some_and(|admission| {
        admission.epoch == counter.epoch && admission.positions.first() == counter.positions.first()
    });
    let leads = core.ledger.configuration.primary(proof.outcome.view) == own;
    core.is_sequencer() && leads && !can_lead
}
