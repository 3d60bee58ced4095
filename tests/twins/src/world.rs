//! Three voters on three servers, with the database of one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use ordering::identifiers::{ClientId, MachineId};
use sql::analysis::Analyzer;
use sql::footprint::Footprint;
use sql::operation::{Operation, SessionContext, TransactionId, Work};
use sql::rules::{Family, PartitionRules};
use sql::schema::{CATALOG_QUERY, Schema};
use tokio::sync::mpsc;
use tokio_postgres::SimpleQueryMessage;
use voter::{BodyLimits, BodyStore, Voter, VoterConfig, VoterHandle, VoterLimits, VoterState};

use crate::network::{NODE_CLIENTS, Network, VOTERS};
use crate::server::{APPLICATION, Server, TEMPLATE};

/// The client that keeps to the rules.
pub const HONEST: ClientId = ClientId(1);

/// The client that does not.
pub const LIAR: ClientId = ClientId(2);

/// The schema that every seed begins with.
pub const SCHEMA: &str = include_str!("schema.sql");

/// The machines that hold voters.
pub fn machines() -> impl Iterator<Item = u8> {
    1..=VOTERS as u8
}

/// A machine's key.
pub fn machine_key(machine: u8) -> SigningKey {
    SigningKey::from_bytes(&[machine; 32])
}

/// Tables `account` and `ledger` are partitioned by shop.
pub fn rules() -> PartitionRules {
    PartitionRules {
        families: vec![Family {
            name: "shop".into(),
            tables: vec![("account".into(), "shop".into()), ("ledger".into(), "shop".into())],
        }],
        ..PartitionRules::default()
    }
}

/// The servers of a run, for one seed after the other.
pub struct Servers(Vec<Server>);

impl Servers {
    /// Starts three servers.
    pub fn start() -> Arc<Self> {
        let started: Vec<_> = machines()
            .map(|_| std::thread::spawn(|| Server::start(SCHEMA)))
            .collect();
        Arc::new(Self(started.into_iter().map(|server| server.join().unwrap()).collect()))
    }

    /// A machine's server.
    pub fn of(&self, machine: u8) -> &Server {
        &self.0[usize::from(machine) - 1]
    }

    /// A new database on all servers.
    pub async fn create(&self, database: &str) {
        self.on_all(&format!("CREATE DATABASE {database} TEMPLATE {TEMPLATE}"))
            .await;
    }

    /// Removes a database from all servers.
    pub async fn remove(&self, database: &str) {
        self.on_all(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)"))
            .await;
    }

    async fn on_all(&self, statement: &str) {
        for machine in machines() {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let done = match self.of(machine).connect("postgres").await {
                    Ok(client) => client.batch_execute(statement).await,
                    Err(error) => Err(error),
                };
                match done {
                    Ok(()) => break,
                    Err(error) => assert!(Instant::now() < deadline, "{statement}: {error:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// The world of one seed.
pub struct World {
    /// What carries the messages.
    pub network: Arc<Network>,
    /// The servers.
    pub servers: Arc<Servers>,
    /// The seed's database.
    pub database: String,
    floor_interval: Duration,
    /// Where the machines would keep bodies outside the order: scripts name none, so nothing is kept there.
    bodies: tempfile::TempDir,
    voters: tokio::sync::Mutex<BTreeMap<u8, VoterHandle>>,
    analyzer: Mutex<Arc<Analyzer>>,
    left_open: Mutex<Vec<TransactionId>>,
    violations: Mutex<Vec<String>>,
}

impl World {
    /// Starts the voters on a database that is there.
    pub async fn start(
        network: Arc<Network>,
        servers: Arc<Servers>,
        database: String,
        floor_interval: Duration,
    ) -> Arc<Self> {
        let schema = Schema::parse(std::iter::empty(), &rules()).unwrap();
        let world = Arc::new(Self {
            network,
            servers,
            database,
            floor_interval,
            bodies: tempfile::tempdir().unwrap(),
            voters: tokio::sync::Mutex::default(),
            analyzer: Mutex::new(Arc::new(Analyzer::new(Arc::new(schema)))),
            left_open: Mutex::default(),
            violations: Mutex::default(),
        });
        for machine in machines() {
            world.start_voter(machine).await;
        }
        let refreshed = world.refresh_analyzer();
        let serving = async {
            for machine in machines() {
                world.wait_until_serving(machine).await;
            }
        };
        tokio::join!(refreshed, serving);
        world
    }

    fn config(&self, machine: u8) -> VoterConfig {
        let roles = BTreeSet::from([APPLICATION.to_owned()]);
        VoterConfig {
            machine: MachineId(machine),
            faults: 1,
            replicas: 1..4,
            groups: 1,
            rules: rules(),
            postgres: self.servers.of(machine).config(&self.database),
            signing_key: machine_key(machine),
            voter_keys: machines()
                .map(|id| (MachineId(id), machine_key(id).verifying_key()))
                .collect(),
            node_clients: machines()
                .map(|id| (ClientId(NODE_CLIENTS + u32::from(id)), MachineId(id)))
                .collect(),
            client_roles: BTreeMap::from([(HONEST, roles.clone()), (LIAR, roles)]),
            spool: spool::SpoolDirectory::new(std::env::temp_dir(), 1 << 30),
            bodies: self.open_bodies(machine),
            compare_effects: true,
            limits: VoterLimits {
                transactions_max: 24,
                one_shot_backends: 4,
                read_backends: 3,
                direct_wait: Duration::from_millis(250),
                floor_interval: self.floor_interval,
                ..VoterLimits::default()
            },
        }
    }

    /// A machine's store of bodies, as its last voter left it.
    fn open_bodies(&self, machine: u8) -> BodyStore {
        let limits = BodyLimits {
            client_bytes_max: 64 << 20,
            transaction_bytes_max: 64 << 20,
        };
        let directory = self.bodies.path().join(machine.to_string());
        BodyStore::open(directory, limits, machines().map(MachineId), 1).unwrap()
    }

    /// Starts a machine's voter.
    pub async fn start_voter(&self, machine: u8) {
        let (sender, outputs) = mpsc::channel(1024);
        let handle = Voter::start(self.config(machine), sender);
        let life = self.network.attach(machine, handle.input());
        tokio::spawn(Arc::clone(&self.network).pump(machine, life, outputs));
        let (mut state, network) = (handle.state(), Arc::clone(&self.network));
        tokio::spawn(async move {
            while state.changed().await.is_ok() {
                match &*state.borrow_and_update() {
                    VoterState::Down(reason) => network.note(|| format!("      m{machine} is down: {reason}")),
                    VoterState::Contradicts { order } => {
                        network.note(|| format!("      m{machine} contradicts what was certified at {}", order.0));
                    }
                    _ => {}
                }
            }
        });
        self.voters.lock().await.insert(machine, handle);
    }

    /// Stops a machine's voter, if it runs.
    pub async fn stop_voter(&self, machine: u8) {
        self.network.detach(machine);
        let handle = self.voters.lock().await.remove(&machine);
        if let Some(handle) = handle {
            handle.stop().await;
        }
    }

    /// What a voter is doing.
    pub async fn state(&self, machine: u8) -> VoterState {
        let voters = self.voters.lock().await;
        let state = voters.get(&machine).map(|handle| handle.state().borrow().clone());
        state.unwrap_or_else(|| VoterState::Down("stopped".into()))
    }

    /// Waits until a machine's voter serves.
    pub async fn wait_until_serving(&self, machine: u8) {
        let state = self.voters.lock().await.get(&machine).map(VoterHandle::state);
        if let Some(mut state) = state {
            let serving = state.wait_for(|state| matches!(state, VoterState::Serving { .. }));
            let in_time = tokio::time::timeout(Duration::from_secs(20), serving).await.is_ok();
            assert!(in_time, "the voter of m{machine} does not start");
        }
    }

    /// Stops all voters.
    pub async fn stop(&self) {
        for machine in machines() {
            self.stop_voter(machine).await;
        }
    }

    /// What clients analyse with.
    pub fn analyzer(&self) -> Arc<Analyzer> {
        Arc::clone(&self.analyzer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the catalog again, from whichever server answers. The present one stays where an open transaction holds what it
    /// changed, as a proxy's does: the client that waits here may be the one whose transaction it is.
    pub async fn refresh_analyzer(&self) {
        let bounded = format!("SET lock_timeout = '200ms'; {CATALOG_QUERY}");
        for machine in machines() {
            let Ok(rows) = self.query(machine, &bounded).await else {
                continue;
            };
            let texts = rows.iter().filter_map(|row| row.first().and_then(Option::as_deref));
            let schema = Schema::parse(texts, &rules()).unwrap();
            *self.analyzer.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Analyzer::new(Arc::new(schema)));
            return;
        }
    }

    /// Rows of a query on a machine's server, as superuser.
    ///
    /// # Errors
    /// When the server is not there, or refuses.
    pub async fn query(&self, machine: u8, text: &str) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
        let client = self.servers.of(machine).connect(&self.database).await?;
        let rows = client.simple_query(text).await?;
        let rows = rows.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Notes that something must not be.
    pub fn violation(&self, what: String) {
        self.network.note(|| format!("VIOLATION {what}"));
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
    }

    /// What must not be, and was.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that a transaction's client has gone.
    pub fn leave_open(&self, left: TransactionId) {
        self.left_open.lock().unwrap_or_else(PoisonError::into_inner).push(left);
    }

    /// Ends all transactions whose clients have gone, by the nodes' word.
    pub fn abandon(&self) {
        let left = std::mem::take(&mut *self.left_open.lock().unwrap_or_else(PoisonError::into_inner));
        for left in left {
            self.network.note(|| format!("abandon {left:?}"));
            for machine in [1, 2] {
                let client = ClientId(NODE_CLIENTS + machine);
                let work = Work::Abandon {
                    transactions: vec![left],
                };
                self.order_for(client, SessionContext::default(), Footprint::empty(), work);
            }
        }
    }

    fn order_for(&self, client: ClientId, context: SessionContext, footprint: Footprint, work: Work) {
        let operation = Operation {
            context,
            footprint,
            nonce: [0; 16],
            work,
        };
        self.network.order(client, self.network.number(client), &operation);
    }

    /// Heals everything, and waits until all voters have executed all that was ordered; what is wrong if they do not.
    pub async fn settle(&self, within: Duration) -> Result<(), String> {
        self.abandon();
        for machine in machines() {
            self.network.hold(machine, false);
            self.start_server(machine).await;
            if !self.voters.lock().await.contains_key(&machine) {
                self.start_voter(machine).await;
            }
        }
        let deadline = Instant::now() + within;
        let mut quiet_since = None;
        loop {
            let last = self.network.last_order();
            let mut states = Vec::new();
            for machine in machines() {
                states.push(self.state(machine).await);
            }
            let done = |state: &VoterState| matches!(state, VoterState::Serving { executed, .. } if executed.0 >= last);
            if states.iter().all(done) {
                let (since, at) = *quiet_since.get_or_insert((Instant::now(), last));
                if at != last {
                    quiet_since = None;
                } else if since.elapsed() > Duration::from_millis(60) {
                    return Ok(());
                }
            } else {
                quiet_since = None;
            }
            if Instant::now() > deadline {
                return Err(format!("the voters do not come to order {last}: {states:?}"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the voters have compared what their servers changed, which must be the same: the databases are. How many
    /// orders they have compared.
    pub async fn compare_effects(&self, within: Duration) -> u64 {
        let deadline = Instant::now() + within;
        loop {
            // What is not on the disk is not read.
            for machine in machines() {
                let flush = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'twins', '')";
                let _ = self.query(machine, flush).await;
            }
            let mut reports = BTreeMap::new();
            for machine in machines() {
                let voters = self.voters.lock().await;
                let report = voters.get(&machine).map(|voter| voter.effects().borrow().clone());
                reports.insert(machine, report.unwrap_or_default());
            }
            let is_done = reports
                .values()
                .all(|report| report.comparing.is_ok() && report.open == 0);
            if !is_done && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            for (machine, report) in &reports {
                let state = self.state(*machine).await;
                let is_wrong =
                    report.disputed > 0 || report.unordered > 0 || matches!(state, VoterState::Diverged { .. });
                if is_wrong || report.comparing.is_err() {
                    self.violation(format!("effects of m{machine}: {report:?} {state:?}"));
                }
            }
            return reports.values().map(|report| report.agreed).sum();
        }
    }

    /// Starts a machine's server if it does not run.
    pub async fn start_server(&self, machine: u8) {
        if self.servers.of(machine).is_running() {
            return;
        }
        let servers = Arc::clone(&self.servers);
        tokio::task::spawn_blocking(move || servers.of(machine).start_again())
            .await
            .unwrap();
    }
}
