//! The processes of a cluster: started, watched, started again when they end, and stopped in order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cluster::file::{self, ClusterFile, Layout};
use cluster::postgres::{DatabaseServer, PostgresError};
use nix::fcntl::FlockArg;
use ordering::identifiers::MachineId;

use super::{Signals, databases};
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

/// Everything that `up` has started.
pub(super) struct Supervised {
    pub(super) file: ClusterFile,
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
    pub(super) fn new(file: ClusterFile, node_programs: BTreeMap<String, PathBuf>) -> Result<Self, PostgresError> {
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

    pub(super) async fn start(&mut self) -> Result<(), Failure> {
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
    pub(super) async fn watch(&mut self, signals: &mut Signals) {
        let with_database = self.file.machines.iter().filter(|machine| machine.database.is_some());
        for (server, machine) in self.databases.clone().into_iter().zip(with_database) {
            self.watchers
                .spawn(keep_running(server, self.file.layout(), machine.id));
        }
        if self.file.tunables.automatic_repair {
            self.watchers.spawn(super::repairs::repair_unasked(self.file.clone()));
        }
        if let Some(interval) = self.file.tunables.scrub_interval() {
            self.watchers
                .spawn(super::scrubs::scrub_unasked(self.file.clone(), interval));
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
                    self.restart_counters();
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

    /// Starts counter processes again that have ended: each begins a new epoch, and so does its node, which ends too.
    fn restart_counters(&mut self) {
        let mut changed = false;
        for (counter, machine) in self.counters.iter_mut().zip(&self.file.machines) {
            if counter.is_running() {
                continue;
            }
            eprintln!("cloudbft: the {} ended; starting it again", counter.name);
            match ChildProcess::counter(&self.file, machine.id) {
                Ok(started) => *counter = started,
                Err(error) => eprintln!("cloudbft: the {} cannot be started: {error}", counter.name),
            }
            changed = true;
        }
        if changed {
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
    pub(super) async fn stop(&mut self) {
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

/// Starts a database server again when it ends; its voter finds it, and catches up. While `repair` makes it anew, it stays
/// down.
async fn keep_running(server: DatabaseServer, layout: Layout, id: MachineId) {
    loop {
        tokio::time::sleep(Duration::from_millis(DATABASE_LOOK_MS)).await;
        if server.pid().is_some() {
            continue;
        }
        let lock = match state::database_lock(&layout, id, FlockArg::LockSharedNonblock) {
            Ok(Some(lock)) => lock,
            Ok(None) => continue,
            Err(error) => {
                eprintln!("cloudbft: {}: {error}", layout.machine_database_lock(id).display());
                continue;
            }
        };
        eprintln!("cloudbft: a database server ended; starting it again");
        let started = server.start().await;
        drop(lock);
        if let Err(error) = started {
            eprintln!("cloudbft: {error}");
            tokio::time::sleep(Duration::from_millis(DATABASE_RETRY_MS)).await;
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
