//! The clocks of a machine: its monotonic clock runs a little too fast or too slow, its wall clock is off.

use ordering::agreement::Now;

/// Wall time at the beginning of every run, in microseconds since the Unix epoch.
pub const START_WALL_US: u64 = 1_700_000_000_000_000;

const MILLION: i128 = 1_000_000;

/// One machine's clocks, as functions of virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// What the monotonic clock shows at virtual time 0, in microseconds.
    pub origin_us: u64,
    /// How much too fast it runs, in millionths.
    pub rate_ppm: i64,
    /// How far the wall clock is ahead, in microseconds.
    pub offset_us: i64,
}

impl Clock {
    /// What the machine's clocks show.
    pub fn now(&self, virtual_us: u64) -> Now {
        let elapsed_us = self.scaled(virtual_us);
        let wall_us = i128::from(START_WALL_US) + i128::from(elapsed_us) + i128::from(self.offset_us);
        Now {
            monotonic_us: self.origin_us + elapsed_us,
            wall_us: u64::try_from(wall_us).unwrap_or(0),
        }
    }

    fn scaled(&self, virtual_us: u64) -> u64 {
        let scaled = i128::from(virtual_us) * (MILLION + i128::from(self.rate_ppm)) / MILLION;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// The first virtual time at which the monotonic clock shows at least this.
    pub fn when(&self, monotonic_us: u64) -> u64 {
        let elapsed = i128::from(monotonic_us.saturating_sub(self.origin_us));
        let rate = MILLION + i128::from(self.rate_ppm);
        let estimate = (elapsed * MILLION + rate - 1) / rate;
        let mut virtual_us = u64::try_from(estimate).unwrap_or(u64::MAX);
        while self.now(virtual_us).monotonic_us < monotonic_us {
            virtual_us += 1;
        }
        virtual_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_met_too_early_and_at_most_a_microsecond_too_late() {
        for rate_ppm in [-20_000, -7, 0, 13, 20_000] {
            let clock = Clock {
                origin_us: 77,
                rate_ppm,
                offset_us: -5,
            };
            for monotonic_us in (77..2_000_000).step_by(977) {
                let virtual_us = clock.when(monotonic_us);
                assert!(clock.now(virtual_us).monotonic_us >= monotonic_us);
                assert!(virtual_us == 0 || clock.now(virtual_us - 1).monotonic_us < monotonic_us);
            }
        }
    }
}
