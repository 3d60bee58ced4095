//! Databases that need repair are repaired without being asked: `up` runs `cloudbft repair`, which copies a database only from
//! one that holds the same as f others, and compares the result with f+1 (`docs/decisions/0042`).
//!
//! A session can make a database contradict the others again and again, and a copy costs its source disk and time. So one
//! machine is repaired at a time, and the pause before the next repair of the same machine grows.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, Machine, machine_name};
use cluster::node::NEEDS_REPAIR;
use ordering::identifiers::MachineId;

use super::own_command;
use crate::{Failure, status};

/// How often machines are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a machine must say that it needs repair: it says so for a moment after a start too.
const NEEDED_FOR: Duration = Duration::from_secs(5);
/// The pause after a repair before the same machine is repaired again, at first.
const PAUSE: Duration = Duration::from_secs(60);
/// How often that pause doubles at most: up to about an hour.
const PAUSE_DOUBLINGS_MAX: u32 = 6;
/// A machine that has needed no repair for so long is repaired as soon as at first.
const CALM: Duration = Duration::from_secs(2 * 3600);

/// What is known of one machine's repairs.
#[derive(Debug, Default, PartialEq, Eq)]
struct History {
    repairs: u32,
    /// When the last one ended.
    ended: Option<Instant>,
    /// Since when it says that it needs one.
    needed_since: Option<Instant>,
}

impl History {
    /// Notes what the machine says; whether it is to be repaired now.
    fn is_due(&mut self, needs_repair: bool, now: Instant) -> bool {
        if !needs_repair {
            self.needed_since = None;
            return false;
        }
        let since = *self.needed_since.get_or_insert(now);
        if self.ended.is_some_and(|ended| now.duration_since(ended) > CALM) {
            *self = Self {
                needed_since: Some(since),
                ..Self::default()
            };
        }
        let doublings = self.repairs.saturating_sub(1).min(PAUSE_DOUBLINGS_MAX);
        let paused = self
            .ended
            .is_none_or(|ended| now.duration_since(ended) >= PAUSE * 2_u32.pow(doublings));
        paused && now.duration_since(since) >= NEEDED_FOR
    }

    /// A repair has ended, in whatever way.
    fn ended(&mut self, now: Instant) {
        self.repairs = self.repairs.saturating_add(1);
        self.ended = Some(now);
        self.needed_since = None;
    }
}

/// Repairs what needs it, one machine after the other, for ever.
pub(super) async fn repair_unasked(file: ClusterFile) {
    let mut histories: BTreeMap<MachineId, History> = BTreeMap::new();
    let with_database = |machine: &&Machine| machine.database.is_some();
    let machines: Vec<_> = file.machines.iter().filter(with_database).cloned().collect();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        for machine in &machines {
            let node = status::ask(machine).await;
            let needs_repair = node.is_some_and(|node| node.state == NEEDS_REPAIR);
            let history = histories.entry(machine.id).or_default();
            if !history.is_due(needs_repair, Instant::now()) {
                continue;
            }
            let (name, log) = (machine_name(machine.id), file.layout().repair_log(machine.id));
            let log = log.display();
            eprintln!("cloudbft: the database of {name} needs repair; repairing it: {log}");
            match repair(&file, machine).await {
                Ok(true) => eprintln!("cloudbft: the database of {name} is repaired"),
                Ok(false) => {
                    eprintln!("cloudbft: the repair of {name} did not succeed, and is tried again later: {log}")
                }
                Err(error) => eprintln!("cloudbft: the repair of {name} cannot be run: {error}"),
            }
            history.ended(Instant::now());
        }
    }
}

/// Runs `cloudbft repair`: one that is killed leaves the old data or the new.
async fn repair(file: &ClusterFile, machine: &Machine) -> Result<bool, Failure> {
    let log = file.layout().repair_log(machine.id);
    let log = File::options().create(true).append(true).open(log)?;
    let arguments = ["repair", "--machine", &machine_name(machine.id)];
    let status = own_command::run(file, &arguments, log).await?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_repaired_once_it_has_needed_it_for_some_seconds() {
        let (mut history, start) = (History::default(), Instant::now());
        assert!(!history.is_due(true, start));
        assert!(!history.is_due(false, start + NEEDED_FOR));
        assert!(!history.is_due(true, start + NEEDED_FOR), "it was well in between");
        assert!(history.is_due(true, start + 2 * NEEDED_FOR));
    }

    #[test]
    fn the_pause_between_repairs_of_one_machine_grows_to_about_an_hour_and_is_forgotten() {
        let (mut history, mut now) = (History::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let from = now;
            while !history.is_due(true, now) {
                now += Duration::from_secs(1);
            }
            pauses.push((now - from).as_secs());
            history.ended(now);
        }
        assert_eq!(pauses, [5, 60, 120, 240, 480, 960, 1920, 3840, 3840]);
        now += CALM + Duration::from_secs(1);
        assert!(!history.is_due(true, now));
        assert!(history.is_due(true, now + NEEDED_FOR));
    }
}
