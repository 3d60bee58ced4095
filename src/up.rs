//! `cloudbft up`: makes a cluster if there is none, starts everything, watches it, and stops it in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use cluster::file::{self, ClusterFile, Database, Tunables};
use cluster::postgres::{Binaries, DatabaseServer, PostgresError, ServerOptions};
use ordering::identifiers::MachineId;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use crate::children::ChildProcess;
use crate::state::{self, UpState};
use crate::{Failure, status};

/// How long the cluster may take until it answers.
const READY_MS_MAX: u64 = 120_000;
/// For so long all nodes are waited for; after that, an answer from the cluster is enough.
const COMPLETE_MS_MAX: u64 = 20_000;
/// The pause between looks at a cluster that starts.
const POLL_MS: u64 = 25;
/// The pause before a proxy that ended is started again.
const PROXY_RESTART_MS: u64 = 500;
/// How often nodes are looked at.
const NODE_LOOK_MS: u64 = 100;
/// The pause before a node that ended is started again, at first.
const NODE_RESTART_MS: u64 = 500;
/// How often that pause doubles at most.
const NODE_RESTART_DOUBLINGS_MAX: u32 = 6;
/// A node that has run for so long starts again as quickly as at first.
const NODE_STABLE_MS: u64 = 60_000;
/// How often database servers are looked at.
const DATABASE_LOOK_MS: u64 = 500;
/// The pause after a database server that could not be started.
const DATABASE_RETRY_MS: u64 = 10_000;
/// Connections of a database server beside the voter's: people, `verify`, reserved ones.
const CONNECTIONS_SPARE: usize = 20;

/// `cloudbft up`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpOptions {
    /// The directory of the cluster: made with everything in it if it is not there
    #[arg(long, default_value = "cloudbft-data")]
    dir: PathBuf,
    /// A file with tunables for a new cluster (the cluster file's, without machines and clients)
    #[arg(long)]
    config: Option<PathBuf>,
    /// f: how many machines may be Byzantine (new clusters)
    #[arg(long)]
    faults: Option<usize>,
    /// How many groups share the ordering work (new clusters)
    #[arg(long)]
    groups: Option<u16>,
    /// The agreement protocol: minbft or pbft (new clusters)
    #[arg(long)]
    agreement: Option<String>,
    /// Where applications connect
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// What an operation on several partitions locks: footprint or global (new clusters)
    #[arg(long)]
    multi_partition: Option<String>,
    /// The trusted counter: ed25519, blake3 or process (new clusters)
    #[arg(long)]
    counter: Option<String>,
    /// Another build of the program for the node of one machine, as m2=PATH (diversity of machines; tests)
    #[arg(long, value_name = "MACHINE=PATH")]
    node_program: Vec<String>,
    /// Return when the cluster is ready, and leave it running (see `cloudbft down`)
    #[arg(long)]
    detach: bool,
    /// Set by --detach for the process that stays
    #[arg(long, hide = true)]
    detached: bool,
}

/// Runs until a signal, or until ready with `--detach`.
pub(crate) fn run(options: UpOptions) -> Result<ExitCode, Failure> {
    if options.detached {
        // A session of its own: no terminal's end reaches it.
        nix::unistd::setsid()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if options.detach {
        runtime.block_on(detach(&options.dir))
    } else {
        runtime.block_on(supervise(options))
    }
}

/// Starts this command again in the background, and returns when that one is ready.
async fn detach(directory: &Path) -> Result<ExitCode, Failure> {
    let log = file::make_directory(directory)?.join("up.log");
    let errors = std::fs::File::options().create(true).append(true).open(&log)?;
    let before = errors.metadata()?.len();
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(arguments)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    if let Some(line) = BufReader::new(output).lines().next_line().await? {
        println!("{line}");
        return Ok(ExitCode::SUCCESS);
    }
    child.wait().await?;
    let said = std::fs::read(&log)?;
    let said = said.get(usize::try_from(before)?..).unwrap_or_default();
    eprint!("{}", String::from_utf8_lossy(said));
    Ok(ExitCode::FAILURE)
}

async fn supervise(options: UpOptions) -> Result<ExitCode, Failure> {
    // From here on a signal stops what has been started.
    let mut signals = Signals::catch()?;
    let directory = file::make_directory(&options.dir)?;
    let layout = file::Layout::new(&directory);
    let Some(_lock) = state::lock(&layout)? else {
        return Err(format!("{} is in use by another `cloudbft up`", directory.display()).into());
    };
    let file = open_or_generate(&options, &directory)?;
    state::clear_leftovers(&layout, Duration::from_secs(10)).await;
    let mut cluster = Supervised::new(file, node_programs(&options)?)?;
    let started = tokio::select! {
        started = cluster.start() => started,
        () = signals.any() => Err("interrupted".into()),
    };
    let outcome = match started {
        Ok(()) => {
            println!("ready {}", cluster.file.dsn());
            cluster.watch(&mut signals).await;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error),
    };
    cluster.stop().await;
    outcome
}

/// The machines whose nodes run another program.
fn node_programs(options: &UpOptions) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let pairs = options.node_program.iter().map(|pair| {
        let (machine, path) = pair
            .split_once('=')
            .ok_or(format!("--node-program {pair}: expected MACHINE=PATH"))?;
        Ok((machine.to_string(), PathBuf::from(path)))
    });
    pairs.collect()
}

/// SIGINT, SIGTERM and, for detached ones, a hang-up that is ignored.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    _hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn open_or_generate(options: &UpOptions, directory: &Path) -> Result<ClusterFile, Failure> {
    let path = directory.join("cluster.toml");
    if path.exists() {
        let mut file = ClusterFile::read(&path)?;
        let fixed = [
            ("--config", options.config.is_some()),
            (
                "--faults",
                options.faults.is_some_and(|faults| faults != file.tunables.faults),
            ),
            (
                "--groups",
                options.groups.is_some_and(|groups| groups != file.tunables.groups),
            ),
            (
                "--agreement",
                options
                    .agreement
                    .as_ref()
                    .is_some_and(|word| word != file.tunables.agreement.name()),
            ),
        ];
        if let Some((option, _)) = fixed.into_iter().find(|(_, differs)| *differs) {
            let path = path.display();
            return Err(format!("{option} is for new clusters; edit {path} while the cluster is down").into());
        }
        // Port 0 means any: the one that was chosen is kept.
        let listen = options
            .listen
            .filter(|listen| listen.port() != 0 && *listen != file.tunables.listen);
        if let Some(listen) = listen {
            file = change_listen(&path, file.tunables.listen, listen)?;
        }
        return Ok(file);
    }
    let mut tunables = match &options.config {
        Some(path) => file::read_tunables(path)?,
        None => Tunables::default(),
    };
    tunables.faults = options.faults.unwrap_or(tunables.faults);
    tunables.groups = options.groups.unwrap_or(tunables.groups);
    tunables.listen = options.listen.unwrap_or(tunables.listen);
    if tunables.listen.port() == 0 {
        tunables.listen = std::net::TcpListener::bind(tunables.listen)?.local_addr()?;
    }
    if let Some(word) = &options.agreement {
        tunables.agreement = file::parse_word(word)?;
    }
    if let Some(word) = &options.multi_partition {
        tunables.multi_partition = file::parse_word(word)?;
    }
    if let Some(word) = &options.counter {
        tunables.counter = file::parse_word(word)?;
    }
    let counters = cluster::counter::Provisioner::new(tunables.counter)?;
    let counter = |directory: &Path| counters.provision(directory).map_err(|error| error.to_string());
    Ok(file::generate(directory, &tunables, counter)?)
}

fn change_listen(path: &Path, old: SocketAddr, new: SocketAddr) -> Result<ClusterFile, Failure> {
    let text = std::fs::read_to_string(path)?;
    let text = text.replacen(&format!("listen = \"{old}\""), &format!("listen = \"{new}\""), 1);
    let file = ClusterFile::parse(path, &text)?;
    std::fs::write(path, text)?;
    Ok(file)
}

/// The database servers of a cluster, m1 first.
pub(crate) fn databases(file: &ClusterFile) -> Result<Vec<DatabaseServer>, PostgresError> {
    let binaries = Binaries::find()?;
    let with_database = |machine: &cluster::file::Machine| Some((machine.id, machine.database.clone()?));
    let tunables = &file.tunables;
    let servers = file
        .machines
        .iter()
        .filter_map(with_database)
        .map(|(id, Database { socket_directory, port })| {
            let options = ServerOptions {
                directory: file.layout().machine_database(id),
                socket_directory,
                port,
                connections_max: cluster::node::backends_max(file) + CONNECTIONS_SPARE,
                shared_buffers_mib: tunables.limits.shared_buffers_mib,
                database: tunables.database.clone(),
                roles: tunables.roles.iter().map(|role| role.name.clone()).collect(),
            };
            DatabaseServer::new(binaries.clone(), options)
        });
    Ok(servers.collect())
}

/// Everything that `up` has started.
struct Supervised {
    file: ClusterFile,
    databases: Vec<DatabaseServer>,
    node_programs: BTreeMap<String, PathBuf>,
    watchers: tokio::task::JoinSet<()>,
    counters: Vec<ChildProcess>,
    nodes: Vec<ChildProcess>,
    /// Which machine each node is of, and when it may be started again.
    restarts: Vec<(MachineId, RestartPause)>,
    proxy: Option<ChildProcess>,
}

/// How long a node that ends stays down.
#[derive(Default)]
struct RestartPause {
    restarts: u32,
    started: Option<Instant>,
    ended: Option<Instant>,
}

impl RestartPause {
    fn length(&self) -> Duration {
        Duration::from_millis(NODE_RESTART_MS << self.restarts.min(NODE_RESTART_DOUBLINGS_MAX))
    }

    /// Whether a node that was found ended may be started now.
    fn is_over(&mut self) -> bool {
        self.ended.get_or_insert_with(Instant::now).elapsed() >= self.length()
    }

    /// It was started again.
    fn begin(&mut self) {
        self.restarts = self.restarts.saturating_add(1);
        self.started = Some(Instant::now());
        self.ended = None;
    }

    /// It runs: after a while what was before does not count any more.
    fn calm(&mut self) {
        let is_stable = |started: Instant| started.elapsed() >= Duration::from_millis(NODE_STABLE_MS);
        if self.started.is_some_and(is_stable) {
            *self = Self::default();
        }
    }
}

impl Supervised {
    fn new(file: ClusterFile, node_programs: BTreeMap<String, PathBuf>) -> Result<Self, PostgresError> {
        let databases = databases(&file)?;
        let watchers = tokio::task::JoinSet::new();
        Ok(Self {
            file,
            databases,
            node_programs,
            watchers,
            counters: Vec::new(),
            nodes: Vec::new(),
            restarts: Vec::new(),
            proxy: None,
        })
    }

    async fn start(&mut self) -> Result<(), Failure> {
        self.write_state()?;
        let mut starting = tokio::task::JoinSet::new();
        for server in self.databases.clone() {
            starting.spawn(async move { server.start().await });
        }
        while let Some(started) = starting.join_next().await {
            started??;
        }
        let ids: Vec<_> = self.file.machines.iter().map(|machine| machine.id).collect();
        for id in ids {
            if self.file.tunables.counter == file::CounterKind::Process {
                self.counters.push(ChildProcess::counter(&self.file, id)?);
            }
            let program = self.node_programs.get(&file::machine_name(id));
            self.nodes
                .push(ChildProcess::node(&self.file, id, program.map(PathBuf::as_path))?);
            self.restarts.push((id, RestartPause::default()));
        }
        self.proxy = Some(ChildProcess::proxy(&self.file)?);
        self.write_state()?;
        self.wait_ready().await
    }

    /// Ready: every node takes part and every voter serves (or has been waited for), and the proxy answers.
    async fn wait_ready(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        let mut complete = false;
        loop {
            if let Some(ended) = self.nodes.iter_mut().chain(&mut self.proxy).find_map(|child| {
                let running = child.is_running();
                (!running).then(|| child.name.clone())
            }) {
                return Err(self.ended_early(&ended).into());
            }
            complete = complete || status::all_serving(&self.file).await;
            let patient = started.elapsed() < Duration::from_millis(COMPLETE_MS_MAX);
            if (complete || !patient) && answers(&self.file).await {
                return Ok(());
            }
            if started.elapsed() > Duration::from_millis(READY_MS_MAX) {
                let directory = self.file.layout().directory().display().to_string();
                return Err(format!("the cluster does not get ready: see {directory}/*/node.log and proxy.log").into());
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    fn ended_early(&self, name: &str) -> String {
        let layout = self.file.layout();
        let log = if name == "proxy" {
            layout.proxy_log()
        } else {
            layout.directory().join(name).join("node.log")
        };
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let last = text.lines().last().unwrap_or_default();
        format!("{name} ended at once: {last}\n  see {}", log.display())
    }

    /// Until a signal: starts the proxy, nodes and database servers again when they end.
    async fn watch(&mut self, signals: &mut Signals) {
        for server in self.databases.clone() {
            self.watchers.spawn(keep_running(server));
        }
        loop {
            let proxy_ended = async {
                match &mut self.proxy {
                    Some(proxy) => proxy.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = signals.any() => return,
                ended = proxy_ended => eprintln!("cloudbft: the proxy ended ({ended}); starting it again"),
                () = tokio::time::sleep(Duration::from_millis(NODE_LOOK_MS)) => {
                    self.restart_nodes();
                    continue;
                }
            }
            self.proxy = None;
            let pause = tokio::time::sleep(Duration::from_millis(PROXY_RESTART_MS));
            tokio::select! {
                () = signals.any() => return,
                () = pause => {}
            }
            match ChildProcess::proxy(&self.file) {
                Ok(proxy) => self.proxy = Some(proxy),
                Err(error) => eprintln!("cloudbft: the proxy cannot be started: {error}"),
            }
            let _ = self.write_state();
        }
    }

    /// Starts nodes again that have ended. One that ends again and again waits longer.
    fn restart_nodes(&mut self) {
        let mut changed = false;
        for (node, (id, pause)) in self.nodes.iter_mut().zip(&mut self.restarts) {
            if node.is_running() {
                pause.calm();
                continue;
            }
            if !pause.is_over() {
                continue;
            }
            eprintln!("cloudbft: node {} ended; starting it again", node.name);
            let program = self.node_programs.get(&node.name);
            match ChildProcess::node(&self.file, *id, program.map(PathBuf::as_path)) {
                Ok(started) => *node = started,
                Err(error) => eprintln!("cloudbft: node {} cannot be started: {error}", node.name),
            }
            pause.begin();
            changed = true;
        }
        if changed {
            let _ = self.write_state();
        }
    }

    /// Stops everything in order: who asks before who answers.
    async fn stop(&mut self) {
        self.watchers.shutdown().await;
        if let Some(proxy) = &mut self.proxy {
            proxy.stop().await;
        }
        for node in &self.nodes {
            node.pid().into_iter().for_each(state::terminate);
        }
        for node in &mut self.nodes {
            node.stop().await;
        }
        for counter in &mut self.counters {
            counter.stop().await;
        }
        let mut stopping = tokio::task::JoinSet::new();
        for server in self.databases.clone() {
            stopping.spawn(async move { server.stop().await });
        }
        while let Some(stopped) = stopping.join_next().await {
            if let Ok(Err(error)) = stopped {
                eprintln!("cloudbft: {error}");
            }
        }
        let _ = std::fs::remove_file(self.file.layout().state());
    }

    fn write_state(&self) -> std::io::Result<()> {
        let node_pids = self
            .nodes
            .iter()
            .filter_map(|node| Some((node.name.clone(), node.pid()?)))
            .collect();
        let proxy_pid = self.proxy.as_ref().and_then(ChildProcess::pid);
        let counter_pids = self.counters.iter().filter_map(ChildProcess::pid).collect();
        UpState {
            up_pid: std::process::id(),
            proxy_pid,
            node_pids,
            counter_pids,
        }
        .write(&self.file.layout())
    }
}

/// Starts a database server again when it ends; its voter finds it, and catches up.
async fn keep_running(server: DatabaseServer) {
    loop {
        tokio::time::sleep(Duration::from_millis(DATABASE_LOOK_MS)).await;
        if server.pid().is_none() {
            eprintln!("cloudbft: a database server ended; starting it again");
            if let Err(error) = server.start().await {
                eprintln!("cloudbft: {error}");
                tokio::time::sleep(Duration::from_millis(DATABASE_RETRY_MS)).await;
            }
        }
    }
}

/// Whether the proxy answers; with passwords, whether it listens.
async fn answers(file: &ClusterFile) -> bool {
    if file.tunables.authentication != file::Authentication::Trust || file.tunables.tls.is_some() {
        return tokio::net::TcpStream::connect(file.tunables.listen).await.is_ok();
    }
    let asking = async {
        let (client, connection) = tokio_postgres::connect(&file.dsn(), tokio_postgres::NoTls).await?;
        let connection = tokio::spawn(connection);
        // A transaction: voters that have just started answer reads before they open transactions.
        let answer = client
            .simple_query("begin isolation level repeatable read; select 1; commit")
            .await;
        connection.abort();
        answer
    };
    matches!(tokio::time::timeout(Duration::from_secs(10), asking).await, Ok(Ok(_)))
}
