//! What a backend answered, as it goes into the vote: canonical, bounded.

use bytes::{BufMut, Bytes, BytesMut};
use sql::operation::ExchangeResult;

use super::PostgresError;
use super::connection::{HEADER_BYTES, Message};

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
    /// Whether the error speaks of the server rather than of the statement (DESIGN.md section 3): no result. All else is a
    /// result, 08P01 of a Bind that does not fit and class XX included: every server says so alike. So is what a function
    /// raises by itself, whatever its class.
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

/// Collects the messages that belong to the client's exchange.
#[derive(Debug)]
pub struct Capture {
    messages: BytesMut,
    bytes_max: usize,
    too_large: bool,
}

impl Capture {
    /// Nothing yet; at most `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            messages: BytesMut::new(),
            bytes_max,
            too_large: false,
        }
    }

    /// Adds a message in its canonical form.
    pub fn add(&mut self, message: &Message) {
        if message.frame.is_empty() {
            self.too_large = true;
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
        if self.too_large || self.messages.len() + bytes.len() > self.bytes_max {
            self.too_large = true;
            self.messages = BytesMut::new();
            return;
        }
        self.messages.extend_from_slice(bytes);
    }

    /// The result; `None` when it is larger than the limit.
    pub fn finish(self, status: u8) -> Option<ExchangeResult> {
        (!self.too_large).then(|| ExchangeResult {
            messages: self.messages.freeze(),
            status,
        })
    }
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

    #[test]
    fn user_tables_are_not_named_by_oid_and_system_tables_are() {
        let mut capture = Capture::new(1000);
        capture.add(&row_description(16_400, 2));
        let user = capture.finish(b'I').unwrap();
        assert_eq!(user.messages, row_description(0, 0).frame);
        let mut capture = Capture::new(1000);
        capture.add(&row_description(1259, 2));
        assert_eq!(capture.finish(b'I').unwrap().messages, row_description(1259, 2).frame);
    }

    #[test]
    fn a_cut_off_row_description_does_no_harm() {
        let whole = row_description(16_400, 2).frame;
        for length in 0..whole.len() {
            canonical_row_description(&whole.slice(..length));
        }
    }

    #[test]
    fn a_result_above_the_limit_is_none() {
        let mut capture = Capture::new(10);
        capture.add_bytes(&[0; 11]);
        assert!(capture.finish(b'I').is_none());
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
