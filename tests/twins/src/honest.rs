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

    fn open(&mut self, isolation: Isolation, read_only: bool, record: Record) -> Open {
        Open {
            id: self.session.new_transaction(),
            isolation,
            read_only,
            held: Footprint::empty(),
            began: None,
            listed: Vec::new(),
            ran: Ran::default(),
            sent: Vec::new(),
            live: BTreeSet::new(),
            all_short: true,
            failed: false,
            deferred: Vec::new(),
            record,
            marks: Vec::new(),
        }
    }

    fn draw_isolation(&mut self) -> (Isolation, bool) {
        let topics = &self.session.topics;
        let (repeatable, serializable) = (topics.has(Topic::Repeatable), topics.has(Topic::Serializable));
        let read_only = topics.has(Topic::ReadOnly);
        match self.session.random.random_range(0..10) {
            0..=2 if repeatable => (Isolation::RepeatableRead, false),
            3 if serializable => (Isolation::Serializable, false),
            4 if read_only => (Isolation::RepeatableRead, true),
            _ => (Isolation::ReadCommitted, false),
        }
    }

    async fn transaction(&mut self) {
        let (isolation, read_only) = self.draw_isolation();
        let record = self.new_record();
        let mut open = self.open(isolation, read_only, record);
        let statements = self.session.random.random_range(1..=5);
        for step in 0..statements {
            self.session.turn.take().await;
            let statement = self.next_statement(&open, step);
            if self.statement(&mut open, &statement).await.is_err() {
                self.session.turn.take().await;
                return self.abort(open).await;
            }
            if open.failed && open.marks.is_empty() && self.session.random.random_ratio(2, 3) {
                break;
            }
        }
        self.session.turn.take().await;
        if open.began.is_none() {
            return self.record(open.record);
        }
        if self.session.topics.has(Topic::Abandoned) && self.session.random.random_ratio(1, 25) {
            self.session.note(|| format!("dies with {:?}", open.id));
            self.session.world.leave_open(open.id);
            return self.record(open.record);
        }
        match self.session.random.random_range(0..10) {
            0 => self.abort(open).await,
            _ => self.commit(open).await,
        }
    }

    fn next_statement(&mut self, open: &Open, step: i32) -> Statement {
        let shop = self.session.random.random_range(1..=3);
        if open.read_only {
            return menu::read(&mut self.session.random);
        }
        if open.failed && self.session.random.random_ratio(4, 5) {
            return Statement {
                savepoint: Some(Savepoint::Back),
                ..Statement::of(menu::simple("ROLLBACK TO s"))
            };
        }
        if open.snapshot() && step > 0 && self.session.random.random_ratio(1, 3) {
            return menu::sum(&mut self.session.random, &mut self.session.names);
        }
        match self.session.random.random_range(0..10) {
            4..=5 if open.snapshot() && open.began.is_none() => menu::read(&mut self.session.random),
            0..=3 => menu::ledger(&mut self.session.random, shop, open.record.number, step),
            4 => menu::read(&mut self.session.random),
            5 if !open.snapshot() => menu::count_ledger(shop, open.record.number),
            _ => self.draw(),
        }
    }

    /// A statement of an open transaction.
    async fn statement(&mut self, open: &mut Open, statement: &Statement) -> Result<(), Broken> {
        for (at, exchange) in statement.exchanges.iter().enumerate() {
            let Some(analysis) = self.analyse(exchange) else {
                // The proxy refuses it, and the application's transaction has failed.
                self.session
                    .note(|| format!("refused by the proxy: {}", statement.brief()));
                return if open.began.is_some() { Err(Broken) } else { Ok(()) };
            };
            if analysis.effect == Effect::Maintenance {
                return Ok(());
            }
            if open.began.is_none() && statement.savepoint == Some(Savepoint::Set) {
                open.deferred.push(exchange.clone());
                open.marks.push((0, 0));
                return Ok(());
            }
            if open.began.is_none() && analysis.effect == Effect::Session {
                // Without a transaction on the voters there is nothing that it could do.
                return Ok(());
            }
            let plain = statement.plain_read && analysis.effect <= Effect::Read;
            let result = if plain {
                self.read_within(open, statement, &analysis).await?
            } else {
                Some(self.listed(open, exchange, &analysis).await?)
            };
            let Some(result) = result else { return Ok(()) };
            if at + 1 == statement.exchanges.len() {
                open.note(statement, &result);
            } else if answer::error(&result).is_some() {
                open.failed = true;
                return Ok(());
            }
            if analysis.effect == Effect::Ddl {
                self.catalog_may_have_changed().await;
            }
        }
        Ok(())
    }

    async fn read_within(
        &mut self,
        open: &mut Open,
        statement: &Statement,
        analysis: &ExchangeAnalysis,
    ) -> Result<Option<ExchangeResult>, Broken> {
        let Some(exchange) = statement.exchanges.first() else {
            return Ok(None);
        };
        let locks = open.isolation == Isolation::Serializable;
        let footprint = lock_footprint(analysis, locks);
        if open.began.is_none() {
            if !locks && !open.snapshot() {
                self.autocommit_read(statement).await;
                return Ok(None);
            }
            return self.listed(open, exchange, analysis).await.map(Some);
        }
        let covered = open.held.covers(&footprint) || open.snapshot();
        if !covered && locks {
            return self.listed(open, exchange, analysis).await.map(Some);
        }
        if !covered {
            self.autocommit_read(statement).await;
            return Ok(None);
        }
        let number = self.session.direct_number();
        self.session
            .note(|| format!("read within {number} {}", statement.brief()));
        let result = self.direct(open, number, DirectKind::Read, exchange.encode()).await?;
        if let Some((shop, transaction)) = statement.counts
            && !open.failed
        {
            let mine = |row: &&(i32, i32, i32)| row.0 == shop && row.1 == transaction;
            let expected = open.record.rows.iter().filter(mine).count();
            if answer::error(&result).is_none() && answer::value(&result) != Some(expected.to_string()) {
                let said = answer::brief(&result);
                self.session.world.violation(format!(
                    "a transaction that wrote {expected} rows reads {said}: {:?}",
                    open.record
                ));
            }
        }
        Ok(Some(result))
    }

    /// Runs an exchange that COMMIT lists.
    async fn listed(
        &mut self,
        open: &mut Open,
        exchange: &Exchange,
        analysis: &ExchangeAnalysis,
    ) -> Result<ExchangeResult, Broken> {
        open.all_short &= analysis.short;
        let footprint = lock_footprint(analysis, open.isolation == Isolation::Serializable);
        let encoded = exchange.encode();
        if open.began.is_none() {
            return self.begin(open, exchange, footprint).await;
        }
        if open.held.covers(&footprint) {
            let number = self.session.direct_number();
            self.session
                .note(|| format!("direct {number} {}", menu::brief(exchange)));
            let result = self.direct(open, number, DirectKind::Write, encoded.clone()).await;
            open.sent.push((open.ran.clone(), encoded.clone()));
            open.ran.add(&encoded);
            open.listed.push(TransactionWrite::Direct(encoded));
            return result;
        }
        let work = Work::Extend {
            transaction: open.id,
            writes_before: open.ran.count,
            exchange: encoded.clone(),
        };
        let (order, key) = self.session.order(footprint.clone(), work);
        self.session
            .note(|| format!("extend {order} {footprint} {}", menu::brief(exchange)));
        if let Some(cancelled) = self.may_cancel(open, key).await {
            return Ok(cancelled);
        }
        let verdict = self.ordered_live(open, key).await;
        open.ran.add(&encoded);
        open.listed.push(TransactionWrite::Ordered(order));
        open.held.extend(&footprint);
        self.done(verdict).await
    }

    /// Now and then the application cancels a statement that waits for locks: COMMIT will not list it.
    async fn may_cancel(&mut self, open: &mut Open, key: ResultKey) -> Option<ExchangeResult> {
        let ResultKey::Request(request) = key else { return None };
        let wants = self.session.random.random_ratio(1, 3);
        if !wants || self.session.verdict(key, PATIENCE).await.is_some() {
            return None;
        }
        self.session
            .note(|| format!("cancel {} request {request}", open.id.number));
        let number = self.session.direct_number();
        for machine in machines() {
            let place = Some((open.id, &open.ran, DirectKind::Cancel { request }));
            self.session.send_direct(machine, number, place, Bytes::new()).await;
        }
        // They may have forgotten everything: they are told again before the next statement.
        open.live.clear();
        Some(ExchangeResult {
            messages: Bytes::new(),
            status: b'E',
        })
    }

    async fn begin(
        &mut self,
        open: &mut Open,
        exchange: &Exchange,
        footprint: Footprint,
    ) -> Result<ExchangeResult, Broken> {
        let mut exchanges = std::mem::take(&mut open.deferred);
        exchanges.push(exchange.clone());
        let encoded: Vec<Bytes> = exchanges.iter().map(Exchange::encode).collect();
        let everything = footprint.entries().first() == Some(&(Resource::Everything, Mode::Exclusive));
        open.live = if open.snapshot() || everything {
            machines().collect()
        } else {
            let out = self.session.random.random_range(1..=3_u8);
            machines().filter(|machine| *machine != out).collect()
        };
        open.held = footprint;
        let work = Work::Begin {
            transaction: open.id,
            isolation: open.isolation,
            read_only: open.read_only,
            live: open.live.iter().map(|machine| 1 << machine).sum(),
            exchanges: encoded.clone(),
        };
        let (order, key) = self.session.order(open.held.clone(), work);
        self.session.note(|| {
            let texts: Vec<_> = exchanges.iter().map(menu::brief).collect();
            let (id, isolation, live) = (open.id.number, open.isolation, &open.live);
            format!(
                "begin {id} at {order} {isolation:?} {} live {live:?}: {}",
                open.held,
                texts.join(" | ")
            )
        });
        open.began = Some(order);
        encoded.iter().for_each(|exchange| open.ran.add(exchange));
        open.listed.push(TransactionWrite::Ordered(order));
        let verdict = self.ordered_live(open, key).await;
        self.done(verdict).await
    }

    async fn done(&mut self, verdict: Option<Verdict>) -> Result<ExchangeResult, Broken> {
        match verdict {
            Some(Verdict::Done(result)) => Ok(result),
            Some(Verdict::Refused(code)) => {
                if code == "BF003" {
                    self.catalog_may_have_changed().await;
                }
                Err(Broken)
            }
            Some(Verdict::Executed | Verdict::Digest) | None => Err(Broken),
        }
    }

    /// The verdict on something ordered that the live voters answer; the others join when those do not agree in time.
    async fn ordered_live(&mut self, open: &mut Open, key: ResultKey) -> Option<Verdict> {
        if let Some((_, verdict)) = self.session.verdict(key, PATIENCE).await {
            return Some(verdict);
        }
        self.join_all(open).await;
        self.session
            .verdict(key, ORDERED_WITHIN)
            .await
            .map(|(_, verdict)| verdict)
    }

    /// Makes all voters run what the transaction has sent so far.
    async fn join_all(&mut self, open: &mut Open) {
        let lazy: Vec<u8> = machines().filter(|machine| !open.live.contains(machine)).collect();
        for machine in lazy {
            self.session.note(|| format!("m{machine} joins {}", open.id.number));
            let start = Ran::default();
            let number = self.session.direct_number();
            let place = Some((open.id, &start, DirectKind::Join));
            self.session.send_direct(machine, number, place, Bytes::new()).await;
            for (before, exchange) in &open.sent {
                let number = self.session.direct_number();
                let place = Some((open.id, before, DirectKind::Replay));
                self.session.send_direct(machine, number, place, exchange.clone()).await;
            }
            open.live.insert(machine);
        }
    }

    /// Sends a direct statement to the live voters, and to the others when they do not agree in time.
    async fn direct(
        &mut self,
        open: &mut Open,
        number: u64,
        kind: DirectKind,
        exchange: Bytes,
    ) -> Result<ExchangeResult, Broken> {
        let key = ResultKey::Direct(number);
        if open.live.is_empty() {
            self.join_all(open).await;
        }
        for machine in open.live.clone() {
            let place = Some((open.id, &open.ran, kind));
            self.session.send_direct(machine, number, place, exchange.clone()).await;
        }
        let mut verdict = self.session.verdict(key, PATIENCE).await;
        let lazy: Vec<u8> = machines().filter(|machine| !open.live.contains(machine)).collect();
        if verdict.is_none() {
            self.join_all(open).await;
            for machine in lazy {
                let place = Some((open.id, &open.ran, kind));
                self.session.send_direct(machine, number, place, exchange.clone()).await;
            }
            verdict = self.session.verdict(key, DIRECT_WITHIN).await;
        }
        self.done(verdict.map(|(_, verdict)| verdict)).await
    }

    async fn abort(&mut self, open: Open) {
        if open.began.is_some() {
            let (order, key) = self
                .session
                .order(open.held.clone(), Work::Abort { transaction: open.id });
            self.session.note(|| format!("abort {} at {order}", open.id.number));
            self.session.verdict(key, PATIENCE).await;
        }
        self.record(open.record);
    }

    async fn commit(&mut self, mut open: Open) {
        let mut words = Vec::new();
        if !open.all_short {
            match self.words(&mut open).await {
                Some(given) => words = given,
                None => return self.abort(open).await,
            }
        }
        let work = Work::Commit {
            transaction: open.id,
            writes: open.listed.clone(),
            words,
        };
        let (order, key) = self.session.order(open.held.clone(), work);
        self.session.note(|| format!("commit {} at {order}", open.id.number));
        open.record.order = order;
        open.record.fate = match self.session.verdict(key, ORDERED_WITHIN).await {
            Some((_, Verdict::Done(result))) => {
                let committed = answer::error(&result).is_none() && answer::tag(&result) == "COMMIT";
                if committed { Fate::Committed } else { Fate::Absent }
            }
            Some((_, Verdict::Refused(_))) => Fate::Absent,
            Some((_, Verdict::Executed)) => Fate::Committed,
            Some((_, Verdict::Digest)) | None => Fate::Unknown,
        };
        self.record(open.record);
    }

    /// f+1 equal words on the transaction; `None` when it cannot commit.
    async fn words(&mut self, open: &mut Open) -> Option<Vec<Word>> {
        let number = self.session.direct_number();
        let key = ResultKey::Direct(number);
        let began = open.began?;
        let (id, list) = (open.id, open.ran.chain);
        if open.live.is_empty() {
            self.join_all(open).await;
        }
        for machine in open.live.clone() {
            let place = Some((id, &open.ran, DirectKind::Word));
            self.session.send_direct(machine, number, place, Bytes::new()).await;
        }
        let client = self.session.client;
        let look = |answers: &Answers| given_words(answers, id, began, &list);
        let mut found = self.session.world.network.wait(client, key, PATIENCE, look).await;
        if found.is_none() {
            let lazy: Vec<u8> = machines().filter(|machine| !open.live.contains(machine)).collect();
            self.join_all(open).await;
            for machine in lazy {
                let place = Some((id, &open.ran, DirectKind::Word));
                self.session.send_direct(machine, number, place, Bytes::new()).await;
            }
            found = self.session.world.network.wait(client, key, DIRECT_WITHIN, look).await;
        }
        found.flatten()
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
