//! A PostgreSQL server of its own for one test.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use voter::PostgresConfig;

const BINARIES: &str = "/usr/lib/postgresql/15/bin";
const PORT: u16 = 5432;

/// The role of the application in tests.
pub(crate) const APPLICATION: &str = "application";

pub(crate) struct Server {
    directory: tempfile::TempDir,
    process: Option<Child>,
}

/// PostgreSQL refuses to run as root.
fn unprivileged() -> Option<(u32, u32)> {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("a user postgres");
    let mut fields = line.split(':').skip(2);
    let uid = fields.next().unwrap().parse().unwrap();
    Some((uid, fields.next().unwrap().parse().unwrap()))
}

fn command(binary: &str) -> Command {
    let mut command = Command::new(Path::new(BINARIES).join(binary));
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").stdin(Stdio::null());
    command
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("cbv").tempdir().unwrap();
    if let Some((uid, gid)) = unprivileged() {
        std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid)).unwrap();
    }
    directory
}

/// One initdb for all test runs on this machine.
fn template() -> PathBuf {
    static ONCE: OnceLock<()> = OnceLock::new();
    let template = std::env::temp_dir().join("cloudbft-voter-tests-postgresql-15");
    ONCE.get_or_init(|| {
        if template.exists() {
            return;
        }
        let directory = directory();
        let data = directory.path().join("data");
        let done = command("initdb")
            .args([
                "-U",
                "postgres",
                "--auth=trust",
                "--locale=C",
                "--encoding=UTF8",
                "-N",
                "-D",
            ])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(done.success());
        // Another run may have been faster.
        let _ = std::fs::rename(directory.path(), &template);
    });
    template.join("data")
}

impl Server {
    /// A server with database `test` and role [`APPLICATION`], which may create tables.
    pub(crate) fn start() -> Self {
        let directory = directory();
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(template()).arg(directory.path());
        assert!(copy.status().unwrap().success());
        let mut server = Self {
            directory,
            process: None,
        };
        server.restart();
        server.psql("postgres", "CREATE DATABASE test");
        server.psql(
            "test",
            "CREATE ROLE application LOGIN; GRANT ALL ON SCHEMA public TO application",
        );
        server
    }

    /// Starts the server (again).
    pub(crate) fn restart(&mut self) {
        let data = self.directory.path().join("data");
        let log = std::fs::File::create(self.directory.path().join("log")).unwrap();
        let process = command("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(self.directory.path())
            .args([
                "-p",
                &PORT.to_string(),
                "-c",
                "listen_addresses=",
                "-c",
                "max_connections=120",
            ])
            .args([
                "-c",
                "fsync=on",
                "-c",
                "synchronous_commit=off",
                "-c",
                "shared_buffers=32MB",
            ])
            .args(["-c", "wal_writer_delay=10s", "-c", "log_min_messages=fatal"])
            .args(["-c", "wal_level=logical", "-c", "max_slot_wal_keep_size=64MB"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.try_psql("postgres", "SELECT 1").status.success() {
            assert!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills the postmaster and all its children, as a power cut of the server alone would.
    pub(crate) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let children =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.id())).unwrap_or_default();
        process.kill().unwrap();
        for child in children.split_whitespace() {
            let _ = Command::new("kill").args(["-9", child]).stderr(Stdio::null()).status();
        }
        process.wait().unwrap();
        let _ = std::fs::remove_file(self.directory.path().join("data/postmaster.pid"));
        std::thread::sleep(Duration::from_millis(100));
    }

    fn psql_command(&self, database: &str, text: &str) -> Command {
        let mut psql = command("psql");
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-U",
            "postgres",
            "-d",
            database,
            "-v",
            "ON_ERROR_STOP=1",
        ]);
        psql.arg("-h")
            .arg(self.directory.path())
            .args(["-p", &PORT.to_string(), "-c", text]);
        psql
    }

    fn try_psql(&self, database: &str, text: &str) -> std::process::Output {
        self.psql_command(database, text).output().unwrap()
    }

    /// Starts psql as superuser, which goes on by itself.
    pub(crate) fn psql_behind(&self, database: &str, text: &str) -> Child {
        let mut psql = self.psql_command(database, text);
        psql.stdout(Stdio::null()).spawn().unwrap()
    }

    /// What psql prints, as superuser.
    pub(crate) fn psql(&self, database: &str, text: &str) -> String {
        let output = self.try_psql(database, text);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What the server has logged since it was started.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// How a voter finds it.
    pub(crate) fn config(&self) -> PostgresConfig {
        PostgresConfig {
            socket_directory: self.directory.path().to_owned(),
            port: PORT,
            database: "test".into(),
            superuser: "postgres".into(),
            major_version: 15,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
