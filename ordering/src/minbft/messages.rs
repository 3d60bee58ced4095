//! MinBFT's messages (`docs/protocol.md#messages`): what replicas and primaries send each other.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use trusted_counter::UniqueWarrant;

use crate::hashing::{self, Context, context};
use crate::identifiers::{Digest, GroupId, Order, View};
use crate::ledger::{CertifiedCheckpoint, Checkpoint, History, PrepareEntry, Said, StableCheckpoint};
use crate::message::Request;
use crate::minbft::start_messages::{Acknowledgement, Collect, Hello, LiveProof, Report, Start};
use crate::minbft::view_messages::{
    Endorsement, Followed, NewView, RequestViewChange, ViewAcknowledgement, ViewChange,
};

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
    Checkpoint(Arc<Checkpoint<Followed>>),
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

impl From<Said> for Message {
    fn from(said: Said) -> Self {
        match said {
            Said::FetchRequests(digests) => Message::FetchRequests(digests),
            Said::GiveRequests(requests) => Message::GiveRequests(requests),
            Said::FetchHistory(order) => Message::FetchHistory(order),
            Said::GiveHistory(history) => Message::GiveHistory(history),
            Said::GiveCheckpoint(checkpoint) => Message::GiveCheckpoint(checkpoint),
        }
    }
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
