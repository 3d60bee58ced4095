//! Sorting more hashes than memory shall hold: sorted parts in a file, merged at the end (external merge sort, Knuth, The
//! Art of Computer Programming, volume 3, section 5.4).
//!
//! Homomorphic hashes of multisets need no sorting, and do not serve here. Under LtHash or another sum with a small modulus
//! 65536 equal rows count as none, so that a liar could put as many rows of another kind in their place; sums with larger
//! moduli fall to lattice reduction when rows may come millions of times; products and curve points cost several
//! microseconds a row. A sorted list of BLAKE3 hashes is as collision resistant as BLAKE3.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::ops::Range;

use sql::result::Run;

use crate::directory::{SpoolDirectory, SpoolFile};

const HASH_BYTES: usize = 32;

/// Hashes that are sorted in memory at once: 4 MiB.
const MEMORY_HASHES: usize = (4 << 20) / HASH_BYTES;

/// What the merge of all parts reads ahead together, in hashes, as long as no part's share is below [`PART_HASHES_MIN`].
const MERGE_HASHES: usize = (4 << 20) / HASH_BYTES;

/// The least that is read of a part at once.
const PART_HASHES_MIN: usize = 128;

/// The hashes of a run of rows: in memory while they are few, in a file when they are many.
#[derive(Debug)]
pub struct SortedHashes {
    directory: SpoolDirectory,
    memory: Vec<[u8; HASH_BYTES]>,
    memory_max: usize,
    file: Option<SpoolFile>,
    /// Where the sorted parts lie in the file, in hashes.
    parts: Vec<Range<u64>>,
}

impl SortedHashes {
    /// No hashes; files are made in this directory.
    pub fn new(directory: &SpoolDirectory) -> Self {
        Self::with_memory(directory, MEMORY_HASHES)
    }

    fn with_memory(directory: &SpoolDirectory, memory_max: usize) -> Self {
        Self {
            directory: directory.clone(),
            memory: Vec::new(),
            memory_max,
            file: None,
            parts: Vec::new(),
        }
    }

    /// Sorts what is in memory, and puts it into the file.
    fn put_out(&mut self) -> io::Result<()> {
        self.memory.sort_unstable();
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(self.directory.create()?),
        };
        let start = self.parts.last().map_or(0, |part| part.end);
        file.append(self.memory.as_flattened())?;
        self.parts.push(start..start + self.memory.len() as u64);
        self.memory.clear();
        Ok(())
    }
}

impl Run for SortedHashes {
    type Error = io::Error;

    fn push(&mut self, hash: [u8; HASH_BYTES]) -> io::Result<()> {
        if self.memory.len() >= self.memory_max {
            self.put_out()?;
        }
        self.memory.push(hash);
        Ok(())
    }

    fn drain_sorted(&mut self, mut take: impl FnMut(&[u8; HASH_BYTES])) -> io::Result<u64> {
        if self.parts.is_empty() {
            let Ok(count) = self.memory.drain_sorted(take);
            return Ok(count);
        }
        self.put_out()?;
        self.memory = Vec::new();
        let Some(file) = &mut self.file else {
            return Ok(0);
        };
        let share = (MERGE_HASHES / self.parts.len().max(1)).max(PART_HASHES_MIN);
        let mut parts: Vec<_> = self.parts.drain(..).map(|left| Part::new(left, share)).collect();
        let mut heads = BinaryHeap::with_capacity(parts.len());
        for (index, part) in parts.iter_mut().enumerate() {
            if let Some(hash) = part.next(file)? {
                heads.push(Reverse((hash, index)));
            }
        }
        let mut count = 0;
        while let Some(Reverse((hash, index))) = heads.pop() {
            take(&hash);
            count += 1;
            let next = match parts.get_mut(index) {
                Some(part) => part.next(file)?,
                None => None,
            };
            if let Some(hash) = next {
                heads.push(Reverse((hash, index)));
            }
        }
        file.clear()?;
        Ok(count)
    }
}

/// A sorted part of the file that is being read.
struct Part {
    left: Range<u64>,
    ahead: Vec<[u8; HASH_BYTES]>,
    at: usize,
    share: usize,
}

impl Part {
    fn new(left: Range<u64>, share: usize) -> Self {
        Self {
            left,
            ahead: Vec::new(),
            at: 0,
            share,
        }
    }

    fn next(&mut self, file: &SpoolFile) -> io::Result<Option<[u8; HASH_BYTES]>> {
        if self.at == self.ahead.len() {
            let left = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX);
            self.ahead.resize(left.min(self.share), [0; HASH_BYTES]);
            file.read_at(self.left.start * HASH_BYTES as u64, self.ahead.as_flattened_mut())?;
            self.left.start += self.ahead.len() as u64;
            self.at = 0;
        }
        let hash = self.ahead.get(self.at).copied();
        self.at += 1;
        Ok(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> [u8; 32] {
        // A permutation of the numbers, so that they come unsorted.
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        hash
    }

    #[test]
    fn many_hashes_come_out_as_a_sort_in_memory_gives_them() {
        let place = tempfile::tempdir().unwrap();
        let directory = SpoolDirectory::new(place.path(), 1 << 20);
        for count in [0, 1, 9, 10, 11, 20, 21, 1000] {
            let mut sorted = SortedHashes::with_memory(&directory, 10);
            for round in 0..2 {
                // Equal ones too, and in parts of their own.
                let hashes: Vec<_> = (0..count).map(|number| hash(number % 700 + round)).collect();
                hashes.iter().for_each(|hash| sorted.push(*hash).unwrap());
                let mut expected = hashes.clone();
                expected.sort_unstable();
                let mut drained = Vec::new();
                assert_eq!(sorted.drain_sorted(|hash| drained.push(*hash)).unwrap(), count);
                assert!(drained == expected, "{count} hashes");
            }
            drop(sorted);
            assert_eq!(directory.bytes_used(), 0);
        }
    }

    #[test]
    fn no_room_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let directory = SpoolDirectory::new(place.path(), 1000);
        let mut sorted = SortedHashes::with_memory(&directory, 10);
        let pushed = (0..100).try_for_each(|number| sorted.push(hash(number)));
        assert_eq!(pushed.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    }
}
