//! Who is who: keys of clients, machines and counters. Fixed; shared by the threads that verify.

use std::collections::BTreeMap;
use std::sync::Arc;

use ed25519_dalek::{Signature, VerifyingKey};
use trusted_counter::{CounterIdentity, UniqueWarrant, VerificationError, WarrantVerifier};

use crate::configuration::Faults;
use crate::identifiers::{ClientId, Digest, MachineId};
use crate::message::{OPERATION_BYTES_MAX, Request};
use crate::verified::{Rejection, Verified};

/// What is known of a machine.
#[derive(Clone, Debug)]
pub struct MachineEntry {
    /// The machine's ordinary Ed25519 key.
    pub key: VerifyingKey,
    /// Its trusted counter.
    pub counter: CounterIdentity,
}

/// Everybody's keys. Which counter *epochs* count is not here: the agreement itself admits them.
#[derive(Clone)]
pub struct Directory {
    /// How many machines may be faulty.
    pub faults: Faults,
    /// How many groups there are.
    pub groups: u16,
    /// All machines.
    pub machines: BTreeMap<MachineId, MachineEntry>,
    /// The clients' keys.
    pub clients: BTreeMap<ClientId, VerifyingKey>,
    /// Checks warrants of the machines' counters.
    pub verifier: Arc<dyn WarrantVerifier>,
}

impl Directory {
    /// Verifies a REQUEST: size, and the client's signature over its digest.
    pub fn verify_request(&self, request: Request) -> Result<Verified<Arc<Request>>, Rejection> {
        let digest = self.check_request(&request)?;
        Ok(Verified::new(Arc::new(request), digest))
    }

    /// [`Directory::verify_request`] of a request inside another message: tells its digest.
    pub(crate) fn check_request(&self, request: &Request) -> Result<Digest, Rejection> {
        if request.operation.len() > OPERATION_BYTES_MAX {
            return Err(Rejection::TooLarge);
        }
        let key = self.clients.get(&request.client).ok_or(Rejection::UnknownClient)?;
        let digest = request.digest();
        verify_signature(key, &digest, &request.signature)?;
        Ok(digest)
    }

    /// Verifies the ordinary signature of a machine.
    pub fn verify_machine(&self, machine: MachineId, digest: &Digest, signature: &[u8; 64]) -> Result<(), Rejection> {
        let entry = self.machines.get(&machine).ok_or(Rejection::UnknownMachine)?;
        verify_signature(&entry.key, digest, signature)
    }

    /// Verifies a warrant of a machine's counter in the given slot, in whatever epoch.
    pub fn verify_warrant(
        &self,
        machine: MachineId,
        slot: u32,
        warrant: &UniqueWarrant,
        digest: &Digest,
    ) -> Result<(), Rejection> {
        let entry = self.machines.get(&machine).ok_or(Rejection::UnknownMachine)?;
        if warrant.slot != slot {
            return Err(Rejection::WrongWarrant);
        }
        self.verifier
            .verify_uw(&entry.counter, warrant, digest)
            .map_err(|error| match error {
                VerificationError::Unavailable(_) => Rejection::CounterUnavailable,
                _ => Rejection::WrongWarrant,
            })
    }
}

fn verify_signature(key: &VerifyingKey, digest: &Digest, signature: &[u8; 64]) -> Result<(), Rejection> {
    key.verify_strict(digest, &Signature::from_bytes(signature))
        .map_err(|_| Rejection::WrongSignature)
}
