//! On what the figures were measured.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use super::statistics::Percentiles;

/// Syncs that are timed, and the bytes before each.
const SYNCS: usize = 64;
const SYNC_BYTES: usize = 8 << 10;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// The model of the processor.
    pub(crate) cpu: String,
    /// Processors that are there for us.
    pub(crate) cores: usize,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// The kernel.
    pub(crate) kernel: String,
    /// The type of the file system that holds all data.
    pub(crate) file_system: String,
    /// Time of an 8 KiB append with fdatasync there.
    pub(crate) fdatasync: Percentiles,
    /// Load average of the last minute when the comparison began.
    pub(crate) load_before: f64,
}

impl Machine {
    /// Looks; writes a small file in `directory` and removes it.
    ///
    /// # Errors
    /// When that file cannot be written.
    pub(crate) fn of(directory: &Path) -> std::io::Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let first_word = |text: String| text.split_whitespace().next().unwrap_or_default().to_owned();
        let memory_kib: u64 = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.strip_suffix(" kB")?.trim().parse().ok())
            .unwrap_or(0);
        Ok(Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| String::from("unknown")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_kib >> 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(&read("/proc/mounts"), directory),
            fdatasync: time_syncs(directory)?,
            load_before: first_word(read("/proc/loadavg")).parse().unwrap_or(0.0),
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cpu,
            cores,
            memory_mib,
            kernel,
            file_system,
            fdatasync,
            load_before,
        } = self;
        let Percentiles { p50_ms, p99_ms, .. } = fdatasync;
        write!(
            out,
            "{cpu}, {cores} cores, {memory_mib} MiB, Linux {kernel}, {file_system}, \
             fdatasync of 8 KiB {p50_ms:.2} ms (p99 {p99_ms:.2}), load before {load_before:.2}"
        )
    }
}

/// The value of the first `name : value` line.
fn field(text: &str, name: &str) -> Option<String> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

/// The type of the file system with the longest mount point above `directory`.
fn file_system(mounts: &str, directory: &Path) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let above = mounts.filter(|(point, _)| directory.starts_with(point));
    above
        .max_by_key(|(point, _)| point.len())
        .map_or_else(|| String::from("unknown"), |(_, kind)| kind.to_owned())
}

fn time_syncs(directory: &Path) -> std::io::Result<Percentiles> {
    let path = directory.join("fdatasync");
    let mut file = fs::File::create(&path)?;
    let block = vec![0_u8; SYNC_BYTES];
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let begun = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    fs::remove_file(path)?;
    Ok(Percentiles::of(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmpfiles xfs rw 0 0\n";
        assert_eq!(file_system(mounts, Path::new("/tmp/x")), "tmpfs");
        assert_eq!(file_system(mounts, Path::new("/tmpfile")), "ext4");
        assert_eq!(file_system("", Path::new("/")), "unknown");
    }

    #[test]
    fn this_machine_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::of(directory.path()).unwrap();
        assert!(
            machine.cores > 0 && machine.memory_mib > 0 && machine.fdatasync.count == SYNCS,
            "{machine}"
        );
    }
}
