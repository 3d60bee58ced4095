//! When a machine wants another view (rule JustifiedChange): requests that wait too long, a primary whose counter was
//! restarted, a machine that is to be admitted again (rule AdmittedEpochs). Waiting times double with each change, and
//! come back slowly.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::To;
use crate::configuration::{Mutant, is_replica};
use crate::identifiers::{MachineId, Order, View};
use crate::message::Request;
use crate::minbft::history::ANSWER_BYTES_MAX;
use crate::minbft::messages::Message;
use crate::minbft::start_messages::Hello;
use crate::minbft::verification::FETCH_REQUESTS_MAX;
use crate::minbft::view_messages::RequestViewChange;
use crate::minbft::{Machine, Output};

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

/// What makes this machine want another view, and what others want.
#[derive(Debug, Default)]
pub(crate) struct Suspicion {
    /// How often the waiting time has doubled.
    doublings: u32,
    /// Since when something waits and nothing is decided, monotonic.
    waiting_us: Option<u64>,
    /// What was decided at the last look.
    mark: (Order, u64),
    /// What waits was passed on to the primary.
    is_forwarded: bool,
    /// Until when nothing is passed on although others are decided, monotonic.
    passed_on_us: u64,
    /// The view that we want, and until when, monotonic.
    wish: Option<(View, u64)>,
    /// When to say so again, monotonic.
    repeat_us: u64,
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
    pub(crate) fn entered(&mut self, now_us: u64, base_us: u64) {
        self.waiting_us = None;
        self.wish = None;
        self.is_forwarded = false;
        self.is_admitting = false;
        self.calm_us = now_us.saturating_add(CALM_FACTOR * base_us);
    }
}

impl Machine {
    /// How long to wait for the primary now, in microseconds.
    pub(crate) fn patience_us(&self) -> u64 {
        self.configuration.request_us << self.suspicion.doublings
    }

    /// Looks whether anything waits; after each step.
    pub(crate) fn watch(&mut self) {
        let Some(live) = self.live.as_ref().filter(|_| self.configuration.has_replicas()) else {
            return;
        };
        let decided: u64 = live.groups.iter().map(|group| group.decided.0).sum();
        let mark = (self.history.point.order, decided);
        let is_waiting = self.bodies.pending_count() > 0 || !live.stream.slots.is_empty();
        let suspicion = &mut self.suspicion;
        if !is_waiting {
            suspicion.waiting_us = None;
        } else if suspicion.waiting_us.is_none() || suspicion.mark != mark {
            suspicion.waiting_us = Some(self.now.monotonic_us);
            suspicion.is_forwarded = false;
        }
        suspicion.mark = mark;
    }

    /// When `suspicion_timer` has something to do.
    pub(crate) fn suspicion_deadline(&self) -> u64 {
        let suspicion = &self.suspicion;
        let patience_us = self.patience_us();
        let repeat_us = suspicion.wish.map_or(u64::MAX, |_| suspicion.repeat_us);
        if self.live.is_none() {
            return repeat_us;
        }
        let stalled_us = suspicion.waiting_us.map_or(u64::MAX, |waiting_us| {
            let share_us = if suspicion.is_forwarded {
                patience_us
            } else {
                patience_us / 2
            };
            waiting_us.saturating_add(share_us)
        });
        let starved_us = self.starved_us().unwrap_or(u64::MAX);
        let pass_on_us = self.pass_on_us().unwrap_or(u64::MAX);
        repeat_us.min(stalled_us).min(starved_us).min(pass_on_us)
    }

    /// When the request that has waited longest has waited too long.
    fn starved_us(&self) -> Option<u64> {
        let oldest_us = self.bodies.oldest_us().filter(|_| self.configuration.has_replicas())?;
        Some(oldest_us.saturating_add(STARVED_FACTOR * self.patience_us()))
    }

    /// When to pass on the request that has waited longest, although others are decided: the primary may lack it.
    fn pass_on_us(&self) -> Option<u64> {
        let is_follower = self.live.as_ref().is_some_and(|live| live.leading.is_none());
        let passes_on = is_follower && self.configuration.has_replicas();
        let oldest_us = self.bodies.oldest_us().filter(|_| passes_on)?;
        let due_us = oldest_us.saturating_add(PASS_ON_FACTOR * self.patience_us());
        Some(due_us.max(self.suspicion.passed_on_us))
    }

    pub(crate) fn suspicion_timer(&mut self, out: &mut Vec<Output>) {
        let now_us = self.now.monotonic_us;
        self.repeat_wish(out);
        let Some(live) = &self.live else { return };
        let view = live.view;
        if self.suspicion.calm_us <= now_us {
            self.suspicion.doublings = self.suspicion.doublings.saturating_sub(1);
            self.suspicion.calm_us = now_us.saturating_add(CALM_FACTOR * self.configuration.request_us);
        }
        if self.suspicion_deadline() > now_us {
            return;
        }
        let patience_us = self.patience_us();
        self.forget_decided();
        if self.pass_on_us().is_some_and(|pass_on_us| pass_on_us <= now_us) {
            self.suspicion.passed_on_us = now_us.saturating_add(PASS_ON_FACTOR * patience_us);
            self.forward_pending(out);
        }
        let starved = self.starved_us().is_some_and(|starved_us| starved_us <= now_us);
        if starved {
            let since_us = now_us.saturating_sub(STARVED_FACTOR * patience_us);
            self.bodies.renew_older(since_us, now_us);
        }
        let Some(waiting_us) = self.suspicion.waiting_us else {
            return;
        };
        if self.journal.is_busy() && !starved {
            // Our own log or counter is slow: that is not the primary's fault.
            if waiting_us.saturating_add(patience_us / 2) <= now_us {
                self.suspicion.waiting_us = Some(now_us);
            }
            return;
        }
        let stalled = waiting_us.saturating_add(patience_us) <= now_us;
        if stalled || starved {
            self.suspicion.is_admitting = false;
            self.suspicion.waiting_us = Some(now_us);
            self.suspicion.is_forwarded = false;
            self.want(View(view.0 + 1), out);
        } else if !self.suspicion.is_forwarded && waiting_us.saturating_add(patience_us / 2) <= now_us {
            self.suspicion.is_forwarded = true;
            self.forward_pending(out);
        }
    }

    /// Requests that can never run any more (their number is decided) do not wait.
    fn forget_decided(&mut self) {
        let clients = &self.clients;
        let decided: Vec<_> = self
            .bodies
            .pending_in_order()
            .filter(|(_, request)| !clients.is_new(request.client, request.number, request.floor))
            .map(|(digest, _)| *digest)
            .collect();
        for digest in decided {
            self.bodies.take(&digest);
        }
    }

    /// Passes on to the primary what it seems not to have: a client may have sent it to replicas only.
    pub(crate) fn forward_pending(&mut self, out: &mut Vec<Output>) {
        let keeps = self.configuration.is(Mutant::KeepRequests);
        let Some(live) = self.live.as_ref().filter(|live| live.leading.is_none() && !keeps) else {
            return;
        };
        let (mut bytes, mut requests): (usize, Vec<Arc<Request>>) = (0, Vec::new());
        for (_, request) in self.bodies.pending_in_order().take(FETCH_REQUESTS_MAX) {
            bytes += request.operation.len();
            requests.push(request.clone());
            if bytes >= ANSWER_BYTES_MAX {
                break;
            }
        }
        if !requests.is_empty() {
            self.send(To::Machine(live.primary), Message::GiveRequests(requests), out);
        }
    }

    /// Wants a view, for as long as the waiting time.
    pub(crate) fn want(&mut self, view: View, out: &mut Vec<Output>) {
        if !self.configuration.has_replicas() {
            return;
        }
        let now_us = self.now.monotonic_us;
        let until_us = now_us.saturating_add(self.patience_us());
        let view = self.suspicion.wish.map_or(view, |(wanted, _)| wanted.max(view));
        self.suspicion.wish = Some((view, until_us));
        self.suspicion.repeat_us = now_us;
        self.repeat_wish(out);
    }

    fn repeat_wish(&mut self, out: &mut Vec<Output>) {
        let now_us = self.now.monotonic_us;
        let Some((view, until_us)) = self.suspicion.wish else {
            return;
        };
        if self.suspicion.repeat_us > now_us {
            return;
        }
        if until_us < now_us || self.current_view().is_some_and(|current| current >= view) {
            self.suspicion.wish = None;
            return;
        }
        self.suspicion.repeat_us = now_us + self.configuration.retransmission_us;
        let machine = self.configuration.machine;
        let request = RequestViewChange {
            machine,
            view,
            signature: self.sign(&RequestViewChange::digest(machine, view)),
        };
        self.send(To::Others, Message::RequestViewChange(request.clone()), out);
        self.on_request_view_change(&request, out);
    }

    /// The view that we go to does not come: wants the next one. Tells how long to wait for that.
    pub(crate) fn give_up(&mut self, wanted: View, out: &mut Vec<Output>) -> u64 {
        let patience_us = self.patience_us();
        if self.runs.is_admitted() {
            self.want(wanted, out);
        }
        patience_us
    }

    pub(crate) fn on_request_view_change(&mut self, request: &RequestViewChange, out: &mut Vec<Output>) {
        self.learn_wish(request);
        self.count_wishes(out);
        let is_late = self.live.as_ref().is_some_and(|live| live.view >= request.view);
        if is_late {
            self.tell_live(request.machine, out);
        }
    }

    pub(crate) fn learn_wish(&mut self, request: &RequestViewChange) {
        let now_us = self.now.monotonic_us;
        let known = self.suspicion.wishes.get(&request.machine);
        let is_news = known.is_none_or(|(known, at_us)| {
            known.view <= request.view || at_us.saturating_add(self.wish_lasts_us()) < now_us
        });
        if is_news {
            self.suspicion.wishes.insert(request.machine, (request.clone(), now_us));
        }
    }

    fn wish_lasts_us(&self) -> u64 {
        self.patience_us().saturating_mul(4)
    }

    /// f+1 machines want a higher view: one of them is correct, so it is worth leaving (rule JustifiedChange).
    pub(crate) fn count_wishes(&mut self, out: &mut Vec<Output>) {
        let (now_us, lasts_us) = (self.now.monotonic_us, self.wish_lasts_us());
        let fresh = |(_, at_us): &&(RequestViewChange, u64)| at_us.saturating_add(lasts_us) >= now_us;
        let requests: Vec<_> = self
            .suspicion
            .wishes
            .values()
            .filter(fresh)
            .map(|(request, _)| request.clone())
            .collect();
        let mut views: Vec<View> = requests.iter().map(|request| request.view).collect();
        views.sort_unstable_by(|left, right| right.cmp(left));
        let others = if self.configuration.is(Mutant::LeaveAlone) {
            0
        } else {
            usize::from(self.configuration.faults.0)
        };
        let Some(view) = views.get(others).copied() else {
            return;
        };
        let justifying = requests.into_iter().filter(|request| request.view >= view);
        self.change_view(view, justifying.collect(), out);
    }

    /// A machine announces itself although a view is live: it was restarted (rule AdmittedEpochs), or does not know.
    pub(crate) fn on_late_hello(&mut self, hello: &Hello, out: &mut Vec<Output>) {
        if self.lost_counters() > usize::from(self.configuration.faults.0) {
            self.abandon_view(out);
            return;
        }
        self.tell_live(hello.machine, out);
        let Some(live) = &self.live else { return };
        let (view, primary, machine) = (live.view, live.primary, hello.machine);
        let known = live.proof.outcome.admission(machine).map(|admission| admission.epoch);
        let is_newer = known.is_none_or(|known| known < hello.admission.epoch);
        let is_beyond = hello.view > Some(view);
        if !(is_newer || is_beyond) || !self.configuration.has_replicas() {
            return;
        }
        if machine == primary {
            self.want(View(view.0 + 1), out);
        } else if is_replica(machine) && self.may_return(machine) {
            // The same candidate goes on leading; above an attempt to start that the machine takes part in.
            let machines = u64::from(self.configuration.machines());
            let ahead = hello.view.map_or(0, |other| other.0.saturating_sub(view.0) / machines);
            self.suspicion.is_admitting = true;
            self.want(View(view.0 + machines * (1 + ahead.min(VIEWS_AHEAD_MAX))), out);
        }
    }

    /// How many replica machines have said that they cannot come back to the last view that went live, as far as we know:
    /// it does not admit their epochs.
    fn lost_counters(&self) -> usize {
        let joining = self.changing.as_ref().and_then(|changing| changing.proof.as_ref());
        let last = self
            .live
            .as_ref()
            .map(|live| &live.proof)
            .or(joining)
            .or(self.start.last_live.as_ref());
        let Some(proof) = last else { return 0 };
        let is_lost = |hello: &&std::sync::Arc<Hello>| {
            let known = proof.outcome.admission(hello.machine).map(|admission| admission.epoch);
            // Who takes part in an attempt to start a higher view does not come back to this one either.
            let is_beyond = hello.view > Some(proof.outcome.view);
            is_replica(hello.machine) && (is_beyond || known.is_none_or(|known| known < hello.admission.epoch))
        };
        self.start.hellos.values().filter(is_lost).count()
    }

    /// Whether a machine may cause a view change now; each time the pause doubles.
    fn may_return(&mut self, machine: MachineId) -> bool {
        let (now_us, base_us) = (self.now.monotonic_us, self.configuration.request_us);
        let (next_us, pause_us) = self
            .suspicion
            .returning
            .get(&machine)
            .copied()
            .unwrap_or((0, 2 * base_us));
        if now_us < next_us {
            return false;
        }
        let was_calm = now_us > next_us.saturating_add(pause_us.saturating_mul(CALM_FACTOR));
        let pause_us = if was_calm { 2 * base_us } else { pause_us };
        let doubled_us = (2 * pause_us).min(RETURN_FACTOR_MAX * base_us);
        self.suspicion
            .returning
            .insert(machine, (now_us.saturating_add(pause_us), doubled_us));
        true
    }
}
