//! Three voters on one server.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use ordering::identifiers::{MachineId, Order};
use ordering::message::{CHAIN_START, ClientMessage, Direct, DirectKind, Outcome, ResultKey, ResultMessage, chain};
use proxy::{ClusterPort, Destination, FromNode, MachineSet, ToNode};
use sql::operation::{
    Exchange, ExchangeResult, Isolation, Operation, SessionContext, Step, TransactionId, TransactionWrite, Work,
};
use tokio::net::UnixStream;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::postgres::Postgres;
use super::raw::{Raw, message, startup};

/// What is wrong with the voters.
#[derive(Clone, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Voters that give results of their own invention.
    liars: MachineSet,
    /// Voters that vote right and send something else.
    forgers: MachineSet,
    /// Voters that say nothing.
    mute: MachineSet,
    /// The kinds of messages seen, in order.
    seen: Vec<&'static str>,
}

impl Faults {
    pub fn liar(&self, machine: u8) {
        self.state.lock().unwrap().liars.insert(MachineId(machine));
    }

    pub fn forger(&self, machine: u8) {
        self.state.lock().unwrap().forgers.insert(MachineId(machine));
    }

    pub fn mute(&self, machine: u8) {
        self.state.lock().unwrap().mute.insert(MachineId(machine));
    }

    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        (state.liars, state.forgers, state.mute) = Default::default();
    }

    pub fn is_mute(&self, machine: MachineId) -> bool {
        self.state.lock().unwrap().mute.contains(machine)
    }

    pub fn see(&self, kind: &'static str) {
        self.state.lock().unwrap().seen.push(kind);
    }

    /// The kinds of messages since the last call.
    pub fn take_seen(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

type Backend = Raw<UnixStream>;

/// A transaction on the voters' backend.
struct Open {
    backend: Backend,
    chain: [u8; 32],
    count: u32,
    /// By the order of Begin or Extend: its exchanges.
    ordered: HashMap<u64, Vec<Bytes>>,
}

#[derive(Clone)]
struct Cluster {
    postgres: Arc<Postgres>,
    results: mpsc::Sender<(MachineId, FromNode)>,
    faults: Faults,
    transactions: Arc<AsyncMutex<BTreeMap<TransactionId, Arc<AsyncMutex<Open>>>>>,
    idle: Arc<Mutex<Vec<Backend>>>,
    aborted: Arc<Mutex<std::collections::HashSet<TransactionId>>>,
    kept: Arc<Mutex<HashMap<ResultKey, (Order, Outcome)>>>,
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
        idle: Arc::default(),
        aborted: Arc::default(),
        kept: Arc::default(),
    };
    tokio::spawn(async move {
        let mut order = 0;
        let mut done = std::collections::HashSet::new();
        let mut directs: HashMap<u64, MachineSet> = HashMap::new();
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
                ToNode::Client(ClientMessage::Direct(direct)) => {
                    let Destination::Machines(machines) = destination else {
                        panic!("direct to all")
                    };
                    // The result is the same for all; it is computed when the first is asked.
                    let asked = directs.entry(direct.number).or_default();
                    let first = asked.is_empty();
                    *asked = asked.union(machines);
                    if first {
                        cluster
                            .faults
                            .see(if direct.transaction.is_some() { "direct" } else { "read" });
                    }
                    tokio::spawn(cluster.clone().direct(direct, machines, first));
                }
                ToNode::Client(ClientMessage::Recall(key)) => {
                    let Destination::Machines(machines) = destination else {
                        panic!("recall to all")
                    };
                    let kept = cluster.kept.lock().unwrap().get(&key).cloned();
                    if let Some((order, outcome)) = kept {
                        tokio::spawn(cluster.clone().answer(key, order, outcome, machines, machines));
                    }
                }
            }
        }
    });
    (ClusterPort { to, from }, faults)
}

/// What an operation is, in a word.
pub fn kind(work: &Work) -> &'static str {
    match work {
        Work::OneShot { .. } => "one-shot",
        Work::Read { .. } => "ordered read",
        Work::Begin { .. } => "begin",
        Work::Extend { .. } => "extend",
        Work::Commit { .. } => "commit",
        Work::Abort { .. } => "abort",
        Work::Abandon { .. } => "abandon",
        Work::Nothing => "nothing",
    }
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
            if let Outcome::Done {
                sequence,
                multiset,
                whole,
            } = &mut outcome
            {
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
            let result = ResultMessage { key, order, outcome };
            let _ = self.results.send((machine, FromNode::Result(result))).await;
        }
    }

    fn keep(&self, key: ResultKey, order: Order, outcome: &Outcome) {
        self.kept.lock().unwrap().insert(key, (order, outcome.clone()));
    }

    async fn ordered(self, number: u64, order: Order, operation: Operation) {
        self.faults.see(kind(&operation.work));
        let outcome = self.run(order, operation).await;
        let key = ResultKey::Request(number);
        self.keep(key, order, &outcome);
        let picked = MachineSet::one(MachineId((order.0 % 3) as u8 + 1));
        self.answer(key, order, outcome, voters(), picked).await;
    }

    async fn direct(self, direct: Direct, machines: MachineSet, first: bool) {
        let key = ResultKey::Direct(direct.number);
        if first {
            let context: SessionContext = borsh::from_slice(&direct.context).unwrap();
            let exchange = Exchange::decode(&direct.exchange).unwrap();
            let outcome = match &direct.transaction {
                None => done(self.alone(&context, "BEGIN READ ONLY", &[exchange], "COMMIT").await),
                Some(place) => {
                    let id = TransactionId {
                        client: 0,
                        session: place.session,
                        number: place.number,
                    };
                    let open = self.transactions.lock().await.get(&id).cloned();
                    match open {
                        None => Outcome::Unavailable,
                        Some(open) => {
                            let mut open = open.lock().await;
                            assert_eq!((open.count, open.chain), (place.writes_before, place.chain), "place");
                            if place.kind == DirectKind::Write {
                                open.count += 1;
                                open.chain = chain(&open.chain, &direct.exchange);
                            }
                            done(open.backend.exchange(&exchange).await)
                        }
                    }
                }
            };
            self.keep(key, Order(0), &outcome);
        }
        let outcome = loop {
            if let Some((_, outcome)) = self.kept.lock().unwrap().get(&key).cloned() {
                break outcome;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        };
        let whole_from = if direct.whole { machines } else { MachineSet::EMPTY };
        self.answer(key, Order(0), outcome, machines, whole_from).await;
    }

    async fn run(&self, order: Order, operation: Operation) -> Outcome {
        let context = &operation.context;
        match operation.work {
            Work::OneShot { exchange } => {
                let exchange = Exchange::decode(&exchange).unwrap();
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
                let exchange = Exchange::decode(&exchange).unwrap();
                done(self.alone(context, "BEGIN READ ONLY", &[exchange], "COMMIT").await)
            }
            Work::Read {
                transaction: Some(id),
                exchange,
                ..
            } => {
                let open = self.transactions.lock().await.get(&id).cloned().unwrap();
                done(
                    open.lock()
                        .await
                        .backend
                        .exchange(&Exchange::decode(&exchange).unwrap())
                        .await,
                )
            }
            Work::Begin {
                transaction,
                isolation,
                read_only,
                exchanges,
                ..
            } => {
                let mut backend = self.backend().await;
                backend.settings(context).await;
                let level = match isolation {
                    Isolation::RepeatableRead => "REPEATABLE READ",
                    _ => "READ COMMITTED",
                };
                let mode = if read_only { "READ ONLY" } else { "READ WRITE" };
                backend.simple(&format!("BEGIN ISOLATION LEVEL {level} {mode}")).await;
                let mut open = Open {
                    backend,
                    chain: CHAIN_START,
                    count: 0,
                    ordered: HashMap::new(),
                };
                let mut result = None;
                for exchange in &exchanges {
                    open.count += 1;
                    open.chain = chain(&open.chain, exchange);
                    result = Some(open.backend.exchange(&Exchange::decode(exchange).unwrap()).await);
                }
                open.ordered.insert(order.0, exchanges);
                // Aborted while it waited for a lock.
                if self.aborted.lock().unwrap().contains(&transaction) {
                    open.backend.simple("ROLLBACK").await;
                    return done(result.unwrap());
                }
                self.transactions
                    .lock()
                    .await
                    .insert(transaction, Arc::new(AsyncMutex::new(open)));
                done(result.unwrap())
            }
            Work::Extend {
                transaction,
                writes_before,
                exchange,
            } => {
                let open = self.transactions.lock().await.get(&transaction).cloned().unwrap();
                let mut open = open.lock().await;
                assert_eq!(open.count, writes_before);
                open.count += 1;
                open.chain = chain(&open.chain, &exchange);
                let result = open.backend.exchange(&Exchange::decode(&exchange).unwrap()).await;
                open.ordered.insert(order.0, vec![exchange]);
                done(result)
            }
            Work::Commit {
                transaction, writes, ..
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
                assert_eq!(listed, open.chain, "COMMIT lists exactly what was written");
                done(open.backend.simple("COMMIT").await)
            }
            Work::Abandon { .. } | Work::Nothing => panic!("proxies order no such thing"),
            Work::Abort { transaction } => {
                self.aborted.lock().unwrap().insert(transaction);
                let open = self.transactions.lock().await.remove(&transaction);
                if let Some(open) = open {
                    open.lock().await.backend.simple("ROLLBACK").await;
                }
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
                backend.until_ready().await;
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

fn done(result: ExchangeResult) -> Outcome {
    let digests = result.digests().unwrap();
    Outcome::Done {
        sequence: digests.sequence,
        multiset: digests.multiset,
        whole: Some(borsh::to_vec(&result).unwrap().into()),
    }
}

impl Backend {
    async fn settings(&mut self, context: &SessionContext) {
        self.simple("DISCARD ALL").await;
        for (name, value) in &context.settings {
            let (name, value) = (name.replace('\'', "''"), value.replace('\'', "''"));
            self.simple(&format!("SELECT set_config('{name}', '{value}', false)"))
                .await;
        }
    }

    async fn simple(&mut self, text: &str) -> ExchangeResult {
        self.exchange(&Exchange::Simple { text: text.into() }).await
    }

    async fn exchange(&mut self, exchange: &Exchange) -> ExchangeResult {
        let mut parsed = false;
        match exchange {
            Exchange::Simple { text } | Exchange::CopyStart { text } => {
                self.send(&super::raw::query(text)).await;
            }
            Exchange::CopyData { data } => {
                self.send(&message(b'd', data)).await;
                return ExchangeResult {
                    messages: Bytes::new(),
                    status: b'T',
                };
            }
            Exchange::CopyEnd { failure: None } => self.send(&message(b'c', b"")).await,
            Exchange::CopyEnd { failure: Some(reason) } => {
                self.send(&message(b'f', format!("{reason}\0").as_bytes())).await;
            }
            Exchange::Extended { statements, steps } => {
                parsed = true;
                self.extended(statements, steps).await;
            }
        }
        self.result(parsed).await
    }

    /// Sends the steps. Statements without a Parse step are prepared silently, under names that are left out.
    async fn extended(&mut self, statements: &[sql::operation::StatementText], steps: &[Step]) {
        let mut bytes = Vec::new();
        let parsed: Vec<bool> = (0..statements.len())
            .map(|at| {
                steps
                    .iter()
                    .any(|step| matches!(step, Step::Parse { statement } if usize::from(*statement) == at))
            })
            .collect();
        let parse = |at: usize, name: String| {
            let mut body = format!("{name}\0{}\0", statements[at].text).into_bytes();
            body.extend_from_slice(&(statements[at].parameter_types.len() as u16).to_be_bytes());
            statements[at]
                .parameter_types
                .iter()
                .for_each(|oid| body.extend_from_slice(&oid.to_be_bytes()));
            message(b'P', &body)
        };
        for at in (0..statements.len()).filter(|at| !parsed[*at]) {
            let mut silent = parse(at, format!("s{at}"));
            silent.extend(message(b'H', b""));
            self.send(&silent).await;
            // An error here answers for the whole exchange.
            match self.next().await {
                Some(answer) if answer.tag == b'1' => {}
                other => {
                    self.pushed = other;
                    self.send(&message(b'S', b"")).await;
                    return;
                }
            }
        }
        for step in steps {
            match step {
                Step::Parse { statement } => bytes.extend(parse(usize::from(*statement), format!("s{statement}"))),
                Step::DescribeStatement { statement } => {
                    bytes.extend(message(b'D', format!("Ss{statement}\0").as_bytes()))
                }
                Step::Bind {
                    portal,
                    statement,
                    parameter_formats,
                    parameters,
                    result_formats,
                } => {
                    let mut body = format!("{portal}\0s{statement}\0").into_bytes();
                    let formats = |body: &mut Vec<u8>, formats: &[i16]| {
                        body.extend_from_slice(&(formats.len() as u16).to_be_bytes());
                        formats
                            .iter()
                            .for_each(|format| body.extend_from_slice(&format.to_be_bytes()));
                    };
                    formats(&mut body, parameter_formats);
                    body.extend_from_slice(&(parameters.len() as u16).to_be_bytes());
                    for parameter in parameters {
                        match parameter {
                            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
                            Some(value) => {
                                body.extend_from_slice(&(value.len() as u32).to_be_bytes());
                                body.extend_from_slice(value);
                            }
                        }
                    }
                    formats(&mut body, result_formats);
                    bytes.extend(message(b'B', &body));
                }
                Step::DescribePortal { portal } => bytes.extend(message(b'D', format!("P{portal}\0").as_bytes())),
                Step::Execute { portal, max_rows } => bytes.extend(super::raw::execute(portal, *max_rows)),
                Step::ClosePortal { portal } => bytes.extend(message(b'C', format!("P{portal}\0").as_bytes())),
            }
        }
        for at in 0..statements.len() {
            bytes.extend(message(b'C', format!("Ss{at}\0").as_bytes()));
        }
        bytes.extend(message(b'S', b""));
        self.send(&bytes).await;
        self.closes = statements.len();
    }

    async fn result(&mut self, extended: bool) -> ExchangeResult {
        let mut messages = Vec::new();
        let mut status = b'I';
        let mut answers = Vec::new();
        while let Some(answer) = self.next().await {
            match answer.tag {
                b'Z' => {
                    status = answer.body[0];
                    break;
                }
                b'S' => {}
                b'G' => {
                    answers.push(answer);
                    status = b'T';
                    break;
                }
                _ => answers.push(answer),
            }
        }
        if extended {
            let failed = answers.iter().any(|answer| answer.tag == b'E');
            if !failed {
                answers.truncate(answers.len() - self.closes);
            } else {
                let names: Vec<u8> = (0..self.closes)
                    .flat_map(|at| message(b'C', format!("Ss{at}\0").as_bytes()))
                    .collect();
                self.send(&[names, message(b'S', b"")].concat()).await;
                while self.next().await.is_some_and(|answer| answer.tag != b'Z') {}
            }
        }
        for answer in answers {
            messages.extend(message(answer.tag, &answer.body));
        }
        ExchangeResult {
            messages: messages.into(),
            status,
        }
    }
}
