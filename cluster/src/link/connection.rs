//! One established connection: a reader and a writer until either fails.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use super::frame::{self, Frame, Peer};
use super::{PeerState, Receiver};

/// A write that takes longer means that the peer is stuck.
const WRITE_MS_MAX: u64 = 10_000;
/// A peer that is silent for longer is gone (pings come far more often).
const SILENCE_MS_MAX: u64 = 8_000;
/// How often a ping is sent.
const PING_MS: u64 = 1_000;
/// What is collected before it is written.
const WRITE_BYTES: usize = 64 << 10;
/// How much is asked for with one read.
const READ_BYTES: usize = 32 << 10;

/// Carries frames until the connection ends; returns why it ended.
pub(super) async fn run<R: Receiver>(
    stream: TlsStream<TcpStream>,
    me: Peer,
    peer: &Arc<PeerState>,
    receiver: &Arc<R>,
) -> io::Error {
    let (reading, writing) = tokio::io::split(stream);
    tokio::select! {
        error = read(reading, me, peer, receiver) => error,
        error = write(writing, peer) => error,
    }
}

async fn read<R: Receiver>(
    mut stream: ReadHalf<TlsStream<TcpStream>>,
    me: Peer,
    peer: &Arc<PeerState>,
    receiver: &Arc<R>,
) -> io::Error {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        match timeout(Duration::from_millis(SILENCE_MS_MAX), stream.read_buf(&mut buffer)).await {
            Err(_) => return io::Error::new(io::ErrorKind::TimedOut, "the peer is silent"),
            Ok(Err(error)) => return error,
            Ok(Ok(0)) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(Ok(read)) => peer.count_received(read),
        }
        loop {
            match frame::take(&mut buffer, peer.peer, me) {
                Ok(None) => break,
                Ok(Some((Frame::Ping(stamp), _))) => peer.send_frame(&Frame::Pong(stamp)),
                Ok(Some((Frame::Pong(stamp), _))) => peer.record_round_trip(stamp),
                Ok(Some((frame, length))) => receiver.receive(peer.peer, frame, length).await,
                Err(error) => {
                    peer.count_invalid(error.reason());
                    return io::Error::new(io::ErrorKind::InvalidData, error);
                }
            }
        }
    }
}

async fn write(mut stream: WriteHalf<TlsStream<TcpStream>>, peer: &Arc<PeerState>) -> io::Error {
    let mut batch = Vec::new();
    let mut buffer = BytesMut::with_capacity(WRITE_BYTES);
    let mut pinged = Instant::now() - Duration::from_millis(PING_MS);
    loop {
        if pinged.elapsed() >= Duration::from_millis(PING_MS) {
            pinged = Instant::now();
            peer.send_frame(&Frame::Ping(peer.stamp_us()));
        }
        let _ = timeout(Duration::from_millis(PING_MS), peer.queue.pop(&mut batch, WRITE_BYTES)).await;
        for frame in batch.drain(..) {
            buffer.extend_from_slice(&frame.0);
        }
        let writing = async {
            stream.write_all(&buffer).await?;
            stream.flush().await
        };
        match timeout(Duration::from_millis(WRITE_MS_MAX), writing).await {
            Err(_) => return io::Error::new(io::ErrorKind::TimedOut, "the peer does not read"),
            Ok(Err(error)) => return error,
            Ok(Ok(())) => peer.count_sent(buffer.len()),
        }
        buffer.clear();
        if buffer.capacity() > 4 * WRITE_BYTES {
            buffer = BytesMut::with_capacity(WRITE_BYTES);
        }
    }
}
