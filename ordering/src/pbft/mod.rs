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
//! | the decided history, its checkpoints, answers to voters and peers | `serving.rs`, `reader.rs` |
//! | the log is cut | `serving.rs`, `minbft/truncation.rs` |
//! | what is missing is asked for and sent again | `retransmission.rs`, `catch_up.rs` |
//! | a view is left and the next one begins | `view.rs`, `view_change.rs`, `outcome.rs` |
//! | a restart goes on from the log | `recovery.rs` |
//! | what can be verified without state, by any thread | `messages.rs`, `verification.rs` |
//!
//! **Persist before voting.** PREPARE leaves when the batch with its bodies is durable, COMMIT when the certificate
//! is. So a replica that restarts has forgotten nothing that it said, and 2f+1 COMMITs are 2f+1 durable copies.
//!
//! **In order.** Batches are accepted, and COMMITs sent, in the order of their numbers. So orders have no gap from the
//! beginning, and a view change has none to fill.

mod catch_up;
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

use std::collections::BTreeMap;

use ed25519_dalek::{Signer, SigningKey};

pub use crate::minbft::{LogAnswer, LogIndex};
pub use messages::{
    Batch, Certificate, Commit, Message, NewView, PrePrepare, Prepare, RequestViewChange, Standing, ViewChange,
};
pub use reader::LogReader;
pub use record::{Record, Resume};
pub use recovery::Recovery;
pub use verification::{FORWARD_MAX, verify_message};
pub use window::WINDOW;

use crate::agreement::{self, Agreement, Misbehaviour, MisbehaviourKind, Now, Phase, Status, To};
use crate::client_table::ClientTable;
use crate::configuration::{Configuration, Faults, Protocol};
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::minbft::bodies::Bodies;
use crate::minbft::checkpoints::Checkpoints;
use crate::minbft::fetching::CatchUp;
use crate::minbft::history::DecidedHistory;
use crate::minbft::truncation::Retained;
use crate::minbft::{HistoryPoint, StableCheckpoint};
use crate::verified::Verified;
use outcome::{End, point_of};
use record::{Journal, Then};
use recovery::Begin;
use requests::Waiting;
use retransmission::Pace;
use view::ViewState;
use window::Window;

/// The digest of an operation that does nothing.
pub(crate) const NOTHING: Digest = [0; 32];

/// The view in every [`HistoryPoint`]: a batch may be decided in different views on different machines.
pub(crate) const HISTORY_VIEW: View = View(0);

/// What a machine is fed.
pub type Input = agreement::Input<Message>;

/// What the shell is to do.
pub type Output = agreement::Output<Message, Record, LogReader>;

/// One machine's part in the agreement.
pub struct Machine {
    configuration: Configuration,
    key: SigningKey,
    now: Now,
    /// What the first step has to do.
    begin: Option<Begin>,
    journal: Journal,
    bodies: Bodies,
    /// Requests that are known and not decided.
    waiting: Waiting,
    /// Which numbers of clients are decided: keeps old requests from being ordered again.
    clients: ClientTable,
    /// The decided history; the `value` of its point is the number of the last batch.
    history: DecidedHistory,
    checkpoints: Checkpoints,
    /// The first order that can be read from the log.
    log_first: Order,
    /// Where the log can be cut.
    retained: Retained,
    /// The batches above `low`.
    window: Window,
    /// The highest stable checkpoint that we have reached, or that our view began with.
    low: Option<StableCheckpoint>,
    view: ViewState,
    pace: Pace,
    catch_up: Option<CatchUp>,
    /// More than f machines are faulty: we take part no longer.
    stopped: bool,
    /// Flushed orders that voters reported.
    flushed: BTreeMap<MachineId, Order>,
    /// When a machine was last answered something expensive, monotonic.
    answered_us: BTreeMap<(MachineId, serving::Expense), u64>,
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
        Machine {
            configuration,
            key,
            now: Now::default(),
            begin: Some(begin),
            journal: Journal::new(),
            bodies: recovery.bodies,
            waiting: Waiting::default(),
            clients: recovery.clients,
            history: recovery.history,
            checkpoints: Checkpoints::new(recovery.stable),
            log_first: recovery.first.unwrap_or(Order(1)),
            retained: recovery.retained,
            window,
            low: recovery.low,
            view,
            pace: Pace::new(),
            catch_up: None,
            stopped: false,
            flushed: BTreeMap::new(),
            answered_us: BTreeMap::new(),
        }
    }

    /// How far the history is at this machine: for checkers.
    pub fn history_point(&self) -> HistoryPoint {
        self.history.point
    }

    fn sign(&self, digest: &Digest) -> [u8; 64] {
        self.key.sign(digest).to_bytes()
    }

    fn send(&self, to: To, message: Message, out: &mut Vec<Output>) {
        if to != To::Machine(self.configuration.machine) {
            out.push(Output::Send { to, message });
        }
    }

    fn report(&self, machine: MachineId, kind: MisbehaviourKind, out: &mut Vec<Output>) {
        out.push(Output::Report(Misbehaviour { machine, kind }));
    }

    /// More than f machines are faulty, or we are: nothing that we would say could be right.
    fn stop(&mut self, kind: MisbehaviourKind, out: &mut Vec<Output>) {
        self.stopped = true;
        self.report(self.configuration.machine, kind, out);
    }

    /// Everything up to this number is decided.
    fn progressed(&mut self, number: u64) {
        self.view.progress_us = self.now.monotonic_us;
        if number >= self.view.fresh {
            self.view.backoff = 0;
        }
    }

    fn on_message(&mut self, from: MachineId, message: Verified<Message>, out: &mut Vec<Output>) {
        let digest = *message.digest();
        match message.into_message() {
            Message::PrePrepare(proposal) => self.on_pre_prepare(from, &proposal, digest, out),
            Message::Prepare(prepare) => self.on_prepare(from, prepare, out),
            Message::Commit(commit) => self.on_commit(from, commit, out),
            Message::Standing(standing) => self.on_standing(from, standing, out),
            Message::Checkpoint(checkpoint) => self.on_checkpoint(&checkpoint, out),
            Message::Stable(stable) => self.on_stable(stable, out),
            Message::FetchRequests(digests) => self.on_fetch_requests(from, &digests, out),
            Message::GiveRequests(requests) => self.on_give_requests(&requests, out),
            Message::Forward(requests) => self.on_forward(&requests, out),
            Message::FetchHistory(order) => self.on_fetch_history(from, order, out),
            Message::GiveHistory(history) => self.on_give_history(from, &history, out),
            Message::GiveCheckpoint(checkpoint) => self.on_give_checkpoint(from, &checkpoint, out),
            Message::RequestViewChange(request) => self.on_request_view_change(request, out),
            Message::ViewChange(view_change) => self.on_view_change(from, &view_change, out),
            Message::NewView(new_view) => self.on_new_view(&new_view, out),
        }
    }

    /// When a timer is due next.
    fn due_us(&self) -> u64 {
        let catch_up_us = self.catch_up.as_ref().map_or(u64::MAX, |catch_up| catch_up.ask_us);
        let view_us = self.view.expires_us.min(self.waiting_deadline());
        self.pace.deadline().min(catch_up_us).min(view_us)
    }

    fn on_persisted(&mut self, sequence: u64, out: &mut Vec<Output>) {
        while let Some(then) = self.journal.persisted(sequence) {
            match then {
                Then::Prepare { view, number, digest } => self.on_accepted(view, number, digest, out),
                Then::Commit { view, number, digest } => self.on_prepared(view, number, digest, out),
                Then::ViewChange(view) => self.on_left(view, out),
                Then::Lead(view) => self.on_leading(view, out),
                Then::Cut(first) => out.push(Output::CutLog { first }),
            }
        }
    }

    fn take(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            // Voters are served whatever happens: what is decided stays decided.
            Input::FetchCommitDb { from, order } => self.on_fetch_commit_db(from, order, out),
            Input::FetchRequest { from, order, digest } => self.on_fetch_request(from, order, &digest, out),
            Input::Reply { from, reply } => self.on_reply(from, reply),
            _ if self.stopped => {}
            Input::Request(request) => self.on_request(&request, out),
            Input::Message { from, message } => self.on_message(from, message, out),
            Input::Persisted(sequence) => self.on_persisted(sequence, out),
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

    fn step_all(&mut self, now: Now, inputs: impl IntoIterator<Item = Input>, out: &mut Vec<Output>) {
        self.now = now;
        if let Some(begin) = self.begin.take() {
            self.begin(begin, out);
        }
        let was_stopped = self.stopped;
        for input in inputs {
            self.take(input, out);
        }
        if was_stopped {
            return;
        }
        if self.due_us() <= now.monotonic_us {
            self.on_timers(out);
        }
        if !self.stopped {
            self.pump(out);
        }
    }

    fn deadline(&self) -> Option<u64> {
        if self.stopped {
            return None;
        }
        // A decision may shorten the patience after the timers were looked at.
        Some(self.due_us().max(self.now.monotonic_us + 1))
    }

    fn status(&self) -> Status {
        let phase = match self.view.is_active {
            _ if self.stopped => Phase::Stopped,
            true => Phase::Live,
            false => Phase::Starting,
        };
        let decided = self.history.point.order;
        let all_flushed = self.flushed.len() == usize::from(self.configuration.voters());
        let flushed = self.flushed.values().copied().min().filter(|_| all_flushed);
        Status {
            phase,
            view: self.view.view,
            primary: self.configuration.primary(self.view.view),
            prepared: Order(self.view.next.order.0.saturating_sub(1)),
            decided,
            stable: self.checkpoints.point().order,
            batches_in_flight: self.window.undelivered().count(),
            requests_queued: self.queued(),
            bodies: self.bodies.pending_count(),
            bodies_bytes: self.bodies.pending_bytes() + self.window.bytes(),
            bodies_missing: self.bodies.missing_count(),
            log_first: self.log_first,
            flushed: flushed.unwrap_or_default(),
            groups: (0..self.configuration.groups)
                .map(|group| (GroupId(group), decided))
                .collect(),
        }
    }

    fn check_invariants(&self) {
        self.journal.check_invariants();
        self.bodies.check_invariants();
        self.checkpoints.check_invariants();
        self.view.check_invariants();
        self.waiting.check_invariants();
        self.view.leading.iter().for_each(|leader| leader.check_invariants());
        assert!(self.checkpoints.point().order <= self.history.point.order);
        assert!(self.checkpoints.point().order <= self.low_point().order);
        self.window
            .check_invariants(self.low_point().value, self.history.point.value);
    }
}
