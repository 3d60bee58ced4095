//! Messages of a view change (`docs/protocol.md`; `docs/decisions/0012`). The exchange is described in
//! `view_change.rs`.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use trusted_counter::UniqueWarrant;

use crate::hashing::digest_of;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::ledger::{Attachment, Checkpoint, HistoryPoint, StableCheckpoint};
use crate::minbft::messages::{Commit, Prepare};
use crate::minbft::start_messages::{Admission, Hello, LiveProof, Outcome};

/// REQ-VIEW-CHANGE: the sender wants to be in this view, or a higher one. Signed with the ordinary key.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct RequestViewChange {
    /// Who.
    pub machine: MachineId,
    /// The view that is wanted.
    pub view: View,
    /// Over [`RequestViewChange::digest`].
    pub signature: [u8; 64],
}

impl RequestViewChange {
    /// What the signature covers.
    pub fn digest(machine: MachineId, view: View) -> Digest {
        digest_of("cloudbft request view change v1", &(machine, view))
    }
}

/// How far a machine has followed the counters of the others, without hole (rule NoHoles).
///
/// In `view`, everything that these counters certified up to these positions was seen, and the batches that the
/// COMMITs among it cover end at or below `order`. f+1 of them let a run of COMMITs begin behind these positions.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Followed {
    /// Who says so.
    pub machine: MachineId,
    /// The view in which it followed them.
    pub view: View,
    /// Every batch that was committed up to these positions ends at or below this order.
    pub order: Order,
    /// Ascending by machine; position 0 (the primary's slot) means nothing.
    pub positions: Vec<(MachineId, Admission)>,
}

impl Attachment for Followed {
    fn digest(&self) -> Digest {
        digest_of("cloudbft followed v2", self)
    }
}

impl Followed {
    /// The positions of one machine.
    pub fn of(&self, machine: MachineId) -> Option<&Admission> {
        let known = self.positions.iter().find(|(known, _)| *known == machine);
        known.map(|(_, admission)| admission)
    }
}

/// A [`Followed`] without the checkpoint that it was part of, and what proves it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct FollowedStatement {
    /// What is said.
    pub followed: Followed,
    /// [`HistoryPoint::digest`] of the checkpoint.
    pub point: Digest,
    /// The checkpoint's.
    pub signature: [u8; 64],
}

impl Checkpoint<Followed> {
    /// What it says of counters, with what proves it.
    pub fn followed_statement(&self) -> Option<FollowedStatement> {
        Some(FollowedStatement {
            followed: self.attached.clone()?,
            point: self.point.digest(&self.clients),
            signature: self.signature,
        })
    }
}

/// What a replica has used one warrant for.
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
    /// An [`Endorsement`].
    Endorsed {
        /// The view.
        view: View,
        /// [`Outcome::digest`].
        outcome: Digest,
        /// The warrant.
        warrant: UniqueWarrant,
    },
    /// A [`ViewAcknowledgement`].
    Acknowledged {
        /// The view.
        view: View,
        /// [`Outcome::digest`].
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
    /// Who.
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
    /// Where `runs` begin.
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

    /// What the counter certifies, for each slot.
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

/// NEW-VIEW: the new primary's choice of VIEW-CHANGEs. Everybody computes the same [`Outcome`] from it.
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
    /// What the signature covers.
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

/// A replica has computed this outcome, and has it with all bodies in its durable log.
///
/// Uses the warrant right after the replica's VIEW-CHANGE, so it can endorse one outcome of a view only.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Endorsement {
    /// Who.
    pub machine: MachineId,
    /// The view.
    pub view: View,
    /// [`Outcome::digest`].
    pub outcome: Digest,
    /// Of the replica of the first group.
    pub warrant: UniqueWarrant,
}

impl Endorsement {
    /// What the counter certifies.
    pub fn digest(view: View, outcome: &Digest) -> Digest {
        digest_of("cloudbft endorse v1", &(view, outcome))
    }
}

/// An outcome that f+1 have endorsed: one of them is correct, so it follows from the VIEW-CHANGEs.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CertifiedOutcome {
    /// The outcome.
    pub outcome: Outcome,
    /// Ascending by machine.
    pub endorsements: Vec<(MachineId, UniqueWarrant)>,
}

/// COMMIT of a NEW-VIEW (rule CommittedView): the replica has seen f+1 endorsements.
///
/// Uses the warrant right after its endorsement: so it has not left the view between the two.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ViewAcknowledgement {
    /// Who.
    pub machine: MachineId,
    /// The view.
    pub view: View,
    /// [`Outcome::digest`].
    pub outcome: Digest,
    /// Its endorsement's.
    pub endorsed: UniqueWarrant,
    /// Of the replica of the first group.
    pub acknowledged: UniqueWarrant,
}

impl ViewAcknowledgement {
    /// What the counter certifies.
    pub fn digest(view: View, outcome: &Digest) -> Digest {
        digest_of("cloudbft acknowledge view v1", &(view, outcome))
    }
}
