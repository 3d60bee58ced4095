//! The systems that are compared: a plain PostgreSQL, and clusters.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, machine_name};
use cluster::postgres::{Binaries, DatabaseServer, SUPERUSER, ServerOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use tpcc::{LoadMethod, Protocol};

use super::pgpool::Pgpool;
use super::process::Tree;
use super::stages::Histograms;
use super::{CompareOptions, Error, system_error};
use crate::state::UpState;

/// How long a cluster may take to become ready.
const READY_MS_MAX: u64 = 150_000;
/// How long a system may take to stop before it is killed.
const STOP_MS_MAX: u64 = 45_000;
/// The pause between looks at what stops.
const POLL_MS: u64 = 25;
/// What is shown of a log.
const LOG_LINES: usize = 15;
/// The database and the role of the plain server: those of a cluster by default.
pub(crate) const DATABASE: &str = "app";
/// What a cluster locks by default.
const FOOTPRINT: &str = "footprint";
/// What a session is begun with for answers that are certified at COMMIT: `-c cloudbft.answers=at_commit`, as in a URL.
const AT_COMMIT: &str = "-c%20cloudbft.answers%3Dat_commit";
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
#[serde(rename_all = "snake_case")]
pub(crate) enum SystemName {
    /// One PostgreSQL.
    Plain,
    /// Pgpool-II in native replication mode over three PostgreSQL servers.
    Pgpool,
    /// A cluster as it is by default.
    Voted,
    /// A cluster whose sessions have `cloudbft.answers = at_commit`.
    AtCommit,
    /// A cluster that locks everything for a multi-partition operation.
    Global,
}

impl SystemName {
    /// As in reports.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Pgpool => "pgpool",
            Self::Voted => "voted",
            Self::AtCommit => "at_commit",
            Self::Global => "global",
        }
    }

    /// The heading of its column.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Plain => "plain PostgreSQL",
            Self::Pgpool => "Pgpool-II",
            Self::Voted => "cluster, voted",
            Self::AtCommit => "cluster, at_commit",
            Self::Global => "cluster, global lock",
        }
    }

    /// The value of `multi_partition` of its cluster, if it is one.
    fn multi_partition(self) -> Option<&'static str> {
        match self {
            Self::Global => Some("global"),
            Self::Voted | Self::AtCommit => Some(FOOTPRINT),
            Self::Plain | Self::Pgpool => None,
        }
    }

    /// Whether it is a cluster of ours.
    pub(crate) fn is_cluster(self) -> bool {
        self.multi_partition().is_some()
    }

    /// How rows get into it.
    pub(crate) fn load_method(self) -> LoadMethod {
        match self {
            // It waits for ever for the end of a COPY by the extended protocol.
            Self::Pgpool => LoadMethod::Insert,
            Self::Plain | Self::Voted | Self::AtCommit | Self::Global => LoadMethod::Auto,
        }
    }

    /// Its connection string, from one without options.
    fn dsn(self, plain: &str) -> String {
        match self {
            Self::AtCommit => format!("{plain}?options={AT_COMMIT}"),
            Self::Plain | Self::Pgpool | Self::Voted | Self::Global => plain.to_owned(),
        }
    }
}

/// A running system, as one of the columns of a comparison.
pub(crate) struct System {
    pub(crate) name: SystemName,
    pub(crate) protocol: Protocol,
    pub(crate) dsn: String,
    /// Stopped when no system uses it any more.
    server: Arc<Server>,
}

enum Server {
    Plain(PlainServer),
    Pgpool(Pgpool),
    Cluster(ClusterProcess),
}

impl System {
    /// Starts what a system is: a plain PostgreSQL with its default settings, Pgpool-II, or a cluster as `cloudbft up`.
    pub(crate) async fn start(directory: &Path, name: SystemName, options: &CompareOptions) -> Result<Self, Error> {
        let directory = directory.join(name.word());
        let server = match name {
            SystemName::Plain => Server::Plain(PlainServer::start(&directory).await?),
            SystemName::Pgpool => Server::Pgpool(Pgpool::start(&directory, options.terminals).await?),
            SystemName::Voted | SystemName::AtCommit | SystemName::Global => {
                Server::Cluster(ClusterProcess::start(&directory, name, options).await?)
            }
        };
        Ok(Self {
            name,
            protocol: Protocol::Prepared,
            dsn: name.dsn(&server.dsn()),
            server: Arc::new(server),
        })
    }

    /// The system of that name, if what runs for this one is what it needs, too.
    pub(crate) fn also_as(&self, name: SystemName, protocol: Protocol) -> Option<Self> {
        let fits = name.multi_partition() == self.name.multi_partition()
            && (name == self.name || name.multi_partition().is_some());
        fits.then(|| Self {
            name,
            protocol,
            dsn: name.dsn(&self.server.dsn()),
            server: Arc::clone(&self.server),
        })
    }

    /// Whether both are the same processes with the same data.
    pub(crate) fn shares_processes(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.server, &other.server)
    }

    /// Its processes now.
    pub(crate) fn processes(&self) -> Result<Tree, Error> {
        let roots: Option<Vec<u32>> = match &*self.server {
            Server::Plain(plain) => plain.server.pid().map(|pid| vec![pid]),
            Server::Pgpool(pgpool) => {
                let servers = pgpool.servers.iter().map(|plain| plain.server.pid());
                servers.chain([Some(pgpool.pid())]).collect()
            }
            Server::Cluster(cluster) => Some(vec![cluster.child.id()]),
        };
        let gone = || Error::Answer(format!("the server processes of `{}` are gone", self.name.word()));
        Ok(Tree::below(&roots.ok_or_else(gone)?))
    }

    /// The processes of each of its machines: a server, and the node beside it. Proxies and Pgpool-II are on none.
    pub(crate) fn machines(&self) -> Result<Vec<Tree>, Error> {
        let roots = match &*self.server {
            Server::Plain(plain) => vec![vec![plain.server.pid()]],
            Server::Pgpool(pgpool) => {
                let servers = pgpool.servers.iter();
                servers.map(|plain| vec![plain.server.pid()]).collect()
            }
            Server::Cluster(cluster) => cluster.machines()?,
        };
        let trees = roots
            .into_iter()
            .map(|roots| Tree::below(&roots.into_iter().flatten().collect::<Vec<_>>()));
        Ok(trees.collect())
    }

    /// What its processes have recorded so far; nothing of a plain server.
    pub(crate) async fn histograms(&self) -> Result<Histograms, Error> {
        let Server::Cluster(cluster) = &*self.server else {
            return Ok(Histograms::default());
        };
        let addresses = cluster.metrics_addresses()?;
        Ok(Histograms::scrape(&addresses).await)
    }

    /// The settings of its (first) database server.
    pub(crate) async fn settings(&self) -> Result<BTreeMap<String, String>, Error> {
        let first = |pgpool: &Pgpool| pgpool.servers.first().map(|plain| plain.server.clone());
        let none = || Error::Answer(String::from("Pgpool-II has no servers"));
        let client = match &*self.server {
            Server::Plain(plain) => plain.server.connect(DATABASE).await?,
            Server::Pgpool(pgpool) => first(pgpool).ok_or_else(none)?.connect(DATABASE).await?,
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
        match &*self.server {
            Server::Plain(_) => String::new(),
            Server::Pgpool(pgpool) => pgpool.last_words(),
            Server::Cluster(cluster) => cluster.last_words(),
        }
    }
}

impl Server {
    /// The connection string without options.
    fn dsn(&self) -> String {
        match self {
            Self::Plain(plain) => format!("postgresql://{DATABASE}@127.0.0.1:{}/{DATABASE}", plain.port),
            Self::Pgpool(pgpool) => pgpool.dsn(),
            Self::Cluster(cluster) => cluster.dsn.clone(),
        }
    }
}

/// A PostgreSQL that is stopped when dropped.
pub(crate) struct PlainServer {
    pub(crate) server: DatabaseServer,
    pub(crate) port: u16,
    _sockets: tempfile::TempDir,
}

impl PlainServer {
    /// Starts one with its default settings.
    pub(crate) async fn start(directory: &Path) -> Result<Self, Error> {
        let port = free_port()?;
        let sockets = tempfile::tempdir_in("/tmp").map_err(system_error("no directory for sockets"))?;
        let options = ServerOptions {
            directory: directory.to_owned(),
            socket_directory: sockets.path().join("sockets"),
            port,
            connections_max: 0,
            shared_buffers_mib: 0,
            logical: false,
            database: DATABASE.to_owned(),
            roles: vec![DATABASE.to_owned()],
        };
        let plain = Self {
            server: DatabaseServer::plain(Binaries::find()?, options),
            port,
            _sockets: sockets,
        };
        plain.server.start().await?;
        Ok(plain)
    }
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
    /// Known when it is ready.
    dsn: String,
    child: Child,
}

impl ClusterProcess {
    async fn start(directory: &Path, name: SystemName, options: &CompareOptions) -> Result<Self, Error> {
        let mut cluster = Self::spawn(directory, name, options)?;
        cluster.dsn = cluster.wait_ready().await?;
        Ok(cluster)
    }

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
                name.multi_partition().unwrap_or(FOOTPRINT),
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
        let dsn = String::new();
        Ok(Self { directory, dsn, child })
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

    /// The processes to begin with on each machine: its node, and its server if it has one.
    fn machines(&self) -> Result<Vec<Vec<Option<u32>>>, Error> {
        let file = self.file()?;
        let nodes = UpState::read(&file.layout()).node_pids;
        let databases = crate::up::databases(&file)?;
        let mut databases = databases.iter();
        let machines = file.machines.iter().map(|machine| {
            let node = nodes.get(&machine_name(machine.id)).copied();
            let server = machine.database.as_ref().and_then(|_| databases.next());
            vec![node, server.and_then(DatabaseServer::pid)]
        });
        Ok(machines.collect())
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

/// A port that was free just now.
pub(crate) fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(system_error("no free port"))?;
    Ok(listener.local_addr().map_err(system_error("no free port"))?.port())
}

pub(crate) fn process_id(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

pub(crate) fn ends_in_time(mut has_ended: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_millis(STOP_MS_MAX);
    while !has_ended() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
    true
}
