//! Lost messages: a machine that has got no further for a while says what it has, and the others send it what it lacks.

use std::sync::Arc;

use crate::agreement::To;
use crate::identifiers::{MachineId, View};
use crate::ledger::serving::Expense;
use crate::pbft::Machine;
use crate::pbft::messages::{Commit, Message, Prepare, Standing};
use crate::pbft::window::Stage;
use crate::timers::Timer;

/// Batches whose messages are sent again at once.
const RESEND_MAX: usize = 32;

/// Ticks between two STATUS messages of a machine that lacks nothing it knows of.
const IDLE_TICKS: u64 = 10;

/// Ticks without progress after which history is fetched instead of single messages.
const STALLED_TICKS: u32 = 3;

/// How far a machine is, to see whether it gets on: view, whether it has begun, decided, accepted, prepared.
type Mark = (View, bool, u64, u64, u64);

/// Whether this machine gets on.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Ticks since the machine was started.
    ticks: u64,
    mark: Mark,
    /// How many ticks in a row nothing was done although something is outstanding.
    stalled: u32,
    /// A peer has more than we do.
    pub(crate) is_behind: bool,
}

impl Machine {
    /// Does what a timer is due for.
    pub(crate) fn on_timers(&mut self) {
        if self.is_due(Timer::Clock) {
            // `accept_proposals` looks again.
            self.ledger.timers.stop(Timer::Clock);
        }
        self.catch_up_timer();
        self.body_timer();
        self.idle_timer();
        self.waiting_timer();
        self.view_timer();
        self.tick();
    }

    pub(crate) fn is_due(&self, timer: Timer) -> bool {
        self.ledger.timers.is_due(timer, self.ledger.now.monotonic_us)
    }

    /// Asks for bodies that were ordered and did not come: the primary first, then all in turn.
    fn body_timer(&mut self) {
        if !self.is_due(Timer::Bodies) {
            return;
        }
        let configuration = &self.ledger.configuration;
        let (own, machines) = (configuration.machine, u32::from(configuration.machines()));
        let primary = configuration.primary(self.view.view);
        let peer = |asked: u32| {
            let turn = (asked / 2 + u32::from(own.0) + 1) % machines;
            let other = MachineId(u8::try_from(turn).unwrap_or(0));
            if asked.is_multiple_of(2) { primary } else { other }
        };
        let next_us = self.ledger.ask_for_bodies(peer);
        self.ledger.timers.set_or_stop(Timer::Bodies, next_us);
    }

    /// Signs a checkpoint when nothing is decided any more, so that a view change has little to carry.
    fn idle_timer(&mut self) {
        if !self.is_due(Timer::Idle) {
            return;
        }
        self.ledger.timers.stop(Timer::Idle);
        if self.ledger.history.point.order > self.ledger.checkpoints.signed {
            self.sign_checkpoint();
        }
    }

    /// Whether something that was begun is not done.
    fn is_outstanding(&self) -> bool {
        let is_voted = |number: &u64| *number > self.ledger.history.point.value;
        !self.view.is_active
            || self.pace.is_behind
            || self.ledger.checkpoints.ahead.is_some()
            || !self.window.waiting.is_empty()
            || self.window.undelivered().next().is_some()
            || self.window.votes.keys().any(is_voted)
    }

    /// Looks whether anything is stuck, and says what it has.
    fn tick(&mut self) {
        if !self.is_due(Timer::Tick) {
            return;
        }
        let next_us = self.ledger.now.monotonic_us + self.ledger.configuration.retransmission_us;
        self.ledger.timers.set(Timer::Tick, next_us);
        self.pace.ticks += 1;
        let mark = (
            self.view.view,
            self.view.is_active,
            self.ledger.history.point.value,
            self.view.next.number,
            self.window.committing,
        );
        let is_stuck = self.is_outstanding() && mark == self.pace.mark;
        self.pace.mark = mark;
        self.pace.stalled = if is_stuck {
            self.pace.stalled.saturating_add(1)
        } else {
            0
        };
        let stalled = self.pace.stalled;
        self.want_again();
        let is_turn = self.pace.ticks % IDLE_TICKS == u64::from(self.ledger.configuration.machine.0) % IDLE_TICKS;
        if stalled > 0 || is_turn {
            self.send_standing(stalled > 0);
        }
        if stalled > 0 {
            self.send_view_change_again();
            self.propose_again();
        }
        if stalled >= STALLED_TICKS {
            if stalled.is_multiple_of(STALLED_TICKS) {
                // The peer that claimed to have more may have lied. If it did not, its next STATUS claims it again.
                self.pace.is_behind = false;
            }
            if let Some(target) = self.ledger.checkpoints.ahead.as_ref().map(|ahead| ahead.point.order) {
                self.ledger.fetch_history(target);
            }
        }
        self.resend_checkpoint();
    }

    /// Our last checkpoint may have got lost when it is not stable for long.
    fn resend_checkpoint(&mut self) {
        let is_idle = self.pace.ticks.is_multiple_of(IDLE_TICKS) && !self.ledger.timers.is_set(Timer::Idle);
        let is_unstable = self.ledger.history.point.order > self.ledger.checkpoints.point().order;
        if is_unstable && (is_idle || self.pace.stalled >= STALLED_TICKS) {
            self.sign_checkpoint();
        }
    }

    /// The primary: sends what it has proposed again when it does not get on.
    fn propose_again(&mut self) {
        if self.view.leading.is_none() {
            return;
        }
        let proposals: Vec<_> = self
            .window
            .undelivered()
            .filter_map(|slot| slot.pre_prepare.clone())
            .take(RESEND_MAX)
            .collect();
        for proposal in proposals {
            self.ledger.send(To::Others, Message::PrePrepare(proposal));
        }
    }

    fn send_standing(&mut self, is_stalled: bool) {
        let standing = Standing {
            view: self.view.view,
            is_active: self.view.is_active,
            is_stalled,
            decided: self.ledger.history.point.value,
            stable: self.ledger.checkpoints.point().order,
        };
        self.ledger.send(To::Others, Message::Standing(standing));
    }

    /// Sends again what the sender lacks of ours.
    pub(crate) fn on_standing(&mut self, from: MachineId, standing: Standing) {
        let interval_us = self.ledger.configuration.retransmission_us / 4;
        if !self.ledger.may_answer(from, Expense::Standing, interval_us) {
            return;
        }
        let is_with_us = standing.view == self.view.view && standing.is_active == self.view.is_active;
        if standing.view < self.view.view || (standing.view == self.view.view && !standing.is_active) {
            self.help_into_view(from);
        }
        let stable = self.ledger.checkpoints.stable.as_ref();
        if let Some(stable) = stable.filter(|stable| stable.point.order > standing.stable) {
            self.ledger.send(To::Machine(from), Message::Stable(stable.clone()));
        }
        if is_with_us && standing.decided > self.ledger.history.point.value {
            self.pace.is_behind = true;
        }
        if is_with_us && self.view.is_active && standing.is_stalled {
            self.send_votes_again(from, standing.decided);
        }
    }

    /// Sends a machine our proposals and votes of this view for the numbers after the last one that it has decided.
    fn send_votes_again(&mut self, to: MachineId, decided: u64) {
        let (view, own) = (self.view.view, self.ledger.configuration.machine);
        let begin = decided.saturating_add(1);
        for (number, slot) in self.window.slots.range(begin..).take(RESEND_MAX) {
            let (number, digest) = (*number, slot.digest);
            if let Some(proposal) = &slot.pre_prepare {
                self.ledger
                    .send(To::Machine(to), Message::PrePrepare(Arc::clone(proposal)));
            }
            let votes = self.window.votes.get(&number);
            if let Some(signature) = votes.and_then(|votes| votes.prepare_of(own, &digest)) {
                let prepare = Prepare {
                    view,
                    number,
                    digest,
                    signature,
                };
                self.ledger.send(To::Machine(to), Message::Prepare(prepare));
            }
            if slot.stage == Stage::Prepared {
                self.ledger
                    .send(To::Machine(to), Message::Commit(Commit { view, number, digest }));
            }
        }
    }
}
