//! Counting the starts of a process, durably: what it numbers with its incarnation in the high bits is unique for ever.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Gives this start a number above those of all earlier ones, and keeps it in the file at `path`.
///
/// The number is the time in seconds since 1970, or one more than the last start's where the clock has not gone on since.
/// So a file that was lost does no harm as long as the clock is about right, and a clock that went back does none as long
/// as the file is there.
///
/// # Errors
/// When the file cannot be read or written, or does not hold a number.
pub(crate) fn next_incarnation(path: &Path) -> io::Result<u32> {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    next_incarnation_at(path, u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX))
}

fn next_incarnation_at(path: &Path, now_s: u32) -> io::Result<u32> {
    let previous: u32 = match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(io::Error::other)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let next = previous
        .checked_add(1)
        .ok_or_else(|| io::Error::other("no numbers are left"))?
        .max(now_s);
    let unfinished = path.with_extension("unfinished");
    let mut file = fs::File::create(&unfinished)?;
    writeln!(file, "{next}")?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_gets_a_higher_incarnation_whatever_the_clock_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("incarnation");
        assert_eq!(next_incarnation_at(&path, 1_000).unwrap(), 1_000);
        assert_eq!(next_incarnation_at(&path, 1_000).unwrap(), 1_001);
        assert_eq!(next_incarnation_at(&path, 500).unwrap(), 1_002, "the clock went back");
        assert_eq!(next_incarnation_at(&path, 2_000).unwrap(), 2_000);
    }

    #[test]
    fn a_file_that_was_lost_does_not_bring_old_numbers_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("incarnation");
        let earlier = next_incarnation(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(next_incarnation(&path).unwrap() >= earlier);
    }

    #[test]
    fn a_damaged_file_or_one_at_its_end_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("incarnation");
        fs::write(&path, "damaged").unwrap();
        assert!(next_incarnation(&path).is_err(), "numbers must never be used again");
        fs::write(&path, u32::MAX.to_string()).unwrap();
        assert!(next_incarnation(&path).is_err(), "numbers must never be used again");
    }
}
