//! What got lost is asked for: by whoever notices, when nothing has moved for a while.

use std::collections::BTreeMap;

use crate::agreement::To;
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::minbft::messages::{Message, Standing};
use crate::minbft::serving::Expense;
use crate::minbft::verification::FETCH_REQUESTS_MAX;
use crate::minbft::{Machine, Output};

/// PREPAREs, and COMMITs of one group, that are sent again at once.
const RESEND_MAX: usize = 64;

/// Ticks between two STATUS messages of a machine that lacks nothing it knows of.
const IDLE_TICKS: u64 = 10;

/// Ticks without progress after which history is fetched instead of single messages.
const STALLED_TICKS: u32 = 3;

impl Machine {
    /// Does what a timer is due for.
    pub(crate) fn on_timers(&mut self, out: &mut Vec<Output>) {
        self.catch_up_timer(out);
        self.leading_change_timer(out);
        self.suspicion_timer(out);
        if self.live.is_none() {
            if self.changing.is_some() {
                self.change_timer(out);
            } else {
                self.start_timer(out);
            }
            return;
        }
        self.body_timer(out);
        self.resend_timer(out);
        self.idle_timer(out);
        self.tick(out);
    }

    /// Asks for bodies that were ordered and did not come: the primary first, then the replicas in turn.
    fn body_timer(&mut self, out: &mut Vec<Output>) {
        let (now_us, replicas) = (self.now.monotonic_us, self.configuration.replicas());
        let Some(live) = self.live.as_mut().filter(|live| live.ask_us <= now_us) else {
            return;
        };
        let (primary, own) = (live.primary, self.configuration.machine);
        let mut wanted: BTreeMap<MachineId, Vec<Digest>> = BTreeMap::new();
        let mut ask_us = u64::MAX;
        for (digest, missing) in self.bodies.missing_mut() {
            if missing.ask_us <= now_us {
                let turn = missing.asked + u32::from(own.0);
                let replica = MachineId(u8::try_from(turn % u32::from(replicas)).unwrap_or(0) + 1);
                let peer = if missing.asked % 2 == 0 || replica == own {
                    primary
                } else {
                    replica
                };
                missing.asked = missing.asked.saturating_add(1);
                missing.ask_us = now_us + self.configuration.retransmission_us / 2;
                wanted.entry(peer).or_default().push(*digest);
            }
            ask_us = ask_us.min(missing.ask_us);
        }
        live.ask_us = ask_us;
        for (peer, mut digests) in wanted {
            digests.truncate(FETCH_REQUESTS_MAX);
            self.send(To::Machine(peer), Message::FetchRequests(digests), out);
        }
    }

    /// The primary: sends batches in flight again that f+1 replicas do not get on with.
    fn resend_timer(&mut self, out: &mut Vec<Output>) {
        let now_us = self.now.monotonic_us;
        let Some(leading) = self.live.as_mut().and_then(|live| live.leading.as_mut()) else {
            return;
        };
        if leading.resend_us > now_us {
            return;
        }
        let prepares: Vec<_> = leading.outstanding().take(RESEND_MAX).cloned().collect();
        leading.resend_us = if prepares.is_empty() {
            u64::MAX
        } else {
            now_us + self.configuration.retransmission_us
        };
        for prepare in prepares {
            self.send(To::Replicas, Message::Prepare(prepare), out);
        }
    }

    /// Signs a checkpoint when nothing is decided any more, so that a later start has little to carry.
    fn idle_timer(&mut self, out: &mut Vec<Output>) {
        let now_us = self.now.monotonic_us;
        let Some(live) = self.live.as_mut().filter(|live| live.idle_us <= now_us) else {
            return;
        };
        live.idle_us = u64::MAX;
        if self.history.point.order > self.checkpoints.signed {
            self.sign_checkpoint(out);
        }
    }

    /// Looks whether anything is stuck, and says what it has.
    fn tick(&mut self, out: &mut Vec<Output>) {
        let now_us = self.now.monotonic_us;
        let is_ahead_known = self.checkpoints.ahead.is_some();
        let Some(live) = self.live.as_mut().filter(|live| live.tick_us <= now_us) else {
            return;
        };
        live.tick_us = now_us + self.configuration.retransmission_us;
        live.ticks += 1;
        if !self.configuration.has_replicas() {
            return;
        }
        let followed: u64 = live
            .groups
            .iter()
            .flat_map(|group| group.peers.values())
            .map(|peer| peer.value)
            .sum();
        let mark = (live.stream.value, self.history.point.order, followed);
        let is_stuck = (live.is_outstanding() || is_ahead_known) && mark == live.mark;
        live.mark = mark;
        live.stalled = if is_stuck { live.stalled.saturating_add(1) } else { 0 };
        let (stalled, ticks) = (live.stalled, live.ticks);
        if stalled > 0 || ticks % IDLE_TICKS == u64::from(self.configuration.machine.0) % IDLE_TICKS {
            self.send_standing(out);
        }
        if stalled >= STALLED_TICKS {
            if stalled % STALLED_TICKS == 0
                && let Some(live) = self.live.as_mut()
            {
                // Whoever said so may have lied; it will say so again if it is true.
                live.is_behind = false;
            }
            let view = self.live.as_ref().map(|live| live.view);
            let ahead = self
                .checkpoints
                .ahead
                .as_ref()
                .filter(|ahead| Some(ahead.point.view) <= view);
            if let Some(target) = ahead.map(|ahead| ahead.point.order) {
                self.fetch_history(target, out);
            }
        }
        self.resend_checkpoint(stalled, out);
    }

    /// Our last checkpoint may have got lost when it is not stable for long.
    fn resend_checkpoint(&mut self, stalled: u32, out: &mut Vec<Output>) {
        let is_idle = self
            .live
            .as_ref()
            .is_some_and(|live| live.ticks % IDLE_TICKS == 0 && live.idle_us == u64::MAX);
        let is_unstable = self.history.point.order > self.checkpoints.point().order;
        if is_unstable && (is_idle || stalled >= STALLED_TICKS) {
            self.sign_checkpoint(out);
        }
    }

    /// Tells every other machine what we have of its messages.
    fn send_standing(&mut self, out: &mut Vec<Output>) {
        let own = self.configuration.machine;
        let Some(live) = self.live.as_ref() else { return };
        // One machine at a time is asked for PREPAREs: the primary, in every other round a replica in turn.
        let turn = live.ticks / 2 % u64::from(self.configuration.replicas()) + 1;
        let replica = MachineId(u8::try_from(turn).unwrap_or(1));
        let asked = if live.ticks % 2 == 0 && replica != own {
            replica
        } else {
            live.primary
        };
        for number in 0..self.configuration.machines() {
            let machine = MachineId(number);
            if machine == own {
                continue;
            }
            let commits = live
                .groups
                .iter()
                .map(|group| group.peers.get(&machine).map_or(0, |peer| peer.value));
            let standing = Standing {
                view: live.view,
                prepares_wanted: machine == asked,
                prepares: live.stream.value,
                commits: commits.collect(),
                decided: self.history.point.order,
                stable: self.checkpoints.point().order,
            };
            self.send(To::Machine(machine), Message::Standing(standing), out);
        }
    }

    /// The sender is in a later view: it is to tell us about that.
    fn ask_view(&mut self, from: MachineId, out: &mut Vec<Output>) {
        let going = self
            .changing
            .as_ref()
            .map(|changing| View(changing.view.0.saturating_sub(1)));
        let standing = Standing {
            view: going.or(self.current_view()).unwrap_or_default(),
            prepares_wanted: false,
            prepares: u64::MAX,
            commits: Vec::new(),
            decided: Order(0),
            stable: Order(u64::MAX),
        };
        if self.may_answer(from, Expense::Ask, self.configuration.retransmission_us) {
            self.send(To::Machine(from), Message::Standing(standing), out);
        }
    }

    /// Sends again what the sender lacks of ours.
    pub(crate) fn on_standing(&mut self, from: MachineId, standing: &Standing, out: &mut Vec<Output>) {
        let interval_us = self.configuration.retransmission_us / 4;
        let own_view = self.current_view();
        if own_view.is_some_and(|view| view > standing.view) {
            self.tell_live(from, out);
        } else if self.live.is_none() || own_view.is_none_or(|view| view < standing.view) {
            self.ask_view(from, out);
        }
        if self.live.as_ref().is_none_or(|live| live.view != standing.view)
            || !self.may_answer(from, Expense::Standing, interval_us)
        {
            return;
        }
        let Some(live) = self.live.as_mut() else { return };
        let mut messages = Vec::new();
        let followed = standing.commits.first().copied().unwrap_or(u64::MAX);
        let (value, joining) = &live.joining;
        if followed < *value {
            messages.extend(joining.iter().cloned());
        }
        if standing.prepares_wanted {
            let issued = live
                .leading
                .iter()
                .flat_map(|leading| leading.issued_after(standing.prepares));
            messages.extend(issued.take(RESEND_MAX).cloned().map(Message::Prepare));
            if messages.is_empty() {
                let kept = live.stream.kept_after(standing.prepares);
                messages.extend(kept.take(RESEND_MAX).cloned().map(Message::Prepare));
            }
        }
        for (group, value) in standing.commits.iter().enumerate() {
            let Some(state) = live.groups.get(group) else { break };
            messages.extend(state.kept_after(*value).take(RESEND_MAX).cloned().map(Message::Commit));
        }
        if standing.decided > self.history.point.order || standing.prepares > live.stream.value {
            live.is_behind = true;
        }
        if let Some(stable) = self
            .checkpoints
            .stable
            .as_ref()
            .filter(|stable| stable.point.order > standing.stable)
        {
            messages.push(Message::Stable(stable.clone()));
        }
        for message in messages {
            self.send(To::Machine(from), message, out);
        }
    }
}
