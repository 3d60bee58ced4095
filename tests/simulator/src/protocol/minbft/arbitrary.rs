//! Any message that a machine can sign, with fields drawn from small ranges so that they hit what is going on.

use std::sync::Arc;

use ed25519_dalek::Signer;
use ordering::assignment::Assignment;
use ordering::configuration::{PRIMARY_SLOT, replica_slot};
use ordering::identifiers::{Digest, GroupId, MachineId, Order, View};
use ordering::ledger::{Checkpoint, History, HistoryEntry, HistoryPoint, PrepareEntry, StableCheckpoint};
use ordering::minbft::{
    Acknowledgement, Admission, Collect, Commit, Endorsement, Followed, Hello, LiveProof, Message, NewView, Outcome,
    OutcomeEntry, Prepare, Progress, Proof, Report, RunItem, RunStart, Standing, Start, ViewAcknowledgement,
    ViewChange,
};
use rand::RngExt;

use super::changes;
use crate::adversary::Tools;

/// Orders and counter values are drawn below this.
const SMALL: u64 = 60;

/// Above this value, no broken counter is asked for a warrant.
const LARGE: u64 = 10_000;

/// Kinds that [`message`] makes.
const KINDS: u32 = 20;

/// A message whose signatures and warrants are right as far as this machine can make them.
pub(super) fn message(heard: &[Message], tools: &mut Tools<'_>) -> Message {
    match tools.rng.random_range(0..KINDS) {
        0 => Message::Prepare(Arc::new(prepare(tools))),
        1 => Message::Commit(Arc::new(commit(tools))),
        2 => Message::Progress(Progress {
            view: view(tools),
            committed: number(tools),
        }),
        3 => Message::Standing(standing(tools)),
        4 => Message::Checkpoint(Arc::new(checkpoint(tools))),
        5 => Message::FetchRequests((0..tools.rng.random_range(0..4)).map(|_| digest(tools)).collect()),
        6 => Message::GiveRequests(Vec::new()),
        7 => Message::FetchHistory(Order(number(tools))),
        8 => Message::GiveHistory(Arc::new(history(tools))),
        9 => Message::Hello(Arc::new(hello(tools))),
        10 => Message::Collect(Arc::new(collect(tools))),
        11 => Message::Report(Arc::new(report(tools))),
        12 => match tools.rng.random_bool(0.5) {
            true => Message::Start(Arc::new(start(tools))),
            false => Message::Acknowledge(acknowledgement(tools)),
        },
        13 => {
            let view = view(tools);
            changes::signed_request(view, tools)
        }
        14 => Message::Endorse(Arc::new(endorsement(heard, tools))),
        15 => Message::AcknowledgeView(Arc::new(view_acknowledgement(heard, tools))),
        16 => Message::Live(Arc::new(live(heard, tools))),
        17 => Message::NewView(Arc::new(new_view(heard, tools))),
        18 => Message::Stable(stable(heard, tools)),
        _ => Message::ViewChange(Arc::new(view_change(heard, tools))),
    }
}

/// The last message that was heard of a kind.
fn last<T>(heard: &[Message], of_kind: impl Fn(&Message) -> Option<T>) -> Option<T> {
    heard.iter().rev().find_map(of_kind)
}

/// The last outcome that was heard of, by its name, or a name of nothing.
fn outcome(heard: &[Message], tools: &mut Tools<'_>) -> (View, Digest) {
    let known = last(heard, |message| match message {
        Message::Endorse(endorsement) => Some((endorsement.view, endorsement.outcome)),
        Message::Live(proof) => Some((proof.outcome.view, proof.outcome.digest())),
        _ => None,
    });
    match known.filter(|_| tools.rng.random_bool(0.7)) {
        Some(known) => known,
        None => (view(tools), tools.noise()),
    }
}

fn endorsement(heard: &[Message], tools: &mut Tools<'_>) -> Endorsement {
    let (view, outcome) = outcome(heard, tools);
    let digest = Endorsement::digest(view, &outcome);
    Endorsement {
        machine: tools.machine,
        view,
        outcome,
        warrant: certified(replica_slot(GroupId(0)), &digest, tools),
    }
}

fn view_acknowledgement(heard: &[Message], tools: &mut Tools<'_>) -> ViewAcknowledgement {
    let (view, outcome) = outcome(heard, tools);
    let slot = replica_slot(GroupId(0));
    ViewAcknowledgement {
        machine: tools.machine,
        view,
        outcome,
        endorsed: tools.counter.create(slot, &Endorsement::digest(view, &outcome)),
        acknowledged: tools.counter.create(slot, &ViewAcknowledgement::digest(view, &outcome)),
    }
}

/// The proof of a view that was heard of, or of one that never was, which verification refuses.
fn live(heard: &[Message], tools: &mut Tools<'_>) -> LiveProof {
    let known = last(heard, |message| match message {
        Message::Live(proof) => Some(LiveProof::clone(proof)),
        Message::ViewChange(change) => Some(LiveProof::clone(&change.live)),
        _ => None,
    });
    known.unwrap_or_else(|| {
        let outcome = invented(tools);
        let decided_by = match outcome.is_change() {
            true => Proof::Change(Vec::new()),
            false => Proof::Start(Vec::new()),
        };
        LiveProof { outcome, decided_by }
    })
}

/// From some of the VIEW-CHANGEs that were heard.
fn new_view(heard: &[Message], tools: &mut Tools<'_>) -> NewView {
    let mut changes: Vec<_> = heard
        .iter()
        .filter_map(|message| match message {
            Message::ViewChange(change) => Some(Arc::clone(change)),
            _ => None,
        })
        .collect();
    changes.sort_by_key(|change| change.machine);
    changes.dedup_by_key(|change| change.machine);
    let view = changes.first().map_or_else(|| own_view(tools), |change| change.view);
    changes.retain(|change| change.view == view && tools.rng.random_bool(0.8));
    let mut new_view = NewView {
        view,
        admission: admission(tools),
        changes,
        hellos: (0..tools.rng.random_range(0..2))
            .map(|_| Arc::new(hello(tools)))
            .collect(),
        signature: [0; 64],
    };
    new_view.signature = sign(&new_view.digest(), tools);
    new_view
}

fn stable(heard: &[Message], tools: &mut Tools<'_>) -> StableCheckpoint {
    let known = last(heard, |message| match message {
        Message::Stable(stable) => Some(stable.clone()),
        _ => None,
    });
    known.unwrap_or_else(|| StableCheckpoint {
        point: point(tools),
        clients: tools.noise(),
        signatures: Vec::new(),
    })
}

/// With runs of anything, rightly certified, since a view that was heard of.
fn view_change(heard: &[Message], tools: &mut Tools<'_>) -> ViewChange {
    let live = live(heard, tools);
    let to = View(live.outcome.view.0 + tools.rng.random_range(0..4));
    let requests = last(heard, |message| match message {
        Message::ViewChange(change) if change.view >= to => Some(change.requests.clone()),
        _ => None,
    });
    let item = |group: u16, tools: &mut Tools<'_>| {
        let (view, outcome) = outcome(heard, tools);
        let slot = replica_slot(GroupId(group));
        let content = tools.noise();
        match tools.rng.random_range(0..4) {
            0 => RunItem::Commit(Arc::new(commit(tools))),
            1 => RunItem::Left {
                view,
                content,
                warrant: tools
                    .counter
                    .create(slot, &ViewChange::digest(tools.machine, view, &content)),
            },
            2 => RunItem::Endorsed {
                view,
                outcome,
                warrant: tools.counter.create(slot, &Endorsement::digest(view, &outcome)),
            },
            _ => RunItem::Acknowledged {
                view,
                outcome,
                warrant: tools.counter.create(slot, &ViewAcknowledgement::digest(view, &outcome)),
            },
        }
    };
    let runs = (0..tools.groups).map(|group| {
        let count = tools.rng.random_range(0..2);
        (0..count).map(|_| item(group, tools)).collect()
    });
    let runs = runs.collect();
    let mut change = ViewChange {
        machine: tools.machine,
        view: to,
        requests: requests.unwrap_or_default(),
        stable: None,
        live: Arc::new(live),
        certified: None,
        prepares: Vec::new(),
        start: RunStart::Live,
        runs,
        warrants: Vec::new(),
    };
    let digest = ViewChange::digest(change.machine, change.view, &change.content());
    let positions = change.live.outcome.admission(change.machine).cloned();
    for group in 0..tools.groups {
        let slot = replica_slot(GroupId(group));
        let start = positions
            .as_ref()
            .and_then(|known| known.positions.get(usize::from(group) + 1));
        let value = start.map_or(1, |start| {
            start.saturating_add(change.runs[usize::from(group)].len() as u64 + 1)
        });
        // A broken counter counts up to what it is asked for.
        let warrant = match value {
            0..=LARGE => tools.counter.create_at(slot, value, &digest),
            _ => None,
        };
        change
            .warrants
            .push(warrant.unwrap_or_else(|| tools.counter.create(slot, &digest)));
    }
    change
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
    View(tools.rng.random_range(0..u64::from(tools.machines) * 2))
}

/// A view that this machine leads.
fn own_view(tools: &mut Tools<'_>) -> View {
    View(u64::from(tools.machine.0) + u64::from(tools.machines) * tools.rng.random_range(0..2))
}

fn group(tools: &mut Tools<'_>) -> GroupId {
    GroupId(tools.rng.random_range(0..=tools.groups))
}

/// Of a request that exists, of nothing, or of nothing that exists.
fn digest(tools: &mut Tools<'_>) -> Digest {
    match (tools.request(), tools.rng.random_range(0..10)) {
        (Some(seen), 2..) => seen.digest,
        (_, 0) => [0; 32],
        _ => tools.noise(),
    }
}

/// The next value of the slot, or any other that the counter is willing to certify.
fn certified(slot: u32, digest: &Digest, tools: &mut Tools<'_>) -> trusted_counter::UniqueWarrant {
    let value = tools.rng.random_range(0..SMALL);
    match tools.counter.create_at(slot, value, digest) {
        Some(warrant) if tools.rng.random_bool(0.5) => warrant,
        _ => tools.counter.create(slot, digest),
    }
}

fn prepare(tools: &mut Tools<'_>) -> Prepare {
    let (view, first) = (own_view(tools), Order(number(tools)));
    let time_us = crate::clock::START_WALL_US + tools.rng.random_range(0..5_000_000);
    let entries: Vec<PrepareEntry> = (0..tools.rng.random_range(1..5))
        .map(|_| PrepareEntry {
            group: group(tools),
            digest: digest(tools),
        })
        .collect();
    let warrant = certified(PRIMARY_SLOT, &Prepare::digest(view, first, time_us, &entries), tools);
    Prepare {
        view,
        first,
        time_us,
        entries,
        warrant,
    }
}

fn commit(tools: &mut Tools<'_>) -> Commit {
    let (view, group) = (view(tools), group(tools));
    let mut batches: Vec<(u64, Digest)> = (0..tools.rng.random_range(1..4))
        .map(|_| (number(tools), tools.noise()))
        .collect();
    if tools.rng.random_bool(0.8) {
        batches.sort_unstable();
    }
    // What the adversary's primaries have really sent, so that some COMMITs match.
    let known = tools.conspiracy.batches.iter().next_back();
    if let Some(((_, value), sent)) = known.filter(|_| tools.rng.random_bool(0.5)) {
        batches = sent.first().map(|(_, digest)| (*value, *digest)).into_iter().collect();
    }
    let digest = Commit::digest(view, group, &batches);
    let warrant = certified(replica_slot(group), &digest, tools);
    Commit {
        view,
        group,
        batches,
        warrant,
    }
}

fn standing(tools: &mut Tools<'_>) -> Standing {
    Standing {
        view: view(tools),
        prepares_wanted: tools.rng.random_bool(0.5),
        prepares: number(tools),
        commits: (0..tools.rng.random_range(0..=tools.groups))
            .map(|_| number(tools))
            .collect(),
        decided: Order(number(tools)),
        stable: Order(number(tools)),
    }
}

fn point(tools: &mut Tools<'_>) -> HistoryPoint {
    HistoryPoint {
        order: Order(number(tools)),
        time_us: number(tools),
        history: tools.noise(),
        bytes: number(tools),
        view: view(tools),
        value: number(tools),
        assignment: Assignment::FIRST,
    }
}

fn checkpoint(tools: &mut Tools<'_>) -> Checkpoint<Followed> {
    let (point, clients) = (point(tools), tools.noise());
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
        group: group(tools),
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

fn admission(tools: &mut Tools<'_>) -> Admission {
    Admission {
        epoch: tools.rng.random_range(0..4),
        positions: (0..=tools.groups).map(|_| number(tools)).collect(),
    }
}

fn hello(tools: &mut Tools<'_>) -> Hello {
    let mut hello = Hello {
        machine: tools.machine,
        admission: admission(tools),
        view: tools.rng.random_bool(0.7).then(|| view(tools)),
        stable: None,
        signature: [0; 64],
    };
    hello.signature = sign(&hello.digest(), tools);
    hello
}

fn collect(tools: &mut Tools<'_>) -> Collect {
    let mut collect = Collect {
        view: own_view(tools),
        hellos: vec![Arc::new(hello(tools))],
        signature: [0; 64],
    };
    collect.signature = sign(&collect.digest(), tools);
    collect
}

fn report(tools: &mut Tools<'_>) -> Report {
    let mut report = Report {
        machine: tools.machine,
        collect: tools.noise(),
        live: None,
        prepares: Vec::new(),
        held: Vec::new(),
        signature: [0; 64],
    };
    report.signature = sign(&report.digest(), tools);
    report
}

fn start(tools: &mut Tools<'_>) -> Start {
    let collect = Arc::new(collect(tools));
    let mut start = Start {
        reports: (tools.machine != MachineId(0))
            .then(|| {
                let mut report = report(tools);
                report.collect = collect.digest();
                report.signature = sign(&report.digest(), tools);
                Arc::new(report)
            })
            .into_iter()
            .collect(),
        collect,
        signature: [0; 64],
    };
    start.signature = sign(&start.digest(), tools);
    start
}

fn invented(tools: &mut Tools<'_>) -> Outcome {
    Outcome {
        view: view(tools),
        base: point(tools),
        entries: vec![OutcomeEntry {
            group: group(tools),
            time_us: number(tools),
            digest: digest(tools),
        }],
        admitted: vec![(tools.machine, admission(tools))],
        changed: Vec::new(),
    }
}

fn acknowledgement(tools: &mut Tools<'_>) -> Acknowledgement {
    let outcome = invented(tools);
    let digest = outcome.digest();
    Acknowledgement {
        machine: tools.machine,
        view: outcome.view,
        outcome: digest,
        signature: sign(&Acknowledgement::digest(outcome.view, &digest), tools),
    }
}

fn sign(digest: &Digest, tools: &Tools<'_>) -> [u8; 64] {
    tools.key.sign(digest).to_bytes()
}
