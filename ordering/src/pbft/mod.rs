//! PBFT: 3f+1 replicas, no trusted counter (Castro and Liskov, OSDI'99 and TOCS'02; thesis chapter 4;
//! `docs/decisions/0016`).
//!
//! One [`Machine`] is everything that one machine does in the agreement. It votes on whole batches, for all groups.
//!
//! | step | file |
//! |---|---|
//! | a request comes in, waits to be ordered, and is forwarded or missed | `requests.rs` |
//! | the primary gives it an order: PRE-PREPARE, one signature for a batch | `lead.rs` |
//! | PREPARE: the batch and its bodies are in the log, and only then sent | `normal.rs`, `window.rs`, `record.rs` |
//! | COMMIT: 2f+1 PREPAREs are in the log, and only then sent; 2f+1 decide | `normal.rs` |
//! | the decided history: its checkpoints, what is fetched of it, where the log is cut | `serving.rs`, `ledger/` |
//! | answers to voters and peers from the log | `reader.rs`, `ledger/serving.rs` |
//! | what is missing is asked for and sent again | `retransmission.rs` |
//! | a view is left and the next one begins | `view.rs`, `view_change.rs`, `outcome.rs` |
//! | a restart goes on from the log | `recovery.rs` |
//! | what can be verified without state, by any thread | `messages.rs`, `verification.rs` |
//!
//! **Persist before voting.** PREPARE leaves when the batch with its bodies is durable, COMMIT when the certificate
//! is. So a replica that restarts has forgotten nothing that it said, and 2f+1 COMMITs are 2f+1 durable copies.
//!
//! **In order.** Batches are accepted, and COMMITs sent, in the order of their numbers. So orders have no gap from the
//! beginning, and a view change has none to fill.

mod lead;
mod messages;
mod normal;
mod outcome;
mod reader;
mod record;
mod recovery;
mod requests;
mod retransmission;
mod serving;
mod verification;
mod view;
mod view_change;
mod window;

use ed25519_dalek::SigningKey;

pub use messages::{
    Batch, Certificate, Commit, Message, NewView, PrePrepare, Prepare, RequestViewChange, Standing, ViewChange,
};
pub use reader::LogReader;
pub use record::{Record, Resume};
pub use recovery::Recovery;
pub use verification::{FORWARD_MAX, verify_message};
pub use window::WINDOW;

use crate::agreement::{self, Agreement, Now, Output as Out, Phase, Status};
use crate::configuration::{Configuration, Faults, Protocol};
use crate::identifiers::{GroupId, MachineId, Order, View};
use crate::ledger::{Dialect, HistoryPoint, Ledger, StableCheckpoint};
use crate::timers::Timer;
use crate::verified::Verified;
use outcome::{End, point_of};
use record::Then;
use recovery::Begin;
use requests::Waiting;
use retransmission::Pace;
use view::ViewState;
use window::Window;

/// The view in every [`HistoryPoint`]: a batch may be decided in different views on different machines.
pub(crate) const HISTORY_VIEW: View = View(0);

/// PBFT's messages and log records, for the shared ledger.
#[derive(Debug)]
pub(crate) enum Pbft {}

impl Dialect for Pbft {
    type Message = Message;
    type Record = Record;
    type Reader = LogReader;
    type Then = Then;
}

/// What a machine is fed.
pub type Input = agreement::Input<Message>;

/// What the shell is to do.
pub type Output = Out<Message, Record, LogReader>;

/// One machine's part in the agreement.
pub struct Machine {
    /// What machines of all protocols keep; the `value` of its history's point is the number of the last batch.
    ledger: Ledger<Pbft>,
    /// What the first step has to do.
    begin: Option<Begin>,
    /// Requests that are known and not decided.
    waiting: Waiting,
    /// The batches above `low`.
    window: Window,
    /// The highest stable checkpoint that we have reached, or that our view began with.
    low: Option<StableCheckpoint>,
    view: ViewState,
    pace: Pace,
}

impl Machine {
    /// A machine that has just started.
    ///
    /// `configuration` is of PBFT ([`Configuration::pbft`]); `key` the machine's ordinary key; `recovery` what was
    /// read from the log.
    pub fn new(configuration: Configuration, key: SigningKey, mut recovery: Recovery) -> Self {
        let window = recovery.window();
        let begin = match recovery.view {
            None => Begin::Fresh,
            Some(_) if recovery.is_active => Begin::Resume,
            Some(_) => Begin::Leave,
        };
        let next = End::after(&point_of(&recovery.low));
        let mut view = ViewState::new(recovery.view.unwrap_or_default(), recovery.is_active, next);
        view.justification = recovery.requests;
        view.outcome = recovery.outcome;
        let mut ledger = Ledger::new(configuration, key, recovery.restored);
        ledger.timers.set(Timer::Tick, 0);
        Machine {
            ledger,
            begin: Some(begin),
            waiting: Waiting::default(),
            window,
            low: recovery.low,
            view,
            pace: Pace::default(),
        }
    }

    /// How far the history is at this machine: for checkers.
    pub fn history_point(&self) -> HistoryPoint {
        self.ledger.history.point
    }

    /// Everything up to this number is decided.
    fn progressed(&mut self, number: u64) {
        self.view.progress_us = self.ledger.now.monotonic_us;
        if number >= self.view.fresh {
            self.view.backoff = 0;
        }
    }

    fn on_message(&mut self, from: MachineId, message: Verified<Message>) {
        let digest = *message.digest();
        match message.into_message() {
            Message::PrePrepare(proposal) => self.on_pre_prepare(from, &proposal, digest),
            Message::Prepare(prepare) => self.on_prepare(from, prepare),
            Message::Commit(commit) => self.on_commit(from, commit),
            Message::Standing(standing) => self.on_standing(from, standing),
            Message::Checkpoint(checkpoint) => self.on_checkpoint(&checkpoint),
            Message::Stable(stable) => self.on_stable(stable),
            Message::FetchRequests(digests) => self.on_fetch_requests(from, &digests),
            Message::GiveRequests(requests) => self.on_give_requests(&requests),
            Message::Forward(requests) => self.on_forward(&requests),
            Message::FetchHistory(order) => self.ledger.on_fetch_history(from, order, LogReader::new),
            Message::GiveHistory(history) => {
                let found = self.ledger.on_give_history(from, &history);
                self.take_found(found);
            }
            Message::GiveCheckpoint(checkpoint) => {
                let found = self.ledger.on_give_checkpoint(from, &checkpoint);
                self.take_found(found);
            }
            Message::RequestViewChange(request) => self.on_request_view_change(request),
            Message::ViewChange(view_change) => self.on_view_change(from, &view_change),
            Message::NewView(new_view) => self.on_new_view(&new_view),
        }
    }

    /// When a timer is due next.
    fn due_us(&self) -> Option<u64> {
        self.ledger.deadline().into_iter().chain(self.waiting_deadline()).min()
    }

    fn on_persisted(&mut self, sequence: u64) {
        while let Some(then) = self.ledger.journal.persisted(sequence) {
            match then {
                Then::Prepare { view, number, digest } => self.on_accepted(view, number, digest),
                Then::Commit { view, number, digest } => self.on_prepared(view, number, digest),
                Then::ViewChange(view) => self.on_left(view),
                Then::Lead(view) => self.on_leading(view),
                Then::Cut(first) => self.ledger.out.push(Out::CutLog { first }),
            }
        }
    }

    /// Gives a voter what is decided from one order to another.
    fn answer_voter(&mut self, from: MachineId, order: Order, through: Order) {
        let through = through.min(self.ledger.history.point.order);
        self.ledger.answer_voter(from, order, through, LogReader::new);
    }

    fn take(&mut self, input: Input) {
        match input {
            // Voters are served whatever happens: what is decided stays decided.
            Input::FetchCommitDb { from, order } => self.answer_voter(from, Order(order.0.max(1)), Order(u64::MAX)),
            // Only what is decided here: the answer has the form of a vote. One of the f+1 from whom the voter knows the
            // digest is correct, and has decided it.
            Input::FetchRequest { from, order, .. } => self.answer_voter(from, order, order),
            Input::Reply { from, reply } => self.ledger.on_reply(from, &reply),
            _ if self.ledger.stopped => {}
            Input::Request(request) => self.on_request(&request),
            Input::Message { from, message } => self.on_message(from, message),
            Input::Persisted(sequence) => self.on_persisted(sequence),
            // There is no trusted counter.
            Input::Certified { .. } | Input::Timeout => {}
        }
    }
}

impl Agreement for Machine {
    type Message = Message;
    type Record = Record;
    type LogReader = LogReader;

    fn replicas(faults: Faults) -> u8 {
        Protocol::Pbft.replicas(faults)
    }

    fn step_all(&mut self, now: Now, inputs: impl IntoIterator<Item = Input>, outputs: &mut Vec<Output>) {
        self.ledger.begin_step(now, outputs);
        if let Some(begin) = self.begin.take() {
            self.begin(begin);
        }
        let was_stopped = self.ledger.stopped;
        for input in inputs {
            self.take(input);
        }
        if !was_stopped {
            if self.due_us().is_some_and(|due_us| due_us <= now.monotonic_us) {
                self.on_timers();
            }
            if !self.ledger.stopped {
                self.pump();
            }
        }
        self.ledger.end_step(outputs);
    }

    fn deadline(&self) -> Option<u64> {
        if self.ledger.stopped {
            return None;
        }
        // A decision may shorten the patience after the timers were looked at.
        Some(self.due_us()?.max(self.ledger.now.monotonic_us + 1))
    }

    fn status(&self) -> Status {
        let phase = match self.view.is_active {
            _ if self.ledger.stopped => Phase::Stopped,
            true => Phase::Live,
            false => Phase::Starting,
        };
        let decided = self.ledger.history.point.order;
        Status {
            phase,
            view: self.view.view,
            primary: self.ledger.configuration.primary(self.view.view),
            prepared: Order(self.view.next.order.0.saturating_sub(1)),
            decided,
            stable: self.ledger.checkpoints.point().order,
            batches_in_flight: self.window.undelivered().count(),
            requests_queued: self.queued(),
            bodies: self.ledger.bodies.pending_count(),
            bodies_bytes: self.ledger.bodies.pending_bytes() + self.window.bytes(),
            bodies_missing: self.ledger.bodies.missing_count(),
            log_first: self.ledger.log_first,
            flushed: self.ledger.flushed_by_all(),
            groups: (0..self.ledger.configuration.groups)
                .map(|group| (GroupId(group), decided))
                .collect(),
        }
    }

    fn check_invariants(&self) {
        self.ledger.check_invariants();
        self.view.check_invariants();
        self.waiting.check_invariants();
        assert!(!self.view.is_active || !self.ledger.timers.is_set(Timer::NextView));
        self.view.leading.iter().for_each(|leader| leader.check_invariants());
        assert!(self.ledger.checkpoints.point().order <= self.ledger.history.point.order);
        assert!(self.ledger.checkpoints.point().order <= self.low_point().order);
        self.window
            .check_invariants(self.low_point().value, self.ledger.history.point.value);
    }
}
