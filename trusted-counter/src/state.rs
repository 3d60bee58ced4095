//! What a counter keeps on disk: its secret (mode 0600) and its epoch.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::warrant::CounterError;

/// A counter's directory, held by one process at a time.
///
/// Opening it raises the epoch and makes that durable (write, fsync, rename, fsync of the directory) before any
/// warrant of the epoch exists. So a restarted counter can never certify a value twice.
///
/// An epoch is the wall clock at its start, in microseconds since 1970, or one more than the stored epoch where that is
/// higher. So a counter whose directory was emptied, but for its key, begins an epoch above all earlier ones too, as long
/// as its clock has not been set back (`docs/decisions/0027`).
#[derive(Debug)]
pub struct CounterState {
    directory: PathBuf,
    /// Holds the lock until it is dropped.
    _lock: File,
}

impl CounterState {
    /// Locks the directory (made if missing) and starts the next epoch.
    pub fn open(directory: &Path) -> Result<(Self, u64), CounterError> {
        Self::open_at(directory, wall_us())
    }

    /// [`CounterState::open`] at this time, in microseconds since 1970.
    pub(crate) fn open_at(directory: &Path, wall_us: u64) -> Result<(Self, u64), CounterError> {
        std::fs::create_dir_all(directory)?;
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CounterError::InUse(directory.display().to_string())),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let state = CounterState {
            directory: directory.to_owned(),
            _lock: lock,
        };
        let epoch = state.next_epoch(wall_us)?;
        Ok((state, epoch))
    }

    /// Starts the next epoch while the counter is open.
    pub(crate) fn begin_epoch(&self) -> Result<u64, CounterError> {
        self.next_epoch(wall_us())
    }

    /// Raises the epoch durably.
    fn next_epoch(&self, wall_us: u64) -> Result<u64, CounterError> {
        let path = self.directory.join("counter.epoch");
        let stored = match read_file(&path)? {
            None => 0,
            Some(bytes) => decode_epoch(&bytes).ok_or_else(|| damaged(&path, "not an epoch with its checksum"))?,
        };
        let epoch = stored
            .checked_add(1)
            .ok_or_else(|| damaged(&path, "no epoch is left"))?
            .max(wall_us);
        replace(&self.directory, "counter.epoch", &encode_epoch(epoch))?;
        Ok(epoch)
    }

    /// The 32-byte secret in the file `name`; made at random, with mode 0600, if it does not exist.
    pub fn secret(&self, name: &str) -> Result<[u8; 32], CounterError> {
        Self::provision(&self.directory, name)
    }

    /// [`CounterState::secret`] without opening the counter.
    pub(crate) fn provision(directory: &Path, name: &str) -> Result<[u8; 32], CounterError> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join(name);
        if let Some(bytes) = read_file(&path)? {
            let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(damaged(&path, &format!("its mode is {mode:o}, it must be 600")));
            }
            return bytes.try_into().map_err(|_| damaged(&path, "not 32 bytes"));
        }
        let secret = random_bytes()?;
        replace(directory, name, &secret)?;
        Ok(secret)
    }
}

/// The wall clock, in microseconds since 1970.
fn wall_us() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_micros()).unwrap_or(0)
}

/// 32 bytes from the operating system.
pub(crate) fn random_bytes() -> Result<[u8; 32], CounterError> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn damaged(path: &Path, reason: &str) -> CounterError {
    CounterError::Damaged {
        path: path.display().to_string(),
        reason: reason.to_owned(),
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, CounterError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn encode_epoch(epoch: u64) -> Vec<u8> {
    let mut bytes = epoch.to_le_bytes().to_vec();
    bytes.extend_from_slice(blake3::hash(&epoch.to_le_bytes()).as_bytes());
    bytes
}

fn decode_epoch(bytes: &[u8]) -> Option<u64> {
    let (epoch, checksum) = bytes.split_first_chunk::<8>()?;
    (blake3::hash(epoch).as_bytes() == checksum).then(|| u64::from_le_bytes(*epoch))
}

/// Replaces a file as one durable step.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), CounterError> {
    let temporary = directory.join(format!("{name}.new"));
    // A leftover of a crash may have any mode: start over.
    match std::fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch_at(directory: &Path, wall_us: u64) -> u64 {
        CounterState::open_at(directory, wall_us).unwrap().1
    }

    #[test]
    fn a_counter_that_forgot_its_epoch_begins_a_higher_one() {
        let directory = tempfile::tempdir().unwrap();
        let before = epoch_at(directory.path(), 1_000);
        let restarted = epoch_at(directory.path(), 1_000);
        assert!(restarted > before, "restarted within the same microsecond");
        std::fs::remove_file(directory.path().join("counter.epoch")).unwrap();
        assert!(epoch_at(directory.path(), 2_000) > restarted);
    }

    #[test]
    fn an_epoch_that_was_rolled_back_is_not_used_again() {
        let directory = tempfile::tempdir().unwrap();
        epoch_at(directory.path(), 1_000);
        let path = directory.path().join("counter.epoch");
        let old = std::fs::read(&path).unwrap();
        let used = epoch_at(directory.path(), 2_000);
        std::fs::write(&path, old).unwrap();
        assert!(epoch_at(directory.path(), 3_000) > used);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_lower_the_epoch() {
        let directory = tempfile::tempdir().unwrap();
        let before = epoch_at(directory.path(), 5_000);
        assert_eq!(epoch_at(directory.path(), 17), before + 1);
    }
}
