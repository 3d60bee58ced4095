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

    /// Takes note of a direct message as it comes.
    fn tell(&self, place: &DirectTransaction, machines: MachineSet) {
        let mut told = self.told.lock().unwrap();
        let told = told.entry(transaction_of(place)).or_default();
        match place.kind {
            DirectKind::Write | DirectKind::Replay => {
                for machine in machines.iter() {
                    told.writes.entry(machine).or_default().insert(place.writes_before);
                }
            }
            DirectKind::Cancel { request } => {
                assert_eq!(machines, voters(), "a cancellation goes to all");
                told.cancelled.insert(request);
                told.stopping = true;
                if let Some(process) = told.process {
                    tokio::spawn(terminate(Arc::clone(&self.postgres), process));
                }
            }
            _ => {}
        }
    }

    async fn direct(self, direct: Direct, machines: MachineSet) {
        let key = ResultKey::Direct(direct.number);
        let mut answering = machines;
        let outcome = match &direct.transaction {
            None => {
                let kept = self.kept.lock().unwrap().get(&key).cloned();
                match kept {
                    Some((_, outcome)) => outcome,
                    None => {
                        let context: SessionContext = borsh::from_slice(&direct.context).unwrap();
                        let exchange = self.decode(&direct.exchange);
                        done(self.alone(&context, "BEGIN READ ONLY", &[exchange], "COMMIT").await)
                    }
                }
            }
            Some(place) => {
                let Some(open) = self.wait_open(transaction_of(place)).await else {
                    return;
                };
                let mut open = open.lock().await;
                self.join(&mut open, machines).await;
                let lost = self.faults.state.lock().unwrap().lost;
                let told = self.told_in_full(&open, place, machines);
                let refused: MachineSet = machines
                    .iter()
                    .filter(|machine| lost.contains(*machine) || !told.contains(*machine))
                    .collect();
                answering = machines.without(refused);
                self.clone()
                    .answer(key, Order(0), Outcome::Unavailable, refused, MachineSet::EMPTY)
                    .await;
                match self.within(&mut open, &direct, place, key).await {
                    Some(Outcome::Word { answers, .. }) => {
                        let digest = word_digest(transaction_of(place), open.began.0, &place.chain, &answers);
                        for machine in answering.iter() {
                            let signature = machine_key(machine).sign(&digest).to_bytes();
                            let word = Outcome::Word { answers, signature };
                            let one = MachineSet::one(machine);
                            self.clone().answer(key, Order(0), word, one, one).await;
                        }
                        return;
                    }
                    Some(outcome) => outcome,
                    None => return,
                }
            }
        };
        self.keep(key, Order(0), &outcome);
        let whole_from = if direct.whole { machines } else { MachineSet::EMPTY };
        self.answer(key, Order(0), outcome, answering, whole_from).await;
    }

    /// A direct message may come before the order of its transaction's Begin is known.
    async fn wait_open(&self, id: TransactionId) -> Option<Arc<AsyncMutex<Open>>> {
        for _ in 0..400 {
            if let Some(open) = self.transactions.lock().await.get(&id).cloned() {
                return Some(open);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Makes machines live: each answers what was ordered before.
    async fn join(&self, open: &mut Open, machines: MachineSet) {
        let new = machines.without(open.live);
        open.live = open.live.union(machines);
        for (key, order, outcome) in open.answers.iter().filter(|_| !new.is_empty()) {
            self.clone().answer(*key, *order, outcome.clone(), new, new).await;
        }
    }

    /// The machines that were sent every direct write before a place.
    fn told_in_full(&self, open: &Open, place: &DirectTransaction, machines: MachineSet) -> MachineSet {
        let told = self.told.lock().unwrap();
        let told = &told[&transaction_of(place)];
        let directs: Vec<u32> = (0..place.writes_before)
            .filter(|at| open.list.get(*at as usize).is_some_and(|ran| ran.direct))
            .collect();
        machines
            .iter()
            .filter(|machine| {
                let writes = told.writes.get(machine);
                directs
                    .iter()
                    .all(|at| writes.is_some_and(|writes| writes.contains(at)))
            })
            .collect()
    }

    /// Runs a direct message of an open transaction; `None` when it is not answered.
    async fn within(
        &self,
        open: &mut Open,
        direct: &Direct,
        place: &DirectTransaction,
        key: ResultKey,
    ) -> Option<Outcome> {
        let at = place.writes_before as usize;
        assert!(at <= open.list.len(), "a statement ahead of the list");
        assert_eq!(open.chain(at), place.chain, "place");
        match place.kind {
            DirectKind::Join => None,
            DirectKind::Replay => {
                assert_eq!(open.list[at].exchange, direct.exchange, "what others have run");
                None
            }
            DirectKind::Cancel { .. } => {
                open.list.truncate(at);
                let mut backend = self.backend().await;
                backend.settings(&open.context).await;
                backend.simple(&open.begin).await;
                for ran in &open.list {
                    backend.exchange(&self.decode(&ran.exchange)).await;
                }
                self.runs_on(transaction_of(place), &backend);
                open.backend = backend;
                self.told
                    .lock()
                    .unwrap()
                    .entry(transaction_of(place))
                    .or_default()
                    .stopping = false;
                None
            }
            DirectKind::Word => {
                assert_eq!(at, open.list.len(), "a word on the whole list");
                if let Some((_, outcome)) = self.kept.lock().unwrap().get(&key) {
                    return Some(outcome.clone());
                }
                let checked = open.backend.simple("SET CONSTRAINTS ALL IMMEDIATE").await;
                if checked.status == b'E' {
                    return Some(done(checked));
                }
                let answers = open.list.iter().fold(CHAIN_START, |link, ran| match &ran.outcome {
                    Outcome::Done { multiset, .. } => chain(&link, multiset),
                    _ => link,
                });
                Some(Outcome::Word {
                    // These voters do not know whether anything was written.
                    answers: answers_with_effect(answers, true),
                    signature: [0; 64],
                })
            }
            DirectKind::ObjectNumber => Some(Outcome::ObjectNumber { number: 20_000 }),
            DirectKind::Read => {
                if let Some((_, outcome)) = self.kept.lock().unwrap().get(&key) {
                    return Some(outcome.clone());
                }
                let exchange = self.decode(&direct.exchange);
                let outcome = done(open.backend.exchange(&exchange).await);
                self.keep(key, Order(0), &outcome);
                Some(outcome)
            }
            DirectKind::Write => {
                if let Some(ran) = open.list.get(at) {
                    assert_eq!(ran.exchange, direct.exchange, "the same write again");
                    return Some(ran.outcome.clone());
                }
                if self.told.lock().unwrap()[&transaction_of(place)].stopping {
                    return None;
                }
                let result = open.backend.exchange(&self.decode(&direct.exchange)).await;
                if result.status == 0 {
                    return None;
                }
                let outcome = done(result);
                open.list.push(Ran {
                    exchange: direct.exchange.clone(),
                    outcome: outcome.clone(),
                    direct: true,
                });
                Some(outcome)
            }
        }
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
            // One server stands for all: it numbers objects like itself.
            Exchange::ObjectNumbers { .. } => {
                return ExchangeResult {
                    messages: Bytes::new(),
                    status: b'T',
                };
            }
            Exchange::Stored { .. } => panic!("a body that is only a name"),
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
        // Zero: the backend was terminated.
        let mut status = 0;
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
            if status == 0 {
                answers.clear();
            } else if !failed {
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
