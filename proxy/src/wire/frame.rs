//! Cutting the byte stream into messages.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The largest startup packet, in bytes (as in Postgres).
const STARTUP_BYTES_MAX: usize = 10_000;
/// The largest message, in bytes: a statement with its parameters. CopyData has no limit but that of its length field.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// The largest message before the application has proved who it is, in bytes.
const AUTHENTICATION_BYTES_MAX: usize = 64 << 10;
/// How much more room is made at a time, in bytes: memory follows what arrived, not what was announced.
const READ_BYTES: usize = 16 << 10;

/// The type of CopyData.
const COPY_DATA: u8 = b'd';

/// What is wrong with what an application sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The layout is broken: the connection cannot go on.
    #[error("{0}")]
    Malformed(&'static str),
    /// A message is larger than its limit, in bytes: the connection cannot go on.
    #[error("message exceeds {0} bytes")]
    TooLarge(usize),
    /// Text is not UTF-8, from this byte on; the frame itself is sound.
    #[error("invalid byte sequence for encoding \"UTF8\": 0x{0:02x}")]
    Encoding(u8),
    /// The connection broke.
    #[error("connection: {0}")]
    Connection(std::io::ErrorKind),
    /// The connection ended between two messages.
    #[error("connection closed")]
    Closed,
}

/// Reads frames from an application's connection.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    buffer: BytesMut,
    authenticated: bool,
    /// Bytes of a CopyData message that are still to come.
    copy_data_left: usize,
    received_bytes: u64,
}

impl FrameReader {
    /// From now on large messages are taken.
    pub(crate) fn authenticated(&mut self) {
        self.authenticated = true;
    }

    /// Whether bytes wait that no message has used yet.
    pub(crate) fn has_buffered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Reads ahead, at most until so many bytes wait, and completes only when the application has gone. Cancel safe.
    pub(crate) async fn watch(&mut self, stream: &mut (impl AsyncRead + Unpin), bytes_max: usize) {
        while self.buffer.len() < bytes_max {
            if self.fill(stream).await.is_err() {
                return;
            }
        }
        std::future::pending().await
    }

    /// Bytes received since the last call.
    pub(crate) fn take_received_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.received_bytes)
    }

    /// The body of the next startup packet. Cancel safe.
    pub(crate) async fn startup(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<Bytes, FrameError> {
        loop {
            if let Some(body) = self.buffered_startup()? {
                return Ok(body);
            }
            self.fill(stream).await?;
        }
    }

    fn buffered_startup(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        if length < 8 {
            return Err(FrameError::Malformed("invalid length of startup packet"));
        }
        if length > STARTUP_BYTES_MAX {
            return Err(FrameError::Malformed("invalid length of startup packet"));
        }
        if self.buffer.len() < length {
            return Ok(None);
        }
        let mut packet = self.buffer.split_to(length).freeze();
        packet.advance(4);
        Ok(Some(packet))
    }

    /// The type and body of the next message. A CopyData message comes in as many pieces as it arrives in, since its
    /// boundaries mean nothing: only what has arrived is held, however long the message is. Cancel safe.
    pub(crate) async fn message(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Bytes), FrameError> {
        loop {
            if let Some(message) = self.buffered_message()? {
                return Ok(message);
            }
            self.fill(stream).await?;
        }
    }

    /// The next message if all of it is there.
    pub(crate) fn buffered_message(&mut self) -> Result<Option<(u8, Bytes)>, FrameError> {
        if self.copy_data_left > 0 {
            return Ok(self.copy_data_piece());
        }
        let Some([tag, length @ ..]) = self.buffer.first_chunk::<5>() else {
            return Ok(None);
        };
        let (tag, length) = (*tag, usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0));
        if length < 4 {
            return Err(FrameError::Malformed("invalid message length"));
        }
        if tag == COPY_DATA && self.authenticated && length > 4 {
            self.buffer.advance(5);
            self.copy_data_left = length - 4;
            return Ok(self.copy_data_piece());
        }
        let limit = if self.authenticated {
            MESSAGE_BYTES_MAX
        } else {
            AUTHENTICATION_BYTES_MAX
        };
        if length > limit {
            return Err(FrameError::TooLarge(limit));
        }
        if self.buffer.len() < length + 1 {
            return Ok(None);
        }
        let mut message = self.buffer.split_to(length + 1).freeze();
        message.advance(5);
        Ok(Some((tag, message)))
    }

    fn copy_data_piece(&mut self) -> Option<(u8, Bytes)> {
        let piece = self.buffer.split_to(self.buffer.len().min(self.copy_data_left));
        self.copy_data_left -= piece.len();
        (!piece.is_empty()).then(|| (COPY_DATA, piece.freeze()))
    }

    async fn fill(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<(), FrameError> {
        self.buffer.reserve(READ_BYTES);
        match stream.read_buf(&mut self.buffer).await {
            Ok(0) if self.buffer.is_empty() && self.copy_data_left == 0 => Err(FrameError::Closed),
            Ok(0) => Err(FrameError::Connection(std::io::ErrorKind::UnexpectedEof)),
            Ok(length) => {
                self.received_bytes += length as u64;
                Ok(())
            }
            Err(error) => Err(FrameError::Connection(error.kind())),
        }
    }
}
