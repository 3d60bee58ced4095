//! The formats of a held cursor's columns. The rows are kept as the database nodes gave them: as text, or as BINARY was declared. An
//! application that asks for the other format by the extended protocol gets it of the types whose formats are simple.

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::ApplicationError;
use crate::wire::format_of;

/// Before the columns of a RowDescription: type, length, number of columns.
const HEADER_BYTES: usize = 7;
/// Behind a column's name: table, place in it, type, width, modifier, format.
const COLUMN_BYTES: usize = 18;
const TYPE_AT: usize = 6;
const FORMAT_AT: usize = 16;

/// The text format.
const TEXT: i16 = 0;
/// The binary format.
const BINARY: i16 = 1;

/// A type whose formats are converted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Simple {
    /// Both formats are the same bytes.
    Alike,
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Bytea,
    Uuid,
}

impl Simple {
    fn of(type_oid: u32) -> Option<Self> {
        Some(match type_oid {
            // name, text, json, xml, unknown, bpchar, varchar
            19 | 25 | 114 | 142 | 705 | 1042 | 1043 => Simple::Alike,
            16 => Simple::Bool,
            17 => Simple::Bytea,
            20 => Simple::Int8,
            21 => Simple::Int2,
            23 => Simple::Int4,
            26 => Simple::Oid,
            700 => Simple::Float4,
            701 => Simple::Float8,
            2950 => Simple::Uuid,
            _ => return None,
        })
    }

    fn to_binary(self, text: &[u8]) -> Option<Vec<u8>> {
        let string = || std::str::from_utf8(text).ok();
        Some(match self {
            Simple::Alike => text.to_vec(),
            Simple::Bool => vec![u8::from(text == b"t")],
            Simple::Int2 => string()?.parse::<i16>().ok()?.to_be_bytes().to_vec(),
            Simple::Int4 => string()?.parse::<i32>().ok()?.to_be_bytes().to_vec(),
            Simple::Int8 => string()?.parse::<i64>().ok()?.to_be_bytes().to_vec(),
            Simple::Oid => string()?.parse::<u32>().ok()?.to_be_bytes().to_vec(),
            Simple::Float4 => string()?.parse::<f32>().ok()?.to_be_bytes().to_vec(),
            Simple::Float8 => string()?.parse::<f64>().ok()?.to_be_bytes().to_vec(),
            Simple::Bytea => hexadecimal(text.strip_prefix(b"\\x")?)?,
            Simple::Uuid => {
                let digits: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'-').collect();
                hexadecimal(&digits).filter(|bytes| bytes.len() == 16)?
            }
        })
    }

    /// Floats are left out: their text depends on `extra_float_digits`.
    fn to_text(self, binary: &[u8]) -> Option<Vec<u8>> {
        let text = match self {
            Simple::Alike => return Some(binary.to_vec()),
            Simple::Bool => match binary {
                [0] => "f".into(),
                _ => "t".into(),
            },
            Simple::Int2 => i16::from_be_bytes(binary.try_into().ok()?).to_string(),
            Simple::Int4 => i32::from_be_bytes(binary.try_into().ok()?).to_string(),
            Simple::Int8 => i64::from_be_bytes(binary.try_into().ok()?).to_string(),
            Simple::Oid => u32::from_be_bytes(binary.try_into().ok()?).to_string(),
            Simple::Float4 | Simple::Float8 => return None,
            Simple::Bytea => format!("\\x{}", digits(binary)),
            Simple::Uuid => {
                let digits = digits(binary);
                let part = |range| digits.get(range);
                let (first, second, third) = (part(0..8)?, part(8..12)?, part(12..16)?);
                format!("{first}-{second}-{third}-{}-{}", part(16..20)?, part(20..32)?)
            }
        };
        Some(text.into_bytes())
    }

    fn converts(self, kept: i16) -> bool {
        kept == TEXT || !matches!(self, Simple::Float4 | Simple::Float8)
    }
}

fn digits(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    bytes.iter().for_each(|byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    });
    text
}

fn hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

#[derive(Clone, Debug)]
struct Column {
    name: String,
    type_oid: u32,
    /// The format in which its values are kept.
    kept: i16,
    /// Where its format stands in the description.
    format_at: usize,
}

/// The columns of a held cursor.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    /// The RowDescription that came with the rows.
    description: Bytes,
    columns: Vec<Column>,
    /// Whether a float's text is all of its value.
    exact_floats: bool,
}

impl Columns {
    /// The columns of a RowDescription message; `None` if it is malformed.
    pub(super) fn of(description: Bytes, exact_floats: bool) -> Option<Self> {
        let mut columns = Vec::new();
        let mut at = HEADER_BYTES;
        while at < description.len() {
            let rest = description.get(at..)?;
            let end = rest.iter().position(|byte| *byte == 0)?;
            let fields = rest.get(end + 1..end + 1 + COLUMN_BYTES)?;
            let type_oid = fields.get(TYPE_AT..)?.first_chunk::<4>()?;
            let kept = fields.get(FORMAT_AT..)?.first_chunk::<2>()?;
            columns.push(Column {
                name: String::from_utf8_lossy(rest.get(..end)?).into_owned(),
                type_oid: u32::from_be_bytes(*type_oid),
                kept: i16::from_be_bytes(*kept),
                format_at: at + end + 1 + FORMAT_AT,
            });
            at += end + 1 + COLUMN_BYTES;
        }
        Some(Self {
            description,
            columns,
            exact_floats,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.columns.len()
    }

    /// The RowDescription as the rows are kept: what the simple protocol gets.
    pub(super) fn kept(&self) -> Bytes {
        self.description.clone()
    }

    /// The RowDescription with other formats: none, one for all, or one each.
    pub(super) fn described(&self, formats: &[i16]) -> Bytes {
        let mut description = BytesMut::from(&*self.description);
        for (at, column) in self.columns.iter().enumerate() {
            if let Some(place) = description.get_mut(column.format_at..column.format_at + 2) {
                place.copy_from_slice(&format_of(formats, at).to_be_bytes());
            }
        }
        description.freeze()
    }

    /// How rows are given in these formats; `None` inside where all values stay as they are.
    ///
    /// # Errors
    /// When the type of a column is not converted here.
    pub(super) fn conversion(&self, formats: &[i16]) -> Result<Option<Conversion>, ApplicationError> {
        let mut steps = Vec::with_capacity(self.columns.len());
        for (at, column) in self.columns.iter().enumerate() {
            let wanted = format_of(formats, at);
            if wanted == column.kept {
                steps.push(None);
                continue;
            }
            let simple = Simple::of(column.type_oid).filter(|simple| {
                let is_exact = self.exact_floats || !matches!(simple, Simple::Float4 | Simple::Float8);
                simple.converts(column.kept) && is_exact
            });
            let simple = simple.ok_or_else(|| not_converted(&column.name, wanted))?;
            steps.push(Some((simple, wanted == BINARY)));
        }
        let converts = steps.iter().flatten().any(|(simple, _)| *simple != Simple::Alike);
        let names = self.columns.iter().map(|column| column.name.clone()).collect();
        Ok(converts.then_some(Conversion { steps, names }))
    }
}

/// How the values of a row are given in other formats.
#[derive(Clone, Debug)]
pub(super) struct Conversion {
    /// For each column its type, and whether it is given in binary format; `None` where it stays.
    steps: Vec<Option<(Simple, bool)>>,
    names: Vec<String>,
}

impl Conversion {
    /// A DataRow message in these formats.
    ///
    /// # Errors
    /// When a value is none of its type as far as this proxy knows it.
    pub(super) fn row(&self, message: &[u8], out: &mut BytesMut) -> Result<(), ApplicationError> {
        let malformed = || ApplicationError::new("XX000", "a row of a held cursor is malformed");
        let start = out.len();
        out.extend_from_slice(message.get(..HEADER_BYTES).ok_or_else(malformed)?);
        let mut rest = message.get(HEADER_BYTES..).unwrap_or_default();
        for (step, name) in self.steps.iter().zip(&self.names) {
            let (length, after) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
            rest = after;
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
                out.put_i32(-1);
                continue;
            };
            let (value, after) = rest.split_at_checked(length).ok_or_else(malformed)?;
            rest = after;
            let converted = match step {
                None => None,
                Some((simple, true)) => Some(simple.to_binary(value).ok_or_else(|| not_converted(name, BINARY))?),
                Some((simple, false)) => Some(simple.to_text(value).ok_or_else(|| not_converted(name, TEXT))?),
            };
            let value = converted.as_deref().unwrap_or(value);
            out.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
            out.put_slice(value);
        }
        let length = u32::try_from(out.len() - start - 1).unwrap_or(u32::MAX);
        if let Some(place) = out.get_mut(start + 1..start + 5) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }
}

fn not_converted(column: &str, wanted: i16) -> ApplicationError {
    let (wanted, kept) = match wanted {
        BINARY => ("binary", "text"),
        _ => ("text", "binary"),
    };
    let message = format!("column \"{column}\" of a cursor WITH HOLD is not kept in {wanted} format");
    let hint = match wanted {
        "binary" => {
            "Ask for text format, cast the column to text, or declare the cursor BINARY and use FETCH as a simple query."
        }
        _ => "Ask for binary format, or declare the cursor without BINARY.",
    };
    ApplicationError::new("0A000", message)
        .detail(format!(
            "The rows are kept in {kept} format since the transaction of the cursor has ended."
        ))
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_types_go_both_ways() {
        for (type_oid, text, binary) in [
            (16, "t", vec![1]),
            (16, "f", vec![0]),
            (17, "\\x00ff", vec![0, 255]),
            (20, "-2", (-2_i64).to_be_bytes().to_vec()),
            (21, "7", vec![0, 7]),
            (23, "-1", vec![255; 4]),
            (25, "é", "é".as_bytes().to_vec()),
            (26, "4294967295", vec![255; 4]),
            (2950, "00010203-0405-0607-0809-0a0b0c0d0e0f", (0..16).collect()),
        ] {
            let simple = Simple::of(type_oid).unwrap();
            assert_eq!(simple.to_binary(text.as_bytes()), Some(binary.clone()), "{text}");
            assert_eq!(simple.to_text(&binary), Some(text.as_bytes().to_vec()), "{text}");
        }
        assert_eq!(
            Simple::Float8.to_binary(b"-Infinity"),
            Some(f64::NEG_INFINITY.to_be_bytes().to_vec())
        );
        assert_eq!(
            Simple::Float4.to_binary(b"1e-40"),
            Some(1e-40_f32.to_be_bytes().to_vec())
        );
        assert!(Simple::Float8.to_binary(b"NaN").is_some());
        assert_eq!(Simple::of(1700), None);
        for (simple, wrong) in [
            (Simple::Int4, "x"),
            (Simple::Uuid, "00"),
            (Simple::Bytea, "\\000"),
            (Simple::Bytea, "\\x0"),
        ] {
            assert_eq!(simple.to_binary(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
