//! A counter that its machine restarts at will (`docs/protocol.md`, rule AdmittedEpochs).
//!
//! Each restart gives a fresh epoch, whose warrants verify: with it, the machine commits at the values that the others
//! expect of the epoch that the view has admitted, and spends nothing of that one. Its next VIEW-CHANGE shows the
//! admitted counter, truly and without hole, and none of these COMMITs: if they had counted, what they decided would be
//! lost.
//!
//! So the admitted counter falls behind what the production code believes: what that wants to show, endorse and
//! acknowledge is made anew from what the counter was really spent on.

use std::sync::Arc;

use ordering::minbft::{Commit, Endorsement, Message, RunStart, ViewChange};

use super::MinBft;
use super::changes::{acknowledge_early, outcome_of, runs_since};
use super::late::{Memory, is_pretended, real_change};
use crate::adversary::{Addressed, Behaviour, Script, Tools};

/// The COMMIT with a warrant of another epoch, at the value that the others expect next.
pub(super) fn commit(mut commit: Commit, memory: &mut Memory, tools: &mut Tools<'_>) -> Option<Message> {
    let slot = commit.warrant.slot;
    let position = tools.counter.position(slot);
    let last = memory.unshown.entry((tools.counter.epoch(), slot)).or_insert(position);
    let value = (*last).max(position) + 1;
    let digest = Commit::digest(commit.view, commit.group, &commit.batches);
    commit.warrant = tools.counter.create_restarted(slot, value, &digest)?;
    *last = value;
    tools.tell("commits with a restarted counter");
    Some(Message::Commit(Arc::new(commit)))
}

/// What the production code wants to show, or what the admitted counter was really spent on.
pub(super) fn shown(script: &mut Script<MinBft>, change: &ViewChange, tools: &mut Tools<'_>) -> ViewChange {
    if script.has(Behaviour::RestartingCounters)
        && let Some(shown) = admitted_runs(change, &mut script.memory, tools)
    {
        return shown;
    }
    real_change(change, &mut script.memory, tools)
}

fn admitted_runs(change: &ViewChange, memory: &mut Memory, tools: &mut Tools<'_>) -> Option<ViewChange> {
    for item in change.runs.iter().flatten() {
        // From before the machine was the adversary's.
        if !is_pretended(item.warrant()) {
            memory.keep(item);
        }
    }
    let mut bare = change.clone();
    let run_starts = bare.runs.iter().zip(&bare.warrants);
    let run_starts = run_starts.map(|(run, left)| run.first().map_or(left, |item| item.warrant()).value - 1);
    let proven: Vec<u64> = std::iter::once(0).chain(run_starts).collect();
    bare.runs.iter_mut().for_each(Vec::clear);
    let mut shown = real_change(&bare, memory, tools);
    for warrant in &mut shown.warrants {
        warrant.value = tools.counter.position(warrant.slot) + 1;
    }
    let epoch = tools.counter.epoch();
    let admission = shown.live.outcome.admission(shown.machine);
    let admission = admission.filter(|admission| admission.epoch == epoch);
    let since_live = admission.and_then(|admission| runs_since(&shown, &admission.positions, memory));
    match since_live {
        Some(runs) => (shown.start, shown.runs) = (RunStart::Live, runs),
        None => shown.runs = runs_since(&shown, &proven, memory)?,
    }
    if memory.unshown.keys().any(|(of, _)| *of == epoch) {
        tools.tell("view change without what a restarted counter committed");
    }
    memory.unshown.clear();
    Some(shown)
}

/// Endorses and acknowledges what follows from the VIEW-CHANGEs as they were sent: the production code knows its own one
/// only as it should have been.
pub(super) fn endorse(
    script: &mut Script<MinBft>,
    endorsement: &Endorsement,
    tools: &mut Tools<'_>,
) -> Addressed<Message> {
    let (slot, pretended) = (endorsement.warrant.slot, endorsement.warrant.value);
    let real = tools.counter.position(slot) + 1;
    let mut endorsement = endorsement.clone();
    endorsement.warrant = tools.counter.pretend(slot, real);
    let new_view = script.memory.new_views.get(&endorsement.view);
    if let Some(outcome) = new_view.and_then(|new_view| outcome_of(new_view, tools)) {
        endorsement.outcome = outcome.digest();
    }
    let sent = acknowledge_early(script, &Arc::new(endorsement), tools);
    for ahead in 0..2 {
        let epoch = tools.counter.epoch();
        script.memory.moved(epoch, slot, pretended + ahead, real + ahead);
    }
    if let Some(again) = script.certified.remove(&(slot, real + 1)) {
        script.certified.insert((slot, pretended + 1), again);
    }
    sent
}
