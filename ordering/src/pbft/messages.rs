//! PBFT's messages: what replicas send each other.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::hashing::{self, Context, context, digest_of};
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::{CertifiedCheckpoint, Checkpoint, History, Nothing, PrepareEntry, Said, StableCheckpoint};
use crate::message::Request;

/// Everything that machines send each other.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Message {
    /// The primary proposes a batch.
    PrePrepare(Arc<PrePrepare>),
    /// A replica has accepted a batch; its log has it.
    Prepare(Prepare),
    /// A replica has a prepared certificate for a batch in its log.
    Commit(Commit),
    /// What the sender has: the receiver sends again what is missing.
    Standing(Standing),
    /// How far the sender's history goes, and its hash; signed.
    Checkpoint(Checkpoint<Nothing>),
    /// 2f+1 equal checkpoints.
    Stable(StableCheckpoint),
    /// Asks for the bodies of these digests.
    FetchRequests(Vec<Digest>),
    /// Bodies that were asked for.
    GiveRequests(Vec<Arc<Request>>),
    /// Requests that the primary seems not to have got from the clients.
    Forward(Vec<Arc<Request>>),
    /// Asks for decided operations from this order on.
    FetchHistory(Order),
    /// A piece of the decided history.
    GiveHistory(Arc<History>),
    /// The sender has cut the requested orders off its log, and gives its last stable checkpoint instead.
    GiveCheckpoint(Arc<CertifiedCheckpoint>),
    /// A replica wants another primary.
    RequestViewChange(RequestViewChange),
    /// A replica leaves its view.
    ViewChange(Arc<ViewChange>),
    /// The new primary's evidence for how the view begins.
    NewView(Arc<NewView>),
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

/// A batch: `entries[i]` gets the order `first + i` and the time `time_us + i`.
///
/// It is the same in every view that proposes it (again).
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Batch {
    /// The sequence number: the first batch has number 1; without gap over all views.
    pub number: u64,
    /// The order of the first entry.
    pub first: Order,
    /// The primary's time at the first entry, in microseconds since the Unix epoch.
    pub time_us: u64,
    /// The operations that are ordered.
    pub entries: Vec<PrepareEntry>,
}

/// Bytes that are hashed for an entry.
const ENTRY_BYTES: usize = 2 + 32;

impl Batch {
    /// What is agreed on.
    pub fn digest(&self) -> Digest {
        static CONTEXT: Context = context!("cloudbft pbft batch v1");
        let mut bytes = Vec::with_capacity(24 + ENTRY_BYTES * self.entries.len());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.first.0.to_le_bytes());
        bytes.extend_from_slice(&self.time_us.to_le_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.group.0.to_le_bytes());
            bytes.extend_from_slice(&entry.digest);
        }
        hashing::digest(&CONTEXT, &bytes)
    }

    /// The order of the last entry.
    pub fn last(&self) -> Order {
        Order(self.first.0.saturating_add(self.entries.len() as u64).saturating_sub(1))
    }

    /// The time of the last entry.
    pub fn last_us(&self) -> u64 {
        self.time_us.saturating_add(self.entries.len() as u64).saturating_sub(1)
    }
}

/// PRE-PREPARE: the primary of a view proposes a batch.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PrePrepare {
    /// The view.
    pub view: View,
    /// The batch.
    pub batch: Arc<Batch>,
    /// The primary's, over [`PrePrepare::signed`].
    pub signature: [u8; 64],
}

impl PrePrepare {
    /// What the primary signs.
    pub fn signed(view: View, number: u64, batch: &Digest) -> Digest {
        static CONTEXT: Context = context!("cloudbft pbft pre-prepare v1");
        vote_digest(&CONTEXT, view, number, batch)
    }
}

/// PREPARE: the sender has accepted this batch for this number in this view, and no other, and has it with all its
/// bodies in its durable log. The primary sends one too: its PRE-PREPARE leaves before anything is durable.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Prepare {
    /// The view.
    pub view: View,
    /// The number.
    pub number: u64,
    /// The batch's digest.
    pub digest: Digest,
    /// The sender's, over [`Prepare::signed`].
    pub signature: [u8; 64],
}

impl Prepare {
    /// What the sender signs.
    pub fn signed(view: View, number: u64, batch: &Digest) -> Digest {
        static CONTEXT: Context = context!("cloudbft pbft prepare v1");
        vote_digest(&CONTEXT, view, number, batch)
    }
}

fn vote_digest(context: &Context, view: View, number: u64, batch: &Digest) -> Digest {
    let mut hasher = hashing::hasher(context);
    hasher.update(&view.0.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(batch);
    *hasher.finalize().as_bytes()
}

/// COMMIT: the sender has the prepared certificate of this number, and of every number before it in this view, in
/// its durable log.
///
/// Never shown to third parties, so the authenticated link suffices (decision 0006).
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Commit {
    /// The view.
    pub view: View,
    /// The number.
    pub number: u64,
    /// The batch's digest.
    pub digest: Digest,
}

/// STATUS: how far the sender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Standing {
    /// The view that it is in, or wants.
    pub view: View,
    /// Whether it takes part in that view.
    pub is_active: bool,
    /// Whether it lacks something: the receiver sends again what it has of its own above `decided`.
    pub is_stalled: bool,
    /// The last number that it has decided without gap.
    pub decided: u64,
    /// The order of its stable checkpoint.
    pub stable: Order,
}

/// A prepared certificate: 2f+1 replicas have accepted the batch in this view.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Certificate {
    /// The view.
    pub view: View,
    /// The batch.
    pub batch: Arc<Batch>,
    /// 2f+1 PREPAREs of distinct machines, ascending: over [`Prepare::signed`].
    pub signatures: Vec<(MachineId, [u8; 64])>,
}

/// REQ-VIEW-CHANGE: the sender wants a view at or above this one. It still takes part in its own.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct RequestViewChange {
    /// The machine that sends it.
    pub machine: MachineId,
    /// The lowest view that it wants.
    pub view: View,
    /// The sender's, over [`RequestViewChange::signed`].
    pub signature: [u8; 64],
}

impl RequestViewChange {
    /// What the sender signs.
    pub fn signed(machine: MachineId, view: View) -> Digest {
        digest_of("cloudbft pbft req-view-change v1", &(machine, view))
    }
}

/// VIEW-CHANGE: the sender takes part in no view below this one any more.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ViewChange {
    /// The machine that sends it.
    pub machine: MachineId,
    /// The view that it wants.
    pub view: View,
    /// Why: f+1 machines want this view or a higher one (ascending), or the primary of the view before it does. So
    /// whoever sees this leaves too, and no replica leaves alone.
    pub requests: Vec<RequestViewChange>,
    /// Its stable checkpoint; none: the history begins with the first batch.
    pub stable: Option<StableCheckpoint>,
    /// For each number above the checkpoint: the certificate of the highest view that it has; ascending.
    pub prepared: Vec<Arc<Certificate>>,
    /// The sender's, over [`ViewChange::digest`].
    pub signature: [u8; 64],
}

impl ViewChange {
    /// The digest that the signature covers.
    pub fn digest(&self) -> Digest {
        digest_of(
            "cloudbft pbft view-change v1",
            &(self.machine, self.view, &self.requests, &self.stable, &self.prepared),
        )
    }
}

/// NEW-VIEW: the view changes from which everybody computes how the view begins (`outcome.rs`).
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct NewView {
    /// The view.
    pub view: View,
    /// 2f+1 or more, of distinct machines, ascending. All of them count.
    pub view_changes: Vec<Arc<ViewChange>>,
    /// The new primary's, over [`NewView::digest`].
    pub signature: [u8; 64],
}

impl NewView {
    /// The digest that the signature covers.
    pub fn digest(&self) -> Digest {
        digest_of("cloudbft pbft new-view v1", &(self.view, &self.view_changes))
    }
}
