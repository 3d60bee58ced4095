//! The messages of a view change.
//!
//! A VIEW-CHANGE is signed whole, so one that holds a certificate which does not verify is its sender's own fault and
//! is refused whole. It hides nobody else's certificates: those stand in the VIEW-CHANGEs of their holders.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::check::{NUMBER_MAX, bounded, ensure};
use crate::configuration::WATERMARK_ORDERS;
use crate::directory::Directory;
use crate::hashing::digest_of;
use crate::identifiers::{Digest, MachineId, View};
use crate::ledger::{HistoryPoint, StableCheckpoint};
use crate::pbft::wire::checkpoint::verify_stable;
use crate::pbft::wire::ordered::{Certificate, WINDOW, verify_certificate};
use crate::pbft::wire::{is_machine, machines, primary, quorum};
use crate::verified::Rejection;

/// REQ-VIEW-CHANGE: the sender wants a view at or above this one. It still takes part in its own.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct RequestViewChange {
    /// The machine that sends it.
    pub machine: MachineId,
    /// The lowest view that it wants.
    pub view: View,
    /// The sender's, over [`RequestViewChange::signed`].
    pub signature: [u8; 64],
}

impl RequestViewChange {
    /// What the sender signs.
    pub fn signed(machine: MachineId, view: View) -> Digest {
        digest_of("cloudbft pbft req-view-change v1", &(machine, view))
    }
}

/// VIEW-CHANGE: the sender takes part in no view below this one any more.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ViewChange {
    /// The machine that sends it.
    pub machine: MachineId,
    /// The view that it wants.
    pub view: View,
    /// Why: f+1 machines want this view or a higher one (ascending), or the primary of the view before it does. So
    /// whoever sees this leaves too, and no replica leaves alone.
    pub requests: Vec<RequestViewChange>,
    /// Its stable checkpoint; none: the history begins with the first batch.
    pub stable: Option<StableCheckpoint>,
    /// For each number above the checkpoint: the certificate of the highest view that it has; ascending.
    pub prepared: Vec<Arc<Certificate>>,
    /// The sender's, over [`ViewChange::digest`].
    pub signature: [u8; 64],
}

impl ViewChange {
    /// The digest that the signature covers.
    pub fn digest(&self) -> Digest {
        digest_of(
            "cloudbft pbft view-change v1",
            &(self.machine, self.view, &self.requests, &self.stable, &self.prepared),
        )
    }
}

/// NEW-VIEW: the view changes from which everybody computes how the view begins (`outcome.rs`).
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct NewView {
    /// The view.
    pub view: View,
    /// 2f+1 or more, of distinct machines, ascending. All of them count.
    pub view_changes: Vec<Arc<ViewChange>>,
    /// The new primary's, over [`NewView::digest`].
    pub signature: [u8; 64],
}

impl NewView {
    /// The digest that the signature covers.
    pub fn digest(&self) -> Digest {
        digest_of("cloudbft pbft new-view v1", &(self.view, &self.view_changes))
    }
}

pub(crate) fn verify_request_view_change(
    request: &RequestViewChange,
    directory: &Directory,
) -> Result<Digest, Rejection> {
    ensure(is_machine(request.machine, directory) && request.view.0 <= NUMBER_MAX)?;
    let signed = RequestViewChange::signed(request.machine, request.view);
    directory.verify_machine(request.machine, &signed, &request.signature)?;
    Ok(signed)
}

/// Whether so many want a view that everybody should: f+1 machines, or the primary of the view before it alone.
fn verify_justification(view: View, requests: &[RequestViewChange], directory: &Directory) -> Result<(), Rejection> {
    bounded(requests.len(), usize::from(machines(directory)))?;
    ensure(requests.is_sorted_by(|left, right| left.machine < right.machine))?;
    for request in requests {
        ensure(request.view >= view)?;
        verify_request_view_change(request, directory)?;
    }
    let before = View(view.0.checked_sub(1).ok_or(Rejection::Malformed)?);
    let resigns = requests
        .iter()
        .any(|request| request.machine == primary(before, directory));
    ensure(resigns || requests.len() > usize::from(directory.faults.0))
}

pub(crate) fn verify_view_change(view_change: &Arc<ViewChange>, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(view_change.prepared.len(), WINDOW as usize)?;
    ensure(is_machine(view_change.machine, directory) && view_change.view.0 <= NUMBER_MAX)?;
    let digest = view_change.digest();
    directory.verify_machine(view_change.machine, &digest, &view_change.signature)?;
    verify_justification(view_change.view, &view_change.requests, directory)?;
    let point = match &view_change.stable {
        Some(stable) => {
            verify_stable(stable, directory)?;
            stable.point
        }
        None => HistoryPoint::GENESIS,
    };
    let numbers = |certificate: &Arc<Certificate>| certificate.batch.number;
    ensure(
        view_change
            .prepared
            .is_sorted_by(|left, right| numbers(left) < numbers(right)),
    )?;
    for certificate in &view_change.prepared {
        let batch = &certificate.batch;
        ensure(certificate.view < view_change.view)?;
        ensure(batch.number > point.value && batch.number - point.value <= WINDOW)?;
        ensure(batch.first > point.order && batch.last().0 - point.order.0 <= WATERMARK_ORDERS)?;
        verify_certificate(certificate, directory)?;
    }
    Ok(digest)
}

pub(crate) fn verify_new_view(new_view: &NewView, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(new_view.view_changes.len(), usize::from(machines(directory)))?;
    ensure(new_view.view.0 <= NUMBER_MAX)?;
    let digest = new_view.digest();
    directory.verify_machine(primary(new_view.view, directory), &digest, &new_view.signature)?;
    ensure(new_view.view_changes.len() >= quorum(directory))?;
    ensure(
        new_view
            .view_changes
            .is_sorted_by(|left, right| left.machine < right.machine),
    )?;
    for view_change in &new_view.view_changes {
        ensure(view_change.view == new_view.view)?;
        verify_view_change(view_change, directory)?;
    }
    Ok(digest)
}
