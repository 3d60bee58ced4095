//! Digests of results: what voters vote with, and what a proxy recomputes from the bytes that it delivers.

use std::convert::Infallible;

use crate::operation::ExchangeResult;

/// The two hashes of one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResultDigests {
    /// Over the messages as they stand.
    pub sequence: [u8; 32],
    /// The same, with each run of rows (DataRow, CopyData) and notices sorted by hash, and of an error only its severity
    /// and SQLSTATE: equal for results that differ only in the order of rows, and in which row an error names. Equal to
    /// `sequence` when no run has more than one row and nothing failed.
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

/// The hashes of a run of rows, which are taken out in ascending order.
pub trait Run {
    /// Why a hash cannot be kept.
    type Error;

    /// Adds the hash of a row.
    ///
    /// # Errors
    /// When it cannot be kept.
    fn push(&mut self, hash: [u8; 32]) -> Result<(), Self::Error>;

    /// Takes out all hashes, ascending; says how many there were.
    ///
    /// # Errors
    /// When what was kept cannot be read back.
    fn drain_sorted(&mut self, take: impl FnMut(&[u8; 32])) -> Result<u64, Self::Error>;
}

/// A run in memory.
impl Run for Vec<[u8; 32]> {
    type Error = Infallible;

    fn push(&mut self, hash: [u8; 32]) -> Result<(), Infallible> {
        Vec::push(self, hash);
        Ok(())
    }

    fn drain_sorted(&mut self, take: impl FnMut(&[u8; 32])) -> Result<u64, Infallible> {
        self.sort_unstable();
        self.iter().for_each(take);
        let count = self.len() as u64;
        self.clear();
        Ok(count)
    }
}

/// Computes [`ResultDigests`] while messages come in.
#[derive(Clone, Debug)]
pub struct ResultDigester<R = Vec<[u8; 32]>> {
    digested: Digested,
    run: R,
    in_run: bool,
}

/// The digests of all messages, before the status byte is known.
#[derive(Clone, Debug)]
pub struct Digested {
    sequence: blake3::Hasher,
    multiset: blake3::Hasher,
    /// Whether some run had several rows, or something failed, so that the two digests mean different things.
    apart: bool,
}

impl Default for ResultDigester {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl<R: Run> ResultDigester<R> {
    /// Nothing digested yet; hashes of rows are kept in `run`, which is empty.
    pub fn new(run: R) -> Self {
        let digested = Digested {
            sequence: blake3::Hasher::new_derive_key("cloudbft result sequence v1"),
            multiset: blake3::Hasher::new_derive_key("cloudbft result multiset v2"),
            apart: false,
        };
        Self {
            digested,
            run,
            in_run: false,
        }
    }

    /// Adds one whole backend message (with its header) of type `tag`.
    ///
    /// # Errors
    /// When the run of rows cannot be kept.
    pub fn message(&mut self, tag: u8, message: &[u8]) -> Result<(), R::Error> {
        self.digested.sequence.update(message);
        if is_row(tag) {
            self.in_run = true;
            return self.run.push(*blake3::hash(message).as_bytes());
        }
        self.end_run()?;
        if tag == ERROR_RESPONSE {
            let certified = error_fields(message).filter(|(kind, _)| is_certified_field(*kind));
            for (kind, value) in certified {
                self.digested.multiset.update(&[tag, kind]).update(value).update(&[0]);
            }
            self.digested.apart = true;
            return Ok(());
        }
        self.digested.multiset.update(message);
        Ok(())
    }

    fn end_run(&mut self) -> Result<(), R::Error> {
        if !std::mem::take(&mut self.in_run) {
            return Ok(());
        }
        let multiset = &mut self.digested.multiset;
        let count = self.run.drain_sorted(|hash| {
            multiset.update(hash);
        })?;
        self.digested.apart |= count > 1;
        Ok(())
    }

    /// Ends the messages.
    ///
    /// # Errors
    /// When the last run of rows cannot be read back.
    pub fn end(mut self) -> Result<Digested, R::Error> {
        self.end_run()?;
        Ok(self.digested)
    }
}

impl Digested {
    /// The digests, given the status byte of the ReadyForQuery that ended the messages.
    pub fn finish(&self, status: u8) -> ResultDigests {
        let finish = |hasher: &blake3::Hasher| *hasher.clone().update(&[status]).finalize().as_bytes();
        let sequence = finish(&self.sequence);
        let multiset = match self.apart {
            true => finish(&self.multiset),
            false => sequence,
        };
        ResultDigests { sequence, multiset }
    }
}

/// The digest of one chunk of a result that travels in chunks.
pub fn chunk_digest(chunk: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("cloudbft result chunk v1");
    *hasher.update(chunk).finalize().as_bytes()
}

/// The digest of a list of chunks' digests.
pub fn chunks_digest(chunks: &[[u8; 32]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("cloudbft result chunks v1");
    *hasher.update(chunks.as_flattened()).finalize().as_bytes()
}

/// Whether a message of this type is a row, or a notice about one, of which the order may not matter.
fn is_row(tag: u8) -> bool {
    matches!(tag, b'D' | b'd' | b'N')
}

/// The type of an ErrorResponse.
pub const ERROR_RESPONSE: u8 = b'E';

/// The fields (type, value) of a whole ErrorResponse or NoticeResponse, as far as it is well formed.
pub fn error_fields(message: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let body = message.get(HEADER_BYTES..).unwrap_or_default();
    body.split(|byte| *byte == 0)
        .map_while(|field| field.split_first().map(|(kind, value)| (*kind, value)))
}

/// Whether f+1 voters vouch for this field of an error wherever they vouch for the result: severity and SQLSTATE.
/// Which row an error names is left to the order of rows, which is each server's own.
pub fn is_certified_field(kind: u8) -> bool {
    matches!(kind, b'S' | b'V' | b'C')
}

/// The digests of a result's messages and status byte.
///
/// # Errors
/// When `bytes` are not whole backend messages.
pub fn digests(bytes: &[u8], status: u8) -> Result<ResultDigests, MalformedResult> {
    let mut digester = ResultDigester::default();
    for message in messages(bytes) {
        let (tag, message) = message?;
        let Ok(()) = digester.message(tag, message);
    }
    let Ok(digested) = digester.end();
    Ok(digested.finish(status))
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
    fn an_error_is_certified_by_severity_and_sqlstate() {
        let error = |fields: &[u8]| digests(&message(b'E', fields), b'E').unwrap();
        let one = error(b"SERROR\0VERROR\0C23505\0Mduplicate key\0DKey (id)=(1) exists.\0\0");
        let other_row = error(b"SERROR\0VERROR\0C23505\0Mduplicate key\0DKey (id)=(2) exists.\0\0");
        let other_code = error(b"SERROR\0VERROR\0C23514\0Mduplicate key\0DKey (id)=(1) exists.\0\0");
        assert_ne!(one.sequence, other_row.sequence);
        assert_eq!(one.multiset, other_row.multiset);
        assert_ne!(one.multiset, other_code.multiset);
        assert_ne!(one.multiset, error(b"\0").multiset);
    }

    #[test]
    fn the_order_of_notices_enters_only_the_sequence() {
        let (a, b) = (message(b'N', b"Ma\0\0"), message(b'N', b"Mb\0\0"));
        let one = digests(&[a.clone(), b.clone()].concat(), b'I').unwrap();
        let other = digests(&[b.clone(), a].concat(), b'I').unwrap();
        assert_ne!(one.sequence, other.sequence);
        assert_eq!(one.multiset, other.multiset);
        assert_ne!(one.multiset, digests(&[b.clone(), b].concat(), b'I').unwrap().multiset);
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
