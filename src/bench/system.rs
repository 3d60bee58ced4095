//! The systems that are compared: a plain PostgreSQL, and clusters.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster::file::ClusterFile;
use cluster::postgres::{Binaries, DatabaseServer, SUPERUSER, ServerOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::process::Tree;
use super::stages::Histograms;
use super::{CompareOptions, Error, system_error};

/// How long a cluster may take to become ready.
const READY_MS_MAX: u64 = 150_000;
/// How long a system may take to stop before it is killed.
const STOP_MS_MAX: u64 = 45_000;
/// The pause between looks at what stops.
const POLL_MS: u64 = 25;
/// What is shown of a log.
const LOG_LINES: usize = 15;
/// The database and the role of the plain server: those of a cluster by default.
const DATABASE: &str = "app";
/// What decides how durable and how large a server is; shown with the figures.
const SETTINGS: [&str; 9] = [
    "server_version",
    "fsync",
    "synchronous_commit",
    "wal_sync_method",
    "full_page_writes",
    "data_checksums",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
];

/// Which system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SystemName {
    /// One PostgreSQL.
    Plain,
    /// A cluster that locks what a multi-partition operation touches.
    Footprint,
    /// A cluster that locks everything for a multi-partition operation.
    Global,
}

impl SystemName {
    /// As in reports; of clusters it is the value of `multi_partition`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Footprint => "footprint",
            Self::Global => "global",
        }
    }
}

/// A running system; stopped when dropped.
pub(crate) struct System {
    pub(crate) name: SystemName,
    pub(crate) dsn: String,
    server: Server,
}

enum Server {
    Plain(PlainServer),
    Cluster(Box<ClusterProcess>),
}

impl System {
    /// Starts a plain PostgreSQL with its default settings.
    pub(crate) async fn start_plain(directory: &Path) -> Result<Self, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(system_error("no free port"))?;
        let port = listener.local_addr().map_err(system_error("no free port"))?.port();
        drop(listener);
        let sockets = tempfile::tempdir_in("/tmp").map_err(system_error("no directory for sockets"))?;
        let options = ServerOptions {
            directory: directory.join(SystemName::Plain.word()),
            socket_directory: sockets.path().join("sockets"),
            port,
            connections_max: 0,
            shared_buffers_mib: 0,
            database: DATABASE.to_owned(),
            roles: vec![DATABASE.to_owned()],
        };
        let server = DatabaseServer::plain(Binaries::find()?, options);
        let plain = PlainServer {
            server,
            _sockets: sockets,
        };
        plain.server.start().await?;
        let dsn = format!("postgresql://{DATABASE}@127.0.0.1:{port}/{DATABASE}");
        Ok(Self {
            name: SystemName::Plain,
            dsn,
            server: Server::Plain(plain),
        })
    }

    /// Starts a cluster as `cloudbft up`.
    pub(crate) async fn start_cluster(
        directory: &Path,
        name: SystemName,
        options: &CompareOptions,
    ) -> Result<Self, Error> {
        let mut cluster = ClusterProcess::spawn(&directory.join(name.word()), name, options)?;
        let dsn = cluster.wait_ready().await?;
        Ok(Self {
            name,
            dsn,
            server: Server::Cluster(Box::new(cluster)),
        })
    }

    /// Its processes now.
    pub(crate) fn processes(&self) -> Result<Tree, Error> {
        let root = match &self.server {
            Server::Plain(plain) => plain.server.pid(),
            Server::Cluster(cluster) => Some(cluster.child.id()),
        };
        let gone = || Error::Answer(format!("the server processes of `{}` are gone", self.name.word()));
        Ok(Tree::below(root.ok_or_else(gone)?))
    }

    /// What its processes have recorded so far; nothing of a plain server.
    pub(crate) async fn histograms(&self) -> Result<Histograms, Error> {
        let Server::Cluster(cluster) = &self.server else {
            return Ok(Histograms::default());
        };
        let addresses = cluster.metrics_addresses()?;
        Ok(Histograms::scrape(&addresses).await)
    }

    /// The settings of its (first) database server.
    pub(crate) async fn settings(&self) -> Result<BTreeMap<String, String>, Error> {
        let client = match &self.server {
            Server::Plain(plain) => plain.server.connect(DATABASE).await?,
            Server::Cluster(cluster) => cluster.connect_to_database_node().await?,
        };
        let mut settings = BTreeMap::new();
        for name in SETTINGS {
            let row = client.query_one("select current_setting($1)", &[&name]).await?;
            settings.insert(name.to_owned(), row.try_get(0)?);
        }
        Ok(settings)
    }

    /// The end of what its processes said, for a run that failed.
    pub(crate) fn last_words(&self) -> String {
        match &self.server {
            Server::Plain(_) => String::new(),
            Server::Cluster(cluster) => cluster.last_words(),
        }
    }
}

/// A PostgreSQL that is stopped when dropped.
struct PlainServer {
    server: DatabaseServer,
    _sockets: tempfile::TempDir,
}

impl Drop for PlainServer {
    fn drop(&mut self) {
        let Some(pid) = self.server.pid() else { return };
        let _ = kill(process_id(pid), Signal::SIGINT);
        if !ends_in_time(|| self.server.pid().is_none()) {
            let _ = kill(process_id(pid), Signal::SIGKILL);
        }
    }
}

/// A `cloudbft up` of ours; stopped when dropped.
struct ClusterProcess {
    directory: PathBuf,
    child: Child,
}

impl ClusterProcess {
    fn spawn(directory: &Path, name: SystemName, options: &CompareOptions) -> Result<Self, Error> {
        let directory = cluster::file::make_directory(directory).map_err(|error| Error::Answer(error.to_string()))?;
        let log = File::create(directory.join("up.log")).map_err(system_error("up.log"))?;
        let program = match &options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(system_error("the path of this program"))?,
        };
        let mut command = Command::new(program);
        command
            .args([
                "up",
                "--listen",
                "127.0.0.1:0",
                "--multi-partition",
                name.word(),
                "--dir",
            ])
            .arg(&directory);
        if let Some(groups) = options.groups {
            command.arg("--groups").arg(groups.to_string());
        }
        if let Some(counter) = &options.counter {
            command.arg("--counter").arg(counter);
        }
        // A process group of its own: a Ctrl-C at the terminal is for us, and we stop it.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0);
        let child = command.spawn().map_err(system_error("cannot start `cloudbft up`"))?;
        Ok(Self { directory, child })
    }

    /// Waits for `ready DSN`.
    async fn wait_ready(&mut self) -> Result<String, Error> {
        let output = self.child.stdout.take();
        let read_line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            let read = output.map(|output| BufReader::new(output).read_line(&mut line));
            read.and_then(Result::ok).map(|_| line)
        });
        let line = tokio::time::timeout(Duration::from_millis(READY_MS_MAX), read_line).await;
        let line = line.ok().and_then(Result::ok).flatten().unwrap_or_default();
        match line.trim_end().strip_prefix("ready ") {
            Some(dsn) => Ok(dsn.to_owned()),
            None => Err(Error::Answer(format!(
                "`cloudbft up` does not get ready\n{}",
                self.last_words()
            ))),
        }
    }

    fn file(&self) -> Result<ClusterFile, Error> {
        ClusterFile::read(&self.directory.join("cluster.toml")).map_err(|error| Error::Answer(error.to_string()))
    }

    fn metrics_addresses(&self) -> Result<Vec<(&'static str, SocketAddr)>, Error> {
        let file = self.file()?;
        let nodes = file.machines.iter().map(|machine| ("node", machine.metrics));
        Ok(nodes.chain([("proxy", file.tunables.proxy_metrics)]).collect())
    }

    async fn connect_to_database_node(&self) -> Result<tokio_postgres::Client, Error> {
        let file = self.file()?;
        let database = file.machines.iter().find_map(|machine| machine.database.clone());
        let database = database.ok_or_else(|| Error::Answer(String::from("no machine has a database")))?;
        let mut configuration = tokio_postgres::Config::new();
        configuration.host_path(&database.socket_directory).port(database.port);
        configuration.user(SUPERUSER).dbname(&file.tunables.database);
        let (client, connection) = configuration.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn last_words(&self) -> String {
        let mut logs = vec![self.directory.join("up.log")];
        if let Ok(file) = self.file() {
            logs.push(file.layout().proxy_log());
            logs.extend(file.machines.iter().map(|machine| file.layout().node_log(machine.id)));
        }
        let tails = logs.iter().filter_map(|path| {
            let text = std::fs::read_to_string(path).ok().filter(|text| !text.is_empty())?;
            let lines: Vec<_> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
            Some(format!("== {}\n{}\n", path.display(), tail.join("\n")))
        });
        tails.collect()
    }
}

impl Drop for ClusterProcess {
    fn drop(&mut self) {
        let _ = kill(process_id(self.child.id()), Signal::SIGTERM);
        if !ends_in_time(|| !matches!(self.child.try_wait(), Ok(None))) {
            // Its nodes and its proxy notice by their lifelines.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn process_id(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

fn ends_in_time(mut has_ended: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_millis(STOP_MS_MAX);
    while !has_ended() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
    true
}
