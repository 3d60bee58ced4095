//! Segment files: opening, checking, cutting off a torn tail, reading.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::LogError;
use super::record::{self, HEADER_BYTES, RECORD_BYTES_MAX, Record};
use crate::private;

/// A segment file and the position of its first record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) first: u64,
    pub(super) path: PathBuf,
}

/// The segment file that starts at a position.
pub(super) fn path(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}.log"))
}

/// All segments of a directory, ascending.
pub(super) fn list(directory: &Path) -> Result<Vec<Segment>, LogError> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory).map_err(LogError::file(directory))? {
        let path = entry.map_err(LogError::file(directory))?.path();
        let first = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".log"));
        if let Some(first) = first.and_then(|digits| digits.parse().ok()) {
            segments.push(Segment { first, path });
        }
    }
    segments.sort_by_key(|segment| segment.first);
    Ok(segments)
}

/// What opening found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) segments: Vec<Segment>,
    /// The position that is appended next.
    pub(super) next: u64,
    /// All segments together, in bytes.
    pub(super) bytes: u64,
    /// Bytes of a torn tail that were cut off.
    pub(super) torn_bytes: u64,
}

/// Reads every record, cuts off a torn tail, and refuses damage to what was durable.
pub(super) fn check(directory: &Path) -> Result<Checked, LogError> {
    let segments = list(directory)?;
    let mut checked = Checked {
        next: segments.first().map_or(1, |segment| segment.first),
        segments,
        bytes: 0,
        torn_bytes: 0,
    };
    let mut segments = checked.segments.iter().peekable();
    while let Some(segment) = segments.next() {
        let corrupt = |position| LogError::Corrupt {
            path: segment.path.clone(),
            position,
        };
        if segment.first != checked.next {
            return Err(corrupt(checked.next));
        }
        let contents = fs::read(&segment.path).map_err(LogError::file(&segment.path))?;
        let mut at = 0;
        while let Some((record, size)) = record::decode(contents.get(at..).unwrap_or_default()) {
            if record.position != checked.next {
                return Err(corrupt(checked.next));
            }
            at += size;
            checked.next += 1;
        }
        checked.bytes += at as u64;
        if at == contents.len() {
            continue;
        }
        if segments.peek().is_some() || promised_beyond(contents.get(at..).unwrap_or_default(), checked.next) {
            return Err(corrupt(checked.next));
        }
        checked.torn_bytes = (contents.len() - at) as u64;
        cut(&segment.path, at as u64)?;
    }
    Ok(checked)
}

/// Whether a readable record beyond the damage says that `position` was durable.
fn promised_beyond(bytes: &[u8], position: u64) -> bool {
    (1..bytes.len().saturating_sub(HEADER_BYTES - 1)).any(|at| {
        let rest = bytes.get(at..).unwrap_or_default();
        let written = |from: usize| {
            rest.get(from..from + 8)
                .and_then(|digits| digits.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        // The cheap look first: hashing at every offset would be quadratic.
        let plausible = written(4) > position && written(4) - position < 1 << 32 && written(12) >= position;
        plausible && record::decode(rest).is_some()
    })
}

fn cut(path: &Path, bytes: u64) -> Result<(), LogError> {
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(LogError::file(path))?;
    file.set_len(bytes)
        .and_then(|()| file.sync_all())
        .map_err(LogError::file(path))
}

/// Reads records in order, from a position on, to the end of what is written.
///
/// Reads beside the writer, which may remove segments: a segment that is gone ends the reading. What has begun to be
/// read stays readable.
pub struct Reader {
    segments: std::vec::IntoIter<Segment>,
    file: Option<BufReader<File>>,
    from: u64,
}

impl Reader {
    /// Starts at `from`, or at the oldest record that is still there.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn open(directory: &Path, from: u64) -> Result<Self, LogError> {
        let mut segments = list(directory)?;
        let first = segments.iter().rposition(|segment| segment.first <= from).unwrap_or(0);
        segments.drain(..first);
        Ok(Self {
            segments: segments.into_iter(),
            file: None,
            from,
        })
    }

    /// The next record; `None` at the end, which may be in the middle of a record that is being written.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn next_record(&mut self) -> Result<Option<Record>, std::io::Error> {
        loop {
            let Some(file) = &mut self.file else {
                let Some(segment) = self.segments.next() else {
                    return Ok(None);
                };
                match File::open(&segment.path) {
                    Ok(file) => self.file = Some(BufReader::new(file)),
                    // Cut off meanwhile; so are all before it, and what comes after would leave a gap.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        self.segments = Vec::new().into_iter()
                    }
                    Err(error) => return Err(error),
                }
                continue;
            };
            match read_record(file, self.from)? {
                None => self.file = None,
                Some(record) if record.position < self.from => {}
                Some(record) => {
                    self.from = record.position + 1;
                    return Ok(Some(record));
                }
            }
        }
    }
}

/// One record; those below `from` are skipped over without reading their payload.
fn read_record(file: &mut BufReader<File>, from: u64) -> Result<Option<Record>, std::io::Error> {
    let mut bytes = vec![0_u8; HEADER_BYTES];
    if !fill(file, &mut bytes)? {
        return Ok(None);
    }
    let length = bytes.first_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length)) as usize;
    let position = bytes
        .get(4..12)
        .and_then(|eight| eight.try_into().ok())
        .map_or(0, u64::from_le_bytes);
    if length > RECORD_BYTES_MAX {
        return Ok(None);
    }
    if position < from {
        file.seek_relative(i64::try_from(length).unwrap_or(i64::MAX))?;
        return Ok(Some(Record {
            position,
            durable: 0,
            payload: bytes::Bytes::new(),
        }));
    }
    bytes.resize(HEADER_BYTES + length, 0);
    if !fill(file, bytes.get_mut(HEADER_BYTES..).unwrap_or_default())? {
        return Ok(None);
    }
    Ok(record::decode(&bytes).map(|(record, _)| record))
}

/// Fills the buffer; false at the end of the file.
fn fill(file: &mut BufReader<File>, buffer: &mut [u8]) -> Result<bool, std::io::Error> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a segment for appending, and makes its name durable.
pub(super) fn open_for_append(directory: &Path, first: u64) -> Result<File, LogError> {
    let path = path(directory, first);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(private::FILE_MODE)
        .open(&path)
        .map_err(LogError::file(&path))?;
    file.seek(SeekFrom::End(0)).map_err(LogError::file(&path))?;
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(LogError::file(directory))?;
    Ok(file)
}
