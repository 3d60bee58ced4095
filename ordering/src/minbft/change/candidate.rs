//! The candidate of a view: chooses the VIEW-CHANGEs from which the view follows (rule QuorumsMeet).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::Mutant;
use crate::identifiers::{MachineId, View};
use crate::minbft::change::outcome::{compute_change, keep_fitting};
use crate::minbft::core::Core;
use crate::minbft::start::Roster;
use crate::minbft::wire::change::{NewView, ViewChange};
use crate::minbft::wire::message::Message;
use crate::minbft::wire::start::Hello;
use crate::timers::Timer;

/// The NEW-VIEW that this machine makes as the candidate of a view.
#[derive(Debug)]
struct Leading {
    view: View,
    /// The outcome that this candidate has chosen.
    new_view: Option<Arc<NewView>>,
}

/// What a machine keeps of others' VIEW-CHANGEs, and the view that it leads others to.
#[derive(Debug, Default)]
pub(crate) struct Candidate {
    /// The last VIEW-CHANGE of each machine above our view.
    changes: BTreeMap<MachineId, Arc<ViewChange>>,
    leading: Option<Leading>,
}

fn length(value: &impl borsh::BorshSerialize) -> usize {
    borsh::object_length(value).unwrap_or(usize::MAX)
}

impl Candidate {
    /// A machine has left the lower views.
    pub(crate) fn hear(&mut self, change: &Arc<ViewChange>) {
        let known = self.changes.get(&change.machine);
        if known.is_none_or(|known| known.view < change.view) {
            self.changes.insert(change.machine, Arc::clone(change));
        }
    }

    /// The VIEW-CHANGEs of those who have gone to this view.
    pub(crate) fn changes_to(&self, view: View) -> impl Iterator<Item = &Arc<ViewChange>> {
        self.changes.values().filter(move |change| change.view == view)
    }

    /// A view was entered: what led to it is not needed any more. It may lead to a higher one still.
    pub(crate) fn entered(&mut self, core: &mut Core, view: View) {
        let own = core.own();
        self.changes
            .retain(|machine, change| *machine != own && change.view > view);
        if self.leading.as_ref().is_some_and(|leading| leading.view <= view) {
            self.resign(core);
        }
    }

    /// Leads nowhere any more.
    pub(crate) fn resign(&mut self, core: &mut Core) {
        self.leading = None;
        core.ledger.timers.stop(Timer::Choose);
    }

    /// Chooses VIEW-CHANGEs as soon as all are there, or f+1 and some time has passed. Returns the NEW-VIEW, which was sent.
    pub(crate) fn lead(&mut self, core: &mut Core, roster: &Roster, view: View) -> Option<Arc<NewView>> {
        let configuration = &core.ledger.configuration;
        let is_ours = configuration.primary(view) == configuration.machine;
        if !is_ours || core.current_view().is_some_and(|current| current > view) || core.counter.is_busy() {
            return None;
        }
        let changes = self.changes_to(view).filter(|change| !change.requests.is_empty());
        let changes: Vec<_> = changes.cloned().collect();
        let quorum = if configuration.is(Mutant::OneViewChange) {
            1
        } else {
            core.quorum()
        };
        if changes.len() < quorum {
            return None;
        }
        let is_complete = changes.len() == usize::from(configuration.replicas());
        let now_us = core.now_us();
        let grace_us = now_us + configuration.retransmission_us / 4;
        if self.leading.as_ref().is_none_or(|leading| leading.view < view) {
            core.ledger.timers.set(Timer::Choose, grace_us);
            self.leading = Some(Leading { view, new_view: None });
        }
        let leading = self.leading.as_ref()?;
        let is_time = is_complete || core.ledger.timers.is_due(Timer::Choose, now_us);
        if leading.view != view || leading.new_view.is_some() || !is_time {
            return None;
        }
        core.ledger.timers.set(Timer::Choose, grace_us);
        self.choose(core, roster, view, changes)
    }

    fn choose(
        &mut self,
        core: &mut Core,
        roster: &Roster,
        view: View,
        mut changes: Vec<Arc<ViewChange>>,
    ) -> Option<Arc<NewView>> {
        keep_fitting(&mut changes);
        let bases = changes.iter().map(|change| change.basis());
        let basis = bases.max_by_key(|basis| basis.view);
        let is_newer = |hello: &&Arc<Hello>| {
            let known = basis.and_then(|basis| basis.admission(hello.machine));
            known.is_none_or(|known| known.epoch < hello.admission.epoch)
        };
        let hellos = roster.hellos().filter(is_newer).cloned().collect();
        let mut new_view = NewView {
            view,
            admission: core.counter.position.clone(),
            changes,
            hellos,
            signature: [0; 64],
        };
        // A liar's VIEW-CHANGE may be larger than those of the correct ones, f+1 of which fit.
        let bytes_max = core.ledger.configuration.message_bytes_max;
        while new_view.changes.len() > core.quorum() && length(&new_view) > bytes_max {
            let numbered = (0..).zip(&new_view.changes);
            let largest = numbered.max_by_key(|(_, change)| length(change.as_ref()));
            let largest = largest.map_or(0, |(index, _)| index);
            new_view.changes.remove(largest);
        }
        new_view.signature = core.ledger.sign(&new_view.digest());
        if compute_change(&new_view, &core.ledger.configuration).is_none() {
            // Somebody's VIEW-CHANGE does not fit to the others'; further ones may.
            let own = core.own();
            core.ledger.report(own, MisbehaviourKind::WrongRecovery);
            return None;
        }
        let new_view = Arc::new(new_view);
        if let Some(leading) = self.leading.as_mut() {
            leading.new_view = Some(Arc::clone(&new_view));
        }
        core.ledger.send(To::Others, Message::NewView(Arc::clone(&new_view)));
        Some(new_view)
    }

    /// The view that it leads to, when it is time to choose, or to say again what was chosen.
    pub(crate) fn due(&self, core: &Core) -> Option<View> {
        let is_due = core.ledger.timers.is_due(Timer::Choose, core.now_us());
        self.leading.as_ref().filter(|_| is_due).map(|leading| leading.view)
    }

    /// Leads the others on, when it is time and the view has not passed; the NEW-VIEW that they are to get.
    pub(crate) fn lead_on(&mut self, core: &mut Core, roster: &Roster) -> Option<Arc<NewView>> {
        let now_us = core.now_us();
        let next_us = now_us + core.ledger.configuration.retransmission_us / 2;
        let leading = self.leading.as_ref()?;
        if let Some(new_view) = leading.new_view.clone() {
            core.ledger.timers.set(Timer::Choose, next_us);
            core.ledger.send(To::Others, Message::NewView(new_view));
            return None;
        }
        let new_view = self.lead(core, roster, leading.view);
        let choose_us = core.ledger.timers.at_us(Timer::Choose).unwrap_or(0);
        core.ledger.timers.set(Timer::Choose, choose_us.max(next_us));
        new_view
    }
}
