//! A machine's log: what was synced survives a crash; of what was not, any part, down to half a record.

use rand::{Rng, RngExt};

/// Length and checksum in front of each record.
const HEADER_BYTES: usize = 4 + 8;

/// The log of one machine, as bytes.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    synced: Vec<u8>,
    unsynced: Vec<u8>,
    /// Last sequence number in `unsynced`.
    pending: Option<u64>,
}

impl Disk {
    /// Appends a record; it is not durable before the next [`Disk::sync`].
    pub fn append(&mut self, sequence: u64, record: &[u8]) {
        encode(&mut self.unsynced, record);
        self.pending = Some(sequence);
    }

    /// Where the next sync has to go; none: everything is durable.
    pub fn pending(&self) -> Option<u64> {
        self.pending
    }

    /// Bytes that are appended, so far: what a sync that begins now will make durable.
    pub fn unsynced_bytes(&self) -> usize {
        self.unsynced.len()
    }

    /// The first `bytes` of what was not synced are durable.
    pub fn sync(&mut self, bytes: usize) {
        self.synced.extend(self.unsynced.drain(..bytes));
        if self.unsynced.is_empty() {
            self.pending = None;
        }
    }

    /// Power fails: of what was not synced a prefix of any length survives, at worst nothing.
    pub fn crash(&mut self, loses_everything: bool, rng: &mut impl Rng) {
        let survives = if loses_everything {
            0
        } else {
            rng.random_range(0..=self.unsynced.len())
        };
        self.synced.extend(self.unsynced.drain(..survives));
        self.unsynced.clear();
        self.pending = None;
        let whole = self.records().map(|record| HEADER_BYTES + record.len()).sum();
        self.synced.truncate(whole);
    }

    /// The oldest records go.
    pub fn cut(&mut self, records: usize) {
        let gone = self.records().take(records).map(|record| HEADER_BYTES + record.len());
        let gone: usize = gone.sum();
        self.synced.drain(..gone);
    }

    /// A liar forgets the last part of its log.
    pub fn forget(&mut self, records: usize) {
        let keep: usize = {
            let sizes: Vec<usize> = self.records().map(|record| HEADER_BYTES + record.len()).collect();
            sizes[..sizes.len().saturating_sub(records)].iter().sum()
        };
        self.synced.truncate(keep);
    }

    /// Replaces what is durable.
    pub fn rewrite<'a>(&mut self, records: impl Iterator<Item = &'a [u8]>) {
        let mut bytes = Vec::new();
        records.for_each(|record| encode(&mut bytes, record));
        self.synced = bytes;
    }

    /// The durable records, oldest first, up to the first one that is torn.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.synced.as_slice();
        std::iter::from_fn(move || {
            let (record, tail) = decode(rest)?;
            rest = tail;
            Some(record)
        })
    }

    /// The size of what is durable.
    pub fn bytes(&self) -> usize {
        self.synced.len()
    }
}

fn checksum(record: &[u8]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&blake3::hash(record).as_bytes()[..8]);
    bytes
}

fn encode(buffer: &mut Vec<u8>, record: &[u8]) {
    let length = u32::try_from(record.len()).expect("records are small");
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&checksum(record));
    buffer.extend_from_slice(record);
}

fn decode(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let (record, tail) = rest.split_at_checked(length)?;
    (header[4..] == checksum(record)).then_some((record, tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn what_was_synced_survives_and_a_torn_record_does_not() {
        let mut torn = 0;
        for seed in 0..200 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut disk = Disk::default();
            disk.append(1, b"first");
            disk.append(2, b"second");
            disk.sync(disk.unsynced_bytes());
            disk.append(3, b"third");
            disk.append(4, b"fourth");
            disk.crash(false, &mut rng);
            let records: Vec<&[u8]> = disk.records().collect();
            assert!(records.starts_with(&[b"first", b"second"]));
            assert!([&b"first"[..], b"second", b"third", b"fourth"].starts_with(&records));
            torn += usize::from(records.len() == 2);
            disk.append(1, b"after");
            disk.sync(disk.unsynced_bytes());
            assert_eq!(disk.records().last(), Some(&b"after"[..]), "the torn tail is gone");
        }
        assert!((20..180).contains(&torn));
    }
}
