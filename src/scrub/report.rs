//! The findings of a pass: printed, and kept for `cloudbft status`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::file::machine_name;
use ordering::identifiers::MachineId;
use serde::{Deserialize, Serialize};

/// So many differences of one machine, and so many of anything else, are told; the others are counted.
pub(super) const LISTED_MAX: usize = 20;

/// The differences between one machine's database and f+1 others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Differences {
    /// How many ranges, indexes and so on.
    pub(crate) count: u64,
    /// The first of them.
    pub(crate) listed: Vec<String>,
    /// Whether it was taken out of service.
    pub(crate) noted: bool,
}

/// The findings of a pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// When the pass began, in seconds since 1970.
    pub(crate) began_seconds: f64,
    /// When the pass ended, in seconds since 1970.
    pub(crate) ended_seconds: f64,
    /// Tables that were compared.
    pub(crate) tables: u64,
    /// Ranges that were compared.
    pub(crate) ranges: u64,
    /// Rows that were compared, as most databases count them.
    pub(crate) rows: u64,
    /// Indexes that were checked, over all machines.
    pub(crate) indexes: u64,
    /// By machine.
    pub(crate) differences: BTreeMap<String, Differences>,
    /// Of what no f+1 databases hold the same: how much, and the first of it.
    pub(crate) disputed: u64,
    /// The first places in dispute.
    pub(crate) disputed_listed: Vec<String>,
    /// Parts that were not compared, and why.
    pub(crate) not_compared: Vec<String>,
}

impl Report {
    pub(super) fn begin() -> Self {
        Self {
            began_seconds: now_seconds(),
            ..Self::default()
        }
    }

    pub(super) fn not_compared(&mut self, what: String) {
        if self.not_compared.len() < LISTED_MAX && !self.not_compared.contains(&what) {
            println!("NOT COMPARED: {what}");
            self.not_compared.push(what);
        }
    }

    pub(super) fn dispute(&mut self, what: &str) {
        self.disputed += 1;
        if self.disputed_listed.len() < LISTED_MAX {
            println!("NO f+1 DATABASES HOLD THE SAME: {what}");
            self.disputed_listed.push(what.to_owned());
        }
    }

    pub(super) fn differs(&mut self, id: MachineId, what: &str) {
        let differences = self.differences.entry(machine_name(id)).or_default();
        differences.count += 1;
        if differences.listed.len() < LISTED_MAX {
            println!("{} DIFFERS: {what}", machine_name(id));
            differences.listed.push(what.to_owned());
        }
    }

    /// The difference was gone when it was looked at again.
    pub(super) fn withdraw(&mut self, id: MachineId) {
        if self.differences.remove(&machine_name(id)).is_some() {
            println!("{}: it differs no more", machine_name(id));
        }
    }

    pub(super) fn noted(&mut self, id: MachineId) {
        self.differences.entry(machine_name(id)).or_default().noted = true;
    }

    /// Everything that differs, on whatever machine, and what is in dispute.
    pub(super) fn differences(&self) -> u64 {
        let counts = self.differences.values().map(|differences| differences.count);
        counts.sum::<u64>() + self.disputed
    }

    /// Says it in a few lines.
    pub(super) fn print(&self) {
        let Self {
            tables,
            ranges,
            rows,
            indexes,
            ..
        } = self;
        let seconds = self.ended_seconds - self.began_seconds;
        println!(
            "compared {rows} rows of {tables} tables in {ranges} ranges, checked {indexes} indexes, in {seconds:.1} s"
        );
        for (name, Differences { count, noted, .. }) in &self.differences {
            let noted = match noted {
                true => "it is out of service, and `up` repairs it if automatic_repair is on",
                false => "it still serves",
            };
            println!("{name} holds something else than f+1 others in {count} places: {noted}");
        }
        if self.disputed > 0 {
            println!(
                "IN {} PLACES NO f+1 DATABASES HOLD THE SAME: nobody knows which one is right, and nothing was done. `cloudbft verify` \
                 shows a difference; compare it with what applications know, and repair one machine with --from another",
                self.disputed
            );
        }
        if self.differences() == 0 {
            match self.not_compared.is_empty() {
                true => println!("all databases hold the same data"),
                false => println!("no difference was found; NOT ALL was compared"),
            }
        }
    }

    /// The report of the last pass; `None` when there was none.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
    }

    /// Puts it where [`Report::read`] finds it.
    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        let unfinished = path.with_extension("unfinished");
        std::fs::write(&unfinished, serde_json::to_string_pretty(self)?)?;
        std::fs::rename(unfinished, path)
    }

    /// For `cloudbft status`.
    pub(crate) fn print_status(&self) {
        let age = Duration::try_from_secs_f64(now_seconds() - self.ended_seconds);
        let age = age.unwrap_or_default().as_secs();
        println!(
            "scrub: ended {age} s ago, {} ranges compared, {} differences",
            self.ranges,
            self.differences()
        );
        for (name, differences) in &self.differences {
            if let Some(first) = differences.listed.first() {
                println!(
                    "{name}: differed from f+1 others in {} places, the first: {first}",
                    differences.count
                );
            }
        }
        if let Some(first) = self.disputed_listed.first() {
            println!(
                "IN {} PLACES NO f+1 DATABASES HELD THE SAME, the first: {first}",
                self.disputed
            );
        }
        for what in &self.not_compared {
            println!("scrub: not compared: {what}");
        }
    }
}

/// In whole milliseconds: with more digits, JSON is not read as it was written.
pub(super) fn now_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_millis() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written_and_lists_a_bounded_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scrub.json");
        assert_eq!(Report::read(&path), None);
        let mut report = Report::begin();
        for number in 0..100 {
            report.differs(MachineId(2), &format!("row {number}"));
            report.dispute("row");
            report.not_compared(format!("{number}"));
        }
        report.noted(MachineId(2));
        report.write(&path).unwrap();
        let read = Report::read(&path).unwrap();
        assert_eq!(read, report);
        assert_eq!(read.differences(), 200);
        assert_eq!(read.differences["m2"].listed.len(), LISTED_MAX);
        assert_eq!(read.disputed_listed.len(), LISTED_MAX);
        assert_eq!(read.not_compared.len(), LISTED_MAX);
    }
}
