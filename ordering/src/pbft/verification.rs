//! Verification of PBFT's messages: everything that can be checked without state, by any thread.
//!
//! A VIEW-CHANGE is signed whole, so one that holds a certificate which does not verify is its sender's own fault and
//! is refused whole. It hides nobody else's certificates: those stand in the VIEW-CHANGEs of their holders.

use std::sync::Arc;

use crate::check::{NUMBER_MAX, UNSIGNED, bounded, ensure, sender_is, verify_bodies, verify_certified, verify_history};
use crate::configuration::FETCH_REQUESTS_MAX;
use crate::configuration::{BATCH_ENTRIES_LIMIT, Protocol, WATERMARK_ORDERS};
use crate::directory::Directory;
use crate::identifiers::{Digest, MachineId, View};
use crate::ledger::piece::NOTHING;
use crate::ledger::{Checkpoint, HistoryPoint, Nothing, StableCheckpoint};
use crate::pbft::messages::{Batch, Certificate, Message, NewView, PrePrepare, Prepare, RequestViewChange, ViewChange};
use crate::pbft::window::WINDOW;
use crate::verified::{Rejection, Verified};

/// Most requests that are forwarded at once.
pub const FORWARD_MAX: usize = 64;

/// Verifies a message that came over the link from machine `from`.
///
/// The digest of a `Verified` PRE-PREPARE is its batch's.
pub fn verify_message(
    from: MachineId,
    message: Message,
    directory: &Directory,
) -> Result<Verified<Message>, Rejection> {
    if !directory.machines.contains_key(&from) {
        return Err(Rejection::UnknownMachine);
    }
    let digest = match &message {
        Message::PrePrepare(pre_prepare) => verify_pre_prepare(pre_prepare, directory)?,
        Message::Prepare(prepare) => verify_prepare(from, prepare, directory)?,
        Message::Commit(_) | Message::Standing(_) | Message::FetchHistory(_) => UNSIGNED,
        Message::Checkpoint(checkpoint) => {
            sender_is(from, checkpoint.machine)?;
            verify_checkpoint(checkpoint, directory)?
        }
        Message::Stable(stable) => verify_stable(stable, directory)?,
        Message::FetchRequests(digests) => bounded(digests.len(), FETCH_REQUESTS_MAX)?,
        Message::GiveRequests(requests) => verify_bodies(requests, FETCH_REQUESTS_MAX, directory)?,
        Message::Forward(requests) => verify_bodies(requests, FORWARD_MAX, directory)?,
        Message::GiveHistory(history) => verify_history(history, directory, verify_stable, false)?,
        Message::GiveCheckpoint(checkpoint) => verify_certified(checkpoint, directory, verify_stable)?,
        Message::RequestViewChange(request) => {
            sender_is(from, request.machine)?;
            verify_request_view_change(request, directory)?
        }
        Message::ViewChange(view_change) => {
            sender_is(from, view_change.machine)?;
            verify_view_change(view_change, directory)?
        }
        Message::NewView(new_view) => verify_new_view(new_view, directory)?,
    };
    Ok(Verified::new(message, digest))
}

fn machines(directory: &Directory) -> u8 {
    Protocol::Pbft.machines(directory.faults)
}

fn quorum(directory: &Directory) -> usize {
    Protocol::Pbft.quorum(directory.faults) as usize
}

fn is_machine(machine: MachineId, directory: &Directory) -> bool {
    machine.0 < machines(directory)
}

/// The machine that leads a view.
fn primary(view: View, directory: &Directory) -> MachineId {
    MachineId(u8::try_from(view.0 % u64::from(machines(directory))).unwrap_or(0))
}

/// A batch that a correct primary could have made.
fn check_batch(batch: &Batch, directory: &Directory) -> Result<(), Rejection> {
    bounded(batch.entries.len(), BATCH_ENTRIES_LIMIT)?;
    ensure(!batch.entries.is_empty() && batch.number > 0 && batch.first.0 > 0)?;
    ensure(batch.number <= NUMBER_MAX && batch.first.0 <= NUMBER_MAX && batch.time_us <= NUMBER_MAX)?;
    // The zero digest stands for nothing to run.
    ensure(
        batch
            .entries
            .iter()
            .all(|entry| entry.group.0 < directory.groups && entry.digest != NOTHING),
    )
}

fn verify_pre_prepare(pre_prepare: &PrePrepare, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(pre_prepare.view.0 <= NUMBER_MAX)?;
    check_batch(&pre_prepare.batch, directory)?;
    let digest = pre_prepare.batch.digest();
    let signed = PrePrepare::signed(pre_prepare.view, pre_prepare.batch.number, &digest);
    directory.verify_machine(primary(pre_prepare.view, directory), &signed, &pre_prepare.signature)?;
    Ok(digest)
}

fn verify_prepare(from: MachineId, prepare: &Prepare, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_machine(from, directory))?;
    let signed = Prepare::signed(prepare.view, prepare.number, &prepare.digest);
    directory.verify_machine(from, &signed, &prepare.signature)?;
    Ok(signed)
}

fn verify_checkpoint(checkpoint: &Checkpoint<Nothing>, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_machine(checkpoint.machine, directory) && checkpoint.point.order.0 <= NUMBER_MAX)?;
    let digest = checkpoint.signed();
    directory.verify_machine(checkpoint.machine, &digest, &checkpoint.signature)?;
    Ok(digest)
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

fn verify_stable(stable: &StableCheckpoint, directory: &Directory) -> Result<Digest, Rejection> {
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

fn verify_certificate(certificate: &Certificate, directory: &Directory) -> Result<(), Rejection> {
    check_batch(&certificate.batch, directory)?;
    let digest = certificate.batch.digest();
    let signed = Prepare::signed(certificate.view, certificate.batch.number, &digest);
    verify_quorum(&certificate.signatures, &signed, directory)
}

fn verify_request_view_change(request: &RequestViewChange, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_machine(request.machine, directory) && request.view.0 <= NUMBER_MAX)?;
    let signed = RequestViewChange::signed(request.machine, request.view);
    directory.verify_machine(request.machine, &signed, &request.signature)?;
    Ok(signed)
}

/// Whether so many want a view that everybody should: f+1 machines, or the primary of the view before it alone.
fn verify_justification(view: View, requests: &[RequestViewChange], directory: &Directory) -> Result<(), Rejection> {
    bounded(requests.len(), usize::from(machines(directory)))?;
    ensure(requests.is_sorted_by(|left, right| left.machine < right.machine))?;
    for request in requests {
        ensure(request.view >= view)?;
        verify_request_view_change(request, directory)?;
    }
    let before = View(view.0.checked_sub(1).ok_or(Rejection::Malformed)?);
    let resigns = requests
        .iter()
        .any(|request| request.machine == primary(before, directory));
    ensure(resigns || requests.len() > usize::from(directory.faults.0))
}

fn verify_view_change(view_change: &Arc<ViewChange>, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(view_change.prepared.len(), WINDOW as usize)?;
    ensure(is_machine(view_change.machine, directory) && view_change.view.0 <= NUMBER_MAX)?;
    let digest = view_change.digest();
    directory.verify_machine(view_change.machine, &digest, &view_change.signature)?;
    verify_justification(view_change.view, &view_change.requests, directory)?;
    let point = match &view_change.stable {
        Some(stable) => {
            verify_stable(stable, directory)?;
            stable.point
        }
        None => HistoryPoint::GENESIS,
    };
    let numbers = |certificate: &Arc<Certificate>| certificate.batch.number;
    ensure(
        view_change
            .prepared
            .is_sorted_by(|left, right| numbers(left) < numbers(right)),
    )?;
    for certificate in &view_change.prepared {
        let batch = &certificate.batch;
        ensure(certificate.view < view_change.view)?;
        ensure(batch.number > point.value && batch.number - point.value <= WINDOW)?;
        ensure(batch.first > point.order && batch.last().0 - point.order.0 <= WATERMARK_ORDERS)?;
        verify_certificate(certificate, directory)?;
    }
    Ok(digest)
}

fn verify_new_view(new_view: &NewView, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(new_view.view_changes.len(), usize::from(machines(directory)))?;
    ensure(new_view.view.0 <= NUMBER_MAX)?;
    let digest = new_view.digest();
    directory.verify_machine(primary(new_view.view, directory), &digest, &new_view.signature)?;
    ensure(new_view.view_changes.len() >= quorum(directory))?;
    ensure(
        new_view
            .view_changes
            .is_sorted_by(|left, right| left.machine < right.machine),
    )?;
    for view_change in &new_view.view_changes {
        ensure(view_change.view == new_view.view)?;
        verify_view_change(view_change, directory)?;
    }
    Ok(digest)
}
