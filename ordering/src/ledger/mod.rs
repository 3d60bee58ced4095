//! The state, messages and answers that machines of both protocols share, however an order is decided.
//!
//! | what | file |
//! |---|---|
//! | bodies of requests: waiting, missing, and where the others are | `bodies.rs` |
//! | exactly once: which numbers of a client have been seen | `client_table.rs` |
//! | the decided history: its end and hash, a tail in memory, places and pieces on the wire | `history.rs`, `point.rs`, `piece.rs` |
//! | checkpoints: on the wire, and who has signed which | `checkpoint_message.rs`, `checkpoints.rs` |
//! | a machine that lacks history fetches it | `catch_up.rs` |
//! | answers to voters and peers, from memory or from the log | `serving.rs`, `answer.rs` |
//! | the log: what waits for a record, where to read, where to cut | `journal.rs`, `log_index.rs`, `retained.rs` |
//!
//! `Ledger` holds all of that for one machine, with its outbox: what a step puts there is carried out in that order.

pub(crate) mod answer;
pub(crate) mod bodies;
pub(crate) mod catch_up;
pub(crate) mod checkpoint_message;
pub(crate) mod checkpoints;
pub mod client_table;
pub(crate) mod history;
pub(crate) mod journal;
pub(crate) mod log_index;
pub(crate) mod piece;
pub(crate) mod point;
pub(crate) mod retained;
pub(crate) mod serving;

use std::collections::BTreeMap;
use std::sync::Arc;

use ed25519_dalek::{Signer, SigningKey};

pub use answer::LogAnswer;
pub use checkpoint_message::{
    Attachment, CertifiedCheckpoint, Checkpoint, CheckpointSignature, Nothing, StableCheckpoint,
};
pub use history::ANSWER_BYTES_MAX;
pub use log_index::{LogIndex, LogRecord};
pub use piece::{History, HistoryEntry, PrepareEntry};
pub use point::HistoryPoint;

use crate::agreement::{Misbehaviour, MisbehaviourKind, Now, Output, To};
use crate::configuration::Configuration;
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::message::Request;
use crate::timers::Timers;
use bodies::Bodies;
use catch_up::CatchUp;
use checkpoints::Checkpoints;
use client_table::ClientTable;
use history::DecidedHistory;
use journal::Journal;
use retained::Retained;
use serving::Answered;

/// The types by which a protocol names its own messages, records and follow-ups in the shared ledger.
pub(crate) trait Dialect {
    /// The protocol's messages between machines.
    type Message: From<Said>;
    /// The protocol's log records.
    type Record: From<Written>;
    /// The reader that collects an answer from the log.
    type Reader;
    /// What follows when a record is durable.
    type Then;
}

/// Messages that machines of both protocols send.
#[derive(Debug)]
pub(crate) enum Said {
    /// Asks for the bodies of these digests.
    FetchRequests(Vec<Digest>),
    /// Bodies that were asked for.
    GiveRequests(Vec<Arc<Request>>),
    /// Asks for decided operations from this order on.
    FetchHistory(Order),
    /// A piece of the decided history.
    GiveHistory(Arc<History>),
    /// The sender has cut the requested orders off its log, and gives its last stable checkpoint instead.
    GiveCheckpoint(Arc<CertifiedCheckpoint>),
}

/// Log records that machines of both protocols write.
#[derive(Debug)]
pub(crate) enum Written {
    /// A stable checkpoint.
    Stable(Arc<CertifiedCheckpoint>),
    /// Decided operations that were fetched from a peer.
    History {
        /// The order of the first entry.
        first: Order,
        /// The operations.
        entries: Vec<HistoryEntry>,
    },
}

impl Written {
    /// The record of a piece that was fetched.
    pub(crate) fn of(piece: &History) -> Self {
        Written::History {
            first: piece.first,
            entries: piece.entries.clone(),
        }
    }
}

/// The outputs of one step of a protocol's machine.
pub(crate) type Outputs<P> = Vec<Output<<P as Dialect>::Message, <P as Dialect>::Record, <P as Dialect>::Reader>>;

/// One machine's part in what all protocols do.
pub(crate) struct Ledger<P: Dialect> {
    pub(crate) configuration: Configuration,
    key: SigningKey,
    /// The time of the step.
    pub(crate) now: Now,
    /// The outputs of the present step so far.
    pub(crate) out: Outputs<P>,
    pub(crate) journal: Journal<P::Then>,
    /// When what is due.
    pub(crate) timers: Timers,
    pub(crate) bodies: Bodies,
    /// Which numbers of clients are decided, as far as this machine knows: keeps old bodies from coming back.
    pub(crate) clients: ClientTable,
    pub(crate) history: DecidedHistory,
    pub(crate) checkpoints: Checkpoints,
    /// The places where the log can be cut.
    pub(crate) retained: Retained,
    /// The first order that can be read from the log.
    pub(crate) log_first: Order,
    pub(crate) catch_up: Option<CatchUp>,
    /// More than f machines are faulty, or we are: this machine takes part no longer, and only serves voters.
    pub(crate) stopped: bool,
    /// Flushed orders that voters reported.
    flushed: BTreeMap<MachineId, Order>,
    answered: Answered,
}

/// The shared state that a machine reads back from its log.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) history: DecidedHistory,
    pub(crate) clients: ClientTable,
    pub(crate) bodies: Bodies,
    pub(crate) stable: Option<Arc<CertifiedCheckpoint>>,
    pub(crate) retained: Retained,
    /// The first order that can be read from the log, once something was cut off.
    pub(crate) first: Option<Order>,
}

/// The consequence of a stable checkpoint for this machine.
#[derive(Debug)]
pub(crate) enum Stability {
    /// Nothing new, or noted for when our history has got so far.
    Noted,
    /// A correct machine has another history: more than f are faulty, or we are. The machine has stopped.
    Contradicted,
    /// Our history has reached it.
    Reached(Arc<CertifiedCheckpoint>),
}

impl<P: Dialect> Ledger<P> {
    pub(crate) fn new(configuration: Configuration, key: SigningKey, restored: Restored) -> Self {
        Ledger {
            configuration,
            key,
            now: Now::default(),
            out: Vec::new(),
            journal: Journal::new(),
            timers: Timers::default(),
            bodies: restored.bodies,
            clients: restored.clients,
            history: restored.history,
            checkpoints: Checkpoints::new(restored.stable),
            retained: restored.retained,
            log_first: restored.first.unwrap_or(Order(1)),
            catch_up: None,
            stopped: false,
            flushed: BTreeMap::new(),
            answered: Answered::new(),
        }
    }

    /// A step begins: what it puts out follows what is there.
    pub(crate) fn begin_step(&mut self, now: Now, outputs: &mut Outputs<P>) {
        self.now = now;
        self.out = std::mem::take(outputs);
    }

    /// A step ends.
    pub(crate) fn end_step(&mut self, outputs: &mut Outputs<P>) {
        *outputs = std::mem::take(&mut self.out);
    }

    /// When a timer, or the next question of a fetch, is due.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.timers.next().into_iter().chain(self.catch_up_due()).min()
    }

    pub(crate) fn sign(&self, digest: &Digest) -> [u8; 64] {
        self.key.sign(digest).to_bytes()
    }

    pub(crate) fn send(&mut self, to: To, message: impl Into<P::Message>) {
        if to != To::Machine(self.configuration.machine) {
            let message = message.into();
            self.out.push(Output::Send { to, message });
        }
    }

    pub(crate) fn report(&mut self, machine: MachineId, kind: MisbehaviourKind) {
        self.out.push(Output::Report(Misbehaviour { machine, kind }));
    }

    /// Nothing that we would say could be right: takes part no longer.
    pub(crate) fn stop(&mut self, kind: MisbehaviourKind) {
        self.stopped = true;
        self.report(self.configuration.machine, kind);
    }

    /// Our own state contradicts itself, which no peer can cause.
    pub(crate) fn stop_broken(&mut self) {
        if !self.stopped {
            self.stop(MisbehaviourKind::OwnState);
        }
    }

    /// Appends a record that nothing waits for.
    pub(crate) fn write(&mut self, record: impl Into<P::Record>) {
        let (sequence, record) = (self.journal.number(), record.into());
        self.out.push(Output::Persist { sequence, record });
    }

    /// Appends a record that something waits for.
    pub(crate) fn persist(&mut self, record: impl Into<P::Record>, then: P::Then) {
        self.journal.wait(then);
        self.write(record);
    }

    /// Signs the end of our history, and what the protocol says beside it.
    pub(crate) fn signed_checkpoint<A: Attachment>(&mut self, attached: Option<A>) -> Checkpoint<A> {
        let point = self.history.point;
        self.checkpoints.signed = point.order;
        let mut checkpoint = Checkpoint {
            machine: self.configuration.machine,
            point,
            clients: self.clients.digest(),
            attached,
            signature: [0; 64],
        };
        checkpoint.signature = self.sign(&checkpoint.signed());
        checkpoint
    }

    /// Looks what a stable checkpoint means here; `is_same`: whether ours at that order is it.
    pub(crate) fn weigh(
        &mut self,
        stable: StableCheckpoint,
        is_same: impl Fn(&HistoryPoint, &HistoryPoint) -> bool,
    ) -> Stability {
        let (point, own) = (stable.point, self.history.point);
        if point.order <= self.checkpoints.point().order {
            return Stability::Noted;
        }
        if point.order > own.order {
            let ahead = self.checkpoints.ahead.as_ref();
            if ahead.is_none_or(|ahead| ahead.point.order < point.order) {
                self.checkpoints.ahead = Some(stable);
            }
            return Stability::Noted;
        }
        let clients = self.checkpoints.clients_at(point.order, &self.history);
        let is_other = point.order == own.order && !is_same(&point, &own);
        if is_other || clients.digest() != stable.clients {
            self.stop(MisbehaviourKind::Contradiction);
            return Stability::Contradicted;
        }
        Stability::Reached(Arc::new(CertifiedCheckpoint { stable, clients }))
    }

    /// Continues the history by what is decided. `limits`: the bytes of it that stay in memory, and the order above which all
    /// stays.
    pub(crate) fn append(
        &mut self,
        operations: impl Iterator<Item = HistoryEntry>,
        view: View,
        value: u64,
        limits: (usize, Order),
    ) {
        self.history.append(&mut self.bodies, operations, view, value, limits);
    }

    /// A stable checkpoint of our own history goes to the log. Returns the first order that is still needed, when the log
    /// is to be cut now.
    pub(crate) fn reach(&mut self, checkpoint: Arc<CertifiedCheckpoint>) -> Option<Order> {
        self.write(Written::Stable(Arc::clone(&checkpoint)));
        let point = checkpoint.stable.point;
        self.retained.push(&point);
        self.checkpoints.set_certified(checkpoint);
        let last = self.retained.due(&self.flushed, &point, &self.configuration)?;
        Some(last.next())
    }

    /// The log begins with this order from now on.
    pub(crate) fn cut_below(&mut self, first: Order) {
        self.log_first = first;
        self.retained.forget_below(first);
    }

    /// Pieces of the history were taken over: the checkpoint that proves them, with our client table. None when a correct
    /// machine has another table after the same history: the machine has stopped.
    pub(crate) fn prove(&mut self, stable: StableCheckpoint) -> Option<Arc<CertifiedCheckpoint>> {
        if self.clients.digest() != stable.clients {
            self.stop(MisbehaviourKind::Contradiction);
            return None;
        }
        let clients = self.clients.clone();
        Some(Arc::new(CertifiedCheckpoint { stable, clients }))
    }

    pub(crate) fn check_invariants(&self) {
        self.journal.check_invariants();
        self.bodies.check_invariants();
        self.checkpoints.check_invariants();
    }
}
