//! Verification of checkpoints: under PBFT machines say nothing beside them.

use crate::check::{NUMBER_MAX, ensure};
use crate::directory::Directory;
use crate::identifiers::Digest;
use crate::ledger::{Checkpoint, Nothing, StableCheckpoint};
use crate::pbft::wire::{is_machine, quorum};
use crate::verified::Rejection;

pub(crate) fn verify_checkpoint(checkpoint: &Checkpoint<Nothing>, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_machine(checkpoint.machine, directory) && checkpoint.point.order.0 <= NUMBER_MAX)?;
    let digest = checkpoint.signed();
    directory.verify_machine(checkpoint.machine, &digest, &checkpoint.signature)?;
    Ok(digest)
}

pub(crate) fn verify_stable(stable: &StableCheckpoint, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(stable.point.order.0 <= NUMBER_MAX && stable.point.value <= NUMBER_MAX)?;
    let digest = stable.point.digest(&stable.clients);
    ensure(stable.signatures.len() == quorum(directory))?;
    ensure(
        stable
            .signatures
            .is_sorted_by(|left, right| left.machine < right.machine),
    )?;
    for signature in &stable.signatures {
        ensure(is_machine(signature.machine, directory))?;
        signature.verify(&digest, directory)?;
    }
    Ok(digest)
}
