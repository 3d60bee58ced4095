//! Checkpoints as machines tell them to each other.

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::directory::Directory;
use crate::identifiers::{Digest, MachineId};
use crate::ledger::client_table::ClientTable;
use crate::ledger::point::HistoryPoint;
use crate::verified::Rejection;

/// A statement that a protocol adds to a checkpoint, under the same signature (MinBFT: how far counters were followed).
pub trait Attachment {
    /// Names it: a part of what the checkpoint's signature covers.
    fn digest(&self) -> Digest;
}

/// A protocol that says nothing beside its checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {}

impl Attachment for Nothing {
    fn digest(&self) -> Digest {
        match *self {}
    }
}

impl BorshSerialize for Nothing {
    fn serialize<W: io::Write>(&self, _writer: &mut W) -> io::Result<()> {
        match *self {}
    }
}

impl BorshDeserialize for Nothing {
    fn deserialize_reader<R: io::Read>(_reader: &mut R) -> io::Result<Self> {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// CHECKPOINT: signed with the machine's ordinary key, so it uses up no warrant (rule CheckpointsSpendNothing).
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Checkpoint<A> {
    /// The machine that signs.
    pub machine: MachineId,
    /// How far the history goes.
    pub point: HistoryPoint,
    /// [`ClientTable::digest`] there.
    pub clients: Digest,
    /// The statement that the protocol adds to the checkpoint.
    pub attached: Option<A>,
    /// Over [`Checkpoint::signed`].
    pub signature: [u8; 64],
}

impl<A: Attachment> Checkpoint<A> {
    /// The digest that the signature covers. Point and attachment can be shown later, each without the other.
    pub fn signed(&self) -> Digest {
        checkpoint_signed(&self.point.digest(&self.clients), &self.attached_digest())
    }

    pub(crate) fn attached_digest(&self) -> Digest {
        self.attached.as_ref().map(Attachment::digest).unwrap_or_default()
    }

    /// Its part of a [`StableCheckpoint`].
    pub(crate) fn own_signature(&self) -> CheckpointSignature {
        CheckpointSignature {
            machine: self.machine,
            attached: self.attached_digest(),
            signature: self.signature,
        }
    }
}

/// What a checkpoint's signature covers: [`HistoryPoint::digest`], and [`Attachment::digest`] or zero.
pub(crate) fn checkpoint_signed(point: &Digest, attached: &Digest) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("cloudbft checkpoint v3");
    hasher.update(point);
    hasher.update(attached);
    *hasher.finalize().as_bytes()
}

/// One machine's signature under a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CheckpointSignature {
    /// The machine that signs.
    pub machine: MachineId,
    /// [`Attachment::digest`] of what it said beside it; zero for nothing.
    pub attached: Digest,
    /// Over both.
    pub signature: [u8; 64],
}

impl CheckpointSignature {
    /// `point`: [`HistoryPoint::digest`].
    pub(crate) fn verify(&self, point: &Digest, directory: &Directory) -> Result<(), Rejection> {
        let signed = checkpoint_signed(point, &self.attached);
        directory.verify_machine(self.machine, &signed, &self.signature)
    }
}

/// f+1 machines' equal checkpoints: at least one of them is correct, so this is decided history.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StableCheckpoint {
    /// How far the history goes.
    pub point: HistoryPoint,
    /// [`ClientTable::digest`] there.
    pub clients: Digest,
    /// f+1 signatures of distinct machines.
    pub signatures: Vec<CheckpointSignature>,
}

/// A stable checkpoint with all that a replica needs of the history up to it. A replica that has this needs no operation below.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CertifiedCheckpoint {
    /// The proof.
    pub stable: StableCheckpoint,
    /// The requests that are decided up to the point.
    pub clients: ClientTable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_with_nothing_beside_it_is_encoded_as_one_with_an_absent_attachment() {
        let checkpoint = Checkpoint::<Nothing> {
            machine: MachineId(1),
            point: HistoryPoint::GENESIS,
            clients: [2; 32],
            attached: None,
            signature: [3; 64],
        };
        let parts = (MachineId(1), HistoryPoint::GENESIS, [2_u8; 32], None::<u64>, [3_u8; 64]);
        let mut bytes = borsh::to_vec(&parts).unwrap();
        assert_eq!(borsh::to_vec(&checkpoint).unwrap(), bytes);
        assert_eq!(borsh::from_slice::<Checkpoint<Nothing>>(&bytes).unwrap(), checkpoint);
        // Whatever a peer attaches is refused.
        let flag = bytes.len() - 65;
        bytes[flag] = 1;
        assert!(borsh::from_slice::<Checkpoint<Nothing>>(&bytes).is_err());
    }
}
