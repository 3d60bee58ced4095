//! One machine: its phase, and the one place where it is decided what an input means in which phase.

use std::sync::Arc;

use ed25519_dalek::SigningKey;

use crate::agreement::{Output as Out, To};
use crate::configuration::{Configuration, FETCH_REQUESTS_MAX, Mutant};
use crate::identifiers::{Digest, MachineId, Order};
use crate::ledger::bodies::Arrival;
use crate::ledger::catch_up::Found;
use crate::ledger::history::by_group;
use crate::ledger::serving::Expense;
use crate::ledger::{History, HistoryPoint, Ledger, StableCheckpoint, Written};
use crate::message::Request;
use crate::pbft::Input;
use crate::pbft::core::{Core, Patience};
use crate::pbft::log::reader::LogReader;
use crate::pbft::log::record::Then;
use crate::pbft::log::recovery::Recovery;
use crate::pbft::pace::Pace;
use crate::pbft::phase::Phase;
use crate::pbft::views::Views;
use crate::pbft::waiting::Waiting;
use crate::pbft::wire::message::{Message, Standing};
use crate::pbft::wire::ordered::Ordered;
use crate::timers::Timer;
use crate::verified::Verified;

/// One machine's part in the agreement.
pub struct Machine {
    pub(super) core: Core,
    pub(super) views: Views,
}

impl Machine {
    /// A machine that has just started.
    ///
    /// `configuration` is of PBFT ([`Configuration::pbft`]); `key` the machine's ordinary key; `recovery` what was
    /// read from the log.
    pub fn new(configuration: Configuration, key: SigningKey, recovery: Recovery) -> Self {
        let (restored, window, logged, begin) = recovery.restore();
        let mut ledger = Ledger::new(configuration, key, restored);
        ledger.timers.set(Timer::Tick, 0);
        Machine {
            core: Core {
                ledger,
                patience: Patience::new(window.next.number),
                window,
                waiting: Waiting::default(),
                logged,
                pace: Pace::default(),
            },
            views: Views::new(begin),
        }
    }

    /// How far the history is at this machine: for checkers.
    pub fn history_point(&self) -> HistoryPoint {
        self.core.ledger.history.point
    }

    /// The first step goes on from the log.
    pub(super) fn begin(&mut self) {
        if let Phase::Waiting(begin) = self.views.phase {
            self.views.begin(&mut self.core, begin);
        }
    }

    pub(super) fn take(&mut self, input: Input) {
        match input {
            // Voters are served whatever happens: what is decided stays decided.
            Input::FetchCommitDb { from, order } => self.answer_voter(from, Order(order.0.max(1)), Order(u64::MAX)),
            // Only what is decided here: the answer has the form of a vote. One of the f+1 from whom the voter knows the
            // digest is correct, and has decided it.
            Input::FetchRequest { from, order, .. } => self.answer_voter(from, order, order),
            Input::Reply { from, reply } => self.core.ledger.on_reply(from, &reply),
            _ if self.core.ledger.stopped => {}
            Input::Request(request) => self.take_request(*request.digest(), request.message()),
            Input::Message { from, message } => self.on_message(from, message),
            Input::Persisted(sequence) => self.on_persisted(sequence),
            // There is no trusted counter.
            Input::Certified { .. } | Input::Timeout => {}
        }
    }

    fn on_message(&mut self, from: MachineId, message: Verified<Message>) {
        let digest = *message.digest();
        let core = &mut self.core;
        match message.into_message() {
            Message::PrePrepare(proposal) => {
                self.views.on_ordered(core, from, Ordered::PrePrepare(proposal, digest));
            }
            Message::Prepare(prepare) => self.views.on_ordered(core, from, Ordered::Prepare(prepare)),
            Message::Commit(commit) => self.views.on_ordered(core, from, Ordered::Commit(commit)),
            Message::Standing(standing) => self.on_standing(from, standing),
            Message::Checkpoint(checkpoint) => core.on_checkpoint(&checkpoint),
            Message::Stable(stable) => core.on_stable(stable),
            Message::FetchRequests(digests) => self.on_fetch_requests(from, &digests),
            Message::GiveRequests(requests) => self.on_give_requests(&requests),
            // A replica thinks that we should order these.
            Message::Forward(requests) => {
                for request in &requests {
                    self.take_request(request.digest(), request);
                }
            }
            Message::FetchHistory(order) => core.ledger.on_fetch_history(from, order, LogReader::new),
            Message::GiveHistory(history) => {
                let found = core.ledger.on_give_history(from, &history);
                self.take_found(found);
            }
            Message::GiveCheckpoint(checkpoint) => {
                let found = core.ledger.on_give_checkpoint(from, &checkpoint);
                self.take_found(found);
            }
            Message::RequestViewChange(request) => self.views.on_request_view_change(core, request),
            Message::ViewChange(view_change) => self.views.on_view_change(core, &view_change),
            Message::NewView(new_view) => self.views.on_new_view(core, &new_view),
        }
    }

    fn on_persisted(&mut self, sequence: u64) {
        while let Some(then) = self.core.ledger.journal.persisted(sequence) {
            let core = &mut self.core;
            match then {
                Then::Prepare { view, number, digest } => {
                    if let Some(live) = self.views.phase.live_in(view) {
                        live.on_accepted(core, number, digest);
                    }
                }
                Then::Commit { view, number, digest } => {
                    if let Some(live) = self.views.phase.live_in(view) {
                        live.on_prepared(core, number, digest);
                    }
                }
                Then::ViewChange(view) => self.views.on_left(core, view),
                Then::Lead(view) => self.views.on_leading(core, view),
                Then::Cut(first) => core.ledger.out.push(Out::CutLog { first }),
            }
        }
    }

    /// Does whatever can be done now; every step ends with it.
    pub(super) fn pump(&mut self) {
        if let Phase::Live(live) = &mut self.views.phase {
            live.accept_proposals(&mut self.core);
            self.views.accuse(&mut self.core);
        }
        if let Phase::Live(live) = &mut self.views.phase {
            live.pump(&mut self.core);
        }
    }

    /// When a timer is due next.
    pub(super) fn due_us(&self) -> Option<u64> {
        let waiting_us = self.views.waiting_deadline(&self.core);
        self.core.ledger.deadline().into_iter().chain(waiting_us).min()
    }

    /// Does what a timer is due for.
    pub(super) fn on_timers(&mut self) {
        if self.core.is_due(Timer::Clock) {
            // `accept_proposals` looks again.
            self.core.ledger.timers.stop(Timer::Clock);
        }
        self.core.ledger.end_fetch_if_there();
        let found = self.core.ledger.catch_up_timer();
        self.take_found(found);
        if self.core.is_due(Timer::Bodies) {
            self.core.ask_for_bodies();
        }
        if self.core.is_due(Timer::Idle) {
            self.core.ledger.timers.stop(Timer::Idle);
            // So a view change has little to carry.
            if self.core.ledger.history.point.order > self.core.ledger.checkpoints.signed {
                self.core.sign_checkpoint();
            }
        }
        self.views.waiting_timer(&mut self.core);
        self.views.view_timer(&mut self.core);
        if self.core.is_due(Timer::Tick) {
            self.tick();
        }
    }

    /// Looks whether anything is stuck, and says what it has.
    fn tick(&mut self) {
        let core = &mut self.core;
        let next_us = core.now_us() + core.ledger.configuration.retransmission_us;
        core.ledger.timers.set(Timer::Tick, next_us);
        let is_outstanding = match &mut self.views.phase {
            Phase::Live(live) => live.is_outstanding(core),
            Phase::Waiting(_) | Phase::Changing(_) => true,
        };
        core.note_pace(is_outstanding);
        self.views.want_again(core);
        let is_stalled = core.pace.is_stalled();
        if is_stalled || core.pace.is_turn_of(core.own()) {
            core.send_standing();
        }
        if is_stalled {
            self.views.send_view_change_again(core);
            if let Phase::Live(live) = &self.views.phase {
                live.propose_again(core);
            }
        }
        if core.pace.is_stalled_long() {
            core.pace.doubt_peers();
            if let Some(target) = core.ledger.checkpoints.ahead.as_ref().map(|ahead| ahead.point.order) {
                core.ledger.fetch_history(target);
            }
        }
        core.sign_checkpoint_again();
    }

    /// Sends again what the sender lacks of ours.
    fn on_standing(&mut self, from: MachineId, standing: Standing) {
        let core = &mut self.core;
        let interval_us = core.ledger.configuration.retransmission_us / 4;
        if !core.ledger.may_answer(from, Expense::Standing, interval_us) {
            return;
        }
        let is_with_us = (standing.view, standing.is_active) == (core.logged.view, core.logged.is_active);
        if standing.view < core.view() || (standing.view == core.view() && !standing.is_active) {
            self.views.help_into_view(core, from);
        }
        let stable = core.ledger.checkpoints.stable.as_ref();
        if let Some(stable) = stable.filter(|stable| stable.point.order > standing.stable) {
            core.ledger.send(To::Machine(from), Message::Stable(stable.clone()));
        }
        if !is_with_us {
            return;
        }
        core.pace.is_behind |= standing.decided > core.ledger.history.point.value;
        if let Phase::Live(live) = &self.views.phase
            && standing.is_stalled
        {
            live.send_votes_again(core, from, standing.decided);
        }
    }

    /// A request of a client, or one that a replica passes on.
    fn take_request(&mut self, digest: Digest, request: &Arc<Request>) {
        let ledger = &self.core.ledger;
        // A number that is decided may only be one of those that are missing (a faulty primary may order it twice).
        let is_wanted = ledger.clients.lacks(request) || ledger.bodies.is_missing(&digest);
        if is_wanted || ledger.configuration.is(Mutant::PbftForgetDecided) {
            self.take_body(digest, request);
        }
    }

    /// Takes a body from wherever it came.
    fn take_body(&mut self, digest: Digest, request: &Arc<Request>) {
        let (now_us, ledger) = (self.core.now_us(), &mut self.core.ledger);
        let bytes_max = ledger.configuration.client_bytes_max;
        match ledger.bodies.arrive(digest, request, now_us, bytes_max) {
            Arrival::Pending => {
                self.core.waiting.add(digest, now_us);
                self.core.clean_waiting();
                if let Phase::Live(live) = &mut self.views.phase
                    && let Some(leading) = live.leading.as_mut()
                {
                    let bodies = &self.core.ledger.bodies;
                    leading.queue(digest, bodies.pending_count(), |digest| {
                        bodies.pending(digest).is_some()
                    });
                }
            }
            Arrival::Wanted(places) => {
                self.core.waiting.add(digest, now_us);
                for place in places {
                    match &mut self.views.phase {
                        Phase::Live(live) => live.fill(&mut self.core, place, digest, request.clone()),
                        // What is accepted may be a part of the next view, too.
                        Phase::Waiting(_) | Phase::Changing(_) => {
                            self.core.fill(place, digest, request.clone());
                        }
                    }
                    self.views.accuse(&mut self.core);
                }
            }
            Arrival::Known | Arrival::Refused => {}
        }
    }

    fn on_fetch_requests(&mut self, from: MachineId, digests: &[Digest]) {
        let digests = digests.iter().take(FETCH_REQUESTS_MAX);
        let found = digests.filter_map(|digest| self.core.find_body(digest));
        let found: Vec<_> = found.cloned().collect();
        self.core.ledger.give_requests(from, found.into_iter());
    }

    fn on_give_requests(&mut self, requests: &[Arc<Request>]) {
        for request in requests {
            let digest = request.digest();
            if self.core.ledger.bodies.is_missing(&digest) {
                self.take_body(digest, request);
            }
        }
    }

    /// Gives a voter what is decided from one order to another.
    fn answer_voter(&mut self, from: MachineId, order: Order, through: Order) {
        let ledger = &mut self.core.ledger;
        let through = through.min(ledger.history.point.order);
        ledger.answer_voter(from, order, through, LogReader::new);
    }

    /// Takes over what a fetch of history has come to.
    fn take_found(&mut self, found: Option<Found>) {
        let core = &mut self.core;
        match found {
            Some(Found::Pieces(pieces, proof)) => {
                adopt(core, &pieces, proof);
                core.ledger.adopted();
            }
            Some(Found::Checkpoint(checkpoint)) => {
                // Goes on from there, without the operations before it.
                core.ledger.clients = checkpoint.clients.clone();
                core.forget_decided();
                core.skip_to(&checkpoint);
                let point = checkpoint.stable.point;
                core.ledger.retained.push(&point);
                core.cut_log(point.order.next());
                core.progressed(point.value);
            }
            None => {}
        }
    }
}

/// Continues our history by proven pieces.
fn adopt(core: &mut Core, pieces: &[Arc<History>], proof: StableCheckpoint) {
    let (point, before) = (proof.point, core.ledger.history.point);
    for piece in pieces {
        for entry in &piece.entries {
            if let Some(request) = &entry.request {
                core.ledger.bodies.take(&entry.digest);
                core.finish(&entry.digest, request);
            }
        }
        let decided = by_group(piece.operations()).into_iter();
        core.ledger.out.extend(decided.map(Out::Deliver));
        core.ledger.write(Written::of(piece));
    }
    let Some(checkpoint) = core.ledger.prove(proof) else {
        return;
    };
    core.skip_to(&checkpoint);
    core.reached(checkpoint);
    if point.value > before.value {
        core.progressed(point.value);
    }
}
