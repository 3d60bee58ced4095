//! Lost messages: a machine that has got no further for a while says what it has, and the others send it what it lacks.

use std::sync::Arc;

use crate::agreement::To;
use crate::configuration::{FETCH_REQUESTS_MAX, Mutant};
use crate::identifiers::{MachineId, Order};
use crate::ledger::ANSWER_BYTES_MAX;
use crate::message::Request;
use crate::minbft::core::Core;
use crate::minbft::live::Live;
use crate::minbft::live::group::Group;
use crate::minbft::wire::message::{Message, Standing};
use crate::timers::Timer;

/// PREPAREs, and COMMITs of one group, that are sent again at once.
const RESEND_MAX: usize = 64;

/// Ticks between two STATUS messages of a machine that lacks nothing it knows of.
const IDLE_TICKS: u64 = 10;

/// Ticks without progress after which history is fetched instead of single messages.
const STALLED_TICKS: u32 = 3;

impl Live {
    /// Does what a timer is due for.
    pub(crate) fn on_timers(&mut self, core: &mut Core) {
        let now_us = core.now_us();
        if core.ledger.timers.is_due(Timer::Bodies, now_us) {
            ask_for_bodies(self, core);
        }
        if core.ledger.timers.is_due(Timer::Resend, now_us) {
            resend(self, core);
        }
        if core.ledger.timers.is_due(Timer::Idle, now_us) {
            core.ledger.timers.stop(Timer::Idle);
            // So a later start has little to carry.
            if core.ledger.history.point.order > core.ledger.checkpoints.signed {
                self.sign_checkpoint(core);
            }
        }
        if core.ledger.timers.is_due(Timer::Tick, now_us) {
            self.tick(core);
        }
    }

    /// Looks whether anything is stuck, and says what it has.
    fn tick(&mut self, core: &mut Core) {
        let next_us = core.now_us() + core.ledger.configuration.retransmission_us;
        core.ledger.timers.set(Timer::Tick, next_us);
        self.ticks += 1;
        if core.is_sequencer() {
            return;
        }
        let peers = self.groups.iter().flat_map(|group| group.peers.values());
        let followed: u64 = peers.map(|peer| peer.value).sum();
        let mark = (self.stream.value, core.ledger.history.point.order, followed);
        let is_outstanding = is_outstanding(self) || core.ledger.checkpoints.ahead.is_some();
        let is_stuck = is_outstanding && mark == self.mark;
        self.mark = mark;
        self.stalled = if is_stuck { self.stalled.saturating_add(1) } else { 0 };
        if self.stalled > 0 || self.ticks % IDLE_TICKS == u64::from(core.own().0) % IDLE_TICKS {
            send_standing(self, core);
        }
        if self.stalled >= STALLED_TICKS {
            if self.stalled.is_multiple_of(STALLED_TICKS) {
                // The peer that claimed to have more may have lied. If it did not, its next STATUS claims it again.
                self.is_behind = false;
            }
            let ahead = core.ledger.checkpoints.ahead.as_ref().map(|ahead| ahead.point);
            if let Some(target) = ahead.filter(|target| target.view <= self.view) {
                core.ledger.fetch_history(target.order);
            }
        }
        // Our last checkpoint may have got lost when it is not stable for long.
        let is_idle = self.ticks.is_multiple_of(IDLE_TICKS) && !core.ledger.timers.is_set(Timer::Idle);
        let is_unstable = core.ledger.history.point.order > core.ledger.checkpoints.point().order;
        if is_unstable && (is_idle || self.stalled >= STALLED_TICKS) {
            self.sign_checkpoint(core);
        }
    }

    /// Sends again what a machine in the same view lacks of ours.
    pub(crate) fn on_standing(&mut self, core: &mut Core, from: MachineId, standing: &Standing) {
        let mut messages = Vec::new();
        let followed = standing.commits.first().copied().unwrap_or(u64::MAX);
        let (value, joining) = &self.joining;
        if followed < *value {
            messages.extend(joining.iter().cloned());
        }
        if standing.prepares_wanted {
            let leading = self.leading.iter();
            let issued = leading.flat_map(|leading| leading.issued_after(standing.prepares));
            messages.extend(issued.take(RESEND_MAX).cloned().map(Message::Prepare));
            if messages.is_empty() {
                let kept = self.stream.kept_after(standing.prepares);
                messages.extend(kept.take(RESEND_MAX).cloned().map(Message::Prepare));
            }
        }
        for (group, value) in self.groups.iter().zip(&standing.commits) {
            messages.extend(group.kept_after(*value).take(RESEND_MAX).cloned().map(Message::Commit));
        }
        let reached: Order = core.ledger.history.point.order;
        if standing.decided > reached || standing.prepares > self.stream.value {
            self.is_behind = true;
        }
        let stable = core.ledger.checkpoints.stable.as_ref();
        let news = stable.filter(|stable| stable.point.order > standing.stable).cloned();
        messages.extend(news.map(Message::Stable));
        for message in messages {
            core.ledger.send(To::Machine(from), message);
        }
    }

    /// Passes on to the primary what it seems not to have: a client may have sent it to replicas only.
    pub(crate) fn forward_pending(&self, core: &mut Core) {
        if self.leading.is_some() || core.ledger.configuration.is(Mutant::KeepRequests) {
            return;
        }
        let (mut bytes, mut requests): (usize, Vec<Arc<Request>>) = (0, Vec::new());
        for (_, request) in core.ledger.bodies.pending_in_order().take(FETCH_REQUESTS_MAX) {
            bytes += request.operation.len();
            requests.push(Arc::clone(request));
            if bytes >= ANSWER_BYTES_MAX {
                break;
            }
        }
        if !requests.is_empty() {
            core.ledger
                .send(To::Machine(self.primary), Message::GiveRequests(requests));
        }
    }
}

/// Asks for bodies that were ordered and did not come: the primary first, then the replicas in turn.
fn ask_for_bodies(live: &Live, core: &mut Core) {
    let (primary, own) = (live.primary, core.own());
    let replicas = u32::from(core.ledger.configuration.replicas());
    let peer = |asked: u32| {
        let turn = (asked + u32::from(own.0)) % replicas;
        let replica = MachineId(u8::try_from(turn).unwrap_or(0) + 1);
        let asks_primary = asked.is_multiple_of(2) || replica == own;
        if asks_primary { primary } else { replica }
    };
    let next_us = core.ledger.ask_for_bodies(peer);
    core.ledger.timers.set_or_stop(Timer::Bodies, next_us);
}

/// The primary: sends batches in flight again that f+1 replicas do not get on with.
fn resend(live: &Live, core: &mut Core) {
    let Some(leading) = live.leading.as_ref() else { return };
    let prepares: Vec<_> = leading.outstanding().take(RESEND_MAX).cloned().collect();
    let next_us = core.now_us() + core.ledger.configuration.retransmission_us;
    let next_us = (!prepares.is_empty()).then_some(next_us);
    core.ledger.timers.set_or_stop(Timer::Resend, next_us);
    for prepare in prepares {
        core.ledger.send(To::Replicas, Message::Prepare(prepare));
    }
}

/// Whether something that was begun is not done.
fn is_outstanding(live: &Live) -> bool {
    let has_gap = |group: &Group| group.peers.values().any(|peer| peer.has_gap());
    live.is_behind || !live.stream.slots.is_empty() || live.stream.has_gap() || live.groups.iter().any(has_gap)
}

/// Tells every other machine what we have of its messages.
fn send_standing(live: &Live, core: &mut Core) {
    let own = core.own();
    // One machine at a time is asked for PREPAREs: the primary, in every other round a replica in turn.
    let turn = live.ticks / 2 % u64::from(core.ledger.configuration.replicas()) + 1;
    let replica = MachineId(u8::try_from(turn).unwrap_or(1));
    let asks_replica = live.ticks.is_multiple_of(2) && replica != own;
    let asked = if asks_replica { replica } else { live.primary };
    for machine in (0..core.ledger.configuration.machines()).map(MachineId) {
        let followed = |group: &Group| group.peers.get(&machine).map_or(0, |peer| peer.value);
        let standing = Standing {
            view: live.view,
            prepares_wanted: machine == asked,
            prepares: live.stream.value,
            commits: live.groups.iter().map(followed).collect(),
            decided: core.ledger.history.point.order,
            stable: core.ledger.checkpoints.point().order,
        };
        core.ledger.send(To::Machine(machine), Message::Standing(standing));
    }
}
