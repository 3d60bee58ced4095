//! Verification of a view change's messages: a VIEW-CHANGE proves by itself that it hides nothing.

use std::collections::BTreeMap;

use crate::check::{NUMBER_MAX, bounded, ensure, sender_is};
use crate::configuration::{PRIMARY_SLOT, WATERMARK_ORDERS, is_replica, replica_slot};
use crate::directory::Directory;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::minbft::wire::admission::is_admission;
use crate::minbft::wire::change::{NewView, RequestViewChange, RunItem, RunStart, ViewChange};
use crate::minbft::wire::checkpoint::{Followed, followed_positions, verify_followed, verify_stable};
use crate::minbft::wire::ordered::{Commit, verify_commit, verify_prepare};
use crate::minbft::wire::outcome::{Endorsement, LiveProof, ViewAcknowledgement, verify_certified, verify_live};
use crate::minbft::wire::start::verify_hello;
use crate::minbft::wire::{machines, primary};
use crate::verified::Rejection;

/// Most warrants of one counter that a VIEW-CHANGE may show.
pub(crate) const RUN_ITEMS_MAX: usize = 4 * WATERMARK_ORDERS as usize;

pub(crate) fn verify_request_view_change(
    from: MachineId,
    request: &RequestViewChange,
    directory: &Directory,
) -> Result<Digest, Rejection> {
    sender_is(from, request.machine)?;
    verify_wish(request, directory)
}

fn verify_wish(request: &RequestViewChange, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_replica(request.machine) && request.view.0 <= NUMBER_MAX)?;
    let digest = RequestViewChange::digest(request.machine, request.view);
    directory.verify_machine(request.machine, &digest, &request.signature)?;
    Ok(digest)
}

pub(crate) fn verify_view_change(change: &ViewChange, directory: &Directory) -> Result<Digest, Rejection> {
    let groups = usize::from(directory.groups);
    ensure(is_replica(change.machine) && change.view.0 <= NUMBER_MAX)?;
    ensure(change.runs.len() == groups && change.warrants.len() == groups)?;
    bounded(change.prepares.len(), 2 * WATERMARK_ORDERS as usize)?;
    change
        .runs
        .iter()
        .try_for_each(|run| bounded(run.len(), RUN_ITEMS_MAX).map(drop))?;
    verify_justification(change, directory)?;
    if let Some(stable) = &change.stable {
        verify_stable(stable, directory)?;
    }
    verify_live(&change.live, directory)?;
    ensure(change.live.outcome.view < change.view)?;
    if let Some(certified) = &change.certified {
        verify_certified(certified, directory)?;
        let view = certified.outcome.view;
        ensure(view > change.live.outcome.view && view < change.view)?;
    }
    verify_prepares(change, directory)?;
    let digest = ViewChange::digest(change.machine, change.view, &change.content());
    let (epoch, positions, view) = run_start(change, directory)?;
    for (number, (run, warrant)) in change.runs.iter().zip(&change.warrants).enumerate() {
        let group = GroupId(u16::try_from(number).map_err(|_| Rejection::TooLarge)?);
        let start = positions.get(number + 1).copied().ok_or(Rejection::Malformed)?;
        ensure(warrant.epoch == epoch && warrant.value == start + run.len() as u64 + 1)?;
        directory.verify_warrant(change.machine, replica_slot(group), warrant, &digest)?;
        verify_run(change, group, (epoch, start, view), run, directory)?;
    }
    Ok(digest)
}

/// Rule JustifiedChange: f+1 machines want this view or a higher one; nobody leaves a view alone.
fn verify_justification(change: &ViewChange, directory: &Directory) -> Result<(), Rejection> {
    let requests = &change.requests;
    bounded(requests.len(), usize::from(machines(directory)))?;
    ensure(requests.is_sorted_by(|left, right| left.machine < right.machine))?;
    ensure(requests.is_empty() || requests.len() > usize::from(directory.faults.0))?;
    for request in requests {
        ensure(request.view >= change.view)?;
        verify_wish(request, directory)?;
    }
    Ok(())
}

/// The PREPAREs of the last view, without hole, from the stable checkpoint on.
fn verify_prepares(change: &ViewChange, directory: &Directory) -> Result<(), Rejection> {
    let outcome = &change.live.outcome;
    let admission = outcome
        .admission(primary(outcome.view, directory))
        .ok_or(Rejection::Malformed)?;
    let Some((mut value, mut next)) = prepares_start(change, directory) else {
        return ensure(change.prepares.is_empty());
    };
    let mut last_us = 0;
    for prepare in &change.prepares {
        let warrant = &prepare.warrant;
        ensure(prepare.view == outcome.view && warrant.epoch == admission.epoch)?;
        ensure(warrant.value == value + 1 && prepare.first == next && prepare.time_us > last_us)?;
        verify_prepare(prepare, directory)?;
        value = warrant.value;
        next = prepare.last().next();
        last_us = prepare.time_us.saturating_add(prepare.entries.len() as u64 - 1);
    }
    Ok(())
}

/// The value before the first PREPARE that must be shown, and the order that it continues; none: none is needed,
/// since the checkpoint is of a later view.
fn prepares_start(change: &ViewChange, directory: &Directory) -> Option<(u64, Order)> {
    let (point, outcome) = (change.point(), &change.live.outcome);
    if point.view > outcome.view {
        return None;
    }
    if point.view == outcome.view && point.order.next() >= outcome.end() && point.order.0 > 0 {
        return Some((point.value, point.order.next()));
    }
    let start = outcome.position(primary(outcome.view, directory), PRIMARY_SLOT)?;
    Some((start, outcome.end()))
}

/// Epoch, positions and view from which the runs must continue without hole.
fn run_start(change: &ViewChange, directory: &Directory) -> Result<(u64, Vec<u64>, View), Rejection> {
    let epoch = change.epoch().ok_or(Rejection::Malformed)?;
    let admitted = |proof: &LiveProof| {
        let admission = proof.outcome.admission(change.machine).ok_or(Rejection::Malformed)?;
        ensure(admission.epoch == epoch)?;
        Ok((epoch, admission.positions.clone(), proof.outcome.view))
    };
    match &change.start {
        RunStart::Live => admitted(&change.live),
        RunStart::Earlier(proof) => {
            verify_live(proof, directory)?;
            ensure(proof.outcome.view < change.live.outcome.view)?;
            admitted(proof)
        }
        RunStart::Followed(statements) => {
            bounded(statements.len(), usize::from(machines(directory)))?;
            ensure(statements.is_sorted_by(|left, right| left.followed.machine < right.followed.machine))?;
            for statement in statements {
                verify_followed(statement, directory)?;
                let Followed { view, order, .. } = statement.followed;
                ensure(view <= change.live.outcome.view && order <= change.point().order)?;
            }
            let statements: Vec<_> = statements.iter().collect();
            let quorum = usize::from(directory.faults.0) + 1;
            let positions = followed_positions(&statements, change.machine, epoch, quorum);
            // A machine that has not seen the sender join a later view states the sender's positions in an earlier one. So the
            // run may begin in any view.
            Ok((epoch, positions.ok_or(Rejection::Malformed)?, View(0)))
        }
    }
}

/// Rules NoHoles and NoLateCommit: everything that the counter certified since `start`, in its order.
fn verify_run(
    change: &ViewChange,
    group: GroupId,
    (epoch, start, from): (u64, u64, View),
    run: &[RunItem],
    directory: &Directory,
) -> Result<(), Rejection> {
    let live = change.live.outcome.view;
    let prepared: BTreeMap<u64, Digest> = change
        .prepares
        .iter()
        .map(|prepare| (prepare.warrant.value, prepare.own_digest()))
        .collect();
    let shown_from = prepares_start(change, directory).map_or(u64::MAX, |(value, _)| value);
    let mut at = from;
    for (item, value) in run.iter().zip(start + 1..) {
        let warrant = item.warrant();
        ensure(warrant.value == value && warrant.epoch == epoch)?;
        let view = match item {
            RunItem::Commit(commit) => {
                ensure(commit.group == group && commit.view <= live)?;
                verify_commit(change.machine, commit, directory)?;
                if commit.view == live {
                    verify_commit_is_shown(commit, shown_from, &prepared)?;
                }
                commit.view
            }
            RunItem::Left { view, content, .. } => {
                // It has left every lower view: nothing of those may follow.
                ensure(*view > at)?;
                let digest = ViewChange::digest(change.machine, *view, content);
                directory.verify_warrant(change.machine, replica_slot(group), warrant, &digest)?;
                *view
            }
            RunItem::Endorsed { view, outcome, .. } => {
                let digest = Endorsement::digest(*view, outcome);
                directory.verify_warrant(change.machine, replica_slot(group), warrant, &digest)?;
                *view
            }
            RunItem::Acknowledged { view, outcome, .. } => {
                let digest = ViewAcknowledgement::digest(*view, outcome);
                directory.verify_warrant(change.machine, replica_slot(group), warrant, &digest)?;
                // What it has acknowledged, it must show.
                ensure(*view <= change.basis().view)?;
                *view
            }
        };
        ensure(view >= at && view < change.view)?;
        at = view;
    }
    Ok(())
}

/// A batch above the checkpoint that it committed comes with its PREPARE.
fn verify_commit_is_shown(commit: &Commit, from: u64, prepared: &BTreeMap<u64, Digest>) -> Result<(), Rejection> {
    let above = commit.batches.iter().filter(|(value, _)| *value > from);
    for (value, digest) in above {
        ensure(prepared.get(value) == Some(digest))?;
    }
    Ok(())
}

pub(crate) fn verify_new_view(new_view: &NewView, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(new_view.changes.len(), usize::from(machines(directory)))?;
    bounded(new_view.hellos.len(), usize::from(machines(directory)))?;
    ensure(new_view.view.0 <= NUMBER_MAX && is_admission(&new_view.admission, directory))?;
    ensure(
        new_view
            .changes
            .is_sorted_by(|left, right| left.machine < right.machine),
    )?;
    ensure(new_view.hellos.is_sorted_by(|left, right| left.machine < right.machine))?;
    let digest = new_view.digest();
    directory.verify_machine(primary(new_view.view, directory), &digest, &new_view.signature)?;
    for change in &new_view.changes {
        ensure(change.view == new_view.view)?;
        verify_view_change(change, directory)?;
    }
    for hello in &new_view.hellos {
        verify_hello(hello, directory)?;
    }
    Ok(digest)
}
