//! The client's time. Timestamps come from here and never from the server, so that servers cannot differ in them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MICROS_PER_SECOND: u64 = 1_000_000;
const SECONDS_PER_DAY: u64 = 86_400;

/// The last instant that [`unique_now`] gave out, in microseconds since 1970.
static LAST_MICROS: AtomicU64 = AtomicU64::new(0);

/// The present, to the microsecond, and never twice the same: the ledger tells transactions apart by it.
pub(crate) fn unique_now() -> SystemTime {
    let now = micros(SystemTime::now());
    let mut given = now;
    let _ = LAST_MICROS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
        given = now.max(last + 1);
        Some(given)
    });
    from_micros(given)
}

/// Microseconds since 1970.
pub(crate) fn micros(time: SystemTime) -> u64 {
    let elapsed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

/// The instant so many microseconds after 1970.
pub(crate) fn from_micros(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}

/// A timestamp literal in UTC, as Postgres reads it under every `datestyle`.
pub(crate) fn timestamp_text(time: SystemTime) -> String {
    let micros = micros(time);
    let seconds = micros / MICROS_PER_SECOND;
    let (year, month, day) = civil_date(seconds / SECONDS_PER_DAY);
    let second_of_day = seconds % SECONDS_PER_DAY;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:06}",
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
        micros % MICROS_PER_SECOND
    )
}

/// Year, month and day of a day counted from 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_written_as_postgres_reads_them() {
        assert_eq!(timestamp_text(UNIX_EPOCH), "1970-01-01 00:00:00.000000");
        let leap_day = from_micros(1_709_210_096_000_007);
        assert_eq!(timestamp_text(leap_day), "2024-02-29 12:34:56.000007");
    }

    #[test]
    fn no_instant_is_given_out_twice() {
        let mut instants: Vec<_> = (0..10_000).map(|_| unique_now()).collect();
        instants.dedup();
        assert_eq!(instants.len(), 10_000);
    }
}
