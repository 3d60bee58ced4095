//! Holding machines to a share of the CPU, by control groups: version 2 (`cpu.max`) or version 1 (`cpu.cfs_quota_us`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{Error, system_error};

/// The time over which a share is kept. Short, so that a machine that has used its share waits briefly.
const PERIOD_US: u32 = 20_000;
/// How long the processes of a group may take to be gone before it is left behind.
const EMPTY_MS_MAX: u64 = 5_000;
const POLL_MS: u64 = 25;
/// Groups of this process so far: their names differ.
static GROUPS: AtomicU32 = AtomicU32::new(0);

/// How much of one processor a machine may use: more than 0, and above 1 for several processors.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) struct Share(f64);

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
        match (0.05..=64.0).contains(&share) {
            true => Ok(Self(share)),
            false => Err(String::from("a share lies between 0.05 and 64 processors")),
        }
    }
}

impl Share {
    /// The share, as the part of one processor.
    pub(crate) fn processors(self) -> f64 {
        self.0
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn quota_us(self) -> u32 {
        (self.0 * f64::from(PERIOD_US)) as u32
    }
}

/// Where control groups for CPU time are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchy {
    /// The mount point of version 1's controller `cpu`.
    One(PathBuf),
    /// The mount point of version 2.
    Two(PathBuf),
}

impl Hierarchy {
    /// From /proc/mounts. Version 2 is used when it has the controller, which then is in no hierarchy of version 1.
    fn find(mounts: &str, controllers: impl Fn(&Path) -> String) -> Option<Self> {
        let mut found = None;
        for line in mounts.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let [_, point, kind, options, ..] = words.as_slice() else {
                continue;
            };
            let point = PathBuf::from(point);
            let has_cpu = |words: &str, separator| words.trim().split(separator).any(|word| word == "cpu");
            match *kind {
                "cgroup2" if has_cpu(&controllers(&point), ' ') => return Some(Self::Two(point)),
                "cgroup" if has_cpu(options, ',') => found = Some(Self::One(point)),
                _ => {}
            }
        }
        found
    }

    fn of_this_machine() -> Result<Self, Error> {
        let mounts = fs::read_to_string("/proc/mounts").map_err(system_error("/proc/mounts"))?;
        let controllers = |point: &Path| fs::read_to_string(point.join("cgroup.controllers")).unwrap_or_default();
        Self::find(&mounts, controllers)
            .ok_or_else(|| Error::Answer(String::from("--share: no control groups for CPU time are mounted")))
    }

    /// Makes a group with a limit.
    fn make(&self, share: Share) -> io::Result<PathBuf> {
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let name = format!("cloudbft-bench.{}.{number}", std::process::id());
        let quota = share.quota_us();
        match self {
            Self::Two(point) => {
                let group = point.join(name);
                fs::write(point.join("cgroup.subtree_control"), "+cpu")?;
                fs::create_dir(&group)?;
                fs::write(group.join("cpu.max"), format!("{quota} {PERIOD_US}"))?;
                Ok(group)
            }
            Self::One(point) => {
                let group = point.join(name);
                fs::create_dir(&group)?;
                fs::write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
                fs::write(group.join("cpu.cfs_quota_us"), quota.to_string())?;
                Ok(group)
            }
        }
    }
}

/// The processes of one machine, which together get a share of the CPU; the group is removed when dropped.
#[derive(Debug)]
pub(crate) struct Limited {
    group: PathBuf,
}

impl Limited {
    /// Holds processes, and whatever they start from now on, to a share.
    ///
    /// # Errors
    /// When there are no control groups, or none that we may make.
    pub(crate) fn hold(pids: &[u32], share: Share) -> Result<Self, Error> {
        let hierarchy = Hierarchy::of_this_machine()?;
        let what = "--share needs control groups that this user may write (is it root?)";
        let group = hierarchy.make(share).map_err(system_error(what))?;
        let limited = Self { group };
        for pid in pids {
            match fs::write(limited.group.join("cgroup.procs"), pid.to_string()) {
                Ok(()) => {}
                // It has ended since we looked.
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                Err(source) => {
                    let what = format!("--share: process {pid} cannot be put into a control group");
                    return Err(Error::System { what, source });
                }
            }
        }
        Ok(limited)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(EMPTY_MS_MAX);
        // A group is busy until the last of its processes is gone.
        while let Err(error) = fs::remove_dir(&self.group) {
            if Instant::now() > deadline {
                super::compare::progress(&format!("{} is left behind: {error}", self.group.display()));
                return;
            }
            std::thread::sleep(Duration::from_millis(POLL_MS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_with_the_controller_is_found() {
        let one = "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
                   cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n\
                   cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let without = |_: &Path| String::from("hugetlb\n");
        assert_eq!(
            Hierarchy::find(one, without),
            Some(Hierarchy::One(PathBuf::from("/sys/fs/cgroup/cpu")))
        );
        let with = |_: &Path| String::from("cpuset cpu io\n");
        let two = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(
            Hierarchy::find(two, with),
            Some(Hierarchy::Two(PathBuf::from("/sys/fs/cgroup")))
        );
        assert_eq!(Hierarchy::find(two, without), None);
    }

    #[test]
    fn shares_are_numbers_above_nothing() {
        assert_eq!("0.3".parse::<Share>().unwrap().quota_us(), 6_000);
        for wrong in ["0", "-1", "x", "NaN", "65"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_held_process_gets_its_share() {
        let mut busy = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let limited = match Limited::hold(&[busy.id()], "0.1".parse().unwrap()) {
            Ok(limited) => limited,
            Err(error) => {
                busy.kill().unwrap();
                busy.wait().unwrap();
                assert!(error.to_string().contains("--share"), "{error}");
                return;
            }
        };
        let begun = Instant::now();
        let cpu = || super::super::process::Tree::below(&[busy.id()]).cpu().total();
        let before = cpu();
        std::thread::sleep(Duration::from_secs(2));
        let used = (cpu() - before) / begun.elapsed().as_secs_f64();
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(used < 0.15, "{used}");
        let group = limited.group.clone();
        drop(limited);
        assert!(!group.exists());
    }
}
