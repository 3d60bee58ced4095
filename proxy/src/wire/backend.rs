//! Messages to applications, gathered in one buffer and written at once.

use bytes::{BufMut, Bytes, BytesMut};
use ordering::message::Notification;

use crate::error::{ApplicationError, Severity};

/// Room for a session's usual response, in bytes.
const BUFFER_BYTES: usize = 8 << 10;

/// A buffer of backend messages.
#[derive(Debug)]
pub(crate) struct Backend {
    buffer: BytesMut,
}

impl Backend {
    pub(crate) fn new() -> Self {
        Self {
            buffer: BytesMut::with_capacity(BUFFER_BYTES),
        }
    }

    /// Everything written since the last call.
    pub(crate) fn take(&mut self) -> Bytes {
        self.buffer.split().freeze()
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Messages that are framed already.
    pub(crate) fn raw(&mut self, messages: &[u8]) {
        self.buffer.extend_from_slice(messages);
    }

    fn message(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        self.buffer.put_u8(tag);
        let start = self.buffer.len();
        self.buffer.put_u32(0);
        body(&mut self.buffer);
        let length = u32::try_from(self.buffer.len() - start).unwrap_or(u32::MAX);
        if let Some(place) = self.buffer.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }

    fn empty_message(&mut self, tag: u8) {
        self.buffer.extend_from_slice(&[tag, 0, 0, 0, 4]);
    }

    pub(crate) fn authentication_ok(&mut self) {
        self.message(b'R', |body| body.put_i32(0));
    }

    pub(crate) fn authentication_sasl(&mut self, mechanisms: &[&str]) {
        self.message(b'R', |body| {
            body.put_i32(10);
            for mechanism in mechanisms {
                put_string(body, mechanism);
            }
            body.put_u8(0);
        });
    }

    pub(crate) fn authentication_sasl_continue(&mut self, data: &str) {
        self.message(b'R', |body| {
            body.put_i32(11);
            body.put_slice(data.as_bytes());
        });
    }

    pub(crate) fn authentication_sasl_final(&mut self, data: &str) {
        self.message(b'R', |body| {
            body.put_i32(12);
            body.put_slice(data.as_bytes());
        });
    }

    pub(crate) fn negotiate_protocol_version(&mut self, minor: u16, unrecognised: &[&str]) {
        self.message(b'v', |body| {
            body.put_u32(3 << 16 | u32::from(minor));
            body.put_u32(u32::try_from(unrecognised.len()).unwrap_or(u32::MAX));
            for option in unrecognised {
                put_string(body, option);
            }
        });
    }

    pub(crate) fn parameter_status(&mut self, name: &str, value: &str) {
        self.message(b'S', |body| {
            put_string(body, name);
            put_string(body, value);
        });
    }

    pub(crate) fn backend_key_data(&mut self, process: i32, key: &[u8]) {
        self.message(b'K', |body| {
            body.put_i32(process);
            body.put_slice(key);
        });
    }

    pub(crate) fn ready_for_query(&mut self, status: u8) {
        self.message(b'Z', |body| body.put_u8(status));
    }

    pub(crate) fn command_complete(&mut self, tag: &str) {
        self.message(b'C', |body| put_string(body, tag));
    }

    pub(crate) fn empty_query_response(&mut self) {
        self.empty_message(b'I');
    }

    pub(crate) fn parse_complete(&mut self) {
        self.empty_message(b'1');
    }

    pub(crate) fn bind_complete(&mut self) {
        self.empty_message(b'2');
    }

    pub(crate) fn close_complete(&mut self) {
        self.empty_message(b'3');
    }

    pub(crate) fn no_data(&mut self) {
        self.empty_message(b'n');
    }

    /// ParameterDescription.
    pub(crate) fn parameters(&mut self, types: &[u32]) {
        self.message(b't', |body| {
            body.put_u16(u16::try_from(types.len()).unwrap_or(u16::MAX));
            types.iter().for_each(|oid| body.put_u32(*oid));
        });
    }

    /// RowDescription of columns that belong to no table: of each its name, the type's OID and width; and by its place, the format.
    pub(crate) fn columns(&mut self, columns: &[(String, u32, i16)], format: impl Fn(usize) -> i16) {
        self.message(b'T', |body| {
            body.put_u16(u16::try_from(columns.len()).unwrap_or(u16::MAX));
            for (at, (name, type_oid, type_bytes)) in columns.iter().enumerate() {
                put_string(body, name);
                body.put_u32(0);
                body.put_i16(0);
                body.put_u32(*type_oid);
                body.put_i16(*type_bytes);
                body.put_i32(-1);
                body.put_i16(format(at));
            }
        });
    }

    /// DataRow.
    pub(crate) fn row(&mut self, values: impl ExactSizeIterator<Item = Option<impl AsRef<[u8]>>>) {
        self.message(b'D', |body| {
            body.put_u16(u16::try_from(values.len()).unwrap_or(u16::MAX));
            for value in values {
                match value {
                    Some(value) => {
                        let value = value.as_ref();
                        body.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
                        body.put_slice(value);
                    }
                    None => body.put_i32(-1),
                }
            }
        });
    }

    /// FunctionCallResponse.
    pub(crate) fn function_result(&mut self, value: Option<&[u8]>) {
        self.message(b'V', |body| match value {
            Some(value) => {
                body.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
                body.put_slice(value);
            }
            None => body.put_i32(-1),
        });
    }

    /// NotificationResponse.
    pub(crate) fn notification(&mut self, process: i32, notification: &Notification) {
        self.message(b'A', |body| {
            body.put_i32(process);
            put_string(body, &notification.channel);
            put_string(body, &notification.payload);
        });
    }

    /// ErrorResponse or NoticeResponse, by severity.
    pub(crate) fn error(&mut self, error: &ApplicationError) {
        let tag = match error.severity {
            Severity::Error | Severity::Fatal => b'E',
            Severity::Warning => b'N',
        };
        self.message(tag, |body| {
            put_field(body, b'S', error.severity.name());
            put_field(body, b'V', error.severity.name());
            put_field(body, b'C', &error.sqlstate);
            put_field(body, b'M', &error.message);
            if let Some(detail) = &error.detail {
                put_field(body, b'D', detail);
            }
            if let Some(hint) = &error.hint {
                put_field(body, b'H', hint);
            }
            if let Some(position) = error.position {
                put_field(body, b'P', &position.to_string());
            }
            if let Some(routine) = error.routine {
                put_field(body, b'R', routine.name());
            }
            body.put_u8(0);
        });
    }
}

/// A NUL cannot be inside a string on the wire.
fn put_string(body: &mut BytesMut, text: &str) {
    body.extend(text.bytes().filter(|byte| *byte != 0));
    body.put_u8(0);
}

fn put_field(body: &mut BytesMut, kind: u8, text: &str) {
    body.put_u8(kind);
    put_string(body, text);
}
