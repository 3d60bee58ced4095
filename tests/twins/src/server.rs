//! A PostgreSQL server of a run: started once, killed and started again as often as seeds want.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use voter::PostgresConfig;

const BINARIES: &str = "/usr/lib/postgresql/15/bin";
const PORT: u16 = 5432;

/// The role of the applications.
pub const APPLICATION: &str = "application";

/// The database that each seed's database is a copy of.
pub const TEMPLATE: &str = "pattern";

/// How a server is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGQUIT: the postmaster ends its backends and itself at once, without a checkpoint.
    Quit,
    /// SIGKILL to the postmaster and everything that it started, as a power cut would.
    Kill,
}

/// A server.
pub struct Server {
    directory: tempfile::TempDir,
    process: Mutex<Option<Child>>,
}

/// PostgreSQL refuses to run as root.
fn unprivileged() -> Option<(u32, u32)> {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line.expect("a user postgres").split(':').skip(2);
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

/// In memory where there is such a place: fsync stays on, and costs nothing.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

impl Server {
    /// A new server with the database [`TEMPLATE`], filled by `schema` as [`APPLICATION`].
    pub fn start(schema: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("twins").tempdir_in(place()).unwrap();
        if let Some((uid, gid)) = unprivileged() {
            std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let options = [
            "-U",
            "postgres",
            "--auth=trust",
            "--locale=C",
            "--encoding=UTF8",
            "-N",
            "-D",
        ];
        let mut initdb = command("initdb");
        initdb
            .args(options)
            .arg(directory.path().join("data"))
            .stdout(Stdio::null());
        assert!(initdb.status().unwrap().success(), "initdb fails");
        let server = Self {
            directory,
            process: Mutex::new(None),
        };
        server.start_again();
        server.psql("postgres", "postgres", &format!("CREATE ROLE {APPLICATION} LOGIN"));
        server.psql("postgres", "postgres", &format!("CREATE DATABASE {TEMPLATE}"));
        server.psql(
            TEMPLATE,
            "postgres",
            &format!("GRANT ALL ON SCHEMA public TO {APPLICATION}"),
        );
        server.psql(
            TEMPLATE,
            "postgres",
            &format!("GRANT CREATE ON DATABASE {TEMPLATE} TO {APPLICATION}"),
        );
        server.psql(TEMPLATE, APPLICATION, schema);
        // A crash sets sequences forward that were moved since the last checkpoint: not in the pattern.
        server.psql("postgres", "postgres", "CHECKPOINT");
        server
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its process is there.
    pub fn is_running(&self) -> bool {
        self.process().is_some()
    }

    /// Starts the server (again), and waits until it answers.
    pub fn start_again(&self) {
        let settings = [
            "listen_addresses=",
            "max_connections=120",
            "fsync=on",
            "synchronous_commit=off",
            "shared_buffers=64MB",
            "wal_writer_delay=10s",
            "autovacuum=off",
            "wal_level=logical",
            "max_replication_slots=20",
            "max_wal_senders=20",
            "jit=off",
            // Where it is removed with the server, however that ends.
            "dynamic_shared_memory_type=mmap",
            "log_min_messages=fatal",
        ];
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.try_psql("postgres", "postgres", "SELECT 1").status.success() {
            assert!(Instant::now() < deadline, "the server does not start");
            // It gives up while a backend that was killed with the last one has not ended.
            let is_alive = matches!(self.process().as_mut().map(Child::try_wait), Some(Ok(None)));
            if !is_alive {
                let _ = std::fs::remove_file(self.directory.path().join("data/postmaster.pid"));
                *self.process() = Some(self.spawn(&settings));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn spawn(&self, settings: &[&str]) -> Child {
        let log = std::fs::File::create(self.directory.path().join("log")).unwrap();
        let mut postgres = command("postgres");
        postgres.arg("-D").arg(self.directory.path().join("data"));
        postgres
            .arg("-k")
            .arg(self.directory.path())
            .args(["-p", &PORT.to_string()]);
        for setting in settings {
            postgres.args(["-c", setting]);
        }
        postgres.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Ends the server.
    pub fn end(&self, ending: Ending) {
        let Some(mut process) = self.process().take() else {
            return;
        };
        let id = process.id();
        match ending {
            Ending::Quit => signal(&id.to_string(), Signal::SIGQUIT),
            Ending::Kill => {
                let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
                signal(&id.to_string(), Signal::SIGKILL);
                children
                    .split_whitespace()
                    .for_each(|child| signal(child, Signal::SIGKILL));
            }
        }
        let _ = process.wait();
        let _ = std::fs::remove_file(self.directory.path().join("data/postmaster.pid"));
    }

    fn try_psql(&self, database: &str, role: &str, text: &str) -> std::process::Output {
        let mut psql = command("psql");
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            role,
            "-d",
            database,
        ]);
        psql.arg("-h").arg(self.directory.path());
        psql.args(["-p", &PORT.to_string(), "-c", text]).output().unwrap()
    }

    fn psql(&self, database: &str, role: &str, text: &str) {
        let output = self.try_psql(database, role, text);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A connection as superuser.
    ///
    /// # Errors
    /// When the server is not there.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(self.directory.path())
            .port(PORT)
            .user("postgres")
            .dbname(database);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// How a voter finds a database of it.
    pub fn config(&self, database: &str) -> PostgresConfig {
        PostgresConfig {
            socket_directory: self.directory.path().to_owned(),
            port: PORT,
            database: database.into(),
            superuser: "postgres".into(),
            major_version: 15,
        }
    }
}

fn signal(process: &str, signal: Signal) {
    if let Ok(id) = process.parse() {
        // A child may have ended by itself.
        let _ = kill(Pid::from_raw(id), signal);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Ending::Kill);
    }
}
