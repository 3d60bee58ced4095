//! Altered messages with their old signatures: verification must reject each of them.

use std::sync::Arc;

use ordering::identifiers::{ClientId, GroupId, Order};
use ordering::minbft::Message;
use rand::RngExt;

use crate::adversary::Tools;

/// The message with one signed part altered; none for kinds that are not signed.
pub(super) fn forge(message: &Message, tools: &mut Tools<'_>) -> Option<Message> {
    let mut message = message.clone();
    let noise = tools.noise();
    let which = tools.rng.random_range(0..3);
    match &mut message {
        Message::Prepare(prepare) => {
            let prepare = Arc::make_mut(prepare);
            match which {
                0 => prepare.first = Order(prepare.first.0 + 1),
                1 => prepare.time_us += 1,
                _ => prepare.entries.first_mut()?.digest = noise,
            }
        }
        Message::Commit(commit) => {
            let commit = Arc::make_mut(commit);
            match which {
                0 => commit.view.0 += 1,
                1 => commit.warrant.value += 1,
                _ => commit.batches.first_mut()?.1 = noise,
            }
        }
        Message::Checkpoint(checkpoint) => {
            let checkpoint = Arc::make_mut(checkpoint);
            match which {
                0 => checkpoint.point.order = checkpoint.point.order.next(),
                1 => checkpoint.clients = noise,
                _ => checkpoint.point.history = noise,
            }
        }
        Message::Stable(stable) => match which {
            0 => stable.point.order = stable.point.order.next(),
            1 => stable.signatures.truncate(1),
            _ => stable.point.history = noise,
        },
        Message::GiveRequests(requests) => Arc::make_mut(requests.first_mut()?).number += 1,
        Message::GiveHistory(history) => {
            let request = Arc::make_mut(history).entries.first_mut()?.request.as_mut()?;
            Arc::make_mut(request).number += 1;
        }
        Message::GiveCheckpoint(checkpoint) => {
            let checkpoint = Arc::make_mut(checkpoint);
            match which {
                0 => {
                    let _ = checkpoint.clients.record(ClientId(0), u64::MAX, u64::MAX);
                }
                1 => checkpoint.stable.clients = noise,
                _ => checkpoint.stable.point.history = noise,
            }
        }
        Message::Hello(hello) => {
            let hello = Arc::make_mut(hello);
            match which {
                0 => hello.admission.epoch += 1,
                1 => *hello.admission.positions.first_mut()? += 1,
                _ => hello.view = Some(ordering::identifiers::View(hello.view.map_or(0, |view| view.0 + 1))),
            }
        }
        Message::Collect(collect) => Arc::make_mut(collect).view.0 += u64::from(tools.machines),
        Message::Report(report) => Arc::make_mut(report).held.push(([0xff; 32], GroupId(0))),
        Message::Start(start) => drop(Arc::make_mut(start).reports.pop()?),
        Message::Acknowledge(acknowledgement) => acknowledgement.outcome = noise,
        Message::Live(proof) => Arc::make_mut(proof).outcome.view.0 += u64::from(tools.machines),
        Message::RequestViewChange(request) => request.view.0 += 1,
        Message::ViewChange(change) => Arc::make_mut(change).view.0 += 1,
        Message::NewView(new_view) => Arc::make_mut(new_view).view.0 += u64::from(tools.machines),
        Message::Endorse(endorsement) => Arc::make_mut(endorsement).outcome = noise,
        Message::AcknowledgeView(acknowledgement) => Arc::make_mut(acknowledgement).outcome = noise,
        Message::Progress(_) | Message::Standing(_) | Message::FetchRequests(_) | Message::FetchHistory(_) => {
            return None;
        }
    }
    Some(message)
}
