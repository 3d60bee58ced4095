//! An application's connection: framed messages in, gathered responses out.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::wire::{Backend, FrameError, FrameReader, Frontend};

/// Responses are gathered up to this many bytes before they are written early.
const GATHER_BYTES_MAX: usize = 64 << 10;

/// While a statement runs, so much of what the application sends is read ahead, in bytes.
const READ_AHEAD_BYTES_MAX: usize = 64 << 10;

/// Reading or writing while the channel is lent: an error of the session's own.
const LENT: FrameError = FrameError::Connection(std::io::ErrorKind::NotConnected);

/// A byte stream, plain or TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// A stream with what was read from it and not used yet.
pub(crate) struct Channel {
    stream: Box<dyn Stream>,
    reader: FrameReader,
}

impl Channel {
    /// Completes when the application has gone; what it sends meanwhile is kept, as far as there is room. Cancel safe.
    pub(crate) async fn gone(&mut self) {
        self.reader.watch(&mut self.stream, READ_AHEAD_BYTES_MAX).await;
    }
}

/// A connection after TLS was settled.
pub(crate) struct Connection {
    /// `None` while it is lent.
    channel: Option<Channel>,
    pub(crate) out: Backend,
    /// The type of the last message that was read.
    pub(crate) last_tag: u8,
    /// An application that takes none of its results for this long, while it holds locks, is given up.
    pub(crate) write_limit: Option<Duration>,
    received: metrics::Counter,
    sent: metrics::Counter,
}

impl Connection {
    pub(crate) fn new(stream: Box<dyn Stream>, reader: FrameReader) -> Self {
        Self {
            channel: Some(Channel { stream, reader }),
            out: Backend::new(),
            last_tag: 0,
            write_limit: None,
            received: metrics::counter!("cloudbft_received_bytes_total"),
            sent: metrics::counter!("cloudbft_sent_bytes_total"),
        }
    }

    /// From now on large messages are taken.
    pub(crate) fn authenticated(&mut self) {
        if let Some(channel) = &mut self.channel {
            channel.reader.authenticated();
        }
    }

    /// The channel, to watch it while a statement runs: until it is given back nothing can be read or written, only
    /// gathered.
    pub(crate) fn lend(&mut self) -> Option<Channel> {
        self.channel.take()
    }

    /// Takes the channel back.
    pub(crate) fn give_back(&mut self, channel: Option<Channel>) {
        self.channel = channel;
    }

    /// The next message. Cancel safe.
    pub(crate) async fn message(&mut self) -> Result<Frontend, FrameError> {
        let channel = self.channel.as_mut().ok_or(LENT)?;
        let (tag, body) = channel.reader.message(&mut channel.stream).await?;
        self.received.increment(channel.reader.take_received_bytes());
        self.last_tag = tag;
        Frontend::parse(tag, body)
    }

    /// Puts framed messages into the response; large ones are written at once.
    pub(crate) async fn deliver(&mut self, messages: &Bytes) -> Result<(), FrameError> {
        if messages.len() + self.out.len() <= GATHER_BYTES_MAX {
            self.out.raw(messages);
            return Ok(());
        }
        self.flush().await?;
        self.write(messages).await
    }

    /// Writes what was gathered.
    pub(crate) async fn flush(&mut self) -> Result<(), FrameError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let bytes = self.out.take();
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &Bytes) -> Result<(), FrameError> {
        let stream = &mut self.channel.as_mut().ok_or(LENT)?.stream;
        let write = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        let written = match self.write_limit {
            Some(limit) => tokio::time::timeout(limit, write)
                .await
                .unwrap_or(Err(std::io::ErrorKind::TimedOut.into())),
            None => write.await,
        };
        self.sent.increment(bytes.len() as u64);
        written.map_err(|error| FrameError::Connection(error.kind()))
    }
}
