//! A view begins.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::identifiers::View;
use crate::pbft::change::outcome::{Outcome, compute};
use crate::pbft::core::Core;
use crate::pbft::live::Live;
use crate::pbft::live::primary::Primary;
use crate::pbft::phase::Phase;
use crate::pbft::views::Views;
use crate::pbft::window::{End, point_of};
use crate::pbft::wire::change::NewView;
use crate::pbft::wire::message::Message;

impl Views {
    pub(crate) fn on_new_view(&mut self, core: &mut Core, new_view: &Arc<NewView>) {
        let is_news = new_view.view >= core.view() && self.phase.live_in(new_view.view).is_none();
        if is_news {
            self.begin_view(core, new_view);
        }
    }

    pub(super) fn begin_view(&mut self, core: &mut Core, new_view: &Arc<NewView>) {
        let outcome = compute(new_view.view_changes.iter(), &core.ledger.configuration);
        self.enter_view(core, new_view.view, outcome, Some(Arc::clone(new_view)));
    }

    /// Takes part in a view that begins with this outcome.
    pub(super) fn enter_view(&mut self, core: &mut Core, view: View, outcome: Outcome, new_view: Option<Arc<NewView>>) {
        let base = point_of(&outcome.stable);
        if !core.window.is_kept_by(&base, &outcome.batches) {
            // More than f machines are faulty.
            core.ledger.stop(MisbehaviourKind::Contradiction);
            return;
        }
        core.log_entered(view, &outcome);
        core.leave_batches(&outcome.batches);
        // The log may be cut here: what it begins with must know of the view.
        if let Some(stable) = outcome.stable {
            core.take_base(stable);
        }
        self.forget_wishes(core, view);
        self.view_changes.retain(|_, view_change| view_change.view > view);
        let low = core.window.low_point();
        core.window.next = End::after(&base);
        core.window.committing = low.value;
        core.pace.is_behind = false;
        let mut live = Live::new(view, new_view);
        let mut end = End::after(&base);
        for batch in &outcome.batches {
            live.install_again(core, batch, end.assignment);
            end = End::of(batch, end.assignment);
        }
        // We may have fetched more than the view began with: it was decided in this view, or a later one.
        core.window.skip_to(&low);
        core.patience.fresh = core.window.next.number;
        core.patience.progress_us = core.now_us();
        core.waiting.restart(core.now_us());
        if core.primary() == core.own() {
            let queue = core.ledger.bodies.pending_in_order().map(|(digest, _)| *digest);
            live.leading = Some(Primary::new(queue));
        }
        self.phase = Phase::Live(Box::new(live));
        self.accuse(core);
        for (from, message) in self.early.take(view) {
            // One of them may show that this primary is faulty, too: then the rest is for a view that was left.
            self.on_ordered(core, from, message);
        }
    }

    /// That we lead is durable: now the view may begin for everybody.
    pub(crate) fn on_leading(&mut self, core: &mut Core, view: View) {
        let Some(live) = self.phase.live_in(view) else { return };
        let Some(leading) = live.leading.as_mut() else {
            return core.ledger.stop_broken();
        };
        leading.is_ready = true;
        if let Some(new_view) = live.new_view.clone() {
            core.ledger.send(To::Others, Message::NewView(new_view));
        }
    }
}
