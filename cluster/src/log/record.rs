//! The format of one record.

use bytes::Bytes;

/// Length, position, durable position, checksum.
pub(super) const HEADER_BYTES: usize = 4 + 8 + 8 + 8;
/// The largest payload of a record, in bytes.
pub const RECORD_BYTES_MAX: usize = 128 << 20;

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its position; the first is 1.
    pub position: u64,
    /// Everything up to this position was durable when the record was written.
    pub durable: u64,
    /// What was appended.
    pub payload: Bytes,
}

fn checksum(position: u64, durable: u64, payload: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new_derive_key("cloudbft log record v1");
    hasher.update(&position.to_le_bytes());
    hasher.update(&durable.to_le_bytes());
    hasher.update(payload);
    let mut checksum = [0; 8];
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}

/// Appends a record's bytes to `buffer`.
pub(super) fn encode(buffer: &mut Vec<u8>, position: u64, durable: u64, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&position.to_le_bytes());
    buffer.extend_from_slice(&durable.to_le_bytes());
    buffer.extend_from_slice(&checksum(position, durable, payload));
    buffer.extend_from_slice(payload);
}

/// The record at the beginning of `bytes` and its size; `None` when it is cut off or damaged.
pub(super) fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let length = u32::from_le_bytes(header.get(..4)?.try_into().ok()?) as usize;
    let position = u64::from_le_bytes(header.get(4..12)?.try_into().ok()?);
    let durable = u64::from_le_bytes(header.get(12..20)?.try_into().ok()?);
    let payload = rest.get(..length)?;
    if header.get(20..28)? != checksum(position, durable, payload) {
        return None;
    }
    let record = Record {
        position,
        durable,
        payload: Bytes::copy_from_slice(payload),
    };
    Some((record, HEADER_BYTES + length))
}
