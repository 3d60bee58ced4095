//! Keyed-BLAKE3 warrants: all counters of a cluster share one key that never leaves them.
//!
//! A certificate names its maker's identity, and a counter only ever certifies under its own. Verification
//! needs the key, so it happens inside a counter; a certificate convinces nobody outside.

use std::collections::BTreeSet;

use crate::warrant::{Certificate, CounterIdentity, UniqueWarrant, VerificationError, WarrantVerifier, statement};

/// The part of a counter that checks keyed warrants; it holds the shared key.
#[derive(Clone)]
pub struct KeyedVerifier {
    key: [u8; 32],
    /// The counters that may make warrants; none: any.
    identities: Option<BTreeSet<CounterIdentity>>,
}

impl KeyedVerifier {
    /// A verifier with the shared key, for any counter.
    pub(crate) fn new(key: [u8; 32]) -> Self {
        KeyedVerifier { key, identities: None }
    }

    /// The same, for these counters only.
    pub fn restricted_to(self, identities: impl IntoIterator<Item = CounterIdentity>) -> Self {
        KeyedVerifier {
            identities: Some(identities.into_iter().collect()),
            ..self
        }
    }
}

impl std::fmt::Debug for KeyedVerifier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("KeyedVerifier").finish_non_exhaustive()
    }
}

/// The keyed certificate of a statement.
pub(crate) fn certificate(key: &[u8; 32], statement: &[u8]) -> blake3::Hash {
    blake3::keyed_hash(key, statement)
}

impl WarrantVerifier for KeyedVerifier {
    fn verify_uw(
        &self,
        identity: &CounterIdentity,
        warrant: &UniqueWarrant,
        digest: &[u8; 32],
    ) -> Result<(), VerificationError> {
        let Certificate::Keyed(hash) = &warrant.certificate else {
            return Err(VerificationError::WrongKind);
        };
        if self.identities.as_ref().is_some_and(|known| !known.contains(identity)) {
            return Err(VerificationError::UnknownCounter);
        }
        let statement = statement(identity, warrant.epoch, warrant.slot, warrant.value, digest);
        // `blake3::Hash` compares in constant time.
        if certificate(&self.key, &statement) == blake3::Hash::from_bytes(*hash) {
            Ok(())
        } else {
            Err(VerificationError::WrongCertificate)
        }
    }
}
