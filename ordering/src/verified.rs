//! What has passed verification: a type that only this crate's verification functions can make.

use crate::identifiers::Digest;

/// A message whose signatures and warrants have been checked, and whose sender is who the link says.
///
/// It keeps the digest that verification computed, so that nothing is hashed twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<M> {
    message: M,
    digest: Digest,
}

impl<M> Verified<M> {
    /// Only for the verification functions of this crate, and for what a machine made or logged itself.
    pub(crate) fn new(message: M, digest: Digest) -> Self {
        Verified { message, digest }
    }

    /// The message.
    pub fn message(&self) -> &M {
        &self.message
    }

    /// The message's digest (all zero for kinds of message that are not signed).
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The message itself.
    pub fn into_message(self) -> M {
        self.message
    }
}

/// Why something a peer or client sent was refused: their fault, never ours. To be counted by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Rejection {
    /// No machine of that number is in the directory.
    #[error("unknown machine")]
    UnknownMachine,
    /// No client of that number is in the directory.
    #[error("unknown client")]
    UnknownClient,
    /// A signature does not verify.
    #[error("wrong signature")]
    WrongSignature,
    /// A warrant does not verify, or is for another slot.
    #[error("wrong warrant")]
    WrongWarrant,
    /// The counter that must verify did not answer (not the sender's fault).
    #[error("the trusted counter is not available")]
    CounterUnavailable,
    /// The sender is not the one the message names.
    #[error("wrong sender")]
    WrongSender,
    /// A list or a body is longer than allowed.
    #[error("too large")]
    TooLarge,
    /// The message contradicts itself.
    #[error("malformed")]
    Malformed,
}
