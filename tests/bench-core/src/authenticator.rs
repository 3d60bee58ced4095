//! What proves warrants: the same counters for both, behind the interface of each.

use std::fmt::Debug;
use std::sync::Arc;

use serde::Serialize;
use shared_ids::ReplicaId;
use trusted_counter::{Certificate, CounterIdentity, SoftwareCounter, TrustedCounter, UniqueWarrant, WarrantVerifier};
use usig::{Count, Counter, SignHalf, Usig, UsigError, VerifyHalf};

/// The bytes of each operation.
pub(crate) const PAYLOAD_BYTES: usize = 300;
/// Clients that send operations, in turn.
pub(crate) const CLIENTS: u64 = 16;
/// The counters of one cluster at most.
const COUNTERS: u8 = 4;

/// Kinds of certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authenticator {
    /// Signatures.
    Ed25519,
    /// Hashes under a key that the counters share.
    KeyedBlake3,
}

impl Authenticator {
    pub(crate) const ALL: [Authenticator; 2] = [Authenticator::Ed25519, Authenticator::KeyedBlake3];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Authenticator::Ed25519 => "Ed25519",
            Authenticator::KeyedBlake3 => "keyed BLAKE3",
        }
    }

    /// The counter of a machine.
    pub(crate) fn counter(self, id: u8) -> SoftwareCounter {
        match self {
            Authenticator::Ed25519 => SoftwareCounter::volatile_ed25519([id + 1; 32], 1),
            Authenticator::KeyedBlake3 => SoftwareCounter::volatile_keyed(CounterIdentity([id; 32]), [9; 32], 1),
        }
    }
}

/// Our counter as the USIG of the crate `minbft`: the same certificates by the same code.
pub(crate) struct CounterUsig {
    counter: SoftwareCounter,
    verifier: Arc<dyn WarrantVerifier>,
    identities: Vec<CounterIdentity>,
}

impl CounterUsig {
    pub(crate) fn new(authenticator: Authenticator, id: u8) -> Self {
        let counter = authenticator.counter(id);
        let identities: Vec<_> = (0..COUNTERS).map(|id| authenticator.counter(id).identity()).collect();
        let verifier = counter.verifier(identities.iter().copied());
        CounterUsig {
            counter,
            verifier,
            identities,
        }
    }
}

impl Debug for CounterUsig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("CounterUsig")
    }
}

/// Our warrant as the signature of the crate `minbft`.
#[derive(Clone, Debug)]
pub(crate) struct Warrant(UniqueWarrant);

impl Counter for Warrant {
    fn counter(&self) -> Count {
        // Theirs begin with 0.
        Count(self.0.value - 1)
    }
}

impl Serialize for Warrant {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let certificate = match &self.0.certificate {
            Certificate::Ed25519(signature) => signature.as_slice(),
            Certificate::Keyed(hash) => hash,
        };
        (self.0.epoch, self.0.value, self.0.slot, certificate).serialize(serializer)
    }
}

/// Their messages are Blake2b hashes of 64 bytes: half of one is as long as our digests.
fn digest(message: &[u8]) -> Result<[u8; 32], UsigError> {
    message.first_chunk().copied().ok_or(UsigError::SigningFailed)
}

impl SignHalf for CounterUsig {
    type Signature = Warrant;
    type Attestation = ();

    fn sign(&mut self, message: impl AsRef<[u8]>) -> Result<Warrant, UsigError> {
        let warrant = self.counter.create_uw(0, &digest(message.as_ref())?);
        warrant.map(Warrant).map_err(|_| UsigError::SigningFailed)
    }

    fn attest(&mut self) -> Result<(), UsigError> {
        Ok(())
    }
}

impl VerifyHalf for CounterUsig {
    type Signature = Warrant;
    type Attestation = ();

    fn verify(&self, id: ReplicaId, message: impl AsRef<[u8]>, signature: &Warrant) -> Result<(), UsigError> {
        let index = usize::try_from(id.as_u64()).map_err(|_| UsigError::UnknownId(id))?;
        let identity = self.identities.get(index).ok_or(UsigError::UnknownId(id))?;
        let verified = self
            .verifier
            .verify_uw(identity, &signature.0, &digest(message.as_ref())?);
        verified.map_err(|_| UsigError::InvalidSignature)
    }

    fn add_remote_party(&mut self, _: ReplicaId, (): ()) -> bool {
        true
    }
}

impl Usig for CounterUsig {
    type Signature = Warrant;
    type Attestation = ();
    type SignHalf = CounterUsig;
    type VerifyHalf = CounterUsig;

    fn sign(&mut self, message: impl AsRef<[u8]>) -> Result<Warrant, UsigError> {
        SignHalf::sign(self, message)
    }

    fn attest(&mut self) -> Result<(), UsigError> {
        Ok(())
    }

    fn verify(&self, id: ReplicaId, message: impl AsRef<[u8]>, signature: &Warrant) -> Result<(), UsigError> {
        VerifyHalf::verify(self, id, message, signature)
    }

    fn add_remote_party(&mut self, _: ReplicaId, (): ()) -> bool {
        true
    }

    fn split(self) -> (CounterUsig, CounterUsig) {
        unreachable!("the crate `minbft` does not split its USIG")
    }
}
