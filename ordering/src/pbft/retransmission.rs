//! What got lost is asked for: by whoever notices, when nothing has moved for a while.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::To;
use crate::identifiers::{Digest, MachineId, View};
use crate::minbft::FETCH_REQUESTS_MAX;
use crate::pbft::messages::{Commit, Message, Prepare, Standing};
use crate::pbft::serving::Expense;
use crate::pbft::window::Stage;
use crate::pbft::{Machine, Output};

/// Batches whose messages are sent again at once.
const RESEND_MAX: usize = 32;

/// Ticks between two STATUS messages of a machine that lacks nothing it knows of.
const IDLE_TICKS: u64 = 10;

/// Ticks without progress after which history is fetched instead of single messages.
const STALLED_TICKS: u32 = 3;

/// How far a machine is, to see whether it gets on: view, whether it has begun, decided, accepted, prepared.
type Mark = (View, bool, u64, u64, u64);

/// When this machine looks after what.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When to look whether anything is stuck, monotonic.
    tick_us: u64,
    /// Ticks since the machine was started.
    ticks: u64,
    mark: Mark,
    /// How many ticks in a row nothing was done although something is outstanding.
    stalled: u32,
    /// When to look for bodies that are missing, monotonic.
    pub(crate) ask_us: u64,
    /// A proposal's time is ahead of our clock until then, monotonic.
    pub(crate) hold_us: u64,
    /// When to sign a checkpoint although none is due, because nothing is decided any more; monotonic.
    pub(crate) idle_us: u64,
    /// A peer has more than we do.
    pub(crate) is_behind: bool,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Pace {
            tick_us: 0,
            ticks: 0,
            mark: Mark::default(),
            stalled: 0,
            ask_us: u64::MAX,
            hold_us: u64::MAX,
            idle_us: u64::MAX,
            is_behind: false,
        }
    }

    pub(crate) fn deadline(&self) -> u64 {
        self.tick_us.min(self.ask_us).min(self.hold_us).min(self.idle_us)
    }
}

impl Machine {
    /// Does what a timer is due for.
    pub(crate) fn on_timers(&mut self, out: &mut Vec<Output>) {
        if self.pace.hold_us <= self.now.monotonic_us {
            // `accept_proposals` looks again.
            self.pace.hold_us = u64::MAX;
        }
        self.catch_up_timer(out);
        self.body_timer(out);
        self.idle_timer(out);
        self.waiting_timer(out);
        self.view_timer(out);
        self.tick(out);
    }

    /// Asks for bodies that were ordered and did not come: the primary first, then all in turn.
    fn body_timer(&mut self, out: &mut Vec<Output>) {
        let (now_us, machines) = (self.now.monotonic_us, u32::from(self.configuration.machines()));
        if self.pace.ask_us > now_us {
            return;
        }
        let own = self.configuration.machine;
        let primary = self.configuration.primary(self.view.view);
        let mut wanted: BTreeMap<MachineId, Vec<Digest>> = BTreeMap::new();
        let mut ask_us = u64::MAX;
        for (digest, missing) in self.bodies.missing_mut() {
            if missing.ask_us <= now_us {
                let turn = (missing.asked / 2 + u32::from(own.0) + 1) % machines;
                let other = MachineId(u8::try_from(turn).unwrap_or(0));
                let peer = if missing.asked.is_multiple_of(2) {
                    primary
                } else {
                    other
                };
                missing.asked = missing.asked.wrapping_add(1);
                missing.ask_us = now_us + self.configuration.retransmission_us / 2;
                wanted.entry(peer).or_default().push(*digest);
            }
            ask_us = ask_us.min(missing.ask_us);
        }
        self.pace.ask_us = ask_us;
        for (peer, mut digests) in wanted {
            digests.truncate(FETCH_REQUESTS_MAX);
            self.send(To::Machine(peer), Message::FetchRequests(digests), out);
        }
    }

    /// Signs a checkpoint when nothing is decided any more, so that a view change has little to carry.
    fn idle_timer(&mut self, out: &mut Vec<Output>) {
        if self.pace.idle_us > self.now.monotonic_us {
            return;
        }
        self.pace.idle_us = u64::MAX;
        if self.history.point.order > self.checkpoints.signed {
            self.sign_checkpoint(out);
        }
    }

    /// Whether something that was begun is not done.
    fn is_outstanding(&self) -> bool {
        let is_voted = |number: &u64| *number > self.history.point.value;
        !self.view.is_active
            || self.pace.is_behind
            || self.checkpoints.ahead.is_some()
            || !self.window.waiting.is_empty()
            || self.window.undelivered().next().is_some()
            || self.window.votes.keys().any(is_voted)
    }

    /// Looks whether anything is stuck, and says what it has.
    fn tick(&mut self, out: &mut Vec<Output>) {
        if self.pace.tick_us > self.now.monotonic_us {
            return;
        }
        self.pace.tick_us = self.now.monotonic_us + self.configuration.retransmission_us;
        self.pace.ticks += 1;
        let mark = (
            self.view.view,
            self.view.is_active,
            self.history.point.value,
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
        self.want_again(out);
        let is_turn = self.pace.ticks % IDLE_TICKS == u64::from(self.configuration.machine.0) % IDLE_TICKS;
        if stalled > 0 || is_turn {
            self.send_standing(stalled > 0, out);
        }
        if stalled > 0 {
            self.send_view_change_again(out);
            self.propose_again(out);
        }
        if stalled >= STALLED_TICKS {
            if stalled.is_multiple_of(STALLED_TICKS) {
                // Whoever said so may have lied; it will say so again if it is true.
                self.pace.is_behind = false;
            }
            if let Some(target) = self.checkpoints.ahead.as_ref().map(|ahead| ahead.point.order) {
                self.fetch_history(target, out);
            }
        }
        self.resend_checkpoint(out);
    }

    /// Our last checkpoint may have got lost when it is not stable for long.
    fn resend_checkpoint(&mut self, out: &mut Vec<Output>) {
        let is_idle = self.pace.ticks.is_multiple_of(IDLE_TICKS) && self.pace.idle_us == u64::MAX;
        let is_unstable = self.history.point.order > self.checkpoints.point().order;
        if is_unstable && (is_idle || self.pace.stalled >= STALLED_TICKS) {
            self.sign_checkpoint(out);
        }
    }

    /// The primary: sends what it has proposed again when it does not get on.
    fn propose_again(&mut self, out: &mut Vec<Output>) {
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
            self.send(To::Others, Message::PrePrepare(proposal), out);
        }
    }

    fn send_standing(&self, is_stalled: bool, out: &mut Vec<Output>) {
        let standing = Standing {
            view: self.view.view,
            is_active: self.view.is_active,
            is_stalled,
            decided: self.history.point.value,
            stable: self.checkpoints.point().order,
        };
        self.send(To::Others, Message::Standing(standing), out);
    }

    /// Sends again what the sender lacks of ours.
    pub(crate) fn on_standing(&mut self, from: MachineId, standing: Standing, out: &mut Vec<Output>) {
        let interval_us = self.configuration.retransmission_us / 4;
        if !self.may_answer(from, Expense::Standing, interval_us) {
            return;
        }
        let is_with_us = standing.view == self.view.view && standing.is_active == self.view.is_active;
        if standing.view < self.view.view || (standing.view == self.view.view && !standing.is_active) {
            self.help_into_view(from, out);
        }
        let stable = self.checkpoints.stable.as_ref();
        if let Some(stable) = stable.filter(|stable| stable.point.order > standing.stable) {
            self.send(To::Machine(from), Message::Stable(stable.clone()), out);
        }
        if is_with_us && standing.decided > self.history.point.value {
            self.pace.is_behind = true;
        }
        if is_with_us && self.view.is_active && standing.is_stalled {
            self.send_votes_again(from, standing.decided, out);
        }
    }

    /// Sends a machine our proposals and votes of this view for the numbers after the last one that it has decided.
    fn send_votes_again(&self, to: MachineId, decided: u64, out: &mut Vec<Output>) {
        let (view, own) = (self.view.view, self.configuration.machine);
        let begin = decided.saturating_add(1);
        for (number, slot) in self.window.slots.range(begin..).take(RESEND_MAX) {
            let (number, digest) = (*number, slot.digest);
            if let Some(proposal) = &slot.pre_prepare {
                self.send(To::Machine(to), Message::PrePrepare(Arc::clone(proposal)), out);
            }
            let votes = self.window.votes.get(&number);
            if let Some(signature) = votes.and_then(|votes| votes.prepare_of(own, &digest)) {
                let prepare = Prepare {
                    view,
                    number,
                    digest,
                    signature,
                };
                self.send(To::Machine(to), Message::Prepare(prepare), out);
            }
            if slot.stage == Stage::Prepared {
                self.send(To::Machine(to), Message::Commit(Commit { view, number, digest }), out);
            }
        }
    }
}
