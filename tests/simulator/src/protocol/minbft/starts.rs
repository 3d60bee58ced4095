//! What an adversary says when the cluster starts, and of its counter.

use std::sync::Arc;

use ed25519_dalek::Signer;
use ordering::identifiers::{Digest, GroupId, View};
use ordering::ledger::PrepareEntry;
use ordering::minbft::{Acknowledgement, Admission, Collect, Hello, Message, Report, Standing, Start};
use rand::RngExt;

use super::MinBft;
use super::late::{real_live, real_prepare};
use crate::adversary::{Behaviour, Script, Tools};
use crate::protocol::Tampered;

/// What is sent instead of a message of a start.
pub(super) fn tamper(script: &mut Script<MinBft>, message: &Message, tools: &mut Tools<'_>) -> Tampered<Message> {
    let lies = script.does(Behaviour::LyingStarts, tools.rng);
    let audience = tools.some();
    let for_some = |lie: Message| Tampered::Instead(vec![(audience, lie), (!audience, message.clone())]);
    match message {
        Message::Hello(hello) if script.does(Behaviour::LyingAdmissions, tools.rng) => {
            for_some(lying_admission(hello, tools))
        }
        Message::Hello(hello) if lies => for_some(lying_hello(hello, tools)),
        Message::Report(report) => {
            let real = real_report(report, script, tools);
            let sent = if lies { lying_report(real, script, tools) } else { real };
            Tampered::Instead(vec![(u64::MAX, signed_report(sent, tools))])
        }
        Message::Collect(collect) if lies => for_some(lying_collect(collect, tools)),
        Message::Start(start) if lies => {
            let mut start = Start::clone(start);
            start.reports.pop();
            tools.tell("start without a report");
            Tampered::Instead(vec![
                (audience, signed_start(start, tools)),
                (!audience, message.clone()),
            ])
        }
        Message::Acknowledge(acknowledgement) if lies => for_some(lying_acknowledgement(acknowledgement, tools)),
        Message::Live(proof) => {
            let real = real_live(proof, &script.memory);
            match script.memory.lives.first_key_value() {
                Some((view, old)) if lies && *view < real.outcome.view => {
                    tools.tell("tells an old view");
                    Tampered::Instead(vec![(u64::MAX, Message::Live(Arc::clone(old)))])
                }
                _ => Tampered::Instead(vec![(u64::MAX, Message::Live(real))]),
            }
        }
        _ => Tampered::Untouched,
    }
}

fn signed_hello(mut hello: Hello, tools: &Tools<'_>) -> Message {
    hello.signature = tools.key.sign(&hello.digest()).to_bytes();
    Message::Hello(Arc::new(hello))
}

/// As if it had been restarted: the others may change the view to admit a counter that does not exist.
pub(super) fn needless_hello(standing: &Standing, tools: &mut Tools<'_>) -> Message {
    tools.tell("returns without need");
    let hello = Hello {
        machine: tools.machine,
        admission: Admission {
            epoch: tools.counter.epoch() + tools.rng.random_range(1..3),
            positions: vec![0; usize::from(tools.groups) + 1],
        },
        view: Some(standing.view),
        stable: None,
        signature: [0; 64],
    };
    signed_hello(hello, tools)
}

fn lying_admission(hello: &Arc<Hello>, tools: &mut Tools<'_>) -> Message {
    let mut hello = Hello::clone(hello);
    let positions = hello.admission.positions.iter_mut();
    match tools.rng.random_range(0..4) {
        0 => {
            tools.tell("hello of an epoch to come");
            hello.admission.epoch += 1;
        }
        1 => {
            tools.tell("hello of an earlier epoch");
            hello.admission.epoch = hello.admission.epoch.saturating_sub(1);
        }
        2 => {
            tools.tell("hello with lower values");
            positions.for_each(|position| *position = position.saturating_sub(1));
        }
        _ => {
            tools.tell("hello with higher values");
            positions.for_each(|position| *position += 3);
        }
    }
    signed_hello(hello, tools)
}

fn lying_hello(hello: &Arc<Hello>, tools: &mut Tools<'_>) -> Message {
    let mut hello = Hello::clone(hello);
    match tools.rng.random_range(0..3) {
        0 => {
            tools.tell("hello without checkpoint");
            hello.stable = None;
        }
        1 => {
            tools.tell("hello without a view");
            hello.view = None;
        }
        _ => {
            tools.tell("hello of a view that never was");
            hello.view = Some(View((u64::MAX >> 1) - tools.rng.random_range(0..16)));
        }
    }
    signed_hello(hello, tools)
}

fn real_report(report: &Report, script: &Script<MinBft>, tools: &Tools<'_>) -> Report {
    let mut report = report.clone();
    if report.machine == tools.machine {
        report.live = report.live.as_ref().map(|proof| real_live(proof, &script.memory));
        for prepare in &mut report.prepares {
            *prepare = real_prepare(prepare, &script.memory);
        }
    }
    report
}

fn signed_report(mut report: Report, tools: &Tools<'_>) -> Message {
    report.signature = tools.key.sign(&report.digest()).to_bytes();
    Message::Report(Arc::new(report))
}

fn lying_report(mut report: Report, script: &Script<MinBft>, tools: &mut Tools<'_>) -> Report {
    match tools.rng.random_range(0..6) {
        0 => {
            tools.tell("report without batches");
            report.prepares.clear();
        }
        1 => {
            tools.tell("report without bodies");
            report.held.clear();
        }
        2 => {
            tools.tell("report without a view");
            report.live = None;
            report.prepares.clear();
        }
        3 => {
            tools.tell("report of half the batches");
            report.prepares.truncate(report.prepares.len() / 2);
        }
        4 => {
            tools.tell("report of bodies that it has not");
            let entries = report.prepares.iter().flat_map(|prepare| &prepare.entries);
            report.held.extend(entries.map(held_of));
            report.held.sort_unstable();
            report.held.dedup();
        }
        _ => {
            tools.tell("report of an older view");
            report.live = script
                .memory
                .lives
                .first_key_value()
                .map(|(_, proof)| Arc::clone(proof));
            let view = report.live.as_ref().map(|proof| proof.outcome.view);
            report.prepares.retain(|prepare| Some(prepare.view) == view);
        }
    }
    report
}

/// How a report says that it holds the body of an entry.
fn held_of(entry: &PrepareEntry) -> (Digest, GroupId) {
    (entry.digest, entry.group)
}

/// The leader of a start leaves out a hello, or shows an old one of its own.
fn lying_collect(collect: &Arc<Collect>, tools: &mut Tools<'_>) -> Message {
    let mut collect = Collect::clone(collect);
    if tools.rng.random_bool(0.5) && collect.hellos.len() > 1 {
        tools.tell("collect without a hello");
        let victim = tools.rng.random_range(0..collect.hellos.len());
        collect.hellos.remove(victim);
    } else if let Some(own) = collect.hellos.iter_mut().find(|hello| hello.machine == tools.machine) {
        tools.tell("collect with another hello of its own");
        let mut changed = Hello::clone(own);
        changed.stable = None;
        let positions = changed.admission.positions.iter_mut();
        positions.for_each(|position| *position += 1);
        changed.signature = tools.key.sign(&changed.digest()).to_bytes();
        *own = Arc::new(changed);
    }
    collect.signature = tools.key.sign(&collect.digest()).to_bytes();
    Message::Collect(Arc::new(collect))
}

fn signed_start(mut start: Start, tools: &Tools<'_>) -> Message {
    start.signature = tools.key.sign(&start.digest()).to_bytes();
    Message::Start(Arc::new(start))
}

fn lying_acknowledgement(acknowledgement: &Acknowledgement, tools: &mut Tools<'_>) -> Message {
    tools.tell("acknowledges another start");
    let mut acknowledgement = acknowledgement.clone();
    acknowledgement.outcome = tools.noise();
    let digest = Acknowledgement::digest(acknowledgement.view, &acknowledgement.outcome);
    acknowledgement.signature = tools.key.sign(&digest).to_bytes();
    Message::Acknowledge(acknowledgement)
}
