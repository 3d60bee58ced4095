//! Checks from which both protocols build the verification of their messages.

use std::sync::Arc;

use crate::configuration::HISTORY_ENTRIES_MAX;
use crate::directory::Directory;
use crate::identifiers::{Digest, MachineId};
use crate::ledger::{CertifiedCheckpoint, History, StableCheckpoint};
use crate::message::Request;
use crate::verified::Rejection;

/// The highest order, number, counter value, view or time that is accepted, so that sums cannot overflow.
pub(crate) const NUMBER_MAX: u64 = u64::MAX >> 1;

/// The digest of messages that carry none.
pub(crate) const UNSIGNED: Digest = [0; 32];

pub(crate) fn sender_is(from: MachineId, named: MachineId) -> Result<(), Rejection> {
    if from == named {
        Ok(())
    } else {
        Err(Rejection::WrongSender)
    }
}

pub(crate) fn bounded(length: usize, limit: usize) -> Result<Digest, Rejection> {
    if length <= limit {
        Ok(UNSIGNED)
    } else {
        Err(Rejection::TooLarge)
    }
}

pub(crate) fn ensure(condition: bool) -> Result<(), Rejection> {
    if condition { Ok(()) } else { Err(Rejection::Malformed) }
}

pub(crate) fn verify_bodies(
    requests: &[Arc<Request>],
    limit: usize,
    directory: &Directory,
) -> Result<Digest, Rejection> {
    bounded(requests.len(), limit)?;
    for request in requests {
        directory.check_request(request)?;
    }
    Ok(UNSIGNED)
}

/// How a protocol verifies a stable checkpoint.
type VerifyStable = fn(&StableCheckpoint, &Directory) -> Result<Digest, Rejection>;

pub(crate) fn verify_certified(
    checkpoint: &CertifiedCheckpoint,
    directory: &Directory,
    verify_stable: VerifyStable,
) -> Result<Digest, Rejection> {
    ensure(checkpoint.clients.digest() == checkpoint.stable.clients)?;
    verify_stable(&checkpoint.stable, directory)
}

/// `may_be_nothing`: whether an entry may be nothing, with the zero digest and no body.
pub(crate) fn verify_history(
    history: &History,
    directory: &Directory,
    verify_stable: VerifyStable,
    may_be_nothing: bool,
) -> Result<Digest, Rejection> {
    bounded(history.entries.len(), HISTORY_ENTRIES_MAX)?;
    ensure(history.first.0 > 0 && history.first.0 <= NUMBER_MAX)?;
    for entry in &history.entries {
        ensure(entry.group.0 < directory.groups)?;
        match &entry.request {
            None => ensure(may_be_nothing && entry.digest == UNSIGNED)?,
            Some(request) => ensure(directory.check_request(request)? == entry.digest)?,
        }
    }
    if let Some(proof) = &history.proof {
        verify_stable(proof, directory)?;
        ensure(proof.point.order.next() == history.end())?;
    }
    Ok(UNSIGNED)
}
