//! A PostgreSQL of the test's own, in a directory of its own.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Where Debian keeps the server's programs; elsewhere they are searched in PATH.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// PostgreSQL refuses to run as root; the tests then run it as this user.
const UNPRIVILEGED_USER: &str = "postgres";
const START_TIME_MAX: Duration = Duration::from_secs(30);

pub(crate) struct PostgresServer {
    directory: TempDir,
    port: u16,
    dsn: String,
    process: Child,
}

impl PostgresServer {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        if let Some((user, group)) = unprivileged_user() {
            chown(&data, Some(user), Some(group)).unwrap();
        }
        let made = program("initdb")
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .arg("--pgdata")
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = spawn(&data, port);
        let dsn = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
        let server = Self {
            directory,
            port,
            dsn,
            process,
        };
        server.wait_until_ready();
        server
    }

    pub(crate) fn dsn(&self) -> &str {
        &self.dsn
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Ends the server as a crash would, and starts it again.
    #[allow(dead_code)]
    pub(crate) fn restart(&mut self) {
        self.stop("QUIT");
        self.process = spawn(&self.data(), self.port);
        self.wait_until_ready();
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn stop(&mut self, signal: &str) {
        let process_id = self.process.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &process_id]).status();
        assert!(sent.unwrap().success());
        self.process.wait().unwrap();
    }

    fn wait_until_ready(&self) {
        let begun = Instant::now();
        let port = self.port.to_string();
        loop {
            let ready = program("pg_isready")
                .args(["--quiet", "--host=127.0.0.1", "--port", &port])
                .status();
            if ready.unwrap().success() {
                return;
            }
            assert!(begun.elapsed() < START_TIME_MAX, "PostgreSQL does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop("QUIT");
    }
}

fn spawn(data: &Path, port: u16) -> Child {
    program("postgres")
        .arg("-D")
        .arg(data)
        .args(["-p", &port.to_string(), "-k", "", "-c", "listen_addresses=127.0.0.1"])
        .args([
            "-c",
            "shared_buffers=64MB",
            "-c",
            "log_min_messages=fatal",
            "-c",
            "deadlock_timeout=100ms",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A program of PostgreSQL, run by a user that it accepts.
fn program(name: &str) -> Command {
    let installed = Path::new(PROGRAMS).join(name);
    let mut command = if installed.exists() {
        Command::new(installed)
    } else {
        Command::new(name)
    };
    command.current_dir("/");
    if let Some((user, group)) = unprivileged_user() {
        command.uid(user).gid(group);
    }
    command
}

/// User and group to run as, if the test itself runs as root.
fn unprivileged_user() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| -> u32 {
        let output = Command::new("id").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    let is_root = id(&["-u"]) == 0;
    is_root.then(|| (id(&["-u", UNPRIVILEGED_USER]), id(&["-g", UNPRIVILEGED_USER])))
}
