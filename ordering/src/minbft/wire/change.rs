//! Messages of a view change (`docs/protocol.md`; `docs/decisions/0012`). The exchange is described in `change/`.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use trusted_counter::UniqueWarrant;

use crate::hashing::digest_of;
use crate::identifiers::{Digest, GroupId, MachineId, View};
use crate::ledger::{HistoryPoint, StableCheckpoint};
use crate::minbft::wire::admission::Admission;
use crate::minbft::wire::checkpoint::FollowedStatement;
use crate::minbft::wire::ordered::{Commit, Prepare};
use crate::minbft::wire::outcome::{CertifiedOutcome, LiveProof, Outcome};
use crate::minbft::wire::start::Hello;

/// REQ-VIEW-CHANGE: the sender wants to be in this view, or a higher one. Signed with the ordinary key.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct RequestViewChange {
    /// The machine that sends it.
    pub machine: MachineId,
    /// The view that is wanted.
    pub view: View,
    /// Over [`RequestViewChange::digest`].
    pub signature: [u8; 64],
}

impl RequestViewChange {
    /// The digest that the signature covers.
    pub fn digest(machine: MachineId, view: View) -> Digest {
        digest_of("cloudbft request view change v1", &(machine, view))
    }
}

/// The use of one warrant by a replica.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum RunItem {
    /// A COMMIT.
    Commit(Arc<Commit>),
    /// A VIEW-CHANGE to this view.
    Left {
        /// The view.
        view: View,
        /// [`ViewChange::content`].
        content: Digest,
        /// The warrant.
        warrant: UniqueWarrant,
    },
    /// An [`Endorsement`](crate::minbft::Endorsement).
    Endorsed {
        /// The view.
        view: View,
        /// [`Outcome::digest`](crate::minbft::Outcome::digest).
        outcome: Digest,
        /// The warrant.
        warrant: UniqueWarrant,
    },
    /// A [`ViewAcknowledgement`](crate::minbft::ViewAcknowledgement).
    Acknowledged {
        /// The view.
        view: View,
        /// [`Outcome::digest`](crate::minbft::Outcome::digest).
        outcome: Digest,
        /// The warrant.
        warrant: UniqueWarrant,
    },
}

impl RunItem {
    /// The warrant.
    pub fn warrant(&self) -> &UniqueWarrant {
        match self {
            RunItem::Commit(commit) => &commit.warrant,
            RunItem::Left { warrant, .. }
            | RunItem::Endorsed { warrant, .. }
            | RunItem::Acknowledged { warrant, .. } => warrant,
        }
    }
}

/// From where on a VIEW-CHANGE shows everything that its sender's counters have certified.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum RunStart {
    /// From the positions that the last view admitted (`ViewChange::live`).
    Live,
    /// From the positions that an earlier view admitted.
    Earlier(Arc<LiveProof>),
    /// From positions that f+1 machines have followed.
    Followed(Vec<FollowedStatement>),
}

/// VIEW-CHANGE: the sender has left every lower view, and shows all that it has done there.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ViewChange {
    /// The machine that sends it.
    pub machine: MachineId,
    /// The view that it goes to.
    pub view: View,
    /// The f+1 requests that justify it (rule JustifiedChange); none: the view is live already, and the sender joins it
    /// late.
    pub requests: Vec<RequestViewChange>,
    /// Its highest stable checkpoint.
    pub stable: Option<StableCheckpoint>,
    /// The last view that it took part in.
    pub live: Arc<LiveProof>,
    /// The last outcome that it acknowledged, if that is of a higher view.
    pub certified: Option<Arc<CertifiedOutcome>>,
    /// The PREPAREs of `live`'s view above the stable checkpoint, without hole.
    pub prepares: Vec<Arc<Prepare>>,
    /// The counter values at which `runs` begin.
    pub start: RunStart,
    /// Per group: everything that the replica's counter has certified since, without hole.
    pub runs: Vec<Vec<RunItem>>,
    /// Per group: of the replica's counter, over [`ViewChange::digest`].
    pub warrants: Vec<UniqueWarrant>,
}

impl ViewChange {
    /// A hash of everything but the view and the warrants.
    pub fn content(&self) -> Digest {
        let requests: Vec<_> = self
            .requests
            .iter()
            .map(|request| (request.machine, request.view))
            .collect();
        let point = self.point();
        let live = self.live.outcome.digest();
        let certified = self.certified.as_ref().map(|certified| certified.outcome.digest());
        let prepares: Vec<Digest> = self.prepares.iter().map(|prepare| prepare.own_digest()).collect();
        let values: Vec<Vec<u64>> = self
            .runs
            .iter()
            .map(|run| run.iter().map(|item| item.warrant().value).collect())
            .collect();
        digest_of(
            "cloudbft view change content v1",
            &(self.machine, requests, point, live, certified, prepares, values),
        )
    }

    /// The digest that the counter certifies, for each slot.
    pub fn digest(machine: MachineId, view: View, content: &Digest) -> Digest {
        digest_of("cloudbft view change v1", &(machine, view, content))
    }

    /// The end of its proven history.
    pub fn point(&self) -> HistoryPoint {
        self.stable
            .as_ref()
            .map_or(HistoryPoint::GENESIS, |stable| stable.point)
    }

    /// The highest outcome that it acknowledged.
    pub fn basis(&self) -> &Outcome {
        self.certified
            .as_ref()
            .map_or(&self.live.outcome, |certified| &certified.outcome)
    }

    /// The epoch of its counter.
    pub fn epoch(&self) -> Option<u64> {
        self.warrants.first().map(|warrant| warrant.epoch)
    }

    /// Its COMMITs of a view.
    pub fn commits(&self, view: View) -> impl Iterator<Item = (GroupId, &(u64, Digest))> {
        let items = self.runs.iter().flatten();
        let commits = items.filter_map(|item| match item {
            RunItem::Commit(commit) => Some(commit),
            _ => None,
        });
        let of_view = commits.filter(move |commit| commit.view == view);
        of_view.flat_map(|commit| commit.batches.iter().map(|batch| (commit.group, batch)))
    }
}

/// NEW-VIEW: the new primary's choice of VIEW-CHANGEs. Everybody computes the same [`Outcome`](crate::minbft::Outcome) from it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct NewView {
    /// The view.
    pub view: View,
    /// The primary's counter: its PREPAREs follow.
    pub admission: Admission,
    /// At least f+1, ascending by machine.
    pub changes: Vec<Arc<ViewChange>>,
    /// Machines whose counters have new epochs, and are to count again (rule AdmittedEpochs); ascending by machine.
    pub hellos: Vec<Arc<Hello>>,
    /// The primary's, over [`NewView::digest`].
    pub signature: [u8; 64],
}

impl NewView {
    /// The digest that the signature covers.
    pub fn digest(&self) -> Digest {
        let changes: Vec<_> = self
            .changes
            .iter()
            .map(|change| (change.machine, change.content()))
            .collect();
        let hellos: Vec<Digest> = self.hellos.iter().map(|hello| hello.digest()).collect();
        digest_of("cloudbft new view v1", &(self.view, &self.admission, changes, hellos))
    }
}
