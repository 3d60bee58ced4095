//! The rows of a held cursor: in memory while they are few, else in a file beside the proxy.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use spool::{SpoolDirectory, SpoolFile};

/// Rows are read back in blocks of this many bytes, or of one longer row.
const BLOCK_BYTES: usize = 64 << 10;
/// Rows of one cursor that stay in memory, in bytes, at most.
const MEMORY_BYTES_MAX: usize = 32 << 10;
/// Rows of all cursors of a proxy that stay in memory, in bytes, at most.
const ALL_MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Cursors of a proxy whose rows lie in files, at most: each file is open.
const FILES_MAX: u64 = 256;

/// Where the sessions of a proxy keep the rows of their held cursors.
#[derive(Debug)]
pub(crate) struct HeldRoom {
    spool: SpoolDirectory,
    memory_bytes: Arc<AtomicU64>,
    files: Arc<AtomicU64>,
}

impl HeldRoom {
    /// Files are made in this directory.
    pub(crate) fn new(spool: SpoolDirectory) -> Self {
        Self {
            spool,
            memory_bytes: Arc::default(),
            files: Arc::default(),
        }
    }
}

/// A part of something that all sessions share; given back when it is dropped.
#[derive(Debug)]
struct Share {
    of: Arc<AtomicU64>,
    count: u64,
}

impl Share {
    fn take(of: &Arc<AtomicU64>, count: u64, most: u64) -> Option<Self> {
        let taken = |used: u64| used.checked_add(count).filter(|used| *used <= most);
        of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok()?;
        Some(Self {
            of: Arc::clone(of),
            count,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Some rows that lie together.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: u64,
    start: u64,
    end: u64,
}

#[derive(Debug)]
enum Place {
    Memory(Bytes, #[allow(dead_code, reason = "given back at the end")] Share),
    File(SpoolFile, #[allow(dead_code, reason = "given back at the end")] Share),
    Nothing,
}

/// The rows of a cursor, as DataRow messages.
#[derive(Debug)]
pub(super) struct Rows {
    place: Place,
    blocks: Vec<Block>,
    count: u64,
    bytes: u64,
}

impl Rows {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of all rows.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The block with this row.
    pub(super) fn block_of(&self, row: u64) -> Option<usize> {
        let after = self.blocks.partition_point(|block| block.first <= row);
        after.checked_sub(1).filter(|_| row < self.count)
    }

    /// A block: the number of its first row, and its messages. Reads a file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn block(&self, index: usize) -> io::Result<(u64, Bytes)> {
        let Some(block) = self.blocks.get(index) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let length = usize::try_from(block.end - block.start).map_err(io::Error::other)?;
        let bytes = match &self.place {
            Place::Memory(bytes, _) => bytes.clone(),
            Place::File(file, _) => {
                let mut bytes = vec![0; length];
                file.read_at(block.start, &mut bytes)?;
                bytes.into()
            }
            Place::Nothing => Bytes::new(),
        };
        Ok((block.first, bytes))
    }
}

/// Takes the rows of a cursor as they come. Everything writes a file: callers run it where that holds nobody up.
#[derive(Debug)]
pub(super) struct RowWriter {
    room: Arc<HeldRoom>,
    file: Option<(SpoolFile, Share)>,
    blocks: Vec<Block>,
    /// Rows of the block that is not written yet.
    pending: Vec<u8>,
    /// The first row of it.
    pending_first: u64,
    count: u64,
    bytes: u64,
}

impl RowWriter {
    pub(super) fn new(room: Arc<HeldRoom>) -> Self {
        Self {
            room,
            file: None,
            blocks: Vec::new(),
            pending: Vec::new(),
            pending_first: 0,
            count: 0,
            bytes: 0,
        }
    }

    /// Bytes of all rows so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a DataRow message.
    ///
    /// # Errors
    /// When there is no room, or the file system refuses.
    pub(super) fn push(&mut self, row: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(row);
        self.count += 1;
        self.bytes += row.len() as u64;
        match self.pending.len() >= BLOCK_BYTES {
            true => self.put_out(),
            false => Ok(()),
        }
    }

    fn put_out(&mut self) -> io::Result<()> {
        let (file, _) = match &mut self.file {
            Some(file) => file,
            None => {
                let share = Share::take(&self.room.files, 1, FILES_MAX);
                let share = share.ok_or(io::ErrorKind::QuotaExceeded)?;
                self.file.insert((self.room.spool.create()?, share))
            }
        };
        let start = file.length();
        file.append(&self.pending)?;
        self.blocks.push(Block {
            first: self.pending_first,
            start,
            end: file.length(),
        });
        self.pending_first = self.count;
        self.pending.clear();
        Ok(())
    }

    /// All rows.
    ///
    /// # Errors
    /// When there is no room, or the file system refuses.
    pub(super) fn finish(mut self) -> io::Result<Rows> {
        let bytes = self.pending.len() as u64;
        if self.file.is_none()
            && self.pending.len() <= MEMORY_BYTES_MAX
            && let Some(share) = Share::take(&self.room.memory_bytes, bytes, ALL_MEMORY_BYTES_MAX)
        {
            let whole = Block {
                first: 0,
                start: 0,
                end: bytes,
            };
            return Ok(Rows {
                place: Place::Memory(std::mem::take(&mut self.pending).into_boxed_slice().into(), share),
                blocks: vec![whole],
                count: self.count,
                bytes: self.bytes,
            });
        }
        if !self.pending.is_empty() {
            self.put_out()?;
        }
        Ok(Rows {
            place: self
                .file
                .map_or(Place::Nothing, |(file, share)| Place::File(file, share)),
            blocks: self.blocks,
            count: self.count,
            bytes: self.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(rows: u64, width: usize) -> (Arc<HeldRoom>, Rows) {
        let room = Arc::new(HeldRoom::new(SpoolDirectory::new(std::env::temp_dir(), 1 << 24)));
        let mut writer = RowWriter::new(Arc::clone(&room));
        (0..rows).for_each(|row| writer.push(&vec![row as u8; width]).unwrap());
        (Arc::clone(&room), writer.finish().unwrap())
    }

    #[test]
    fn few_rows_stay_in_memory_and_many_do_not() {
        for (rows, width, in_file) in [(0, 1, false), (10, 10, false), (400, 100, true), (5, 100_000, true)] {
            let (room, kept) = kept(rows, width);
            assert_eq!(kept.count(), rows);
            assert_eq!(matches!(kept.place, Place::File(..)), in_file, "{rows} {width}");
            for row in 0..rows {
                let (first, bytes) = kept.block(kept.block_of(row).unwrap()).unwrap();
                let at = (row - first) as usize * width;
                assert!(bytes[at..at + width].iter().all(|byte| *byte == row as u8), "{row}");
            }
            assert_eq!(kept.block_of(rows), None);
            drop(kept);
            assert_eq!(room.memory_bytes.load(Ordering::Relaxed), 0);
            assert_eq!(room.files.load(Ordering::Relaxed), 0);
            assert_eq!(room.spool.bytes_used(), 0);
        }
    }

    #[test]
    fn files_are_bounded() {
        let room = Arc::new(HeldRoom::new(SpoolDirectory::new(std::env::temp_dir(), 1 << 20)));
        let mut writer = RowWriter::new(Arc::clone(&room));
        let pushed = (0..30).try_for_each(|_| writer.push(&[0; BLOCK_BYTES]));
        assert_eq!(pushed.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        let share = Share::take(&room.files, FILES_MAX - 1, FILES_MAX).unwrap();
        let mut other = RowWriter::new(Arc::clone(&room));
        assert_eq!(
            other.push(&[0; BLOCK_BYTES]).unwrap_err().kind(),
            io::ErrorKind::QuotaExceeded
        );
        drop((share, writer));
        other.push(&[0; BLOCK_BYTES]).unwrap();
    }
}
