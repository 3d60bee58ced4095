//! Digests of results: what voters vote with, and what a proxy recomputes from the bytes that it delivers.

use crate::operation::ExchangeResult;

/// The two hashes of one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResultDigests {
    /// Over the messages as they stand.
    pub sequence: [u8; 32],
    /// The same, with each run of rows (DataRow, CopyData) sorted by hash: equal for results that differ only in the
    /// order of rows. Equal to `sequence` when no run has more than one row.
    pub multiset: [u8; 32],
}

/// The messages are not a sequence of whole backend messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a result's messages are cut off or malformed")]
pub struct MalformedResult;

/// Bytes before a message's body: its type and its length.
const HEADER_BYTES: usize = 5;

/// Splits backend messages into (type, whole message with its header).
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8]), MalformedResult>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some((tag, total)) = header(bytes) else {
            bytes = &[];
            return Some(Err(MalformedResult));
        };
        let Some((message, rest)) = bytes.split_at_checked(total) else {
            bytes = &[];
            return Some(Err(MalformedResult));
        };
        bytes = rest;
        Some(Ok((tag, message)))
    })
}

fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let (tag, rest) = bytes.split_first()?;
    let length = u32::from_be_bytes(*rest.first_chunk::<4>()?);
    let total = usize::try_from(length).ok()?.checked_add(1)?;
    (total >= HEADER_BYTES).then_some((*tag, total))
}

/// Computes [`ResultDigests`] while messages come in.
#[derive(Clone, Debug)]
pub struct ResultDigester {
    sequence: blake3::Hasher,
    multiset: blake3::Hasher,
    run: Vec<[u8; 32]>,
    /// Whether some run had several rows, so that the two digests mean different things.
    unordered: bool,
}

impl Default for ResultDigester {
    fn default() -> Self {
        Self::new()
    }
}

impl ResultDigester {
    /// Nothing digested yet.
    pub fn new() -> Self {
        Self {
            sequence: blake3::Hasher::new_derive_key("cloudbft result sequence v1"),
            multiset: blake3::Hasher::new_derive_key("cloudbft result multiset v1"),
            run: Vec::new(),
            unordered: false,
        }
    }

    /// Adds one whole backend message (with its header) of type `tag`.
    pub fn message(&mut self, tag: u8, message: &[u8]) {
        self.sequence.update(message);
        if is_row(tag) {
            self.run.push(*blake3::hash(message).as_bytes());
        } else {
            self.end_run();
            self.multiset.update(message);
        }
    }

    fn end_run(&mut self) {
        if self.run.len() > 1 {
            self.unordered = true;
            self.run.sort_unstable();
        }
        for hash in self.run.drain(..) {
            self.multiset.update(&hash);
        }
    }

    /// The digests of all messages, given the status byte of the ReadyForQuery that ended them.
    pub fn finish(mut self, status: u8) -> ResultDigests {
        self.end_run();
        self.sequence.update(&[status]);
        self.multiset.update(&[status]);
        let sequence = *self.sequence.finalize().as_bytes();
        let multiset = if self.unordered {
            *self.multiset.finalize().as_bytes()
        } else {
            sequence
        };
        ResultDigests { sequence, multiset }
    }
}

/// Whether a message of this type is a row, of which the order may not matter.
fn is_row(tag: u8) -> bool {
    matches!(tag, b'D' | b'd')
}

/// The digests of a result's messages and status byte.
///
/// # Errors
/// When `bytes` are not whole backend messages.
pub fn digests(bytes: &[u8], status: u8) -> Result<ResultDigests, MalformedResult> {
    let mut digester = ResultDigester::new();
    for message in messages(bytes) {
        let (tag, message) = message?;
        digester.message(tag, message);
    }
    Ok(digester.finish(status))
}

impl ExchangeResult {
    /// The result's digests.
    ///
    /// # Errors
    /// When its messages are not whole backend messages.
    pub fn digests(&self) -> Result<ResultDigests, MalformedResult> {
        digests(&self.messages, self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn order_of_rows_enters_only_the_sequence() {
        let (a, b, end) = (message(b'D', b"a"), message(b'D', b"b"), message(b'C', b"SELECT 2\0"));
        let one = digests(&[a.clone(), b.clone(), end.clone()].concat(), b'I').unwrap();
        let other = digests(&[b, a, end].concat(), b'I').unwrap();
        assert_ne!(one.sequence, other.sequence);
        assert_eq!(one.multiset, other.multiset);
    }

    #[test]
    fn rows_do_not_move_between_statements() {
        let (a, b, end) = (message(b'D', b"a"), message(b'D', b"b"), message(b'C', b"x\0"));
        let one = digests(
            &[a.clone(), b.clone(), end.clone(), a.clone(), b.clone(), end.clone()].concat(),
            b'I',
        )
        .unwrap();
        let other = digests(&[a.clone(), a, end.clone(), b.clone(), b, end].concat(), b'I').unwrap();
        assert_ne!(one.multiset, other.multiset);
    }

    #[test]
    fn a_single_row_has_one_digest_and_the_status_enters() {
        let row = message(b'D', b"a");
        let idle = digests(&row, b'I').unwrap();
        assert_eq!(idle.sequence, idle.multiset);
        assert_ne!(idle.sequence, digests(&row, b'T').unwrap().sequence);
    }

    #[test]
    fn cut_off_messages_are_malformed() {
        let row = message(b'D', b"abc");
        for length in 1..row.len() {
            assert_eq!(digests(&row[..length], b'I'), Err(MalformedResult));
        }
        assert_eq!(digests(b"D\0\0\0\x03", b'I'), Err(MalformedResult));
    }
}
