//! The owner task: holds the pure state, feeds it, and starts work. One life of it per connection to the database.

mod abandon;
mod advisory;
mod catalog;
mod direct;
mod feed;
mod fence;
mod floor;
mod grant;
mod ping;
mod replicas;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ordering::identifiers::{ClientId, MachineId, Order};
use ordering::message::{EffectDigests, ResultKey};
use sql::analysis::Analyzer;
use sql::operation::{Operation, TransactionId};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::catalog_log::CatalogLog;
use crate::client_window::ClientWindows;
use crate::config::VoterConfig;
use crate::doubts::Doubts;
use crate::effects::{Divergence, Effects, EffectsInput};
use crate::ending::Abandoned;
use crate::executor::{Event, OneShot, OrderedRead, Shared};
use crate::floors::{FloorState, Floors, WaitingOneShots};
use crate::listeners::Listeners;
use crate::lock_table::{LockLimits, LockTable};
use crate::outcome::Outcome;
use crate::postgres::PostgresError;
use crate::postgres::bootstrap::Bookkeeper;
use crate::postgres::catalog::NewCatalog;
use crate::postgres::pool::Pool;
use crate::reporter::{Asker, Reporter};
use crate::slot::{Command, SlotHandle};
use crate::survived::Survived;
use crate::transactions::OrderedTransaction;
use crate::vote::VoteCounter;
use crate::voter::{VoterInput, VoterOutput, VoterState};
use crate::work::{Catalog, Refused};

use abandon::OwnOrders;
use direct::EarlyDirect;
pub(crate) use direct::send_unavailable;
use fence::Fences;

/// Granted operations that have not finished, at most; further orders wait in the vote counter.
const UNFINISHED_MAX: usize = 1024;

/// How often the owner looks after gaps, replies and the floor.
const TICK: Duration = Duration::from_millis(20);

/// A voter that is further behind does not run what open transactions do, only what they commit. What is decided at once (a
/// primary has some batches of some dozens of operations in flight, for each group) puts no voter behind: all of them
/// would refuse to run it.
const BEHIND_ORDERS_MAX: u64 = 1024;

/// How often old bodies are looked for.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);

/// How much longer than twice the longest transaction a body is kept of which nothing has come.
const UNNAMED_BODY_GRACE: Duration = Duration::from_secs(600);

/// Why one life of the owner ended.
pub(crate) enum End {
    /// The node dropped the voter.
    Stopped,
    /// The database is lost: start again from the floor.
    Lost(String),
    /// The database answers otherwise than f+1 voters have certified at this order. Start again: the cause may have passed.
    Contradicted(u64),
    /// The database has changed something else than f+1 others have.
    Diverged(Divergence),
    /// A note in the database says that it holds something else than f+1 others do.
    Noted {
        /// The order at which that was found.
        order: u64,
        /// The difference.
        shown: String,
    },
}

/// An ordered operation that has been fed and has not finished.
struct Fed {
    asker: Asker,
    time_us: u64,
    operation: Arc<Operation>,
    bytes: usize,
}

/// Granted work that waits for other work to finish in Postgres.
enum Start {
    OneShot(Box<OneShot>),
    Read(Box<OrderedRead>),
    /// An answer that is known: whoever gets it finds in the database what was ordered before.
    Answer(Asker, Outcome),
    /// In a transaction's task. The transaction may have left the table meanwhile: its end follows.
    Slot(SlotHandle, Box<Command>),
    /// The ends of several transactions at one order.
    Slots(Vec<(SlotHandle, Command)>),
}

struct OpenTransaction {
    ordered: OrderedTransaction,
    /// `None` until its Begin is granted, and when all of it was over before this life began.
    slot: Option<SlotHandle>,
    /// When this voter came to know of it.
    since: Instant,
}

impl OpenTransaction {
    fn new(ordered: OrderedTransaction) -> Self {
        Self {
            ordered,
            slot: None,
            since: Instant::now(),
        }
    }
}

/// What stays of the voter when the database is lost.
pub(crate) struct Outside {
    pub(crate) config: Arc<VoterConfig>,
    pub(crate) outputs: mpsc::Sender<VoterOutput>,
    pub(crate) reporter: Reporter,
    pub(crate) state: watch::Sender<VoterState>,
    /// The order at which the database contradicted what was certified, until it has got past it.
    pub(crate) contradicted: AtomicU64,
    /// Orders whose effect is in doubt.
    pub(crate) doubts: Doubts,
    /// The comparison of effects, if it is wanted.
    pub(crate) effects: Option<Effects>,
    /// Keeps the channel open when effects are not compared.
    pub(crate) _divergences: mpsc::Sender<Divergence>,
}

impl Outside {
    /// Another voter says what its server has changed.
    pub(crate) fn effects(&self, from: MachineId, message: EffectDigests) {
        if let Some(effects) = &self.effects {
            effects.tell(EffectsInput::Told { from, message });
        }
    }
}

pub(crate) struct Owner<'a> {
    outside: &'a Outside,
    config: Arc<VoterConfig>,
    shared: Arc<Shared>,
    events: mpsc::UnboundedReceiver<Event>,
    tasks: JoinSet<()>,
    votes: VoteCounter,
    windows: ClientWindows,
    locks: LockTable,
    fed: BTreeMap<u64, Fed>,
    blocked: BTreeMap<u64, Start>,
    transactions: BTreeMap<TransactionId, OpenTransaction>,
    /// Open transactions that nodes have said to be abandoned, with the nodes.
    abandoned: Abandoned,
    /// One-shots that have not been granted.
    waiting: WaitingOneShots,
    /// To which channels sessions listen, as of the last order that was fed.
    listeners: Arc<Listeners>,
    /// What this machine orders by itself.
    own: OwnOrders,
    early: Vec<EarlyDirect>,
    direct_reads: Arc<Semaphore>,
    catalog: Catalog,
    catalog_log: CatalogLog,
    /// The places of answers from `catalog_log` that are put together.
    catalog_answers: Arc<Semaphore>,
    /// The work that may change the catalog: nothing after it is checked or granted before it has finished.
    stalled_by: Option<u64>,
    survived: Survived,
    /// Orders that have been fed and whose own work has not finished.
    unfinished: BTreeSet<u64>,
    last_fed: u64,
    executed: Arc<AtomicU64>,
    floors: Floors,
    /// When the last candidate for a floor was taken.
    last_candidate: Instant,
    /// Orders up to here were over before this life began.
    resumed_from: u64,
    /// What the machine's own replica knows to be decided, or a correct voter has executed.
    decided: Order,
    /// What the voters of other machines say that they have executed.
    executed_elsewhere: BTreeMap<MachineId, Order>,
    /// Where the logs of replicas begin that could not give what we lack.
    logs_begin: BTreeMap<MachineId, Order>,
    last_reply: (u64, u64),
    replied: Instant,
    fetch: Fetch,
    last_ping: Instant,
    /// When old bodies were last looked for.
    bodies_expired: Instant,
    /// What was last written into the server's log of how far this voter is.
    fences: Fences,
}

struct Fetch {
    from: u64,
    at: Instant,
    seen_next: u64,
}

impl<'a> Owner<'a> {
    /// Connects, installs and reads what is needed.
    pub(crate) async fn start(outside: &'a Outside) -> Result<Self, PostgresError> {
        let config = Arc::clone(&outside.config);
        let mut bookkeeper = Bookkeeper::open(&config).await?;
        let found = bookkeeper.bootstrap(&config).await?;
        let (floor, state) = match found.floor {
            Some((order, bytes)) => (order, floor::decode(&bytes)?),
            None => (0, FloorState::default()),
        };
        let (events_sender, events) = mpsc::unbounded_channel();
        let functions = Arc::new(found.functions);
        let pool = Pool::new(Arc::clone(&config), Arc::clone(&functions));
        let shared = Shared {
            config: Arc::clone(&config),
            functions,
            reads: Arc::default(),
            pool: Arc::new(pool),
            bookkeeper: tokio::sync::Mutex::new(bookkeeper),
            reporter: outside.reporter.clone(),
            doubts: outside.doubts.clone(),
            events: events_sender,
        };
        let limits = LockLimits {
            transactions_max: config.limits.transactions_max,
            waiting_max: config.limits.waiting_max,
            waiting_bytes_max: config.limits.waiting_bytes_max,
        };
        let now = Instant::now();
        let survived = Survived::new(found.applied);
        if let Some(effects) = &outside.effects {
            effects.catalogs.push(survived.newest(), Arc::clone(&found.schema));
            effects.tell(EffectsInput::Serving);
        }
        Ok(Self {
            outside,
            shared: Arc::new(shared),
            events,
            tasks: JoinSet::new(),
            votes: VoteCounter::new(config.faults, config.groups, Order(floor + 1))
                .of_replicas(config.replicas.clone())
                .beside_replica(config.machine),
            windows: state.windows,
            locks: LockTable::restore(limits, &state.locks),
            fed: BTreeMap::new(),
            blocked: BTreeMap::new(),
            transactions: BTreeMap::new(),
            abandoned: state.abandoned,
            waiting: state.waiting,
            listeners: Arc::new(state.listeners),
            own: OwnOrders::new(now),
            early: Vec::new(),
            direct_reads: Arc::new(Semaphore::new(config.limits.direct_queue_max)),
            catalog: Catalog {
                analyzer: Arc::new(Analyzer::new(found.schema)),
                generation: 1,
            },
            catalog_log: CatalogLog::new(survived.newest()),
            catalog_answers: Arc::new(Semaphore::new(catalog::ANSWERS_AT_ONCE)),
            stalled_by: None,
            survived,
            unfinished: BTreeSet::new(),
            last_fed: floor,
            executed: Arc::new(AtomicU64::new(floor)),
            floors: Floors::new(floor),
            last_candidate: now,
            resumed_from: floor,
            decided: Order(0),
            executed_elsewhere: BTreeMap::new(),
            logs_begin: BTreeMap::new(),
            last_reply: (u64::MAX, u64::MAX),
            replied: now,
            fetch: Fetch {
                from: floor + 1,
                at: now,
                seen_next: floor + 1,
            },
            last_ping: now,
            bodies_expired: now,
            fences: Fences::new(now),
            config,
        })
    }

    /// Serves until the database is lost or the node drops the voter.
    pub(crate) async fn serve(
        mut self,
        inputs: &mut mpsc::Receiver<VoterInput>,
        divergences: &mut mpsc::Receiver<Divergence>,
    ) -> End {
        self.output(VoterOutput::Fetch {
            from: self.votes.next_order(),
        })
        .await;
        self.order_nothing().await;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let end = loop {
            let ended = tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(event) => self.take_event(event).await,
                    None => Some(End::Stopped),
                },
                Some(divergence) = divergences.recv() => Some(End::Diverged(divergence)),
                _ = ticks.tick() => {
                    self.tick().await;
                    None
                }
                input = inputs.recv() => match input {
                    Some(input) => {
                        self.take_input(input).await;
                        None
                    }
                    None => Some(End::Stopped),
                },
            };
            if let Some(end) = ended {
                break end;
            }
        };
        self.tasks.shutdown().await;
        end
    }

    async fn output(&self, output: VoterOutput) {
        let _ = self.outside.outputs.send(output).await;
    }

    async fn take_input(&mut self, input: VoterInput) {
        match input {
            VoterInput::CommitDb { from, message } => self.commit_db(from, message).await,
            // What it knows is of the past, and stays so.
            VoterInput::Direct { client, direct } if self.is_left_behind() => {
                let executed = Order(self.executed.load(Ordering::Relaxed));
                send_unavailable(&self.outside.reporter, client, direct.number, executed).await;
            }
            VoterInput::Direct { client, direct } => {
                self.heard(client);
                self.direct(client, direct).await
            }
            VoterInput::LogBegins { from, first } => self.log_begins(from, first),
            VoterInput::KeepAlive(client) => self.heard(client),
            VoterInput::GiveUp { client, key } => self.shared.reads.give_up(client, key),
            VoterInput::Decided(order) => self.decided = order.max(self.decided),
            VoterInput::Executed { from, order } => self.executed_by(from, order),
            VoterInput::Effects { from, message } => self.outside.effects(from, message),
            VoterInput::Recall { client, key } => {
                self.heard(client);
                self.outside.reporter.recall(client, key).await
            }
            VoterInput::RecallChunk { client, key, index } => {
                self.heard(client);
                self.outside.reporter.recall_chunk(client, key, index);
            }
            VoterInput::Release { client, key } => release(&self.outside.reporter, client, key),
        }
    }

    async fn take_event(&mut self, event: Event) -> Option<End> {
        match event {
            Event::SnapshotOpen(order) => {
                let ready = self.locks.snapshot_open(order);
                self.start_all(ready);
            }
            Event::Finished(order, catalog) => {
                if let Some(NewCatalog { schema, change }) = catalog {
                    if let Some(effects) = &self.outside.effects {
                        effects.catalogs.push(order, Arc::clone(&schema));
                    }
                    self.catalog = Catalog {
                        analyzer: Arc::new(Analyzer::new(schema)),
                        generation: self.catalog.generation + 1,
                    };
                    // Nothing was fed since its locks were granted.
                    self.catalog_log.push(self.last_fed, change);
                }
                self.finished(order);
                if self.stalled_by == Some(order) {
                    self.stalled_by = None;
                    // Before the next change begins.
                    self.retry_early().await;
                }
                self.advance().await;
                self.retry_early().await;
            }
            Event::FloorWritten(order) => {
                self.floors.written(order);
                metrics::gauge!("cloudbft_voter_flushed_order").set(order as f64);
                self.config.bodies.flushed(self.config.machine, order);
            }
            Event::Suspect => self.ping_now(),
            Event::Lost(reason) => return Some(End::Lost(reason)),
            Event::Contradicted(order) => return Some(End::Contradicted(order)),
            Event::Noted { order, shown } => return Some(End::Noted { order, shown }),
        }
        None
    }

    /// Feeds and grants as far as it goes.
    async fn advance(&mut self) {
        loop {
            while self.stalled_by.is_none() {
                let Some(grant) = self.locks.next_grant() else { break };
                self.granted(grant).await;
            }
            if self.stalled_by.is_some() || self.locks.unfinished_nodes() >= UNFINISHED_MAX {
                break;
            }
            let Some(decided) = self.votes.take_next() else { break };
            self.feed(decided).await;
        }
    }

    /// The own work of an order is over.
    fn finished(&mut self, order: u64) {
        self.fed.remove(&order);
        self.unfinished.remove(&order);
        self.floors.finished(order);
        let executed = self
            .unfinished
            .first()
            .map_or(self.last_fed, |first| first.saturating_sub(1));
        self.executed.store(executed, Ordering::Relaxed);
        let ready = self.locks.finished(order);
        self.start_all(ready);
    }

    /// Answers an ordered operation without running it; its order is over.
    async fn settle(&mut self, asker: Asker, outcome: Outcome) {
        asker.answer(&self.outside.reporter, outcome).await;
        self.finished(asker.order);
    }

    async fn refuse(&mut self, asker: Asker, refused: impl Into<Refused>) {
        self.settle(asker, refused.into().into()).await;
    }

    async fn tick(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.reply().await;
        self.fetch_missing().await;
        self.expire_early().await;
        self.consider_floor();
        self.abandon_silent().await;
        self.ping();
        self.fence();
        self.expire_bodies();
        let executed = self.executed.load(Ordering::Relaxed);
        metrics::gauge!("cloudbft_voter_lag_entries").set(self.behind_by() as f64);
        metrics::gauge!("cloudbft_voter_executed_order").set(executed as f64);
        metrics::gauge!("cloudbft_voter_waiting_operations").set(self.locks.waiting() as f64);
        metrics::gauge!("cloudbft_voter_unfinished_operations").set(self.locks.unfinished_nodes() as f64);
        metrics::gauge!("cloudbft_voter_open_transactions").set(self.locks.transactions() as f64);
    }

    /// Drops bodies of which nothing has come for longer than any transaction may be open.
    fn expire_bodies(&mut self) {
        if self.bodies_expired.elapsed() < EXPIRE_INTERVAL {
            return;
        }
        self.bodies_expired = Instant::now();
        let age = 2 * self.config.limits.transaction_time_max + UNNAMED_BODY_GRACE;
        self.config.bodies.expire(age, |id| self.transactions.contains_key(id));
    }
}

/// A proxy needs a large result no more.
pub(crate) fn release(reporter: &Reporter, client: ClientId, key: ResultKey) {
    reporter.with_store(|store| store.release(client, key));
}
