//! Any message that a machine can sign, with fields drawn from small ranges so that they hit what is going on.

use std::sync::Arc;

use ed25519_dalek::Signer;
use ordering::assignment::Assignment;
use ordering::identifiers::{Digest, GroupId, Order, View};
use ordering::ledger::{Checkpoint, History, HistoryEntry, HistoryPoint, Nothing, PrepareEntry};
use ordering::pbft::{Batch, Commit, Message, NewView, Standing, ViewChange};
use rand::RngExt;

use super::abuse::{signed_prepare, signed_proposal, signed_request};
use crate::adversary::Tools;

/// Numbers are drawn below this.
const SMALL: u64 = 60;

/// A message whose signatures are right as far as this machine can make them.
pub(super) fn message(heard: &[Message], tools: &mut Tools<'_>) -> Message {
    match tools.rng.random_range(0..12) {
        0 | 1 => {
            let batch = batch(tools);
            signed_proposal(own_view(tools), batch, tools)
        }
        2 => {
            let (view, number, digest) = (view(tools), number(tools), tools.noise());
            Message::Prepare(signed_prepare(view, number, digest, tools))
        }
        3 => Message::Commit(Commit {
            view: view(tools),
            number: number(tools),
            digest: tools.noise(),
        }),
        4 => Message::Standing(Standing {
            view: view(tools),
            is_active: tools.rng.random_bool(0.5),
            is_stalled: tools.rng.random_bool(0.5),
            decided: number(tools),
            stable: Order(number(tools)),
        }),
        5 => Message::Checkpoint(checkpoint(tools)),
        6 => Message::FetchRequests(vec![tools.noise()]),
        7 => Message::FetchHistory(Order(number(tools))),
        8 => Message::GiveHistory(Arc::new(history(tools))),
        9 => {
            let view = view(tools);
            signed_request(view, tools)
        }
        10 => Message::ViewChange(Arc::new(view_change(heard, tools))),
        _ => Message::NewView(Arc::new(new_view(heard, tools))),
    }
}

/// Mostly small; sometimes as large as it gets.
fn number(tools: &mut Tools<'_>) -> u64 {
    match tools.rng.random_range(0..40) {
        0 => u64::MAX,
        1 => u64::MAX >> 1,
        2 => 0,
        _ => tools.rng.random_range(0..SMALL),
    }
}

fn view(tools: &mut Tools<'_>) -> View {
    match tools.rng.random_range(0..30) {
        0 => View(number(tools)),
        _ => View(tools.rng.random_range(0..u64::from(tools.machines) * 2)),
    }
}

fn own_view(tools: &mut Tools<'_>) -> View {
    View(u64::from(tools.machine.0) + u64::from(tools.machines) * tools.rng.random_range(0..2))
}

fn batch(tools: &mut Tools<'_>) -> Batch {
    let entry = |tools: &mut Tools<'_>| {
        let noise = tools.noise();
        PrepareEntry {
            group: GroupId(tools.rng.random_range(0..=tools.groups)),
            digest: tools.request().map_or(noise, |seen| seen.digest),
        }
    };
    Batch {
        number: number(tools),
        first: Order(number(tools)),
        time_us: crate::clock::START_WALL_US + tools.rng.random_range(0..5_000_000),
        entries: (0..tools.rng.random_range(1..4)).map(|_| entry(tools)).collect(),
    }
}

fn checkpoint(tools: &mut Tools<'_>) -> Checkpoint<Nothing> {
    let point = HistoryPoint {
        order: Order(number(tools)),
        time_us: number(tools),
        history: tools.noise(),
        bytes: number(tools),
        view: View(0),
        value: number(tools),
        assignment: Assignment::FIRST,
    };
    let clients = tools.noise();
    let mut checkpoint = Checkpoint {
        machine: tools.machine,
        point,
        clients,
        attached: None,
        signature: [0; 64],
    };
    checkpoint.signature = sign(&checkpoint.signed(), tools);
    checkpoint
}

fn history(tools: &mut Tools<'_>) -> History {
    let entry = |tools: &mut Tools<'_>| HistoryEntry {
        group: GroupId(0),
        time_us: number(tools),
        digest: [0; 32],
        request: None,
    };
    History {
        first: Order(number(tools)),
        entries: (0..tools.rng.random_range(0..6)).map(|_| entry(tools)).collect(),
        proof: None,
    }
}

/// Whatever the last one that was heard holds, or nothing.
fn view_change(heard: &[Message], tools: &mut Tools<'_>) -> ViewChange {
    let known = heard.iter().rev().find_map(|message| match message {
        Message::ViewChange(known) => Some(ViewChange::clone(known)),
        _ => None,
    });
    let own = view(tools);
    let mut view_change = known.unwrap_or_else(|| ViewChange {
        machine: tools.machine,
        view: own,
        requests: match signed_request(own, tools) {
            Message::RequestViewChange(request) => vec![request],
            _ => Vec::new(),
        },
        stable: None,
        prepared: Vec::new(),
        signature: [0; 64],
    });
    view_change.machine = tools.machine;
    match tools.rng.random_range(0..4) {
        0 => view_change.view = own,
        1 => view_change.stable = None,
        2 => drop(view_change.prepared.pop()),
        _ => {}
    }
    view_change.signature = sign(&view_change.digest(), tools);
    view_change
}

/// From some of the VIEW-CHANGEs that were heard, and one of its own.
fn new_view(heard: &[Message], tools: &mut Tools<'_>) -> NewView {
    let mut view_changes: Vec<_> = heard
        .iter()
        .filter_map(|message| match message {
            Message::ViewChange(known) => Some(Arc::clone(known)),
            _ => None,
        })
        .collect();
    view_changes.push(Arc::new(view_change(heard, tools)));
    view_changes.sort_by_key(|known| known.machine);
    view_changes.dedup_by_key(|known| known.machine);
    let view = view_changes.first().map_or_else(|| own_view(tools), |known| known.view);
    view_changes.retain(|known| known.view == view);
    let mut new_view = NewView {
        view,
        view_changes,
        signature: [0; 64],
    };
    new_view.signature = sign(&new_view.digest(), tools);
    new_view
}

fn sign(digest: &Digest, tools: &Tools<'_>) -> [u8; 64] {
    tools.key.sign(digest).to_bytes()
}
