//! The unique warrant and the two traits: who makes warrants, and who checks them.

use borsh::{BorshDeserialize, BorshSerialize};

/// Names a counter for ever (over all its epochs): its Ed25519 public key, or for keyed counters a random number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct CounterIdentity(pub [u8; 32]);

/// The proof that a counter bound a digest to one (epoch, slot, value), and will bind no other digest to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct UniqueWarrant {
    /// Which run of the counter; values of different epochs are not comparable.
    pub epoch: u64,
    /// The counter's value: 1 for the first warrant of a slot in an epoch, then without gap.
    pub value: u64,
    /// Which of the machine's counters: one per role.
    pub slot: u32,
    /// What proves it.
    pub certificate: Certificate,
}

/// The cryptographic part of a warrant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum Certificate {
    /// A signature: anyone can verify it.
    Ed25519([u8; 64]),
    /// A hash keyed by a secret that only counters hold.
    Keyed([u8; 32]),
}

/// The bytes in front of every certified statement, so that no other signature can be taken for a warrant.
const DOMAIN: &[u8; 16] = b"cloudbft warrant";

/// Length of [`statement`] in bytes.
const STATEMENT_BYTES: usize = 16 + 32 + 8 + 4 + 8 + 32;

/// What a certificate certifies: identity, epoch, slot, value and digest, each of fixed length.
pub(crate) fn statement(
    identity: &CounterIdentity,
    epoch: u64,
    slot: u32,
    value: u64,
    digest: &[u8; 32],
) -> [u8; STATEMENT_BYTES] {
    let mut bytes = [0; STATEMENT_BYTES];
    let fields: [&[u8]; 6] = [
        DOMAIN,
        &identity.0,
        &epoch.to_le_bytes(),
        &slot.to_le_bytes(),
        &value.to_le_bytes(),
        digest,
    ];
    let mut rest = bytes.as_mut_slice();
    for field in fields {
        let (head, tail) = rest.split_at_mut(field.len());
        head.copy_from_slice(field);
        rest = tail;
    }
    bytes
}

/// Makes unique warrants (`create_uw` of the thesis).
pub trait TrustedCounter {
    /// Increments the slot's counter, then certifies `digest` at the new value.
    ///
    /// The increment comes first: whatever fails afterwards costs a value, and no value is ever certified twice.
    fn create_uw(&mut self, slot: u32, digest: &[u8; 32]) -> Result<UniqueWarrant, CounterError>;

    /// The value of the slot's last warrant in this epoch; 0 when it has made none.
    fn position(&mut self, slot: u32) -> Result<u64, CounterError>;

    /// Begins a new epoch, durably, with all slots at 0: for a new user of a counter that outlives its users, who does not
    /// know what the last one certified last.
    fn begin_epoch(&mut self) -> Result<(), CounterError> {
        Err(CounterError::Protocol(
            "this counter begins an epoch only when it is opened",
        ))
    }

    /// The current epoch; only [`TrustedCounter::begin_epoch`] changes it.
    fn epoch(&self) -> u64;

    /// The counter's public identity.
    fn identity(&self) -> CounterIdentity;
}

/// Checks unique warrants (`verify_uw` of the thesis). Shared by the threads that verify messages.
pub trait WarrantVerifier: Send + Sync {
    /// Whether the counter `identity` bound `digest` to the warrant's (epoch, slot, value).
    ///
    /// Whether that epoch counts, and which value is due, the caller must know.
    fn verify_uw(
        &self,
        identity: &CounterIdentity,
        warrant: &UniqueWarrant,
        digest: &[u8; 32],
    ) -> Result<(), VerificationError>;
}

/// Why a counter did not answer with a warrant.
#[derive(Debug, thiserror::Error)]
pub enum CounterError {
    /// The slot number is at or above `SLOTS_MAX`.
    #[error("counter slot {0} is out of range")]
    SlotOutOfRange(u32),
    /// The slot has used up all values of this epoch.
    #[error("counter slot {0} is exhausted")]
    Exhausted(u32),
    /// Another process has the counter's state open.
    #[error("the counter's state in {0} is in use by another process")]
    InUse(String),
    /// The counter's state or key file holds something else than it should.
    #[error("the counter's file {path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or the socket failed.
    #[error("trusted counter: {0}")]
    Io(#[from] std::io::Error),
    /// The counter process said something that is not in its protocol.
    #[error("the counter process broke its protocol: {0}")]
    Protocol(&'static str),
}

/// Why a warrant was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerificationError {
    /// The certificate does not certify this.
    #[error("the warrant's certificate is wrong")]
    WrongCertificate,
    /// The certificate is of a kind that this verifier does not know.
    #[error("the warrant's certificate is of another kind")]
    WrongKind,
    /// The identity is not among those this verifier was made for.
    #[error("the counter is not known")]
    UnknownCounter,
    /// The counter that is needed to verify did not answer: says nothing about the warrant.
    #[error("the counter is not available: {0}")]
    Unavailable(String),
}
