//! Certificates that a primary keeps to itself, and shows when something else has been decided.
//!
//! 1. It proposes to just so many machines that their PREPAREs and its own are a certificate, and keeps its own: nobody
//!    else has one. Then it resigns, and hides the certificate when it leaves.
//! 2. In a later view something else is decided for that number. Now the next view cannot come soon enough: the hoarder
//!    wants it, and signs no checkpoint that would settle the number.
//! 3. It shows the old certificate in every view change from then on, and votes for its batch ahead of time.
//!
//! This is borne because the certificate of the highest view counts (`ordering/src/pbft/change/outcome.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use ordering::identifiers::{Order, View};
use ordering::pbft::{Certificate, Commit, Message, PrePrepare, ViewChange};
use rand::RngExt;
use rand::seq::SliceRandom;

use super::Pbft;
use super::abuse::{is_own, sign, signed_prepare, signed_request};
use super::changes::Memory;
use crate::adversary::{Addressed, Behaviour, Script, Tools};

/// Numbers after the last superseded one at which a hoarder still hopes that no checkpoint has settled it.
const HOPE: u64 = 16;

/// What a primary proposes to some only, until it leaves its view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hoard {
    view: View,
    /// From this number on.
    first: u64,
    /// Who gets it.
    audience: u64,
}

impl Hoard {
    fn has(&self, view: View, number: u64) -> bool {
        view == self.view && number >= self.first
    }
}

/// What a hoarder sends instead of a message; none: nothing special.
pub(super) fn tamper(
    script: &mut Script<Pbft>,
    message: &Message,
    tools: &mut Tools<'_>,
) -> Option<Addressed<Message>> {
    if !script.has(Behaviour::Hoarding) {
        return None;
    }
    let has = |view, number| script.memory.hoard.is_some_and(|hoard| hoard.has(view, number));
    match message {
        Message::PrePrepare(proposal) if is_own(proposal.view, tools) => propose(script, proposal, tools),
        Message::Prepare(prepare) => has(prepare.view, prepare.number).then(Vec::new),
        Message::Commit(commit) if has(commit.view, commit.number) => Some(resign(commit, tools)),
        Message::Commit(commit) => press_on(commit, tools),
        Message::Checkpoint(checkpoint) => hopes(checkpoint.point.value, tools).then(Vec::new),
        Message::ViewChange(view_change) => leave(&mut script.memory, view_change, tools),
        _ => None,
    }
}

/// Proposes to just enough machines, unless a certificate for this number is kept already.
fn propose(script: &mut Script<Pbft>, proposal: &Arc<PrePrepare>, tools: &mut Tools<'_>) -> Option<Addressed<Message>> {
    let (view, number) = (proposal.view, proposal.batch.number);
    if script.memory.hoard.is_none_or(|hoard| !hoard.has(view, number)) {
        let is_fresh = (view, number) > script.memory.proposed;
        script.memory.proposed = script.memory.proposed.max((view, number));
        let is_kept = tools.conspiracy.hoarded.contains_key(&number);
        if !is_fresh || is_kept || !script.does(Behaviour::Hoarding, tools.rng) {
            return None;
        }
        let (first, audience) = (number, just_enough(tools));
        script.memory.hoard = Some(Hoard { view, first, audience });
    }
    tools.tell("proposes to just enough");
    let audience = script.memory.hoard.map_or(0, |hoard| hoard.audience);
    Some(vec![(audience, Message::PrePrepare(Arc::clone(proposal)))])
}

/// 2f others: without this machine they are no quorum.
fn just_enough(tools: &mut Tools<'_>) -> u64 {
    let mut others: Vec<u8> = (0..tools.machines).filter(|other| *other != tools.machine.0).collect();
    others.shuffle(tools.rng);
    let chosen = others.iter().take(2 * usize::from(tools.faults));
    chosen.fold(0, |bits, other| bits | 1 << other)
}

/// Has the certificate: from now on the view is only in the way.
fn resign(commit: &Commit, tools: &mut Tools<'_>) -> Addressed<Message> {
    tools.tell("resigns with a certificate of its own");
    let view = commit.view.0;
    tools.conspiracy.hoarded.entry(commit.number).or_insert(view);
    vec![(u64::MAX, signed_request(View(view + 1), tools))]
}

/// Votes like anybody else, or only for some to decide. Once that supersedes what is kept, wants the next view: at once
/// while few have decided, or later when all have.
fn press_on(commit: &Commit, tools: &mut Tools<'_>) -> Option<Addressed<Message>> {
    let kept = tools.conspiracy.hoarded.get(&commit.number);
    if kept.is_some_and(|view| *view < commit.view.0) {
        tools.conspiracy.superseded.insert(commit.number);
    }
    if !hopes(commit.number, tools) || tools.rng.random_bool(0.5) {
        return None;
    }
    tools.tell("wants a view to show what it has kept");
    let audience = if tools.rng.random_bool(0.5) {
        tools.some()
    } else {
        u64::MAX
    };
    let request = signed_request(View(commit.view.0 + 1), tools);
    Some(vec![(audience, Message::Commit(*commit)), (u64::MAX, request)])
}

/// Whether what is kept may still do harm when this number is being decided.
fn hopes(number: u64, tools: &Tools<'_>) -> bool {
    let last = tools.conspiracy.superseded.last();
    last.is_some_and(|last| number < last.saturating_add(HOPE))
}

/// Leaves a view without what is still a secret, and with what is superseded.
fn leave(memory: &mut Memory, view_change: &ViewChange, tools: &mut Tools<'_>) -> Option<Addressed<Message>> {
    memory.keep(view_change);
    let kept = superseded(memory, view_change, tools);
    let mut shown: BTreeMap<u64, Arc<Certificate>> = view_change
        .prepared
        .iter()
        .filter(|certificate| !is_secret(memory, certificate, tools))
        .map(|certificate| (certificate.batch.number, Arc::clone(certificate)))
        .collect();
    if shown.len() < view_change.prepared.len() {
        tools.tell("view change without what it keeps");
    }
    if !kept.is_empty() {
        tools.tell("view change with what it has kept");
    }
    let votes = kept.iter().flat_map(|kept| votes(view_change.view, kept, tools));
    let votes: Addressed<Message> = votes.map(|vote| (u64::MAX, vote)).collect();
    shown.extend(kept.into_iter().map(|kept| (kept.batch.number, kept)));
    let prepared: Vec<_> = shown.into_values().collect();
    if prepared == view_change.prepared {
        return None;
    }
    let mut lie = ViewChange {
        prepared,
        ..view_change.clone()
    };
    lie.signature = sign(&lie.digest(), tools);
    let lie = (u64::MAX, Message::ViewChange(Arc::new(lie)));
    Some(std::iter::once(lie).chain(votes).collect())
}

fn is_secret(memory: &Memory, certificate: &Certificate, tools: &Tools<'_>) -> bool {
    let number = certificate.batch.number;
    let is_hoarded = memory.hoard.is_some_and(|hoard| hoard.has(certificate.view, number));
    is_hoarded && !tools.conspiracy.superseded.contains(&number)
}

/// The certificates that were kept, for numbers for which something else has been prepared since.
fn superseded(memory: &Memory, view_change: &ViewChange, tools: &Tools<'_>) -> Vec<Arc<Certificate>> {
    let stable = view_change.stable.as_ref().map(|stable| stable.point);
    let (value, order) = stable.map_or((0, Order(0)), |point| (point.value, point.order));
    let above = tools.conspiracy.superseded.range(value + 1..);
    let kept = above.filter_map(|number| {
        let view = *tools.conspiracy.hoarded.get(number)?;
        memory.certificate(*number, View(view))
    });
    kept.filter(|kept| kept.batch.first > order).cloned().collect()
}

/// The votes for a batch in a view that has not begun: they count when it begins with this batch.
fn votes(view: View, kept: &Certificate, tools: &Tools<'_>) -> [Message; 2] {
    let (number, digest) = (kept.batch.number, kept.batch.digest());
    [
        Message::Prepare(signed_prepare(view, number, digest, tools)),
        Message::Commit(Commit { view, number, digest }),
    ]
}
