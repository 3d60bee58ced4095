//! Reading the results that voters deliver. They are voted, and yet nothing here trusts their layout.

use bytes::{Bytes, BytesMut};
use sql::result::{error_fields, messages};

use super::backend::Backend;
use crate::error::ApplicationError;

/// What a result holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// An ErrorResponse.
    pub(crate) failed: bool,
    /// CopyInResponse: data is awaited.
    pub(crate) copy_in: bool,
    /// DataRows.
    pub(crate) rows: u64,
}

/// Looks over a result's messages.
pub(crate) fn scan(result: &[u8]) -> Scan {
    let mut scan = Scan::default();
    for (tag, _) in messages(result).flatten() {
        match tag {
            b'E' => scan.failed = true,
            b'G' => scan.copy_in = true,
            b'D' => scan.rows += 1,
            _ => {}
        }
    }
    scan
}

/// The offsets behind each completed step of an extended exchange, in order.
pub(crate) fn step_boundaries(result: &[u8]) -> Vec<usize> {
    let mut boundaries = Vec::new();
    let mut offset = 0;
    for (tag, message) in messages(result).flatten() {
        offset += message.len();
        if matches!(tag, b'1' | b'2' | b'3' | b'T' | b'n' | b'C' | b'I' | b's') {
            boundaries.push(offset);
        }
    }
    boundaries
}

/// The result without messages of these types.
pub(crate) fn leave_out(result: &Bytes, tags: &[u8]) -> Bytes {
    if !messages(result).flatten().any(|(tag, _)| tags.contains(&tag)) {
        return result.clone();
    }
    let mut kept = BytesMut::with_capacity(result.len());
    for (tag, message) in messages(result).flatten() {
        if !tags.contains(&tag) {
            kept.extend_from_slice(message);
        }
    }
    kept.freeze()
}

/// The tag of the last CommandComplete.
pub(crate) fn command_tag(result: &[u8]) -> Option<String> {
    let (_, message) = messages(result).flatten().filter(|(tag, _)| *tag == b'C').last()?;
    let text = body(message).split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn body(message: &[u8]) -> &[u8] {
    message.get(5..).unwrap_or_default()
}

/// The first error in a result.
pub(crate) fn first_error(result: &[u8]) -> Option<ApplicationError> {
    let (_, message) = messages(result).flatten().find(|(tag, _)| *tag == b'E')?;
    let mut error = ApplicationError::new("XX000", "an error without fields");
    for (kind, text) in error_fields(message) {
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => error.sqlstate = text.into(),
            b'M' => error.message = text.into(),
            b'D' => error.detail = Some(text.into()),
            b'H' => error.hint = Some(text.into()),
            b'P' => error.position = text.parse().ok(),
            _ => {}
        }
    }
    Some(error)
}

/// The result of a part of a text, with the positions in errors counted from the start of the whole text.
pub(crate) fn shift_error_position(result: &Bytes, characters: usize) -> Bytes {
    if characters == 0 || !messages(result).flatten().any(|(tag, _)| tag == b'E') {
        return result.clone();
    }
    let mut shifted = Backend::new();
    for (tag, message) in messages(result).flatten() {
        match tag {
            b'E' => shifted.raw(&shift_message(message, characters)),
            _ => shifted.raw(message),
        }
    }
    shifted.take()
}

fn shift_message(message: &[u8], characters: usize) -> Vec<u8> {
    let mut fields = Vec::with_capacity(message.len() + 8);
    for field in body(message).split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else {
            continue;
        };
        let position = std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse::<usize>().ok());
        fields.push(*kind);
        match (kind, position) {
            (b'P', Some(position)) => fields.extend_from_slice((position + characters).to_string().as_bytes()),
            _ => fields.extend_from_slice(text),
        }
        fields.push(0);
    }
    fields.push(0);
    let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
    let mut framed = vec![b'E'];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&fields);
    framed
}

/// The cells of all DataRows, as text; `None` when a row is malformed or not UTF-8.
pub(crate) fn read_rows(result: &[u8]) -> Option<Vec<Vec<Option<String>>>> {
    let rows = messages(result).flatten().filter(|(tag, _)| *tag == b'D');
    rows.map(|(_, message)| read_row(body(message))).collect()
}

fn read_row(row: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = row.split_first_chunk::<2>()?;
    let mut cells = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => cells.push(None),
            Ok(length) => {
                let (cell, after) = rest.split_at_checked(length)?;
                rest = after;
                cells.push(Some(std::str::from_utf8(cell).ok()?.to_owned()));
            }
        }
    }
    Some(cells)
}
