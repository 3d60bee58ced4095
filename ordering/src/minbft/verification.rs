//! Verification of MinBFT's messages: everything that can be checked without state, by any thread.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::configuration::{
    BATCH_ENTRIES_LIMIT, COMMIT_BATCHES_MAX, PRIMARY_SLOT, WATERMARK_ORDERS, is_replica, replica_slot,
};
use crate::directory::Directory;
use crate::identifiers::{Digest, GroupId, MachineId, View};
use crate::message::Request;
use crate::minbft::messages::{
    CertifiedCheckpoint, Checkpoint, Commit, History, Message, Prepare, StableCheckpoint, Standing,
};
use crate::minbft::start_messages::{Acknowledgement, Admission, Collect, Hello, LiveProof, Report, Start};
use crate::minbft::view_verification::{
    check_followed, verify_changed, verify_endorsement, verify_new_view, verify_outcome, verify_request_view_change,
    verify_view_acknowledgement, verify_view_change,
};
use crate::verified::{Rejection, Verified};

/// Most bodies that one FETCH may ask for, and one GIVE may hold.
pub const FETCH_REQUESTS_MAX: usize = 1024;

/// Most operations in one piece of history.
pub const HISTORY_ENTRIES_MAX: usize = 2048;

/// The highest order, counter value or time that is accepted, so that sums cannot overflow.
pub(crate) const NUMBER_MAX: u64 = u64::MAX >> 1;

/// The digest of messages that carry none.
const UNSIGNED: Digest = [0; 32];

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
        Message::GiveRequests(requests) => verify_bodies(requests, directory)?,
        Message::FetchHistory(_) => UNSIGNED,
        Message::GiveHistory(history) => verify_history(history, directory)?,
        Message::GiveCheckpoint(checkpoint) => verify_certified(checkpoint, directory)?,
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

fn verify_checkpoint(from: MachineId, checkpoint: &Checkpoint, directory: &Directory) -> Result<Digest, Rejection> {
    sender_is(from, checkpoint.machine)?;
    ensure(is_replica(from) && checkpoint.point.order.0 <= NUMBER_MAX)?;
    if let Some(followed) = &checkpoint.followed {
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

fn verify_certified(checkpoint: &CertifiedCheckpoint, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(checkpoint.clients.digest() == checkpoint.stable.clients)?;
    verify_stable(&checkpoint.stable, directory)
}

fn verify_bodies(requests: &[Arc<Request>], directory: &Directory) -> Result<Digest, Rejection> {
    bounded(requests.len(), FETCH_REQUESTS_MAX)?;
    for request in requests {
        directory.check_request(request)?;
    }
    Ok(UNSIGNED)
}

fn verify_history(history: &History, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(history.entries.len(), HISTORY_ENTRIES_MAX)?;
    ensure(history.first.0 > 0 && history.first.0 <= NUMBER_MAX)?;
    for entry in &history.entries {
        ensure(is_group(entry.group, directory))?;
        match &entry.request {
            None => ensure(entry.digest == UNSIGNED)?,
            Some(request) => ensure(directory.check_request(request)? == entry.digest)?,
        }
    }
    if let Some(proof) = &history.proof {
        verify_stable(proof, directory)?;
        ensure(proof.point.order.next() == history.end())?;
    }
    Ok(UNSIGNED)
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
    if outcome.is_change() {
        return verify_changed(proof, directory);
    }
    ensure(proof.acknowledgements.is_empty())?;
    let replicas = outcome
        .admitted
        .iter()
        .map(|(machine, _)| *machine)
        .filter(|machine| is_replica(*machine));
    ensure(proof.signatures.iter().map(|(machine, _)| *machine).eq(replicas))?;
    ensure(proof.signatures.len() > usize::from(directory.faults.0))?;
    let digest = outcome.digest();
    let signed = Acknowledgement::digest(outcome.view, &digest);
    for (machine, signature) in &proof.signatures {
        directory.verify_machine(*machine, &signed, signature)?;
    }
    Ok(digest)
}
