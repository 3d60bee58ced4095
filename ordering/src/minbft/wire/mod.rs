//! MinBFT's messages (`docs/protocol.md#messages`), each beside its verification: what replicas and primaries send each other.

pub(crate) mod admission;
pub(crate) mod change;
mod change_verification;
pub(crate) mod checkpoint;
pub(crate) mod message;
pub(crate) mod ordered;
pub(crate) mod outcome;
pub(crate) mod start;

use crate::directory::Directory;
use crate::identifiers::{MachineId, View};

pub(crate) fn machines(directory: &Directory) -> u8 {
    2 * directory.faults.0 + 2
}

/// The candidate that leads a view.
pub(crate) fn primary(view: View, directory: &Directory) -> MachineId {
    MachineId(u8::try_from(view.0 % u64::from(machines(directory))).unwrap_or(0))
}
