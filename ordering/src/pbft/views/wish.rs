//! REQ-VIEW-CHANGE: who wants another view.

use std::collections::BTreeMap;

use crate::agreement::To;
use crate::identifiers::{MachineId, View};
use crate::pbft::core::Core;
use crate::pbft::phase::Phase;
use crate::pbft::views::Views;
use crate::pbft::wire::change::RequestViewChange;
use crate::pbft::wire::message::Message;

/// How long a REQ-VIEW-CHANGE counts, in retransmission intervals: it is sent in each.
const FRESH_INTERVALS: u64 = 10;

/// Who wants another view.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// We want the next view; said again until there is no reason, or the view is left.
    pub(crate) is_wanting: bool,
    /// Which view each machine wants, and when it said so last; monotonic.
    requests: BTreeMap<MachineId, (RequestViewChange, u64)>,
}

impl Wishes {
    /// Forgets what does not matter in this view.
    pub(crate) fn forget(&mut self, view: View) {
        self.is_wanting = false;
        self.requests.retain(|_, (request, _)| request.view > view);
    }

    /// What machines have said lately: who has got over it says it no longer.
    fn fresh(&self, core: &Core) -> impl Iterator<Item = &RequestViewChange> {
        let interval_us = core.ledger.configuration.retransmission_us;
        let since_us = core
            .now_us()
            .saturating_sub(interval_us.saturating_mul(FRESH_INTERVALS));
        let requests = self.requests.values();
        requests
            .filter(move |(_, said_us)| *said_us >= since_us)
            .map(|(request, _)| request)
    }

    /// The highest view that f+1 machines want.
    fn wanted_view(&self, core: &Core) -> Option<View> {
        let mut views: Vec<View> = self.fresh(core).map(|request| request.view).collect();
        views.sort_unstable_by(|left, right| right.cmp(left));
        views.get(usize::from(core.ledger.configuration.faults.0)).copied()
    }
}

impl Views {
    /// Wants the next view, and says so.
    pub(crate) fn want(&mut self, core: &mut Core) {
        self.wishes.is_wanting = true;
        let request = core.request_view_change(View(core.view().0 + 1));
        core.ledger
            .send(To::Others, Message::RequestViewChange(request.clone()));
        self.on_request_view_change(core, request);
    }

    /// Says again that we want the next view, if there is still a reason.
    pub(crate) fn want_again(&mut self, core: &mut Core) {
        let has_reason = match &self.phase {
            Phase::Live(live) => live.is_accused() || live.is_starved(core),
            Phase::Waiting(_) | Phase::Changing(_) => true,
        };
        if self.wishes.is_wanting && has_reason {
            self.want(core);
        } else {
            self.wishes.is_wanting = false;
        }
    }

    /// Forwards what the primary seems to lack, and deposes it when that does not help.
    pub(crate) fn waiting_timer(&mut self, core: &mut Core) {
        let Phase::Live(live) = &self.phase else { return };
        live.forward(core);
        if !self.wishes.is_wanting && live.is_starved(core) {
            self.want(core);
        }
    }

    /// When to look at the requests that wait.
    pub(crate) fn waiting_deadline(&self, core: &Core) -> Option<u64> {
        let live = self.phase.live()?;
        // Once we want another primary, the tick looks whether we still do.
        let expiry_us = live.expiry_us(core).filter(|_| !self.wishes.is_wanting);
        live.forward_us(core).into_iter().chain(expiry_us).min()
    }

    pub(crate) fn on_request_view_change(&mut self, core: &mut Core, request: RequestViewChange) {
        let (machine, current) = (request.machine, core.view());
        if request.view <= current {
            self.help_into_view(core, machine);
            return;
        }
        self.wishes.requests.insert(machine, (request, core.now_us()));
        let resigns = core.primary() == machine && self.phase.live().is_some();
        let view = if resigns {
            Some(View(current.0 + 1))
        } else {
            self.wishes.wanted_view(core)
        };
        if let Some(view) = view.filter(|view| *view > current) {
            let requests = self.wishes.fresh(core).filter(|request| request.view >= view);
            let requests = requests.cloned().collect();
            self.leave_view(core, view, requests);
        }
    }
}
