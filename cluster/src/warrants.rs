//! Warrants that were verified before: a view change shows a machine thousands of warrants that it has verified when
//! they were made, several times over, and must not take seconds for it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use trusted_counter::{Certificate, CounterIdentity, UniqueWarrant, VerificationError, WarrantVerifier};

/// Warrants per generation; two generations are kept: about 8 MiB.
const GENERATION_MAX: usize = 65_536;

/// A hash of everything that a verification looks at.
type Fingerprint = [u8; 32];

/// The warrants that are known to be right; the older generation is forgotten when the younger one is full.
#[derive(Debug, Default)]
struct Known {
    younger: HashSet<Fingerprint>,
    older: HashSet<Fingerprint>,
}

impl Known {
    fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.younger.contains(fingerprint) || self.older.contains(fingerprint)
    }

    fn insert(&mut self, fingerprint: Fingerprint) {
        if self.younger.len() >= GENERATION_MAX {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(fingerprint);
    }
}

/// Verifies each warrant once, as long as it is remembered.
pub(crate) struct RememberingVerifier {
    inner: Arc<dyn WarrantVerifier>,
    known: Mutex<Known>,
}

impl RememberingVerifier {
    pub(crate) fn new(inner: Arc<dyn WarrantVerifier>) -> Self {
        let known = Mutex::default();
        Self { inner, known }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fingerprint(identity: &CounterIdentity, digest: &[u8; 32], warrant: &UniqueWarrant) -> Fingerprint {
    let (kind, certificate): (u8, &[u8]) = match &warrant.certificate {
        Certificate::Ed25519(signature) => (0, signature),
        Certificate::Keyed(hash) => (1, hash),
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&identity.0);
    hasher.update(digest);
    hasher.update(&warrant.epoch.to_le_bytes());
    hasher.update(&warrant.value.to_le_bytes());
    hasher.update(&warrant.slot.to_le_bytes());
    hasher.update(&[kind]);
    hasher.update(certificate);
    *hasher.finalize().as_bytes()
}

impl WarrantVerifier for RememberingVerifier {
    fn verify_uw(
        &self,
        identity: &CounterIdentity,
        warrant: &UniqueWarrant,
        digest: &[u8; 32],
    ) -> Result<(), VerificationError> {
        let fingerprint = fingerprint(identity, digest, warrant);
        if self.known().contains(&fingerprint) {
            return Ok(());
        }
        self.inner.verify_uw(identity, warrant, digest)?;
        self.known().insert(fingerprint);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Takes certificates that repeat the first byte of the digest.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl WarrantVerifier for Counting {
        fn verify_uw(
            &self,
            _: &CounterIdentity,
            warrant: &UniqueWarrant,
            digest: &[u8; 32],
        ) -> Result<(), VerificationError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            match warrant.certificate {
                Certificate::Keyed(hash) if hash[0] == digest[0] => Ok(()),
                _ => Err(VerificationError::WrongCertificate),
            }
        }
    }

    fn warrant(value: u64, byte: u8) -> UniqueWarrant {
        UniqueWarrant {
            epoch: 1,
            value,
            slot: 0,
            certificate: Certificate::Keyed([byte; 32]),
        }
    }

    #[test]
    fn a_right_warrant_is_verified_once_and_a_wrong_one_each_time() {
        let counting = Arc::new(Counting::default());
        let verifier = RememberingVerifier::new(Arc::clone(&counting) as Arc<dyn WarrantVerifier>);
        let me = CounterIdentity([1; 32]);
        for _ in 0..3 {
            verifier.verify_uw(&me, &warrant(1, 7), &[7; 32]).unwrap();
            verifier.verify_uw(&me, &warrant(1, 8), &[7; 32]).unwrap_err();
        }
        assert_eq!(counting.0.load(Ordering::Relaxed), 1 + 3);
        // Whatever differs makes it another warrant.
        verifier.verify_uw(&me, &warrant(2, 7), &[7; 32]).unwrap();
        verifier
            .verify_uw(&CounterIdentity([2; 32]), &warrant(1, 7), &[7; 32])
            .unwrap();
        assert_eq!(counting.0.load(Ordering::Relaxed), 4 + 2);
    }

    #[test]
    fn memory_is_bounded() {
        let mut known = Known::default();
        for number in 0..3 * GENERATION_MAX as u64 {
            let mut fingerprint = [0; 32];
            fingerprint[..8].copy_from_slice(&number.to_le_bytes());
            known.insert(fingerprint);
        }
        assert!(known.younger.len() + known.older.len() <= 2 * GENERATION_MAX);
    }
}
