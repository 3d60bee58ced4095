//! What an adversary with a machine's key and counter makes of its MinBFT messages.
//!
//! It *certifies late*: its production code was shown a warrant that certifies nothing, with the right value; here
//! the counter certifies for that value whatever the adversary wants to send. A true counter does so once for each
//! value, so to equivocate is to send one batch to some and nothing that verifies to the others.

use std::sync::Arc;

use ed25519_dalek::Signer;
use ordering::configuration::{PRIMARY_SLOT, replica_slot};
use ordering::identifiers::{Digest, GroupId, Order, View};
use ordering::minbft::{
    Acknowledgement, Checkpoint, Collect, Commit, Hello, Message, NewView, Prepare, PrepareEntry, Report,
    RequestViewChange,
};
use rand::RngExt;

use super::MinBft;
use crate::adversary::{Addressed, Behaviour, Script, Tools};
use crate::counter::Trust;
use crate::protocol::Tampered;

/// What is sent instead of a message.
pub(super) fn tamper(script: &mut Script<MinBft>, message: &Message, tools: &mut Tools<'_>) -> Tampered<Message> {
    match message {
        Message::Prepare(prepare) if prepare.warrant.slot == PRIMARY_SLOT && is_own(prepare, tools) => {
            late(script, PRIMARY_SLOT, prepare.warrant.value, tools, |script, tools| {
                prepares(script, prepare, tools)
            })
        }
        Message::Commit(commit) => late(
            script,
            commit.warrant.slot,
            commit.warrant.value,
            tools,
            |script, tools| commits(script, commit, tools),
        ),
        Message::Checkpoint(checkpoint) if script.does(Behaviour::LyingCheckpoints, tools.rng) => {
            Tampered::Instead(vec![(tools.some(), lying_checkpoint(checkpoint, tools))])
        }
        Message::Hello(hello) if script.does(Behaviour::LyingStarts, tools.rng) => Tampered::Instead(vec![
            (tools.some(), lying_hello(hello, tools)),
            (tools.some(), message.clone()),
        ]),
        Message::Report(report) if script.does(Behaviour::LyingStarts, tools.rng) => {
            Tampered::Instead(vec![(u64::MAX, lying_report(report, tools))])
        }
        Message::Collect(collect) if script.does(Behaviour::LyingStarts, tools.rng) => {
            let audience = tools.some();
            Tampered::Instead(vec![
                (audience, lying_collect(collect, tools)),
                (!audience, message.clone()),
            ])
        }
        Message::Acknowledge(acknowledgement) if script.does(Behaviour::LyingStarts, tools.rng) => {
            let audience = tools.some();
            Tampered::Instead(vec![
                (audience, lying_acknowledgement(acknowledgement, tools)),
                (!audience, message.clone()),
            ])
        }
        Message::RequestViewChange(request) if script.does(Behaviour::LyingViewChanges, tools.rng) => {
            let view = View(request.view.0 + tools.rng.random_range(0..20));
            Tampered::Instead(vec![
                (tools.some(), signed_request(view, tools)),
                (tools.some(), message.clone()),
            ])
        }
        // Views that nobody needs, now and then.
        Message::Standing(standing) if script.does(Behaviour::LyingStarts, tools.rng) => {
            let request = signed_request(View(standing.view.0 + 1), tools);
            Tampered::Instead(vec![(u64::MAX, request), (u64::MAX, message.clone())])
        }
        Message::NewView(new_view) if script.does(Behaviour::LyingViewChanges, tools.rng) => {
            let audience = tools.some();
            Tampered::Instead(vec![
                (audience, lying_new_view(new_view, tools)),
                (!audience, message.clone()),
            ])
        }
        Message::ViewChange(change) if script.does(Behaviour::CommittingLate, tools.rng) => {
            let late = commit_late(script, change.view, tools).map(|late| (tools.some(), late));
            Tampered::Instead(late.into_iter().chain([(u64::MAX, message.clone())]).collect())
        }
        _ => Tampered::Untouched,
    }
}

fn signed_request(view: View, tools: &Tools<'_>) -> Message {
    let digest = RequestViewChange::digest(tools.machine, view);
    Message::RequestViewChange(RequestViewChange {
        machine: tools.machine,
        view,
        signature: tools.key.sign(&digest).to_bytes(),
    })
}

/// Another choice of evidence, or without the machines that return.
fn lying_new_view(new_view: &Arc<NewView>, tools: &mut Tools<'_>) -> Message {
    let mut new_view = NewView::clone(new_view);
    match tools.rng.random_range(0..3) {
        0 => {
            let victim = tools.rng.random_range(0..new_view.changes.len());
            new_view.changes.remove(victim);
        }
        1 => new_view.hellos.clear(),
        _ => new_view
            .admission
            .positions
            .iter_mut()
            .for_each(|position| *position += 1),
    }
    new_view.signature = tools.key.sign(&new_view.digest()).to_bytes();
    Message::NewView(Arc::new(new_view))
}

/// Commits the last batch that was heard of in the view that has just been left (rule 3): that spends the warrant
/// after the VIEW-CHANGE's, so the machine's own production code stops soon after.
fn commit_late(script: &Script<MinBft>, left_for: View, tools: &mut Tools<'_>) -> Option<Message> {
    let heard = script.heard.iter().filter_map(|message| match message {
        Message::Prepare(prepare) if prepare.view < left_for => Some(prepare),
        _ => None,
    });
    let last = heard.max_by_key(|prepare| (prepare.view, prepare.warrant.value))?;
    let (view, group) = (last.view, last.entries.first()?.group);
    let batches = vec![(last.warrant.value, last.own_digest())];
    let digest = Commit::digest(view, group, &batches);
    let warrant = tools.counter.create(replica_slot(group), &digest);
    Some(Message::Commit(Arc::new(Commit {
        view,
        group,
        batches,
        warrant,
    })))
}

fn is_own(prepare: &Prepare, tools: &Tools<'_>) -> bool {
    prepare.view.0 % u64::from(tools.machines) == u64::from(tools.machine.0)
}

/// Content that is to be certified at the value in question, and for whom.
type Wanted = Addressed<Message>;

/// Certifies what `make` wants to send at this value; the same again when the production code repeats itself.
fn late(
    script: &mut Script<MinBft>,
    slot: u32,
    value: u64,
    tools: &mut Tools<'_>,
    make: impl FnOnce(&mut Script<MinBft>, &mut Tools<'_>) -> Wanted,
) -> Tampered<Message> {
    if !script.certifies_late() {
        return Tampered::Untouched;
    }
    if let Some(certified) = script.certified.get(&(slot, value)) {
        return Tampered::Instead(certified.clone());
    }
    let wanted = make(script, tools);
    let certified: Wanted = wanted
        .into_iter()
        .filter_map(|(audience, message)| Some((audience, certify(message, slot, value, tools)?)))
        .collect();
    script.certified.insert((slot, value), certified.clone());
    Tampered::Instead(certified)
}

fn certify(message: Message, slot: u32, value: u64, tools: &mut Tools<'_>) -> Option<Message> {
    Some(match message {
        Message::Prepare(mut prepare) => {
            let digest = prepare.own_digest();
            Arc::make_mut(&mut prepare).warrant = tools.counter.create_at(slot, value, &digest)?;
            Message::Prepare(prepare)
        }
        Message::Commit(mut commit) => {
            let digest = Commit::digest(commit.view, commit.group, &commit.batches);
            Arc::make_mut(&mut commit).warrant = tools.counter.create_at(slot, value, &digest)?;
            Message::Commit(commit)
        }
        other => other,
    })
}

/// Batches that an adversary orders instead of this one.
fn prepares(script: &mut Script<MinBft>, prepare: &Arc<Prepare>, tools: &mut Tools<'_>) -> Wanted {
    let mut altered = Prepare::clone(prepare);
    if script.does(Behaviour::Equivocating, tools.rng) {
        return equivocate(prepare, altered, tools);
    }
    if script.does(Behaviour::DoubleOrdering, tools.rng) {
        let twice = altered.entries[tools.rng.random_range(0..altered.entries.len())];
        let other = GroupId((twice.group.0 + 1) % tools.groups);
        let old = tools.request();
        for entry in &mut altered.entries {
            entry.digest = twice.digest;
            entry.group = if tools.rng.random_bool(0.5) { other } else { twice.group };
        }
        if let Some((old, last)) = old.zip(altered.entries.last_mut()) {
            *last = entry_of(old.group, old.digest);
        }
    }
    if script.does(Behaviour::WrongGroups, tools.rng) {
        for entry in &mut altered.entries {
            // The last one is no group at all: verification refuses the whole batch.
            entry.group = GroupId(tools.rng.random_range(0..=tools.groups));
        }
    }
    if script.does(Behaviour::BreakingOrder, tools.rng) {
        break_order(&mut altered, tools);
    }
    vec![(u64::MAX, Message::Prepare(Arc::new(altered)))]
}

/// One batch for some and another one for the rest. A true counter certifies only the first.
fn equivocate(prepare: &Arc<Prepare>, mut altered: Prepare, tools: &mut Tools<'_>) -> Wanted {
    let audience = tools.some();
    altered.time_us += 1;
    if let (Some(other), true) = (tools.request(), tools.rng.random_bool(0.5)) {
        altered.entries[0] = entry_of(other.group, other.digest);
    }
    let batches = vec![(audience, prepare.own_digest()), (!audience, altered.own_digest())];
    let place = (prepare.view.0, prepare.warrant.value);
    tools.conspiracy.batches.insert(place, batches);
    let mut wanted = vec![
        (audience, Message::Prepare(Arc::clone(prepare))),
        (!audience, Message::Prepare(Arc::new(altered))),
    ];
    if tools.counter.trust() == Trust::True && tools.rng.random_bool(0.5) {
        wanted.reverse();
    }
    wanted
}

fn break_order(prepare: &mut Prepare, tools: &mut Tools<'_>) {
    match tools.rng.random_range(0..6) {
        0 => prepare.first = Order(prepare.first.0 + 1),
        1 => prepare.first = Order(prepare.first.0.saturating_sub(1).max(1)),
        2 => prepare.time_us = prepare.time_us.saturating_sub(2_000_000),
        3 => prepare.time_us += 20_000_000,
        4 => prepare.time_us = u64::MAX >> 2,
        _ => {
            let noise = tools.noise();
            prepare.entries[0].digest = noise;
        }
    }
}

fn entry_of(group: GroupId, digest: Digest) -> PrepareEntry {
    PrepareEntry { group, digest }
}

/// COMMITs that an adversary sends instead of this one.
fn commits(script: &mut Script<MinBft>, commit: &Arc<Commit>, tools: &mut Tools<'_>) -> Wanted {
    let mut altered = Commit::clone(commit);
    if script.has(Behaviour::Equivocating)
        && let Some(wanted) = confirm_both(commit, tools)
    {
        return wanted;
    }
    if script.does(Behaviour::WrongCommits, tools.rng) {
        match tools.rng.random_range(0..5) {
            0 => altered.batches[0].1 = tools.noise(),
            1 => altered.batches[0].0 += 1,
            2 => altered.batches.reverse(),
            3 => altered.batches.iter_mut().for_each(|batch| batch.0 += 1000),
            // To some only: the others see a hole.
            _ => return vec![(tools.some(), Message::Commit(Arc::clone(commit)))],
        }
    }
    vec![(u64::MAX, Message::Commit(Arc::new(altered)))]
}

/// An accomplice of an equivocating primary confirms to each machine the batches that this one has got.
fn confirm_both(commit: &Arc<Commit>, tools: &Tools<'_>) -> Option<Wanted> {
    let batches = &tools.conspiracy.batches;
    let place = |value: &u64| (commit.view.0, *value);
    let is_split = commit
        .batches
        .iter()
        .any(|(value, _)| batches.contains_key(&place(value)));
    is_split.then(|| {
        let for_one = |machine: u8| {
            let mut copy = Commit::clone(commit);
            for (value, digest) in &mut copy.batches {
                let split = batches.get(&place(value)).into_iter().flatten();
                if let Some((_, other)) = split.into_iter().find(|(audience, _)| audience & (1 << machine) != 0) {
                    *digest = *other;
                }
            }
            (1 << machine, Message::Commit(Arc::new(copy)))
        };
        (0..tools.machines).map(for_one).collect()
    })
}

fn lying_checkpoint(checkpoint: &Checkpoint, tools: &mut Tools<'_>) -> Message {
    let mut checkpoint = checkpoint.clone();
    match tools.rng.random_range(0..4) {
        0 => checkpoint.point.history = tools.noise(),
        1 => checkpoint.point.order = Order(checkpoint.point.order.0 + tools.rng.random_range(1..1000)),
        2 => checkpoint.point.value += 1,
        _ => checkpoint.point.view.0 += u64::from(tools.machines),
    }
    checkpoint.signature = tools.key.sign(&checkpoint.point.digest()).to_bytes();
    Message::Checkpoint(Arc::new(checkpoint))
}

fn lying_hello(hello: &Arc<Hello>, tools: &mut Tools<'_>) -> Message {
    let mut hello = Hello::clone(hello);
    match tools.rng.random_range(0..4) {
        0 => hello.stable = None,
        1 => hello.view = None,
        2 => hello.admission.epoch += 1,
        _ => hello.admission.positions.iter_mut().for_each(|position| *position += 3),
    }
    hello.signature = tools.key.sign(&hello.digest()).to_bytes();
    Message::Hello(Arc::new(hello))
}

fn lying_report(report: &Arc<Report>, tools: &mut Tools<'_>) -> Message {
    let mut report = Report::clone(report);
    match tools.rng.random_range(0..4) {
        0 => report.prepares.clear(),
        1 => report.held.clear(),
        2 => {
            report.live = None;
            report.prepares.clear();
        }
        _ => report.prepares.truncate(report.prepares.len() / 2),
    }
    report.signature = tools.key.sign(&report.digest()).to_bytes();
    Message::Report(Arc::new(report))
}

/// The leader of a start leaves out a hello, or shows an old one of its own.
fn lying_collect(collect: &Arc<Collect>, tools: &mut Tools<'_>) -> Message {
    let mut collect = Collect::clone(collect);
    if tools.rng.random_bool(0.5) && collect.hellos.len() > 1 {
        let victim = tools.rng.random_range(0..collect.hellos.len());
        collect.hellos.remove(victim);
    } else if let Some(own) = collect.hellos.iter_mut().find(|hello| hello.machine == tools.machine) {
        let mut changed = Hello::clone(own);
        changed.stable = None;
        changed
            .admission
            .positions
            .iter_mut()
            .for_each(|position| *position += 1);
        changed.signature = tools.key.sign(&changed.digest()).to_bytes();
        *own = Arc::new(changed);
    }
    collect.signature = tools.key.sign(&collect.digest()).to_bytes();
    Message::Collect(Arc::new(collect))
}

fn lying_acknowledgement(acknowledgement: &Acknowledgement, tools: &mut Tools<'_>) -> Message {
    let mut acknowledgement = acknowledgement.clone();
    acknowledgement.outcome = tools.noise();
    let digest = Acknowledgement::digest(acknowledgement.view, &acknowledgement.outcome);
    acknowledgement.signature = tools.key.sign(&digest).to_bytes();
    Message::Acknowledge(acknowledgement)
}
