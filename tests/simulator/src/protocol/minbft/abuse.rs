//! What an adversary with a machine's key and counter makes of its MinBFT messages: here the choice by kind, and the
//! normal case.

use std::sync::Arc;

use ed25519_dalek::Signer;
use ordering::configuration::{COMMIT_WINDOW, PRIMARY_SLOT};
use ordering::identifiers::{Digest, GroupId, Order, View};
use ordering::ledger::{Checkpoint, PrepareEntry};
use ordering::minbft::{Commit, Followed, Message, Prepare};
use rand::RngExt;

use super::late::late;
use super::{MinBft, changes, starts};
use crate::adversary::{Addressed, Behaviour, Script, Tools};
use crate::counter::Trust;
use crate::protocol::Tampered;

/// What is sent instead of a message.
pub(super) fn tamper(script: &mut Script<MinBft>, message: &Message, tools: &mut Tools<'_>) -> Tampered<Message> {
    match message {
        Message::Prepare(prepare) if prepare.warrant.slot == PRIMARY_SLOT && is_own(prepare, tools) => {
            late(script, &prepare.warrant, tools, |script, tools| {
                prepares(script, prepare, tools)
            })
        }
        Message::Commit(commit) if !script.memory.has_run_ahead && script.does(Behaviour::RunningAhead, tools.rng) => {
            script.memory.has_run_ahead = true;
            Tampered::Instead(run_ahead(commit, tools))
        }
        Message::Commit(commit) => late(script, &commit.warrant, tools, |script, tools| {
            commits(script, commit, tools)
        }),
        Message::Checkpoint(checkpoint) if script.does(Behaviour::LyingCheckpoints, tools.rng) => {
            Tampered::Instead(vec![(tools.some(), lying_checkpoint(checkpoint, tools))])
        }
        Message::RequestViewChange(request) if script.does(Behaviour::LyingViewChanges, tools.rng) => {
            changes::wish(request, tools)
        }
        // Views that nobody needs, and returns of who was never away.
        Message::Standing(standing) if wants_views(script, tools) => {
            tools.tell("wants a view without need");
            let request = changes::signed_request(View(standing.view.0 + 1), tools);
            Tampered::Instead(vec![(u64::MAX, request), (u64::MAX, message.clone())])
        }
        Message::Standing(standing) if script.does(Behaviour::LyingAdmissions, tools.rng) => {
            let hello = starts::needless_hello(standing, tools);
            Tampered::Instead(vec![(u64::MAX, hello), (u64::MAX, message.clone())])
        }
        Message::ViewChange(change) => changes::leave(script, change, tools),
        Message::NewView(new_view) => changes::new_view(script, new_view, tools),
        Message::Endorse(endorsement) => changes::endorse(script, endorsement, tools),
        Message::AcknowledgeView(acknowledgement) => changes::acknowledge(script, acknowledgement, tools),
        _ => starts::tamper(script, message, tools),
    }
}

fn wants_views(script: &Script<MinBft>, tools: &mut Tools<'_>) -> bool {
    script.does(Behaviour::LyingViewChanges, tools.rng) || script.has(Behaviour::RestartingCounters)
}

fn is_own(prepare: &Prepare, tools: &Tools<'_>) -> bool {
    prepare.view.0 % u64::from(tools.machines) == u64::from(tools.machine.0)
}

/// Content that is to be certified at the value in question, and for whom.
type Wanted = Addressed<Message>;

/// Batches that an adversary orders instead of this one.
fn prepares(script: &mut Script<MinBft>, prepare: &Arc<Prepare>, tools: &mut Tools<'_>) -> Wanted {
    let mut altered = Prepare::clone(prepare);
    if script.does(Behaviour::Equivocating, tools.rng) {
        tools.tell("equivocates");
        return equivocate(prepare, altered, tools);
    }
    if script.does(Behaviour::DoubleOrdering, tools.rng) {
        tools.tell("orders twice");
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
        tools.tell("orders for wrong groups");
        for entry in &mut altered.entries {
            entry.group = tools.wrong_group();
        }
    }
    if script.does(Behaviour::BreakingOrder, tools.rng) {
        tools.tell("breaks the order");
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
        tools.tell("confirms both");
        return wanted;
    }
    if script.does(Behaviour::WrongCommits, tools.rng) {
        tools.tell("commits something else");
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

/// COMMITs behind one that nobody gets: more than any machine may keep.
fn run_ahead(commit: &Commit, tools: &mut Tools<'_>) -> Wanted {
    tools.tell("commits far ahead");
    let slot = commit.warrant.slot;
    tools.counter.create(slot, &[0; 32]);
    let last = commit.batches.last().map_or(0, |(value, _)| *value);
    let ahead = |value: u64| {
        let mut copy = Commit::clone(commit);
        copy.batches = vec![(last + value, tools.noise())];
        let digest = Commit::digest(copy.view, copy.group, &copy.batches);
        copy.warrant = tools.counter.create(slot, &digest);
        (u64::MAX, Message::Commit(Arc::new(copy)))
    };
    (1..=COMMIT_WINDOW + 50).map(ahead).collect()
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

fn lying_checkpoint(checkpoint: &Checkpoint<Followed>, tools: &mut Tools<'_>) -> Message {
    let mut checkpoint = checkpoint.clone();
    match (tools.rng.random_range(0..7), &mut checkpoint.attached) {
        (0 | 1, Some(followed)) => {
            tools.tell("has followed what it has not");
            match tools.rng.random_range(0..2) {
                0 => followed.order = Order(0),
                _ => followed.positions.iter_mut().for_each(|(_, known)| {
                    known.positions.iter_mut().for_each(|position| *position += 5);
                }),
            }
            checkpoint.signature = tools.key.sign(&checkpoint.signed()).to_bytes();
            return Message::Checkpoint(Arc::new(checkpoint));
        }
        (0..3, _) => checkpoint.point.history = tools.noise(),
        (3, _) => checkpoint.point.order = Order(checkpoint.point.order.0 + tools.rng.random_range(1..1000)),
        (4, _) => checkpoint.point.value += 1,
        (5, _) => checkpoint.clients = tools.noise(),
        _ => checkpoint.point.view.0 += u64::from(tools.machines),
    }
    tools.tell("checkpoint that never was");
    checkpoint.signature = tools.key.sign(&checkpoint.signed()).to_bytes();
    Message::Checkpoint(Arc::new(checkpoint))
}
