//! Interactive transactions of an honest client.

use super::*;

impl Honest {
    pub(super) fn open(&mut self, isolation: Isolation, read_only: bool, record: Record) -> Open {
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

    pub(super) fn draw_isolation(&mut self) -> (Isolation, bool) {
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

    pub(super) async fn transaction(&mut self) {
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

    pub(super) fn next_statement(&mut self, open: &Open, step: i32) -> Statement {
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
    pub(super) async fn statement(&mut self, open: &mut Open, statement: &Statement) -> Result<(), Broken> {
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

    pub(super) async fn read_within(
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
    pub(super) async fn listed(
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
    pub(super) async fn may_cancel(&mut self, open: &mut Open, key: ResultKey) -> Option<ExchangeResult> {
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

    pub(super) async fn begin(
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

    pub(super) async fn done(&mut self, verdict: Option<Verdict>) -> Result<ExchangeResult, Broken> {
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
    pub(super) async fn ordered_live(&mut self, open: &mut Open, key: ResultKey) -> Option<Verdict> {
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
    pub(super) async fn join_all(&mut self, open: &mut Open) {
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
    pub(super) async fn direct(
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

    pub(super) async fn abort(&mut self, open: Open) {
        if open.began.is_some() {
            let (order, key) = self
                .session
                .order(open.held.clone(), Work::Abort { transaction: open.id });
            self.session.note(|| format!("abort {} at {order}", open.id.number));
            self.session.verdict(key, PATIENCE).await;
        }
        self.record(open.record);
    }

    pub(super) async fn commit(&mut self, mut open: Open) {
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
    pub(super) async fn words(&mut self, open: &mut Open) -> Option<Vec<Word>> {
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
