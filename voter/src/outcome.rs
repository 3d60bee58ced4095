//! What became of something that a client asked for, as it is kept here; what is sent of it is an
//! [`ordering::message::Outcome`].

use std::sync::Arc;

use bytes::Bytes;
use ordering::identifiers::{Digest, Order};
use ordering::message::{self, ResultKey, ResultMessage, SMALL_RESULT_BYTES};
use spool::StoredResult;

/// A result that is kept in a file.
#[derive(Debug)]
pub struct LargeResult {
    /// Its messages.
    pub stored: StoredResult,
    /// The status byte of the ReadyForQuery that ended them.
    pub status: u8,
}

/// What happened; see [`ordering::message::Outcome`].
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The backend answered.
    Done {
        /// Hash of the messages in sequence.
        sequence: Digest,
        /// The same with the rows of each statement sorted by hash.
        multiset: Digest,
        /// The encoded `ExchangeResult`.
        whole: Bytes,
    },
    /// The backend answered more than travels at once.
    Large(Arc<LargeResult>),
    /// The voter refuses, alike on all correct voters.
    Refused {
        /// Five characters.
        sqlstate: String,
        /// What was refused.
        message: String,
        /// Rule or resource.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// The operation was committed, and what it answered is gone.
    Executed,
    /// The voter's word on the transaction.
    Word {
        /// The chain over the digests of the listed exchanges' answers.
        answers: Digest,
        /// The signature.
        signature: [u8; 64],
    },
    /// The number that the server gave last.
    ObjectNumber {
        /// The number.
        number: u32,
    },
    /// The voter cannot say.
    Unavailable,
}

/// An outcome, and what it answers.
#[derive(Clone, Debug)]
pub struct Report {
    /// What is answered.
    pub key: ResultKey,
    /// See [`ResultMessage::order`].
    pub order: Order,
    /// What happened.
    pub outcome: Outcome,
}

impl Report {
    /// The message for the client. With `whole`, a result that travels at once is in it also when it is not small.
    pub fn message(&self, whole: bool) -> ResultMessage {
        ResultMessage {
            key: self.key,
            order: self.order,
            outcome: self.outcome.message(whole),
        }
    }
}

impl Outcome {
    fn message(&self, with_whole: bool) -> message::Outcome {
        match self {
            Outcome::Done {
                sequence,
                multiset,
                whole,
            } => message::Outcome::Done {
                sequence: *sequence,
                multiset: *multiset,
                whole: (with_whole || whole.len() <= SMALL_RESULT_BYTES).then(|| whole.clone()),
            },
            Outcome::Large(large) => {
                let digests = large.stored.digests(large.status);
                message::Outcome::Large {
                    sequence: digests.sequence,
                    multiset: digests.multiset,
                    status: large.status,
                    chunks: large.stored.chunk_digests().to_vec(),
                }
            }
            Outcome::Refused {
                sqlstate,
                message,
                detail,
                hint,
            } => message::Outcome::Refused {
                sqlstate: sqlstate.clone(),
                message: message.clone(),
                detail: detail.clone(),
                hint: hint.clone(),
            },
            Outcome::Executed => message::Outcome::Executed,
            Outcome::Word { answers, signature } => message::Outcome::Word {
                answers: *answers,
                signature: *signature,
            },
            Outcome::ObjectNumber { number } => message::Outcome::ObjectNumber { number: *number },
            Outcome::Unavailable => message::Outcome::Unavailable,
        }
    }
}
