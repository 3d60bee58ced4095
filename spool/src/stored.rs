//! A result in a file, in chunks of whole messages.

use std::io;

use sql::result::{Digested, ResultDigester, ResultDigests, chunk_digest, messages};

use crate::directory::{SpoolDirectory, SpoolFile};
use crate::sorted::SortedHashes;

/// Writes a result into a file, chunk by chunk.
#[derive(Debug)]
pub struct ChunkWriter {
    file: SpoolFile,
    digester: ResultDigester<SortedHashes>,
    /// Where each chunk ends.
    ends: Vec<u64>,
    digests: Vec<[u8; 32]>,
    last_tag: u8,
}

impl ChunkWriter {
    /// An empty result.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn new(directory: &SpoolDirectory) -> io::Result<Self> {
        Ok(Self {
            file: directory.create()?,
            digester: ResultDigester::new(SortedHashes::new(directory)),
            ends: Vec::new(),
            digests: Vec::new(),
            last_tag: 0,
        })
    }

    /// Adds a chunk.
    ///
    /// # Errors
    /// When it does not consist of whole messages, when there is no room, or when the file system refuses.
    pub fn append(&mut self, chunk: &[u8]) -> io::Result<()> {
        for message in messages(chunk) {
            let (tag, message) = message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.digester.message(tag, message)?;
            self.last_tag = tag;
        }
        self.file.append(chunk)?;
        self.ends.push(self.file.length());
        self.digests.push(chunk_digest(chunk));
        Ok(())
    }

    /// The whole result.
    ///
    /// # Errors
    /// When what was kept meanwhile cannot be read back.
    pub fn finish(self) -> io::Result<StoredResult> {
        Ok(StoredResult {
            file: self.file,
            digested: self.digester.end()?,
            ends: self.ends,
            digests: self.digests,
            failed: self.last_tag == b'E',
        })
    }
}

/// A result in a file.
#[derive(Debug)]
pub struct StoredResult {
    file: SpoolFile,
    digested: Digested,
    ends: Vec<u64>,
    digests: Vec<[u8; 32]>,
    failed: bool,
}

impl StoredResult {
    /// The digests of the whole, given the status byte.
    pub fn digests(&self, status: u8) -> ResultDigests {
        self.digested.finish(status)
    }

    /// The digests of the chunks.
    pub fn chunk_digests(&self) -> &[[u8; 32]] {
        &self.digests
    }

    /// Bytes of all chunks.
    pub fn length(&self) -> u64 {
        self.file.length()
    }

    /// Whether an ErrorResponse ends it.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// A chunk; `None` when there is none of this number.
    ///
    /// # Errors
    /// When it cannot be read back.
    pub fn chunk(&self, index: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(end) = self.ends.get(index) else {
            return Ok(None);
        };
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before));
        let start = start.copied().unwrap_or(0);
        let mut chunk = vec![0; usize::try_from(end - start).unwrap_or(0)];
        self.file.read_at(start, &mut chunk)?;
        Ok(Some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Vec<u8> {
        let mut bytes = vec![b'D'];
        bytes.extend_from_slice(&(text.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    #[test]
    fn what_is_stored_in_chunks_has_the_digests_of_the_whole() {
        let place = tempfile::tempdir().unwrap();
        let directory = SpoolDirectory::new(place.path(), 1 << 20);
        let chunks: Vec<Vec<u8>> = (0..10)
            .map(|chunk| {
                (0..7)
                    .flat_map(|number| row(&format!("{}", chunk * 7 + number)))
                    .collect()
            })
            .collect();
        let mut writer = ChunkWriter::new(&directory).unwrap();
        chunks.iter().for_each(|chunk| writer.append(chunk).unwrap());
        let stored = writer.finish().unwrap();
        assert_eq!(
            stored.digests(b'T'),
            sql::result::digests(&chunks.concat(), b'T').unwrap()
        );
        for (index, chunk) in chunks.iter().enumerate() {
            assert_eq!(stored.chunk(index).unwrap().as_ref(), Some(chunk));
            assert_eq!(stored.chunk_digests()[index], chunk_digest(chunk));
        }
        assert_eq!(stored.chunk(10).unwrap(), None);
        assert!(!stored.failed());
    }

    #[test]
    fn a_chunk_of_broken_messages_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let mut writer = ChunkWriter::new(&SpoolDirectory::new(place.path(), 1 << 20)).unwrap();
        let row = row("abc");
        assert!(writer.append(&row[..row.len() - 1]).is_err());
    }
}
