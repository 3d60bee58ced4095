//! How a view begins, and the words that decide that.

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};
use trusted_counter::UniqueWarrant;

use crate::assignment::Assignment;
use crate::check::{NUMBER_MAX, bounded, ensure};
use crate::configuration::{is_replica, replica_slot};
use crate::directory::Directory;
use crate::hashing::digest_of;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::ledger::HistoryPoint;
use crate::minbft::wire::admission::{Admission, is_admission};
use crate::minbft::wire::machines;
use crate::verified::Rejection;

/// One operation that a start takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OutcomeEntry {
    /// The group, or what the request changes ([`GroupId::change`]).
    pub group: GroupId,
    /// The time that the former primary stamped.
    pub time_us: u64,
    /// The request's digest; all zero when no machine has the body: then it was not decided, and nothing runs.
    pub digest: Digest,
}

/// How a view begins.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Outcome {
    /// The view.
    pub view: View,
    /// Everything up to here was decided before.
    pub base: HistoryPoint,
    /// What follows at `base.order + 1`, ...: decided by the start itself.
    pub entries: Vec<OutcomeEntry>,
    /// The counters that count in this view, from these positions on; ascending by machine.
    pub admitted: Vec<(MachineId, Admission)>,
    /// Whose VIEW-CHANGEs this follows from, ascending; empty: a start. Their positions are those of the
    /// VIEW-CHANGEs, and the two warrants that follow endorse and acknowledge this outcome.
    pub changed: Vec<MachineId>,
}

impl Outcome {
    /// Names the outcome.
    pub fn digest(&self) -> Digest {
        digest_of("cloudbft outcome v1", self)
    }

    /// Whether the view was not started, but changed to.
    pub fn is_change(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The order after the last one that it takes over.
    pub fn end(&self) -> Order {
        Order(
            self.base
                .order
                .0
                .saturating_add(self.entries.len() as u64)
                .saturating_add(1),
        )
    }

    /// The time of the last operation that it takes over.
    pub fn time_us(&self) -> u64 {
        self.entries.last().map_or(self.base.time_us, |entry| entry.time_us)
    }

    /// The entries that the view takes over, each with its order and the assignment in force there.
    pub(crate) fn assigned(&self) -> impl Iterator<Item = (Order, Assignment, &OutcomeEntry)> {
        let mut assignment = self.base.assignment;
        let numbered = (self.base.order.0 + 1..).map(Order).zip(&self.entries);
        numbered.map(move |(order, entry)| {
            let before = assignment;
            assignment = before.after_entry(order, entry.group, &entry.digest);
            (order, before, entry)
        })
    }

    /// Which groups are in charge of what follows.
    pub fn assignment(&self) -> Assignment {
        let last = self.assigned().last();
        last.map_or(self.base.assignment, |(order, before, entry)| {
            before.after_entry(order, entry.group, &entry.digest)
        })
    }

    /// The last value of a machine's counter before the view, for a slot.
    pub fn position(&self, machine: MachineId, slot: u32) -> Option<u64> {
        let slot = usize::try_from(slot).ok()?;
        self.admission(machine)?.positions.get(slot).copied()
    }

    /// The counter of a machine.
    pub fn admission(&self, machine: MachineId) -> Option<&Admission> {
        self.admitted
            .iter()
            .find(|(admitted, _)| *admitted == machine)
            .map(|(_, admission)| admission)
    }
}

/// A replica's word that the start is in its durable log, with all bodies, and that it takes part in no lower view.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Acknowledgement {
    /// The machine that sends it.
    pub machine: MachineId,
    /// The view.
    pub view: View,
    /// [`Outcome::digest`].
    pub outcome: Digest,
    /// Over [`Acknowledgement::digest`].
    pub signature: [u8; 64],
}

impl Acknowledgement {
    /// The digest that the signature covers.
    pub fn digest(view: View, outcome: &Digest) -> Digest {
        digest_of("cloudbft acknowledge v1", &(view, outcome))
    }
}

/// A replica has computed this outcome, and has it with all bodies in its durable log.
///
/// Uses the warrant right after the replica's VIEW-CHANGE, so it can endorse one outcome of a view only.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Endorsement {
    /// The machine that sends it.
    pub machine: MachineId,
    /// The view.
    pub view: View,
    /// [`Outcome::digest`].
    pub outcome: Digest,
    /// Of the replica of the first group.
    pub warrant: UniqueWarrant,
}

impl Endorsement {
    /// The digest that the counter certifies.
    pub fn digest(view: View, outcome: &Digest) -> Digest {
        digest_of("cloudbft endorse v1", &(view, outcome))
    }
}

/// COMMIT of a NEW-VIEW (rule CommittedView): the replica has seen f+1 endorsements.
///
/// Uses the warrant right after its endorsement: so it has not left the view between the two.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ViewAcknowledgement {
    /// The machine that sends it.
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
    /// The digest that the counter certifies.
    pub fn digest(view: View, outcome: &Digest) -> Digest {
        digest_of("cloudbft acknowledge view v1", &(view, outcome))
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

/// An outcome that is decided: the view is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveProof {
    /// How the view began.
    pub outcome: Outcome,
    /// The evidence by which it was decided.
    pub decided_by: Proof,
}

/// The evidence by which the beginning of a view was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Of a start: every admitted replica's signature over [`Acknowledgement::digest`]; ascending by machine. So every
    /// correct one has it in its log.
    Start(Vec<(MachineId, [u8; 64])>),
    /// Of a view change: f+1 acknowledgements; ascending by machine.
    Change(Vec<ViewAcknowledgement>),
}

impl Proof {
    /// The acknowledgements of a view change; none of a start.
    pub fn acknowledgements(&self) -> &[ViewAcknowledgement] {
        match self {
            Proof::Start(_) => &[],
            Proof::Change(acknowledgements) => acknowledgements,
        }
    }
}

/// Encoded as the outcome, the signatures and the acknowledgements, of which one list is empty: the outcome says which.
impl BorshSerialize for LiveProof {
    fn serialize<W: io::Write>(&self, writer: &mut W) -> io::Result<()> {
        self.outcome.serialize(writer)?;
        match &self.decided_by {
            Proof::Start(signatures) => (signatures, 0_u32).serialize(writer),
            Proof::Change(acknowledgements) => (0_u32, acknowledgements).serialize(writer),
        }
    }
}

impl BorshDeserialize for LiveProof {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        type Lists = (Vec<(MachineId, [u8; 64])>, Vec<ViewAcknowledgement>);
        let outcome = Outcome::deserialize_reader(reader)?;
        let (signatures, acknowledgements) = Lists::deserialize_reader(reader)?;
        let decided_by = match outcome.is_change() {
            true if signatures.is_empty() => Proof::Change(acknowledgements),
            false if acknowledgements.is_empty() => Proof::Start(signatures),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(LiveProof { outcome, decided_by })
    }
}

/// Whether a warrant is the one right after the machine's VIEW-CHANGE.
pub(crate) fn endorses(outcome: &Outcome, machine: MachineId, warrant: &trusted_counter::UniqueWarrant) -> bool {
    let admission = outcome
        .admission(machine)
        .filter(|_| outcome.changed.contains(&machine));
    admission.is_some_and(|admission| {
        let position = admission.positions.get(1).copied().unwrap_or(u64::MAX);
        admission.epoch == warrant.epoch && warrant.value == position.saturating_add(1)
    })
}

pub(crate) fn verify_acknowledgement(
    acknowledgement: &Acknowledgement,
    directory: &Directory,
) -> Result<Digest, Rejection> {
    ensure(is_replica(acknowledgement.machine))?;
    let digest = Acknowledgement::digest(acknowledgement.view, &acknowledgement.outcome);
    directory.verify_machine(acknowledgement.machine, &digest, &acknowledgement.signature)?;
    Ok(digest)
}

pub(crate) fn verify_endorsement(endorsement: &Endorsement, directory: &Directory) -> Result<Digest, Rejection> {
    ensure(is_replica(endorsement.machine) && endorsement.view.0 <= NUMBER_MAX)?;
    let digest = Endorsement::digest(endorsement.view, &endorsement.outcome);
    let slot = replica_slot(GroupId(0));
    directory.verify_warrant(endorsement.machine, slot, &endorsement.warrant, &digest)?;
    Ok(digest)
}

pub(crate) fn verify_view_acknowledgement(
    acknowledgement: &ViewAcknowledgement,
    directory: &Directory,
) -> Result<Digest, Rejection> {
    let ViewAcknowledgement {
        machine,
        view,
        outcome,
        endorsed,
        acknowledged,
    } = acknowledgement;
    ensure(is_replica(*machine) && view.0 <= NUMBER_MAX)?;
    ensure(acknowledged.epoch == endorsed.epoch && acknowledged.value == endorsed.value.saturating_add(1))?;
    let slot = replica_slot(GroupId(0));
    directory.verify_warrant(*machine, slot, endorsed, &Endorsement::digest(*view, outcome))?;
    let digest = ViewAcknowledgement::digest(*view, outcome);
    directory.verify_warrant(*machine, slot, acknowledged, &digest)?;
    Ok(digest)
}

/// Sizes and order of an outcome.
pub(crate) fn verify_outcome(outcome: &Outcome, directory: &Directory) -> Result<(), Rejection> {
    bounded(outcome.admitted.len(), usize::from(machines(directory)))?;
    bounded(outcome.changed.len(), usize::from(machines(directory)))?;
    ensure(outcome.view.0 <= NUMBER_MAX && outcome.base.order.0 <= NUMBER_MAX)?;
    ensure(outcome.admitted.is_sorted_by(|left, right| left.0 < right.0))?;
    ensure(outcome.changed.is_sorted())?;
    ensure(
        outcome
            .admitted
            .iter()
            .all(|(_, admission)| is_admission(admission, directory)),
    )
}

/// f+1 of those whose VIEW-CHANGEs it follows from have endorsed it, each right after its VIEW-CHANGE.
pub(crate) fn verify_certified(certified: &CertifiedOutcome, directory: &Directory) -> Result<(), Rejection> {
    let outcome = &certified.outcome;
    verify_outcome(outcome, directory)?;
    let endorsements = &certified.endorsements;
    bounded(endorsements.len(), usize::from(machines(directory)))?;
    ensure(endorsements.is_sorted_by(|left, right| left.0 < right.0))?;
    ensure(endorsements.len() > usize::from(directory.faults.0))?;
    let digest = outcome.digest();
    for (machine, warrant) in endorsements {
        let endorsement = Endorsement {
            machine: *machine,
            view: outcome.view,
            outcome: digest,
            warrant: *warrant,
        };
        verify_endorsement(&endorsement, directory)?;
        ensure(endorses(outcome, *machine, warrant))?;
    }
    Ok(())
}

/// Of a start: every admitted replica has signed, and they are f+1 at least: so a correct one has checked the
/// outcome, and that everybody who had to take part does.
pub(crate) fn verify_live(proof: &LiveProof, directory: &Directory) -> Result<Digest, Rejection> {
    let outcome = &proof.outcome;
    verify_outcome(outcome, directory)?;
    let Proof::Start(signatures) = &proof.decided_by else {
        return verify_changed(proof, directory);
    };
    let replicas = outcome
        .admitted
        .iter()
        .map(|(machine, _)| *machine)
        .filter(|machine| is_replica(*machine));
    ensure(signatures.iter().map(|(machine, _)| *machine).eq(replicas))?;
    ensure(signatures.len() > usize::from(directory.faults.0))?;
    let digest = outcome.digest();
    let signed = Acknowledgement::digest(outcome.view, &digest);
    for (machine, signature) in signatures {
        directory.verify_machine(*machine, &signed, signature)?;
    }
    Ok(digest)
}

/// f+1 of those whose VIEW-CHANGEs the outcome follows from have acknowledged it (rule CommittedView).
pub(crate) fn verify_changed(proof: &LiveProof, directory: &Directory) -> Result<Digest, Rejection> {
    let acknowledgements = proof.decided_by.acknowledgements();
    bounded(acknowledgements.len(), usize::from(machines(directory)))?;
    ensure(acknowledgements.len() > usize::from(directory.faults.0))?;
    ensure(acknowledgements.is_sorted_by(|left, right| left.machine < right.machine))?;
    let digest = proof.outcome.digest();
    for acknowledgement in acknowledgements {
        ensure(acknowledgement.view == proof.outcome.view && acknowledgement.outcome == digest)?;
        ensure(endorses(
            &proof.outcome,
            acknowledgement.machine,
            &acknowledgement.endorsed,
        ))?;
        verify_view_acknowledgement(acknowledgement, directory)?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(changed: Vec<MachineId>) -> Outcome {
        Outcome {
            view: View(7),
            base: HistoryPoint::GENESIS,
            entries: Vec::new(),
            admitted: Vec::new(),
            changed,
        }
    }

    /// As it stands in logs: the outcome, the signatures of a start, the acknowledgements of a view change.
    fn encoded(outcome: &Outcome, signatures: &[(MachineId, [u8; 64])], acknowledgements: &[u8]) -> Vec<u8> {
        let mut bytes = borsh::to_vec(&(outcome, signatures)).unwrap();
        bytes.extend_from_slice(acknowledgements);
        bytes
    }

    #[test]
    fn a_proof_is_encoded_as_two_lists_of_which_the_outcome_says_which_is_empty() {
        let signatures = vec![(MachineId(1), [3; 64])];
        let started = LiveProof {
            outcome: outcome(Vec::new()),
            decided_by: Proof::Start(signatures.clone()),
        };
        let changed = LiveProof {
            outcome: outcome(vec![MachineId(2)]),
            decided_by: Proof::Change(Vec::new()),
        };
        let nothing = [0; 4];
        let bytes = encoded(&started.outcome, &signatures, &nothing);
        assert_eq!(borsh::to_vec(&started).unwrap(), bytes);
        assert_eq!(borsh::from_slice::<LiveProof>(&bytes).unwrap(), started);
        let bytes = encoded(&changed.outcome, &[], &nothing);
        assert_eq!(borsh::to_vec(&changed).unwrap(), bytes);
        assert_eq!(borsh::from_slice::<LiveProof>(&bytes).unwrap(), changed);
        let both = encoded(&changed.outcome, &signatures, &nothing);
        assert!(
            borsh::from_slice::<LiveProof>(&both).is_err(),
            "a change with signatures"
        );
    }
}
