//! The thread that writes, and the handle to it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};

use super::record;
use super::segment::{self, Segment};
use super::{LogError, NEW_FILE, Reader};
use crate::private;

/// What waits for the writer at most, in records; agreement's own windows are far smaller.
const WAITING_RECORDS_MAX: usize = 16_384;
/// What is written at once at most, in bytes.
const WRITE_BYTES_MAX: usize = 8 << 20;

/// What the writer reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// Everything up to this position is durable.
    Durable(u64),
    /// Writing failed. Nothing can be promised any more: the process must end.
    Failed,
}

enum Command {
    Append(Bytes),
    Cut(u64),
}

/// The handle to an open log. Dropping it writes what waits, and closes the log.
pub struct Log {
    directory: PathBuf,
    commands: Option<SyncSender<Command>>,
    writer: Option<std::thread::JoinHandle<()>>,
    next: AtomicU64,
    sizes: Arc<Sizes>,
    is_lost: bool,
    _lock: Flock<File>,
}

struct Sizes {
    bytes: AtomicU64,
    segments: Mutex<Vec<(Segment, u64)>>,
}

impl Log {
    /// Opens or creates the log of a directory, and starts its writer, which reports through `notify`.
    ///
    /// # Errors
    /// When the directory cannot be used, another process uses it, or durable records are damaged.
    pub fn open(
        directory: &Path,
        segment_bytes: u64,
        notify: impl Fn(LogEvent) + Send + 'static,
    ) -> Result<Log, LogError> {
        private::make_directory(directory).map_err(LogError::file(directory))?;
        let lock = lock(directory)?;
        let checked = segment::check(directory)?;
        if checked.torn_bytes > 0 {
            tracing::warn!(bytes = checked.torn_bytes, "the log's tail was torn; cut off");
        }
        let mut segments = Vec::new();
        for segment in &checked.segments {
            private::restrict_file(&segment.path).map_err(LogError::file(&segment.path))?;
            let bytes = fs::metadata(&segment.path)
                .map_err(LogError::file(&segment.path))?
                .len();
            segments.push((segment.clone(), bytes));
        }
        let current = checked.segments.last().map_or(checked.next, |segment| segment.first);
        let file = segment::open_for_append(directory, current)?;
        if segments.is_empty() {
            segments.push((
                Segment {
                    first: current,
                    path: segment::path(directory, current),
                },
                0,
            ));
        }
        // What was found readable may never have been synced: make it so before anything rests on it.
        file.sync_all().map_err(LogError::file(directory))?;
        let sizes = Arc::new(Sizes {
            bytes: AtomicU64::new(checked.bytes),
            segments: Mutex::new(segments),
        });
        let (commands, waiting) = sync_channel(WAITING_RECORDS_MAX);
        let new = Some(directory.join(NEW_FILE)).filter(|path| path.exists());
        let is_lost = checked.next == 1 && new.is_none();
        let writer = Writer {
            directory: directory.to_owned(),
            new,
            segment_bytes,
            file,
            next: checked.next,
            durable: checked.next - 1,
            sizes: Arc::clone(&sizes),
        };
        let writer = std::thread::Builder::new()
            .name(String::from("log"))
            .spawn(move || writer.run(&waiting, notify))
            .map_err(LogError::file(directory))?;
        let (commands, writer) = (Some(commands), Some(writer));
        let next = AtomicU64::new(checked.next);
        Ok(Log {
            directory: directory.to_owned(),
            commands,
            writer,
            next,
            sizes,
            is_lost,
            _lock: lock,
        })
    }

    /// Whether there was nothing in the directory when it was opened, not even the word that nothing was ever written: what
    /// this machine has said before is forgotten.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Appends a record and returns its position. It is durable when [`LogEvent::Durable`] says so.
    /// One caller only: positions are given in the order of the calls.
    pub fn append(&self, payload: Bytes) -> u64 {
        self.command(Command::Append(payload));
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    /// The position of the next append.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Allows to remove what is below a position; whole segments go.
    pub fn cut_below(&self, position: u64) {
        self.command(Command::Cut(position));
    }

    /// Reads from a position on (see [`Reader`]).
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn read(&self, from: u64) -> Result<Reader, LogError> {
        Reader::open(&self.directory, from)
    }

    /// The log's directory, for readers on other threads.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The size of all segments, in bytes.
    pub fn bytes(&self) -> u64 {
        self.sizes.bytes.load(Ordering::Relaxed)
    }

    fn command(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // Fails only when the writer has ended after it reported `Failed`.
            let _ = commands.send(command);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn lock(directory: &Path) -> Result<Flock<File>, LogError> {
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(private::FILE_MODE)
        .open(&path)
        .map_err(LogError::file(&path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| LogError::Locked { path })
}

struct Writer {
    directory: PathBuf,
    /// The file that says that the log is new: removed before anybody hears that something is durable.
    new: Option<PathBuf>,
    segment_bytes: u64,
    file: File,
    next: u64,
    durable: u64,
    sizes: Arc<Sizes>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Command>, notify: impl Fn(LogEvent)) {
        let mut buffer = Vec::new();
        loop {
            let mut command = match waiting.recv_timeout(Duration::from_secs(3600)) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            while let Some(current) = command {
                match current {
                    Command::Append(payload) => {
                        record::encode(&mut buffer, self.next, self.durable, &payload);
                        self.next += 1;
                    }
                    Command::Cut(position) => self.cut_below(position),
                }
                command = if buffer.len() < WRITE_BYTES_MAX {
                    waiting.try_recv().ok()
                } else {
                    None
                };
            }
            if buffer.is_empty() {
                continue;
            }
            if let Err(error) = self.write(&buffer) {
                tracing::error!(%error, "the log cannot be written");
                notify(LogEvent::Failed);
                return;
            }
            buffer.clear();
            buffer.shrink_to(WRITE_BYTES_MAX);
            notify(LogEvent::Durable(self.durable));
        }
    }

    fn write(&mut self, buffer: &[u8]) -> Result<(), LogError> {
        let started = Instant::now();
        self.file.write_all(buffer).map_err(LogError::file(&self.directory))?;
        self.file.sync_data().map_err(LogError::file(&self.directory))?;
        if let Some(path) = self.new.take() {
            fs::remove_file(&path)
                .and_then(|()| File::open(&self.directory)?.sync_all())
                .map_err(LogError::file(&path))?;
        }
        metrics::histogram!("cloudbft_log_fsync_duration_seconds").record(started.elapsed().as_secs_f64());
        self.durable = self.next - 1;
        self.sizes.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let mut segments = self.sizes.segments.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, bytes)) = segments.last_mut() else {
            return Ok(());
        };
        *bytes += buffer.len() as u64;
        if *bytes >= self.segment_bytes {
            self.file = segment::open_for_append(&self.directory, self.next)?;
            segments.push((
                Segment {
                    first: self.next,
                    path: segment::path(&self.directory, self.next),
                },
                0,
            ));
        }
        Ok(())
    }

    fn cut_below(&mut self, position: u64) {
        let mut segments = self.sizes.segments.lock().unwrap_or_else(PoisonError::into_inner);
        while segments.get(1).is_some_and(|(second, _)| second.first <= position) {
            let (segment, bytes) = segments.remove(0);
            self.sizes.bytes.fetch_sub(bytes, Ordering::Relaxed);
            if let Err(error) = fs::remove_file(&segment.path) {
                tracing::warn!(%error, path = %segment.path.display(), "a log segment cannot be removed");
            }
        }
    }
}
