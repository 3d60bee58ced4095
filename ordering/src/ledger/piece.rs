//! The decided history as machines tell it to each other: a place in it, and pieces of it. And what is to become part of it.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{Digest, GroupId, Order, View};
use crate::ledger::checkpoint::StableCheckpoint;
use crate::message::{CommitDbEntry, Request};

/// The digest of an operation that does nothing.
pub(crate) const NOTHING: Digest = [0; 32];

/// One request that a primary orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PrepareEntry {
    /// The group in charge.
    pub group: GroupId,
    /// The request's digest.
    pub digest: Digest,
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

impl HistoryEntry {
    /// The same operation, as voters get it.
    pub(crate) fn at(&self, order: Order) -> CommitDbEntry {
        CommitDbEntry {
            order,
            time_us: self.time_us,
            digest: self.digest,
            request: self.request.clone(),
        }
    }
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
    /// The operations, with their groups.
    pub(crate) fn operations(&self) -> impl Iterator<Item = (GroupId, CommitDbEntry)> + '_ {
        let numbered = (self.first.0..).map(Order).zip(&self.entries);
        numbered.map(|(order, entry)| (entry.group, entry.at(order)))
    }

    /// The order after the last entry.
    pub fn end(&self) -> Order {
        Order(self.first.0.saturating_add(self.entries.len() as u64))
    }
}
