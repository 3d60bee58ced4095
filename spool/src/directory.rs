//! Files without names, in one directory, bounded in bytes together.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory for temporary files. Its clones share one limit.
#[derive(Clone, Debug)]
pub struct SpoolDirectory {
    path: Arc<Path>,
    bytes_max: u64,
    used: Arc<AtomicU64>,
}

impl SpoolDirectory {
    /// A directory (made when it is first used) for at most so many bytes.
    pub fn new(path: impl Into<PathBuf>, bytes_max: u64) -> Self {
        Self {
            path: path.into().into(),
            bytes_max,
            used: Arc::default(),
        }
    }

    /// The most that its files may hold together.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Bytes that its files hold now.
    pub fn bytes_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// An empty file, which is gone when it is dropped or the process ends.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(&self) -> io::Result<SpoolFile> {
        let file = match tempfile::tempfile_in(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.path)?;
                tempfile::tempfile_in(&self.path)?
            }
            file => file?,
        };
        Ok(SpoolFile {
            file,
            length: 0,
            directory: self.clone(),
        })
    }

    fn claim(&self, bytes: u64) -> io::Result<()> {
        let claimed = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.bytes_max);
        let updated = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claimed);
        updated.map(|_| ()).map_err(|_| io::ErrorKind::QuotaExceeded.into())
    }
}

/// A file of a [`SpoolDirectory`].
#[derive(Debug)]
pub struct SpoolFile {
    file: File,
    length: u64,
    directory: SpoolDirectory,
}

impl SpoolFile {
    /// Writes behind what was written.
    ///
    /// # Errors
    /// When the directory's limit is reached, or the file system refuses.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = bytes.len() as u64;
        self.directory.claim(count)?;
        let start = self.length;
        // Claimed bytes count as the file's also when the write fails.
        self.length += count;
        self.file.write_all_at(bytes, start)
    }

    /// Reads exactly as much as `buffer` holds.
    ///
    /// # Errors
    /// When the file is shorter, or cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Bytes that were written.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Forgets everything that was written.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.directory.used.fetch_sub(self.length, Ordering::Relaxed);
        self.length = 0;
        Ok(())
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        self.directory.used.fetch_sub(self.length, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_no_names_and_share_one_limit() {
        let place = tempfile::tempdir().unwrap();
        let directory = SpoolDirectory::new(place.path().join("results"), 100);
        let mut one = directory.create().unwrap();
        let mut other = directory.create().unwrap();
        one.append(&[1; 60]).unwrap();
        assert_eq!(other.append(&[2; 41]).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        other.append(&[2; 40]).unwrap();
        assert_eq!(std::fs::read_dir(place.path().join("results")).unwrap().count(), 0);
        let mut read = [0; 60];
        one.read_at(0, &mut read).unwrap();
        assert_eq!(read, [1; 60]);
        drop(one);
        assert_eq!(directory.bytes_used(), 40);
        other.clear().unwrap();
        assert_eq!(directory.bytes_used(), 0);
    }
}
