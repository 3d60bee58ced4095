//! How a view begins, computed from the evidence alone: the same on every machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::identifiers::{Order, View};
use crate::ledger::HistoryPoint;
use crate::ledger::piece::NOTHING;
use crate::minbft::wire::ordered::Prepare;
use crate::minbft::wire::outcome::{LiveProof, Outcome, OutcomeEntry};
use crate::minbft::wire::start::{Collect, Report};

/// Computes the outcome of a start from the hellos and the reports of **all** its replicas.
///
/// 1. The base is the highest proven checkpoint.
/// 2. The last view that any replica was live in counts: nothing was decided in a later one, and what was
///    decided in earlier ones is in that view's own outcome.
/// 3. Above the base follow that outcome's entries, then the PREPAREs of that view in counter order, as far as
///    they continue without gap. Whatever was decided is among them: f+1 replicas had logged it, and the log of
///    each correct one is here.
/// 4. An entry whose body nobody holds, for the group that it was given to, was not decided; it becomes nothing. (No
///    correct machine commits a share with a request that another group is in charge of.) A change of the assignment that
///    becomes nothing ends the outcome.
///
/// None: the evidence contradicts itself, so more than f machines are faulty, or the reports are not complete.
pub(crate) fn compute(collect: &Collect, reports: &[Arc<Report>]) -> Option<Outcome> {
    let base = collect.base();
    let live = reports
        .iter()
        .filter_map(|report| report.live.as_ref())
        .max_by_key(|live| live.outcome.view);
    let mut entries = Vec::new();
    if let Some(live) = live {
        take_over(&live.outcome, &base, &mut entries)?;
        follow_prepares(live, reports, &base, &mut entries);
    }
    let held: BTreeSet<_> = reports.iter().flat_map(|report| report.held.iter().copied()).collect();
    let mut kept = entries.len();
    for (index, entry) in entries.iter_mut().enumerate() {
        if held.contains(&(entry.digest, entry.group)) {
            continue;
        }
        if entry.group.is_change() {
            // The change was not decided, so no correct replica has committed anything behind it (rule ChangesDivide).
            kept = kept.min(index);
        }
        entry.digest = NOTHING;
    }
    entries.truncate(kept);
    let admitted = collect
        .hellos
        .iter()
        .map(|hello| (hello.machine, hello.admission.clone()))
        .collect();
    Some(Outcome {
        view: collect.view,
        base,
        entries,
        admitted,
        changed: Vec::new(),
    })
}

/// What that view took over itself, as far as it is above the base.
fn take_over(outcome: &Outcome, base: &HistoryPoint, entries: &mut Vec<OutcomeEntry>) -> Option<()> {
    let skip = usize::try_from(base.order.0.checked_sub(outcome.base.order.0)?).ok()?;
    entries.extend(outcome.entries.iter().skip(skip));
    Some(())
}

/// What was prepared in that view, in counter order, as far as it continues without gap.
fn follow_prepares(live: &LiveProof, reports: &[Arc<Report>], base: &HistoryPoint, entries: &mut Vec<OutcomeEntry>) {
    let view = live.outcome.view;
    let of_view = |report: &&Arc<Report>| report.live.as_ref().is_some_and(|other| other.outcome.view == view);
    let mut by_value: BTreeMap<u64, &Prepare> = BTreeMap::new();
    for prepare in reports.iter().filter(of_view).flat_map(|report| &report.prepares) {
        by_value.entry(prepare.warrant.value).or_insert(prepare);
    }
    let mut next = Order(base.order.0 + entries.len() as u64 + 1);
    let mut last_us = entries.last().map_or(base.time_us, |entry| entry.time_us);
    for prepare in by_value.values() {
        // A batch that ends at or below the base, or one that does not continue (its primary was faulty, or the
        // batches between are in nobody's log, so it was not decided).
        if prepare.first != next || prepare.time_us <= last_us {
            continue;
        }
        for (index, entry) in prepare.entries.iter().enumerate() {
            let time_us = prepare.time_us + index as u64;
            entries.push(OutcomeEntry {
                group: entry.group,
                time_us,
                digest: entry.digest,
            });
        }
        next = prepare.last().next();
        last_us = prepare.time_us + prepare.entries.len() as u64 - 1;
    }
}

/// The view of an attempt to start that candidate m0 leads: above every view that any log mentions.
pub(crate) fn next_view(mentioned: Option<View>, machines: u8) -> View {
    match mentioned {
        None => View(0),
        Some(view) => View((view.0 / u64::from(machines) + 1) * u64::from(machines)),
    }
}
