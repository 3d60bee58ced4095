//! Child processes on a lifeline: they end when their parent does, however it ends.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cluster::file::{ClusterFile, machine_name};
use ordering::identifiers::MachineId;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::state;

/// How long a child may take to end after SIGTERM.
const STOP_MS_MAX: u64 = 15_000;

/// A node or the proxy. Its standard input is the lifeline.
pub(crate) struct ChildProcess {
    /// For messages: the machine's name, or `proxy`.
    pub(crate) name: String,
    child: Child,
    /// The child ends when this does. (Waiting for a child would close its standard input.)
    _lifeline: Option<ChildStdin>,
}

impl ChildProcess {
    /// Starts the node of a machine.
    pub(crate) fn node(file: &ClusterFile, machine: MachineId) -> std::io::Result<Self> {
        let name = machine_name(machine);
        Self::start(
            name.clone(),
            &["node", "--machine", &name],
            file,
            &file.layout().node_log(machine),
        )
    }

    /// Starts the counter process of a machine.
    pub(crate) fn counter(file: &ClusterFile, machine: MachineId) -> std::io::Result<Self> {
        let (machine_name, log) = (machine_name(machine), file.layout().counter_log(machine));
        Self::start(
            format!("counter of {machine_name}"),
            &["counter", "--machine", &machine_name],
            file,
            &log,
        )
    }

    /// Starts the proxy.
    pub(crate) fn proxy(file: &ClusterFile) -> std::io::Result<Self> {
        Self::start(String::from("proxy"), &["proxy"], file, &file.layout().proxy_log())
    }

    fn start(name: String, arguments: &[&str], file: &ClusterFile, log: &Path) -> std::io::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .arg("--lifeline")
            .arg("--config")
            .arg(&file.path)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C at the terminal is for `up`, which stops its children in order.
            .process_group(0)
            .spawn()?;
        let lifeline = child.stdin.take();
        Ok(Self {
            name,
            child,
            _lifeline: lifeline,
        })
    }

    /// The process id while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; says how it ended.
    pub(crate) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends it, gently at first.
    pub(crate) async fn stop(&mut self) {
        let Some(pid) = self.pid() else { return };
        state::terminate(pid);
        if timeout(Duration::from_millis(STOP_MS_MAX), self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
    }
}
