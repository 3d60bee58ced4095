//! A running cluster of `cloudbft up`.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a test helper fails with.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The `cloudbft` program of the profile that the test was built with; built first, so that it is never stale.
///
/// # Errors
/// When it cannot be built.
pub fn program() -> Result<&'static Path, Failure> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = PROGRAM.get_or_init(|| build().map_err(|error| error.to_string()));
    built.as_deref().map_err(|error| error.clone().into())
}

fn build() -> Result<PathBuf, Failure> {
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(Path::parent)
        .ok_or("the test runs outside a target directory")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--package", "cloudbft"]);
    if profile.file_name().is_some_and(|name| name == "release") {
        command.arg("--release");
    }
    if !command.status()?.success() {
        return Err("cargo build failed".into());
    }
    Ok(profile.join("cloudbft"))
}

/// A directory for clusters that the user `postgres` may enter; removed at the end.
pub struct Directory(tempfile::TempDir);

impl Directory {
    /// A new one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self, Failure> {
        let directory = tempfile::tempdir()?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711))?;
        Ok(Self(directory))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs a command of `cloudbft` on the cluster of this directory to its end.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Result<Output, Failure> {
        let mut running = Command::new(program()?);
        Ok(running
            .arg(command)
            .arg("--dir")
            .arg(self.path())
            .args(arguments)
            .output()?)
    }

    /// What `cloudbft status --json` prints.
    ///
    /// # Errors
    /// When there is no such output.
    pub fn status(&self) -> Result<serde_json::Value, Failure> {
        Ok(serde_json::from_slice(&self.run("status", &["--json"])?.stdout)?)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Also when a test fails: nothing is left running.
        let _ = self.run("down", &[]);
    }
}

/// A running `cloudbft up` in the foreground.
pub struct Cluster {
    child: Child,
    /// What applications connect to.
    pub dsn: String,
}

impl Cluster {
    /// Starts the cluster of a directory, and waits until it is ready. A new one listens on a free port.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn up(directory: &Directory, arguments: &[&str]) -> Result<Self, Failure> {
        let mut command = Command::new(program()?);
        command.arg("up").arg("--dir").arg(directory.path()).args(arguments);
        if !directory.path().join("cluster.toml").exists() {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let Some(dsn) = line.trim().strip_prefix("ready ") else {
            child.wait()?;
            return Err(format!("`up` printed {line:?}").into());
        };
        Ok(Self {
            child,
            dsn: dsn.to_owned(),
        })
    }

    /// The process id of `up`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connection through the proxy.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, Failure> {
        let (client, connection) = tokio_postgres::connect(&self.dsn, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Ends it as Ctrl-C does, and waits.
    ///
    /// # Errors
    /// When it fails.
    pub fn stop(mut self) -> Result<(), Failure> {
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGINT)?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("`up` ended with {status}").into())
        }
    }

    /// Kills `up` and everything that it has started, all at once.
    ///
    /// # Errors
    /// When the processes cannot be found.
    pub fn power_cut(mut self, directory: &Directory) -> Result<(), Failure> {
        let status = directory.status()?;
        let machines = status["machines"].as_array().ok_or("no machines")?.iter();
        let pids = machines.flat_map(|machine| [&machine["node_pid"], &machine["postgres_pid"]]);
        let pids: Vec<_> = pids
            .chain([&status["proxy_pid"]])
            .filter_map(serde_json::Value::as_i64)
            .collect();
        self.child.kill()?;
        for pid in pids {
            let _ = kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL);
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Its children notice, and end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
