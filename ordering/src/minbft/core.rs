//! The state that every phase of a machine works on.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::{Output, To};
use crate::configuration::is_replica;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::ledger::{
    CertifiedCheckpoint, Checkpoint, Dialect, HistoryEntry, HistoryPoint, Ledger, Stability, StableCheckpoint,
};
use crate::message::{CommitDbEntry, Request};
use crate::minbft::change::runs::OwnRuns;
use crate::minbft::counter::{Certifying, OwnCounter};
use crate::minbft::followed::FollowedStatements;
use crate::minbft::log::provenance::{Fetched, ViewBase, forget_views};
use crate::minbft::log::reader::LogReader;
use crate::minbft::log::record::{Record, Resume};
use crate::minbft::wire::checkpoint::Followed;
use crate::minbft::wire::message::Message;
use crate::minbft::wire::ordered::{Commit, Prepare};
use crate::minbft::wire::outcome::CertifiedOutcome;
use crate::minbft::wire::outcome::{LiveProof, Outcome};

/// MinBFT's messages and log records, for the shared ledger.
#[derive(Debug)]
pub(crate) enum MinBft {}

impl Dialect for MinBft {
    type Message = Message;
    type Record = Record;
    type Reader = LogReader;
    type Then = Then;
}

/// What follows when a record is durable.
#[derive(Debug)]
pub(crate) enum Then {
    /// Send the COMMIT: persist before COMMIT, so that f+1 COMMITs are f+1 durable copies.
    Commit(Arc<Commit>),
    /// Acknowledge the start.
    Start(Arc<Outcome>),
    /// Endorse this outcome of the view.
    Change(View, Digest),
    /// Take part in the view.
    Live(Arc<LiveProof>),
    /// The log may begin with that record: cut what is below this order.
    Cut(Order),
}

/// The role of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// m0: may lead views. It holds no replica, so it has no history, votes for nothing, and follows the others into views.
    Sequencer,
    /// The machine holds a replica of every group, and may lead views too.
    Replica,
}

impl Role {
    pub(crate) fn of(machine: MachineId) -> Self {
        if is_replica(machine) {
            Role::Replica
        } else {
            Role::Sequencer
        }
    }
}

/// What a machine knows of views before the one that it takes part in: from its log, or from having left them.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// The highest view that the log, an attempt to start, or a change has mentioned.
    pub(crate) mentioned: Option<View>,
    /// The last view that this machine was live in.
    pub(crate) live: Option<Arc<LiveProof>>,
    /// Its PREPAREs above the stable checkpoint.
    pub(crate) prepares: Vec<Arc<Prepare>>,
    /// Bodies above the stable checkpoint: from the log, from the view that was left, or fetched.
    pub(crate) held: BTreeMap<Digest, (Order, Arc<Request>)>,
    /// The last view that our log calls live; it may not be entered yet.
    pub(crate) entering: Option<Arc<LiveProof>>,
    /// The last outcome that we acknowledged, if it is above the last view that was live here.
    pub(crate) acknowledged: Option<Arc<CertifiedOutcome>>,
    /// Per group: the last order that was delivered in the view that was left.
    pub(crate) delivered: Vec<Order>,
}

impl Past {
    pub(crate) fn mention(&mut self, view: View) {
        self.mentioned = self.mentioned.max(Some(view));
    }

    /// The last view that this machine was live in.
    pub(crate) fn live_view(&self) -> Option<View> {
        self.live.as_ref().map(|proof| proof.outcome.view)
    }

    pub(crate) fn delivered(&self, group: GroupId) -> Order {
        self.delivered.get(usize::from(group.0)).copied().unwrap_or_default()
    }
}

/// The state that every phase works on.
pub(crate) struct Core {
    /// The ledger that machines of all protocols keep.
    pub(crate) ledger: Ledger<MinBft>,
    pub(crate) role: Role,
    pub(crate) counter: OwnCounter,
    /// Everything that this machine's counters have certified: its next VIEW-CHANGE must show it.
    pub(crate) runs: OwnRuns,
    pub(crate) past: Past,
    /// How far others have followed the counters of all.
    pub(crate) followed: FollowedStatements,
    /// The views that this machine was live in, and where they began.
    pub(crate) views: Vec<ViewBase>,
    /// The orders in the log that were fetched from peers.
    pub(crate) fetched: Fetched,
    /// The view that the machine is in, or goes to: what its phase says.
    pub(crate) view: Option<View>,
}

impl Core {
    pub(crate) fn own(&self) -> MachineId {
        self.ledger.configuration.machine
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.ledger.now.monotonic_us
    }

    pub(crate) fn quorum(&self) -> usize {
        self.ledger.configuration.quorum() as usize
    }

    pub(crate) fn is_sequencer(&self) -> bool {
        self.role == Role::Sequencer
    }

    /// Asks the own counter for a warrant.
    pub(crate) fn certify(&mut self, slot: u32, digest: Digest, purpose: Certifying) {
        let ticket = self.counter.ask(slot, purpose);
        self.ledger.out.push(Output::Certify { slot, digest, ticket });
    }

    /// Whether our own log or counter owes us an answer.
    pub(crate) fn is_busy(&self) -> bool {
        self.counter.is_busy() || self.ledger.journal.is_busy()
    }

    /// The highest view that this machine is in, goes to, was in, or has left others for. It goes to higher ones only.
    pub(crate) fn current_view(&self) -> Option<View> {
        self.view.max(self.past.live_view()).max(self.runs.left_for())
    }

    /// A view was entered that begins like this: what led to it is not needed any more.
    pub(crate) fn forget_past(&mut self, proof: &Arc<LiveProof>) {
        self.past = Past {
            mentioned: self.past.mentioned,
            live: Some(Arc::clone(proof)),
            entering: self.past.entering.take(),
            ..Past::default()
        };
    }

    /// A body that no view needs to be asked for: decided, or held from earlier views.
    pub(crate) fn body(&self, digest: &Digest) -> Option<&Arc<Request>> {
        match self.ledger.bodies.location(digest) {
            Some(order) => self.ledger.history.body(order),
            None => self.past.held.get(digest).map(|(_, request)| request),
        }
    }

    /// Asks the replicas in turn for bodies; returns who was asked.
    pub(crate) fn ask_in_turn(&mut self, rounds: u64, digests: Vec<Digest>) -> MachineId {
        let turn = rounds % u64::from(self.ledger.configuration.replicas());
        let after = MachineId(u8::try_from(turn).unwrap_or(0) + 1);
        let peer = self.ledger.configuration.next_replica(after);
        self.ledger.send(To::Machine(peer), Message::FetchRequests(digests));
        peer
    }

    /// Continues the history by what is decided.
    pub(crate) fn append(&mut self, operations: impl Iterator<Item = HistoryEntry>, view: View, value: u64) {
        let ledger = &mut self.ledger;
        let limits = (ledger.configuration.tail_bytes_max, ledger.checkpoints.point().order);
        ledger.append(operations, view, value, limits);
    }

    /// A machine's word on how far its history goes. What it says of counters is settled by the view.
    pub(crate) fn on_checkpoint(&mut self, checkpoint: &Checkpoint<Followed>) {
        if let Some(statement) = checkpoint.followed_statement() {
            self.followed.hear(statement);
        }
        let configuration = &self.ledger.configuration;
        if let Some(stable) = self.ledger.checkpoints.vote(checkpoint, configuration) {
            self.on_stable(stable);
        }
    }

    pub(crate) fn on_stable(&mut self, stable: StableCheckpoint) {
        if self.is_sequencer() {
            if stable.point.order > self.ledger.checkpoints.point().order {
                self.ledger.checkpoints.set_stable(stable);
            }
            return;
        }
        // The views and values of the points may differ: the hash covers what was decided.
        let is_same = |stable: &HistoryPoint, own: &HistoryPoint| stable.history == own.history;
        if let Stability::Reached(checkpoint) = self.ledger.weigh(stable, is_same) {
            self.reached(checkpoint);
        }
    }

    /// A stable checkpoint of our own history goes to the log, which may be cut now.
    pub(crate) fn reached(&mut self, checkpoint: Arc<CertifiedCheckpoint>) {
        if let Some(first) = self.ledger.reach(checkpoint) {
            self.cut_log(first);
        }
    }

    /// Nothing below this order is needed: writes what the log may begin with, and then lets it be cut.
    pub(crate) fn cut_log(&mut self, first: Order) {
        self.ledger.cut_below(first);
        self.fetched.forget_below(first);
        forget_views(&mut self.views, first);
        let (live, views) = self.live_in_log();
        let resume = Resume {
            checkpoint: self.ledger.checkpoints.certified.clone(),
            first,
            view: self.past.mentioned.max(self.current_view()),
            live,
            views,
            fetched: self.fetched.clone(),
        };
        self.ledger.persist(Record::Resume(Arc::new(resume)), Then::Cut(first));
    }

    /// The last view that our log calls live, with all of those before: what a log must begin with when the record that says
    /// so is cut off, which it may be before the view is entered.
    fn live_in_log(&self) -> (Option<Arc<LiveProof>>, Vec<ViewBase>) {
        let mut views = self.views.clone();
        let last = self.past.live_view();
        let Some(entering) = self
            .past
            .entering
            .as_ref()
            .filter(|proof| Some(proof.outcome.view) > last)
        else {
            return (self.past.live.clone(), views);
        };
        if views.last().is_none_or(|last| last.view < entering.outcome.view) {
            views.push(self.view_base(&entering.outcome));
        }
        (Some(Arc::clone(entering)), views)
    }

    /// The order at which the operations of a view with this outcome begin.
    pub(crate) fn view_base(&self, outcome: &Outcome) -> ViewBase {
        ViewBase {
            view: outcome.view,
            base: outcome.base.order.max(self.ledger.checkpoints.point().order),
            outcome: outcome.digest(),
        }
    }

    /// Writes down that a view is live; this machine takes part in it once that is durable.
    pub(crate) fn log_live(&mut self, proof: &Arc<LiveProof>) {
        self.past.entering = Some(Arc::clone(proof));
        self.ledger
            .persist(Record::Live(Arc::clone(proof)), Then::Live(Arc::clone(proof)));
    }

    /// The operations that the outcome takes over, whole as far as their bodies are held.
    pub(crate) fn taken_over(&self, outcome: &Outcome) -> Vec<(GroupId, CommitDbEntry)> {
        let numbered = outcome.entries.iter().zip((outcome.base.order.0 + 1..).map(Order));
        let whole = numbered.map(|(entry, order)| {
            let operation = CommitDbEntry {
                order,
                time_us: entry.time_us,
                digest: entry.digest,
                request: self
                    .past
                    .held
                    .get(&entry.digest)
                    .map(|(_, request)| Arc::clone(request)),
            };
            (entry.group.deciding(), operation)
        });
        whole.collect()
    }
}
