//! Three voters on one server.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use ordering::identifiers::{ClientId, MachineId, Order};
use ordering::message::{
    BodyName, CHAIN_START, ClientMessage, Direct, DirectKind, DirectTransaction, Outcome, ResultKey, ResultMessage,
    StoreReceipt, StoredBody, body_digest, chain,
};
use proxy::{ClusterPort, Destination, FromNode, MachineSet, ToNode};
use sql::operation::{
    Exchange, ExchangeResult, Isolation, Operation, SessionContext, Step, TransactionId, TransactionWrite, Work,
    answers_with_effect, word_digest,
};
use tokio::net::UnixStream;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::faults::{Faults, direct_kind};
use super::postgres::Postgres;
use super::raw::{Raw, message, startup};

mod direct;
mod exchanges;

type Backend = Raw<UnixStream>;

/// An exchange that ran.
struct Ran {
    exchange: Bytes,
    outcome: Outcome,
    /// Sent directly, rather than ordered.
    direct: bool,
}

/// A transaction on the voters' backend: all of them share one, and each answers only for what it was told.
struct Open {
    backend: Backend,
    context: SessionContext,
    begin: String,
    began: Order,
    list: Vec<Ran>,
    /// By the order of Begin or Extend: its exchanges.
    ordered: HashMap<u64, Vec<Bytes>>,
    /// The answers to ordered statements: a voter that becomes live gives them too.
    answers: Vec<(ResultKey, Order, Outcome)>,
    live: MachineSet,
}

impl Open {
    fn chain(&self, count: usize) -> [u8; 32] {
        let listed = self.list.iter().take(count);
        listed.fold(CHAIN_START, |link, ran| chain(&link, &ran.exchange))
    }
}

/// What the voters were told directly of a transaction, at once: it may not wait for a statement that runs.
#[derive(Default)]
struct Told {
    /// The places of direct writes, by machine.
    writes: HashMap<MachineId, HashSet<u32>>,
    /// The process of its backend.
    process: Option<i32>,
    aborted: bool,
    /// A cancellation is on its way to the backend.
    stopping: bool,
    /// The requests of cancelled statements.
    cancelled: HashSet<u64>,
}

#[derive(Clone)]
struct Cluster {
    postgres: Arc<Postgres>,
    results: mpsc::Sender<(MachineId, FromNode)>,
    faults: Faults,
    transactions: Arc<AsyncMutex<BTreeMap<TransactionId, Arc<AsyncMutex<Open>>>>>,
    told: Arc<Mutex<HashMap<TransactionId, Told>>>,
    idle: Arc<Mutex<Vec<Backend>>>,
    kept: Arc<Mutex<HashMap<ResultKey, (Order, Outcome)>>>,
    bodies: Arc<Mutex<HashMap<[u8; 32], Bytes>>>,
}

/// The key with which a machine signs words.
pub fn machine_key(machine: MachineId) -> SigningKey {
    SigningKey::from_bytes(&[machine.0; 32])
}

/// Starts the cluster; gives the proxy's port.
pub fn start(postgres: Arc<Postgres>, key: VerifyingKey) -> (ClusterPort, Faults) {
    let (to, mut requests) = mpsc::channel::<(Destination, ToNode)>(1024);
    let (results, from) = mpsc::channel(1024);
    let faults = Faults::default();
    let cluster = Cluster {
        postgres,
        results,
        faults: faults.clone(),
        transactions: Arc::default(),
        told: Arc::default(),
        idle: Arc::default(),
        kept: Arc::default(),
        bodies: Arc::default(),
    };
    tokio::spawn(async move {
        let mut order = 0;
        let mut done = HashSet::new();
        let mut asked = HashSet::new();
        while let Some((destination, message)) = requests.recv().await {
            match message {
                ToNode::Request(request) => {
                    let signature = Signature::from_bytes(&request.signature);
                    key.verify_strict(&request.digest(), &signature)
                        .expect("requests are signed");
                    if done.insert(request.number) {
                        order += 1;
                        let operation: Operation = borsh::from_slice(&request.operation).unwrap();
                        assert_eq!(operation.footprint.home().home_number(), request.home);
                        tokio::spawn(cluster.clone().ordered(request.number, Order(order), operation));
                    }
                }
                ToNode::Client(ClientMessage::KeepAlive) => {}
                ToNode::Client(ClientMessage::Store(stored)) => {
                    let Destination::Machines(machines) = destination else {
                        panic!("a body to all")
                    };
                    cluster.faults.see("store");
                    cluster.keep_body(stored, machines).await;
                }
                ToNode::Client(ClientMessage::Direct(direct)) => {
                    let Destination::Machines(machines) = destination else {
                        panic!("direct to all")
                    };
                    if asked.insert(direct.number) {
                        cluster.faults.see(direct_kind(&direct));
                    }
                    if let Some(place) = &direct.transaction {
                        cluster.tell(place, machines);
                    }
                    tokio::spawn(cluster.clone().direct(direct, machines));
                }
                ToNode::Client(ClientMessage::GiveUp(_)) => {}
                ToNode::Client(ClientMessage::Recall(key)) => {
                    let Destination::Machines(machines) = destination else {
                        panic!("recall to all")
                    };
                    let kept = cluster.kept.lock().unwrap().get(&key).cloned();
                    if let Some((order, outcome)) = kept {
                        tokio::spawn(cluster.clone().answer(key, order, outcome, machines, machines));
                    }
                }
                // These voters answer everything at once.
                ToNode::Client(ClientMessage::RecallChunk { .. } | ClientMessage::Release(_)) => {}
            }
        }
    });
    (ClusterPort { to, from }, faults)
}

fn voters() -> MachineSet {
    [1, 2, 3].map(MachineId).into_iter().collect()
}

impl Cluster {
    async fn answer(self, key: ResultKey, order: Order, outcome: Outcome, to: MachineSet, whole_from: MachineSet) {
        let (liars, forgers, mute) = {
            let state = self.faults.state.lock().unwrap();
            (state.liars, state.forgers, state.mute)
        };
        for machine in to.iter().filter(|machine| !mute.contains(*machine)) {
            let mut outcome = outcome.clone();
            match &mut outcome {
                Outcome::Done {
                    sequence,
                    multiset,
                    whole,
                } => {
                    if liars.contains(machine) {
                        let lie = ExchangeResult {
                            messages: message(b'C', b"SELECT 666\0").into(),
                            status: b'I',
                        };
                        let digests = lie.digests().unwrap();
                        (*sequence, *multiset) = (digests.sequence, digests.multiset);
                        *whole = Some(borsh::to_vec(&lie).unwrap().into());
                    }
                    if forgers.contains(machine) {
                        *whole = Some(Bytes::from_static(b"\0\0\0\0I"));
                    }
                    if !whole_from.contains(machine) {
                        *whole = None;
                    }
                }
                Outcome::Word { answers, signature } => {
                    if liars.contains(machine) {
                        *answers = [66; 32];
                    }
                    if forgers.contains(machine) {
                        *signature = [66; 64];
                    }
                }
                _ => {}
            }
            let result = ResultMessage { key, order, outcome };
            let _ = self.results.send((machine, FromNode::Result(result))).await;
        }
    }

    async fn keep_body(&self, stored: StoredBody, machines: MachineSet) {
        let name = BodyName {
            client: ClientId(0),
            session: stored.session,
            number: stored.number,
            digest: body_digest(&stored.body),
        };
        self.bodies.lock().unwrap().insert(name.digest, stored.body);
        for machine in machines.iter().filter(|machine| !self.faults.is_mute(*machine)) {
            let kept = self.faults.kept(machine);
            let receipt = StoreReceipt { name, kept };
            let _ = self.results.send((machine, FromNode::Receipt(receipt))).await;
        }
    }

    /// An exchange, from its body if only its digest is listed.
    fn decode(&self, bytes: &[u8]) -> Exchange {
        match Exchange::decode(bytes).unwrap() {
            Exchange::Stored { digest, length } => {
                let body = self.bodies.lock().unwrap()[&digest].clone();
                assert_eq!(body.len(), length as usize);
                Exchange::decode(&body).unwrap()
            }
            exchange => exchange,
        }
    }

    fn keep(&self, key: ResultKey, order: Order, outcome: &Outcome) {
        self.kept.lock().unwrap().insert(key, (order, outcome.clone()));
    }

    async fn ordered(self, number: u64, order: Order, operation: Operation) {
        self.faults.see_ordered(&operation.work);
        let transaction = match &operation.work {
            Work::Begin { transaction, .. } | Work::Extend { transaction, .. } => Some(*transaction),
            Work::Read { transaction, .. } => *transaction,
            _ => None,
        };
        let commits = matches!(operation.work, Work::OneShot { .. } | Work::Commit { .. });
        let key = ResultKey::Request(number);
        let outcome = self.run(key, order, operation).await;
        self.keep(key, order, &outcome);
        let picked = MachineSet::one(MachineId((order.0 % 3) as u8 + 1));
        let open = match transaction {
            None => None,
            Some(id) => self.transactions.lock().await.get(&id).cloned(),
        };
        // Of a transaction's statements, the live voters speak.
        let mut speakers = match open {
            None => voters(),
            Some(open) => {
                let mut open = open.lock().await;
                open.answers.push((key, order, outcome.clone()));
                open.live
            }
        };
        let (lost, restarted, silent) = {
            let state = self.faults.state.lock().unwrap();
            (state.lost, state.restarted, state.mute_at_commit)
        };
        if commits {
            speakers = speakers.without(silent);
        }
        for (machines, instead) in [(lost, Outcome::Unavailable), (restarted, Outcome::Executed)] {
            let applies = match instead {
                Outcome::Executed => commits,
                _ => transaction.is_some(),
            };
            if applies && !machines.is_empty() {
                let silenced = speakers.iter().filter(|machine| machines.contains(*machine)).collect();
                speakers = speakers.without(silenced);
                self.clone()
                    .answer(key, order, instead, silenced, MachineSet::EMPTY)
                    .await;
            }
        }
        self.answer(key, order, outcome, speakers, picked).await;
    }

    /// Notes on which process a transaction runs.
    fn runs_on(&self, id: TransactionId, backend: &Backend) {
        self.told.lock().unwrap().entry(id).or_default().process = backend.process;
    }

    async fn run(&self, key: ResultKey, order: Order, operation: Operation) -> Outcome {
        let context = &operation.context;
        match operation.work {
            Work::OneShot { exchange } => {
                let exchange = self.decode(&exchange);
                let mut backend = self.backend().await;
                backend.settings(context).await;
                let mut result = backend.exchange(&exchange).await;
                result.status = b'I';
                self.idle.lock().unwrap().push(backend);
                done(result)
            }
            Work::Read {
                transaction: None,
                exchange,
                ..
            } => {
                let exchange = self.decode(&exchange);
                done(self.alone(context, "BEGIN READ ONLY", &[exchange], "COMMIT").await)
            }
            Work::Read {
                transaction: Some(id),
                exchange,
                ..
            } => {
                let open = self.transactions.lock().await.get(&id).cloned().unwrap();
                done(open.lock().await.backend.exchange(&self.decode(&exchange)).await)
            }
            Work::Begin {
                transaction,
                isolation,
                read_only,
                exchanges,
                live,
            } => {
                let refuse = {
                    let mut state = self.faults.state.lock().unwrap();
                    state.live.push(live);
                    state.refuse_begin.take()
                };
                if let Some(sqlstate) = refuse {
                    return refused(sqlstate);
                }
                let mut backend = self.backend().await;
                backend.settings(context).await;
                self.runs_on(transaction, &backend);
                let level = match isolation {
                    Isolation::RepeatableRead => "REPEATABLE READ",
                    _ => "READ COMMITTED",
                };
                let mode = if read_only { "READ ONLY" } else { "READ WRITE" };
                let begin = format!("BEGIN ISOLATION LEVEL {level} {mode}");
                backend.simple(&begin).await;
                let mut open = Open {
                    backend,
                    context: context.clone(),
                    begin,
                    began: order,
                    list: Vec::new(),
                    ordered: HashMap::from([(order.0, exchanges.clone())]),
                    answers: Vec::new(),
                    live: voters().iter().filter(|machine| live & (1 << machine.0) != 0).collect(),
                };
                let mut last = Outcome::Unavailable;
                for exchange in exchanges {
                    let result = open.backend.exchange(&self.decode(&exchange)).await;
                    if result.status == 0 {
                        return Outcome::Unavailable;
                    }
                    last = done(result);
                    open.list.push(Ran {
                        exchange,
                        outcome: last.clone(),
                        direct: false,
                    });
                }
                if !self.told.lock().unwrap().entry(transaction).or_default().aborted {
                    let open = Arc::new(AsyncMutex::new(open));
                    self.transactions.lock().await.insert(transaction, open);
                }
                last
            }
            Work::Extend {
                transaction,
                writes_before,
                exchange,
            } => {
                let open = self.transactions.lock().await.get(&transaction).cloned().unwrap();
                let mut open = open.lock().await;
                assert_eq!(open.list.len(), writes_before as usize);
                let result = open.backend.exchange(&self.decode(&exchange)).await;
                let ResultKey::Request(number) = key else {
                    panic!("an Extend is ordered")
                };
                let cancelled = self.told.lock().unwrap()[&transaction].cancelled.contains(&number);
                if result.status == 0 || cancelled {
                    return Outcome::Unavailable;
                }
                let outcome = done(result);
                open.ordered.insert(order.0, vec![exchange.clone()]);
                open.list.push(Ran {
                    exchange,
                    outcome: outcome.clone(),
                    direct: false,
                });
                outcome
            }
            Work::Commit {
                transaction,
                writes,
                words,
            } => {
                let open = self.transactions.lock().await.remove(&transaction).unwrap();
                let mut open = open.lock().await;
                let mut listed = CHAIN_START;
                for write in &writes {
                    match write {
                        TransactionWrite::Direct(exchange) => listed = chain(&listed, exchange),
                        TransactionWrite::Ordered(order) => {
                            listed = open.ordered[order]
                                .iter()
                                .fold(listed, |listed, bytes| chain(&listed, bytes));
                        }
                    }
                }
                assert_eq!(
                    listed,
                    open.chain(open.list.len()),
                    "COMMIT lists exactly what was written"
                );
                let mut signers = BTreeSet::new();
                for word in &words {
                    let digest = word_digest(transaction, open.began.0, &listed, &word.answers);
                    let signed = machine_key(MachineId(word.machine))
                        .verifying_key()
                        .verify_strict(&digest, &Signature::from_bytes(&word.signature));
                    assert_eq!(word.answers, words[0].answers, "equal words");
                    if signed.is_ok() {
                        signers.insert(word.machine);
                    }
                }
                if !words.is_empty() && signers.len() < 2 {
                    return refused("BF007");
                }
                let tag = {
                    let mut state = self.faults.state.lock().unwrap();
                    state.words.push(signers.into_iter().collect());
                    state.commit_tag.take()
                };
                let mut result = open.backend.simple("COMMIT").await;
                if let Some(tag) = tag {
                    result.messages = message(b'C', tag).into();
                }
                done(result)
            }
            Work::Abandon { .. } | Work::Nothing => panic!("proxies order no such thing"),
            Work::Cancel { .. } => panic!("nothing waits for locks here"),
            // These voters remember nothing.
            Work::Catalog { .. } => refused("BF008"),
            Work::Advisory(_) => panic!("there are no advisory locks here"),
            Work::Listen { .. } => done(ExchangeResult {
                messages: message(b'C', b"LISTEN\0").into(),
                status: b'I',
            }),
            Work::Abort { transaction } => {
                let process = {
                    let mut told = self.told.lock().unwrap();
                    let told = told.entry(transaction).or_default();
                    told.aborted = true;
                    told.process
                };
                let open = self.transactions.lock().await.remove(&transaction);
                if let Some(process) = process {
                    terminate(Arc::clone(&self.postgres), process).await;
                }
                drop(open);
                done(ExchangeResult {
                    messages: message(b'C', b"ROLLBACK\0").into(),
                    status: b'I',
                })
            }
        }
    }

    async fn backend(&self) -> Backend {
        let idle = self.idle.lock().unwrap().pop();
        match idle {
            Some(backend) => backend,
            None => {
                let mut backend = Raw::over(UnixStream::connect(self.postgres.socket()).await.unwrap());
                backend
                    .send(&startup(3 << 16, &[("user", "postgres"), ("database", "postgres")]))
                    .await;
                let greeting = backend.until_ready().await;
                let process = greeting.iter().find(|answer| answer.tag == b'K');
                backend.process = process.map(|answer| i32::from_be_bytes(answer.body[..4].try_into().unwrap()));
                backend
            }
        }
    }

    async fn alone(&self, context: &SessionContext, begin: &str, exchanges: &[Exchange], end: &str) -> ExchangeResult {
        let mut backend = self.backend().await;
        backend.settings(context).await;
        backend.simple(begin).await;
        let mut result = None;
        for exchange in exchanges {
            result = Some(backend.exchange(exchange).await);
        }
        backend.simple(end).await;
        self.idle.lock().unwrap().push(backend);
        let mut result = result.unwrap();
        result.status = b'I';
        result
    }
}

fn transaction_of(place: &DirectTransaction) -> TransactionId {
    TransactionId {
        client: 0,
        session: place.session,
        number: place.number,
    }
}

/// Ends a backend, whatever it runs, and waits until it has gone.
async fn terminate(postgres: Arc<Postgres>, process: i32) {
    let text = "SELECT pg_terminate_backend($1, 5000)";
    let client = postgres.connect().await;
    client.query_one(text, &[&process]).await.unwrap();
}

fn refused(sqlstate: &str) -> Outcome {
    Outcome::Refused {
        sqlstate: sqlstate.into(),
        message: "refused".into(),
        detail: String::new(),
        hint: String::new(),
    }
}

fn done(result: ExchangeResult) -> Outcome {
    let digests = result.digests().unwrap();
    Outcome::Done {
        sequence: digests.sequence,
        multiset: digests.multiset,
        whole: Some(borsh::to_vec(&result).unwrap().into()),
    }
}
