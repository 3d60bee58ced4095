//! Everything that machines send each other, and its verification: all that can be checked without state, by any thread.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::check::{UNSIGNED, bounded, sender_is, verify_bodies, verify_certified, verify_history};
use crate::configuration::FETCH_REQUESTS_MAX;
use crate::directory::Directory;
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::{CertifiedCheckpoint, Checkpoint, History, Nothing, Said, StableCheckpoint};
use crate::message::Request;
use crate::pbft::wire::change::{
    NewView, RequestViewChange, ViewChange, verify_new_view, verify_request_view_change, verify_view_change,
};
use crate::pbft::wire::checkpoint::{verify_checkpoint, verify_stable};
use crate::pbft::wire::ordered::{Commit, PrePrepare, Prepare, verify_pre_prepare, verify_prepare};
use crate::verified::{Rejection, Verified};

/// Most requests that are forwarded at once.
pub const FORWARD_MAX: usize = 64;

/// Everything that machines send each other.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Message {
    /// The primary proposes a batch.
    PrePrepare(Arc<PrePrepare>),
    /// A replica has accepted a batch; its log has it.
    Prepare(Prepare),
    /// A replica has a prepared certificate for a batch in its log.
    Commit(Commit),
    /// What the sender has: the receiver sends again what is missing.
    Standing(Standing),
    /// How far the sender's history goes, and its hash; signed.
    Checkpoint(Checkpoint<Nothing>),
    /// 2f+1 equal checkpoints.
    Stable(StableCheckpoint),
    /// Asks for the bodies of these digests.
    FetchRequests(Vec<Digest>),
    /// Bodies that were asked for.
    GiveRequests(Vec<Arc<Request>>),
    /// Requests that the primary seems not to have got from the clients.
    Forward(Vec<Arc<Request>>),
    /// Asks for decided operations from this order on.
    FetchHistory(Order),
    /// A piece of the decided history.
    GiveHistory(Arc<History>),
    /// The sender has cut the requested orders off its log, and gives its last stable checkpoint instead.
    GiveCheckpoint(Arc<CertifiedCheckpoint>),
    /// A replica wants another primary.
    RequestViewChange(RequestViewChange),
    /// A replica leaves its view.
    ViewChange(Arc<ViewChange>),
    /// The new primary's evidence for how the view begins.
    NewView(Arc<NewView>),
}

impl From<Said> for Message {
    fn from(said: Said) -> Self {
        match said {
            Said::FetchRequests(digests) => Message::FetchRequests(digests),
            Said::GiveRequests(requests) => Message::GiveRequests(requests),
            Said::FetchHistory(order) => Message::FetchHistory(order),
            Said::GiveHistory(history) => Message::GiveHistory(history),
            Said::GiveCheckpoint(checkpoint) => Message::GiveCheckpoint(checkpoint),
        }
    }
}

/// STATUS: how far the sender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Standing {
    /// The view that it is in, or wants.
    pub view: View,
    /// Whether it takes part in that view.
    pub is_active: bool,
    /// Whether it lacks something: the receiver sends again what it has of its own above `decided`.
    pub is_stalled: bool,
    /// The last number that it has decided without gap.
    pub decided: u64,
    /// The order of its stable checkpoint.
    pub stable: Order,
}

/// Verifies a message that came over the link from machine `from`.
///
/// The digest of a `Verified` PRE-PREPARE is its batch's.
pub fn verify_message(
    from: MachineId,
    message: Message,
    directory: &Directory,
) -> Result<Verified<Message>, Rejection> {
    if !directory.machines.contains_key(&from) {
        return Err(Rejection::UnknownMachine);
    }
    let digest = match &message {
        Message::PrePrepare(pre_prepare) => verify_pre_prepare(pre_prepare, directory)?,
        Message::Prepare(prepare) => verify_prepare(from, prepare, directory)?,
        Message::Commit(_) | Message::Standing(_) | Message::FetchHistory(_) => UNSIGNED,
        Message::Checkpoint(checkpoint) => {
            sender_is(from, checkpoint.machine)?;
            verify_checkpoint(checkpoint, directory)?
        }
        Message::Stable(stable) => verify_stable(stable, directory)?,
        Message::FetchRequests(digests) => bounded(digests.len(), FETCH_REQUESTS_MAX)?,
        Message::GiveRequests(requests) => verify_bodies(requests, FETCH_REQUESTS_MAX, directory)?,
        Message::Forward(requests) => verify_bodies(requests, FORWARD_MAX, directory)?,
        Message::GiveHistory(history) => verify_history(history, directory, verify_stable, false)?,
        Message::GiveCheckpoint(checkpoint) => verify_certified(checkpoint, directory, verify_stable)?,
        Message::RequestViewChange(request) => {
            sender_is(from, request.machine)?;
            verify_request_view_change(request, directory)?
        }
        Message::ViewChange(view_change) => {
            sender_is(from, view_change.machine)?;
            verify_view_change(view_change, directory)?
        }
        Message::NewView(new_view) => verify_new_view(new_view, directory)?,
    };
    Ok(Verified::new(message, digest))
}
