//! Everything that machines send each other, and its verification: all that can be checked without state, by any thread.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::check::{UNSIGNED, bounded, sender_is, verify_bodies, verify_certified, verify_history};
use crate::configuration::FETCH_REQUESTS_MAX;
use crate::directory::Directory;
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::{CertifiedCheckpoint, Checkpoint, History, Said, StableCheckpoint};
use crate::message::Request;
use crate::minbft::wire::change::{NewView, RequestViewChange, ViewChange};
use crate::minbft::wire::change_verification::{verify_new_view, verify_request_view_change, verify_view_change};
use crate::minbft::wire::checkpoint::{Followed, verify_checkpoint, verify_stable};
use crate::minbft::wire::ordered::{Commit, Prepare, verify_commit, verify_prepare};
use crate::minbft::wire::outcome::{
    Acknowledgement, Endorsement, LiveProof, ViewAcknowledgement, verify_acknowledgement, verify_endorsement,
    verify_live, verify_view_acknowledgement,
};
use crate::minbft::wire::primary;
use crate::minbft::wire::start::{
    Collect, Hello, Report, Start, verify_collect, verify_hello, verify_report, verify_start,
};
use crate::verified::{Rejection, Verified};

/// Everything that machines send each other.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Message {
    /// The primary orders a batch.
    Prepare(Arc<Prepare>),
    /// A replica has batches in its durable log.
    Commit(Arc<Commit>),
    /// Tells the primary how far this machine's log is.
    Progress(Progress),
    /// What the sender has of the receiver's messages: the receiver sends again what is missing.
    Standing(Standing),
    /// How far the sender's history goes, and its hash; signed.
    Checkpoint(Arc<Checkpoint<Followed>>),
    /// f+1 equal checkpoints.
    Stable(StableCheckpoint),
    /// Asks for the bodies of these digests.
    FetchRequests(Vec<Digest>),
    /// Bodies that were asked for.
    GiveRequests(Vec<Arc<Request>>),
    /// Asks for decided operations from this order on.
    FetchHistory(Order),
    /// A piece of the decided history.
    GiveHistory(Arc<History>),
    /// The sender has cut the requested orders off its log, and gives its last stable checkpoint instead.
    GiveCheckpoint(Arc<CertifiedCheckpoint>),
    /// A machine announces itself (start).
    Hello(Arc<Hello>),
    /// The new primary asks for reports (start).
    Collect(Arc<Collect>),
    /// The contents of a replica's log (start).
    Report(Arc<Report>),
    /// The new primary's evidence for how the view begins (start).
    Start(Arc<Start>),
    /// A replica has the start in its durable log.
    Acknowledge(Acknowledgement),
    /// A view is under way: its beginning is decided.
    Live(Arc<LiveProof>),
    /// A machine wants another view.
    RequestViewChange(RequestViewChange),
    /// A machine has left the lower views.
    ViewChange(Arc<ViewChange>),
    /// The new primary's evidence for how the view begins.
    NewView(Arc<NewView>),
    /// A replica has the outcome of a view change in its durable log.
    Endorse(Arc<Endorsement>),
    /// A replica has seen that f+1 have.
    AcknowledgeView(Arc<ViewAcknowledgement>),
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

/// Progress of a machine, for the primary's flow control only: it decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Progress {
    /// The view.
    pub view: View,
    /// All batches up to this value of the primary's counter are in the sender's durable log.
    pub committed: u64,
}

/// STATUS: what the sender has got of the receiver's messages; sent when something seems to be missing.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Standing {
    /// The view.
    pub view: View,
    /// Whether the receiver should send PREPAREs too (one machine at a time is asked).
    pub prepares_wanted: bool,
    /// The last value of the primary's counter that the sender has followed without gap.
    pub prepares: u64,
    /// Per group: the last value of the receiver's counter that the sender has followed without gap.
    pub commits: Vec<u64>,
    /// Everything up to here is decided and logged at the sender.
    pub decided: Order,
    /// The sender's stable checkpoint.
    pub stable: Order,
}

/// Verifies a message that came over the link from machine `from`.
pub fn verify_message(
    from: MachineId,
    message: Message,
    directory: &Directory,
) -> Result<Verified<Message>, Rejection> {
    if !directory.machines.contains_key(&from) {
        return Err(Rejection::UnknownMachine);
    }
    let digest = match &message {
        Message::Prepare(prepare) => verify_prepare(prepare, directory)?,
        Message::Commit(commit) => verify_commit(from, commit, directory)?,
        Message::Progress(_) => UNSIGNED,
        Message::Standing(standing) => verify_standing(standing, directory)?,
        Message::Checkpoint(checkpoint) => verify_checkpoint(from, checkpoint, directory)?,
        Message::Stable(stable) => verify_stable(stable, directory)?,
        Message::FetchRequests(digests) => bounded(digests.len(), FETCH_REQUESTS_MAX)?,
        Message::GiveRequests(requests) => verify_bodies(requests, FETCH_REQUESTS_MAX, directory)?,
        Message::FetchHistory(_) => UNSIGNED,
        Message::GiveHistory(history) => verify_history(history, directory, verify_stable, true)?,
        Message::GiveCheckpoint(checkpoint) => verify_certified(checkpoint, directory, verify_stable)?,
        Message::Hello(hello) => {
            sender_is(from, hello.machine)?;
            verify_hello(hello, directory)?
        }
        Message::Collect(collect) => verify_collect(collect, directory)?,
        Message::Report(report) => {
            sender_is(from, report.machine)?;
            verify_report(report, directory)?
        }
        Message::Start(start) => verify_start(start, directory)?,
        Message::Acknowledge(acknowledgement) => {
            sender_is(from, acknowledgement.machine)?;
            verify_acknowledgement(acknowledgement, directory)?
        }
        Message::Live(proof) => verify_live(proof, directory)?,
        Message::RequestViewChange(request) => verify_request_view_change(from, request, directory)?,
        Message::ViewChange(change) => {
            sender_is(from, change.machine)?;
            verify_view_change(change, directory)?
        }
        Message::NewView(new_view) => {
            sender_is(from, primary(new_view.view, directory))?;
            verify_new_view(new_view, directory)?
        }
        Message::Endorse(endorsement) => {
            sender_is(from, endorsement.machine)?;
            verify_endorsement(endorsement, directory)?
        }
        Message::AcknowledgeView(acknowledgement) => {
            sender_is(from, acknowledgement.machine)?;
            verify_view_acknowledgement(acknowledgement, directory)?
        }
    };
    Ok(Verified::new(message, digest))
}

fn verify_standing(standing: &Standing, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(standing.commits.len(), usize::from(directory.groups))
}
