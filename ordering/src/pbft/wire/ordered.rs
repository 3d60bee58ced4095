//! PRE-PREPARE, PREPARE and COMMIT, and the certificate that 2f+1 PREPAREs make.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::assignment::are_possible;
use crate::check::{NUMBER_MAX, bounded, ensure};
use crate::configuration::BATCH_ENTRIES_LIMIT;
use crate::directory::Directory;
use crate::hashing::{self, Context, context};
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::PrepareEntry;
use crate::ledger::piece::NOTHING;
use crate::pbft::wire::{is_machine, primary, quorum};
use crate::verified::Rejection;

/// Batches above the last stable checkpoint that a replica takes part in deciding.
pub const WINDOW: u64 = 512;

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

/// A message about a batch of a view, as it came.
#[derive(Clone, Debug)]
pub(crate) enum Ordered {
    /// PRE-PREPARE, with the digest of its batch.
    PrePrepare(Arc<PrePrepare>, Digest),
    Prepare(Prepare),
    Commit(Commit),
}

impl Ordered {
    pub(crate) fn view(&self) -> View {
        match self {
            Ordered::PrePrepare(proposal, _) => proposal.view,
            Ordered::Prepare(prepare) => prepare.view,
            Ordered::Commit(commit) => commit.view,
        }
    }

    pub(crate) fn number(&self) -> u64 {
        match self {
            Ordered::PrePrepare(proposal, _) => proposal.batch.number,
            Ordered::Prepare(prepare) => prepare.number,
            Ordered::Commit(commit) => commit.number,
        }
    }
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

/// A batch that a correct primary could have made.
fn check_batch(batch: &Batch, directory: &Directory) -> Result<(), Rejection> {
    bounded(batch.entries.len(), BATCH_ENTRIES_LIMIT)?;
    ensure(!batch.entries.is_empty() && batch.number > 0 && batch.first.0 > 0)?;
    ensure(batch.number <= NUMBER_MAX && batch.first.0 <= NUMBER_MAX && batch.time_us <= NUMBER_MAX)?;
    // The zero digest stands for nothing to run.
    ensure(batch.entries.iter().all(|entry| entry.digest != NOTHING))?;
    ensure(are_possible(
        batch.entries.iter().map(|entry| entry.group),
        directory.groups,
    ))
}

pub(crate) fn verify_pre_prepare(pre_prepare: &PrePrepare, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(pre_prepare.view.0 <= NUMBER_MAX)?;
    check_batch(&pre_prepare.batch, directory)?;
    let digest = pre_prepare.batch.digest();
    let signed = PrePrepare::signed(pre_prepare.view, pre_prepare.batch.number, &digest);
    directory.verify_machine(primary(pre_prepare.view, directory), &signed, &pre_prepare.signature)?;
    Ok(digest)
}

pub(crate) fn verify_prepare(from: MachineId, prepare: &Prepare, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_machine(from, directory))?;
    let signed = Prepare::signed(prepare.view, prepare.number, &prepare.digest);
    directory.verify_machine(from, &signed, &prepare.signature)?;
    Ok(signed)
}

/// A quorum of distinct machines, ascending, each with a signature over this digest.
fn verify_quorum(
    signatures: &[(MachineId, [u8; 64])],
    signed: &Digest,
    directory: &Directory,
) -> Result<(), Rejection> {
    ensure(signatures.len() == quorum(directory))?;
    ensure(signatures.is_sorted_by(|left, right| left.0 < right.0))?;
    for (machine, signature) in signatures {
        ensure(is_machine(*machine, directory))?;
        directory.verify_machine(*machine, signed, signature)?;
    }
    Ok(())
}

pub(crate) fn verify_certificate(certificate: &Certificate, directory: &Directory) -> Result<(), Rejection> {
    check_batch(&certificate.batch, directory)?;
    let digest = certificate.batch.digest();
    let signed = Prepare::signed(certificate.view, certificate.batch.number, &digest);
    verify_quorum(&certificate.signatures, &signed, directory)
}
