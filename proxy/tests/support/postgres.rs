//! A real PostgreSQL server for one test.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The superuser, as which voters keep their books.
const SUPERUSER: &str = "keeper";
/// The application's role has the name of the database, and no more rights than an application may have.
const APPLICATION_SQL: &[u8] = b"CREATE ROLE postgres LOGIN;\nALTER DATABASE postgres OWNER TO postgres;\n";

const BINARIES: &str = "/usr/lib/postgresql/15/bin";

pub struct Postgres {
    child: Child,
    directory: tempfile::TempDir,
    pub port: u16,
}

/// When root: the user under which PostgreSQL agrees to run.
fn unprivileged() -> Option<nix::unistd::User> {
    nix::unistd::geteuid()
        .is_root()
        .then(|| nix::unistd::User::from_name("postgres").unwrap().unwrap())
}

fn command(program: &str) -> Command {
    let mut command = Command::new(Path::new(BINARIES).join(program));
    if let Some(user) = unprivileged() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/tmp");
    command
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("bft").tempdir_in("/tmp").unwrap();
    if let Some(user) = unprivileged() {
        chown(directory.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    directory
}

/// One initdb for all tests of this process.
fn template() -> PathBuf {
    static TEMPLATE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let template = TEMPLATE.get_or_init(|| {
        let directory = directory();
        let status = command("initdb")
            .args([
                "-U",
                SUPERUSER,
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ])
            .arg(directory.path().join("data"))
            .status()
            .unwrap();
        assert!(status.success(), "initdb failed");
        let mut single = command("postgres")
            .args(["--single", "-F", "-D"])
            .arg(directory.path().join("data"))
            .arg("postgres")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        single.stdin.take().unwrap().write_all(APPLICATION_SQL).unwrap();
        assert!(single.wait().unwrap().success(), "the application's role is not made");
        directory
    });
    template.path().join("data")
}

impl Postgres {
    pub fn start() -> Arc<Postgres> {
        let directory = directory();
        let data = directory.path().join("data");
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(template()).arg(&data);
        assert!(copy.status().unwrap().success());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = command("postgres")
            .arg("-D")
            .arg(&data)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "max_connections=150",
                "-c",
                "shared_buffers=32MB",
                "-k",
            ])
            .arg(directory.path())
            .args(["-p", &port.to_string()])
            .spawn()
            .unwrap();
        let postgres = Arc::new(Postgres { child, directory, port });
        postgres.wait_until_up();
        postgres
    }

    /// How a voter finds it.
    pub fn config(&self) -> voter::PostgresConfig {
        voter::PostgresConfig {
            socket_directory: self.directory.path().to_owned(),
            port: self.port,
            database: "postgres".into(),
            superuser: SUPERUSER.into(),
            major_version: 15,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join(format!(".s.PGSQL.{}", self.port))
    }

    fn wait_until_up(&self) {
        let start = Instant::now();
        let mut ready = command("pg_isready");
        ready
            .arg("-q")
            .arg("-h")
            .arg(self.directory.path())
            .args(["-p", &self.port.to_string()]);
        while !ready.status().unwrap().success() {
            assert!(start.elapsed() < Duration::from_secs(60), "PostgreSQL does not start");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// A client that bypasses the proxy.
    pub async fn connect(&self) -> tokio_postgres::Client {
        self.connect_as("postgres").await
    }

    /// A client that bypasses the proxy, and may see what the sessions of all roles run.
    pub async fn supervise(&self) -> tokio_postgres::Client {
        self.connect_as(SUPERUSER).await
    }

    async fn connect_as(&self, role: &str) -> tokio_postgres::Client {
        let text = format!(
            "host={} port={} user={role} dbname=postgres",
            self.directory.path().display(),
            self.port
        );
        let (client, connection) = tokio_postgres::connect(&text, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        client
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}
