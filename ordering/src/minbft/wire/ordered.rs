//! PREPARE and COMMIT.

use borsh::{BorshDeserialize, BorshSerialize};
use trusted_counter::UniqueWarrant;

use crate::assignment::are_possible;
use crate::check::{NUMBER_MAX, UNSIGNED, bounded, ensure};
use crate::configuration::{BATCH_ENTRIES_LIMIT, COMMIT_BATCHES_MAX, PRIMARY_SLOT, is_replica, replica_slot};
use crate::directory::Directory;
use crate::hashing;
use crate::hashing::{Context, context};
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::ledger::PrepareEntry;
use crate::minbft::wire::primary;
use crate::verified::Rejection;

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
    /// The operations that are ordered.
    pub entries: Vec<PrepareEntry>,
    /// Of the primary's counter, slot [`crate::configuration::PRIMARY_SLOT`].
    pub warrant: UniqueWarrant,
}

/// Bytes that are hashed for an entry.
const ENTRY_BYTES: usize = 2 + 32;

impl Prepare {
    /// The digest that the primary's counter certifies.
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
    /// The digest that the replica's counter certifies.
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

fn is_group(group: GroupId, directory: &Directory) -> bool {
    group.0 < directory.groups
}

pub(crate) fn verify_prepare(prepare: &Prepare, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(prepare.entries.len(), BATCH_ENTRIES_LIMIT)?;
    ensure(!prepare.entries.is_empty() && prepare.first.0 > 0)?;
    ensure(prepare.first.0 <= NUMBER_MAX && prepare.time_us <= NUMBER_MAX && prepare.view.0 <= NUMBER_MAX)?;
    ensure(prepare.warrant.value <= NUMBER_MAX)?;
    // The zero digest stands for nothing to run: only a start may say that.
    ensure(prepare.entries.iter().all(|entry| entry.digest != UNSIGNED))?;
    ensure(are_possible(
        prepare.entries.iter().map(|entry| entry.group),
        directory.groups,
    ))?;
    let digest = prepare.own_digest();
    directory.verify_warrant(
        primary(prepare.view, directory),
        PRIMARY_SLOT,
        &prepare.warrant,
        &digest,
    )?;
    Ok(digest)
}

pub(crate) fn verify_commit(from: MachineId, commit: &Commit, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(commit.batches.len(), COMMIT_BATCHES_MAX)?;
    ensure(is_replica(from) && is_group(commit.group, directory) && !commit.batches.is_empty())?;
    ensure(commit.warrant.value <= NUMBER_MAX)?;
    let digest = Commit::digest(commit.view, commit.group, &commit.batches);
    directory.verify_warrant(from, replica_slot(commit.group), &commit.warrant, &digest)?;
    Ok(digest)
}
