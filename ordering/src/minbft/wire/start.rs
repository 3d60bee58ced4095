//! Messages of a start: fresh, or after all machines were down (rule AllLogsAtStart). Signed with ordinary keys; they
//! use up no warrant. The exchange is described in `start/`.

use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::check::{NUMBER_MAX, bounded, ensure};
use crate::configuration::{Faults, WATERMARK_ORDERS, is_replica};
use crate::directory::Directory;
use crate::hashing::digest_of;
use crate::identifiers::{Digest, GroupId, MachineId, View};
use crate::ledger::{HistoryPoint, StableCheckpoint};
use crate::minbft::wire::admission::{Admission, is_admission};
use crate::minbft::wire::checkpoint::verify_stable;
use crate::minbft::wire::ordered::{Prepare, verify_prepare};
use crate::minbft::wire::outcome::{LiveProof, verify_live};
use crate::minbft::wire::{machines, primary};
use crate::verified::Rejection;

/// A machine announces itself after its process has started.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Hello {
    /// The machine that sends it.
    pub machine: MachineId,
    /// Its counter.
    pub admission: Admission,
    /// The highest view that its log mentions; none: the log is empty.
    pub view: Option<View>,
    /// Its highest stable checkpoint, as proof that so much is decided.
    pub stable: Option<StableCheckpoint>,
    /// Over [`Hello::digest`].
    pub signature: [u8; 64],
}

impl Hello {
    /// The digest that the signature covers.
    pub fn digest(&self) -> Digest {
        digest_of(
            "cloudbft hello v1",
            &(self.machine, &self.admission, self.view, &self.stable),
        )
    }

    /// The end of the proven history.
    pub fn point(&self) -> HistoryPoint {
        self.stable
            .as_ref()
            .map_or(HistoryPoint::GENESIS, |stable| stable.point)
    }
}

/// How far above what a correct machine mentions the view of an attempt to start may be. A correct machine that is alone in many
/// attempts does not come so far, and liars need 2^43 attempts to use up all views.
const VIEWS_BEYOND_MAX: u64 = 1 << 20;

/// The new primary's choice of hellos: one of each machine that takes part. It fixes view, epochs and base.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Collect {
    /// The view to be started.
    pub view: View,
    /// Ascending by machine.
    pub hellos: Vec<Arc<Hello>>,
    /// The primary's, over [`Collect::digest`].
    pub signature: [u8; 64],
}

impl Collect {
    /// The digest that the signature covers.
    pub fn digest(&self) -> Digest {
        let hellos: Vec<Digest> = self.hellos.iter().map(|hello| hello.digest()).collect();
        digest_of("cloudbft collect v1", &(self.view, hellos))
    }

    /// The highest checkpoint that a replica can prove: the start continues from it. (m0 has no history: it may have a proof
    /// that nobody else has, of what nobody can give.)
    pub fn base(&self) -> HistoryPoint {
        self.hellos
            .iter()
            .filter(|hello| is_replica(hello.machine))
            .map(|hello| hello.point())
            .max_by_key(|point| point.order)
            .unwrap_or(HistoryPoint::GENESIS)
    }

    /// The highest view that an attempt with these hellos may have.
    ///
    /// Of f+1 machines that mention a view one is correct; a liar that mentions a much higher one would use up the views. What is
    /// left to it is to take no part, as if it were silent.
    pub(crate) fn view_max<'a>(hellos: impl Iterator<Item = &'a Hello>, faults: Faults) -> View {
        let mut views: Vec<u64> = hellos.filter_map(|hello| hello.view).map(|view| view.0).collect();
        views.sort_unstable_by(|left, right| right.cmp(left));
        let believed = views.get(usize::from(faults.0)).copied().unwrap_or(0);
        View(believed.saturating_add(VIEWS_BEYOND_MAX))
    }

    /// The hello of a machine.
    pub fn hello(&self, machine: MachineId) -> Option<&Arc<Hello>> {
        self.hellos.iter().find(|hello| hello.machine == machine)
    }
}

/// The contents of a replica's log above the base.
///
/// A machine that has reported for a view never takes part in a lower view again, in this life of its process.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Report {
    /// The machine that sends it.
    pub machine: MachineId,
    /// [`Collect::digest`].
    pub collect: Digest,
    /// The last view in which it was live, with the proof that this view was started.
    pub live: Option<Arc<LiveProof>>,
    /// Every PREPARE of that view above the base, by ascending value.
    pub prepares: Vec<Arc<Prepare>>,
    /// Digests of the bodies above the base that its log holds, and the groups in charge of them; ascending.
    pub held: Vec<(Digest, GroupId)>,
    /// Over [`Report::digest`].
    pub signature: [u8; 64],
}

impl Report {
    /// The digest that the signature covers.
    pub fn digest(&self) -> Digest {
        let live = self.live.as_ref().map(|live| live.outcome.digest());
        let prepares: Vec<Digest> = self.prepares.iter().map(|prepare| prepare.own_digest()).collect();
        digest_of(
            "cloudbft report v1",
            &(self.machine, self.collect, live, prepares, &self.held),
        )
    }
}

/// The evidence from which everybody computes the same [`Outcome`](crate::minbft::Outcome).
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Start {
    /// The hellos.
    pub collect: Arc<Collect>,
    /// The reports of **all** replicas in the collect; ascending by machine.
    pub reports: Vec<Arc<Report>>,
    /// The primary's, over [`Start::digest`].
    pub signature: [u8; 64],
}

impl Start {
    /// The digest that the signature covers.
    pub fn digest(&self) -> Digest {
        let reports: Vec<Digest> = self.reports.iter().map(|report| report.digest()).collect();
        digest_of("cloudbft start v1", &(self.collect.digest(), reports))
    }
}

pub(crate) fn verify_hello(hello: &Hello, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_admission(&hello.admission, directory))?;
    ensure(hello.view.is_none_or(|view| view.0 <= NUMBER_MAX))?;
    let digest = hello.digest();
    directory.verify_machine(hello.machine, &digest, &hello.signature)?;
    if let Some(stable) = &hello.stable {
        verify_stable(stable, directory)?;
    }
    Ok(digest)
}

pub(crate) fn verify_collect(collect: &Collect, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(collect.hellos.len(), usize::from(machines(directory)))?;
    ensure(collect.view.0 <= NUMBER_MAX)?;
    ensure(collect.hellos.is_sorted_by(|left, right| left.machine < right.machine))?;
    let digest = collect.digest();
    directory.verify_machine(primary(collect.view, directory), &digest, &collect.signature)?;
    for hello in &collect.hellos {
        verify_hello(hello, directory)?;
        ensure(hello.view.is_none_or(|view| view < collect.view))?;
    }
    ensure(collect.hello(primary(collect.view, directory)).is_some())?;
    let hellos = collect.hellos.iter().map(Arc::as_ref);
    ensure(collect.view <= Collect::view_max(hellos, directory.faults))?;
    Ok(digest)
}

pub(crate) fn verify_report(report: &Report, directory: &Directory) -> Result<Digest, Rejection> {
    let limit = WATERMARK_ORDERS as usize * 2;
    bounded(report.prepares.len(), limit)?;
    bounded(report.held.len(), limit)?;
    ensure(is_replica(report.machine) && report.held.is_sorted_by(|left, right| left < right))?;
    let digest = report.digest();
    directory.verify_machine(report.machine, &digest, &report.signature)?;
    match &report.live {
        None => ensure(report.prepares.is_empty())?,
        Some(proof) => {
            verify_live(proof, directory)?;
            verify_reported_prepares(report, proof, directory)?;
        }
    }
    Ok(digest)
}

/// The PREPAREs are of the view that the proof is about, and of the counter that this view admitted.
fn verify_reported_prepares(report: &Report, proof: &LiveProof, directory: &Directory) -> Result<(), Rejection> {
    let view = proof.outcome.view;
    let admission = proof
        .outcome
        .admission(primary(view, directory))
        .ok_or(Rejection::Malformed)?;
    let values = |prepare: &std::sync::Arc<Prepare>| prepare.warrant.value;
    ensure(report.prepares.is_sorted_by(|left, right| values(left) < values(right)))?;
    for prepare in &report.prepares {
        ensure(prepare.view == view && prepare.warrant.epoch == admission.epoch)?;
        verify_prepare(prepare, directory)?;
    }
    Ok(())
}

pub(crate) fn verify_start(start: &Start, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(start.reports.len(), usize::from(machines(directory)))?;
    let digest = start.digest();
    directory.verify_machine(primary(start.collect.view, directory), &digest, &start.signature)?;
    let collect = verify_collect(&start.collect, directory)?;
    let replicas = start
        .collect
        .hellos
        .iter()
        .map(|hello| hello.machine)
        .filter(|machine| is_replica(*machine));
    ensure(start.reports.iter().map(|report| report.machine).eq(replicas))?;
    for report in &start.reports {
        ensure(report.collect == collect)?;
        verify_report(report, directory)?;
    }
    Ok(digest)
}
