//! The client side of a counter process.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::socket::{CounterReply, CounterRequest, Refusal, read_frame, write_frame};
use crate::warrant::{
    CounterError, CounterIdentity, TrustedCounter, UniqueWarrant, VerificationError, WarrantVerifier,
};

/// How long the counter process may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a counter process: a [`TrustedCounter`] and a [`WarrantVerifier`].
///
/// One question at a time; open one connection per thread that asks. After an error the connection is closed for
/// good: a late answer must not be taken for the answer to the next question.
#[derive(Debug)]
pub struct CounterClient {
    stream: Mutex<Option<UnixStream>>,
    identity: CounterIdentity,
    epoch: u64,
}

impl CounterClient {
    /// Connects, and asks who the counter is.
    pub fn connect(path: &Path) -> Result<Self, CounterError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let mut client = CounterClient {
            stream: Mutex::new(Some(stream)),
            identity: CounterIdentity([0; 32]),
            epoch: 0,
        };
        client.describe(&CounterRequest::Describe)?;
        Ok(client)
    }

    fn describe(&mut self, request: &CounterRequest) -> Result<(), CounterError> {
        match self.ask(request)? {
            CounterReply::Description { identity, epoch } => {
                self.identity = identity;
                self.epoch = epoch;
                Ok(())
            }
            _ => Err(CounterError::Protocol("no description")),
        }
    }

    fn ask(&self, request: &CounterRequest) -> Result<CounterReply, CounterError> {
        let mut guard = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stream = guard
            .take()
            .ok_or(CounterError::Protocol("the connection has failed before"))?;
        write_frame(&mut stream, request)?;
        let frame = read_frame(&mut stream, || false)?.ok_or(CounterError::Protocol("no answer"))?;
        let reply = borsh::from_slice(&frame).map_err(|_| CounterError::Protocol("unknown answer"))?;
        *guard = Some(stream);
        Ok(reply)
    }
}

impl TrustedCounter for CounterClient {
    fn create_uw(&mut self, slot: u32, digest: &[u8; 32]) -> Result<UniqueWarrant, CounterError> {
        match self.ask(&CounterRequest::Create { slot, digest: *digest })? {
            CounterReply::Warrant(warrant) if warrant.epoch == self.epoch => Ok(warrant),
            CounterReply::Warrant(_) => Err(CounterError::Protocol("another process uses the counter now")),
            CounterReply::SlotOutOfRange => Err(CounterError::SlotOutOfRange(slot)),
            CounterReply::Exhausted => Err(CounterError::Exhausted(slot)),
            _ => Err(CounterError::Protocol("no warrant")),
        }
    }

    fn position(&mut self, slot: u32) -> Result<u64, CounterError> {
        match self.ask(&CounterRequest::Position { slot })? {
            CounterReply::Position(value) => Ok(value),
            CounterReply::SlotOutOfRange => Err(CounterError::SlotOutOfRange(slot)),
            _ => Err(CounterError::Protocol("no position")),
        }
    }

    fn begin_epoch(&mut self) -> Result<(), CounterError> {
        self.describe(&CounterRequest::BeginEpoch)
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn identity(&self) -> CounterIdentity {
        self.identity
    }
}

impl WarrantVerifier for CounterClient {
    fn verify_uw(
        &self,
        identity: &CounterIdentity,
        warrant: &UniqueWarrant,
        digest: &[u8; 32],
    ) -> Result<(), VerificationError> {
        let request = CounterRequest::Verify {
            identity: *identity,
            warrant: *warrant,
            digest: *digest,
        };
        match self
            .ask(&request)
            .map_err(|error| VerificationError::Unavailable(error.to_string()))?
        {
            CounterReply::Verified => Ok(()),
            CounterReply::NotVerified(Refusal::WrongCertificate) => Err(VerificationError::WrongCertificate),
            CounterReply::NotVerified(Refusal::WrongKind) => Err(VerificationError::WrongKind),
            CounterReply::NotVerified(Refusal::UnknownCounter) => Err(VerificationError::UnknownCounter),
            _ => Err(VerificationError::Unavailable(
                "the counter process cannot verify".to_owned(),
            )),
        }
    }
}
