//! What an adversary with a machine's key makes of its PBFT messages.

use std::sync::Arc;

use ed25519_dalek::Signer;
use ordering::identifiers::{Digest, GroupId, Order, View};
use ordering::ledger::{Checkpoint, Nothing, PrepareEntry};
use ordering::pbft::{Batch, Commit, Message, PrePrepare, Prepare, RequestViewChange};
use rand::RngExt;

use super::{Pbft, changes, hoarding};
use crate::adversary::{Addressed, Behaviour, Script, Tools};
use crate::protocol::Tampered;

/// What is sent instead of a message.
pub(super) fn tamper(script: &mut Script<Pbft>, message: &Message, tools: &mut Tools<'_>) -> Tampered<Message> {
    if let Some(sent) = hoarding::tamper(script, message, tools) {
        return Tampered::Instead(sent);
    }
    match message {
        Message::PrePrepare(proposal) if is_own(proposal.view, tools) => propose(script, proposal, tools),
        // Whoever accepts a batch could as well say that it has a certificate.
        Message::Prepare(prepare) if script.does(Behaviour::LyingEndorsements, tools.rng) => {
            tools.tell("commits before it is prepared");
            let (view, number, digest) = (prepare.view, prepare.number, prepare.digest);
            let early = Message::Commit(Commit { view, number, digest });
            Tampered::Instead(vec![(u64::MAX, early), (u64::MAX, message.clone())])
        }
        Message::Prepare(prepare) => vote(script, prepare.view, prepare.number, tools, |digest, tools| {
            Message::Prepare(signed_prepare(prepare.view, prepare.number, digest, tools))
        }),
        Message::Commit(commit) => {
            script.memory.last = Some(*commit);
            vote(script, commit.view, commit.number, tools, |digest, _| {
                Message::Commit(Commit { digest, ..*commit })
            })
        }
        Message::Checkpoint(checkpoint) if script.does(Behaviour::LyingCheckpoints, tools.rng) => {
            Tampered::Instead(vec![(tools.some(), lying_checkpoint(checkpoint, tools))])
        }
        Message::RequestViewChange(request) if script.does(Behaviour::LyingViewChanges, tools.rng) => {
            tools.tell("wants another view");
            let view = View(request.view.0 + tools.rng.random_range(0..20));
            Tampered::Instead(vec![
                (tools.some(), signed_request(view, tools)),
                (tools.some(), message.clone()),
            ])
        }
        Message::ViewChange(view_change) => changes::leave(script, view_change, tools),
        Message::NewView(new_view) if script.does(Behaviour::LyingNewViews, tools.rng) => {
            let audience = tools.some();
            let lie = changes::lying_new_view(new_view, &script.memory, tools);
            Tampered::Instead(vec![(audience, lie), (!audience, message.clone())])
        }
        // Views that nobody needs, now and then.
        Message::Standing(standing)
            if script.does(Behaviour::LyingStarts, tools.rng) || script.does(Behaviour::LyingAdmissions, tools.rng) =>
        {
            tools.tell("wants a view without need");
            let request = signed_request(View(standing.view.0 + 1), tools);
            Tampered::Instead(vec![(u64::MAX, request), (u64::MAX, message.clone())])
        }
        _ => Tampered::Untouched,
    }
}

pub(super) fn is_own(view: View, tools: &Tools<'_>) -> bool {
    view.0 % u64::from(tools.machines) == u64::from(tools.machine.0)
}

pub(super) fn sign(digest: &Digest, tools: &Tools<'_>) -> [u8; 64] {
    tools.key.sign(digest).to_bytes()
}

pub(super) fn signed_proposal(view: View, batch: Batch, tools: &Tools<'_>) -> Message {
    let digest = PrePrepare::signed(view, batch.number, &batch.digest());
    Message::PrePrepare(Arc::new(PrePrepare {
        view,
        batch: Arc::new(batch),
        signature: sign(&digest, tools),
    }))
}

pub(super) fn signed_prepare(view: View, number: u64, digest: Digest, tools: &Tools<'_>) -> Prepare {
    Prepare {
        view,
        number,
        digest,
        signature: sign(&Prepare::signed(view, number, &digest), tools),
    }
}

pub(super) fn signed_request(view: View, tools: &Tools<'_>) -> Message {
    Message::RequestViewChange(RequestViewChange {
        machine: tools.machine,
        view,
        signature: sign(&RequestViewChange::signed(tools.machine, view), tools),
    })
}

/// Batches that an adversary proposes instead of this one; the same again when the production code repeats itself.
fn propose(script: &mut Script<Pbft>, proposal: &Arc<PrePrepare>, tools: &mut Tools<'_>) -> Tampered<Message> {
    let (view, number) = (proposal.view, proposal.batch.number);
    let place = (u32::try_from(view.0).unwrap_or(u32::MAX), number);
    if let Some(sent) = script.certified.get(&place) {
        return Tampered::Instead(sent.clone());
    }
    let mut altered = Batch::clone(&proposal.batch);
    if script.does(Behaviour::Equivocating, tools.rng) {
        tools.tell("equivocates");
        altered.time_us += 1;
        if let (Some(other), true) = (tools.request(), tools.rng.random_bool(0.5)) {
            altered.entries[0] = entry_of(other.group, other.digest);
        }
        let audience = tools.some() | (1 << tools.machine.0);
        let split = vec![(audience, proposal.batch.digest()), (!audience, altered.digest())];
        tools.conspiracy.batches.insert((view.0, number), split);
        let original = Message::PrePrepare(Arc::clone(proposal));
        let sent = vec![(audience, original), (!audience, signed_proposal(view, altered, tools))];
        script.certified.insert(place, sent.clone());
        return Tampered::Instead(sent);
    }
    let original = altered.clone();
    spoil(script, &mut altered, tools);
    if altered == original {
        return Tampered::Untouched;
    }
    let sent: Addressed<Message> = vec![(u64::MAX, signed_proposal(view, altered, tools))];
    script.certified.insert(place, sent.clone());
    Tampered::Instead(sent)
}

fn spoil(script: &Script<Pbft>, batch: &mut Batch, tools: &mut Tools<'_>) {
    if script.does(Behaviour::DoubleOrdering, tools.rng) {
        tools.tell("orders twice");
        let twice = batch.entries[0];
        let other = GroupId((twice.group.0 + 1) % tools.groups);
        batch.entries.push(entry_of(other, twice.digest));
        if let Some(old) = tools.request() {
            batch.entries.push(entry_of(old.group, old.digest));
        }
    }
    if script.does(Behaviour::WrongGroups, tools.rng) {
        tools.tell("orders for wrong groups");
        for entry in &mut batch.entries {
            entry.group = tools.wrong_group();
        }
    }
    if script.does(Behaviour::BreakingOrder, tools.rng) {
        tools.tell("breaks the order");
        match tools.rng.random_range(0..6) {
            0 => batch.first = Order(batch.first.0 + 1),
            1 => batch.number += 1,
            2 => batch.time_us = batch.time_us.saturating_sub(2_000_000),
            3 => batch.time_us += 20_000_000,
            4 => batch.time_us = u64::MAX >> 2,
            _ => batch.entries[0].digest = tools.noise(),
        }
    }
}

fn entry_of(group: GroupId, digest: Digest) -> PrepareEntry {
    PrepareEntry { group, digest }
}

/// Votes: an accomplice confirms to each machine what that one was sent; a liar confirms something else.
fn vote(
    script: &mut Script<Pbft>,
    view: View,
    number: u64,
    tools: &mut Tools<'_>,
    make: impl Fn(Digest, &Tools<'_>) -> Message,
) -> Tampered<Message> {
    let split = tools.conspiracy.batches.get(&(view.0, number)).cloned();
    if let Some(split) = split.filter(|_| script.has(Behaviour::Equivocating)) {
        tools.tell("confirms both");
        let each = split.into_iter();
        return Tampered::Instead(each.map(|(audience, digest)| (audience, make(digest, tools))).collect());
    }
    if script.does(Behaviour::WrongCommits, tools.rng) {
        tools.tell("votes for something else");
        let noise = tools.noise();
        return Tampered::Instead(vec![(tools.some(), make(noise, tools))]);
    }
    Tampered::Untouched
}

fn lying_checkpoint(checkpoint: &Checkpoint<Nothing>, tools: &mut Tools<'_>) -> Message {
    tools.tell("checkpoint that never was");
    let mut checkpoint = checkpoint.clone();
    match tools.rng.random_range(0..3) {
        0 => checkpoint.point.history = tools.noise(),
        1 => checkpoint.point.order = Order(checkpoint.point.order.0 + tools.rng.random_range(1..1000)),
        _ => checkpoint.point.value += 1,
    }
    checkpoint.signature = sign(&checkpoint.signed(), tools);
    Message::Checkpoint(checkpoint)
}
