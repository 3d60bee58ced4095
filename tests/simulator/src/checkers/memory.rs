//! Bounded memory: whatever clients and f machines send, queues and bodies stay within the configured limits, and
//! no single step answers with more than a bounded number of bytes.

use super::{Checker, Observation};
use crate::violation::Violation;

/// The most that one step may send to one machine: the largest answers are a few pieces of history.
const STEP_BYTES_PER_MACHINE_MAX: usize = 16 << 20;

/// Limits that follow from the configuration.
pub(super) struct BoundedMemory {
    clients: usize,
}

impl BoundedMemory {
    /// `clients`: how many have a key.
    pub(super) fn new(clients: usize) -> Self {
        BoundedMemory { clients }
    }
}

impl Checker for BoundedMemory {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        let Observation::Stepped {
            machine,
            configuration,
            status,
            sent_bytes,
            ..
        } = observation
        else {
            return Ok(());
        };
        let window = ordering::message::REQUEST_WINDOW as usize;
        let in_flight_bytes = ordering::configuration::WATERMARK_BYTES + configuration.batch_bytes_max;
        let limits = [
            (
                "requests queued",
                status.requests_queued,
                configuration.requests_queued_max,
            ),
            ("bodies", status.bodies, self.clients * window),
            (
                "bytes of bodies",
                status.bodies_bytes,
                self.clients * configuration.client_bytes_max + in_flight_bytes,
            ),
            (
                "batches in flight",
                status.batches_in_flight,
                ordering::configuration::WATERMARK_ORDERS as usize,
            ),
            (
                "bytes sent by one step",
                *sent_bytes,
                STEP_BYTES_PER_MACHINE_MAX * usize::from(configuration.machines()),
            ),
        ];
        match limits.into_iter().find(|(_, value, limit)| value > limit) {
            None => Ok(()),
            Some((what, value, limit)) => {
                let description = format!("m{machine}: {value} {what}, the limit is {limit}");
                Err(Violation::safety("bounded memory", description))
            }
        }
    }
}
