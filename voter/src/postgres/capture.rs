//! What a backend answered, as it goes into the vote: canonical, bounded.

use bytes::{BufMut, Bytes, BytesMut};
use spool::{ChunkWriter, SpoolDirectory};
use sql::operation::ExchangeResult;

use super::PostgresError;
use super::connection::{HEADER_BYTES, Message};
use crate::config::VoterConfig;
use crate::outcome::LargeResult;

/// OIDs from here on belong to user objects and differ between servers.
const FIRST_USER_OID: u32 = 16_384;

/// Fields of an ErrorResponse that the voter looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// SQLSTATE.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// The routine that reported it.
    pub routine: String,
}

impl ServerError {
    /// Whether the error speaks of the server rather than of the statement (rule LocalFaults): no result. All else is a
    /// result, 08P01 of a Bind that does not fit and class XX included: every server says so alike. So is what a
    /// function raises by itself, whatever its class.
    pub fn is_server_fault(&self) -> bool {
        let class = self.sqlstate.get(..2).unwrap_or_default();
        let code = self.sqlstate.as_str();
        let fault = (matches!(class, "08" | "53" | "57" | "58") && code != "08P01")
            || matches!(code, "40001" | "40P01" | "55P03");
        // 57014 of CopyGetData: the application gave its COPY up (CopyFail), which every server is told alike.
        let copy_failed = code == "57014" && self.routine == "CopyGetData";
        fault && !copy_failed && self.routine != "exec_stmt_raise"
    }
}

impl From<ServerError> for PostgresError {
    fn from(error: ServerError) -> Self {
        PostgresError::Server {
            sqlstate: error.sqlstate,
            message: error.message,
        }
    }
}

/// The fields of an ErrorResponse's body; what is malformed stays empty.
pub fn error_fields(body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, value)) = field.split_first() else {
            continue;
        };
        let value = String::from_utf8_lossy(value).into_owned();
        match kind {
            b'C' => error.sqlstate = value,
            b'M' => error.message = value,
            b'R' => error.routine = value,
            _ => {}
        }
    }
    error
}

/// How much of an answer is kept, and where.
#[derive(Clone, Debug)]
pub struct CaptureLimits {
    /// Above this many bytes, a result goes into a file, and travels in chunks.
    pub chunk_bytes: usize,
    /// The largest result, in bytes.
    pub result_bytes_max: u64,
    /// Where files lie.
    pub spool: SpoolDirectory,
}

impl CaptureLimits {
    /// Those of a voter.
    pub fn of(config: &VoterConfig) -> Self {
        Self {
            chunk_bytes: config.limits.chunk_bytes,
            result_bytes_max: config.limits.result_bytes_max,
            spool: config.spool.clone(),
        }
    }
}

/// Collects the messages that belong to the client's exchange: in memory, and above one chunk in a file.
#[derive(Debug)]
pub struct Capture {
    messages: BytesMut,
    limits: CaptureLimits,
    bytes: u64,
    writer: Option<Box<ChunkWriter>>,
    lost: Option<Lost>,
}

/// Why nothing is collected any more.
#[derive(Clone, Debug)]
enum Lost {
    /// It is larger than a result may be, alike on all voters.
    TooLarge,
    /// This machine has no room for it.
    NoRoom(String),
}

/// What was collected.
#[derive(Debug)]
pub enum Captured {
    /// A result that travels at once.
    Result(ExchangeResult),
    /// A larger one.
    Large(Box<LargeResult>),
    /// It is larger than a result may be.
    TooLarge,
    /// This machine has no room for it.
    NoRoom(String),
}

impl Capture {
    /// Nothing yet.
    pub fn new(limits: &CaptureLimits) -> Self {
        Self {
            messages: BytesMut::new(),
            limits: limits.clone(),
            bytes: 0,
            writer: None,
            lost: None,
        }
    }

    /// Adds a message in its canonical form.
    pub fn add(&mut self, message: &Message) {
        if message.frame.is_empty() {
            self.lose(Lost::TooLarge);
        }
        match message.tag {
            b'T' => {
                let canonical = canonical_row_description(&message.frame);
                self.add_bytes(&canonical);
            }
            b'D' if cfg!(feature = "lying-voter") => {
                let lie = altered(&message.frame);
                self.add_bytes(&lie);
            }
            _ => self.add_bytes(&message.frame),
        }
    }

    /// Adds a message that no server sent.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > self.limits.result_bytes_max {
            self.lose(Lost::TooLarge);
        }
        if self.lost.is_none() {
            self.messages.extend_from_slice(bytes);
        }
    }

    fn lose(&mut self, lost: Lost) {
        // That it is too large is said alike by all voters.
        if matches!(self.lost, None | Some(Lost::NoRoom(_))) {
            self.lost = Some(lost);
        }
        self.messages = BytesMut::new();
        self.writer = None;
    }

    /// Whether nothing is collected any more, since it cannot be kept.
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Whether a chunk is complete, and has to be put out before more is added.
    pub fn is_full(&self) -> bool {
        self.messages.len() > self.limits.chunk_bytes
    }

    /// Puts what is in memory into the file, as a chunk.
    pub async fn put_out(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        let (writer, spool) = (self.writer.take(), self.limits.spool.clone());
        let mut messages = std::mem::take(&mut self.messages);
        let written = tokio::task::spawn_blocking(move || {
            let mut writer = match writer {
                Some(writer) => writer,
                None => Box::new(ChunkWriter::new(&spool)?),
            };
            writer.append(&messages)?;
            messages.clear();
            Ok((writer, messages))
        });
        match flattened(written.await) {
            Ok((writer, messages)) => {
                self.writer = Some(writer);
                self.messages = messages;
            }
            Err(error) => self.lose(Lost::NoRoom(error.to_string())),
        }
    }

    /// What was collected.
    pub async fn finish(mut self, status: u8) -> Captured {
        if self.writer.is_some() || self.is_full() {
            self.put_out().await;
        }
        if let Some(writer) = self.writer.take() {
            match flattened(tokio::task::spawn_blocking(move || writer.finish()).await) {
                Ok(stored) => return Captured::Large(Box::new(LargeResult { stored, status })),
                Err(error) => self.lose(Lost::NoRoom(error.to_string())),
            }
        }
        match self.lost {
            Some(Lost::TooLarge) => Captured::TooLarge,
            Some(Lost::NoRoom(reason)) => Captured::NoRoom(reason),
            None => Captured::Result(ExchangeResult {
                messages: self.messages.freeze(),
                status,
            }),
        }
    }
}

fn flattened<T>(joined: Result<std::io::Result<T>, tokio::task::JoinError>) -> std::io::Result<T> {
    joined.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// Sets table OID and column number to 0 where they name a user's table. A malformed message stays as it is.
fn canonical_row_description(frame: &Bytes) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let mut at = HEADER_BYTES + 2;
    // Each field: name\0, table OID (4), column (2), type OID (4), size (2), modifier (4), format (2).
    while let Some(rest) = bytes.get(at..) {
        let Some(name_length) = rest.iter().position(|byte| *byte == 0) else {
            break;
        };
        let fixed = at + name_length + 1;
        let Some(origin) = bytes.get_mut(fixed..fixed + 6) else {
            break;
        };
        let oid = origin.first_chunk::<4>().map_or(0, |oid| u32::from_be_bytes(*oid));
        if oid >= FIRST_USER_OID {
            origin.fill(0);
        }
        at = fixed + 18;
    }
    bytes
}

/// A DataRow whose last byte is another one (feature `lying-voter`).
fn altered(frame: &Bytes) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    if bytes.len() > HEADER_BYTES + 2 + 4
        && let Some(last) = bytes.last_mut()
    {
        *last ^= 1;
    }
    bytes
}

/// A CommandComplete message.
pub fn command_complete(tag: &str) -> Bytes {
    let mut bytes = BytesMut::with_capacity(tag.len() + HEADER_BYTES + 1);
    bytes.put_u8(b'C');
    bytes.put_u32(u32::try_from(tag.len() + 5).unwrap_or(5));
    bytes.put_slice(tag.as_bytes());
    bytes.put_u8(0);
    bytes.freeze()
}

/// A ParseComplete message.
pub const PARSE_COMPLETE: &[u8] = &[b'1', 0, 0, 0, 4];

#[cfg(test)]
mod tests {
    use super::*;

    fn row_description(table: u32, column: u16) -> Message {
        let mut body = BytesMut::new();
        body.put_u16(1);
        body.put_slice(b"name\0");
        body.put_u32(table);
        body.put_u16(column);
        body.put_u32(25);
        body.put_u16(0xffff);
        body.put_u32(0xffff_ffff);
        body.put_u16(0);
        let mut frame = BytesMut::new();
        frame.put_u8(b'T');
        frame.put_u32(body.len() as u32 + 4);
        frame.put_slice(&body);
        Message {
            tag: b'T',
            frame: frame.freeze(),
        }
    }

    fn limits(chunk_bytes: usize, result_bytes_max: u64, room: u64) -> (tempfile::TempDir, CaptureLimits) {
        let place = tempfile::tempdir().unwrap();
        let limits = CaptureLimits {
            chunk_bytes,
            result_bytes_max,
            spool: SpoolDirectory::new(place.path(), room),
        };
        (place, limits)
    }

    async fn captured(limits: &CaptureLimits, rows: &[usize]) -> Captured {
        let mut capture = Capture::new(limits);
        for (number, bytes) in rows.iter().enumerate() {
            let mut row = vec![b'D'];
            row.put_u32(*bytes as u32 - 1);
            row.resize(*bytes, number as u8);
            capture.add_bytes(&row);
            if capture.is_full() {
                capture.put_out().await;
            }
        }
        capture.finish(b'I').await
    }

    #[tokio::test]
    async fn user_tables_are_not_named_by_oid_and_system_tables_are() {
        let (_place, limits) = limits(1000, 1000, 0);
        for (given, expected) in [
            (row_description(16_400, 2), row_description(0, 0)),
            (row_description(1259, 2), row_description(1259, 2)),
        ] {
            let mut capture = Capture::new(&limits);
            capture.add(&given);
            let Captured::Result(result) = capture.finish(b'I').await else {
                panic!("not a result");
            };
            assert_eq!(result.messages, expected.frame);
        }
    }

    #[test]
    fn a_cut_off_row_description_does_no_harm() {
        let whole = row_description(16_400, 2).frame;
        for length in 0..whole.len() {
            canonical_row_description(&whole.slice(..length));
        }
    }

    #[tokio::test]
    async fn a_result_travels_in_chunks_exactly_when_it_exceeds_one() {
        let (_place, limits) = limits(100, 1 << 20, 1 << 20);
        assert!(matches!(captured(&limits, &[50, 50]).await, Captured::Result(_)));
        for (rows, chunks) in [
            (&[50, 51][..], 1),
            (&[51, 50], 1),
            (&[101], 1),
            (&[101, 10], 2),
            (&[50, 50, 10, 10, 10], 2),
            (&[300, 300], 2),
        ] {
            let Captured::Large(large) = captured(&limits, rows).await else {
                panic!("{rows:?} is not large");
            };
            assert_eq!(large.stored.chunk_digests().len(), chunks, "{rows:?}");
            assert_eq!(large.stored.length(), rows.iter().sum::<usize>() as u64);
        }
        assert_eq!(limits.spool.bytes_used(), 0);
    }

    #[tokio::test]
    async fn a_result_above_the_limit_is_too_large_and_one_without_room_is_not_kept() {
        let (_place, limits) = limits(100, 1000, 500);
        assert!(matches!(captured(&limits, &[90; 5]).await, Captured::Large(_)));
        assert!(matches!(captured(&limits, &[90; 8]).await, Captured::NoRoom(_)));
        assert!(matches!(captured(&limits, &[90; 12]).await, Captured::TooLarge));
        assert_eq!(limits.spool.bytes_used(), 0);
    }

    #[test]
    fn what_a_function_raises_is_a_result_whatever_its_class() {
        let native = error_fields(b"C53100\0Mdisk full\0Relog\0\0");
        let raised = error_fields(b"C53100\0Mdisk full\0Rexec_stmt_raise\0\0");
        assert!(native.is_server_fault());
        assert!(!raised.is_server_fault());
        for result in [
            &b"C23505\0\0"[..],
            b"CXX000\0\0",
            b"C08P01\0\0",
            b"C57014\0RCopyGetData\0\0",
        ] {
            assert!(!error_fields(result).is_server_fault());
        }
        assert!(error_fields(b"C57014\0RProcessInterrupts\0\0").is_server_fault());
    }
}
