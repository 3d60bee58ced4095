//! Verification of a view change's messages: a VIEW-CHANGE proves by itself that it hides nothing.

use std::collections::BTreeMap;

use crate::check::{NUMBER_MAX, bounded, ensure, sender_is};
use crate::configuration::{PRIMARY_SLOT, WATERMARK_ORDERS, is_replica, replica_slot};
use crate::directory::Directory;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::ledger::Attachment;
use crate::ledger::checkpoint::checkpoint_signed;
use crate::minbft::messages::Commit;
use crate::minbft::start_messages::{LiveProof, Outcome};
use crate::minbft::verification::{
    is_admission, machines, primary, verify_commit, verify_hello, verify_live, verify_prepare, verify_stable,
};
use crate::minbft::view_messages::{
    CertifiedOutcome, Endorsement, Followed, FollowedStatement, NewView, RequestViewChange, RunItem, RunStart,
    ViewAcknowledgement, ViewChange,
};
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

/// What a machine says of counters; its signature is checked by the caller.
pub(crate) fn check_followed(followed: &Followed, directory: &Directory) -> Result<(), Rejection> {
    bounded(followed.positions.len(), usize::from(machines(directory)))?;
    ensure(is_replica(followed.machine))?;
    ensure(followed.positions.is_sorted_by(|left, right| left.0 < right.0))?;
    let are_admissions = followed
        .positions
        .iter()
        .all(|(_, admission)| is_admission(admission, directory));
    ensure(are_admissions)
}

/// The same, shown without its checkpoint.
fn verify_followed(statement: &FollowedStatement, directory: &Directory) -> Result<(), Rejection> {
    let followed = &statement.followed;
    check_followed(followed, directory)?;
    let signed = checkpoint_signed(&statement.point, &followed.digest());
    directory.verify_machine(followed.machine, &signed, &statement.signature)
}

/// From where on a machine's counters were followed by f+1 of these, so by a correct one: per slot the highest
/// position that f+1 reach. None: fewer have followed this epoch.
pub(crate) fn followed_positions(
    statements: &[&FollowedStatement],
    machine: MachineId,
    epoch: u64,
    quorum: usize,
) -> Option<Vec<u64>> {
    let of_epoch: Vec<_> = statements
        .iter()
        .filter_map(|statement| statement.followed.of(machine))
        .filter(|admission| admission.epoch == epoch)
        .collect();
    let slots = of_epoch.iter().map(|admission| admission.positions.len()).min()?;
    let position = |slot: usize| {
        let mut reached: Vec<u64> = of_epoch
            .iter()
            .filter_map(|admission| admission.positions.get(slot).copied())
            .collect();
        reached.sort_unstable_by(|left, right| right.cmp(left));
        reached.get(quorum.checked_sub(1)?).copied()
    };
    (0..slots).map(position).collect()
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
            // Whoever has not seen it join a later view may speak of positions in an earlier one.
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

pub(crate) fn verify_endorsement(endorsement: &Endorsement, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_replica(endorsement.machine) && endorsement.view.0 <= NUMBER_MAX)?;
    let digest = Endorsement::digest(endorsement.view, &endorsement.outcome);
    let slot = replica_slot(GroupId(0));
    directory.verify_warrant(endorsement.machine, slot, &endorsement.warrant, &digest)?;
    Ok(digest)
}

pub(crate) fn verify_view_acknowledgement(
    acknowledgement: &ViewAcknowledgement,
    directory: &Directory,
) -> Result<Digest, Rejection> {
    let ViewAcknowledgement {
        machine,
        view,
        outcome,
        endorsed,
        acknowledged,
    } = acknowledgement;
    ensure(is_replica(*machine) && view.0 <= NUMBER_MAX)?;
    ensure(acknowledged.epoch == endorsed.epoch && acknowledged.value == endorsed.value.saturating_add(1))?;
    let slot = replica_slot(GroupId(0));
    directory.verify_warrant(*machine, slot, endorsed, &Endorsement::digest(*view, outcome))?;
    let digest = ViewAcknowledgement::digest(*view, outcome);
    directory.verify_warrant(*machine, slot, acknowledged, &digest)?;
    Ok(digest)
}

/// f+1 of those whose VIEW-CHANGEs it follows from have endorsed it, each right after its VIEW-CHANGE.
fn verify_certified(certified: &CertifiedOutcome, directory: &Directory) -> Result<(), Rejection> {
    let outcome = &certified.outcome;
    verify_outcome(outcome, directory)?;
    let endorsements = &certified.endorsements;
    bounded(endorsements.len(), usize::from(machines(directory)))?;
    ensure(endorsements.is_sorted_by(|left, right| left.0 < right.0))?;
    ensure(endorsements.len() > usize::from(directory.faults.0))?;
    let digest = outcome.digest();
    for (machine, warrant) in endorsements {
        let endorsement = Endorsement {
            machine: *machine,
            view: outcome.view,
            outcome: digest,
            warrant: *warrant,
        };
        verify_endorsement(&endorsement, directory)?;
        ensure(endorses(outcome, *machine, warrant))?;
    }
    Ok(())
}

/// Whether a warrant is the one right after the machine's VIEW-CHANGE.
pub(crate) fn endorses(outcome: &Outcome, machine: MachineId, warrant: &trusted_counter::UniqueWarrant) -> bool {
    let admission = outcome
        .admission(machine)
        .filter(|_| outcome.changed.contains(&machine));
    admission.is_some_and(|admission| {
        let position = admission.positions.get(1).copied().unwrap_or(u64::MAX);
        admission.epoch == warrant.epoch && warrant.value == position.saturating_add(1)
    })
}

/// Sizes and order of an outcome.
pub(crate) fn verify_outcome(outcome: &Outcome, directory: &Directory) -> Result<(), Rejection> {
    bounded(outcome.admitted.len(), usize::from(machines(directory)))?;
    bounded(outcome.changed.len(), usize::from(machines(directory)))?;
    ensure(outcome.view.0 <= NUMBER_MAX && outcome.base.order.0 <= NUMBER_MAX)?;
    ensure(outcome.admitted.is_sorted_by(|left, right| left.0 < right.0))?;
    ensure(outcome.changed.is_sorted())?;
    ensure(
        outcome
            .admitted
            .iter()
            .all(|(_, admission)| is_admission(admission, directory)),
    )
}

/// f+1 of those whose VIEW-CHANGEs the outcome follows from have acknowledged it (rule CommittedView).
pub(crate) fn verify_changed(proof: &LiveProof, directory: &Directory) -> Result<Digest, Rejection> {
    let acknowledgements = proof.decided_by.acknowledgements();
    bounded(acknowledgements.len(), usize::from(machines(directory)))?;
    ensure(acknowledgements.len() > usize::from(directory.faults.0))?;
    ensure(acknowledgements.is_sorted_by(|left, right| left.machine < right.machine))?;
    let digest = proof.outcome.digest();
    for acknowledgement in acknowledgements {
        ensure(acknowledgement.view == proof.outcome.view && acknowledgement.outcome == digest)?;
        ensure(endorses(
            &proof.outcome,
            acknowledgement.machine,
            &acknowledgement.endorsed,
        ))?;
        verify_view_acknowledgement(acknowledgement, directory)?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Faults;
    use crate::directory::MachineEntry;
    use crate::identifiers::{MachineId, Order};
    use crate::ledger::{Checkpoint, HistoryPoint, StableCheckpoint};
    use crate::minbft::start_messages::Admission;
    use crate::minbft::verification::verify_stable;
    use ed25519_dalek::{Signer, SigningKey};
    use trusted_counter::{SoftwareCounter, TrustedCounter};

    fn key(machine: u8) -> SigningKey {
        SigningKey::from_bytes(&[machine + 1; 32])
    }

    fn directory() -> Directory {
        let counter = SoftwareCounter::volatile_ed25519([9; 32], 1);
        let entry = |machine: u8| {
            let (key, counter) = (key(machine).verifying_key(), counter.identity());
            (MachineId(machine), MachineEntry { key, counter })
        };
        Directory {
            faults: Faults(1),
            groups: 1,
            machines: (0..4).map(entry).collect(),
            clients: BTreeMap::new(),
            verifier: counter.verifier([counter.identity()]),
        }
    }

    fn checkpoint(machine: u8, order: u64, position: u64) -> Checkpoint<Followed> {
        let admission = Admission {
            epoch: 1,
            positions: vec![0, position],
        };
        let followed = Followed {
            machine: MachineId(machine),
            view: View(0),
            order: Order(order),
            positions: vec![(MachineId(1), admission)],
        };
        let mut checkpoint = Checkpoint {
            machine: MachineId(machine),
            point: HistoryPoint {
                order: Order(order),
                ..HistoryPoint::GENESIS
            },
            clients: [3; 32],
            attached: Some(followed),
            signature: [0; 64],
        };
        checkpoint.signature = key(machine).sign(&checkpoint.signed()).to_bytes();
        checkpoint
    }

    #[test]
    fn a_checkpoints_signature_proves_its_point_and_its_positions_and_nothing_else() {
        let directory = directory();
        // The two have followed differently far, and still agree on the point.
        let (one, other) = (checkpoint(1, 512, 7), checkpoint(2, 512, 8));
        let stable = StableCheckpoint {
            point: one.point,
            clients: one.clients,
            signatures: vec![one.own_signature(), other.own_signature()],
        };
        assert!(verify_stable(&stable, &directory).is_ok());
        let wrong = Err(Rejection::WrongSignature);
        let mut altered = stable.clone();
        altered.signatures[1].attached = one.attached_digest();
        assert_eq!(verify_stable(&altered, &directory), wrong);
        let mut altered = stable.clone();
        altered.point.order = Order(513);
        assert_eq!(verify_stable(&altered, &directory), wrong);
        let mut altered = stable;
        altered.clients = [4; 32];
        assert_eq!(verify_stable(&altered, &directory), wrong);

        let statement = one.followed_statement().unwrap();
        assert_eq!(verify_followed(&statement, &directory), Ok(()));
        let wrong = Err(Rejection::WrongSignature);
        let mut altered = statement.clone();
        altered.followed.positions[0].1.positions[1] += 1;
        assert_eq!(verify_followed(&altered, &directory), wrong);
        let mut altered = statement.clone();
        altered.followed.order = Order(511);
        assert_eq!(verify_followed(&altered, &directory), wrong);
        let mut altered = statement.clone();
        altered.followed.machine = MachineId(2);
        assert_eq!(verify_followed(&altered, &directory), wrong);
        // The positions of one checkpoint with the point of another.
        let mut altered = statement;
        altered.point = checkpoint(1, 1024, 7).followed_statement().unwrap().point;
        assert_eq!(verify_followed(&altered, &directory), wrong);
        // The point's digest can not be taken for positions, nor the other way round.
        let swapped = checkpoint_signed(&one.attached_digest(), &one.point.digest(&one.clients));
        assert_ne!(swapped, one.signed());
        assert!(
            checkpoint(0, 1, 1)
                .attached
                .is_some_and(|followed| check_followed(&followed, &directory).is_err())
        );
    }
}
