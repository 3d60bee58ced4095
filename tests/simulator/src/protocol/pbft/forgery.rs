//! Altered messages with their old signatures: verification must reject each of them.

use std::sync::Arc;

use ordering::identifiers::ClientId;
use ordering::pbft::Message;

use crate::adversary::Tools;

/// The message with one signed part altered; none for kinds that are not signed.
pub(super) fn forge(message: &Message, tools: &mut Tools<'_>) -> Option<Message> {
    let mut message = message.clone();
    let noise = tools.noise();
    match &mut message {
        Message::PrePrepare(proposal) => {
            let proposal = Arc::make_mut(proposal);
            Arc::make_mut(&mut proposal.batch).time_us += 1;
        }
        Message::Prepare(prepare) => prepare.digest = noise,
        Message::Checkpoint(checkpoint) => checkpoint.point.history = noise,
        Message::Stable(stable) => stable.point.history = noise,
        Message::GiveRequests(requests) | Message::Forward(requests) => {
            Arc::make_mut(requests.first_mut()?).number += 1
        }
        Message::GiveHistory(history) => {
            let request = Arc::make_mut(history).entries.first_mut()?.request.as_mut()?;
            Arc::make_mut(request).number += 1;
        }
        Message::GiveCheckpoint(checkpoint) => {
            let _ = Arc::make_mut(checkpoint)
                .clients
                .record(ClientId(0), u64::MAX, u64::MAX);
        }
        Message::RequestViewChange(request) => request.view.0 += 1,
        Message::ViewChange(view_change) => drop(Arc::make_mut(view_change).prepared.pop()?),
        Message::NewView(new_view) => drop(Arc::make_mut(new_view).view_changes.pop()?),
        Message::Commit(_) | Message::Standing(_) | Message::FetchRequests(_) | Message::FetchHistory(_) => {
            return None;
        }
    }
    Some(message)
}
