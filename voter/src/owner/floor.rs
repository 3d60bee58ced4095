//! When the owner takes a candidate for the floor, and how it is written (`crate::floors`).

use std::sync::Arc;
use std::time::Instant;

use borsh::BorshDeserialize;

use super::Owner;
use crate::executor::{Event, Shared};
use crate::floors::{Candidate, FloorState};
use crate::listeners::Listeners;
use crate::postgres::PostgresError;

/// The state of a floor that was written.
pub(super) fn decode(bytes: &[u8]) -> Result<FloorState, PostgresError> {
    FloorState::try_from_slice(bytes).map_err(|error| PostgresError::Unfit(format!("cloudbft.floor: {error}")))
}

impl Owner<'_> {
    /// Takes a candidate if it is time, and writes the highest one that is ready.
    pub(super) fn consider_floor(&mut self) {
        let due = self.last_candidate.elapsed() >= self.config.limits.floor_interval;
        if due && self.floors.newest() < self.last_fed && self.stalled_by.is_none() {
            self.last_candidate = Instant::now();
            let candidate = self.candidate();
            self.floors.propose(candidate);
        }
        if let Some(candidate) = self.floors.take_ready() {
            self.tasks.spawn(write(Arc::clone(&self.shared), candidate));
        }
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            order: self.last_fed,
            state: FloorState {
                windows: self.windows.clone(),
                locks: self.locks.snapshot(),
                abandoned: self.abandoned.clone(),
                waiting: self.waiting.clone(),
                listeners: Listeners::clone(&self.listeners),
            },
        }
    }
}

async fn write(shared: Arc<Shared>, candidate: Candidate) {
    let encoded = borsh::to_vec(&candidate.state).unwrap_or_default();
    let written = shared
        .bookkeeper
        .lock()
        .await
        .write_floor(candidate.order, &encoded)
        .await;
    match written {
        Ok(()) => shared.tell(Event::FloorWritten(candidate.order)),
        Err(error) => shared.tell(Event::Lost(format!("floor: {error}"))),
    }
}
