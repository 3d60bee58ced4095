//! Ed25519 warrants: verifiable by anyone who has the counter's public key.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature, VerifyingKey};

use crate::warrant::{Certificate, CounterIdentity, UniqueWarrant, VerificationError, WarrantVerifier, statement};

/// Verifies Ed25519 warrants of a fixed set of counters, whose keys are decompressed once.
#[derive(Clone, Debug, Default)]
pub struct Ed25519Verifier {
    keys: BTreeMap<CounterIdentity, VerifyingKey>,
}

impl Ed25519Verifier {
    /// A verifier for these counters; an identity that is no valid public key stays unknown.
    pub fn new(identities: impl IntoIterator<Item = CounterIdentity>) -> Self {
        let keys = identities
            .into_iter()
            .filter_map(|identity| Some((identity, VerifyingKey::from_bytes(&identity.0).ok()?)))
            .filter(|(_, key)| !key.is_weak())
            .collect();
        Ed25519Verifier { keys }
    }
}

impl WarrantVerifier for Ed25519Verifier {
    fn verify_uw(
        &self,
        identity: &CounterIdentity,
        warrant: &UniqueWarrant,
        digest: &[u8; 32],
    ) -> Result<(), VerificationError> {
        let Certificate::Ed25519(signature) = &warrant.certificate else {
            return Err(VerificationError::WrongKind);
        };
        let key = self.keys.get(identity).ok_or(VerificationError::UnknownCounter)?;
        let statement = statement(identity, warrant.epoch, warrant.slot, warrant.value, digest);
        key.verify_strict(&statement, &Signature::from_bytes(signature))
            .map_err(|_| VerificationError::WrongCertificate)
    }
}
