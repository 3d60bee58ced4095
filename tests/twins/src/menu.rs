//! The statements that clients draw from.

use bytes::Bytes;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use sql::operation::{Exchange, StatementText, Step};

use crate::topic::{Topic, Topics};

/// A savepoint's part in a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Savepoint {
    /// SAVEPOINT.
    Set,
    /// ROLLBACK TO.
    Back,
    /// RELEASE.
    Release,
}

/// Something that a client runs: one exchange, or the three of a COPY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The exchanges, in order.
    pub exchanges: Vec<Exchange>,
    /// Whether it is a plain read: one statement over plain tables on the unnamed portal.
    pub plain_read: bool,
    /// The row of `ledger` that it inserts: shop, transaction, step.
    pub ledger: Option<(i32, i32, i32)>,
    /// The note of the row of `item` that it inserts; it answers the row's id.
    pub item: Option<String>,
    /// What it does to savepoints.
    pub savepoint: Option<Savepoint>,
    /// What a read of the client's own ledger rows must give, if that is what it is: filled in by the client.
    pub counts: Option<(i32, i32)>,
    /// Whether it cannot be part of a transaction.
    pub alone: bool,
}

impl Statement {
    /// One exchange of no special meaning.
    pub fn of(exchange: Exchange) -> Self {
        Self {
            exchanges: vec![exchange],
            plain_read: false,
            ledger: None,
            item: None,
            savepoint: None,
            counts: None,
            alone: false,
        }
    }

    /// A plain read.
    pub fn read(text: &str) -> Self {
        Self {
            plain_read: true,
            ..Self::of(extended(text, &[]))
        }
    }

    /// Its texts in one line.
    pub fn brief(&self) -> String {
        let texts: Vec<_> = self.exchanges.iter().map(brief).collect();
        texts.join(" | ")
    }
}

/// An exchange in one line.
pub fn brief(exchange: &Exchange) -> String {
    match exchange {
        Exchange::Simple { text } => format!("Q {text}"),
        Exchange::CopyStart { text } => format!("COPY {text}"),
        Exchange::CopyData { data } => format!("DATA {:?}", String::from_utf8_lossy(data)),
        Exchange::CopyEnd { failure } => format!("END {failure:?}"),
        Exchange::Stored { length, .. } => format!("STORED {length} bytes"),
        Exchange::ObjectNumbers { next } => format!("NUMBERS from {next}"),
        Exchange::Extended { statements, steps } => {
            let texts: Vec<_> = statements.iter().map(|statement| statement.text.as_str()).collect();
            let steps: Vec<_> = steps.iter().map(step).collect();
            format!("P {} [{}]", texts.join(" ; "), steps.join(" "))
        }
    }
}

fn step(step: &Step) -> String {
    match step {
        Step::Parse { .. } => "Parse".into(),
        Step::DescribeStatement { .. } => "DescribeStatement".into(),
        Step::Bind {
            portal,
            parameters,
            result_formats,
            ..
        } => {
            let values: Vec<_> = parameters
                .iter()
                .map(|value| value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned()))
                .map(|value| value.unwrap_or_else(|| "NULL".into()))
                .collect();
            format!("Bind'{portal}'({}){result_formats:?}", values.join(","))
        }
        Step::DescribePortal { .. } => "Describe".into(),
        Step::Execute { portal, max_rows } => format!("Execute'{portal}'{max_rows}"),
        Step::ClosePortal { portal } => format!("Close'{portal}'"),
    }
}

/// A simple Query.
pub fn simple(text: &str) -> Exchange {
    Exchange::Simple { text: text.into() }
}

/// Parse, Bind with text parameters, Describe, Execute.
pub fn extended(text: &str, parameters: &[&str]) -> Exchange {
    Exchange::Extended {
        statements: vec![StatementText {
            text: text.into(),
            parameter_types: Vec::new(),
        }],
        steps: vec![
            Step::Parse { statement: 0 },
            bind("", parameters, &[]),
            Step::DescribePortal { portal: String::new() },
            execute("", 0),
        ],
    }
}

/// Bind of statement 0.
pub fn bind(portal: &str, parameters: &[&str], result_formats: &[i16]) -> Step {
    let parameters = parameters
        .iter()
        .map(|value| Some(Bytes::copy_from_slice(value.as_bytes())));
    Step::Bind {
        portal: portal.into(),
        statement: 0,
        parameter_formats: Vec::new(),
        parameters: parameters.collect(),
        result_formats: result_formats.to_vec(),
    }
}

/// Execute of a portal.
pub fn execute(portal: &str, max_rows: u32) -> Step {
    Step::Execute {
        portal: portal.into(),
        max_rows,
    }
}

/// A statement with these steps.
pub fn steps(text: &str, steps: Vec<Step>) -> Exchange {
    Exchange::Extended {
        statements: vec![StatementText {
            text: text.into(),
            parameter_types: Vec::new(),
        }],
        steps,
    }
}

/// Who draws: its names are nobody else's.
#[derive(Clone, Debug)]
pub struct Names {
    actor: i32,
    next: i32,
}

impl Names {
    /// The names of one client.
    pub fn new(actor: i32) -> Self {
        Self { actor, next: 0 }
    }

    /// A number that nobody else draws.
    pub fn unique(&mut self) -> i32 {
        self.next += 1;
        self.actor * 10_000 + self.next
    }
}

/// The table of the client that drew this number.
pub fn notes(unique: i32) -> String {
    format!("notes_{}", unique / 10_000)
}

/// A row of `ledger`.
pub fn ledger(random: &mut impl Rng, shop: i32, transaction: i32, step: i32) -> Statement {
    let values = [shop.to_string(), transaction.to_string(), step.to_string()];
    let exchange = match random.random_range(0..3) {
        0 => simple(&format!("INSERT INTO ledger VALUES ({})", values.join(", "))),
        1 => extended(
            "INSERT INTO ledger VALUES ($1, $2, $3)",
            &[&values[0], &values[1], &values[2]],
        ),
        _ => simple(&format!(
            "INSERT INTO ledger VALUES ({}); UPDATE account SET balance = balance + 1 WHERE shop = {shop} AND id = 1",
            values.join(", ")
        )),
    };
    Statement {
        ledger: Some((shop, transaction, step)),
        ..Statement::of(exchange)
    }
}

/// How many ledger rows a transaction has in a shop.
pub fn count_ledger(shop: i32, transaction: i32) -> Statement {
    let (shop_text, transaction_text) = (shop.to_string(), transaction.to_string());
    let text = "SELECT count(*) FROM ledger WHERE shop = $1 AND transaction = $2";
    Statement {
        plain_read: true,
        counts: Some((shop, transaction)),
        ..Statement::of(extended(text, &[&shop_text, &transaction_text]))
    }
}

/// A write that depends on which snapshot it reads.
pub fn sum(random: &mut impl Rng, names: &mut Names) -> Statement {
    let n = names.unique();
    let texts = [
        format!("INSERT INTO other SELECT {n}, sum(v) FROM plain"),
        format!("INSERT INTO other SELECT {n}, sum(balance) FROM account"),
        "UPDATE plain SET v = v + 100 WHERE v > 100".into(),
    ];
    Statement::of(simple(texts.choose(random).unwrap()))
}

/// A read of plain tables.
pub fn read(random: &mut impl Rng) -> Statement {
    let texts = [
        "SELECT id, balance FROM account WHERE shop = 1 ORDER BY id",
        "SELECT id, balance FROM account WHERE shop = 2",
        "SELECT sum(v) FROM plain",
        "SELECT k, v FROM plain WHERE k < 5",
        "SELECT count(*) FROM other",
        "SELECT p.k, o.v FROM plain p LEFT JOIN other o ON o.k = p.k",
        "SELECT max(id) FROM item",
    ];
    Statement::read(texts.choose(random).unwrap())
}

/// Any statement that writes, or belongs to what does.
pub fn write(random: &mut impl Rng, names: &mut Names, topics: &Topics) -> Statement {
    loop {
        let topic = *WRITES.choose(random).unwrap();
        if topic.is_none_or(|topic| topics.has(topic)) {
            return of_topic(topic, random, names);
        }
    }
}

/// Statements that mean something one after the other, each outside a transaction; none if no topic has any.
pub fn series(random: &mut impl Rng, names: &mut Names, topics: &Topics) -> Vec<Statement> {
    let known = [
        Topic::Cached,
        Topic::Deferred,
        Topic::Currval,
        Topic::Temporary,
        Topic::Poison,
    ];
    let known: Vec<Topic> = known.into_iter().filter(|topic| topics.has(*topic)).collect();
    let Some(topic) = known.choose(random) else {
        return Vec::new();
    };
    let other = |names: &mut Names, value: &str| {
        let n = names.unique();
        let notes = notes(n);
        simple(&format!("INSERT INTO {notes} VALUES ({n}, {value})"))
    };
    let exchanges = match topic {
        Topic::Cached => vec![
            simple("CREATE SEQUENCE IF NOT EXISTS block CACHE 10"),
            other(names, "nextval('block')::text"),
            other(names, "nextval('block')::text"),
            other(names, "nextval('block')::text"),
        ],
        Topic::Deferred => vec![
            simple("INSERT INTO ranking (place) VALUES (1)"),
            simple("INSERT INTO ranking (place) VALUES (2)"),
            simple(&format!("INSERT INTO ranking (place) VALUES ({})", names.unique())),
        ],
        Topic::Currval => vec![
            other(names, "nextval('ticket')::text"),
            other(names, "currval('ticket')::text"),
        ],
        Topic::Temporary => vec![
            of_topic(Some(Topic::Temporary), random, names).exchanges[0].clone(),
            simple("UPDATE plain SET v = v * 3 WHERE k = 7"),
            simple("UPDATE plain SET v = v + 3 WHERE k = 7"),
        ],
        _ => vec![
            of_topic(Some(Topic::Poison), random, names).exchanges[0].clone(),
            other(names, "'after the poison'"),
        ],
    };
    exchanges.into_iter().map(Statement::of).collect()
}

/// What [`write`] draws from, as often as each stands here.
const WRITES: &[Option<Topic>] = &[
    None,
    None,
    None,
    None,
    None,
    None,
    Some(Topic::Sequences),
    Some(Topic::Sequences),
    Some(Topic::Sequences),
    Some(Topic::Savepoints),
    Some(Topic::Savepoints),
    Some(Topic::Savepoints),
    Some(Topic::Cursors),
    Some(Topic::Cursors),
    Some(Topic::Copy),
    Some(Topic::Ddl),
    Some(Topic::Triggers),
    Some(Topic::Deferred),
    Some(Topic::Deferred),
    Some(Topic::Failing),
    Some(Topic::Failing),
    Some(Topic::Clock),
    Some(Topic::Functions),
    Some(Topic::Poison),
    Some(Topic::Temporary),
    Some(Topic::Cached),
    Some(Topic::Currval),
];

fn of_topic(topic: Option<Topic>, random: &mut impl Rng, names: &mut Names) -> Statement {
    let n = names.unique();
    let notes = notes(n);
    let k = random.random_range(1..=8);
    match topic {
        Some(Topic::Sequences) => sequence(random, n),
        Some(Topic::Savepoints) => savepoint(random),
        Some(Topic::Cursors) => {
            let texts = [
                "DECLARE c CURSOR FOR SELECT k, v FROM plain ORDER BY k",
                "FETCH 2 FROM c",
                "FETCH 1 FROM c",
                "MOVE 1 FROM c",
                "CLOSE c",
            ];
            Statement::of(simple(texts.choose(random).unwrap()))
        }
        Some(Topic::Copy) => copy(random, n),
        Some(Topic::Ddl) => ddl(random, n),
        Some(Topic::Triggers) => match random.random_range(0..2) {
            0 => Statement::of(extended("UPDATE watched SET v = v + 1 WHERE id = $1", &["1"])),
            _ => Statement::of(simple(&format!("INSERT INTO watched VALUES ({n}, 1)"))),
        },
        Some(Topic::Deferred) => deferred(random, n),
        Some(Topic::Failing) => failing(random, n),
        Some(Topic::Clock) => {
            let texts = [
                format!("INSERT INTO {notes} VALUES ({n}, now()::text)"),
                format!("INSERT INTO {notes} VALUES ({n}, random()::text)"),
                format!("INSERT INTO {notes} VALUES ({n}, gen_random_uuid()::text)"),
            ];
            Statement::of(simple(texts.choose(random).unwrap()))
        }
        Some(Topic::Functions) => {
            let texts = [
                format!("INSERT INTO {notes} SELECT {n}, touch(2)"),
                "SELECT touch(1)".into(),
                format!("DO $$BEGIN INSERT INTO {notes} VALUES ({n}, 'do'); END$$"),
                format!("INSERT INTO {notes} VALUES ({n}, draw()::text)"),
                "SELECT pg_advisory_xact_lock(hashtext('1'))".into(),
                "LOCK TABLE plain".into(),
            ];
            Statement::of(simple(texts.choose(random).unwrap()))
        }
        Some(Topic::Poison) => poison(random, n),
        Some(Topic::Temporary) => {
            let texts = [
                "CREATE TABLE pg_temp.plain AS SELECT * FROM plain",
                "DO $$BEGIN EXECUTE 'CREATE TEMP TABLE plain AS SELECT * FROM public.plain'; END$$",
                "DO $$BEGIN EXECUTE 'SET ROLE application'; EXECUTE 'SET search_path = side'; END$$",
                "DO $$BEGIN EXECUTE 'SET TimeZone = 5'; END$$",
            ];
            Statement::of(simple(texts.choose(random).unwrap()))
        }
        Some(Topic::Cached) => {
            let texts = [
                "CREATE SEQUENCE IF NOT EXISTS block CACHE 10".into(),
                format!("INSERT INTO {notes} VALUES ({n}, nextval('block')::text)"),
                format!("INSERT INTO {notes} VALUES ({n}, nextval('block')::text)"),
            ];
            Statement::of(simple(texts.choose(random).unwrap()))
        }
        Some(Topic::Currval) => {
            let texts = [
                format!("INSERT INTO {notes} VALUES ({n}, currval('ticket')::text)"),
                format!("INSERT INTO {notes} VALUES ({n}, lastval()::text)"),
                format!("INSERT INTO {notes} VALUES ({n}, currval('item_id_seq')::text)"),
            ];
            Statement::of(simple(texts.choose(random).unwrap()))
        }
        _ => base(random, n, k),
    }
}

fn base(random: &mut impl Rng, n: i32, k: i32) -> Statement {
    let (shop, id) = (random.random_range(1..=3), random.random_range(1..=4));
    let update = "UPDATE account SET balance = balance + $1 WHERE shop = $2 AND id = $3";
    match random.random_range(0..10) {
        0 | 1 => Statement::of(extended(update, &["1", &shop.to_string(), &id.to_string()])),
        2 => Statement::of(simple(&format!(
            "UPDATE account SET balance = balance * 2 WHERE shop = {shop} RETURNING id, balance"
        ))),
        3 => Statement::of(extended("UPDATE plain SET v = v + 1 WHERE k = $1", &[&k.to_string()])),
        4 => Statement::of(simple("UPDATE plain SET v = v + 1 WHERE v % 3 = 0")),
        5 => Statement::of(simple(&format!("INSERT INTO other SELECT {n}, count(*) FROM plain"))),
        6 => Statement::of(simple(&format!("INSERT INTO plain VALUES ({n}, {k})"))),
        7 => Statement::of(simple(&format!("INSERT INTO other SELECT {n}, sum(v) FROM plain"))),
        8 => Statement::of(simple(&format!(
            "INSERT INTO plain VALUES ({k}, 1) ON CONFLICT (k) DO UPDATE SET v = plain.v + 10"
        ))),
        _ => Statement::of(extended(
            "SELECT v FROM plain WHERE k = $1 FOR UPDATE",
            &[&k.to_string()],
        )),
    }
}

/// A row of `item`, whose id comes from a sequence.
pub fn item(note: &str) -> Statement {
    Statement {
        item: Some(note.into()),
        ..Statement::of(extended("INSERT INTO item (note) VALUES ($1) RETURNING id", &[note]))
    }
}

fn sequence(random: &mut impl Rng, n: i32) -> Statement {
    let notes = notes(n);
    match random.random_range(0..5) {
        0 | 1 => item(&format!("item {n}")),
        2 => Statement::of(simple("SELECT nextval('ticket')")),
        3 => Statement::of(simple(&format!(
            "INSERT INTO {notes} VALUES ({n}, nextval('ticket')::text)"
        ))),
        _ => Statement::of(simple(&format!(
            "SELECT nextval('ticket'); INSERT INTO {notes} VALUES ({n}, currval('ticket')::text)"
        ))),
    }
}

fn savepoint(random: &mut impl Rng) -> Statement {
    let (text, savepoint) = match random.random_range(0..5) {
        0 | 1 => ("SAVEPOINT s", Savepoint::Set),
        2 | 3 => ("ROLLBACK TO s", Savepoint::Back),
        _ => ("RELEASE s", Savepoint::Release),
    };
    Statement {
        savepoint: Some(savepoint),
        ..Statement::of(simple(text))
    }
}

fn copy(random: &mut impl Rng, n: i32) -> Statement {
    let failure = random.random_ratio(1, 4).then(|| "changed my mind".to_owned());
    let data = match random.random_range(0..4) {
        0 => format!("{n}\tone\n{n}\ttwice\n"),
        _ => format!("{n}\tcopied\n"),
    };
    let start = Exchange::CopyStart {
        text: format!("COPY {} FROM STDIN", notes(n)),
    };
    let data = Exchange::CopyData {
        data: Bytes::from(data),
    };
    Statement {
        exchanges: vec![start, data, Exchange::CopyEnd { failure }],
        ..Statement::of(simple(""))
    }
}

fn ddl(random: &mut impl Rng, n: i32) -> Statement {
    let texts = [
        format!("CREATE TABLE extra_{n} (k int PRIMARY KEY, s serial)"),
        format!("ALTER TABLE other ADD COLUMN c{n} int"),
        "CREATE TABLE IF NOT EXISTS extra (k int PRIMARY KEY, s serial)".into(),
        "DROP TABLE IF EXISTS extra".into(),
        format!("INSERT INTO extra VALUES ({n})"),
        format!("CREATE TABLE copy_{n} AS SELECT k, v FROM plain"),
        "ALTER TABLE parent ADD COLUMN IF NOT EXISTS note text".into(),
        "TRUNCATE child".into(),
    ];
    Statement::of(simple(texts.choose(random).unwrap()))
}

fn deferred(random: &mut impl Rng, n: i32) -> Statement {
    let texts = [
        format!("INSERT INTO child VALUES ({n}, 1)"),
        format!("INSERT INTO child VALUES ({n}, 99)"),
        "UPDATE ranking SET place = 4 - place WHERE place < 4".into(),
        "INSERT INTO ranking (place) VALUES (1)".into(),
        format!("INSERT INTO ranking (place) VALUES ({n})"),
        "SET CONSTRAINTS ALL IMMEDIATE".into(),
        "DELETE FROM parent WHERE id = 2".into(),
    ];
    Statement::of(simple(texts.choose(random).unwrap()))
}

fn failing(random: &mut impl Rng, n: i32) -> Statement {
    match random.random_range(0..6) {
        0 => Statement::of(simple("INSERT INTO plain VALUES (1, 1)")),
        1 => Statement::of(simple("INSERT INTO item (note) VALUES (NULL)")),
        2 => Statement::of(extended(
            "INSERT INTO plain SELECT $1::int, 1 / (k - k) FROM plain",
            &["1"],
        )),
        3 => Statement::of(simple("SELECT 1 / (k - 3) FROM plain FOR UPDATE")),
        4 => Statement::of(simple("INSERT INTO nowhere VALUES (1)")),
        _ => Statement::of(simple(&format!("INSERT INTO item (note) VALUES ('x{n}'), (NULL)"))),
    }
}

fn poison(random: &mut impl Rng, n: i32) -> Statement {
    let notes = notes(n);
    let raise = |code: &str| simple(&format!("DO $$BEGIN RAISE 'no' USING ERRCODE = '{code}'; END$$"));
    let unfit = steps(
        &format!("INSERT INTO {notes} VALUES ($1, 'unfit') RETURNING k"),
        vec![
            Step::Parse { statement: 0 },
            bind("", &[&n.to_string()], &[0, 0, 0]),
            execute("", 0),
        ],
    );
    let exchange = match random.random_range(0..8) {
        0 => simple(&format!(
            "INSERT INTO {notes} SELECT {n}, to_tsvector(0::regconfig, 'x')::text"
        )),
        1 => unfit,
        2 => raise("58000"),
        3 => raise("53200"),
        4 => raise("57014"),
        5 => raise("40001"),
        6 => raise("XX000"),
        _ => raise("08006"),
    };
    Statement::of(exchange)
}
