//! Verification of MinBFT's messages: everything that can be checked without state, by any thread.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::check::{
    FETCH_REQUESTS_MAX, NUMBER_MAX, UNSIGNED, bounded, ensure, sender_is, verify_bodies, verify_certified,
    verify_history,
};
use crate::configuration::{
    BATCH_ENTRIES_LIMIT, COMMIT_BATCHES_MAX, PRIMARY_SLOT, WATERMARK_ORDERS, is_replica, replica_slot,
};
use crate::directory::Directory;
use crate::identifiers::{Digest, GroupId, MachineId, View};
use crate::ledger::{Checkpoint, StableCheckpoint};
use crate::minbft::messages::{Commit, Message, Prepare, Standing};
use crate::minbft::start_messages::{Acknowledgement, Admission, Collect, Hello, LiveProof, Proof, Report, Start};
use crate::minbft::view_messages::Followed;
use crate::minbft::view_verification::{
    check_followed, verify_changed, verify_endorsement, verify_new_view, verify_outcome, verify_request_view_change,
    verify_view_acknowledgement, verify_view_change,
};
use crate::verified::{Rejection, Verified};

/// Verifies a message that came over the link from machine `from`.
pub fn verify_message(
    from: MachineId,
    message: Message,
    directory: &Directory,
) -> Result<Verified<Message>, Rejection> {
    if !directory.machines.contains_key(&from) {
        return Err(Rejection::UnknownMachine);
    }
    let digest = match &message {
        Message::Prepare(prepare) => verify_prepare(prepare, directory)?,
        Message::Commit(commit) => verify_commit(from, commit, directory)?,
        Message::Progress(_) => UNSIGNED,
        Message::Standing(standing) => verify_standing(standing, directory)?,
        Message::Checkpoint(checkpoint) => verify_checkpoint(from, checkpoint, directory)?,
        Message::Stable(stable) => verify_stable(stable, directory)?,
        Message::FetchRequests(digests) => bounded(digests.len(), FETCH_REQUESTS_MAX)?,
        Message::GiveRequests(requests) => verify_bodies(requests, FETCH_REQUESTS_MAX, directory)?,
        Message::FetchHistory(_) => UNSIGNED,
        Message::GiveHistory(history) => verify_history(history, directory, verify_stable, true)?,
        Message::GiveCheckpoint(checkpoint) => verify_certified(checkpoint, directory, verify_stable)?,
        Message::Hello(hello) => {
            sender_is(from, hello.machine)?;
            verify_hello(hello, directory)?
        }
        Message::Collect(collect) => verify_collect(collect, directory)?,
        Message::Report(report) => {
            sender_is(from, report.machine)?;
            verify_report(report, directory)?
        }
        Message::Start(start) => verify_start(start, directory)?,
        Message::Acknowledge(acknowledgement) => {
            sender_is(from, acknowledgement.machine)?;
            verify_acknowledgement(acknowledgement, directory)?
        }
        Message::Live(proof) => verify_live(proof, directory)?,
        Message::RequestViewChange(request) => verify_request_view_change(from, request, directory)?,
        Message::ViewChange(change) => {
            sender_is(from, change.machine)?;
            verify_view_change(change, directory)?
        }
        Message::NewView(new_view) => {
            sender_is(from, primary(new_view.view, directory))?;
            verify_new_view(new_view, directory)?
        }
        Message::Endorse(endorsement) => {
            sender_is(from, endorsement.machine)?;
            verify_endorsement(endorsement, directory)?
        }
        Message::AcknowledgeView(acknowledgement) => {
            sender_is(from, acknowledgement.machine)?;
            verify_view_acknowledgement(acknowledgement, directory)?
        }
    };
    Ok(Verified::new(message, digest))
}

pub(crate) fn machines(directory: &Directory) -> u8 {
    2 * directory.faults.0 + 2
}

/// The candidate that leads a view.
pub(crate) fn primary(view: View, directory: &Directory) -> MachineId {
    MachineId(u8::try_from(view.0 % u64::from(machines(directory))).unwrap_or(0))
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
    ensure(
        prepare
            .entries
            .iter()
            .all(|entry| is_group(entry.group, directory) && entry.digest != UNSIGNED),
    )?;
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

fn verify_standing(standing: &Standing, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(standing.commits.len(), usize::from(directory.groups))
}

fn verify_checkpoint(
    from: MachineId,
    checkpoint: &Checkpoint<Followed>,
    directory: &Directory,
) -> Result<Digest, Rejection> {
    sender_is(from, checkpoint.machine)?;
    ensure(is_replica(from) && checkpoint.point.order.0 <= NUMBER_MAX)?;
    if let Some(followed) = &checkpoint.attached {
        sender_is(from, followed.machine)?;
        check_followed(followed, directory)?;
    }
    let digest = checkpoint.signed();
    directory.verify_machine(from, &digest, &checkpoint.signature)?;
    Ok(digest)
}

pub(crate) fn verify_stable(stable: &StableCheckpoint, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(stable.signatures.len(), usize::from(machines(directory)))?;
    ensure(stable.point.order.0 <= NUMBER_MAX)?;
    let digest = stable.point.digest(&stable.clients);
    let mut signers = BTreeSet::new();
    for signature in &stable.signatures {
        ensure(is_replica(signature.machine) && signers.insert(signature.machine))?;
        signature.verify(&digest, directory)?;
    }
    ensure(signers.len() > usize::from(directory.faults.0))?;
    Ok(digest)
}

pub(crate) fn is_admission(admission: &Admission, directory: &Directory) -> bool {
    admission.positions.len() == usize::from(directory.groups) + 1
        && admission.positions.iter().all(|position| *position <= NUMBER_MAX)
}

pub(crate) fn verify_hello(hello: &Hello, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_admission(&hello.admission, directory))?;
    ensure(hello.view.is_none_or(|view| view.0 <= NUMBER_MAX))?;
    let digest = hello.digest();
    directory.verify_machine(hello.machine, &digest, &hello.signature)?;
    if let Some(stable) = &hello.stable {
        verify_stable(stable, directory)?;
    }
    Ok(digest)
}

fn verify_collect(collect: &Collect, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(collect.hellos.len(), usize::from(machines(directory)))?;
    ensure(collect.view.0 <= NUMBER_MAX)?;
    ensure(collect.hellos.is_sorted_by(|left, right| left.machine < right.machine))?;
    let digest = collect.digest();
    directory.verify_machine(primary(collect.view, directory), &digest, &collect.signature)?;
    for hello in &collect.hellos {
        verify_hello(hello, directory)?;
        ensure(hello.view.is_none_or(|view| view < collect.view))?;
    }
    ensure(collect.hello(primary(collect.view, directory)).is_some())?;
    let hellos = collect.hellos.iter().map(Arc::as_ref);
    ensure(collect.view <= Collect::view_max(hellos, directory.faults))?;
    Ok(digest)
}

fn verify_report(report: &Report, directory: &Directory) -> Result<Digest, Rejection> {
    let limit = WATERMARK_ORDERS as usize * 2;
    bounded(report.prepares.len(), limit)?;
    bounded(report.held.len(), limit)?;
    ensure(is_replica(report.machine) && report.held.is_sorted_by(|left, right| left < right))?;
    let digest = report.digest();
    directory.verify_machine(report.machine, &digest, &report.signature)?;
    match &report.live {
        None => ensure(report.prepares.is_empty())?,
        Some(proof) => {
            verify_live(proof, directory)?;
            verify_reported_prepares(report, proof, directory)?;
        }
    }
    Ok(digest)
}

/// The PREPAREs are of the view that the proof is about, and of the counter that this view admitted.
fn verify_reported_prepares(report: &Report, proof: &LiveProof, directory: &Directory) -> Result<(), Rejection> {
    let view = proof.outcome.view;
    let admission = proof
        .outcome
        .admission(primary(view, directory))
        .ok_or(Rejection::Malformed)?;
    let values = |prepare: &std::sync::Arc<Prepare>| prepare.warrant.value;
    ensure(report.prepares.is_sorted_by(|left, right| values(left) < values(right)))?;
    for prepare in &report.prepares {
        ensure(prepare.view == view && prepare.warrant.epoch == admission.epoch)?;
        verify_prepare(prepare, directory)?;
    }
    Ok(())
}

fn verify_start(start: &Start, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(start.reports.len(), usize::from(machines(directory)))?;
    let digest = start.digest();
    directory.verify_machine(primary(start.collect.view, directory), &digest, &start.signature)?;
    let collect = verify_collect(&start.collect, directory)?;
    let replicas = start
        .collect
        .hellos
        .iter()
        .map(|hello| hello.machine)
        .filter(|machine| is_replica(*machine));
    ensure(start.reports.iter().map(|report| report.machine).eq(replicas))?;
    for report in &start.reports {
        ensure(report.collect == collect)?;
        verify_report(report, directory)?;
    }
    Ok(digest)
}

fn verify_acknowledgement(acknowledgement: &Acknowledgement, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_replica(acknowledgement.machine))?;
    let digest = Acknowledgement::digest(acknowledgement.view, &acknowledgement.outcome);
    directory.verify_machine(acknowledgement.machine, &digest, &acknowledgement.signature)?;
    Ok(digest)
}

/// Of a start: every admitted replica has signed, and they are f+1 at least: so a correct one has checked the
/// outcome, and that everybody who had to take part does.
pub(crate) fn verify_live(proof: &LiveProof, directory: &Directory) -> Result<Digest, Rejection> {
    let outcome = &proof.outcome;
    verify_outcome(outcome, directory)?;
    let Proof::Start(signatures) = &proof.decided_by else {
        return verify_changed(proof, directory);
    };
    let replicas = outcome
        .admitted
        .iter()
        .map(|(machine, _)| *machine)
        .filter(|machine| is_replica(*machine));
    ensure(signatures.iter().map(|(machine, _)| *machine).eq(replicas))?;
    ensure(signatures.len() > usize::from(directory.faults.0))?;
    let digest = outcome.digest();
    let signed = Acknowledgement::digest(outcome.view, &digest);
    for (machine, signature) in signatures {
        directory.verify_machine(*machine, &signed, signature)?;
    }
    Ok(digest)
}
