//! PBFT's messages (`docs/protocol.md#messages`), each beside its verification: what replicas send each other.

pub(crate) mod change;
pub(crate) mod checkpoint;
pub(crate) mod message;
pub(crate) mod ordered;

use crate::configuration::Protocol;
use crate::directory::Directory;
use crate::identifiers::{MachineId, View};

fn machines(directory: &Directory) -> u8 {
    Protocol::Pbft.machines(directory.faults)
}

fn quorum(directory: &Directory) -> usize {
    Protocol::Pbft.quorum(directory.faults) as usize
}

fn is_machine(machine: MachineId, directory: &Directory) -> bool {
    machine.0 < machines(directory)
}

/// The machine that leads a view.
fn primary(view: View, directory: &Directory) -> MachineId {
    MachineId(u8::try_from(view.0 % u64::from(machines(directory))).unwrap_or(0))
}
