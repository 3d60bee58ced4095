//! What this voter's server has really changed, compared with what the servers of the others have
//! (`docs/decisions/0051-effects-are-compared.md`): in a task of its own, off the path of any statement.

mod catalogs;
mod change;
mod comparison;
mod effect;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ordering::identifiers::MachineId;
use ordering::message::EffectDigests;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::config::VoterConfig;
use crate::doubts::{Doubts, NOT_EQUAL};
use crate::postgres::PostgresError;
use crate::voter::VoterOutput;
pub(crate) use catalogs::Catalogs;
pub(crate) use change::MESSAGE_PREFIX;
use change::{Decoded, decode};
use comparison::{Comparison, Finding};
use effect::{Effect, KeyAt};
pub(crate) use stream::drop_slot;
use stream::{Event, Slot, Stream};

/// Digests of others, and beginnings, that wait at most; further ones are dropped, and asked for again.
const INPUTS_MAX: usize = 256;

/// How often digests are sent at most.
const SEND_INTERVAL: Duration = Duration::from_millis(100);

/// How long the task waits before it connects again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A transaction of more changes is digested beside the node's tasks.
const INLINE_CHANGES_MAX: usize = 2_048;

/// When the server fails so often at one place, the slot is made anew behind it.
const FAILURES_MAX: u32 = 3;

/// Classes of errors that say nothing of the place, and pass.
const PASSING_CLASSES: [&str; 5] = ["08", "53", "55", "57", "58"];

/// The shortest time between two lines in the log about changes that nobody ordered.
const UNORDERED_INTERVAL: Duration = Duration::from_secs(1);

/// What the comparison of effects is doing, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectsReport {
    /// Whether this voter reads what its server changes; else why not.
    pub comparing: Result<(), String>,
    /// Orders at which f+1 voters, this one among them, said the same, since the node started.
    pub agreed: u64,
    /// Orders that have not been compared with f others yet.
    pub open: u64,
    /// Orders of which no f+1 voters said the same, since the node started.
    pub disputed: u64,
    /// The last of them, and what this server had changed.
    pub last_disputed: Option<String>,
    /// Transactions that changed tables and that nobody ordered, since the node started.
    pub unordered: u64,
    /// The tables and rows that the last unordered transaction changed.
    pub last_unordered: Option<String>,
}

impl Default for EffectsReport {
    fn default() -> Self {
        Self {
            comparing: Err("it is switched off".into()),
            agreed: 0,
            open: 0,
            disputed: 0,
            last_disputed: None,
            unordered: 0,
            last_unordered: None,
        }
    }
}

/// This voter's server has changed something else at an order than f+1 servers have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Divergence {
    pub(crate) order: u64,
    /// The identifier of the server.
    pub(crate) system: String,
    /// What it had changed.
    pub(crate) shown: String,
}

/// What the task is told.
#[derive(Debug)]
pub(crate) enum EffectsInput {
    /// The voter of another machine says what its server has changed.
    Told { from: MachineId, message: EffectDigests },
    /// A life of this voter begins: whatever was found before, its database is fit.
    Serving,
}

/// The voter's side of the task. When it is dropped the task ends.
pub(crate) struct Effects {
    inputs: mpsc::Sender<EffectsInput>,
    /// Which keys tables had.
    pub(crate) catalogs: Catalogs,
}

impl Effects {
    /// Starts the task. What it finds of this voter comes by `divergences`.
    pub(crate) fn start(
        config: Arc<VoterConfig>,
        outputs: mpsc::Sender<VoterOutput>,
        divergences: mpsc::Sender<Divergence>,
        report: watch::Sender<EffectsReport>,
        doubts: Doubts,
    ) -> (Self, JoinHandle<()>) {
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        report.send_modify(|report| report.comparing = Err("its changes are not read yet".into()));
        let catalogs = Catalogs::default();
        let me = config.machine;
        let others = config.voter_keys.keys().copied().filter(|machine| *machine != me);
        let task = Task {
            comparison: Comparison::new(config.faults, others),
            config,
            outputs,
            divergences,
            report,
            doubts,
            inputs,
            catalogs: catalogs.clone(),
            started: Instant::now(),
            reading: None,
            system: String::new(),
            failures: 0,
            mismatches: BTreeMap::new(),
            unordered_told: None,
        };
        let handle = tokio::spawn(task.run());
        let effects = Self {
            inputs: sender,
            catalogs,
        };
        (effects, handle)
    }

    /// Tells the task, unless too much waits.
    pub(crate) fn tell(&self, input: EffectsInput) {
        let _ = self.inputs.try_send(input);
    }
}

/// A transaction that is being read.
#[derive(Default)]
struct Reading {
    effect: Effect,
    order: Option<u64>,
    /// Set by a repair's transaction: what it changes is not compared, and what was before it is another database.
    is_repair: bool,
}

struct Task {
    config: Arc<VoterConfig>,
    comparison: Comparison,
    outputs: mpsc::Sender<VoterOutput>,
    divergences: mpsc::Sender<Divergence>,
    report: watch::Sender<EffectsReport>,
    doubts: Doubts,
    inputs: mpsc::Receiver<EffectsInput>,
    catalogs: Catalogs,
    started: Instant,
    reading: Option<Reading>,
    system: String,
    /// Errors of the server since it gave a whole transaction.
    failures: u32,
    mismatches: BTreeMap<MachineId, metrics::Counter>,
    unordered_told: Option<Instant>,
}

/// The voter is gone.
struct Ended;

impl Task {
    async fn run(mut self) {
        // Without the catalog it would not be known which changes are of one row.
        while self.catalogs.is_empty() {
            if let Some(Ended) = self.pause().await {
                return;
            }
        }
        loop {
            let postgres = self.config.postgres.clone();
            let opening = Stream::open(&postgres, &postgres.superuser, self.failures >= FAILURES_MAX);
            let error = match opening.await {
                Ok((mut stream, slot)) => {
                    self.opened(&stream, slot);
                    match self.follow(&mut stream).await {
                        Ok(Ended) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.failed(&error);
            self.reject_doubts();
            if let Some(Ended) = self.pause().await {
                return;
            }
        }
    }

    fn opened(&mut self, stream: &Stream, slot: Slot) {
        self.reading = None;
        if slot == Slot::Lost {
            self.failures = 0;
            metrics::counter!("cloudbft_effects_slots_lost_total").increment(1);
            tracing::error!(
                "the server could not give all of its changes: what it has changed up to now is not compared"
            );
        }
        if slot != Slot::Kept || (!self.system.is_empty() && self.system != stream.system) {
            metrics::counter!("cloudbft_effects_slots_made_total").increment(1);
            tracing::info!("effects are compared from now on");
            self.comparison.begin_anew();
        }
        self.system.clone_from(&stream.system);
        self.say_comparing(Ok(()));
    }

    fn failed(&mut self, error: &PostgresError) {
        let speaks_of_the_server = |sqlstate: &str| PASSING_CLASSES.iter().any(|class| sqlstate.starts_with(class));
        if matches!(error, PostgresError::Server { sqlstate, .. } if !speaks_of_the_server(sqlstate)) {
            self.failures += 1;
        }
        self.say_comparing(Err(error.to_string()));
    }

    fn say_comparing(&self, comparing: Result<(), String>) {
        metrics::gauge!("cloudbft_effects_comparing").set(if comparing.is_ok() { 1.0 } else { 0.0 });
        self.doubts.set_comparing(comparing.is_ok());
        let changed = self.report.send_if_modified(|report| {
            let changed = report.comparing != comparing;
            report.comparing.clone_from(&comparing);
            changed
        });
        if let (true, Err(reason)) = (changed, comparing) {
            tracing::warn!(reason, "effects are not compared");
        }
    }

    /// Takes inputs until the server is to be tried again.
    async fn pause(&mut self) -> Option<Ended> {
        let retry = tokio::time::sleep(RETRY_INTERVAL);
        tokio::pin!(retry);
        loop {
            tokio::select! {
                () = &mut retry => return None,
                input = self.inputs.recv() => match input {
                    Some(input) => {
                        let serves = matches!(input, EffectsInput::Serving);
                        self.take_input(input);
                        if serves {
                            return None;
                        }
                    }
                    None => return Some(Ended),
                },
            }
        }
    }

    async fn follow(&mut self, stream: &mut Stream) -> Result<Ended, PostgresError> {
        let mut ticks = tokio::time::interval(SEND_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = stream.next() => match event? {
                    Event::Line(line) => if let Some(read) = self.take_line(&line) {
                        self.committed(read).await;
                    },
                    Event::TooLong => self.unread(),
                    Event::Nothing => {}
                },
                input = self.inputs.recv() => match input {
                    Some(input) => self.take_input(input),
                    None => return Ok(Ended),
                },
                _ = ticks.tick() => {
                    self.reject_doubts();
                    self.send();
                    stream.confirm(Instant::now(), self.reading.is_none()).await?;
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn take_input(&mut self, input: EffectsInput) {
        match input {
            EffectsInput::Told { from, message } => {
                let findings = self.comparison.told(from, &message, self.now());
                self.take_findings(findings);
            }
            EffectsInput::Serving => self.comparison.resume(),
        }
    }

    fn unread(&mut self) {
        if let Some(reading) = &mut self.reading {
            reading.effect.unread();
        }
    }

    /// Takes a line; the transaction that ends with it.
    fn take_line(&mut self, line: &[u8]) -> Option<Reading> {
        let decoded = std::str::from_utf8(line).map_or(Decoded::Unknown, decode);
        let in_repair = self.reading.as_ref().is_some_and(|reading| reading.is_repair);
        if in_repair && !matches!(decoded, Decoded::Begin | Decoded::Commit) {
            return None;
        }
        match decoded {
            Decoded::Repair => {
                if let Some(reading) = &mut self.reading {
                    reading.is_repair = true;
                }
            }
            Decoded::Begin => self.reading = Some(Reading::default()),
            Decoded::Commit => return self.reading.take(),
            Decoded::Fence { executed, ceiling } => {
                let findings = self.comparison.fence(executed, ceiling, self.now());
                self.take_findings(findings);
            }
            Decoded::Ignored => {}
            Decoded::Unknown => self.unread(),
            Decoded::Position(order) => {
                if let Some(reading) = &mut self.reading {
                    reading.order = Some(order);
                }
            }
            Decoded::Row(row) => {
                let reading = self.reading.as_mut()?;
                let catalogs = &self.catalogs;
                let key = || catalogs.last_key(&row.table.schema, &row.table.name);
                reading.effect.row(&row, key);
            }
            Decoded::Truncate { tables, flags } => {
                let reading = self.reading.as_mut()?;
                for table in &tables {
                    let key = || self.catalogs.last_key(&table.schema, &table.name);
                    reading.effect.truncate(table, flags, key);
                }
            }
        }
        None
    }

    async fn committed(&mut self, reading: Reading) {
        self.failures = 0;
        if reading.is_repair {
            tracing::info!("the database was repaired: effects are compared from now on");
            return self.comparison.begin_anew();
        }
        let Reading { effect, order, .. } = reading;
        let Some(order) = order else {
            if !effect.only_notes_sequences() {
                self.unordered(effect);
            }
            return;
        };
        let catalogs = self.catalogs.clone();
        let is_large = effect.changes() > INLINE_CHANGES_MAX;
        let finish = move || effect.finish(|schema, table| catalogs.key_at(order, schema, table));
        let summary = match is_large {
            true => tokio::task::spawn_blocking(finish).await,
            false => Ok(finish()),
        };
        let Ok(summary) = summary else {
            // The runtime ends.
            return;
        };
        if summary.is_bulk {
            metrics::counter!("cloudbft_effects_bulk_total").increment(1);
        }
        if summary.digest.is_none() {
            metrics::counter!("cloudbft_effects_skipped_total").increment(1);
        }
        let findings = self
            .comparison
            .changed(order, summary.digest, summary.shown, self.now());
        self.take_findings(findings);
    }

    /// Somebody changed this server past the voter.
    fn unordered(&mut self, effect: Effect) {
        metrics::counter!("cloudbft_effects_unordered_total").increment(1);
        let shown = effect.finish(|_, _| KeyAt::Unknown).shown.to_string();
        if self
            .unordered_told
            .is_none_or(|told| told.elapsed() >= UNORDERED_INTERVAL)
        {
            self.unordered_told = Some(Instant::now());
            tracing::error!(
                changed = shown,
                "this database was changed by a transaction that nobody ordered"
            );
        }
        self.report.send_modify(|report| {
            report.unordered += 1;
            report.last_unordered = Some(shown);
        });
    }

    fn take_findings(&mut self, findings: Vec<Finding>) {
        for finding in findings {
            match finding {
                Finding::Agreed { order } => {
                    self.settle_doubt(order);
                    metrics::counter!("cloudbft_effects_agreed_total").increment(1);
                    self.report.send_modify(|report| report.agreed += 1);
                }
                Finding::Skipped => metrics::counter!("cloudbft_effects_skipped_total").increment(1),
                Finding::Mismatch { from, order } => self.mismatch(from, order),
                Finding::Diverged { order, shown } => {
                    let shown = shown.to_string();
                    metrics::counter!("cloudbft_effects_diverged_total").increment(1);
                    tracing::error!(
                        order,
                        changed = shown,
                        "this database has changed something else than f+1 others have: it has to be repaired"
                    );
                    let system = self.system.clone();
                    // One is enough, whichever comes first.
                    let _ = self.divergences.try_send(Divergence { order, system, shown });
                }
                Finding::Disputed { order, shown } => {
                    self.doubts.reject(order);
                    metrics::counter!("cloudbft_effects_disputed_total").increment(1);
                    tracing::error!(
                        order,
                        changed = %shown,
                        "no f+1 databases have changed the same: nobody knows which one is right"
                    );
                    self.report.send_modify(|report| {
                        report.disputed += 1;
                        report.last_disputed = Some(format!("order {order}: {shown}"));
                    });
                }
            }
        }
    }

    fn settle_doubt(&self, order: u64) {
        if self.doubts.settle(order) {
            metrics::counter!("cloudbft_voter_doubts_settled_total").increment(1);
            tracing::info!(
                order,
                "this database has changed the same as f others, though it had answered otherwise"
            );
        }
    }

    /// What was in doubt and is not found equal has diverged.
    fn reject_doubts(&self) {
        if let Some(order) = self.doubts.rejected(Instant::now()) {
            let (system, shown) = (self.system.clone(), String::from(NOT_EQUAL));
            // Said once: the voter takes it when it serves.
            if self.divergences.try_send(Divergence { order, system, shown }).is_ok() {
                tracing::error!(order, NOT_EQUAL);
            }
        }
    }

    fn mismatch(&mut self, from: MachineId, order: u64) {
        tracing::debug!(machine = %from, order, "another server has changed something else");
        self.mismatches
            .entry(from)
            .or_insert_with(|| metrics::counter!("cloudbft_effects_mismatches_total", "voter" => from.0.to_string()))
            .increment(1);
    }

    /// Sends what there is. What finds no room is asked for again.
    fn send(&mut self) {
        let open = self.comparison.open() as u64;
        metrics::gauge!("cloudbft_effects_open_orders").set(open as f64);
        self.report
            .send_if_modified(|report| std::mem::replace(&mut report.open, open) != open);
        for (to, message) in self.comparison.outgoing(self.now()) {
            let _ = self.outputs.try_send(VoterOutput::Effects { to, message });
        }
    }
}
