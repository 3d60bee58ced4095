//! The first packet of a connection.

use bytes::Bytes;

use super::fields::Fields;
use super::frame::FrameError;

/// The newest minor version of protocol 3 that the proxy speaks.
pub(crate) const PROTOCOL_LATEST_MINOR: u16 = 2;

const SSL_REQUEST: i32 = 80_877_103;
const GSS_ENCRYPTION_REQUEST: i32 = 80_877_104;
const CANCEL_REQUEST: i32 = 80_877_102;
/// The longest cancel key, in bytes (protocol 3.2).
const CANCEL_KEY_BYTES_MAX: usize = 256;

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StartupPacket {
    SslRequest,
    GssEncryptionRequest,
    Cancel { process: i32, key: Bytes },
    Startup(Startup),
    UnsupportedVersion { major: u16, minor: u16 },
}

/// StartupMessage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Startup {
    pub(crate) minor: u16,
    pub(crate) parameters: Vec<(String, String)>,
}

impl Startup {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        parameters
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }
}

impl StartupPacket {
    /// The packet from its body (without the length).
    pub(crate) fn parse(body: Bytes) -> Result<Self, FrameError> {
        let mut fields = Fields::new(body);
        match fields.i32()? {
            SSL_REQUEST => fields.end().map(|()| StartupPacket::SslRequest),
            GSS_ENCRYPTION_REQUEST => fields.end().map(|()| StartupPacket::GssEncryptionRequest),
            CANCEL_REQUEST => {
                let process = fields.i32()?;
                let key = fields.remainder();
                if key.len() < 4 || key.len() > CANCEL_KEY_BYTES_MAX {
                    return Err(FrameError::Malformed("invalid length of cancel request"));
                }
                Ok(StartupPacket::Cancel { process, key })
            }
            version => {
                let (major, minor) = (high_half(version), low_half(version));
                if major != 3 {
                    return Ok(StartupPacket::UnsupportedVersion { major, minor });
                }
                parse_parameters(fields, minor).map(StartupPacket::Startup)
            }
        }
    }
}

fn high_half(version: i32) -> u16 {
    u16::try_from(version.cast_unsigned() >> 16).unwrap_or(u16::MAX)
}

fn low_half(version: i32) -> u16 {
    u16::try_from(version.cast_unsigned() & 0xffff).unwrap_or(u16::MAX)
}

fn parse_parameters(mut fields: Fields, minor: u16) -> Result<Startup, FrameError> {
    let mut parameters = Vec::new();
    loop {
        let name = fields.string()?;
        if name.is_empty() {
            fields.end().map_err(|_| {
                FrameError::Malformed("invalid startup packet layout: expected terminator as last byte")
            })?;
            return Ok(Startup { minor, parameters });
        }
        parameters.push((name, fields.string()?));
    }
}
