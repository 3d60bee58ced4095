//! Messages of a start: fresh, or after all machines were down (rule AllLogsAtStart). Signed with ordinary keys; they
//! use up no warrant. The exchange is described in `start.rs`.

use std::io;
use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::configuration::{Faults, is_replica};
use crate::hashing::digest_of;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::ledger::{HistoryPoint, StableCheckpoint};
use crate::minbft::messages::Prepare;
use crate::minbft::view_messages::ViewAcknowledgement;

/// A counter as it is now: what an attempt to start would admit.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Admission {
    /// The counter's epoch.
    pub epoch: u64,
    /// The last value of each slot (0: primary candidate; 1 + g: replica of group g).
    pub positions: Vec<u64>,
}

/// A machine announces itself after its process has started.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Hello {
    /// Who.
    pub machine: MachineId,
    /// Its counter.
    pub admission: Admission,
    /// The highest view that its log mentions; none: the log is empty.
    pub view: Option<View>,
    /// Its highest stable checkpoint, as proof that so much is decided.
    pub stable: Option<StableCheckpoint>,
    /// Over [`Hello::digest`].
    pub signature: [u8; 64],
}

impl Hello {
    /// What the signature covers.
    pub fn digest(&self) -> Digest {
        digest_of(
            "cloudbft hello v1",
            &(self.machine, &self.admission, self.view, &self.stable),
        )
    }

    /// The end of the proven history.
    pub fn point(&self) -> HistoryPoint {
        self.stable
            .as_ref()
            .map_or(HistoryPoint::GENESIS, |stable| stable.point)
    }
}

/// How far above what a correct machine mentions the view of an attempt to start may be. A correct machine that is alone in many
/// attempts does not come so far, and liars need 2^43 attempts to use up all views.
const VIEWS_BEYOND_MAX: u64 = 1 << 20;

/// The new primary's choice of hellos: one of each machine that takes part. It fixes view, epochs and base.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Collect {
    /// The view to be started.
    pub view: View,
    /// Ascending by machine.
    pub hellos: Vec<Arc<Hello>>,
    /// The primary's, over [`Collect::digest`].
    pub signature: [u8; 64],
}

impl Collect {
    /// What the signature covers.
    pub fn digest(&self) -> Digest {
        let hellos: Vec<Digest> = self.hellos.iter().map(|hello| hello.digest()).collect();
        digest_of("cloudbft collect v1", &(self.view, hellos))
    }

    /// The highest checkpoint that a replica can prove: the start continues from it. (m0 has no history: it may have a proof
    /// that nobody else has, of what nobody can give.)
    pub fn base(&self) -> HistoryPoint {
        self.hellos
            .iter()
            .filter(|hello| is_replica(hello.machine))
            .map(|hello| hello.point())
            .max_by_key(|point| point.order)
            .unwrap_or(HistoryPoint::GENESIS)
    }

    /// The highest view that an attempt with these hellos may have.
    ///
    /// Of f+1 machines that mention a view one is correct; a liar that mentions a much higher one would use up the views. What is
    /// left to it is to take no part, as if it were silent.
    pub(crate) fn view_max<'a>(hellos: impl Iterator<Item = &'a Hello>, faults: Faults) -> View {
        let mut views: Vec<u64> = hellos.filter_map(|hello| hello.view).map(|view| view.0).collect();
        views.sort_unstable_by(|left, right| right.cmp(left));
        let believed = views.get(usize::from(faults.0)).copied().unwrap_or(0);
        View(believed.saturating_add(VIEWS_BEYOND_MAX))
    }

    /// The hello of a machine.
    pub fn hello(&self, machine: MachineId) -> Option<&Arc<Hello>> {
        self.hellos.iter().find(|hello| hello.machine == machine)
    }
}

/// What a replica's log holds above the base.
///
/// Who has reported for a view never takes part in a lower one again, in this life of its process.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Report {
    /// Who.
    pub machine: MachineId,
    /// [`Collect::digest`].
    pub collect: Digest,
    /// The last view in which it was live, with the proof that this view was started.
    pub live: Option<Arc<LiveProof>>,
    /// Every PREPARE of that view above the base, by ascending value.
    pub prepares: Vec<Arc<Prepare>>,
    /// Digests of the bodies above the base that its log holds, and the groups in charge of them; ascending.
    pub held: Vec<(Digest, GroupId)>,
    /// Over [`Report::digest`].
    pub signature: [u8; 64],
}

impl Report {
    /// What the signature covers.
    pub fn digest(&self) -> Digest {
        let live = self.live.as_ref().map(|live| live.outcome.digest());
        let prepares: Vec<Digest> = self.prepares.iter().map(|prepare| prepare.own_digest()).collect();
        digest_of(
            "cloudbft report v1",
            &(self.machine, self.collect, live, prepares, &self.held),
        )
    }
}

/// The evidence from which everybody computes the same [`Outcome`].
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Start {
    /// The hellos.
    pub collect: Arc<Collect>,
    /// The reports of **all** replicas in the collect; ascending by machine.
    pub reports: Vec<Arc<Report>>,
    /// The primary's, over [`Start::digest`].
    pub signature: [u8; 64],
}

impl Start {
    /// What the signature covers.
    pub fn digest(&self) -> Digest {
        let reports: Vec<Digest> = self.reports.iter().map(|report| report.digest()).collect();
        digest_of("cloudbft start v1", &(self.collect.digest(), reports))
    }
}

/// One operation that a start takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OutcomeEntry {
    /// The group.
    pub group: GroupId,
    /// The time that the former primary stamped.
    pub time_us: u64,
    /// The request's digest; all zero when no machine has the body: then it was not decided, and nothing runs.
    pub digest: Digest,
}

/// How a view begins.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Outcome {
    /// The view.
    pub view: View,
    /// Everything up to here was decided before.
    pub base: HistoryPoint,
    /// What follows at `base.order + 1`, ...: decided by the start itself.
    pub entries: Vec<OutcomeEntry>,
    /// The counters that count in this view, from these positions on; ascending by machine.
    pub admitted: Vec<(MachineId, Admission)>,
    /// Whose VIEW-CHANGEs this follows from, ascending; empty: a start. Their positions are those of the
    /// VIEW-CHANGEs, and the two warrants that follow endorse and acknowledge this outcome.
    pub changed: Vec<MachineId>,
}

impl Outcome {
    /// Names the outcome.
    pub fn digest(&self) -> Digest {
        digest_of("cloudbft outcome v1", self)
    }

    /// Whether the view was not started, but changed to.
    pub fn is_change(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The order after the last one that it takes over.
    pub fn end(&self) -> Order {
        Order(
            self.base
                .order
                .0
                .saturating_add(self.entries.len() as u64)
                .saturating_add(1),
        )
    }

    /// The time of the last operation that it takes over.
    pub fn time_us(&self) -> u64 {
        self.entries.last().map_or(self.base.time_us, |entry| entry.time_us)
    }

    /// The last value of a machine's counter before the view, for a slot.
    pub fn position(&self, machine: MachineId, slot: u32) -> Option<u64> {
        let slot = usize::try_from(slot).ok()?;
        self.admission(machine)?.positions.get(slot).copied()
    }

    /// The counter of a machine.
    pub fn admission(&self, machine: MachineId) -> Option<&Admission> {
        self.admitted
            .iter()
            .find(|(admitted, _)| *admitted == machine)
            .map(|(_, admission)| admission)
    }
}

/// A replica's word that the start is in its durable log, with all bodies, and that it takes part in no lower view.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Acknowledgement {
    /// Who.
    pub machine: MachineId,
    /// The view.
    pub view: View,
    /// [`Outcome::digest`].
    pub outcome: Digest,
    /// Over [`Acknowledgement::digest`].
    pub signature: [u8; 64],
}

impl Acknowledgement {
    /// What the signature covers.
    pub fn digest(view: View, outcome: &Digest) -> Digest {
        digest_of("cloudbft acknowledge v1", &(view, outcome))
    }
}

/// An outcome that is decided: the view is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveProof {
    /// How the view began.
    pub outcome: Outcome,
    /// What decided it.
    pub decided_by: Proof,
}

/// What decided how a view begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Of a start: every admitted replica's signature over [`Acknowledgement::digest`]; ascending by machine. So every
    /// correct one has it in its log.
    Start(Vec<(MachineId, [u8; 64])>),
    /// Of a view change: f+1 acknowledgements; ascending by machine.
    Change(Vec<ViewAcknowledgement>),
}

impl Proof {
    /// The acknowledgements of a view change; none of a start.
    pub fn acknowledgements(&self) -> &[ViewAcknowledgement] {
        match self {
            Proof::Start(_) => &[],
            Proof::Change(acknowledgements) => acknowledgements,
        }
    }
}

/// Encoded as the outcome, the signatures and the acknowledgements, of which one list is empty: the outcome says which.
impl BorshSerialize for LiveProof {
    fn serialize<W: io::Write>(&self, writer: &mut W) -> io::Result<()> {
        self.outcome.serialize(writer)?;
        match &self.decided_by {
            Proof::Start(signatures) => (signatures, 0_u32).serialize(writer),
            Proof::Change(acknowledgements) => (0_u32, acknowledgements).serialize(writer),
        }
    }
}

impl BorshDeserialize for LiveProof {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        type Lists = (Vec<(MachineId, [u8; 64])>, Vec<ViewAcknowledgement>);
        let outcome = Outcome::deserialize_reader(reader)?;
        let (signatures, acknowledgements) = Lists::deserialize_reader(reader)?;
        let decided_by = match outcome.is_change() {
            true if signatures.is_empty() => Proof::Change(acknowledgements),
            false if acknowledgements.is_empty() => Proof::Start(signatures),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(LiveProof { outcome, decided_by })
    }
}
