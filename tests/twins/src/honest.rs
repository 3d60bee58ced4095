//! A client that does what a correct proxy does, and notes what it was told.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signature, Verifier};
use ordering::message::{DirectKind, Outcome, ResultKey};
use rand::RngExt;
use rand::seq::IndexedRandom;
use sql::analysis::ExchangeAnalysis;
use sql::footprint::{Footprint, Mode, Resource};
use sql::operation::{Exchange, ExchangeResult, Isolation, TransactionId, TransactionWrite, Word, Work, word_digest};
use sql::statement::Effect;

use crate::answer::{self, QUORUM, Verdict};
use crate::menu::{self, Savepoint, Statement};
use crate::network::Answers;
use crate::session::{Ran, Session};
use crate::topic::Topic;
use crate::world::{machine_key, machines};

mod transactions;

/// How long the voters that run statements as they come are waited for before the others are asked.
const PATIENCE: Duration = Duration::from_millis(120);

/// How long f+1 equal answers to a direct statement are waited for.
const DIRECT_WITHIN: Duration = Duration::from_millis(1500);

/// How long f+1 equal answers to something ordered are waited for.
const ORDERED_WITHIN: Duration = Duration::from_secs(6);

/// What became of a transaction, as far as its client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// f+1 voters said that it is committed.
    Committed,
    /// It was never asked to commit, or f+1 voters said that it did not.
    Absent,
    /// Nobody said.
    Unknown,
}

/// A transaction of an honest client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number in the ledger.
    pub number: i32,
    /// Its rows in the ledger.
    pub rows: Vec<(i32, i32, i32)>,
    /// Its rows in `item`, with the ids that it was told.
    pub items: Vec<(String, String)>,
    /// What became of it.
    pub fate: Fate,
    /// The order of what ended it; 0 if none.
    pub order: u64,
}

/// What all honest clients were told.
pub type Records = Arc<Mutex<Vec<Record>>>;

/// An honest client.
pub struct Honest {
    /// Its session.
    pub session: Session,
    /// What it was told.
    pub records: Records,
    /// What it does.
    pub programs: usize,
    /// Whether it only looks whether what others were told is true.
    pub reads_only: bool,
}

/// Why a transaction cannot go on.
struct Broken;

/// An open transaction.
struct Open {
    id: TransactionId,
    isolation: Isolation,
    read_only: bool,
    held: Footprint,
    began: Option<u64>,
    listed: Vec<TransactionWrite>,
    ran: Ran,
    /// The direct writes so far, with what they followed.
    sent: Vec<(Ran, Bytes)>,
    live: BTreeSet<u8>,
    all_short: bool,
    failed: bool,
    /// Savepoints set before the transaction was begun on the voters.
    deferred: Vec<Exchange>,
    record: Record,
    marks: Vec<(usize, usize)>,
}

impl Open {
    fn snapshot(&self) -> bool {
        self.read_only || self.isolation == Isolation::RepeatableRead
    }

    /// Notes what a statement that succeeded did.
    fn note(&mut self, statement: &Statement, result: &ExchangeResult) {
        if answer::error(result).is_some() || result.status == b'E' {
            self.failed = true;
            return;
        }
        let counts = (self.record.rows.len(), self.record.items.len());
        match statement.savepoint {
            Some(Savepoint::Set) => self.marks.push(counts),
            Some(Savepoint::Release) => {
                self.marks.pop();
            }
            Some(Savepoint::Back) => {
                if let Some((rows, items)) = self.marks.last() {
                    self.record.rows.truncate(*rows);
                    self.record.items.truncate(*items);
                }
            }
            None => {}
        }
        self.failed = false;
        self.record.rows.extend(statement.ledger);
        if let (Some(note), Some(id)) = (&statement.item, answer::value(result)) {
            self.record.items.push((note.clone(), id));
        }
    }
}

impl Honest {
    /// Runs to the end.
    pub async fn run(mut self) {
        for _ in 0..self.programs {
            if self.reads_only {
                self.read_back().await;
                continue;
            }
            match self.session.random.random_range(0..10) {
                0..=1 => {
                    self.session.turn.take().await;
                    self.autocommit(None).await;
                }
                2 => self.series().await,
                3..=4 if self.session.topics.has(Topic::Reads) => self.read_back().await,
                _ => self.transaction().await,
            }
        }
    }

    fn analyse(&self, exchange: &Exchange) -> Option<ExchangeAnalysis> {
        let context = self.session.context();
        self.session.world.analyzer().exchange(exchange, &context).ok()
    }

    fn draw(&mut self) -> Statement {
        let session = &mut self.session;
        menu::write(&mut session.random, &mut session.names, &session.topics)
    }

    fn record(&self, record: Record) {
        self.session.note(|| format!("{:?} {record:?}", record.fate));
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }

    fn new_record(&mut self) -> Record {
        Record {
            number: self.session.names.unique(),
            rows: Vec::new(),
            items: Vec::new(),
            fate: Fate::Absent,
            order: 0,
        }
    }

    async fn catalog_may_have_changed(&self) {
        self.session.world.refresh_analyzer().await;
    }

    /// Several statements, each outside a transaction.
    async fn series(&mut self) {
        let session = &mut self.session;
        for statement in menu::series(&mut session.random, &mut session.names, &session.topics) {
            self.session.turn.take().await;
            self.autocommit(Some(statement)).await;
        }
    }

    /// One statement outside a transaction: this one, or any.
    async fn autocommit(&mut self, statement: Option<Statement>) {
        let record = self.new_record();
        let shop = self.session.random.random_range(1..=3);
        let statement = match (statement, self.session.random.random_range(0..3)) {
            (Some(statement), _) => statement,
            (None, 0) => self.draw(),
            (None, _) => menu::ledger(&mut self.session.random, shop, record.number, 0),
        };
        let [exchange] = statement.exchanges.as_slice() else {
            return;
        };
        let Some(analysis) = self.analyse(exchange) else { return };
        if statement.savepoint.is_some() || analysis.effect <= Effect::Session {
            return;
        }
        if !analysis.short {
            return self.implicit_transaction(statement, record).await;
        }
        self.one_shot(statement.clone(), &analysis, record).await;
    }

    async fn one_shot(&mut self, statement: Statement, analysis: &ExchangeAnalysis, mut record: Record) {
        let Some(exchange) = statement.exchanges.first() else {
            return;
        };
        let work = Work::OneShot {
            exchange: exchange.encode(),
        };
        let (order, key) = self.session.order(analysis.footprint.clone(), work);
        self.session
            .note(|| format!("one-shot {order} {} {}", analysis.footprint, statement.brief()));
        record.rows.extend(statement.ledger);
        record.order = order;
        let verdict = self.session.verdict(key, ORDERED_WITHIN).await;
        record.fate = match &verdict {
            Some((_, Verdict::Done(result))) if answer::error(result).is_none() => Fate::Committed,
            Some((_, Verdict::Executed)) => Fate::Committed,
            Some((_, Verdict::Done(_) | Verdict::Refused(_))) => Fate::Absent,
            Some((_, Verdict::Digest)) | None => Fate::Unknown,
        };
        if let (Some((_, Verdict::Done(result))), Some(note)) = (&verdict, &statement.item)
            && let Some(id) = answer::value(result)
        {
            record.items.push((note.clone(), id));
        }
        self.record(record);
        if analysis.effect == Effect::Ddl
            || verdict.is_some_and(|(_, verdict)| verdict == Verdict::Refused("BF003".into()))
        {
            self.catalog_may_have_changed().await;
        }
    }

    async fn implicit_transaction(&mut self, statement: Statement, record: Record) {
        let mut open = self.open(Isolation::ReadCommitted, false, record);
        match self.statement(&mut open, &statement).await {
            Ok(()) if open.began.is_none() => self.record(open.record),
            Ok(()) if open.failed => self.abort(open).await,
            Ok(()) => self.commit(open).await,
            Err(Broken) => self.abort(open).await,
        }
    }

    /// What it committed must be there.
    async fn read_back(&mut self) {
        self.session.turn.take().await;
        let known: Vec<Record> = {
            let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
            let told = records
                .iter()
                .filter(|record| record.fate != Fate::Unknown && !record.rows.is_empty());
            told.cloned().collect()
        };
        let Some(record) = known.choose(&mut self.session.random).cloned() else {
            let statement = menu::read(&mut self.session.random);
            self.autocommit_read(&statement).await;
            return;
        };
        let Some((shop, transaction, _)) = record.rows.first().copied() else {
            return;
        };
        let committed = record.rows.iter().filter(|row| row.0 == shop).count();
        let expected = if record.fate == Fate::Committed { committed } else { 0 };
        let statement = menu::count_ledger(shop, transaction);
        if let Some(result) = self.autocommit_read(&statement).await
            && answer::error(&result).is_none()
            && answer::value(&result) != Some(expected.to_string())
        {
            let said = answer::brief(&result);
            self.session.world.violation(format!(
                "stale read: {} rows of {record:?} are read as {said}",
                expected
            ));
        }
    }

    async fn autocommit_read(&mut self, statement: &Statement) -> Option<ExchangeResult> {
        let exchange = statement.exchanges.first()?;
        let analysis = self.analyse(exchange)?;
        if analysis.footprint.is_serial(crate::world::rules().lock_rows) {
            let number = self.session.direct_number();
            self.session
                .note(|| format!("direct read {number} {}", statement.brief()));
            for machine in machines() {
                self.session.send_direct(machine, number, None, exchange.encode()).await;
            }
            let key = ResultKey::Direct(number);
            let all = machines().collect();
            self.session.heard_from(key, &all, PATIENCE).await;
            let answers = self.session.world.network.answers(self.session.client, key);
            if answers.len() == all.len()
                && let Some(result) = unanimous(&answers)
            {
                return Some(result);
            }
        }
        let work = Work::Read {
            transaction: None,
            writes_before: 0,
            exchange: exchange.encode(),
        };
        let (order, key) = self.session.order(analysis.footprint.clone(), work);
        self.session
            .note(|| format!("ordered read {order} {}", statement.brief()));
        match self.session.verdict(key, ORDERED_WITHIN).await {
            Some((_, Verdict::Done(result))) => Some(result),
            _ => None,
        }
    }
}

/// The footprint under which an exchange is ordered.
fn lock_footprint(analysis: &ExchangeAnalysis, locks_reads: bool) -> Footprint {
    if !locks_reads || analysis.effect > Effect::Read {
        return analysis.footprint.clone();
    }
    let mut exclusive = Footprint::empty();
    for (resource, _) in analysis.footprint.entries() {
        exclusive.add(resource.clone(), Mode::Exclusive);
    }
    exclusive
}

/// What all voters answered alike.
fn unanimous(answers: &Answers) -> Option<ExchangeResult> {
    let multisets: BTreeSet<_> = answers
        .values()
        .map(|message| match &message.outcome {
            Outcome::Done { multiset, .. } => Some(*multiset),
            _ => None,
        })
        .collect();
    if multisets.len() != 1 || multisets.contains(&None) {
        return None;
    }
    match answer::verdict(answers) {
        Some((_, Verdict::Done(result))) => Some(result),
        _ => None,
    }
}

/// f+1 valid words with equal answers; `Some(None)` when f+1 voters say that the transaction cannot commit.
fn given_words(answers: &Answers, id: TransactionId, began: u64, list: &[u8; 32]) -> Option<Option<Vec<Word>>> {
    if let Some((_, Verdict::Done(_) | Verdict::Refused(_) | Verdict::Digest)) = answer::verdict(answers) {
        return Some(None);
    }
    let words: Vec<Word> = answers
        .iter()
        .filter_map(|(machine, message)| match &message.outcome {
            Outcome::Word { answers, signature } => Some(Word {
                machine: *machine,
                answers: *answers,
                signature: *signature,
            }),
            _ => None,
        })
        .filter(|word| {
            let digest = word_digest(id, began, list, &word.answers);
            let key = machine_key(word.machine).verifying_key();
            key.verify(&digest, &Signature::from_bytes(&word.signature)).is_ok()
        })
        .collect();
    words.iter().find_map(|word| {
        let same: Vec<Word> = words
            .iter()
            .filter(|other| other.answers == word.answers)
            .cloned()
            .collect();
        (same.len() >= QUORUM).then_some(Some(same))
    })
}
