//! The durable log of a machine: what agreement must not forget.
//!
//! Append-only segment files of checksummed records, numbered by gap-free positions from 1. One thread writes:
//! whatever waits is written with one `write` and made durable with one `fdatasync` (group commit).
//!
//! Every record also says up to which position the log was durable when it was written. So a record that
//! cannot be read is either part of a tail that never became durable (it is cut off), or damage to something
//! that was promised (the log refuses to open: a replica that forgets what it said is a lying replica).

mod record;
mod segment;
mod writer;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::private;

pub use record::{RECORD_BYTES_MAX, Record};
pub use segment::Reader;
pub use writer::{Log, LogEvent};

/// A segment is closed when it reaches this size.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Says that a log is empty because nothing was ever written to it.
const NEW_FILE: &str = "new";

/// Makes the directory of a log that has never been used. One that is empty without this has lost what was in it.
///
/// # Errors
/// When it cannot be made.
pub fn provision(directory: &Path) -> Result<(), LogError> {
    let path = directory.join(NEW_FILE);
    let made = private::make_directory(directory).and_then(|()| private::write_file(&path, b""));
    made.and_then(|()| File::open(directory)?.sync_all())
        .map_err(LogError::file(&path))
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system failed.
    #[error("{path}: {source}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Durable records are damaged or missing.
    #[error(
        "{path}: record {position} was durable and is now unreadable; \
         this machine may not rejoin with this log: restore it, or remove the machine's directory and let it be repaired"
    )]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// The first position that is lost.
        position: u64,
    },
    /// Another process has the log open.
    #[error("{path}: another process uses this log; stop it first (`cloudbft down`)")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

impl LogError {
    fn file(path: &Path) -> impl Fn(io::Error) -> LogError + '_ {
        move |source| LogError::File {
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
