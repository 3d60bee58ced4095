//! Checked reading of the fields of one message.

use bytes::{Buf, Bytes};

use super::frame::FrameError;

/// The unread rest of one message's body.
pub(super) struct Fields {
    rest: Bytes,
}

impl Fields {
    pub(super) fn new(body: Bytes) -> Self {
        Self { rest: body }
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<Bytes, FrameError> {
        if length > self.rest.len() {
            return Err(FrameError::Malformed("insufficient data left in message"));
        }
        Ok(self.rest.split_to(length))
    }

    pub(super) fn u8(&mut self) -> Result<u8, FrameError> {
        self.rest
            .try_get_u8()
            .map_err(|_| FrameError::Malformed("insufficient data left in message"))
    }

    pub(super) fn i16(&mut self) -> Result<i16, FrameError> {
        self.rest
            .try_get_i16()
            .map_err(|_| FrameError::Malformed("insufficient data left in message"))
    }

    pub(super) fn i32(&mut self) -> Result<i32, FrameError> {
        self.rest
            .try_get_i32()
            .map_err(|_| FrameError::Malformed("insufficient data left in message"))
    }

    /// A count of items that take at least `item_bytes` each: never more than the message can hold, so that
    /// nothing is reserved on a liar's word.
    pub(super) fn count(&mut self, item_bytes: usize) -> Result<usize, FrameError> {
        let count = usize::from(self.i16()?.cast_unsigned());
        if count.saturating_mul(item_bytes) > self.rest.len() {
            return Err(FrameError::Malformed("a count exceeds the message"));
        }
        Ok(count)
    }

    /// A string that ends with a NUL.
    pub(super) fn string(&mut self) -> Result<String, FrameError> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let end = end.ok_or(FrameError::Malformed("invalid string in message"))?;
        let bytes = self.rest.split_to(end);
        self.rest.advance(1);
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(FrameError::Encoding(
                bytes.get(error.valid_up_to()).copied().unwrap_or_default(),
            )),
        }
    }

    /// What is left, all of it.
    pub(super) fn remainder(self) -> Bytes {
        self.rest
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), FrameError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(FrameError::Malformed("invalid message format"))
        }
    }
}
