//! Liveness: once the network is timely and the correct machines are up, every request of a correct client ends.

use ordering::identifiers::ClientId;

use crate::violation::Violation;

/// The deadline of the liveness phase.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    /// When everything was healed, virtual.
    pub healed_us: u64,
    /// How long requests may take from then on, in microseconds.
    pub patience_us: u64,
}

impl Liveness {
    /// Whether the time is up.
    pub fn is_over(&self, now_us: u64) -> bool {
        now_us >= self.healed_us + self.patience_us
    }

    /// What to say of the oldest request that has not ended, and of machines that are behind.
    pub fn violation(&self, unended: &[(ClientId, u64)], description: &str) -> Violation {
        let first = unended.first().map_or_else(
            || "no request is open, but not every correct machine and voter has got everything".to_owned(),
            |(client, number)| {
                format!(
                    "{} requests have not ended, the first is number {number} of client {client}",
                    unended.len()
                )
            },
        );
        Violation::liveness(
            "liveness",
            format!("{} ms after healing {first}\n{description}", self.patience_us / 1000),
        )
    }
}
