//! What an adversary says in a view change.

use std::sync::Arc;

use ed25519_dalek::Signer;
use ordering::configuration::{Configuration, Faults, PRIMARY_SLOT, replica_slot};
use ordering::identifiers::{Digest, View};
use ordering::minbft::{
    CertifiedOutcome, Commit, Endorsement, Message, NewView, Outcome, Prepare, RequestViewChange, RunItem, RunStart,
    ViewAcknowledgement, ViewChange, compute_change,
};
use rand::RngExt;
use rand::seq::SliceRandom;

use super::late::{Memory, certify_change, is_pretended, late};
use super::{MinBft, restarts};
use crate::adversary::{Addressed, Behaviour, Script, Tools};
use crate::protocol::Tampered;

pub(super) fn signed_request(view: View, tools: &Tools<'_>) -> Message {
    let digest = RequestViewChange::digest(tools.machine, view);
    Message::RequestViewChange(RequestViewChange {
        machine: tools.machine,
        view,
        signature: tools.key.sign(&digest).to_bytes(),
    })
}

/// Wants a far view, for some only.
pub(super) fn wish(request: &RequestViewChange, tools: &mut Tools<'_>) -> Tampered<Message> {
    tools.tell("wants another view");
    let view = View(request.view.0 + tools.rng.random_range(0..20));
    Tampered::Instead(vec![
        (tools.some(), signed_request(view, tools)),
        (tools.some(), Message::RequestViewChange(request.clone())),
    ])
}

/// Leaves a view: shows something else than it has done, and may go on to commit.
pub(super) fn leave(script: &mut Script<MinBft>, change: &Arc<ViewChange>, tools: &mut Tools<'_>) -> Tampered<Message> {
    if !script.certifies_late() || !change.warrants.iter().all(is_pretended) {
        if !script.does(Behaviour::CommittingLate, tools.rng) {
            return Tampered::Untouched;
        }
        let message = Message::ViewChange(Arc::clone(change));
        return Tampered::Instead(with_late_commit(script, vec![(u64::MAX, message)], change.view, tools));
    }
    let Some(first) = change.warrants.first() else {
        return Tampered::Untouched;
    };
    let place = (first.slot, first.value);
    if let Some(certified) = script.certified.get(&place) {
        return Tampered::Instead(certified.clone());
    }
    let real = restarts::shown(script, change, tools);
    let wanted = if script.does(Behaviour::LyingViewChanges, tools.rng) {
        lying_changes(real, &mut script.memory, tools)
    } else {
        vec![(u64::MAX, real)]
    };
    let mut sent = Vec::new();
    for (audience, mut change) in wanted {
        if certify_change(&mut change, &mut script.memory, tools) {
            sent.push((audience, Message::ViewChange(Arc::new(change))));
        }
    }
    if sent.is_empty() {
        // The counter has gone on since: nothing was told.
        tools.told.clear();
    }
    if script.does(Behaviour::CommittingLate, tools.rng) {
        sent = with_late_commit(script, sent, change.view, tools);
    }
    script.certified.insert(place, sent.clone());
    Tampered::Instead(sent)
}

fn with_late_commit(
    script: &Script<MinBft>,
    mut sent: Addressed<Message>,
    left_for: View,
    tools: &mut Tools<'_>,
) -> Addressed<Message> {
    if let Some(commit) = commit_late(&script.memory, left_for, tools) {
        tools.tell("commits after leaving");
        sent.push((tools.some(), commit));
        if tools.rng.random_bool(0.5) {
            sent.reverse();
        }
    }
    sent
}

/// Commits the last batch that was heard of in the view that has just been left (rule NoLateCommit): that spends the
/// warrant after the VIEW-CHANGE's, so the machine's own production code stops soon after.
fn commit_late(memory: &Memory, left_for: View, tools: &mut Tools<'_>) -> Option<Message> {
    let ((view, _), last) = memory.prepares.range(..(left_for, 0)).next_back()?;
    let commit = commit_of(*view, last, tools)?;
    let digest = Commit::digest(commit.view, commit.group, &commit.batches);
    let warrant = tools.counter.create(replica_slot(commit.group), &digest);
    Some(Message::Commit(Arc::new(Commit { warrant, ..commit })))
}

/// A COMMIT of one group's share of a batch, without a true warrant.
fn commit_of(view: View, prepare: &Prepare, tools: &mut Tools<'_>) -> Option<Commit> {
    let entry = prepare.entries.get(tools.rng.random_range(0..prepare.entries.len()))?;
    Some(Commit {
        view,
        group: entry.group.deciding(),
        batches: vec![(prepare.warrant.value, prepare.own_digest())],
        warrant: tools.counter.pretend(replica_slot(entry.group.deciding()), 0),
    })
}

/// One lie that fits, or the truth. All that are returned are certified one after the other: what a true counter does
/// not certify is not sent.
fn lying_changes(real: ViewChange, memory: &mut Memory, tools: &mut Tools<'_>) -> Addressed<ViewChange> {
    let mut change = real.clone();
    let mut kinds: Vec<u32> = (0..LIES_OF_CHANGES).collect();
    kinds.shuffle(tools.rng);
    for kind in kinds.into_iter().take(4) {
        let lie = match kind {
            0 => hide_last(&mut change, tools),
            1 => older_checkpoint(&mut change, memory, tools),
            2 => older_view(&mut change, memory),
            3 => hide_acknowledgement(&mut change),
            4 => unacknowledged_outcome(&mut change, memory, tools),
            5 => unjustified(&mut change),
            6 => earlier_start(&mut change, memory),
            7 => other_start(&mut change, memory, tools),
            8 => commit_on_leaving(&mut change, memory, tools),
            _ => return two_views(real, memory, tools),
        };
        if let Some(lie) = lie {
            tools.tell(lie);
            return vec![(u64::MAX, change)];
        }
        change = real.clone();
    }
    vec![(u64::MAX, real)]
}

const LIES_OF_CHANGES: u32 = 10;

/// What a lie is called; none: there is nothing to lie about here.
type Lie = Option<&'static str>;

/// Hides the last thing that a replica has certified: its counter shows that.
fn hide_last(change: &mut ViewChange, tools: &mut Tools<'_>) -> Lie {
    let index = tools.rng.random_range(0..change.runs.len());
    change.runs.get_mut(index)?.pop()?;
    Some("view change hides a warrant")
}

/// Shows an older stable checkpoint, with the PREPAREs since.
fn older_checkpoint(change: &mut ViewChange, memory: &Memory, tools: &mut Tools<'_>) -> Lie {
    let order = change.stable.as_ref()?.point.order;
    let older: Vec<_> = memory.stables.range(..order).map(|(_, stable)| stable).collect();
    let older = match older.len() {
        0 => None,
        count => older
            .get(tools.rng.random_range(0..count))
            .map(|stable| (*stable).clone()),
    };
    let view = change.live.outcome.view;
    let until = change
        .prepares
        .first()
        .map_or(u64::MAX, |prepare| prepare.warrant.value);
    let from = older.as_ref().map_or(0, |stable| stable.point.value);
    let from = if older.as_ref().is_some_and(|stable| stable.point.view == view) {
        from
    } else {
        let primary = Configuration::new(tools.machine, Faults(tools.faults), tools.groups).primary(view);
        change.live.outcome.position(primary, PRIMARY_SLOT)?
    };
    let between = memory.prepares.range((view, from + 1)..(view, until));
    let between: Vec<_> = between.map(|(_, prepare)| Arc::clone(prepare)).collect();
    change.prepares.splice(0..0, between);
    change.stable = older;
    Some("view change shows an older checkpoint")
}

/// Shows the view before the last one, as if it had not taken part in that.
fn older_view(change: &mut ViewChange, memory: &Memory) -> Lie {
    let (_, older) = memory.lives.range(..change.live.outcome.view).next_back()?;
    change.live = Arc::clone(older);
    change.prepares.retain(|prepare| prepare.view == older.outcome.view);
    if let RunStart::Earlier(proof) = &change.start
        && proof.outcome.view == older.outcome.view
    {
        change.start = RunStart::Live;
    }
    Some("view change shows an older view")
}

/// Hides what it has acknowledged: its counter shows that.
fn hide_acknowledgement(change: &mut ViewChange) -> Lie {
    change.certified.take()?;
    Some("view change hides what was acknowledged")
}

/// Shows an outcome that others have endorsed, and that it has not acknowledged.
fn unacknowledged_outcome(change: &mut ViewChange, memory: &Memory, tools: &Tools<'_>) -> Lie {
    let known = change.basis().view;
    let later = memory.new_views.range(View(known.0 + 1)..change.view);
    for (view, new_view) in later.rev() {
        let Some(outcome) = outcome_of(new_view, tools) else {
            continue;
        };
        let digest = outcome.digest();
        let of_view = memory
            .endorsements
            .range((*view, ordering::identifiers::MachineId(0))..);
        let endorsements: Vec<_> = of_view
            .take_while(|((other, _), _)| other == view)
            .filter(|(_, endorsement)| endorsement.outcome == digest)
            .map(|((_, machine), endorsement)| (*machine, endorsement.warrant))
            .collect();
        if endorsements.len() > usize::from(tools.faults) {
            let certified = CertifiedOutcome { outcome, endorsements };
            change.certified = Some(Arc::new(certified));
            return Some("view change shows what it has not acknowledged");
        }
    }
    None
}

pub(super) fn outcome_of(new_view: &NewView, tools: &Tools<'_>) -> Option<Outcome> {
    compute_change(
        new_view,
        &Configuration::new(tools.machine, Faults(tools.faults), tools.groups),
    )
}

/// Without the wishes that would justify it, as if the view were live.
fn unjustified(change: &mut ViewChange) -> Lie {
    change.requests.clear();
    Some("view change without a reason")
}

/// Shows everything since a view before the last one.
fn earlier_start(change: &mut ViewChange, memory: &Memory) -> Lie {
    let epoch = change.epoch()?;
    let earlier = memory.lives.range(..change.live.outcome.view).rev();
    let admits = earlier.filter_map(|(_, proof)| {
        let admission = proof.outcome.admission(change.machine)?;
        (admission.epoch == epoch).then_some((proof, admission.positions.clone()))
    });
    for (proof, positions) in admits {
        if let Some(runs) = runs_since(change, &positions, memory) {
            change.start = RunStart::Earlier(Arc::clone(proof));
            change.runs = runs;
            return Some("view change begins at an earlier view");
        }
    }
    None
}

/// Shows everything since positions that others once said to have followed.
fn other_start(change: &mut ViewChange, memory: &Memory, tools: &mut Tools<'_>) -> Lie {
    let epoch = change.epoch()?;
    let mut statements: Vec<_> = memory.followed.clone();
    statements.shuffle(tools.rng);
    statements.sort_by_key(|statement| statement.followed.machine);
    statements.dedup_by_key(|statement| statement.followed.machine);
    statements.truncate(usize::from(tools.faults) + 1);
    let of_own = statements
        .iter()
        .filter_map(|statement| statement.followed.of(change.machine));
    let of_own: Vec<_> = of_own.filter(|admission| admission.epoch == epoch).collect();
    if of_own.len() <= usize::from(tools.faults) {
        return None;
    }
    let slots = of_own.first()?.positions.len();
    let lowest = |slot: usize| {
        of_own
            .iter()
            .filter_map(|known| known.positions.get(slot))
            .min()
            .copied()
    };
    let positions: Option<Vec<u64>> = (0..slots).map(lowest).collect();
    let runs = runs_since(change, &positions?, memory)?;
    change.start = RunStart::Followed(statements);
    change.runs = runs;
    Some("view change begins at other positions")
}

/// What our counters have certified since these positions, as far as it is remembered.
pub(super) fn runs_since(change: &ViewChange, positions: &[u64], memory: &Memory) -> Option<Vec<Vec<RunItem>>> {
    let each = change.warrants.iter().zip(positions.get(1..)?);
    each.map(|(warrant, from)| {
        let values = from + 1..warrant.value;
        values
            .map(|value| memory.spent.get(&(warrant.epoch, warrant.slot, value)).cloned())
            .collect()
    })
    .collect()
}

/// Commits one batch more, and shows that to nobody before.
fn commit_on_leaving(change: &mut ViewChange, memory: &mut Memory, tools: &mut Tools<'_>) -> Lie {
    let prepare = Arc::clone(change.prepares.last()?);
    let mut commit = commit_of(prepare.view, &prepare, tools)?;
    let group = usize::from(commit.group.0);
    let warrant = change.warrants.get_mut(group)?;
    let digest = Commit::digest(commit.view, commit.group, &commit.batches);
    commit.warrant = tools.counter.create_at(warrant.slot, warrant.value, &digest)?;
    warrant.value += 1;
    let item = RunItem::Commit(Arc::new(commit));
    memory.keep(&item);
    change.runs.get_mut(group)?.push(item);
    Some("view change commits what it never sent")
}

/// Changes to two views at once: the first for some, the second for the others.
fn two_views(real: ViewChange, memory: &mut Memory, tools: &mut Tools<'_>) -> Addressed<ViewChange> {
    let higher = real.requests.iter().map(|request| request.view).min();
    let after = real.live.outcome.view.0 + 1;
    let (first, second) = match higher {
        Some(higher) if higher > real.view => (real.view, higher),
        _ if after < real.view.0 => (View(after), real.view),
        _ => return vec![(u64::MAX, real)],
    };
    let mut low = ViewChange {
        view: first,
        ..real.clone()
    };
    if !certify_change(&mut low, memory, tools) {
        return vec![(u64::MAX, real)];
    }
    tools.tell("view changes to two views");
    let (content, view) = (low.content(), low.view);
    let mut high = ViewChange { view: second, ..real };
    for (index, warrant) in low.warrants.iter().enumerate() {
        let left = RunItem::Left {
            view,
            content,
            warrant: *warrant,
        };
        high.runs[index].push(left);
        high.warrants[index].value += 1;
    }
    let audience = tools.some();
    vec![(audience, low), (!audience, high)]
}

/// Another choice of evidence, other counters, or without the machines that return.
pub(super) fn new_view(
    script: &mut Script<MinBft>,
    new_view: &Arc<NewView>,
    tools: &mut Tools<'_>,
) -> Tampered<Message> {
    let mut real = NewView::clone(new_view);
    let own = script.memory.changes.get(&new_view.view);
    for change in &mut real.changes {
        if change.machine == tools.machine && change.warrants.iter().all(is_pretended) {
            *change = Arc::clone(own.unwrap_or(change));
        }
    }
    let is_altered = real != **new_view;
    let real = signed(real, tools);
    script.memory.new_views.insert(real.view, Arc::clone(&real));
    if !script.does(Behaviour::LyingNewViews, tools.rng) {
        return match is_altered {
            true => Tampered::Instead(vec![(u64::MAX, Message::NewView(real))]),
            false => Tampered::Untouched,
        };
    }
    let audience = tools.some();
    let lie = lying_new_view(NewView::clone(&real), &script.memory, tools);
    Tampered::Instead(vec![
        (audience, Message::NewView(lie)),
        (!audience, Message::NewView(real)),
    ])
}

fn signed(mut new_view: NewView, tools: &Tools<'_>) -> Arc<NewView> {
    new_view.signature = tools.key.sign(&new_view.digest()).to_bytes();
    Arc::new(new_view)
}

fn lying_new_view(mut new_view: NewView, memory: &Memory, tools: &mut Tools<'_>) -> Arc<NewView> {
    match tools.rng.random_range(0..4) {
        0 if !new_view.changes.is_empty() => {
            let victim = tools.rng.random_range(0..new_view.changes.len());
            new_view.changes.remove(victim);
            tools.tell(if new_view.changes.len() > usize::from(tools.faults) {
                "new view from other view changes"
            } else {
                "new view from too few view changes"
            });
        }
        1 if !new_view.hellos.is_empty() => {
            new_view.hellos.clear();
            tools.tell("new view without those who return");
        }
        2 if !memory.hellos.is_empty() => {
            let old = Arc::clone(&memory.hellos[tools.rng.random_range(0..memory.hellos.len())]);
            new_view.hellos.retain(|hello| hello.machine != old.machine);
            new_view.hellos.push(old);
            new_view.hellos.sort_by_key(|hello| hello.machine);
            tools.tell("new view with an old hello");
        }
        _ => {
            let positions = new_view.admission.positions.iter_mut();
            positions.for_each(|position| *position += 1);
            tools.tell("new view with other counter values");
        }
    }
    signed(new_view, tools)
}

/// Endorses something else, for some only, or acknowledges at once.
pub(super) fn endorse(
    script: &mut Script<MinBft>,
    endorsement: &Arc<Endorsement>,
    tools: &mut Tools<'_>,
) -> Tampered<Message> {
    late(script, &endorsement.warrant, tools, |script, tools| {
        if script.has(Behaviour::RestartingCounters) {
            return restarts::endorse(script, endorsement, tools);
        }
        let original = Message::Endorse(Arc::clone(endorsement));
        if !script.does(Behaviour::LyingEndorsements, tools.rng) {
            return vec![(u64::MAX, original)];
        }
        match tools.rng.random_range(0..3) {
            0 => {
                tools.tell("endorses something else");
                let mut other = Endorsement::clone(endorsement);
                other.outcome = other_outcome(script, endorsement, tools);
                vec![(u64::MAX, Message::Endorse(Arc::new(other)))]
            }
            1 => {
                tools.tell("endorses for some only");
                vec![(tools.some(), original)]
            }
            _ => acknowledge_early(script, endorsement, tools),
        }
    })
}

/// The outcome of another choice of evidence, or none at all.
fn other_outcome(script: &Script<MinBft>, endorsement: &Endorsement, tools: &mut Tools<'_>) -> Digest {
    let noise = tools.noise();
    let Some(new_view) = script.memory.new_views.get(&endorsement.view) else {
        return noise;
    };
    let mut other = NewView::clone(new_view);
    if !other.changes.is_empty() {
        let victim = tools.rng.random_range(0..other.changes.len());
        other.changes.remove(victim);
    }
    outcome_of(&other, tools).map_or(noise, |outcome| outcome.digest())
}

/// The acknowledgement leaves with the endorsement, before anybody else has endorsed anything.
pub(super) fn acknowledge_early(
    script: &mut Script<MinBft>,
    endorsement: &Arc<Endorsement>,
    tools: &mut Tools<'_>,
) -> Addressed<Message> {
    let (machine, view, outcome) = (tools.machine, endorsement.view, endorsement.outcome);
    let (slot, value) = (endorsement.warrant.slot, endorsement.warrant.value);
    let Some(endorsed) = tools
        .counter
        .create_at(slot, value, &Endorsement::digest(view, &outcome))
    else {
        return Vec::new();
    };
    let warrant = endorsed;
    script.memory.keep(&RunItem::Endorsed { view, outcome, warrant });
    let digest = ViewAcknowledgement::digest(view, &outcome);
    let warrant = tools.counter.create(slot, &digest);
    script.memory.keep(&RunItem::Acknowledged { view, outcome, warrant });
    tools.tell("acknowledges before others have endorsed");
    let mut real = Endorsement::clone(endorsement);
    real.warrant = endorsed;
    let acknowledgement = Message::AcknowledgeView(Arc::new(ViewAcknowledgement {
        machine,
        view,
        outcome,
        endorsed,
        acknowledged: warrant,
    }));
    // When the production code does so too, it is the same.
    let again = vec![(u64::MAX, acknowledgement.clone())];
    script.certified.insert((slot, value + 1), again);
    vec![
        (u64::MAX, Message::Endorse(Arc::new(real))),
        (u64::MAX, acknowledgement),
    ]
}

/// Acknowledges something else, or for some only.
pub(super) fn acknowledge(
    script: &mut Script<MinBft>,
    acknowledgement: &Arc<ViewAcknowledgement>,
    tools: &mut Tools<'_>,
) -> Tampered<Message> {
    late(script, &acknowledgement.acknowledged, tools, |script, tools| {
        let mut real = ViewAcknowledgement::clone(acknowledgement);
        if !script.does(Behaviour::LyingEndorsements, tools.rng) {
            return vec![(u64::MAX, Message::AcknowledgeView(Arc::new(real)))];
        }
        let audience = match tools.rng.random_range(0..2) {
            0 => {
                tools.tell("acknowledges what it did not endorse");
                real.outcome = tools.noise();
                u64::MAX
            }
            _ => {
                tools.tell("acknowledges for some only");
                tools.some()
            }
        };
        vec![(audience, Message::AcknowledgeView(Arc::new(real)))]
    })
}
