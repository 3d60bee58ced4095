//! The counter in software: as tamper-proof as the process that holds it.

use std::collections::BTreeMap;
use std::path::Path;

use ed25519_dalek::{Signer, SigningKey};

use crate::ed25519::Ed25519Verifier;
use crate::keyed::{self, KeyedVerifier};
use crate::state::{CounterState, random_bytes};
use crate::warrant::{Certificate, CounterError, CounterIdentity, TrustedCounter, UniqueWarrant, statement};

/// How many slots a counter has.
pub const SLOTS_MAX: u32 = 4096;

/// How a counter certifies.
#[derive(Clone, PartialEq, Eq)]
pub enum CounterKind {
    /// With an Ed25519 key of its own.
    Ed25519,
    /// With this key, which all counters of the cluster share.
    Keyed([u8; 32]),
}

enum Secret {
    Ed25519(Box<SigningKey>),
    Keyed { identity: CounterIdentity, key: [u8; 32] },
}

/// A trusted counter in software.
///
/// Slot values live in memory; what is durable is the epoch ([`CounterState`]), which rises with each start. A
/// durable mode (`counter_sync`, `docs/protocol.md` rule AdmittedEpochs) that also keeps the last values, so that a
/// restart costs no epoch, has its place in `SoftwareCounter::next_value`: it would write there, before the release.
pub struct SoftwareCounter {
    secret: Secret,
    epoch: u64,
    /// The last value of each slot. Invariant: no warrant with a higher value was ever released in this epoch.
    values: BTreeMap<u32, u64>,
    /// Keeps the state locked as long as the counter lives; none for a counter that forgets everything.
    state: Option<CounterState>,
}

impl SoftwareCounter {
    /// Opens the counter whose files are in `directory` (made if missing), in a new epoch that is durable before
    /// this returns.
    pub fn open(directory: &Path, kind: CounterKind) -> Result<Self, CounterError> {
        let (state, epoch) = CounterState::open(directory)?;
        let secret = match kind {
            CounterKind::Ed25519 => Secret::Ed25519(Box::new(SigningKey::from_bytes(&state.secret("counter.key")?))),
            CounterKind::Keyed(key) => Secret::Keyed {
                identity: CounterIdentity(state.secret("counter.identity")?),
                key,
            },
        };
        Ok(SoftwareCounter {
            secret,
            epoch,
            values: BTreeMap::new(),
            state: Some(state),
        })
    }

    /// An Ed25519 counter that keeps nothing: the caller vouches that (seed, epoch) is never used again.
    pub fn volatile_ed25519(seed: [u8; 32], epoch: u64) -> Self {
        let secret = Secret::Ed25519(Box::new(SigningKey::from_bytes(&seed)));
        SoftwareCounter {
            secret,
            epoch,
            values: BTreeMap::new(),
            state: None,
        }
    }

    /// A keyed counter that keeps nothing: the caller vouches that (identity, epoch) is never used again.
    pub fn volatile_keyed(identity: CounterIdentity, key: [u8; 32], epoch: u64) -> Self {
        let secret = Secret::Keyed { identity, key };
        SoftwareCounter {
            secret,
            epoch,
            values: BTreeMap::new(),
            state: None,
        }
    }

    /// Creates the counter's key file in `directory` if there is none, and tells the identity, without opening
    /// the counter (no epoch is spent): for whoever writes the cluster file.
    pub fn provision(directory: &Path, kind: &CounterKind) -> Result<CounterIdentity, CounterError> {
        match kind {
            CounterKind::Ed25519 => {
                let seed = CounterState::provision(directory, "counter.key")?;
                Ok(CounterIdentity(
                    SigningKey::from_bytes(&seed).verifying_key().to_bytes(),
                ))
            }
            CounterKind::Keyed(_) => Ok(CounterIdentity(CounterState::provision(directory, "counter.identity")?)),
        }
    }

    /// A fresh random key for [`CounterKind::Keyed`].
    pub fn random_shared_key() -> Result<[u8; 32], CounterError> {
        random_bytes()
    }

    /// A verifier of warrants of this counter's kind, for these counters; it shares the key if there is one.
    pub fn verifier(
        &self,
        identities: impl IntoIterator<Item = CounterIdentity>,
    ) -> std::sync::Arc<dyn crate::WarrantVerifier> {
        match &self.secret {
            Secret::Ed25519(_) => std::sync::Arc::new(Ed25519Verifier::new(identities)),
            Secret::Keyed { key, .. } => std::sync::Arc::new(KeyedVerifier::new(*key).restricted_to(identities)),
        }
    }

    /// Spends the slot's next value. A durable mode writes the value here.
    fn next_value(&mut self, slot: u32) -> Result<u64, CounterError> {
        if slot >= SLOTS_MAX {
            return Err(CounterError::SlotOutOfRange(slot));
        }
        let value = self.values.entry(slot).or_insert(0);
        *value = value.checked_add(1).ok_or(CounterError::Exhausted(slot))?;
        Ok(*value)
    }
}

impl TrustedCounter for SoftwareCounter {
    fn create_uw(&mut self, slot: u32, digest: &[u8; 32]) -> Result<UniqueWarrant, CounterError> {
        let value = self.next_value(slot)?;
        let statement = statement(&self.identity(), self.epoch, slot, value, digest);
        let certificate = match &self.secret {
            Secret::Ed25519(key) => Certificate::Ed25519(key.sign(&statement).to_bytes()),
            Secret::Keyed { key, .. } => Certificate::Keyed(*keyed::certificate(key, &statement).as_bytes()),
        };
        Ok(UniqueWarrant {
            epoch: self.epoch,
            value,
            slot,
            certificate,
        })
    }

    fn position(&mut self, slot: u32) -> Result<u64, CounterError> {
        if slot >= SLOTS_MAX {
            return Err(CounterError::SlotOutOfRange(slot));
        }
        Ok(self.values.get(&slot).copied().unwrap_or(0))
    }

    fn begin_epoch(&mut self) -> Result<(), CounterError> {
        let state = self.state.as_ref();
        let state = state.ok_or(CounterError::Protocol("a counter that keeps nothing has one epoch"))?;
        self.epoch = state.begin_epoch()?;
        self.values.clear();
        Ok(())
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn identity(&self) -> CounterIdentity {
        match &self.secret {
            Secret::Ed25519(key) => CounterIdentity(key.verifying_key().to_bytes()),
            Secret::Keyed { identity, .. } => *identity,
        }
    }
}
