//! Messages from applications.

use bytes::Bytes;

use super::fields::Fields;
use super::frame::FrameError;

/// One message of the normal phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frontend {
    Query(String),
    Parse {
        name: String,
        text: String,
        parameter_types: Vec<u32>,
    },
    Bind(Bind),
    DescribeStatement(String),
    DescribePortal(String),
    Execute {
        portal: String,
        max_rows: u32,
    },
    CloseStatement(String),
    ClosePortal(String),
    Flush,
    Sync,
    CopyData(Bytes),
    CopyDone,
    CopyFail(String),
    FunctionCall(FunctionCall),
    /// Password, SASL responses: only while authenticating.
    Authentication(Bytes),
    Terminate,
}

/// Bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) portal: String,
    pub(crate) statement: String,
    pub(crate) parameter_formats: Vec<i16>,
    pub(crate) parameters: Vec<Option<Bytes>>,
    pub(crate) result_formats: Vec<i16>,
}

/// FunctionCall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FunctionCall {
    /// The function's number in the catalog.
    pub(crate) function: u32,
    pub(crate) argument_formats: Vec<i16>,
    pub(crate) arguments: Vec<Option<Bytes>>,
    pub(crate) result_format: i16,
}

impl Frontend {
    /// The message from its type and body.
    pub(crate) fn parse(tag: u8, body: Bytes) -> Result<Self, FrameError> {
        let mut fields = Fields::new(body);
        let message = match tag {
            b'Q' => Frontend::Query(fields.string()?),
            b'P' => parse_parse(&mut fields)?,
            b'B' => Frontend::Bind(parse_bind(&mut fields)?),
            b'D' => match fields.u8()? {
                b'S' => Frontend::DescribeStatement(fields.string()?),
                b'P' => Frontend::DescribePortal(fields.string()?),
                _ => return Err(FrameError::Malformed("invalid DESCRIBE message subtype")),
            },
            b'E' => Frontend::Execute {
                portal: fields.string()?,
                max_rows: u32::try_from(fields.i32()?).unwrap_or(0),
            },
            b'C' => match fields.u8()? {
                b'S' => Frontend::CloseStatement(fields.string()?),
                b'P' => Frontend::ClosePortal(fields.string()?),
                _ => return Err(FrameError::Malformed("invalid CLOSE message subtype")),
            },
            b'H' => Frontend::Flush,
            b'S' => Frontend::Sync,
            b'd' => return Ok(Frontend::CopyData(fields.remainder())),
            b'c' => Frontend::CopyDone,
            b'f' => Frontend::CopyFail(fields.string()?),
            b'F' => Frontend::FunctionCall(parse_function_call(&mut fields)?),
            b'p' => return Ok(Frontend::Authentication(fields.remainder())),
            b'X' => Frontend::Terminate,
            _ => return Err(FrameError::Malformed("invalid frontend message type")),
        };
        fields.end()?;
        Ok(message)
    }

    /// Whether an error in this message is answered at the next Sync.
    pub(crate) fn is_extended(tag: u8) -> bool {
        matches!(tag, b'P' | b'B' | b'D' | b'E' | b'C' | b'H')
    }
}

fn parse_parse(fields: &mut Fields) -> Result<Frontend, FrameError> {
    let (name, text) = (fields.string()?, fields.string()?);
    let count = fields.count(4)?;
    let types = (0..count).map(|_| fields.i32().map(i32::cast_unsigned));
    let parameter_types = types.collect::<Result<_, _>>()?;
    Ok(Frontend::Parse {
        name,
        text,
        parameter_types,
    })
}

fn parse_bind(fields: &mut Fields) -> Result<Bind, FrameError> {
    let (portal, statement) = (fields.string()?, fields.string()?);
    let parameter_formats = parse_formats(fields)?;
    let count = fields.count(4)?;
    let parameters = (0..count).map(|_| parse_parameter(fields)).collect::<Result<_, _>>()?;
    let result_formats = parse_formats(fields)?;
    Ok(Bind {
        portal,
        statement,
        parameter_formats,
        parameters,
        result_formats,
    })
}

fn parse_function_call(fields: &mut Fields) -> Result<FunctionCall, FrameError> {
    let function = fields.i32()?.cast_unsigned();
    let argument_formats = parse_formats(fields)?;
    let count = fields.count(4)?;
    let arguments = (0..count).map(|_| parse_parameter(fields)).collect::<Result<_, _>>()?;
    let result_format = fields.i16()?;
    Ok(FunctionCall {
        function,
        argument_formats,
        arguments,
        result_format,
    })
}

/// The format of a column or parameter, where formats are none (all text), one for all, or one each.
pub(crate) fn format_of(formats: &[i16], at: usize) -> i16 {
    match formats {
        [all] => *all,
        formats => formats.get(at).copied().unwrap_or(0),
    }
}

fn parse_formats(fields: &mut Fields) -> Result<Vec<i16>, FrameError> {
    let count = fields.count(2)?;
    (0..count).map(|_| fields.i16()).collect()
}

fn parse_parameter(fields: &mut Fields) -> Result<Option<Bytes>, FrameError> {
    match fields.i32()? {
        -1 => Ok(None),
        length => {
            let length = usize::try_from(length).map_err(|_| FrameError::Malformed("invalid parameter length"))?;
            fields.bytes(length).map(Some)
        }
    }
}
