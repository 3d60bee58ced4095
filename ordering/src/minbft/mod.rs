//! MinBFT with a separate primary and several groups (`docs/protocol.md`).
//!
//! One [`Machine`] is everything that one machine does in the agreement: its primary candidate, and (except on m0)
//! its replica of every group. It follows the PREPARE stream once for all groups.
//!
//! | step | file |
//! |---|---|
//! | a request comes in and waits to be ordered | `bodies.rs`, `requests.rs` |
//! | the primary gives it an order: PREPARE, one warrant for a batch | `primary.rs`, `normal.rs` |
//! | PREPAREs are followed in counter order, bodies are matched (rule NoHoles) | `stream.rs`, `normal.rs` |
//! | COMMIT: certified, written with the bodies, and only then sent | `journal.rs`, `record.rs`, `normal.rs` |
//! | peers' COMMITs are followed in counter order (rules NoHoles and NoLateCommit); f+1 decide | `group.rs`, `normal.rs` |
//! | the decided history, its checkpoints, answers to voters and peers | `history.rs`, `checkpoints.rs`, `serving.rs`, `reader.rs` |
//! | the log is cut | `truncation.rs`, `serving.rs` |
//! | what is missing is asked for and sent again | `retransmission.rs`, `fetching.rs`, `catch_up.rs` |
//! | the start of the cluster, fresh or after all machines were down (rule AllLogsAtStart) | `start.rs`, `lead.rs`, `outcome.rs`, `enter.rs`, `recovery.rs` |
//! | a primary is suspected, a view is left | `suspicion.rs`, `view_change.rs`, `own_runs.rs` |
//! | the next view: NEW-VIEW, endorsements, acknowledgements (rules QuorumsMeet and CommittedView) | `new_view.rs`, `view_outcome.rs`, `enter.rs` |
//! | what can be verified without state, by any thread | `messages.rs`, `start_messages.rs`, `view_messages.rs`, `verification.rs`, `view_verification.rs` |
//!
//! **Persist before COMMIT.** A replica sends COMMIT only when the PREPARE, its COMMIT and the bodies are durable.
//! So f+1 COMMITs are f+1 durable copies, and the decision needs no fsync of its own.
//!
//! **View change.** A view is left in one place, `leave_view`, and entered in one place, `enter_view`, with an outcome
//! that a start or a view change has decided.

pub(crate) mod bodies;
mod catch_up;
pub(crate) mod checkpoints;
mod enter;
pub(crate) mod fetching;
mod group;
pub(crate) mod history;
mod journal;
mod lead;
mod live;
mod messages;
mod new_view;
mod normal;
mod outcome;
mod own_runs;
mod primary;
mod reader;
mod record;
mod recovery;
mod requests;
mod retransmission;
mod serving;
mod start;
mod start_messages;
mod stream;
mod suspicion;
pub(crate) mod truncation;
mod verification;
mod view_change;
mod view_messages;
mod view_outcome;
mod view_verification;

use std::collections::BTreeMap;

use ed25519_dalek::{Signer, SigningKey};

pub use history::ANSWER_BYTES_MAX;
pub use messages::{
    CertifiedCheckpoint, Checkpoint, CheckpointSignature, Commit, History, HistoryEntry, HistoryPoint, Message,
    Prepare, PrepareEntry, Progress, StableCheckpoint, Standing,
};
pub use reader::{Fetched, LogAnswer, LogReader, ViewBase};
pub use record::{LogIndex, LogRecord, Record, Resume};
pub use recovery::Recovery;
pub use start_messages::{Acknowledgement, Admission, Collect, Hello, LiveProof, Outcome, OutcomeEntry, Report, Start};
pub use verification::{FETCH_REQUESTS_MAX, HISTORY_ENTRIES_MAX, verify_message};
pub use view_messages::{
    CertifiedOutcome, Endorsement, Followed, FollowedStatement, NewView, RequestViewChange, RunItem, RunStart,
    ViewAcknowledgement, ViewChange,
};
pub use view_outcome::compute_change;

use crate::agreement::{self, Agreement, Misbehaviour, MisbehaviourKind, Now, Phase, Status, To};
use crate::client_table::ClientTable;
use crate::configuration::{Configuration, Faults};
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::verified::Verified;
use bodies::Bodies;
use checkpoints::Checkpoints;
use fetching::CatchUp;
use history::DecidedHistory;
use journal::{Journal, Persisting};
use live::LiveView;
use own_runs::OwnRuns;
use start::StartState;
use std::sync::Arc;
use suspicion::Suspicion;
use truncation::Retained;
use view_change::{Changing, LeadingChange};

/// What a machine is fed.
pub type Input = agreement::Input<Message>;

/// What the shell is to do.
pub type Output = agreement::Output<Message, Record, LogReader>;

/// One machine's part in the agreement.
pub struct Machine {
    configuration: Configuration,
    key: SigningKey,
    now: Now,
    journal: Journal,
    bodies: Bodies,
    /// Which numbers of clients are decided, as far as this machine knows: keeps old bodies from coming back.
    clients: ClientTable,
    history: DecidedHistory,
    checkpoints: Checkpoints,
    /// The views that this machine was live in, and where they began.
    views: Vec<ViewBase>,
    /// Which orders of the log were fetched from peers.
    fetched: Fetched,
    /// The first order that can be read from the log.
    log_first: Order,
    /// Where the log can be cut.
    retained: Retained,
    start: StartState,
    catch_up: Option<CatchUp>,
    /// The view that this machine takes part in.
    live: Option<Box<LiveView>>,
    /// The view that this machine goes to.
    changing: Option<Box<Changing>>,
    /// A view that it no longer goes to, but has made a VIEW-CHANGE for: it can only be joined as what it was.
    given_up: Option<Box<Changing>>,
    /// The last view that our log calls live; it may not be entered yet.
    entering: Option<Arc<LiveProof>>,
    /// The view that this machine leads others to.
    leading_change: Option<LeadingChange>,
    /// What makes this machine want another view.
    suspicion: Suspicion,
    /// The last VIEW-CHANGE of each machine above our view.
    changes: BTreeMap<MachineId, Arc<ViewChange>>,
    /// What our own counters have certified: the next VIEW-CHANGE must show it.
    runs: OwnRuns,
    /// The last outcome that we acknowledged, if it is above the last view that was live here.
    acknowledged: Option<Arc<CertifiedOutcome>>,
    /// Per group: the last order that was delivered in the view that was left.
    delivered: Vec<Order>,
    /// Our own counter failed.
    stopped: bool,
    /// Flushed orders that voters reported.
    flushed: BTreeMap<MachineId, Order>,
    /// When a machine was last answered something expensive, monotonic.
    answered_us: BTreeMap<(MachineId, serving::Expense), u64>,
}

impl Machine {
    /// A machine that has just started.
    ///
    /// `key` is the machine's ordinary key; `counter` the own counter's epoch and the last value of each slot
    /// (`groups + 1` of them); `recovery` what was read from the log.
    pub fn new(configuration: Configuration, key: SigningKey, counter: Admission, recovery: Recovery) -> Self {
        let point = recovery.point();
        Machine {
            configuration,
            key,
            now: Now::default(),
            journal: Journal::new(counter),
            bodies: Bodies::default(),
            clients: recovery
                .stable
                .as_ref()
                .map(|checkpoint| checkpoint.clients.clone())
                .unwrap_or_default(),
            history: DecidedHistory::new(point),
            checkpoints: Checkpoints::new(recovery.stable),
            log_first: recovery.first.unwrap_or(Order(1)),
            retained: recovery.retained,
            views: recovery.views,
            fetched: recovery.fetched,
            start: StartState::new(recovery.view, recovery.live, recovery.prepares, recovery.bodies),
            catch_up: None,
            live: None,
            changing: None,
            given_up: None,
            entering: None,
            leading_change: None,
            suspicion: Suspicion::default(),
            changes: BTreeMap::new(),
            runs: OwnRuns::default(),
            acknowledged: None,
            delivered: Vec::new(),
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

    fn on_message(&mut self, from: MachineId, message: Verified<Message>, out: &mut Vec<Output>) {
        let digest = *message.digest();
        match message.into_message() {
            Message::Prepare(prepare) => self.on_prepare(from, &prepare, digest, out),
            Message::Commit(commit) => self.on_commit(from, &commit, out),
            Message::Progress(progress) => self.on_progress(from, progress),
            Message::Standing(standing) => self.on_standing(from, &standing, out),
            Message::Checkpoint(checkpoint) => self.on_checkpoint(&checkpoint, out),
            Message::Stable(stable) => self.on_stable(stable, out),
            Message::FetchRequests(digests) => self.on_fetch_requests(from, &digests, out),
            Message::GiveRequests(requests) => self.on_give_requests(requests, out),
            Message::FetchHistory(order) => self.on_fetch_history(from, order, out),
            Message::GiveHistory(history) => self.on_give_history(from, &history, out),
            Message::GiveCheckpoint(checkpoint) => self.on_give_checkpoint(from, &checkpoint, out),
            Message::Hello(hello) => self.on_hello(&hello, out),
            Message::Collect(collect) => self.on_collect(&collect, digest, out),
            Message::Report(report) => self.on_report(&report, out),
            Message::Start(start) => self.on_start(&start, out),
            Message::Acknowledge(acknowledgement) => self.on_acknowledge(&acknowledgement, out),
            Message::Live(proof) => self.on_live(&proof, out),
            Message::RequestViewChange(request) => self.on_request_view_change(&request, out),
            Message::ViewChange(change) => self.on_view_change(&change, out),
            Message::NewView(new_view) => self.on_new_view(&new_view, out),
            Message::Endorse(endorsement) => self.on_endorse(&endorsement, out),
            Message::AcknowledgeView(acknowledgement) => self.on_acknowledge_view(&acknowledgement, out),
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
            Input::Certified { ticket, warrant } => self.on_certified(ticket, &warrant, out),
            Input::Persisted(sequence) => self.on_persisted(sequence, out),
            Input::Timeout => {}
        }
    }

    fn on_persisted(&mut self, sequence: u64, out: &mut Vec<Output>) {
        while let Some(then) = self.journal.persisted(sequence) {
            match then {
                Persisting::Commit(commit) => self.on_commit_logged(commit, out),
                Persisting::Start(outcome) => self.on_start_logged(&outcome, out),
                Persisting::Change(view, outcome) => self.on_change_logged(view, outcome, out),
                Persisting::Live(proof) => self.enter_view(&proof, out),
                Persisting::Cut(first) => out.push(Output::CutLog { first }),
            }
        }
    }

    /// Our own counter failed: nothing we would say could be followed.
    fn stop(&mut self, out: &mut Vec<Output>) {
        self.stopped = true;
        self.report(self.configuration.machine, MisbehaviourKind::OwnCounter, out);
    }
}

impl Agreement for Machine {
    type Message = Message;
    type Record = Record;
    type LogReader = LogReader;

    fn replicas(faults: Faults) -> u8 {
        2 * faults.0 + 1
    }

    fn step_all(&mut self, now: Now, inputs: impl IntoIterator<Item = Input>, out: &mut Vec<Output>) {
        self.now = now;
        let was_stopped = self.stopped;
        for input in inputs {
            self.take(input, out);
        }
        if was_stopped {
            return;
        }
        if self.deadline().is_some_and(|deadline| deadline <= now.monotonic_us) {
            self.on_timers(out);
        }
        self.pump(out);
    }

    fn deadline(&self) -> Option<u64> {
        if self.stopped {
            return None;
        }
        let catch_up = self.catch_up.as_ref().map(|catch_up| catch_up.ask_us);
        let phase = match (&self.live, &self.changing) {
            (Some(live), _) => live.deadline(),
            (None, Some(changing)) => changing.deadline_us.min(changing.repeat_us),
            (None, None) => self.start.next_us,
        };
        let choose = self.leading_change.as_ref().map(|leading| leading.choose_us);
        let phase = phase.min(self.suspicion_deadline()).min(choose.unwrap_or(u64::MAX));
        Some(catch_up.map_or(phase, |catch_up| catch_up.min(phase)))
    }

    fn status(&self) -> Status {
        let phase = match (&self.live, &self.start.joined) {
            _ if self.stopped => Phase::Stopped,
            (Some(_), _) => Phase::Live,
            _ if self.changing.is_some() => Phase::Changing,
            (None, Some(_)) => Phase::Starting,
            (None, None) => Phase::Waiting,
        };
        let view = self
            .live
            .as_ref()
            .map(|live| live.view)
            .or(self.changing.as_ref().map(|changing| changing.view))
            .or(self.start.mentioned)
            .unwrap_or_default();
        let (primary, live) = (self.configuration.primary(view), self.live.as_ref());
        let leading = live.and_then(|live| live.leading.as_ref());
        let followed = live.map_or(self.history.point.order, |live| {
            Order(live.stream.next.0.saturating_sub(1))
        });
        let prepared = leading.map_or(followed, |leading| Order(leading.next.0.saturating_sub(1)));
        let in_flight = live.map_or(0, |live| live.stream.slots.len());
        let decided = if self.configuration.has_replicas() {
            self.history.point
        } else {
            self.checkpoints.point()
        };
        let voters = usize::from(self.configuration.replicas());
        let all_flushed = self.flushed.len() == voters;
        Status {
            phase,
            view,
            primary,
            prepared,
            decided: decided.order,
            stable: self.checkpoints.point().order,
            batches_in_flight: leading.map_or(in_flight, |leading| leading.in_flight()),
            requests_queued: leading.map_or(0, |leading| leading.queued()),
            bodies: self.bodies.pending_count(),
            bodies_bytes: self.bodies.pending_bytes() + live.map_or(0, |live| live.stream.bytes),
            bodies_missing: self.bodies.missing_count(),
            log_first: self.log_first,
            flushed: self
                .flushed
                .values()
                .copied()
                .min()
                .filter(|_| all_flushed)
                .unwrap_or_default(),
            groups: live.map(|live| live.decided_by_group()).unwrap_or_default(),
        }
    }

    fn check_invariants(&self) {
        self.journal.check_invariants();
        self.bodies.check_invariants();
        self.checkpoints.check_invariants();
        self.runs.check_invariants();
        assert!(self.configuration.has_replicas() || self.history.point == HistoryPoint::GENESIS);
        if self.configuration.has_replicas() {
            assert!(self.checkpoints.point().order <= self.history.point.order);
        }
        assert!(self.views.iter().is_sorted_by(|left, right| left.view < right.view));
        if let Some(live) = &self.live {
            live.check_invariants();
            if self.configuration.has_replicas() {
                let first = live
                    .stream
                    .slots
                    .front()
                    .map_or(live.stream.next, |slot| slot.prepare.first);
                assert_eq!(
                    first,
                    self.history.point.order.next(),
                    "the stream continues the history"
                );
            }
        }
    }
}

/// The view of a machine that is live; none otherwise.
impl Machine {
    /// The view and its primary, when this machine takes part in one.
    pub fn live_view(&self) -> Option<(View, MachineId)> {
        self.live.as_ref().map(|live| (live.view, live.primary))
    }

    /// The last decided order of a group, when this machine takes part in a view.
    pub fn group_decided(&self, group: GroupId) -> Option<Order> {
        Some(self.live.as_ref()?.groups.get(usize::from(group.0))?.decided)
    }
}
