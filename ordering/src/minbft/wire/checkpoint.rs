//! What MinBFT says beside a checkpoint: how far counters were followed.

use std::collections::BTreeSet;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::check::{NUMBER_MAX, bounded, ensure, sender_is};
use crate::configuration::is_replica;
use crate::directory::Directory;
use crate::hashing::digest_of;
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::checkpoint_message::checkpoint_signed;
use crate::ledger::{Attachment, Checkpoint, StableCheckpoint};
use crate::minbft::wire::admission::{Admission, is_admission};
use crate::minbft::wire::machines;
use crate::verified::Rejection;

/// How far a machine has followed the counters of the others, without hole (rule NoHoles).
///
/// In `view`, everything that these counters certified up to these positions was seen, and the batches that the
/// COMMITs among it cover end at or below `order`. f+1 of them let a run of COMMITs begin behind these positions.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Followed {
    /// The machine that says so.
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
    /// The statement.
    pub followed: Followed,
    /// [`HistoryPoint::digest`](crate::ledger::HistoryPoint::digest) of the checkpoint.
    pub point: Digest,
    /// The checkpoint's.
    pub signature: [u8; 64],
}

impl Checkpoint<Followed> {
    /// The statement about counters, with its proof.
    pub fn followed_statement(&self) -> Option<FollowedStatement> {
        Some(FollowedStatement {
            followed: self.attached.clone()?,
            point: self.point.digest(&self.clients),
            signature: self.signature,
        })
    }
}

pub(crate) fn verify_checkpoint(
    from: MachineId,
    checkpoint: &Checkpoint<Followed>,
    directory: &Directory,
) -> Result<Digest, Rejection> {
    sender_is(from, checkpoint.machine)?;
    ensure(is_replica(from) && checkpoint.point.order.0 <= NUMBER_MAX)?;
    if let Some(followed) = &checkpoint.attached {
        sender_is(from, followed.machine)?;
        check_followed(followed, directory)?;
    }
    let digest = checkpoint.signed();
    directory.verify_machine(from, &digest, &checkpoint.signature)?;
    Ok(digest)
}

pub(crate) fn verify_stable(stable: &StableCheckpoint, directory: &Directory) -> Result<Digest, Rejection> {
    bounded(stable.signatures.len(), usize::from(machines(directory)))?;
    ensure(stable.point.order.0 <= NUMBER_MAX)?;
    let digest = stable.point.digest(&stable.clients);
    let mut signers = BTreeSet::new();
    for signature in &stable.signatures {
        ensure(is_replica(signature.machine) && signers.insert(signature.machine))?;
        signature.verify(&digest, directory)?;
    }
    ensure(signers.len() > usize::from(directory.faults.0))?;
    Ok(digest)
}

/// What a machine says of counters; its signature is checked by the caller.
pub(crate) fn check_followed(followed: &Followed, directory: &Directory) -> Result<(), Rejection> {
    bounded(followed.positions.len(), usize::from(machines(directory)))?;
    ensure(is_replica(followed.machine))?;
    ensure(followed.positions.is_sorted_by(|left, right| left.0 < right.0))?;
    let are_admissions = followed
        .positions
        .iter()
        .all(|(_, admission)| is_admission(admission, directory));
    ensure(are_admissions)
}

/// The same, shown without its checkpoint.
pub(crate) fn verify_followed(statement: &FollowedStatement, directory: &Directory) -> Result<(), Rejection> {
    let followed = &statement.followed;
    check_followed(followed, directory)?;
    let signed = checkpoint_signed(&statement.point, &followed.digest());
    directory.verify_machine(followed.machine, &signed, &statement.signature)
}

/// From where on a machine's counters were followed by f+1 of these, so by a correct one: per slot the highest
/// position that f+1 reach. None: fewer have followed this epoch.
pub(crate) fn followed_positions(
    statements: &[&FollowedStatement],
    machine: MachineId,
    epoch: u64,
    quorum: usize,
) -> Option<Vec<u64>> {
    let of_epoch: Vec<_> = statements
        .iter()
        .filter_map(|statement| statement.followed.of(machine))
        .filter(|admission| admission.epoch == epoch)
        .collect();
    let slots = of_epoch.iter().map(|admission| admission.positions.len()).min()?;
    let position = |slot: usize| {
        let mut reached: Vec<u64> = of_epoch
            .iter()
            .filter_map(|admission| admission.positions.get(slot).copied())
            .collect();
        reached.sort_unstable_by(|left, right| right.cmp(left));
        reached.get(quorum.checked_sub(1)?).copied()
    };
    (0..slots).map(position).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::configuration::Faults;
    use crate::directory::MachineEntry;
    use crate::identifiers::{MachineId, Order};
    use crate::ledger::{Checkpoint, HistoryPoint, StableCheckpoint};
    use crate::minbft::wire::admission::Admission;
    use crate::minbft::wire::checkpoint::verify_stable;
    use ed25519_dalek::{Signer, SigningKey};
    use trusted_counter::{SoftwareCounter, TrustedCounter};

    fn key(machine: u8) -> SigningKey {
        SigningKey::from_bytes(&[machine + 1; 32])
    }

    fn directory() -> Directory {
        let counter = SoftwareCounter::volatile_ed25519([9; 32], 1);
        let entry = |machine: u8| {
            let (key, counter) = (key(machine).verifying_key(), counter.identity());
            (MachineId(machine), MachineEntry { key, counter })
        };
        Directory {
            faults: Faults(1),
            groups: 1,
            machines: (0..4).map(entry).collect(),
            clients: BTreeMap::new(),
            verifier: counter.verifier([counter.identity()]),
        }
    }

    fn checkpoint(machine: u8, order: u64, position: u64) -> Checkpoint<Followed> {
        let admission = Admission {
            epoch: 1,
            positions: vec![0, position],
        };
        let followed = Followed {
            machine: MachineId(machine),
            view: View(0),
            order: Order(order),
            positions: vec![(MachineId(1), admission)],
        };
        let mut checkpoint = Checkpoint {
            machine: MachineId(machine),
            point: HistoryPoint {
                order: Order(order),
                ..HistoryPoint::GENESIS
            },
            clients: [3; 32],
            attached: Some(followed),
            signature: [0; 64],
        };
        checkpoint.signature = key(machine).sign(&checkpoint.signed()).to_bytes();
        checkpoint
    }

    #[test]
    fn a_checkpoints_signature_proves_its_point_and_its_positions_and_nothing_else() {
        let directory = directory();
        // The two have followed differently far, and still agree on the point.
        let (one, other) = (checkpoint(1, 512, 7), checkpoint(2, 512, 8));
        let stable = StableCheckpoint {
            point: one.point,
            clients: one.clients,
            signatures: vec![one.own_signature(), other.own_signature()],
        };
        assert!(verify_stable(&stable, &directory).is_ok());
        let wrong = Err(Rejection::WrongSignature);
        let mut altered = stable.clone();
        altered.signatures[1].attached = one.attached_digest();
        assert_eq!(verify_stable(&altered, &directory), wrong);
        let mut altered = stable.clone();
        altered.point.order = Order(513);
        assert_eq!(verify_stable(&altered, &directory), wrong);
        let mut altered = stable;
        altered.clients = [4; 32];
        assert_eq!(verify_stable(&altered, &directory), wrong);

        let statement = one.followed_statement().unwrap();
        assert_eq!(verify_followed(&statement, &directory), Ok(()));
        let wrong = Err(Rejection::WrongSignature);
        let mut altered = statement.clone();
        altered.followed.positions[0].1.positions[1] += 1;
        assert_eq!(verify_followed(&altered, &directory), wrong);
        let mut altered = statement.clone();
        altered.followed.order = Order(511);
        assert_eq!(verify_followed(&altered, &directory), wrong);
        let mut altered = statement.clone();
        altered.followed.machine = MachineId(2);
        assert_eq!(verify_followed(&altered, &directory), wrong);
        // The positions of one checkpoint with the point of another.
        let mut altered = statement;
        altered.point = checkpoint(1, 1024, 7).followed_statement().unwrap().point;
        assert_eq!(verify_followed(&altered, &directory), wrong);
        // The point's digest can not be taken for positions, nor the other way round.
        let swapped = checkpoint_signed(&one.attached_digest(), &one.point.digest(&one.clients));
        assert_ne!(swapped, one.signed());
        assert!(
            checkpoint(0, 1, 1)
                .attached
                .is_some_and(|followed| check_followed(&followed, &directory).is_err())
        );
    }
}
