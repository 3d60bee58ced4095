//! A voter on a server of its own, with scripted replicas and one client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use ordering::identifiers::{ClientId, Digest, GroupId, MachineId, Order};
use ordering::message::{
    BodyName, CHAIN_START, CommitDb, CommitDbEntry, Direct, DirectKind, DirectTransaction, EffectDigest, EffectDigests,
    Notifications, Outcome, Request, ResultKey, ResultMessage, body_digest, chain,
};
use spool::SpoolDirectory;
use sql::footprint::{Footprint, Mode, PartitionKey, PartitionValue, Resource};
use sql::operation::{
    Exchange, ExchangeResult, Isolation, Operation, SessionContext, StatementText, Step, TransactionId,
    TransactionWrite, Word, Work, word_digest,
};
use sql::rules::{Family, PartitionRules};
use tokio::sync::mpsc;
use voter::{
    BodyLimits, BodyStore, EffectsReport, Voter, VoterConfig, VoterHandle, VoterInput, VoterLimits, VoterOutput,
    VoterState,
};

use crate::server::{APPLICATION, Server};

mod replicas;
mod transactions;

use replicas::{append, pump, send};
pub(crate) use transactions::Transaction;

pub(crate) const CLIENT: ClientId = ClientId(7);

/// The client under which the voter's machine orders.
const NODE: ClientId = ClientId(1_000);

#[derive(Default)]
struct Log {
    entries: Vec<CommitDbEntry>,
    results: BTreeMap<ResultKey, Vec<ResultMessage>>,
    notifications: Vec<Notifications>,
    flushed: u64,
    /// What is below this order cannot be fetched.
    begins: u64,
    /// What the voter's machine wants ordered is kept here instead, if it is not to be ordered yet.
    held: Option<Vec<(Bytes, u64)>>,
    /// What the voter says that its server has changed at each order.
    effects: BTreeMap<u64, Digest>,
    /// Chunks of large results that have come.
    chunks: BTreeMap<(ResultKey, u32), Option<Bytes>>,
}

type Bodies = Arc<Mutex<BTreeMap<BodyName, Bytes>>>;

pub(crate) struct Rig {
    pub(crate) server: Server,
    handle: Option<VoterHandle>,
    log: Arc<Mutex<Log>>,
    number: u64,
    bodies_directory: tempfile::TempDir,
    pub(crate) bodies: BodyStore,
    /// The bodies that other machines have.
    elsewhere: Bodies,
    pub(crate) transaction_bytes_max: u64,
    pub(crate) result_bytes_max: u64,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) compare_effects: bool,
    pub(crate) spool: SpoolDirectory,
}

/// A machine's key.
pub(crate) fn machine_key(machine: u8) -> SigningKey {
    SigningKey::from_bytes(&[machine; 32])
}

/// Tables `account(shop, ...)` are partitioned by shop.
pub(crate) fn rules() -> PartitionRules {
    PartitionRules {
        families: vec![Family {
            name: "shop".into(),
            tables: vec![("account".into(), "shop".into())],
        }],
        ..PartitionRules::default()
    }
}

pub(crate) fn shop(value: i64) -> Footprint {
    let key = PartitionKey {
        family: "shop".into(),
        value: PartitionValue::Integer(value),
    };
    Footprint::of(Resource::Partition(key), Mode::Exclusive)
}

pub(crate) fn shop_shared(value: i64) -> Footprint {
    let mut footprint = Footprint::empty();
    for (resource, _) in shop(value).entries() {
        footprint.add(resource.clone(), Mode::Shared);
    }
    footprint
}

pub(crate) fn simple(text: &str) -> Exchange {
    Exchange::Simple { text: text.into() }
}

/// Parse, Bind with text parameters, Describe, Execute.
pub(crate) fn extended(text: &str, parameters: &[&str]) -> Exchange {
    Exchange::Extended {
        statements: vec![StatementText {
            text: text.into(),
            parameter_types: Vec::new(),
        }],
        steps: vec![
            Step::Parse { statement: 0 },
            Step::Bind {
                portal: String::new(),
                statement: 0,
                parameter_formats: Vec::new(),
                parameters: parameters
                    .iter()
                    .map(|value| Some(Bytes::copy_from_slice(value.as_bytes())))
                    .collect(),
                result_formats: Vec::new(),
            },
            Step::DescribePortal { portal: String::new() },
            Step::Execute {
                portal: String::new(),
                max_rows: 0,
            },
        ],
    }
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_with(false).await
    }

    /// A voter that compares effects.
    pub(crate) async fn start_comparing() -> Self {
        let rig = Self::start_with(true).await;
        rig.wait_for_effects(|effects| effects.comparing.is_ok()).await;
        rig
    }

    async fn start_with(compare_effects: bool) -> Self {
        let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
        let bodies_directory = tempfile::tempdir().unwrap();
        let mut rig = Self {
            server,
            handle: None,
            log: Arc::default(),
            number: 0,
            bodies: open_bodies(&bodies_directory),
            bodies_directory,
            elsewhere: Arc::default(),
            transaction_bytes_max: VoterLimits::default().transaction_bytes_max,
            result_bytes_max: VoterLimits::default().result_bytes_max,
            settings: Vec::new(),
            compare_effects,
            spool: SpoolDirectory::new(std::env::temp_dir(), 4 << 30),
        };
        rig.start_voter();
        rig.wait_until_serving().await;
        rig
    }

    pub(crate) fn start_voter(&mut self) {
        let config = VoterConfig {
            machine: MachineId(1),
            faults: 1,
            replicas: 1..4,
            groups: 1,
            rules: rules(),
            postgres: self.server.config(),
            signing_key: machine_key(1),
            voter_keys: (1..=3)
                .map(|id| (MachineId(id), machine_key(id).verifying_key()))
                .collect(),
            node_clients: (0..3)
                .map(|id| (ClientId(NODE.0 + id), MachineId(id as u8 + 1)))
                .collect(),
            client_roles: BTreeMap::from([(CLIENT, BTreeSet::from([APPLICATION.to_owned()]))]),
            compare_effects: self.compare_effects,
            limits: VoterLimits {
                direct_wait: Duration::from_millis(400),
                commit_wait: Duration::from_secs(3),
                floor_interval: Duration::from_millis(300),
                client_silence_max: Duration::from_secs(2),
                transaction_bytes_max: self.transaction_bytes_max,
                result_bytes_max: self.result_bytes_max,
                ..VoterLimits::default()
            },
            spool: self.spool.clone(),
            bodies: self.bodies.clone(),
        };
        let (sender, outputs) = mpsc::channel(1024);
        let handle = Voter::start(config, sender);
        tokio::spawn(pump(
            outputs,
            handle.input(),
            Arc::clone(&self.log),
            self.elsewhere.clone(),
            self.bodies.clone(),
        ));
        let mut state = handle.state();
        tokio::spawn(async move {
            while state.changed().await.is_ok() {
                if let VoterState::Down(reason) = &*state.borrow() {
                    eprintln!("down: {reason}");
                }
            }
        });
        self.handle = Some(handle);
    }

    pub(crate) async fn stop_voter(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.stop().await;
        }
    }

    pub(crate) async fn wait_for_state(&self, wanted: impl FnMut(&VoterState) -> bool) {
        let mut state = self.handle.as_ref().unwrap().state();
        let waited = tokio::time::timeout(Duration::from_secs(30), state.wait_for(wanted)).await;
        assert!(
            waited.is_ok(),
            "the state is {:?}",
            *self.handle.as_ref().unwrap().state().borrow()
        );
    }

    pub(crate) async fn wait_until_serving(&self) {
        self.wait_for_state(|state| matches!(state, VoterState::Serving { .. }))
            .await;
        // The voter takes what comes at first for a replay.
        tokio::time::sleep(Duration::from_millis(350)).await;
    }

    pub(crate) async fn wait_until_flushed(&self, order: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.log.lock().unwrap().flushed < order {
            assert!(
                Instant::now() < deadline,
                "not flushed: {}",
                self.log.lock().unwrap().flushed
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn last_order(&self) -> u64 {
        self.log.lock().unwrap().entries.len() as u64
    }

    fn context(&self) -> SessionContext {
        SessionContext {
            client: CLIENT.0,
            session: 1,
            role: APPLICATION.into(),
            database: "test".into(),
            settings: self.settings.clone(),
        }
    }

    /// Orders an operation; its order, which is its number too.
    pub(crate) async fn order(&mut self, footprint: Footprint, work: Work) -> u64 {
        let operation = Operation {
            context: self.context(),
            footprint,
            nonce: [7; 16],
            work,
        };
        let number = self.last_order() + 1;
        self.order_as(number, operation).await
    }

    /// Orders a one-shot on everything under a number of its own.
    pub(crate) async fn order_again(&mut self, number: u64, text: &str) -> u64 {
        let operation = Operation {
            context: self.context(),
            footprint: Footprint::everything(),
            nonce: [7; 16],
            work: Work::OneShot {
                exchange: simple(text).encode(),
            },
        };
        self.order_as(number, operation).await
    }

    async fn order_as(&mut self, number: u64, operation: Operation) -> u64 {
        let home = operation.footprint.home().home_number();
        let encoded = Bytes::from(borsh::to_vec(&operation).unwrap());
        let entry = append(&self.log, CLIENT, Some(number), encoded, home);
        if let Some(handle) = &self.handle {
            send(&handle.input(), &entry).await;
        }
        entry.order.0
    }

    /// The (first) result of an ordered operation.
    pub(crate) async fn result(&self, order: u64) -> ResultMessage {
        self.wait_for(ResultKey::Request(order)).await
    }

    async fn wait_for(&self, key: ResultKey) -> ResultMessage {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = self.log.lock().unwrap().results.get(&key).and_then(|all| all.last()) {
                return found.clone();
            }
            assert!(Instant::now() < deadline, "no result of {key:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The replicas' logs begin with this order from now on.
    pub(crate) fn cut_logs(&self, first: u64) {
        self.log.lock().unwrap().begins = first;
    }

    /// A machine says that its log begins with this order.
    pub(crate) async fn log_begins(&self, machine: u8, first: u64) {
        let (from, first) = (MachineId(machine), Order(first));
        let input = self.handle.as_ref().unwrap().input();
        input.send(VoterInput::LogBegins { from, first }).await.unwrap();
    }

    /// Whether an operation of the voter's machine is ordered only later.
    pub(crate) fn hold_own_orders(&self, hold: bool) {
        let held = std::mem::replace(&mut self.log.lock().unwrap().held, hold.then(Vec::new));
        for (operation, home) in held.into_iter().flatten() {
            let entry = append(&self.log, NODE, None, operation, home);
            let input = self.handle.as_ref().unwrap().input();
            tokio::spawn(async move { send(&input, &entry).await });
        }
    }

    /// From now on the client says that it lives, until the voter stops.
    pub(crate) fn stay_alive(&self) {
        let input = self.handle.as_ref().unwrap().input();
        tokio::spawn(async move {
            while input.send(VoterInput::KeepAlive(CLIENT)).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }

    /// The client waits for a read no more.
    pub(crate) async fn give_up(&self, key: ResultKey) {
        let input = self.handle.as_ref().unwrap().input();
        input.send(VoterInput::GiveUp { client: CLIENT, key }).await.unwrap();
    }

    /// A node says that a transaction is abandoned.
    pub(crate) async fn abandon(&mut self, machine: u8, transaction: &Transaction) {
        self.abandon_all(machine, &[transaction]).await;
    }

    /// A node says that several transactions are abandoned.
    pub(crate) async fn abandon_all(&mut self, machine: u8, transactions: &[&Transaction]) {
        let footprint = Footprint::empty();
        let home = footprint.home().home_number();
        let operation = Operation {
            context: SessionContext::default(),
            footprint,
            nonce: [0; 16],
            work: Work::Abandon {
                transactions: transactions.iter().map(|transaction| transaction.id).collect(),
            },
        };
        let encoded = Bytes::from(borsh::to_vec(&operation).unwrap());
        let client = ClientId(NODE.0 + u32::from(machine) - 1);
        let entry = append(&self.log, client, None, encoded, home);
        send(&self.handle.as_ref().unwrap().input(), &entry).await;
    }

    /// Whether a result of a request has come.
    pub(crate) fn has_result(&self, order: u64) -> bool {
        self.has_answer(ResultKey::Request(order))
    }

    pub(crate) fn has_answer(&self, key: ResultKey) -> bool {
        self.log.lock().unwrap().results.contains_key(&key)
    }

    /// Whether an exchange is refused in a transaction before it runs.
    pub(crate) async fn run_refused(&mut self, exchange: &Exchange) -> bool {
        let analyzer = sql::analysis::Analyzer::new(Arc::new(
            sql::schema::Schema::parse(std::iter::empty(), &rules()).unwrap(),
        ));
        analyzer.exchange(exchange, &self.context()).is_err()
    }

    pub(crate) fn state(&self) -> VoterState {
        self.handle.as_ref().unwrap().state().borrow().clone()
    }

    /// What the voter says of what its server has changed at an order.
    pub(crate) async fn effect(&self, order: u64) -> Digest {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = self.log.lock().unwrap().effects.get(&order) {
                return *found;
            }
            assert!(Instant::now() < deadline, "no effect of {order}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The voter of another machine says what its server has changed at an order.
    pub(crate) async fn tell_effect(&self, machine: u8, order: u64, digest: Digest) {
        let (from, order) = (MachineId(machine), Order(order));
        let message = EffectDigests {
            asks: false,
            entries: vec![EffectDigest { order, digest }],
        };
        let input = self.handle.as_ref().unwrap().input();
        input.send(VoterInput::Effects { from, message }).await.unwrap();
    }

    pub(crate) fn effects(&self) -> EffectsReport {
        self.handle.as_ref().unwrap().effects().borrow().clone()
    }

    /// Waits until the comparison of effects says this of itself.
    pub(crate) async fn wait_for_effects(&self, wanted: impl FnMut(&EffectsReport) -> bool) {
        let mut effects = self.handle.as_ref().unwrap().effects();
        let waited = tokio::time::timeout(Duration::from_secs(20), effects.wait_for(wanted)).await;
        assert!(waited.is_ok(), "the effects are {:?}", self.effects());
    }

    /// What the voter has told of notifications since it was asked last.
    pub(crate) fn take_notifications(&self) -> Vec<Notifications> {
        std::mem::take(&mut self.log.lock().unwrap().notifications)
    }

    pub(crate) fn forget_results(&self) {
        self.log.lock().unwrap().results.clear();
    }

    /// The whole result, recalled if this voter was not picked, or could not say.
    pub(crate) async fn whole(&self, key: ResultKey) -> ExchangeResult {
        let message = self.wait_for(key).await;
        if let Outcome::Done { whole: None, .. } | Outcome::Unavailable = message.outcome {
            self.forget_results();
            let input = self.handle.as_ref().unwrap().input();
            input.send(VoterInput::Recall { client: CLIENT, key }).await.unwrap();
        }
        match self.wait_for(key).await.outcome {
            Outcome::Large { status, chunks, .. } => {
                let mut messages = Vec::new();
                for index in 0..chunks.len() {
                    messages.extend(self.chunk(key, index as u32).await.unwrap());
                }
                ExchangeResult {
                    messages: messages.into(),
                    status,
                }
            }
            Outcome::Done { whole: Some(whole), .. } => borsh::from_slice(&whole).unwrap(),
            other => panic!("not done: {other:?}"),
        }
    }

    /// The rows of an answer of two texts.
    pub(crate) async fn rows(&self, order: u64) -> Vec<(String, String)> {
        let result = self.whole(ResultKey::Request(order)).await;
        let rows = messages(&result).into_iter().filter(|(tag, _)| *tag == 'D');
        let texts = rows.map(|(_, body)| {
            let length = u32::from_be_bytes(body[2..6].try_into().unwrap()) as usize;
            let (label, text) = (&body[6..6 + length], &body[10 + length..]);
            let owned = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            (owned(label), owned(text))
        });
        texts.collect()
    }

    /// A chunk of a large result.
    pub(crate) async fn chunk(&self, key: ResultKey, index: u32) -> Option<Bytes> {
        let client = CLIENT;
        let input = self.handle.as_ref().unwrap().input();
        input
            .send(VoterInput::RecallChunk { client, key, index })
            .await
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(bytes) = self.log.lock().unwrap().chunks.remove(&(key, index)) {
                return bytes;
            }
            assert!(Instant::now() < deadline, "no chunk {index} of {key:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn release(&self, key: ResultKey) {
        let client = CLIENT;
        let input = self.handle.as_ref().unwrap().input();
        input.send(VoterInput::Release { client, key }).await.unwrap();
    }

    /// Orders a one-shot and waits for its result.
    pub(crate) async fn one_shot(&mut self, footprint: Footprint, exchange: &Exchange) -> ExchangeResult {
        let exchange = exchange.encode();
        let order = self.order(footprint, Work::OneShot { exchange }).await;
        self.whole(ResultKey::Request(order)).await
    }

    /// A statement on everything, in a transaction of its own that is certified.
    pub(crate) async fn run(&mut self, text: &str) -> ExchangeResult {
        let mut transaction = self.new_transaction(Footprint::everything());
        let exchange = simple(text);
        let order = self.begin(&mut transaction, Isolation::ReadCommitted, &exchange).await;
        let result = self.whole(ResultKey::Request(order)).await;
        if sqlstate(&result).is_some() {
            let order = self.abort(&transaction).await;
            self.result(order).await;
            return result;
        }
        let order = self.commit(&transaction).await;
        let committed = self.whole(ResultKey::Request(order)).await;
        assert_eq!(tags(&committed), "C", "{text}");
        result
    }

    pub(crate) async fn psql(&self, text: &str) -> String {
        self.server.psql("test", text)
    }
}

fn open_bodies(directory: &tempfile::TempDir) -> BodyStore {
    let limits = BodyLimits {
        client_bytes_max: 1 << 30,
        transaction_bytes_max: 1 << 30,
    };
    BodyStore::open(directory.path().to_owned(), limits, (1..=3).map(MachineId), 1).unwrap()
}

/// The messages of a result as (type, body).
pub(crate) fn messages(result: &ExchangeResult) -> Vec<(char, Vec<u8>)> {
    sql::result::messages(&result.messages)
        .map(|message| message.unwrap())
        .map(|(tag, message)| (char::from(tag), message[5..].to_vec()))
        .collect()
}

/// The types of a result's messages.
pub(crate) fn tags(result: &ExchangeResult) -> String {
    messages(result).into_iter().map(|(tag, _)| tag).collect()
}

/// The SQLSTATE of the error in a result.
pub(crate) fn sqlstate(result: &ExchangeResult) -> Option<String> {
    let error = messages(result).into_iter().find(|(tag, _)| *tag == 'E')?;
    let fields = error.1.split(|byte| *byte == 0);
    let code = fields.into_iter().find(|field| field.first() == Some(&b'C'))?;
    Some(String::from_utf8_lossy(&code[1..]).into_owned())
}
