//! The machine's clock, as the agreement is fed with it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Wall-clock time that never runs backwards within this process.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_unix_us: u64,
}

impl Clock {
    /// Reads the wall clock once; from then on time advances with the monotonic clock.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            started_unix_us: wall_us(),
        }
    }

    /// Microseconds since the start.
    pub fn monotonic_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Microseconds since the Unix epoch.
    pub fn now_us(&self) -> u64 {
        self.started_unix_us.saturating_add(self.monotonic_us())
    }
}

/// The wall clock, in microseconds since the Unix epoch.
pub fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
