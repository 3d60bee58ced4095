//! MinBFT's messages (`docs/protocol.md#messages`): what replicas and primaries send each other.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use trusted_counter::UniqueWarrant;

use crate::client_table::ClientTable;
use crate::directory::Directory;
use crate::hashing::{self, Context, context};
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::message::Request;
use crate::minbft::start_messages::{Acknowledgement, Collect, Hello, LiveProof, Report, Start};
use crate::minbft::view_messages::{
    Endorsement, Followed, FollowedStatement, NewView, RequestViewChange, ViewAcknowledgement, ViewChange,
};
use crate::verified::Rejection;

/// Everything that machines send each other.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Message {
    /// The primary orders a batch.
    Prepare(Arc<Prepare>),
    /// A replica has batches in its durable log.
    Commit(Arc<Commit>),
    /// Tells the primary how far this machine's log is.
    Progress(Progress),
    /// What the sender has of the receiver's messages: the receiver sends again what is missing.
    Standing(Standing),
    /// How far the sender's history goes, and its hash; signed.
    Checkpoint(Arc<Checkpoint>),
    /// f+1 equal checkpoints.
    Stable(StableCheckpoint),
    /// Asks for the bodies of these digests.
    FetchRequests(Vec<Digest>),
    /// Bodies that were asked for.
    GiveRequests(Vec<Arc<Request>>),
    /// Asks for decided operations from this order on.
    FetchHistory(Order),
    /// A piece of the decided history.
    GiveHistory(Arc<History>),
    /// What was asked for is cut off the sender's log: its last stable checkpoint instead.
    GiveCheckpoint(Arc<CertifiedCheckpoint>),
    /// A machine announces itself (start).
    Hello(Arc<Hello>),
    /// The new primary asks for reports (start).
    Collect(Arc<Collect>),
    /// What a replica's log holds (start).
    Report(Arc<Report>),
    /// The new primary's evidence for how the view begins (start).
    Start(Arc<Start>),
    /// A replica has the start in its durable log.
    Acknowledge(Acknowledgement),
    /// A view is under way: its beginning is decided.
    Live(Arc<LiveProof>),
    /// A machine wants another view.
    RequestViewChange(RequestViewChange),
    /// A machine has left the lower views.
    ViewChange(Arc<ViewChange>),
    /// The new primary's evidence for how the view begins.
    NewView(Arc<NewView>),
    /// A replica has the outcome of a view change in its durable log.
    Endorse(Arc<Endorsement>),
    /// A replica has seen that f+1 have.
    AcknowledgeView(Arc<ViewAcknowledgement>),
}

/// PREPARE: the primary gives `entries[i]` the order `first + i` and the time `time_us + i`.
///
/// Fields that are hashed into [`Prepare::digest`] must be changed only together with it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Prepare {
    /// The view.
    pub view: View,
    /// The order of the first entry.
    pub first: Order,
    /// The primary's time at the first entry, in microseconds since the Unix epoch.
    pub time_us: u64,
    /// What is ordered.
    pub entries: Vec<PrepareEntry>,
    /// Of the primary's counter, slot [`crate::configuration::PRIMARY_SLOT`].
    pub warrant: UniqueWarrant,
}

/// One ordered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PrepareEntry {
    /// The group in charge.
    pub group: GroupId,
    /// The request's digest.
    pub digest: Digest,
}

/// Bytes that are hashed for an entry.
const ENTRY_BYTES: usize = 2 + 32;

impl Prepare {
    /// What the primary's counter certifies.
    pub fn digest(view: View, first: Order, time_us: u64, entries: &[PrepareEntry]) -> Digest {
        static CONTEXT: Context = context!("cloudbft prepare v1");
        let mut bytes = Vec::with_capacity(24 + ENTRY_BYTES * entries.len());
        bytes.extend_from_slice(&view.0.to_le_bytes());
        bytes.extend_from_slice(&first.0.to_le_bytes());
        bytes.extend_from_slice(&time_us.to_le_bytes());
        for entry in entries {
            bytes.extend_from_slice(&entry.group.0.to_le_bytes());
            bytes.extend_from_slice(&entry.digest);
        }
        hashing::digest(&CONTEXT, &bytes)
    }

    /// [`Prepare::digest`] of this one.
    pub fn own_digest(&self) -> Digest {
        Self::digest(self.view, self.first, self.time_us, &self.entries)
    }

    /// The order of the last entry.
    pub fn last(&self) -> Order {
        Order(self.first.0.saturating_add(self.entries.len() as u64).saturating_sub(1))
    }
}

/// COMMIT: the sender has these batches, and the bodies of its group's share, in its durable log.
///
/// One warrant covers several batches; values ascend.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Commit {
    /// The view.
    pub view: View,
    /// The group.
    pub group: GroupId,
    /// The batches: the value of the PREPARE's warrant, and its digest.
    pub batches: Vec<(u64, Digest)>,
    /// Of the replica's counter for the group.
    pub warrant: UniqueWarrant,
}

impl Commit {
    /// What the replica's counter certifies.
    pub fn digest(view: View, group: GroupId, batches: &[(u64, Digest)]) -> Digest {
        static CONTEXT: Context = context!("cloudbft commit v1");
        let mut hasher = hashing::hasher(&CONTEXT);
        hasher.update(&view.0.to_le_bytes());
        hasher.update(&group.0.to_le_bytes());
        for (value, digest) in batches {
            hasher.update(&value.to_le_bytes());
            hasher.update(digest);
        }
        *hasher.finalize().as_bytes()
    }
}

/// Progress of a machine, for the primary's flow control only: it decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Progress {
    /// The view.
    pub view: View,
    /// All batches up to this value of the primary's counter are in the sender's durable log.
    pub committed: u64,
}

/// STATUS: what the sender has got of the receiver's messages; sent when something seems to be missing.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Standing {
    /// The view.
    pub view: View,
    /// Whether the receiver should send PREPAREs too (one machine at a time is asked).
    pub prepares_wanted: bool,
    /// The last value of the primary's counter that the sender has followed without gap.
    pub prepares: u64,
    /// Per group: the last value of the receiver's counter that the sender has followed without gap.
    pub commits: Vec<u64>,
    /// Everything up to here is decided and logged at the sender.
    pub decided: Order,
    /// The sender's stable checkpoint.
    pub stable: Order,
}

/// A place in the decided history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct HistoryPoint {
    /// The order of the last operation.
    pub order: Order,
    /// Its time.
    pub time_us: u64,
    /// The hash over everything up to it (`extend_history`).
    pub history: Digest,
    /// Bytes of all operations up to it.
    pub bytes: u64,
    /// The view in which it was prepared.
    pub view: View,
    /// The value of the primary's counter that prepared it in that view.
    pub value: u64,
}

impl HistoryPoint {
    /// Before anything was ordered.
    pub const GENESIS: HistoryPoint = HistoryPoint {
        order: Order(0),
        time_us: 0,
        history: [0; 32],
        bytes: 0,
        view: View(0),
        value: 0,
    };

    /// Names the place, and the client table there: what a checkpoint is about.
    pub fn digest(&self, clients: &Digest) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("cloudbft history point v3");
        hasher.update(clients);
        hasher.update(&self.order.0.to_le_bytes());
        hasher.update(&self.time_us.to_le_bytes());
        hasher.update(&self.history);
        hasher.update(&self.bytes.to_le_bytes());
        hasher.update(&self.view.0.to_le_bytes());
        hasher.update(&self.value.to_le_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// The hash over the decided history, one operation further.
pub(crate) fn extend_history(history: &Digest, group: GroupId, time_us: u64, digest: &Digest) -> Digest {
    let mut bytes = [0; 32 + 2 + 8 + 32];
    let (head, rest) = bytes.split_at_mut(32);
    head.copy_from_slice(history);
    let (middle, rest) = rest.split_at_mut(2);
    middle.copy_from_slice(&group.0.to_le_bytes());
    let (time, rest) = rest.split_at_mut(8);
    time.copy_from_slice(&time_us.to_le_bytes());
    rest.copy_from_slice(digest);
    *blake3::hash(&bytes).as_bytes()
}

/// CHECKPOINT: signed with the machine's ordinary key, so it uses up no warrant (rule CheckpointsSpendNothing).
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Checkpoint {
    /// Who signs.
    pub machine: MachineId,
    /// How far the history goes.
    pub point: HistoryPoint,
    /// [`ClientTable::digest`] there.
    pub clients: Digest,
    /// How far the machine has followed the counters of the others by then.
    pub followed: Option<Followed>,
    /// Over [`Checkpoint::signed`].
    pub signature: [u8; 64],
}

impl Checkpoint {
    /// What the signature covers; each of the two can be shown later without the other.
    pub fn signed(&self) -> Digest {
        checkpoint_signed(&self.point.digest(&self.clients), &self.followed_digest())
    }

    pub(crate) fn followed_digest(&self) -> Digest {
        self.followed.as_ref().map(Followed::digest).unwrap_or_default()
    }

    /// Its part of a [`StableCheckpoint`].
    pub(crate) fn own_signature(&self) -> CheckpointSignature {
        CheckpointSignature {
            machine: self.machine,
            followed: self.followed_digest(),
            signature: self.signature,
        }
    }

    /// What it says of counters, with what proves it.
    pub fn followed_statement(&self) -> Option<FollowedStatement> {
        Some(FollowedStatement {
            followed: self.followed.clone()?,
            point: self.point.digest(&self.clients),
            signature: self.signature,
        })
    }
}

/// What a checkpoint's signature covers: [`HistoryPoint::digest`], and [`Followed::digest`] or zero.
pub(crate) fn checkpoint_signed(point: &Digest, followed: &Digest) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("cloudbft checkpoint v3");
    hasher.update(point);
    hasher.update(followed);
    *hasher.finalize().as_bytes()
}

/// One machine's signature under a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CheckpointSignature {
    /// Who signs.
    pub machine: MachineId,
    /// [`Followed::digest`] of what it said beside it; zero for nothing.
    pub followed: Digest,
    /// Over both.
    pub signature: [u8; 64],
}

impl CheckpointSignature {
    /// `point`: [`HistoryPoint::digest`].
    pub(crate) fn verify(&self, point: &Digest, directory: &Directory) -> Result<(), Rejection> {
        let signed = checkpoint_signed(point, &self.followed);
        directory.verify_machine(self.machine, &signed, &self.signature)
    }
}

/// f+1 machines' equal checkpoints: at least one of them is correct, so this is decided history.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StableCheckpoint {
    /// How far the history goes.
    pub point: HistoryPoint,
    /// [`ClientTable::digest`] there.
    pub clients: Digest,
    /// f+1 signatures of distinct machines.
    pub signatures: Vec<CheckpointSignature>,
}

/// A stable checkpoint with all that a replica needs of the history up to it. Whoever has this needs no operation below.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CertifiedCheckpoint {
    /// The proof.
    pub stable: StableCheckpoint,
    /// Which requests are decided by then.
    pub clients: ClientTable,
}

/// One decided operation.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct HistoryEntry {
    /// The group that decided.
    pub group: GroupId,
    /// The primary's time.
    pub time_us: u64,
    /// The request's digest; all zero: nothing runs.
    pub digest: Digest,
    /// The body; none exactly for the zero digest.
    pub request: Option<Arc<Request>>,
}

/// GIVE: a piece of the decided history; proven only together with the checkpoint at its end.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct History {
    /// The order of the first entry.
    pub first: Order,
    /// Operations at `first`, `first + 1`, ...
    pub entries: Vec<HistoryEntry>,
    /// A stable checkpoint exactly at the last entry, when the piece ends at one.
    pub proof: Option<StableCheckpoint>,
}

impl History {
    /// The order after the last entry.
    pub fn end(&self) -> Order {
        Order(self.first.0.saturating_add(self.entries.len() as u64))
    }
}
