//! The interface that every agreement protocol has: a deterministic value that is fed (`docs/protocol.md`).

use std::sync::Arc;

use trusted_counter::UniqueWarrant;

use crate::assignment::Assignment;
use crate::configuration::Faults;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::message::{CommitDb, ReplyCommitDb, Request};
use crate::verified::Verified;

/// The time, as the shell sees it at a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// A clock that never goes back, in microseconds since any fixed point: for timeouts.
    pub monotonic_us: u64,
    /// Wall time in microseconds since the Unix epoch: for the primary's stamps, and to check them.
    pub wall_us: u64,
}

/// One machine's part in an agreement protocol.
///
/// `step` never blocks and never fails: bad input is a `Report` or silence. Outputs are to be carried out in order.
pub trait Agreement: Sized {
    /// The protocol's messages between machines.
    type Message;
    /// The protocol's log records.
    type Record;
    /// The reader that collects an answer from the log.
    type LogReader;

    /// How many replicas a group has: 2f+1 or 3f+1.
    fn replicas(faults: Faults) -> u8;

    /// Takes inputs that are there together, in their order, and appends what is to be done: what follows from all of
    /// them is done once, so batches are fuller and messages fewer than one by one.
    fn step_all(
        &mut self,
        now: Now,
        inputs: impl IntoIterator<Item = Input<Self::Message>>,
        outputs: &mut Vec<Output<Self::Message, Self::Record, Self::LogReader>>,
    );

    /// Takes one input.
    fn step(
        &mut self,
        now: Now,
        input: Input<Self::Message>,
        outputs: &mut Vec<Output<Self::Message, Self::Record, Self::LogReader>>,
    ) {
        self.step_all(now, [input], outputs);
    }

    /// The monotonic time at which to step with `Timeout` at the latest; none: only after the next input.
    fn deadline(&self) -> Option<u64>;

    /// What metrics and checkers want to know.
    fn status(&self) -> Status;

    /// Asserts what must hold of our own state; called after every step in tests and simulation.
    fn check_invariants(&self);
}

/// What a machine is fed.
#[derive(Clone, Debug)]
pub enum Input<M> {
    /// A client's REQUEST.
    Request(Verified<Arc<Request>>),
    /// A message of another machine.
    Message {
        /// The machine at the other end of the link.
        from: MachineId,
        /// The message.
        message: Verified<M>,
    },
    /// Answers `Output::Certify`.
    Certified {
        /// The output's ticket.
        ticket: u64,
        /// The warrant.
        warrant: UniqueWarrant,
    },
    /// The time may have come for something (see `deadline`).
    Timeout,
    /// Every record up to this sequence number is durable.
    Persisted(u64),
    /// REPLY-COMMIT-DB of a voter.
    Reply {
        /// The voter's machine.
        from: MachineId,
        /// The reply.
        reply: ReplyCommitDb,
    },
    /// A voter asks for everything decided from this order on.
    FetchCommitDb {
        /// The voter's machine.
        from: MachineId,
        /// The first order that it lacks.
        order: Order,
    },
    /// A voter knows that this was decided and lacks the body.
    FetchRequest {
        /// The voter's machine.
        from: MachineId,
        /// The order.
        order: Order,
        /// The request's digest.
        digest: Digest,
    },
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// One other machine.
    Machine(MachineId),
    /// All other machines, m0 included.
    Others,
    /// All other machines that hold replicas (not m0).
    Replicas,
}

/// What the shell is to do, in this order.
#[derive(Clone, Debug)]
pub enum Output<M, R, L> {
    /// Append the record to the machine's log, and make it durable soon; several may share one fsync.
    Persist {
        /// Strictly ascending; `Persisted` names it.
        sequence: u64,
        /// The record.
        record: R,
    },
    /// Make a unique warrant. Must be done in the order of the outputs.
    Certify {
        /// The counter slot.
        slot: u32,
        /// What to certify.
        digest: Digest,
        /// Names the answer.
        ticket: u64,
    },
    /// Send a message. It may get lost; it must not be altered, and the link must not block.
    Send {
        /// To whom.
        to: To,
        /// The message.
        message: M,
    },
    /// Decided: whole to the voter on this machine; without bodies (`CommitDb::digests`) to the voters on all others.
    Deliver(CommitDb),
    /// The answer to a voter's fetch: decided operations, whole, for the voter on that machine.
    Answer {
        /// The voter's machine (may be this one).
        to: MachineId,
        /// The operations.
        message: CommitDb,
    },
    /// Read the log beside the owner task: feed `reader` the records from the place on that
    /// `LogIndex::offset(reader.from())` gives, until it is full or the log ends, and send what it has found.
    ReadLog {
        /// Collects the answer.
        reader: L,
    },
    /// What a voter asks for is cut off the log: it begins with this order. For the voter on that machine.
    LogBegins {
        /// The voter's machine (may be this one).
        to: MachineId,
        /// The first order that can be asked for.
        first: Order,
    },
    /// Operations below this order are not read again: the log may be cut below them, and below the last durable
    /// record that is a foundation (`LogIndex::cut`).
    CutLog {
        /// The first order that is needed.
        first: Order,
    },
    /// A peer has done what no correct one does; to be counted and kept.
    Report(Misbehaviour),
}

/// What only a faulty machine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misbehaviour {
    /// The machine that misbehaved.
    pub machine: MachineId,
    /// The kind of misbehaviour.
    pub kind: MisbehaviourKind,
}

/// Kinds of [`Misbehaviour`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MisbehaviourKind {
    /// A primary's PREPARE that breaks the rules although its warrant is right (orders with a gap, times that go
    /// back, unknown group): the rest of its stream in this view is not followed.
    WrongPrepare,
    /// A replica's COMMIT that breaks the rules although its warrant is right: its stream is not followed further.
    WrongCommit,
    /// A COMMIT or checkpoint that contradicts what this machine knows.
    Contradiction,
    /// A recovery message that does not follow from its own evidence.
    WrongRecovery,
    /// Bodies or history that nobody asked for, or that are not what was asked for.
    WrongContent,
    /// A warrant of an epoch that was not admitted: a counter that was restarted, or an impostor.
    WrongEpoch,
    /// A time stamp outside the configured skew.
    ClockSkew,
    /// This machine's own counter changed its epoch or skipped a value: the machine stops taking part.
    OwnCounter,
    /// This machine's own state contradicts itself, which no peer can cause: the machine stops taking part.
    OwnState,
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Has announced itself, and waits for the cluster to start, or to be admitted again.
    Waiting,
    /// Takes part in a start: has reported its log, fetches what it lacks, or has acknowledged.
    Starting,
    /// Has left a view, and goes to a later one.
    Changing,
    /// Takes part in a view.
    Live,
    /// Its own counter failed: takes part in nothing until it is restarted.
    Stopped,
}

/// What metrics and checkers want to know of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// The view it is in (of `Waiting` and `Starting`: the last one it was in).
    pub view: View,
    /// Who leads that view.
    pub primary: MachineId,
    /// The last order of which this machine has seen the PREPARE without gap (a primary: has given out).
    pub prepared: Order,
    /// Everything up to here is decided in all groups, and in this machine's log.
    pub decided: Order,
    /// The last order of a stable checkpoint.
    pub stable: Order,
    /// Batches between PREPARE and decision.
    pub batches_in_flight: usize,
    /// Requests that wait for the primary's next batch.
    pub requests_queued: usize,
    /// Bodies held that are not decided yet.
    pub bodies: usize,
    /// Their bytes.
    pub bodies_bytes: usize,
    /// Bodies that were ordered and are missing here.
    pub bodies_missing: usize,
    /// The first order that can be read from this machine's log.
    pub log_first: Order,
    /// What a lagging voter needs and only this machine's log has: the lowest flushed order that voters reported.
    pub flushed: Order,
    /// Per group: the last decided order.
    pub groups: Vec<(GroupId, Order)>,
    /// Which groups are in charge of what follows the decided orders.
    pub assignment: Assignment,
    /// How many groups that are.
    pub groups_in_charge: u16,
}
