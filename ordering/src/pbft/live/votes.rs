//! Who has voted for what, for one number of the view.

use std::collections::BTreeMap;

use crate::identifiers::{Digest, MachineId};

/// The votes for one number in one view.
#[derive(Debug, Default)]
pub(crate) struct Votes {
    /// The first PREPARE of each machine.
    prepares: BTreeMap<MachineId, (Digest, [u8; 64])>,
    /// The first COMMIT of each machine.
    commits: BTreeMap<MachineId, Digest>,
}

impl Votes {
    /// Counts a PREPARE; false when it contradicts an earlier one.
    pub(crate) fn prepare(&mut self, machine: MachineId, digest: Digest, signature: [u8; 64]) -> bool {
        self.prepares.entry(machine).or_insert((digest, signature)).0 == digest
    }

    /// Counts a COMMIT; false when it contradicts an earlier one.
    pub(crate) fn commit(&mut self, machine: MachineId, digest: Digest) -> bool {
        *self.commits.entry(machine).or_insert(digest) == digest
    }

    /// PREPAREs for a batch.
    pub(crate) fn prepares(&self, digest: &Digest) -> impl Iterator<Item = (MachineId, [u8; 64])> {
        let digest = *digest;
        self.prepares
            .iter()
            .filter(move |(_, (voted, _))| *voted == digest)
            .map(|(machine, (_, signature))| (*machine, *signature))
    }

    /// The signature of a machine's PREPARE for a batch.
    pub(crate) fn prepare_of(&self, machine: MachineId, digest: &Digest) -> Option<[u8; 64]> {
        let (voted, signature) = self.prepares.get(&machine)?;
        (voted == digest).then_some(*signature)
    }

    /// How many machines have sent COMMIT for a batch.
    pub(crate) fn commits(&self, digest: &Digest) -> usize {
        self.commits.values().filter(|voted| *voted == digest).count()
    }
}
