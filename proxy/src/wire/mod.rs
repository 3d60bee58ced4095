//! The Postgres wire protocol towards applications, which are not trusted: every count and length is checked against
//! its frame, every frame is consumed exactly, every limit is a named constant. Nothing here panics or blocks.
//!
//! Own code rather than `pgwire`'s decoder, which crosses frames on a malformed Bind and takes names lossily.

mod backend;
mod fields;
mod frame;
mod frontend;
mod response;
mod startup;
#[cfg(test)]
mod tests;

pub(crate) use backend::Backend;
pub(crate) use frame::{FrameError, FrameReader};
pub(crate) use frontend::{Bind, Frontend, FunctionCall, format_of};
pub(crate) use response::{
    command_tag, first_error, leave_out, read_rows, scan, shift_error_position, step_boundaries,
};
pub(crate) use startup::{PROTOCOL_LATEST_MINOR, Startup, StartupPacket};
