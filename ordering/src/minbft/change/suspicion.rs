//! When a machine wants another view (rule JustifiedChange): requests that wait too long, a primary whose counter was
//! restarted, a machine that is to be admitted again (rule AdmittedEpochs). Waiting times double with each change, and
//! come back slowly.

use std::collections::BTreeMap;

use crate::agreement::To;
use crate::configuration::{Mutant, is_replica};
use crate::identifiers::{MachineId, Order, View};
use crate::minbft::core::Core;
use crate::minbft::live::Live;
use crate::minbft::wire::change::RequestViewChange;
use crate::minbft::wire::message::Message;
use crate::minbft::wire::start::Hello;
use crate::timers::Timer;

/// How often waiting times double at most.
const DOUBLINGS_MAX: u32 = 6;

/// A request may wait this many times longer than the whole stream may stand still: others are ordered meanwhile.
const STARVED_FACTOR: u64 = 8;

/// A request that waits so many waiting times while others are decided is passed on to the primary, again and again.
const PASS_ON_FACTOR: u64 = 2;

/// After this many base times of good service, waiting times halve once.
const CALM_FACTOR: u64 = 16;

/// A machine that returns again and again causes a view change at most this often, in base times.
const RETURN_FACTOR_MAX: u64 = 128;

/// How far above the live view a returning machine may pull the others, in rounds of all candidates: it may lie.
const VIEWS_AHEAD_MAX: u64 = 16;

/// The reasons for which this machine wants another view, and the views that other machines want.
#[derive(Debug, Default)]
pub(crate) struct Suspicion {
    /// How often the waiting time has doubled.
    doublings: u32,
    /// Since when something waits and nothing is decided, monotonic.
    waiting_us: Option<u64>,
    /// The progress at the last look.
    mark: (Order, u64),
    /// Whether the requests that wait were passed on to the primary.
    is_forwarded: bool,
    /// Until when nothing is passed on although others are decided, monotonic.
    passed_on_us: u64,
    /// The view that we want, and until when, monotonic.
    wish: Option<(View, u64)>,
    /// When the waiting time halves, monotonic.
    calm_us: u64,
    /// The view is to be left for a machine that returns, and not for what its primary did.
    is_admitting: bool,
    /// The last wish of each machine, and when it came.
    wishes: BTreeMap<MachineId, (RequestViewChange, u64)>,
    /// Per machine that wanted to be admitted again: when it may cause the next change, and the pause after that.
    returning: BTreeMap<MachineId, (u64, u64)>,
}

impl Suspicion {
    /// A view was left: waiting times double, unless it served well. (Else a machine that was restarted would slow down the
    /// next change that is needed.)
    pub(crate) fn left(&mut self) {
        if !std::mem::take(&mut self.is_admitting) {
            self.doublings = (self.doublings + 1).min(DOUBLINGS_MAX);
        }
        self.waiting_us = None;
    }

    /// A view begins.
    pub(crate) fn entered(&mut self, core: &mut Core) {
        self.waiting_us = None;
        self.forget_wish(core);
        self.is_forwarded = false;
        self.is_admitting = false;
        let calm_us = CALM_FACTOR * core.ledger.configuration.request_us;
        self.calm_us = core.now_us().saturating_add(calm_us);
    }

    /// How long to wait for the primary now, in microseconds.
    pub(crate) fn patience_us(&self, core: &Core) -> u64 {
        core.ledger.configuration.request_us << self.doublings
    }

    /// Looks whether anything waits; a replica does after each step in a view.
    pub(crate) fn watch(&mut self, core: &Core, live: &Live) {
        let decided: u64 = live.groups.iter().map(|group| group.decided.0).sum();
        let mark = (core.ledger.history.point.order, decided);
        let is_waiting = core.ledger.bodies.pending_count() > 0 || !live.stream.slots.is_empty();
        if !is_waiting {
            self.waiting_us = None;
        } else if self.waiting_us.is_none() || self.mark != mark {
            self.waiting_us = Some(core.now_us());
            self.is_forwarded = false;
        }
        self.mark = mark;
    }

    /// When [`Suspicion::look`] has something to do.
    pub(crate) fn deadline(&self, core: &Core, live: &Live) -> Option<u64> {
        let patience_us = self.patience_us(core);
        let share_us = if self.is_forwarded {
            patience_us
        } else {
            patience_us / 2
        };
        let stalled_us = self.waiting_us.map(|waiting_us| waiting_us.saturating_add(share_us));
        let due = stalled_us.into_iter().chain(self.starved_us(core));
        due.chain(self.pass_on_us(core, live)).min()
    }

    /// When the request that has waited longest has waited too long.
    fn starved_us(&self, core: &Core) -> Option<u64> {
        let oldest_us = core.ledger.bodies.oldest_us().filter(|_| !core.is_sequencer())?;
        Some(oldest_us.saturating_add(STARVED_FACTOR * self.patience_us(core)))
    }

    /// When to pass on the request that has waited longest, although others are decided: the primary may lack it.
    fn pass_on_us(&self, core: &Core, live: &Live) -> Option<u64> {
        let passes_on = live.leading.is_none() && !core.is_sequencer();
        let oldest_us = core.ledger.bodies.oldest_us().filter(|_| passes_on)?;
        let due_us = oldest_us.saturating_add(PASS_ON_FACTOR * self.patience_us(core));
        Some(due_us.max(self.passed_on_us))
    }

    /// Looks at what waits: passes on to the primary what it may lack. Whether another view is wanted.
    pub(crate) fn look(&mut self, core: &mut Core, live: &Live) -> bool {
        let now_us = core.now_us();
        if self.calm_us <= now_us {
            self.doublings = self.doublings.saturating_sub(1);
            self.calm_us = now_us.saturating_add(CALM_FACTOR * core.ledger.configuration.request_us);
        }
        if self.deadline(core, live).is_none_or(|deadline_us| deadline_us > now_us) {
            return false;
        }
        let patience_us = self.patience_us(core);
        forget_decided(core);
        if self
            .pass_on_us(core, live)
            .is_some_and(|pass_on_us| pass_on_us <= now_us)
        {
            self.passed_on_us = now_us.saturating_add(PASS_ON_FACTOR * patience_us);
            live.forward_pending(core);
        }
        let is_starved = self.starved_us(core).is_some_and(|starved_us| starved_us <= now_us);
        if is_starved {
            let since_us = now_us.saturating_sub(STARVED_FACTOR * patience_us);
            core.ledger.bodies.renew_older(since_us, now_us);
        }
        let Some(waiting_us) = self.waiting_us else {
            return false;
        };
        let is_half_over = waiting_us.saturating_add(patience_us / 2) <= now_us;
        if core.is_busy() && !is_starved {
            // Our own log or counter is slow: that is not the primary's fault.
            if is_half_over {
                self.waiting_us = Some(now_us);
            }
            return false;
        }
        let is_stalled = waiting_us.saturating_add(patience_us) <= now_us;
        if is_stalled || is_starved {
            self.is_admitting = false;
            self.waiting_us = Some(now_us);
            self.is_forwarded = false;
            return true;
        }
        if !self.is_forwarded && is_half_over {
            self.is_forwarded = true;
            live.forward_pending(core);
        }
        false
    }

    /// Wants a view, for as long as the waiting time; it is said when the timer [`Timer::Wish`] is looked at.
    pub(crate) fn want(&mut self, core: &mut Core, view: View) {
        let now_us = core.now_us();
        let until_us = now_us.saturating_add(self.patience_us(core));
        let view = self.wish.map_or(view, |(wanted, _)| wanted.max(view));
        self.wish = Some((view, until_us));
        core.ledger.timers.set(Timer::Wish, now_us);
    }

    fn forget_wish(&mut self, core: &mut Core) {
        self.wish = None;
        core.ledger.timers.stop(Timer::Wish);
    }

    /// Says again that another view is wanted, if it is time, and the wish stands. Returns what was said.
    pub(crate) fn say_wish(&mut self, core: &mut Core) -> Option<RequestViewChange> {
        let now_us = core.now_us();
        let (view, until_us) = self.wish?;
        if !core.ledger.timers.is_due(Timer::Wish, now_us) {
            return None;
        }
        if until_us < now_us || core.current_view().is_some_and(|current| current >= view) {
            self.forget_wish(core);
            return None;
        }
        let next_us = now_us + core.ledger.configuration.retransmission_us;
        core.ledger.timers.set(Timer::Wish, next_us);
        let machine = core.own();
        let request = RequestViewChange {
            machine,
            view,
            signature: core.ledger.sign(&RequestViewChange::digest(machine, view)),
        };
        core.ledger
            .send(To::Others, Message::RequestViewChange(request.clone()));
        Some(request)
    }

    /// A machine wants a view.
    pub(crate) fn learn_wish(&mut self, core: &Core, request: &RequestViewChange) {
        let (now_us, lasts_us) = (core.now_us(), self.wish_lasts_us(core));
        let known = self.wishes.get(&request.machine);
        let is_news =
            known.is_none_or(|(known, at_us)| known.view <= request.view || at_us.saturating_add(lasts_us) < now_us);
        if is_news {
            self.wishes.insert(request.machine, (request.clone(), now_us));
        }
    }

    fn wish_lasts_us(&self, core: &Core) -> u64 {
        self.patience_us(core).saturating_mul(4)
    }

    /// The highest view that f+1 machines want, and their requests: one of them is correct, so it is worth leaving (rule
    /// JustifiedChange).
    pub(crate) fn wanted_view(&self, core: &Core) -> Option<(View, Vec<RequestViewChange>)> {
        let (now_us, lasts_us) = (core.now_us(), self.wish_lasts_us(core));
        let fresh = |(_, at_us): &&(RequestViewChange, u64)| at_us.saturating_add(lasts_us) >= now_us;
        let requests = self.wishes.values().filter(fresh).map(|(request, _)| request);
        let mut views: Vec<View> = requests.clone().map(|request| request.view).collect();
        views.sort_unstable_by(|left, right| right.cmp(left));
        let configuration = &core.ledger.configuration;
        let others = if configuration.is(Mutant::LeaveAlone) {
            0
        } else {
            usize::from(configuration.faults.0)
        };
        let view = views.get(others).copied()?;
        let justifying = requests.filter(|request| request.view >= view);
        Some((view, justifying.cloned().collect()))
    }

    /// A machine announces itself although a view is live: it was restarted (rule AdmittedEpochs), or does not know. The
    /// view that a replica wants for that.
    pub(crate) fn view_for_return(&mut self, core: &Core, live: &Live, hello: &Hello) -> Option<View> {
        let (view, machine) = (live.view, hello.machine);
        let known = live.proof.outcome.admission(machine).map(|admission| admission.epoch);
        let is_newer = known.is_none_or(|known| known < hello.admission.epoch);
        let is_beyond = hello.view > Some(view);
        if !(is_newer || is_beyond) || core.is_sequencer() {
            return None;
        }
        if machine == live.primary {
            return Some(View(view.0 + 1));
        }
        if !is_replica(machine) || !self.may_return(core, machine) {
            return None;
        }
        // The same candidate goes on leading; above an attempt to start that the machine takes part in.
        let machines = u64::from(core.ledger.configuration.machines());
        let ahead = hello.view.map_or(0, |other| other.0.saturating_sub(view.0) / machines);
        self.is_admitting = true;
        Some(View(view.0 + machines * (1 + ahead.min(VIEWS_AHEAD_MAX))))
    }

    /// Whether a machine may cause a view change now; each time the pause doubles.
    fn may_return(&mut self, core: &Core, machine: MachineId) -> bool {
        let (now_us, base_us) = (core.now_us(), core.ledger.configuration.request_us);
        let known = self.returning.get(&machine).copied();
        let (next_us, pause_us) = known.unwrap_or((0, 2 * base_us));
        if now_us < next_us {
            return false;
        }
        let was_calm = now_us > next_us.saturating_add(pause_us.saturating_mul(CALM_FACTOR));
        let pause_us = if was_calm { 2 * base_us } else { pause_us };
        let doubled_us = (2 * pause_us).min(RETURN_FACTOR_MAX * base_us);
        self.returning
            .insert(machine, (now_us.saturating_add(pause_us), doubled_us));
        true
    }
}

/// Requests that can never run any more (their number is decided) do not wait.
fn forget_decided(core: &mut Core) {
    let clients = &core.ledger.clients;
    let pending = core.ledger.bodies.pending_in_order();
    let decided = pending.filter(|(_, request)| !clients.lacks(request));
    let decided: Vec<_> = decided.map(|(digest, _)| *digest).collect();
    for digest in decided {
        core.ledger.bodies.take(&digest);
    }
}
