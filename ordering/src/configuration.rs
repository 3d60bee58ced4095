//! Sizes, limits and timeouts of the agreement.

use crate::identifiers::{GroupId, MachineId, View};
use crate::message::MESSAGE_BYTES_MAX;

/// How many machines may be faulty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults(pub u8);

/// The agreement protocol of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// MinBFT: 2f+1 replicas on m1..m(2f+1) with trusted counters; m0 holds the first primary only.
    #[default]
    MinBft,
    /// PBFT: 3f+1 replicas on m0..m(3f), no trusted counter; the primary is one of them.
    Pbft,
}

/// Most faulty machines that can be configured.
pub const FAULTS_MAX: u8 = 10;

/// Most groups that can be configured.
pub const GROUPS_MAX: u16 = 1024;

/// Batches whose PREPARE may arrive ahead of a gap; further ones are dropped and sent again.
pub const PREPARE_WINDOW: u64 = 256;

/// COMMITs of one replica that may arrive ahead of a gap; further ones are dropped and sent again.
pub const COMMIT_WINDOW: u64 = 256;

/// Batches that one COMMIT may cover.
pub const COMMIT_BATCHES_MAX: usize = 64;

/// Most entries of a batch, whatever is configured.
pub const BATCH_ENTRIES_LIMIT: usize = 1024;

/// Most bodies that one FETCH may ask for, and one GIVE may hold.
pub const FETCH_REQUESTS_MAX: usize = 1024;

/// Most operations in one piece of history.
pub const HISTORY_ENTRIES_MAX: usize = 2048;

/// Orders between two checkpoints.
pub const CHECKPOINT_ORDERS: u64 = 512;

/// Bytes of bodies after which a checkpoint is due earlier.
pub const CHECKPOINT_BYTES: usize = 16 << 20;

/// Longest time that a request may wait before the primary is suspected, in microseconds: an hour.
pub const REQUEST_US_MAX: u64 = 3_600_000_000;

/// Orders above the last stable checkpoint that a replica takes part in deciding; what a recovery must carry.
pub const WATERMARK_ORDERS: u64 = 16_384;

/// Bytes of bodies above the last stable checkpoint, at which a replica waits for the next one.
pub const WATERMARK_BYTES: usize = 256 << 20;

/// Sizes, limits and timeouts, alike on all machines (except `machine`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// This machine.
    pub machine: MachineId,
    /// The agreement protocol.
    pub protocol: Protocol,
    /// How many machines may be faulty: f.
    pub faults: Faults,
    /// How many groups there are; every machine with replicas ([`Configuration::replica_machines`]) holds one of each.
    pub groups: u16,
    /// How many of them are in charge of homes until that is changed ([`crate::assignment`]).
    pub groups_at_first: u16,
    /// Most entries of a batch (at most [`BATCH_ENTRIES_LIMIT`]).
    pub batch_entries_max: usize,
    /// Most bytes of operations in a batch of more than one entry.
    pub batch_bytes_max: usize,
    /// Batches that the primary keeps between PREPARE and decision.
    pub batches_in_flight_max: usize,
    /// Requests that may wait at the primary for a batch, over all clients.
    pub requests_queued_max: usize,
    /// Bytes of bodies of one client that a machine keeps before they are ordered.
    pub client_bytes_max: usize,
    /// Bytes of decided bodies that are kept to answer fetches without reading the log.
    pub tail_bytes_max: usize,
    /// What the log may weigh before databases that lag (f at most) hold it back no longer, in bytes.
    pub log_bytes_max: u64,
    /// The log is cut when that frees so many bytes.
    pub cut_bytes: u64,
    /// The largest message that links carry, in bytes: NEW-VIEW with its f+1 VIEW-CHANGEs must fit.
    pub message_bytes_max: usize,
    /// How far a PREPARE's time may be ahead of this machine's wall clock, in microseconds; it waits until it is not.
    pub clock_ahead_max_us: u64,
    /// How far a PREPARE's time may be behind, in microseconds; it then needs f+1 COMMITs of others first.
    pub clock_behind_max_us: u64,
    /// How long to wait for a body that comes from the client by itself, in microseconds.
    pub body_patience_us: u64,
    /// How long without progress before lost messages are looked for, in microseconds.
    pub retransmission_us: u64,
    /// How long a request may wait before the primary is suspected, in microseconds; doubles with each view change.
    pub request_us: u64,
    /// How often a machine that waits for the start announces itself, in microseconds.
    pub hello_us: u64,
    /// Machines that the operator has declared lost for good: a start does not wait for them.
    pub lost: Vec<MachineId>,
    /// The rule that is taken out, to show that a test notices.
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

/// A machine with one rule of `docs/protocol.md` taken out: only with the feature `mutants`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Rule NoHoles: COMMITs are followed across holes.
    FollowAcrossHoles,
    /// Rule QuorumsMeet: one VIEW-CHANGE is enough for a NEW-VIEW.
    OneViewChange,
    /// Rule NoLateCommit: the own counter may skip values.
    SkipWarrants,
    /// Rule CommittedView: a view begins with the own acknowledgement alone.
    EnterUnacknowledged,
    /// Rule EndorseThenAcknowledge: an outcome is acknowledged without others' endorsements.
    AcknowledgeUnendorsed,
    /// Rule JustifiedChange: one wish makes a machine leave.
    LeaveAlone,
    /// Rule RequestsPassedOn: requests are not passed on to the primary.
    KeepRequests,
    /// Rule AdmittedEpochs: COMMITs of any epoch count.
    AnyEpoch,
    /// Rule BoundedState: COMMITs ahead of a gap are kept without limit.
    EndlessWindow,
    /// Rule OnceOnly: the primary orders a request as often as it comes.
    OrderTwice,
    /// Rule FullQuorum: 2f votes are a quorum.
    PbftSmallQuorum,
    /// Rule HighestView: of several certificates, that of the lowest view counts.
    PbftLowestView,
    /// Rule ChangesSaidAgain: VIEW-CHANGE is sent once.
    PbftSayOnce,
    /// Rule PreparedFirst: COMMIT is sent without 2f+1 PREPAREs.
    PbftCommitUnprepared,
    /// PBFT, rule OnceOnly: what was decided is taken again.
    PbftForgetDecided,
    /// Rule GroupOfTheOrder: the group of an entry is looked up in the newest assignment, instead of the one of its order.
    AssignmentOfNow,
    /// Rule ChangesDivide: batches behind a change are committed before the change is decided.
    CommitBehindChange,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 17] = [
        Mutant::FollowAcrossHoles,
        Mutant::OneViewChange,
        Mutant::SkipWarrants,
        Mutant::EnterUnacknowledged,
        Mutant::AcknowledgeUnendorsed,
        Mutant::LeaveAlone,
        Mutant::KeepRequests,
        Mutant::AnyEpoch,
        Mutant::EndlessWindow,
        Mutant::OrderTwice,
        Mutant::PbftSmallQuorum,
        Mutant::PbftLowestView,
        Mutant::PbftSayOnce,
        Mutant::PbftCommitUnprepared,
        Mutant::PbftForgetDecided,
        Mutant::AssignmentOfNow,
        Mutant::CommitBehindChange,
    ];

    /// The mutant of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutant| format!("{mutant:?}") == name)
    }
}

impl Configuration {
    /// Defaults for this machine of a MinBFT cluster of this size.
    pub fn new(machine: MachineId, faults: Faults, groups: u16) -> Self {
        Configuration {
            machine,
            protocol: Protocol::MinBft,
            faults,
            groups,
            groups_at_first: groups,
            batch_entries_max: 256,
            batch_bytes_max: 4 << 20,
            batches_in_flight_max: 4,
            requests_queued_max: 65_536,
            client_bytes_max: 64 << 20,
            tail_bytes_max: 24 << 20,
            log_bytes_max: 4 << 30,
            cut_bytes: 16 << 20,
            message_bytes_max: MESSAGE_BYTES_MAX,
            clock_ahead_max_us: 5_000_000,
            clock_behind_max_us: 600_000_000,
            body_patience_us: 3_000,
            retransmission_us: 100_000,
            request_us: 300_000,
            hello_us: 200_000,
            lost: Vec::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// Whether this rule is taken out.
    #[cfg(feature = "mutants")]
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Whether this rule is taken out: never.
    #[cfg(not(feature = "mutants"))]
    pub(crate) const fn is(&self, _mutant: Mutant) -> bool {
        false
    }

    /// Whether the sizes are within the limits of this crate.
    pub fn is_valid(&self) -> bool {
        self.faults.0 <= FAULTS_MAX
            && (1..=GROUPS_MAX).contains(&self.groups)
            && (1..=self.groups).contains(&self.groups_at_first)
            && (1..=BATCH_ENTRIES_LIMIT).contains(&self.batch_entries_max)
            && self.machine.0 < self.machines()
            && self.batches_in_flight_max > 0
            && (1..=REQUEST_US_MAX).contains(&self.request_us)
            && self.lost.iter().all(|machine| *machine != self.machine)
    }

    /// Defaults for this machine of a PBFT cluster of this size.
    pub fn pbft(machine: MachineId, faults: Faults, groups: u16) -> Self {
        Configuration {
            protocol: Protocol::Pbft,
            ..Self::new(machine, faults, groups)
        }
    }

    /// Bytes that a VIEW-CHANGE may need for PREPAREs, and as many for warrants.
    ///
    /// f+1 VIEW-CHANGEs fit into a message. Each holds PREPAREs, the runs of warrants, and the outcomes of up to three
    /// views, which hold what once stood in PREPAREs and need a quarter more for it: six parts, of eight.
    pub(crate) fn evidence_bytes_max(&self) -> usize {
        self.message_bytes_max / (usize::from(self.faults.0) + 1) / 8
    }

    /// How many machines there are: 2f+2 under MinBFT, 3f+1 under PBFT.
    pub fn machines(&self) -> u8 {
        self.protocol.machines(self.faults)
    }

    /// How many replicas a group has: 2f+1 under MinBFT, 3f+1 under PBFT.
    pub fn replicas(&self) -> u8 {
        self.protocol.replicas(self.faults)
    }

    /// How many replicas decide: f+1 under MinBFT, 2f+1 under PBFT.
    pub fn quorum(&self) -> u32 {
        let missing = u32::from(self.is(Mutant::PbftSmallQuorum));
        self.protocol.quorum(self.faults) - missing
    }

    /// The machines that hold replicas.
    pub fn replica_machines(&self) -> impl Iterator<Item = MachineId> + use<> {
        let first = self.machines() - self.replicas();
        (first..self.machines()).map(MachineId)
    }

    /// The machine with replicas that follows a machine, other than our own: whom to ask next.
    pub(crate) fn next_replica(&self, after: MachineId) -> MachineId {
        let (first, count) = (self.machines() - self.replicas(), self.replicas());
        let following = |machine: MachineId| MachineId(first + (machine.0 + 1 - first) % count);
        let next = following(after);
        if next == self.machine { following(next) } else { next }
    }

    /// How many machines hold a voter and a database node: 2f+1 under every protocol, m1..m(2f+1).
    pub fn voters(&self) -> u8 {
        2 * self.faults.0 + 1
    }

    /// Whether this machine holds replicas.
    pub fn has_replicas(&self) -> bool {
        self.protocol == Protocol::Pbft || is_replica(self.machine)
    }

    /// The candidate that leads a view.
    pub fn primary(&self, view: View) -> MachineId {
        let candidate = view.0 % u64::from(self.machines());
        MachineId(u8::try_from(candidate).unwrap_or(0))
    }
}

impl Protocol {
    /// How many machines a cluster has.
    pub fn machines(self, faults: Faults) -> u8 {
        match self {
            Protocol::MinBft => 2 * faults.0 + 2,
            Protocol::Pbft => 3 * faults.0 + 1,
        }
    }

    /// How many replicas a group has.
    pub fn replicas(self, faults: Faults) -> u8 {
        match self {
            Protocol::MinBft => 2 * faults.0 + 1,
            Protocol::Pbft => 3 * faults.0 + 1,
        }
    }

    /// How many replicas decide: enough that two such sets share a replica that cannot have said two things (MinBFT:
    /// any one; PBFT: f+1, of which one is correct).
    pub fn quorum(self, faults: Faults) -> u32 {
        match self {
            Protocol::MinBft => u32::from(faults.0) + 1,
            Protocol::Pbft => 2 * u32::from(faults.0) + 1,
        }
    }
}

/// The group in charge of a home, when so many are.
pub fn group_of(home: u64, groups: u16) -> GroupId {
    GroupId(u16::try_from(home % u64::from(groups.max(1))).unwrap_or(0))
}

/// Whether a machine holds replicas under MinBFT: all but m0.
pub fn is_replica(machine: MachineId) -> bool {
    machine.0 != 0
}

/// The counter slot of the primary candidate.
pub const PRIMARY_SLOT: u32 = 0;

/// The counter slot of a machine's replica of a group.
pub fn replica_slot(group: GroupId) -> u32 {
    u32::from(group.0) + 1
}
