//! Leaving a view, and gathering who else has left it.

use std::sync::Arc;

use crate::agreement::To;
use crate::configuration::Mutant;
use crate::identifiers::View;
use crate::pbft::core::Core;
use crate::pbft::phase::Phase;
use crate::pbft::views::Views;
use crate::pbft::wire::change::{NewView, RequestViewChange, ViewChange};
use crate::pbft::wire::message::Message;
use crate::timers::Timer;

impl Views {
    /// Leaves the view for a higher one.
    pub(super) fn leave_view(&mut self, core: &mut Core, view: View, requests: Vec<RequestViewChange>) {
        if view <= core.view() {
            return;
        }
        core.patience.double();
        self.forget_wishes(core, view);
        self.view_changes.retain(|_, view_change| view_change.view >= view);
        core.ledger.timers.stop(Timer::Clock);
        self.phase = Phase::Changing(view);
        core.log_leaving(view, requests);
    }

    /// That we have left is durable: now it may be said.
    pub(crate) fn on_left(&mut self, core: &mut Core, view: View) {
        if !matches!(self.phase, Phase::Changing(to) if to == view) {
            return;
        }
        let mut view_change = ViewChange {
            machine: core.own(),
            view,
            requests: core.logged.requests.clone(),
            stable: core.window.low.clone(),
            prepared: core.window.certificates.values().cloned().collect(),
            signature: [0; 64],
        };
        view_change.signature = core.ledger.sign(&view_change.digest());
        let view_change = Arc::new(view_change);
        self.view_changes.insert(core.own(), Arc::clone(&view_change));
        core.ledger.send(To::Others, Message::ViewChange(view_change));
        self.gather(core);
    }

    /// Sends the own VIEW-CHANGE again.
    pub(crate) fn send_view_change_again(&self, core: &mut Core) {
        if core.ledger.configuration.is(Mutant::PbftSayOnce) {
            return;
        }
        if let Some(own) = self.view_changes.get(&core.own()) {
            core.ledger.send(To::Others, Message::ViewChange(Arc::clone(own)));
        }
    }

    pub(crate) fn on_view_change(&mut self, core: &mut Core, view_change: &Arc<ViewChange>) {
        let (machine, view) = (view_change.machine, view_change.view);
        if view < core.view() || self.phase.live_in(view).is_some() {
            self.help_into_view(core, machine);
            return;
        }
        let known = self.view_changes.get(&machine);
        if known.is_some_and(|known| known.view > view) {
            return;
        }
        self.view_changes.insert(machine, Arc::clone(view_change));
        // Its sender has shown why.
        self.leave_view(core, view, view_change.requests.clone());
        self.gather(core);
    }

    /// Watches whether 2f+1 want the view; its primary begins it then.
    fn gather(&mut self, core: &mut Core) {
        let (own, quorum) = (core.own(), core.quorum());
        let Phase::Changing(view) = self.phase else { return };
        let is_out = self.view_changes.get(&own).is_some_and(|own| own.view == view);
        // For this view or a higher one: no other is kept.
        if !is_out || self.view_changes.len() < quorum {
            return;
        }
        if !core.ledger.timers.is_set(Timer::NextView) && !self.wishes.is_wanting {
            let expires_us = core.now_us().saturating_add(core.patience_us());
            core.ledger.timers.set(Timer::NextView, expires_us);
        }
        if core.primary() != own {
            return;
        }
        let view_changes = self.view_changes.values().filter(|change| change.view == view);
        let view_changes: Vec<_> = view_changes.cloned().collect();
        if view_changes.len() < quorum {
            return;
        }
        let mut new_view = NewView {
            view,
            view_changes: fitting(view_changes, quorum, core.ledger.configuration.message_bytes_max),
            signature: [0; 64],
        };
        new_view.signature = core.ledger.sign(&new_view.digest());
        self.begin_view(core, &Arc::new(new_view));
    }

    /// The new view did not begin in time.
    pub(crate) fn view_timer(&mut self, core: &mut Core) {
        if core.is_due(Timer::NextView) {
            core.ledger.timers.stop(Timer::NextView);
            self.want(core);
        }
    }
}

/// A quorum of VIEW-CHANGEs, and as many more as fit into one message, the shortest first.
fn fitting(mut view_changes: Vec<Arc<ViewChange>>, quorum: usize, bytes_max: usize) -> Vec<Arc<ViewChange>> {
    let length = |view_change: &Arc<ViewChange>| borsh::object_length(view_change.as_ref()).unwrap_or(usize::MAX);
    view_changes.sort_by_key(length);
    let mut bytes: usize = view_changes.iter().map(length).sum();
    while view_changes.len() > quorum && bytes > bytes_max {
        bytes -= view_changes.pop().as_ref().map_or(0, length);
    }
    view_changes.sort_by_key(|view_change: &Arc<ViewChange>| view_change.machine);
    view_changes
}
