//! Leaving a view and entering the next.
//!
//! 1. A replica whose requests wait too long, or that has proof against the primary, sends REQ-VIEW-CHANGE, again and
//!    again while the reason lasts. It still takes part in its view: it must not leave alone.
//! 2. Once f+1 want it, a correct one among them, a replica writes down that it leaves, and sends VIEW-CHANGE: these
//!    f+1, its stable checkpoint, and its certificates above it. Whoever gets that leaves too. It is sent again until the
//!    view begins. (A primary that was restarted resigns: its word alone suffices.)
//! 3. The primary of the new view gathers 2f+1, computes how the view begins from all of them (`outcome.rs`), writes
//!    that down, and sends them as NEW-VIEW. Everybody computes the same, and votes anew on the batches.
//! 4. Once 2f+1 want a view, it must begin in time, else the one after it is tried; each time with twice the patience,
//!    until something new is decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::Mutant;
use crate::identifiers::{MachineId, View};
use crate::ledger::StableCheckpoint;
use crate::ledger::serving::Expense;
use crate::pbft::Machine;
use crate::pbft::lead::Leader;
use crate::pbft::messages::{Batch, Message, NewView, RequestViewChange, ViewChange};
use crate::pbft::outcome::{End, Outcome, compute, point_of};
use crate::pbft::record::{Record, Then};
use crate::pbft::view::Early;
use crate::pbft::window::{Slot, Stage};
use crate::timers::Timer;

/// How long a REQ-VIEW-CHANGE counts, in retransmission intervals: it is sent in each.
const FRESH_INTERVALS: u64 = 10;

/// The patience is doubled at most so often.
const BACKOFF_MAX: u32 = 7;

impl Machine {
    /// Wants the next view, and says so.
    pub(crate) fn want_view_change(&mut self) {
        let view = View(self.view.view.0 + 1);
        self.view.is_wanting = true;
        let request = self.request_view_change(view);
        self.ledger
            .send(To::Others, Message::RequestViewChange(request.clone()));
        self.on_request_view_change(request);
    }

    fn request_view_change(&self, view: View) -> RequestViewChange {
        let machine = self.ledger.configuration.machine;
        RequestViewChange {
            machine,
            view,
            signature: self.ledger.sign(&RequestViewChange::signed(machine, view)),
        }
    }

    /// Says again that we want the next view, if there is still a reason.
    pub(crate) fn want_again(&mut self) {
        let has_reason = !self.view.is_active || self.view.is_accused || self.is_starved();
        if self.view.is_wanting && has_reason {
            self.want_view_change();
        } else {
            self.view.is_wanting = false;
        }
    }

    pub(crate) fn on_request_view_change(&mut self, request: RequestViewChange) {
        let (machine, current) = (request.machine, self.view.view);
        if request.view <= current {
            self.help_into_view(machine);
            return;
        }
        self.view
            .requests
            .insert(machine, (request, self.ledger.now.monotonic_us));
        let resigns = self.ledger.configuration.primary(current) == machine && self.view.is_active;
        let view = if resigns {
            Some(View(current.0 + 1))
        } else {
            self.wanted_view()
        };
        if let Some(view) = view.filter(|view| *view > current) {
            let requests = self.fresh_requests();
            let justification = requests.filter(|request| request.view >= view).cloned().collect();
            self.start_view_change(view, justification);
        }
    }

    /// What machines have said lately: who has got over it says it no longer.
    fn fresh_requests(&self) -> impl Iterator<Item = &RequestViewChange> {
        let fresh_us = self
            .ledger
            .configuration
            .retransmission_us
            .saturating_mul(FRESH_INTERVALS);
        let since_us = self.ledger.now.monotonic_us.saturating_sub(fresh_us);
        let requests = self.view.requests.values();
        requests
            .filter(move |(_, said_us)| *said_us >= since_us)
            .map(|(request, _)| request)
    }

    /// The highest view that f+1 machines want.
    fn wanted_view(&self) -> Option<View> {
        let mut views: Vec<View> = self.fresh_requests().map(|request| request.view).collect();
        views.sort_unstable_by(|left, right| right.cmp(left));
        views.get(usize::from(self.ledger.configuration.faults.0)).copied()
    }

    /// We were restarted as the primary: what we proposed may not be in our log, so we must not propose again.
    pub(crate) fn resign(&mut self) {
        let view = View(self.view.view.0 + 1);
        self.start_view_change(view, vec![self.request_view_change(view)]);
    }

    /// Leaves the view for a higher one.
    fn start_view_change(&mut self, view: View, justification: Vec<RequestViewChange>) {
        if view <= self.view.view {
            return;
        }
        self.view.view = view;
        self.view.is_active = false;
        self.view.leading = None;
        self.view.new_view = None;
        self.view.backoff = (self.view.backoff + 1).min(BACKOFF_MAX);
        self.view.justification = justification.clone();
        self.forget_wishes();
        self.view.view_changes.retain(|_, view_change| view_change.view >= view);
        self.window.votes.clear();
        self.window.waiting.clear();
        self.ledger.timers.stop(Timer::Clock);
        let record = Record::ViewChange {
            view,
            requests: justification,
        };
        self.ledger.persist(record, Then::ViewChange(view));
    }

    /// The view has changed: what was wanted of the one before does not matter.
    fn forget_wishes(&mut self) {
        let view = self.view.view;
        self.ledger.timers.stop(Timer::NextView);
        self.view.is_wanting = false;
        self.view.is_accused = false;
        self.view.requests.retain(|_, (request, _)| request.view > view);
    }

    /// That we have left is durable: now it may be said.
    pub(crate) fn on_left(&mut self, view: View) {
        if self.view.is_active || self.view.view != view {
            return;
        }
        let mut view_change = ViewChange {
            machine: self.ledger.configuration.machine,
            view,
            requests: self.view.justification.clone(),
            stable: self.low.clone(),
            prepared: self.window.certificates.values().cloned().collect(),
            signature: [0; 64],
        };
        view_change.signature = self.ledger.sign(&view_change.digest());
        let view_change = Arc::new(view_change);
        self.view
            .view_changes
            .insert(self.ledger.configuration.machine, Arc::clone(&view_change));
        self.ledger.send(To::Others, Message::ViewChange(view_change));
        self.gather();
    }

    /// Sends the own VIEW-CHANGE again.
    pub(crate) fn send_view_change_again(&mut self) {
        if self.ledger.configuration.is(Mutant::PbftSayOnce) {
            return;
        }
        if let Some(own) = self.view.view_changes.get(&self.ledger.configuration.machine) {
            self.ledger.send(To::Others, Message::ViewChange(Arc::clone(own)));
        }
    }

    pub(crate) fn on_view_change(&mut self, from: MachineId, view_change: &Arc<ViewChange>) {
        let (view, current) = (view_change.view, self.view.view);
        if view < current || (view == current && self.view.is_active) {
            self.help_into_view(from);
            return;
        }
        let known = self.view.view_changes.get(&from);
        if known.is_some_and(|known| known.view > view) {
            return;
        }
        self.view.view_changes.insert(from, Arc::clone(view_change));
        // Its sender has shown why.
        self.start_view_change(view, view_change.requests.clone());
        self.gather();
    }

    /// Sends how our view began to a machine that is behind.
    pub(crate) fn help_into_view(&mut self, machine: MachineId) {
        let interval_us = self.ledger.configuration.retransmission_us / 4;
        let is_durable = self.view.leading.as_ref().is_none_or(|leader| leader.is_ready);
        let Some(new_view) = self.view.new_view.clone().filter(|_| is_durable) else {
            return;
        };
        if self.ledger.may_answer(machine, Expense::View, interval_us) {
            self.ledger.send(To::Machine(machine), Message::NewView(new_view));
        }
    }

    /// Watches whether 2f+1 want the view; its primary begins it then.
    fn gather(&mut self) {
        let (view, quorum) = (self.view.view, self.ledger.configuration.quorum() as usize);
        let own = self.ledger.configuration.machine;
        let is_out = self.view.view_changes.get(&own).is_some_and(|own| own.view == view);
        if self.view.is_active || !is_out || self.view.wanting(view) < quorum {
            return;
        }
        if !self.ledger.timers.is_set(Timer::NextView) && !self.view.is_wanting {
            let expires_us = self.ledger.now.monotonic_us.saturating_add(self.patience_us());
            self.ledger.timers.set(Timer::NextView, expires_us);
        }
        let mut view_changes: Vec<_> = self
            .view
            .view_changes
            .values()
            .filter(|view_change| view_change.view == view)
            .cloned()
            .collect();
        if self.ledger.configuration.primary(view) != own || view_changes.len() < quorum {
            return;
        }
        let length = |view_change: &Arc<ViewChange>| borsh::object_length(view_change.as_ref()).unwrap_or(usize::MAX);
        view_changes.sort_by_key(length);
        let mut bytes: usize = view_changes.iter().map(length).sum();
        while view_changes.len() > quorum && bytes > self.ledger.configuration.message_bytes_max {
            bytes -= view_changes.pop().as_ref().map_or(0, length);
        }
        view_changes.sort_by_key(|view_change| view_change.machine);
        let mut new_view = NewView {
            view,
            view_changes,
            signature: [0; 64],
        };
        new_view.signature = self.ledger.sign(&new_view.digest());
        self.begin_view(&Arc::new(new_view));
    }

    /// That we lead is durable: now the view may begin for everybody.
    pub(crate) fn on_leading(&mut self, view: View) {
        let Some(leader) = self.view.leading.as_mut().filter(|_| self.view.view == view) else {
            return;
        };
        leader.is_ready = true;
        if let Some(new_view) = self.view.new_view.clone() {
            self.ledger.send(To::Others, Message::NewView(new_view));
        }
    }

    /// The new view did not begin in time.
    pub(crate) fn view_timer(&mut self) {
        if self.is_due(Timer::NextView) {
            self.ledger.timers.stop(Timer::NextView);
            self.want_view_change();
        }
    }

    pub(crate) fn on_new_view(&mut self, new_view: &Arc<NewView>) {
        let is_news = new_view.view > self.view.view || (new_view.view == self.view.view && !self.view.is_active);
        if is_news {
            self.begin_view(new_view);
        }
    }

    fn begin_view(&mut self, new_view: &Arc<NewView>) {
        let outcome = compute(new_view.view_changes.iter(), &self.ledger.configuration);
        self.enter_view(new_view.view, outcome);
        if self.view.is_active && self.view.view == new_view.view {
            self.view.new_view = Some(Arc::clone(new_view));
        }
    }

    /// View 0 begins by itself, with nothing.
    pub(crate) fn enter_first_view(&mut self) {
        let outcome = Outcome {
            stable: None,
            batches: Vec::new(),
        };
        self.enter_view(View(0), outcome);
    }

    /// Takes part in a view that begins with this outcome.
    fn enter_view(&mut self, view: View, outcome: Outcome) {
        let base = point_of(&outcome.stable);
        if !self.holds_what_we_decided(&outcome) {
            // More than f machines are faulty.
            self.ledger.stop(MisbehaviourKind::Contradiction);
            return;
        }
        let record = Record::Entered {
            view,
            stable: outcome.stable.clone(),
            batches: outcome.batches.clone(),
        };
        let is_leading = self.ledger.configuration.primary(view) == self.ledger.configuration.machine;
        if is_leading {
            self.ledger.persist(record, Then::Lead(view));
        } else {
            self.ledger.write(record);
        }
        self.leave_batches(&outcome.batches);
        self.view.view = view;
        self.view.is_active = true;
        self.view.outcome.clone_from(&outcome.batches);
        // The log may be cut here: what it begins with must know of the view.
        self.take_base(outcome.stable);
        self.view.leading = None;
        self.view.new_view = None;
        self.forget_wishes();
        self.view.next = End::after(&base);
        self.view.view_changes.retain(|_, view_change| view_change.view > view);
        self.window.committing = self.low_point().value;
        self.pace.is_behind = false;
        for batch in outcome.batches {
            self.install_again(&batch);
        }
        let low = self.low_point();
        if self.view.next.number <= low.value {
            // We have fetched more than the view began with: it was decided in this view, or a later one.
            self.view.next = End::after(&low);
        }
        self.view.fresh = self.view.next.number;
        self.view.progress_us = self.ledger.now.monotonic_us;
        self.waiting.restart(self.ledger.now.monotonic_us);
        if is_leading && self.view.is_active {
            self.view.leading = Some(Leader::new(
                self.ledger.bodies.pending_in_order().map(|(digest, _)| *digest),
            ));
        }
        for (from, early) in self.view.take_early() {
            match early {
                Early::PrePrepare(proposal, digest) => self.on_pre_prepare(from, &proposal, digest),
                Early::Prepare(prepare) => self.on_prepare(from, prepare),
                Early::Commit(commit) => self.on_commit(from, commit),
            }
        }
    }

    /// Whether a view begins with every batch that we have decided above its base and our own checkpoint. (What is
    /// below ours may have been decided in this view, and fetched, before we heard how it began.)
    fn holds_what_we_decided(&self, outcome: &Outcome) -> bool {
        let base = point_of(&outcome.stable).value.max(self.low_point().value);
        let decided = self.window.slots.range(base.saturating_add(1)..);
        let mut decided = decided.filter(|(_, slot)| slot.is_delivered);
        let stays = |number: u64, digest| {
            let mut batches = outcome.batches.iter();
            batches.any(|batch| batch.number == number && batch.digest() == digest)
        };
        decided.all(|(number, slot)| stays(*number, slot.digest))
    }

    /// The stable checkpoint with which a view begins: ours, or one that we have to reach.
    fn take_base(&mut self, stable: Option<StableCheckpoint>) {
        let Some(stable) = stable else { return };
        let target = stable.point.order;
        self.on_stable(stable.clone());
        self.raise_low(stable);
        if target > self.ledger.history.point.order {
            self.ledger.fetch_history(target);
        }
    }

    /// Gives up the batches of earlier views that the new one does not begin with: they were not decided. Their
    /// requests wait to be ordered again.
    pub(crate) fn leave_batches(&mut self, stay: &[Arc<Batch>]) {
        let stay: BTreeMap<u64, _> = stay.iter().map(|batch| (batch.number, batch.digest())).collect();
        let leaves = |number: &u64, slot: &mut Slot| !slot.is_delivered && stay.get(number) != Some(&slot.digest);
        let left: Vec<Slot> = self.window.slots.extract_if(.., leaves).map(|(_, slot)| slot).collect();
        self.window
            .certificates
            .retain(|number, certificate| stay.get(number) == Some(&certificate.batch.digest()));
        self.window.votes.clear();
        self.window.waiting.clear();
        self.ledger.bodies.forget_places(u64::MAX);
        for slot in left {
            for (_, operation) in slot.operations() {
                self.ledger.bodies.forget_location(&operation.digest, operation.order);
                if let Some(request) = &operation.request
                    && self
                        .ledger
                        .clients
                        .is_new(request.client, request.number, request.floor)
                {
                    let bytes_max = self.ledger.configuration.client_bytes_max;
                    self.ledger
                        .bodies
                        .arrive(operation.digest, request, self.ledger.now.monotonic_us, bytes_max);
                    self.waiting.add(operation.digest, self.ledger.now.monotonic_us);
                }
            }
        }
    }

    /// Takes a batch with which the view begins; what is known of it already stays.
    pub(crate) fn install_again(&mut self, batch: &Arc<Batch>) {
        let number = batch.number;
        let is_stable = number <= self.low_point().value;
        if is_stable || !self.view.is_active {
            self.view.next = End::of(batch);
            return;
        }
        let digest = batch.digest();
        let slot = match self.window.slots.remove(&number) {
            Some(mut slot) if slot.digest == digest => {
                slot.stage = Stage::Waiting;
                slot.is_late = false;
                slot.pre_prepare = None;
                slot
            }
            Some(_) => {
                // We have decided another one: more than f machines are faulty.
                self.ledger.stop(MisbehaviourKind::Contradiction);
                return;
            }
            None if number <= self.ledger.history.point.value => {
                // Fetched from a peer: it stands in our log.
                Slot::delivered(batch, digest)
            }
            None => Slot::new(batch, digest),
        };
        self.install(slot);
    }
}
