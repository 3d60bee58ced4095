//! How a view begins that was changed to, computed from the NEW-VIEW alone: the same on every machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::configuration::{Configuration, Mutant, PRIMARY_SLOT, is_replica};
use crate::identifiers::{GroupId, MachineId, Order, View};
use crate::ledger::HistoryPoint;
use crate::ledger::piece::NOTHING;
use crate::minbft::wire::admission::Admission;
use crate::minbft::wire::change::{NewView, ViewChange};
use crate::minbft::wire::ordered::Prepare;
use crate::minbft::wire::outcome::{Outcome, OutcomeEntry};

/// Computes the outcome of a view change from f+1 VIEW-CHANGEs or more, each of which speaks for the replicas of
/// **every** group on its machine (rule EveryGroupSpeaks).
///
/// 1. The base is the highest stable checkpoint, or the base of the basis (the machines that endorsed the basis saw the proof of its base).
/// 2. The basis is the highest outcome that any of them acknowledged: whatever was decided in its view or a lower
///    one is in it, or was committed in its view. Above the base its entries follow.
/// 3. Then the PREPAREs of the basis' view, in counter order. A group's share of a batch may have been decided
///    only if at most f of these machines did not commit it: such shares stay, all others become nothing, and
///    their requests will be ordered again. A change of the assignment that does not stay ends the outcome.
/// 4. The counters of these machines are admitted where they are; restarted ones with their new epoch (rule
///    AdmittedEpochs); all others stay as they were.
///
/// None: the evidence does not suffice, or contradicts itself.
pub fn compute_change(new_view: &NewView, configuration: &Configuration) -> Option<Outcome> {
    let changes: Vec<&ViewChange> = new_view.changes.iter().map(|change| change.as_ref()).collect();
    let is_justified = changes.iter().all(|change| !change.requests.is_empty());
    let quorum = if configuration.is(Mutant::OneViewChange) {
        1
    } else {
        configuration.quorum() as usize
    };
    if changes.len() < quorum || !is_justified {
        return None;
    }
    let basis = changes
        .iter()
        .map(|change| change.basis())
        .max_by_key(|basis| basis.view)?;
    let points = changes.iter().map(|change| change.point());
    let base = points.chain([basis.base]).max_by_key(|point| point.order)?;
    if base.view > basis.view || !changes.iter().all(|change| is_admitted(change, basis)) {
        return None;
    }
    let skip = usize::try_from(base.order.0.checked_sub(basis.base.order.0)?).ok()?;
    let mut entries: Vec<OutcomeEntry> = basis.entries.iter().skip(skip).copied().collect();
    follow_prepares(&changes, basis, &base, configuration, &mut entries);
    let admitted = admit(new_view, basis, configuration)?;
    Some(Outcome {
        view: new_view.view,
        base,
        entries,
        admitted,
        changed: changes.iter().map(|change| change.machine).collect(),
    })
}

/// Leaves out what does not fit to the rest: or one liar's VIEW-CHANGE, of an epoch that was not admitted, would keep the
/// others' from making a view.
pub(super) fn keep_fitting(changes: &mut Vec<Arc<ViewChange>>) {
    loop {
        let count = changes.len();
        let basis = changes
            .iter()
            .map(|change| change.basis())
            .max_by_key(|basis| basis.view);
        let Some(basis) = basis.cloned() else { return };
        changes.retain(|change| is_admitted(change, &basis) && change.point().view <= basis.view);
        if changes.len() == count {
            return;
        }
    }
}

/// Whether the basis knows the counter, and not further than it claims to be: a VIEW-CHANGE that was made in an
/// earlier epoch or kept back since does not count (rule AdmittedEpochs).
fn is_admitted(change: &ViewChange, basis: &Outcome) -> bool {
    let Some(admission) = basis.admission(change.machine) else {
        return false;
    };
    let known = admission.positions.iter().skip(1);
    let is_further = |(warrant, known): (&trusted_counter::UniqueWarrant, &u64)| {
        warrant.epoch == admission.epoch && warrant.value > *known
    };
    change.warrants.iter().zip(known).all(is_further)
}

/// Appends what was prepared in the view of the basis, as far as it may have been decided.
fn follow_prepares(
    changes: &[&ViewChange],
    basis: &Outcome,
    base: &HistoryPoint,
    configuration: &Configuration,
    entries: &mut Vec<OutcomeEntry>,
) {
    let view = basis.view;
    let mut by_value: BTreeMap<u64, &Prepare> = BTreeMap::new();
    for change in changes.iter().filter(|change| change.live.outcome.view == view) {
        for prepare in &change.prepares {
            by_value.entry(prepare.warrant.value).or_insert(prepare);
        }
    }
    let committed = count_commits(changes, view);
    let unseen_max = configuration.faults.0;
    let needed = changes.len().saturating_sub(usize::from(unseen_max));
    let mut next = Order(base.order.0 + entries.len() as u64 + 1);
    let mut kept = entries.len();
    'batches: for (value, prepare) in by_value {
        if prepare.first != next {
            // At or below the base; there is no gap above it in what any of them shows.
            continue;
        }
        for (index, entry) in prepare.entries.iter().enumerate() {
            let count = committed.get(&(entry.group.deciding(), value)).map_or(0, BTreeSet::len);
            let may_be_decided = count >= needed;
            if !may_be_decided && entry.group.is_change() {
                // The change was not decided, so no correct replica has committed anything behind it (rule ChangesDivide).
                break 'batches;
            }
            entries.push(OutcomeEntry {
                group: entry.group,
                time_us: prepare.time_us + index as u64,
                digest: if may_be_decided { entry.digest } else { NOTHING },
            });
            if may_be_decided {
                kept = entries.len();
            }
        }
        next = prepare.last().next();
    }
    // Behind the last one that may have been decided, nothing needs to be filled.
    entries.truncate(kept);
}

/// The machines that have committed each group's share of each batch of a view.
fn count_commits(changes: &[&ViewChange], view: View) -> BTreeMap<(GroupId, u64), BTreeSet<MachineId>> {
    let mut committed: BTreeMap<(GroupId, u64), BTreeSet<MachineId>> = BTreeMap::new();
    for change in changes {
        for (group, (value, _)) in change.commits(view) {
            committed.entry((group, *value)).or_default().insert(change.machine);
        }
    }
    committed
}

/// The counters that count in the new view.
fn admit(new_view: &NewView, basis: &Outcome, configuration: &Configuration) -> Option<Vec<(MachineId, Admission)>> {
    let mut admitted: BTreeMap<MachineId, Admission> = basis
        .admitted
        .iter()
        .filter(|(machine, _)| is_replica(*machine))
        .cloned()
        .collect();
    for hello in new_view.hellos.iter().filter(|hello| is_replica(hello.machine)) {
        let known = admitted.get(&hello.machine).map(|admission| admission.epoch);
        if known.is_none_or(|known| known < hello.admission.epoch) {
            admitted.insert(hello.machine, hello.admission.clone());
        }
    }
    for change in &new_view.changes {
        let positions = std::iter::once(0).chain(change.warrants.iter().map(|warrant| warrant.value));
        let admission = Admission {
            epoch: change.epoch()?,
            positions: positions.collect(),
        };
        admitted.insert(change.machine, admission);
    }
    // The primary's own counter: its PREPAREs follow what it says here.
    let primary = configuration.primary(new_view.view);
    let leading = &new_view.admission;
    let start = *leading.positions.get(usize::try_from(PRIMARY_SLOT).ok()?)?;
    let own = admitted.entry(primary).or_insert_with(|| leading.clone());
    if own.epoch != leading.epoch {
        return None;
    }
    *own.positions.get_mut(usize::try_from(PRIMARY_SLOT).ok()?)? = start;
    Some(admitted.into_iter().collect())
}
