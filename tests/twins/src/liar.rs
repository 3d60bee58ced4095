//! A client that lies: it tells voters different things, lists what did not run, and runs as a read what is none. It cannot be
//! told anything wrong that matters; what matters is that the databases stay equal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use ordering::message::{DirectKind, Outcome, ResultKey};
use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use sql::footprint::{Footprint, Mode, Resource};
use sql::operation::{Exchange, Isolation, Step, TransactionId, TransactionWrite, Word, Work};

use crate::menu::{self, bind, execute, extended, simple, steps};
use crate::session::{Ran, Session};
use crate::topic::Topic;
use crate::world::machines;

/// How long a liar waits for answers, at most: it has no use for most of them.
const PATIENCE: Duration = Duration::from_millis(40);

/// How long it waits for locks.
const LOCKS: Duration = Duration::from_millis(1500);

/// A lying client.
pub struct Liar {
    /// Its session.
    pub session: Session,
    /// How many transactions it has.
    pub programs: usize,
    /// Words that it was given on earlier transactions.
    pub words: Vec<Word>,
}

/// An open transaction, as each voter knows it.
struct Open {
    id: TransactionId,
    held: Footprint,
    list: Vec<(TransactionWrite, Bytes)>,
    /// What each machine ran.
    ran: BTreeMap<u8, Ran>,
}

impl Open {
    fn listed(&self) -> Ran {
        let mut ran = Ran::default();
        self.list.iter().for_each(|(_, exchange)| ran.add(exchange));
        ran
    }

    fn list(&mut self, exchange: &Exchange) {
        let encoded = exchange.encode();
        self.list.push((TransactionWrite::Direct(encoded.clone()), encoded));
    }
}

/// A trick: each is one way to make correct voters differ.
const TRICKS: &[(Topic, Trick)] = &[
    (Topic::SessionReads, Trick::RollBackAsRead),
    (Topic::SessionReads, Trick::SettingAsRead),
    (Topic::SessionReads, Trick::FetchAsRead),
    (Topic::Portals, Trick::PortalAsRead),
    (Topic::Uncovered, Trick::UncoveredRead),
    (Topic::Settings, Trick::SettingInList),
    (Topic::Settings, Trick::IsolationInList),
    (Topic::Lists, Trick::WriteToSome),
    (Topic::Lists, Trick::DifferentWrites),
    (Topic::Lists, Trick::FalseList),
    (Topic::Lists, Trick::AnyAsRead),
    (Topic::Lists, Trick::FailingRead),
    (Topic::Lists, Trick::JoinAndCancel),
    (Topic::Volatile, Trick::VolatileAsRead),
    (Topic::Small, Trick::SmallFootprint),
    (Topic::Lists, Trick::Extend),
];

#[derive(Clone, Copy, Debug)]
enum Trick {
    RollBackAsRead,
    SettingAsRead,
    FetchAsRead,
    PortalAsRead,
    UncoveredRead,
    SettingInList,
    IsolationInList,
    WriteToSome,
    DifferentWrites,
    FalseList,
    AnyAsRead,
    FailingRead,
    JoinAndCancel,
    VolatileAsRead,
    SmallFootprint,
    Extend,
}

impl Liar {
    /// Runs to the end.
    pub async fn run(mut self) {
        for _ in 0..self.programs {
            self.session.turn.take().await;
            self.transaction().await;
        }
    }

    async fn transaction(&mut self) {
        let topics = &self.session.topics;
        let tricks: Vec<Trick> = TRICKS
            .iter()
            .filter(|(topic, _)| topics.has(*topic))
            .map(|(_, trick)| *trick)
            .collect();
        if tricks.is_empty() {
            return;
        }
        let mut open = self.begin().await;
        for _ in 0..self.session.random.random_range(1..=3) {
            self.session.turn.take().await;
            let trick = *tricks.choose(&mut self.session.random).unwrap();
            self.session.note(|| format!("trick {trick:?}"));
            self.play(&mut open, trick).await;
        }
        self.session.turn.take().await;
        self.end(open).await;
    }

    async fn begin(&mut self) -> Open {
        let id = self.session.new_transaction();
        let topics = &self.session.topics;
        let repeatable = topics.has(Topic::Repeatable) && self.session.random.random_ratio(1, 5);
        let isolation = if repeatable {
            Isolation::RepeatableRead
        } else {
            Isolation::ReadCommitted
        };
        let n = self.session.names.unique();
        let own = Footprint::of(Resource::Table(format!("public.{}", menu::notes(n))), Mode::Exclusive);
        let mut held = own.clone();
        if self.session.random.random_ratio(1, 2) {
            held.add(Resource::Table("public.plain".into()), Mode::Exclusive);
        }
        if self.session.random.random_ratio(1, 3) {
            held.add(Resource::Sequence("public.ticket".into()), Mode::Exclusive);
        }
        if self.session.random.random_ratio(1, 6) {
            held = Footprint::everything();
        }
        let mut exchanges = vec![simple(&format!("INSERT INTO {} VALUES ({n}, 'begun')", menu::notes(n)))];
        if self.session.random.random_ratio(1, 3) {
            exchanges.insert(0, simple("SAVEPOINT s"));
        }
        if self.session.topics.has(Topic::Settings) && self.session.random.random_ratio(1, 8) {
            exchanges.insert(0, simple("SET transaction_isolation = 'repeatable read'"));
            held = own;
        }
        let encoded: Vec<Bytes> = exchanges.iter().map(Exchange::encode).collect();
        let live = self.some_machines();
        let work = Work::Begin {
            transaction: id,
            isolation,
            read_only: false,
            live: live.iter().map(|machine| 1_u64 << machine).sum(),
            exchanges: encoded.clone(),
        };
        let (order, key) = self.session.order(held.clone(), work);
        self.session.note(|| {
            let texts: Vec<_> = exchanges.iter().map(menu::brief).collect();
            format!(
                "begin {} at {order} {isolation:?} {held} live {live:?}: {}",
                id.number,
                texts.join(" | ")
            )
        });
        let mut ran = Ran::default();
        encoded.iter().for_each(|exchange| ran.add(exchange));
        // An order is listed once, and stands for all its exchanges.
        let list = encoded
            .into_iter()
            .map(|exchange| (TransactionWrite::Ordered(order), exchange))
            .collect();
        // Without its locks it could play no tricks.
        self.session.heard_any(key, LOCKS).await;
        Open {
            id,
            held,
            list,
            ran: machines().map(|machine| (machine, ran.clone())).collect(),
        }
    }

    fn some_machines(&mut self) -> BTreeSet<u8> {
        let mut all: Vec<u8> = machines().collect();
        all.shuffle(&mut self.session.random);
        all.truncate(self.session.random.random_range(1..=3));
        all.into_iter().collect()
    }

    fn any(&mut self) -> Exchange {
        let session = &mut self.session;
        let statement = match session.random.random_range(0..4) {
            0 => menu::read(&mut session.random),
            _ => menu::write(&mut session.random, &mut session.names, &session.topics),
        };
        statement.exchanges[0].clone()
    }

    fn insert(&mut self, value: &str) -> Exchange {
        let n = self.session.names.unique();
        simple(&format!("INSERT INTO {} VALUES ({n}, {value})", menu::notes(n)))
    }

    /// Sends something to some machines.
    async fn send(&mut self, open: &mut Open, kind: DirectKind, exchange: &Exchange, to: &BTreeSet<u8>) -> ResultKey {
        let number = self.session.direct_number();
        let encoded = exchange.encode();
        self.session
            .note(|| format!("{kind:?} {number} to {to:?}: {}", menu::brief(exchange)));
        for machine in to {
            let ran = open.ran.entry(*machine).or_default();
            let place = Some((open.id, &*ran, kind));
            self.session.send_direct(*machine, number, place, encoded.clone()).await;
            if kind == DirectKind::Write {
                ran.add(&encoded);
            }
        }
        let key = ResultKey::Direct(number);
        self.session.heard_from(key, to, PATIENCE).await;
        key
    }

    /// Sends a write to all, and lists it.
    async fn write(&mut self, open: &mut Open, exchange: &Exchange) {
        let all = machines().collect();
        self.send(open, DirectKind::Write, exchange, &all).await;
        open.list(exchange);
    }

    async fn one_shot(&mut self, text: &str) {
        let exchange = simple(text);
        let context = self.session.context();
        let Ok(analysis) = self.session.world.analyzer().exchange(&exchange, &context) else {
            return;
        };
        let work = Work::OneShot {
            exchange: exchange.encode(),
        };
        let (order, key) = self.session.order(analysis.footprint, work);
        self.session.note(|| format!("one-shot {order}: {text}"));
        self.session.heard_from(key, &machines().collect(), PATIENCE).await;
    }

    async fn play(&mut self, open: &mut Open, trick: Trick) {
        let some = self.some_machines();
        match trick {
            Trick::RollBackAsRead => {
                self.write(open, &simple("SAVEPOINT s")).await;
                let insert = self.insert("'rolled back'");
                self.write(open, &insert).await;
                let text = ["ROLLBACK TO s", "RELEASE s", "ROLLBACK TO SAVEPOINT s"].choose(&mut self.session.random);
                self.send(open, DirectKind::Read, &simple(text.unwrap()), &some).await;
            }
            Trick::SettingAsRead => {
                let texts = [
                    "SET LOCAL TimeZone = 'Asia/Tokyo'",
                    "SET LOCAL search_path = side",
                    "SET LOCAL DateStyle = 'German'",
                    "RESET ALL",
                    "SELECT set_config('TimeZone', 'Asia/Tokyo', true)",
                ];
                let text = texts.choose(&mut self.session.random).unwrap();
                self.send(open, DirectKind::Read, &simple(text), &some).await;
                let insert = self.insert("(timestamptz '2020-01-01 12:00+00')::text");
                self.write(open, &insert).await;
            }
            Trick::FetchAsRead => {
                self.write(
                    open,
                    &simple("DECLARE d CURSOR FOR SELECT k, v FROM plain ORDER BY k FOR UPDATE"),
                )
                .await;
                self.write(open, &simple("FETCH 1 FROM d")).await;
                self.send(open, DirectKind::Read, &simple("FETCH 2 FROM d"), &some)
                    .await;
                self.write(open, &simple("UPDATE plain SET v = v + 1 WHERE CURRENT OF d"))
                    .await;
            }
            Trick::PortalAsRead => {
                let n = self.session.names.unique();
                let text = format!("INSERT INTO {} VALUES ({n}, 'portal')", menu::notes(n));
                let bound = steps(&text, vec![Step::Parse { statement: 0 }, bind("p", &[], &[])]);
                self.write(open, &bound).await;
                let run = Exchange::Extended {
                    statements: Vec::new(),
                    steps: vec![execute("p", 0)],
                };
                self.send(open, DirectKind::Read, &run, &some).await;
            }
            Trick::UncoveredRead => {
                let read = simple("SELECT 1 / (v - 5) FROM plain WHERE k = 1");
                self.one_shot("UPDATE plain SET v = 5 WHERE k = 1").await;
                self.send(open, DirectKind::Write, &read, &some).await;
                self.one_shot("UPDATE plain SET v = 6 WHERE k = 1").await;
                let others = machines().filter(|machine| !some.contains(machine)).collect();
                self.send(open, DirectKind::Write, &read, &others).await;
                open.list(&read);
            }
            Trick::SettingInList => {
                let exchange = match self.session.random.random_range(0..3) {
                    0 => simple("SET LOCAL search_path = side; UPDATE plain SET v = v * 2 WHERE k = 2"),
                    1 => simple("SET LOCAL search_path = side"),
                    _ => simple("SELECT set_config('search_path', 'side', true)"),
                };
                self.write(open, &exchange).await;
                let update = simple("UPDATE plain SET v = v * 2 WHERE k = 3");
                self.send(open, DirectKind::Write, &update, &some).await;
                self.one_shot("UPDATE side.plain SET v = v + 1 WHERE k = 3").await;
                let others = machines().filter(|machine| !some.contains(machine)).collect();
                self.send(open, DirectKind::Write, &update, &others).await;
                open.list(&update);
            }
            Trick::IsolationInList => {
                // In a transaction that has begun so, some voters keep the snapshot, and some run the list again.
                self.one_shot("UPDATE plain SET v = v + 7 WHERE k = 4").await;
                let insert = self.insert("(SELECT v::text FROM plain WHERE k = 4)");
                let mut footprint = Footprint::of(Resource::Table("public.plain".into()), Mode::Shared);
                footprint.extend(&open.held);
                self.extend(open, &insert, footprint).await;
                let fails = extended("SELECT 1 / (k - k) FROM plain", &[]);
                self.send(open, DirectKind::Read, &fails, &some).await;
            }
            Trick::WriteToSome => {
                let exchange = self.any();
                self.send(open, DirectKind::Write, &exchange, &some).await;
                if self.session.random.random() {
                    open.list(&exchange);
                }
            }
            Trick::DifferentWrites => {
                let (one, other) = (self.any(), self.any());
                let others = machines().filter(|machine| !some.contains(machine)).collect();
                self.send(open, DirectKind::Write, &one, &some).await;
                self.send(open, DirectKind::Write, &other, &others).await;
                open.list(if self.session.random.random() { &one } else { &other });
            }
            Trick::FalseList => {
                let exchange = self.any();
                match self.session.random.random_range(0..3) {
                    0 => open.list(&exchange),
                    1 => {
                        open.list.pop();
                    }
                    _ => open.list.shuffle(&mut self.session.random),
                }
            }
            Trick::AnyAsRead => {
                let exchange = self.any();
                self.send(open, DirectKind::Read, &exchange, &some).await;
            }
            Trick::FailingRead => {
                let read = extended("SELECT 1 / (k - 1) FROM plain", &[]);
                self.send(open, DirectKind::Read, &read, &some).await;
                let insert = self.insert("'after a failed read'");
                self.write(open, &insert).await;
            }
            Trick::JoinAndCancel => {
                let number = self.session.direct_number();
                for machine in &some {
                    let request = self.session.random.random_range(0..30);
                    let kind = *[DirectKind::Join, DirectKind::Cancel { request }]
                        .choose(&mut self.session.random)
                        .unwrap();
                    let ran = match self.session.random.random_range(0..3) {
                        0 => Ran::default(),
                        1 => open.listed(),
                        _ => open.ran.get(machine).cloned().unwrap_or_default(),
                    };
                    self.session
                        .note(|| format!("{kind:?} to m{machine} after {}", ran.count));
                    let place = Some((open.id, &ran, kind));
                    self.session.send_direct(*machine, number, place, Bytes::new()).await;
                }
            }
            Trick::VolatileAsRead => {
                let texts = [
                    "SELECT steady(3)",
                    "SELECT draw()",
                    "SELECT nextval('ticket')",
                    "SELECT touch(2)",
                ];
                let text = texts.choose(&mut self.session.random).unwrap();
                self.send(open, DirectKind::Read, &extended(text, &[]), &some).await;
            }
            Trick::SmallFootprint => {
                let texts = [
                    "UPDATE parent SET id = id WHERE id = 1",
                    "UPDATE watched SET v = v + 1",
                    "INSERT INTO item (note) VALUES ('not held')",
                ];
                let exchange = simple(texts.choose(&mut self.session.random).unwrap());
                self.write(open, &exchange).await;
            }
            Trick::Extend => {
                let exchange = self.any();
                let mut footprint = Footprint::of(Resource::Table("public.plain".into()), Mode::Exclusive);
                if self.session.random.random_ratio(1, 2) {
                    let context = self.session.context();
                    if let Ok(analysis) = self.session.world.analyzer().exchange(&exchange, &context) {
                        footprint.extend(&analysis.footprint);
                    }
                }
                self.extend(open, &exchange, footprint).await;
            }
        }
    }

    async fn extend(&mut self, open: &mut Open, exchange: &Exchange, footprint: Footprint) {
        let encoded = exchange.encode();
        let work = Work::Extend {
            transaction: open.id,
            writes_before: open.listed().count,
            exchange: encoded.clone(),
        };
        let (order, key) = self.session.order(footprint.clone(), work);
        self.session
            .note(|| format!("extend {order} {footprint} {}", menu::brief(exchange)));
        open.ran.values_mut().for_each(|ran| ran.add(&encoded));
        open.list.push((TransactionWrite::Ordered(order), encoded));
        open.held.extend(&footprint);
        self.session.heard_any(key, LOCKS).await;
    }

    async fn end(&mut self, open: Open) {
        if self.session.topics.has(Topic::Abandoned) && self.session.random.random_ratio(1, 10) {
            self.session.note(|| format!("leaves {} open", open.id.number));
            return self.session.world.leave_open(open.id);
        }
        if self.session.random.random_ratio(1, 8) {
            let (order, _) = self
                .session
                .order(open.held.clone(), Work::Abort { transaction: open.id });
            return self.session.note(|| format!("abort {} at {order}", open.id.number));
        }
        let words = self.words(&open).await;
        let mut writes: Vec<TransactionWrite> = Vec::new();
        for (write, _) in &open.list {
            // Begin's exchanges are listed by one order.
            if !matches!(write, TransactionWrite::Ordered(_)) || !writes.contains(write) {
                writes.push(write.clone());
            }
        }
        let work = Work::Commit {
            transaction: open.id,
            writes: writes.clone(),
            words,
        };
        let (order, key) = self.session.order(open.held.clone(), work);
        self.session.note(|| {
            let listed: Vec<_> = writes
                .iter()
                .map(|write| match write {
                    TransactionWrite::Ordered(order) => format!("@{order}"),
                    TransactionWrite::Direct(exchange) => {
                        Exchange::decode(exchange).map_or_else(|_| "?".into(), |exchange| menu::brief(&exchange))
                    }
                })
                .collect();
            format!("commit {} at {order}: {}", open.id.number, listed.join(" | "))
        });
        self.session.heard_from(key, &machines().collect(), PATIENCE).await;
    }

    /// Words for a Commit, right or wrong.
    async fn words(&mut self, open: &Open) -> Vec<Word> {
        let number = self.session.direct_number();
        let key = ResultKey::Direct(number);
        let listed = open.listed();
        for machine in machines() {
            let own = open.ran.get(&machine).cloned().unwrap_or_default();
            let ran = if self.session.random.random_ratio(3, 4) {
                &listed
            } else {
                &own
            };
            let place = Some((open.id, ran, DirectKind::Word));
            self.session.send_direct(machine, number, place, Bytes::new()).await;
        }
        self.session.heard_from(key, &machines().collect(), PATIENCE).await;
        let answers = self.session.world.network.answers(self.session.client, key);
        let mut words: Vec<Word> = answers
            .iter()
            .filter_map(|(machine, message)| match &message.outcome {
                Outcome::Word { answers, signature } => Some(Word {
                    machine: *machine,
                    answers: *answers,
                    signature: *signature,
                }),
                _ => None,
            })
            .collect();
        let kept = words.clone();
        if self.session.topics.has(Topic::Words) {
            match self.session.random.random_range(0..12) {
                0 => words.clear(),
                1 => words.truncate(1),
                2 => words.extend(kept.first().cloned()),
                3 => words.extend(self.words.iter().cloned()),
                4 => words = self.words.clone(),
                5 => words.iter_mut().for_each(|word| word.signature[3] ^= 1),
                6 => words.iter_mut().for_each(|word| word.answers[3] ^= 1),
                7 => words.iter_mut().for_each(|word| word.machine = 1),
                _ => {}
            }
        }
        self.words.extend(kept);
        self.words.truncate(6);
        words
    }
}
