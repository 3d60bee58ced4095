//! What a running `up` leaves in its directory for `status` and `down`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use cluster::file::Layout;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ordering::identifiers::MachineId;
use serde::{Deserialize, Serialize};

/// The process ids of a running cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct UpState {
    /// `up` itself.
    pub(crate) up_pid: u32,
    /// The proxy.
    pub(crate) proxy_pid: Option<u32>,
    /// The nodes, by machine name.
    pub(crate) node_pids: BTreeMap<String, u32>,
    /// The counter processes, if there are any.
    pub(crate) counter_pids: Vec<u32>,
}

impl UpState {
    /// What the last `up` wrote; nothing when there was none.
    pub(crate) fn read(layout: &Layout) -> Self {
        let text = fs::read_to_string(layout.state()).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Replaces the file.
    pub(crate) fn write(&self, layout: &Layout) -> io::Result<()> {
        let unfinished = layout.state().with_extension("unfinished");
        fs::write(&unfinished, serde_json::to_string_pretty(self)?)?;
        fs::rename(unfinished, layout.state())
    }

    /// The children's process ids.
    pub(crate) fn children(&self) -> impl Iterator<Item = u32> + '_ {
        self.proxy_pid
            .into_iter()
            .chain(self.node_pids.values().copied())
            .chain(self.counter_pids.iter().copied())
    }
}

/// Takes the lock that a running `up` holds; `None` when another one has it.
pub(crate) fn lock(layout: &Layout) -> io::Result<Option<Flock<File>>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(layout.lock())?;
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok())
}

/// Takes a lock of a machine's database server, whole or shared; `None` when another process has one that excludes it.
pub(crate) fn database_lock(layout: &Layout, id: MachineId, kind: FlockArg) -> io::Result<Option<Flock<File>>> {
    let path = layout.machine_database_lock(id);
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    Ok(Flock::lock(file, kind).ok())
}

/// Whether a process is a living one of ours for this cluster (process ids are reused).
pub(crate) fn is_ours(pid: u32, directory: &Path) -> bool {
    // Zombies have no command line.
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let directory = directory.display().to_string();
    let program = words.first().is_some_and(|program| program.contains("cloudbft"));
    let command = words.iter().any(|word| matches!(&**word, "node" | "proxy" | "counter"));
    program && command && words.iter().any(|word| word.starts_with(&directory))
}

/// Asks a process to end.
pub(crate) fn terminate(pid: u32) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
}

/// Waits for processes of an earlier `up` that was killed (they notice by their lifeline), and kills them if need be.
pub(crate) async fn clear_leftovers(layout: &Layout, patience: Duration) {
    let deadline = Instant::now() + patience;
    let state = UpState::read(layout);
    loop {
        let left: Vec<_> = state
            .children()
            .filter(|pid| is_ours(*pid, layout.directory()))
            .collect();
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            for pid in left {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
