//! Pieces of the decided history, as machines tell them to each other, and what is to become part of it.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{Digest, GroupId, Order};
use crate::ledger::checkpoint_message::StableCheckpoint;
use crate::message::{CommitDbEntry, Request};

/// The digest of an operation that does nothing.
pub(crate) const NOTHING: Digest = [0; 32];

/// One request that a primary orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PrepareEntry {
    /// The group in charge, or what the request changes ([`GroupId::change`]).
    pub group: GroupId,
    /// The request's digest.
    pub digest: Digest,
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
