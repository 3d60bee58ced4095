//! One machine: its phase, and the one place where it is decided what an input means in which phase.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use trusted_counter::UniqueWarrant;

use crate::agreement::{MisbehaviourKind, Output as Out};
use crate::configuration::FETCH_REQUESTS_MAX;
use crate::configuration::{Configuration, Mutant};
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::bodies::Arrival;
use crate::ledger::catch_up::Found;
use crate::ledger::serving::Expense;
use crate::ledger::{CertifiedCheckpoint, History, HistoryPoint, Ledger, StableCheckpoint, Written};
use crate::message::{CommitDb, Request};
use crate::minbft::Input;
use crate::minbft::change::run_item;
use crate::minbft::core::{Core, Role, Then};
use crate::minbft::counter::{Certifying, OwnCounter};
use crate::minbft::log::reader::LogReader;
use crate::minbft::log::recovery::Recovery;
use crate::minbft::phase::Phase;
use crate::minbft::views::Views;
use crate::minbft::wire::admission::Admission;
use crate::minbft::wire::change::RunItem;
use crate::minbft::wire::message::{Message, Standing};
use crate::minbft::wire::ordered::{Commit, Prepare};
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
    /// `key` is the machine's ordinary key; `counter` the own counter's epoch and the last value of each slot
    /// (`groups + 1` of them); `recovery` what was read from the log.
    pub fn new(configuration: Configuration, key: SigningKey, counter: Admission, recovery: Recovery) -> Self {
        let (restored, past, views, fetched) = recovery.restore();
        let role = Role::of(configuration.machine);
        let mut ledger = Ledger::new(configuration, key, restored);
        ledger.timers.set(Timer::Hello, 0);
        Machine {
            core: Core {
                ledger,
                role,
                counter: OwnCounter::new(counter),
                runs: Default::default(),
                past,
                followed: Default::default(),
                views,
                fetched,
                view: None,
            },
            views: Views::default(),
        }
    }

    /// How far the history is at this machine: for checkers.
    pub fn history_point(&self) -> HistoryPoint {
        self.core.ledger.history.point
    }

    pub(super) fn take(&mut self, input: Input) {
        match input {
            // Voters are served whatever happens: what is decided stays decided.
            Input::FetchCommitDb { from, order } => self.answer_voter(from, Order(order.0.max(1)), Order(u64::MAX)),
            Input::FetchRequest { from, order, digest } => self.on_fetch_request(from, order, &digest),
            Input::Reply { from, reply } => self.core.ledger.on_reply(from, &reply),
            _ if self.core.ledger.stopped => {}
            Input::Request(request) => self.take_request(*request.digest(), request.message()),
            Input::Message { from, message } => self.on_message(from, message),
            Input::Certified { ticket, warrant } => self.on_certified(ticket, &warrant),
            Input::Persisted(sequence) => self.on_persisted(sequence),
            Input::Timeout => {}
        }
    }

    fn on_message(&mut self, from: MachineId, message: Verified<Message>) {
        let digest = *message.digest();
        let core = &mut self.core;
        match message.into_message() {
            Message::Prepare(prepare) => self.on_prepare(from, &prepare, digest),
            Message::Commit(commit) => {
                if let Some(live) = self.views.phase.live_in(commit.view) {
                    live.on_commit(core, from, &commit);
                }
            }
            Message::Progress(progress) => {
                if let Some(live) = self.views.phase.live_in(progress.view) {
                    live.on_progress(core, from, progress);
                }
            }
            Message::Standing(standing) => self.on_standing(from, &standing),
            Message::Checkpoint(checkpoint) => {
                core.on_checkpoint(&checkpoint);
                if let Phase::Live(live) = &mut self.views.phase {
                    live.settle_counters(core);
                }
            }
            Message::Stable(stable) => core.on_stable(stable),
            Message::FetchRequests(digests) => self.on_fetch_requests(from, &digests),
            Message::GiveRequests(requests) => self.on_give_requests(requests),
            Message::FetchHistory(_) if core.is_sequencer() => {}
            Message::FetchHistory(order) => {
                let (views, fetched) = (&core.views, &core.fetched);
                let reader = |question| LogReader::new(question, views.clone(), fetched.clone());
                core.ledger.on_fetch_history(from, order, reader);
            }
            Message::GiveHistory(history) => {
                let found = core.ledger.on_give_history(from, &history);
                self.take_found(found);
            }
            Message::GiveCheckpoint(checkpoint) => {
                let found = core.ledger.on_give_checkpoint(from, &checkpoint);
                self.take_found(found);
            }
            Message::Hello(hello) => self.views.on_hello(core, &hello),
            Message::Collect(collect) => self.views.on_collect(core, &collect, digest),
            Message::Report(report) => {
                let leader = self.views.starts.leader.as_mut();
                if let Some(start) = leader.and_then(|leader| leader.on_report(core, &report)) {
                    self.views.on_start(core, &start);
                }
            }
            Message::Start(start) => self.views.on_start(core, &start),
            Message::Acknowledge(acknowledgement) => match &mut self.views.phase {
                Phase::Starting(attempt) => attempt.on_acknowledge(core, &acknowledgement),
                // Its sender has not heard of all others: it must not have to wait for what they may never say again.
                Phase::Live(live) if live.view >= acknowledgement.view => {
                    self.views.tell_live(core, acknowledgement.machine)
                }
                _ => {}
            },
            Message::Live(proof) => self.views.on_live(core, &proof),
            Message::RequestViewChange(request) => self.views.on_request_view_change(core, &request),
            Message::ViewChange(change) => self.views.on_view_change(core, &change),
            Message::NewView(new_view) => self.views.on_new_view(core, &new_view),
            Message::Endorse(endorsement) => self.views.on_endorse(core, &endorsement),
            Message::AcknowledgeView(acknowledgement) => self.views.on_acknowledge_view(core, &acknowledgement),
        }
    }

    fn on_persisted(&mut self, sequence: u64) {
        while let Some(then) = self.core.ledger.journal.persisted(sequence) {
            let core = &mut self.core;
            match then {
                Then::Commit(commit) => {
                    if let Some(live) = self.views.phase.live_in(commit.view) {
                        live.on_commit_logged(core, commit);
                    }
                }
                Then::Start(outcome) => {
                    if let Some(attempt) = self.views.phase.attempt() {
                        attempt.on_written(core, &outcome);
                    }
                }
                Then::Change(view, outcome) => {
                    if let Some(change) = self.views.change_to(view) {
                        change.on_written(&outcome);
                        self.views.advance(&mut self.core);
                    }
                }
                Then::Live(proof) => self.views.enter_view(core, &proof),
                Then::Cut(first) => core.ledger.out.push(Out::CutLog { first }),
            }
        }
    }

    fn on_certified(&mut self, ticket: u64, warrant: &UniqueWarrant) {
        let may_skip = self.core.ledger.configuration.is(Mutant::SkipWarrants);
        let Some(purpose) = self.core.counter.certified(ticket, warrant, may_skip) else {
            // Nothing that we would say could be followed.
            self.core.ledger.stop(MisbehaviourKind::OwnCounter);
            self.views.advance_change(&mut self.core);
            return;
        };
        let warrant = *warrant;
        if let Some((group, item)) = run_item(&purpose, warrant) {
            self.core.runs.push(group, item);
        }
        match purpose {
            Certifying::Prepare {
                view,
                first,
                time_us,
                entries,
                requests,
            } => {
                let prepare = Arc::new(Prepare {
                    view,
                    first,
                    time_us,
                    entries,
                    warrant,
                });
                if let Some(live) = self.views.phase.live_in(view) {
                    live.issue(&mut self.core, &prepare, requests);
                }
            }
            Certifying::Commit {
                view,
                group,
                batches,
                share,
            } => {
                let commit = Arc::new(Commit {
                    view,
                    group,
                    batches,
                    warrant,
                });
                // If the view was left, it is only shown there.
                self.core.runs.push(group, RunItem::Commit(Arc::clone(&commit)));
                if let Some(live) = self.views.phase.live_in(view) {
                    live.on_commit_certified(&mut self.core, commit, share);
                }
            }
            Certifying::ViewChange { view, .. } => self.views.on_change_certified(&mut self.core, view, warrant),
            Certifying::Endorse { view, outcome } => {
                self.views.on_endorse_certified(&mut self.core, view, outcome, warrant)
            }
            Certifying::AcknowledgeView { view, outcome } => {
                self.views
                    .on_acknowledge_certified(&mut self.core, view, outcome, warrant)
            }
        }
        self.views.advance_change(&mut self.core);
    }

    /// Does whatever can be done now; every step ends with it.
    pub(super) fn pump(&mut self) {
        if let Phase::Live(live) = &mut self.views.phase {
            live.follow_prepares(&mut self.core);
            self.views.accuse(&mut self.core);
        }
        if let Phase::Live(live) = &mut self.views.phase {
            live.pump(&mut self.core);
            if !self.core.is_sequencer() {
                self.views.suspicion.watch(&self.core, live);
            }
        }
    }

    /// Does what a timer is due for.
    pub(super) fn on_timers(&mut self) {
        let found = self.core.ledger.catch_up_timer();
        self.take_found(found);
        self.views.candidate_timer(&mut self.core);
        self.views.say_wish(&mut self.core);
        if let Phase::Live(live) = &mut self.views.phase
            && self.views.suspicion.look(&mut self.core, live)
        {
            let next = View(live.view.0 + 1);
            self.views.want(&mut self.core, next);
        }
        match &mut self.views.phase {
            Phase::Waiting | Phase::Starting(_) => self.views.hello_timer(&mut self.core),
            Phase::Changing(_) => self.views.change_timer(&mut self.core),
            Phase::Live(live) => live.on_timers(&mut self.core),
        }
    }

    fn on_prepare(&mut self, from: MachineId, prepare: &Arc<Prepare>, digest: Digest) {
        if self.views.phase.live().is_some_and(|live| live.view > prepare.view) {
            // A primary that does not know that it was replaced.
            self.views.tell_live(&mut self.core, from);
        }
        let live = self.views.phase.live_in(prepare.view);
        if let Some(live) = live.filter(|_| !self.core.is_sequencer()) {
            live.on_prepare(&mut self.core, prepare, digest);
        }
    }

    /// Sends again what the sender lacks of ours, or tells it of our view, or asks for its own.
    fn on_standing(&mut self, from: MachineId, standing: &Standing) {
        let (own_view, is_live) = (self.core.current_view(), self.views.phase.live().is_some());
        if own_view.is_some_and(|view| view > standing.view) {
            self.views.tell_live(&mut self.core, from);
        } else if !is_live || own_view.is_none_or(|view| view < standing.view) {
            self.views.ask_view(&mut self.core, from);
        }
        let interval_us = self.core.ledger.configuration.retransmission_us / 4;
        if let Some(live) = self.views.phase.live_in(standing.view)
            && self.core.ledger.may_answer(from, Expense::Standing, interval_us)
        {
            live.on_standing(&mut self.core, from, standing);
        }
    }

    /// A request of a client, or one that a replica passes on.
    fn take_request(&mut self, digest: Digest, request: &Arc<Request>) {
        let core = &mut self.core;
        let is_new = core.ledger.clients.lacks(request);
        if let Phase::Live(live) = &mut self.views.phase
            && let Some(leading) = live.leading.as_mut().filter(|_| is_new)
        {
            leading.queue(digest, Arc::clone(request), &core.ledger.configuration);
        }
        // What a candidate without replicas needs to order, it gets from the replicas when it leads. A number that is decided
        // may only be one of those that are missing (a faulty primary may order it twice).
        if !core.is_sequencer() && (is_new || core.ledger.bodies.is_missing(&digest)) {
            self.take_body(digest, request);
        }
    }

    /// Takes a body from wherever it came.
    fn take_body(&mut self, digest: Digest, request: &Arc<Request>) {
        let now_us = self.core.now_us();
        let ledger = &mut self.core.ledger;
        let bytes_max = ledger.configuration.client_bytes_max;
        let arrival = ledger.bodies.arrive(digest, request, now_us, bytes_max);
        let (Arrival::Wanted(places), Phase::Live(live)) = (arrival, &mut self.views.phase) else {
            return;
        };
        for place in places {
            live.fill(&mut self.core, place, digest, Arc::clone(request));
        }
        self.views.accuse(&mut self.core);
    }

    /// A body, wherever it is.
    fn find_body(&self, digest: &Digest) -> Option<&Arc<Request>> {
        let core = &self.core;
        let in_view = || self.views.phase.live().and_then(|live| live.body(core, digest));
        let pending = core.ledger.bodies.pending(digest);
        pending.or_else(in_view).or_else(|| core.body(digest))
    }

    fn on_fetch_requests(&mut self, from: MachineId, digests: &[Digest]) {
        let digests = digests.iter().take(FETCH_REQUESTS_MAX);
        let found: Vec<_> = digests.filter_map(|digest| self.find_body(digest)).cloned().collect();
        self.core.ledger.give_requests(from, found.into_iter());
    }

    fn on_give_requests(&mut self, requests: Vec<Arc<Request>>) {
        for request in requests {
            let digest = request.digest();
            if self.core.ledger.bodies.is_missing(&digest) {
                self.take_body(digest, &request);
            } else if self.views.phase.live().is_some_and(|live| live.leading.is_some()) {
                self.take_request(digest, &request);
            } else if let Some(adoption) = self.views.phase.adoption() {
                adoption.take(&mut self.core, digest, &request);
            }
        }
        self.views.advance(&mut self.core);
    }

    /// Gives a voter what is decided from one order to another.
    fn answer_voter(&mut self, from: MachineId, order: Order, through: Order) {
        let core = &mut self.core;
        if core.is_sequencer() {
            return;
        }
        let through = through.min(core.ledger.history.point.order);
        let (views, fetched) = (&core.views, &core.fetched);
        let reader = |question| LogReader::new(question, views.clone(), fetched.clone());
        core.ledger.answer_voter(from, order, through, reader);
    }

    fn on_fetch_request(&mut self, from: MachineId, order: Order, digest: &Digest) {
        // Decided here, and not yet in the history. What is only prepared is not answered: the answer has the form of a
        // vote. One of the f+1 from whom the voter knows the digest is correct, and has decided it with its body.
        let decided = self.views.phase.live().and_then(|live| live.stream.decided_at(order));
        let Some((group, entry)) = decided.filter(|(_, entry)| entry.digest == *digest) else {
            self.answer_voter(from, order, order);
            return;
        };
        let entries = vec![entry];
        self.core.ledger.out.push(Out::Answer {
            to: from,
            message: CommitDb { group, entries },
        });
    }

    /// Takes over what a fetch of history has come to.
    fn take_found(&mut self, found: Option<Found>) {
        let (core, live) = (&mut self.core, self.views.phase.live());
        let Some(found) = found else { return };
        if live.is_some_and(|live| live.view < found.point().view) {
            // The others are in a later view: we shall join that first.
            core.ledger.catch_up = None;
            return;
        }
        match found {
            Found::Pieces(pieces, proof) => {
                self.adopt(&pieces, proof);
                self.core.ledger.adopted();
            }
            Found::Checkpoint(checkpoint) => {
                // Goes on from there, without the operations before it.
                core.ledger.clients = checkpoint.clients.clone();
                self.skip_to(&checkpoint);
                let point = checkpoint.stable.point;
                self.core.ledger.retained.push(&point);
                self.core.cut_log(point.order.next());
            }
        }
        self.views.advance(&mut self.core);
    }

    /// Continues our history by proven pieces.
    fn adopt(&mut self, pieces: &[Arc<History>], proof: StableCheckpoint) {
        let core = &mut self.core;
        for piece in pieces {
            for request in piece.entries.iter().filter_map(|entry| entry.request.as_ref()) {
                core.ledger.clients.add(request);
            }
            if let Phase::Live(live) = &self.views.phase {
                live.deliver_fetched(core, piece);
            }
            core.fetched.add(piece.first, piece.entries.len());
            core.ledger.write(Written::of(piece));
        }
        if let Some(checkpoint) = core.ledger.prove(proof) {
            self.skip_to(&checkpoint);
            self.core.reached(checkpoint);
        }
    }

    /// Puts the end of our history at a certified checkpoint, and the view with it.
    fn skip_to(&mut self, checkpoint: &Arc<CertifiedCheckpoint>) {
        self.core.ledger.skip_to(checkpoint);
        if let Phase::Live(live) = &mut self.views.phase {
            live.jump(&mut self.core, &checkpoint.stable.point);
        }
    }
}
