//! The counter as a process of its own: length-prefixed borsh over a Unix socket.
//!
//! The client is not trusted: frames are bounded, connections too, and nothing it sends can stop the counter.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::warrant::{
    CounterError, CounterIdentity, TrustedCounter, UniqueWarrant, VerificationError, WarrantVerifier,
};

/// How many clients a counter process serves at once; further ones are turned away.
pub const CONNECTIONS_MAX: usize = 64;

/// The longest frame in bytes; all of the protocol's messages are far shorter.
const FRAME_BYTES_MAX: usize = 1024;

/// How often a waiting thread looks whether it should end.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a client asks.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
pub(crate) enum CounterRequest {
    Describe,
    /// A new user, who does not know all that the last one certified: it gets an epoch of its own, and a description.
    BeginEpoch,
    Create {
        slot: u32,
        digest: [u8; 32],
    },
    Position {
        slot: u32,
    },
    Verify {
        identity: CounterIdentity,
        warrant: UniqueWarrant,
        digest: [u8; 32],
    },
}

/// What the counter answers.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
pub(crate) enum CounterReply {
    Description { identity: CounterIdentity, epoch: u64 },
    Warrant(UniqueWarrant),
    Position(u64),
    Verified,
    NotVerified(Refusal),
    SlotOutOfRange,
    Exhausted,
    Failed,
}

/// [`VerificationError`] on the wire.
#[derive(Clone, Copy, Debug, BorshSerialize, BorshDeserialize)]
pub(crate) enum Refusal {
    WrongCertificate,
    WrongKind,
    UnknownCounter,
    Unavailable,
}

/// Serves `counter` on `listener` until `shutdown` is set; returns when all connections have ended.
///
/// `verifier` answers `verify_uw` (needed by clients of keyed counters).
pub fn serve<C: TrustedCounter + Send>(
    listener: &UnixListener,
    counter: C,
    verifier: &Arc<dyn WarrantVerifier>,
    shutdown: &AtomicBool,
) -> Result<(), CounterError> {
    listener.set_nonblocking(true)?;
    let counter = Mutex::new(counter);
    let connections = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        while !shutdown.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) if connections.load(Ordering::Relaxed) < CONNECTIONS_MAX => {
                    connections.fetch_add(1, Ordering::Relaxed);
                    let (counter, connections) = (&counter, &connections);
                    scope.spawn(move || {
                        // A client that breaks the protocol or leaves ends its connection, nothing else.
                        let _ = serve_connection(stream, counter, verifier.as_ref(), shutdown);
                        connections.fetch_sub(1, Ordering::Relaxed);
                    });
                }
                Ok(_) => {}
                Err(error) if is_retry(error.kind()) => std::thread::sleep(POLL_INTERVAL),
                // Out of descriptors and the like: wait, the counter must outlive it.
                Err(_) => std::thread::sleep(POLL_INTERVAL),
            }
        }
    });
    Ok(())
}

fn is_retry(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn serve_connection<C: TrustedCounter>(
    mut stream: UnixStream,
    counter: &Mutex<C>,
    verifier: &dyn WarrantVerifier,
    shutdown: &AtomicBool,
) -> Result<(), CounterError> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(POLL_INTERVAL))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    while let Some(frame) = read_frame(&mut stream, || !shutdown.load(Ordering::Relaxed))? {
        let request = borsh::from_slice(&frame).map_err(|_| CounterError::Protocol("unknown request"))?;
        write_frame(&mut stream, &answer(request, counter, verifier))?;
    }
    Ok(())
}

fn answer<C: TrustedCounter>(
    request: CounterRequest,
    counter: &Mutex<C>,
    verifier: &dyn WarrantVerifier,
) -> CounterReply {
    // A poisoned counter is whole: a value is spent before anything else happens.
    let lock = || counter.lock().unwrap_or_else(PoisonError::into_inner);
    let result = match request {
        CounterRequest::Describe => Ok(describe(&*lock())),
        CounterRequest::BeginEpoch => {
            let mut counter = lock();
            counter.begin_epoch().map(|()| describe(&*counter))
        }
        CounterRequest::Create { slot, digest } => lock().create_uw(slot, &digest).map(CounterReply::Warrant),
        CounterRequest::Position { slot } => lock().position(slot).map(CounterReply::Position),
        CounterRequest::Verify {
            identity,
            warrant,
            digest,
        } => Ok(match verifier.verify_uw(&identity, &warrant, &digest) {
            Ok(()) => CounterReply::Verified,
            Err(VerificationError::WrongCertificate) => CounterReply::NotVerified(Refusal::WrongCertificate),
            Err(VerificationError::WrongKind) => CounterReply::NotVerified(Refusal::WrongKind),
            Err(VerificationError::UnknownCounter) => CounterReply::NotVerified(Refusal::UnknownCounter),
            Err(VerificationError::Unavailable(_)) => CounterReply::NotVerified(Refusal::Unavailable),
        }),
    };
    result.unwrap_or_else(|error| match error {
        CounterError::SlotOutOfRange(_) => CounterReply::SlotOutOfRange,
        CounterError::Exhausted(_) => CounterReply::Exhausted,
        _ => CounterReply::Failed,
    })
}

fn describe(counter: &impl TrustedCounter) -> CounterReply {
    CounterReply::Description {
        identity: counter.identity(),
        epoch: counter.epoch(),
    }
}

/// Reads one frame; none when the other side has closed between frames, or `go_on` says to end.
pub(crate) fn read_frame(stream: &mut UnixStream, go_on: impl Fn() -> bool) -> Result<Option<Vec<u8>>, CounterError> {
    let mut header = [0; 4];
    if !fill(stream, &mut header, &go_on)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes(header) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(CounterError::Protocol("frame too long"));
    }
    let mut frame = vec![0; length];
    if fill(stream, &mut frame, &go_on)? {
        Ok(Some(frame))
    } else {
        Ok(None)
    }
}

/// Fills the buffer; false at the end of the stream, or when `go_on` says to end.
fn fill(stream: &mut UnixStream, mut buffer: &mut [u8], go_on: impl Fn() -> bool) -> Result<bool, CounterError> {
    while !buffer.is_empty() {
        match stream.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => buffer = buffer.split_at_mut(count).1,
            Err(error) if is_retry(error.kind()) => {
                if !go_on() {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Writes one message as a frame, in one write.
pub(crate) fn write_frame(stream: &mut UnixStream, message: &impl BorshSerialize) -> Result<(), CounterError> {
    let body = borsh::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(|_| CounterError::Protocol("frame too long"))?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    stream.write_all(&frame)?;
    Ok(())
}
