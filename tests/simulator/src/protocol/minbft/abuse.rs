//! What an adversary with a machine's key and counter makes of its MinBFT messages.
//!
//! It *certifies late*: its production code was shown a warrant that certifies nothing, with the right value; here
//! the counter certifies for that value whatever the adversary wants to send. A true counter does so once for each
//! value, so to equivocate is to send one batch to some and nothing that verifies to the others.

use std::sync::Arc;

use ed25519_dalek::Signer;
use ordering::configuration::PRIMARY_SLOT;
use ordering::identifiers::{Digest, GroupId, Order};
use ordering::minbft::{Acknowledgement, Checkpoint, Collect, Commit, Hello, Message, Prepare, PrepareEntry, Report};
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
        _ => Tampered::Untouched,
    }
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
    Message::Checkpoint(checkpoint)
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
