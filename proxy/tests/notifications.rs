//! LISTEN and NOTIFY through three real voters on three servers (`docs/decisions/0050`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::Duration;

use support::World;
use support::raw::{Answer, Raw, bind, execute, message, parse, query, sync};

/// How long something may take that comes at once.
const WITHIN: Duration = Duration::from_secs(20);
/// How long to wait for what shall not come.
const QUIET: Duration = Duration::from_millis(700);

/// A notification, as an application reads it.
type Told = (i32, String, String);

fn told(answer: &Answer) -> Option<Told> {
    (answer.tag == b'A').then_some(())?;
    let process = i32::from_be_bytes(*answer.body.first_chunk::<4>()?);
    let texts = String::from_utf8_lossy(&answer.body[4..]).into_owned();
    let mut texts = texts.split('\0').map(str::to_owned);
    Some((process, texts.next()?, texts.next()?))
}

/// A session, with what it was told.
struct Session {
    raw: Raw,
    process: i32,
    told: Vec<Told>,
}

impl Session {
    async fn open(world: &World) -> Session {
        let (raw, cancel) = Raw::cancellable(world.address).await;
        let process = i32::from_be_bytes(cancel[8..12].try_into().unwrap());
        Session {
            raw,
            process,
            told: Vec::new(),
        }
    }

    /// Runs a text; the types of the answers, or the error's SQLSTATE.
    async fn run(&mut self, text: &str) -> String {
        self.send(&query(text)).await
    }

    async fn send(&mut self, bytes: &[u8]) -> String {
        self.raw.send(bytes).await;
        let answers = tokio::time::timeout(WITHIN, self.raw.until_ready())
            .await
            .expect("an answer");
        self.told.extend(answers.iter().filter_map(told));
        let failed = answers.iter().find(|answer| answer.tag == b'E');
        failed.map_or_else(
            || answers.iter().map(|answer| answer.tag as char).collect(),
            |error| error.field(b'C').unwrap(),
        )
    }

    /// Waits for the next notification, without sending anything.
    async fn hear(&mut self) -> (i32, String, String) {
        if !self.told.is_empty() {
            return self.told.remove(0);
        }
        let answer = tokio::time::timeout(WITHIN, self.raw.next())
            .await
            .expect("a notification")
            .unwrap();
        told(&answer).unwrap_or_else(|| panic!("{answer:?}"))
    }

    async fn payloads(&mut self, count: usize) -> Vec<String> {
        let mut payloads = Vec::new();
        for _ in 0..count {
            payloads.push(self.hear().await.2);
        }
        payloads
    }

    /// Nothing comes.
    async fn is_quiet(&mut self) {
        assert!(self.told.is_empty(), "{:?}", self.told);
        let next = tokio::time::timeout(QUIET, self.raw.next()).await;
        assert!(next.is_err(), "{next:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_listen_are_told_what_commits() {
    let world = World::start_voters().await;
    let (mut ear, mut mouth) = (Session::open(&world).await, Session::open(&world).await);
    assert_eq!(ear.run("LISTEN jobs").await, "CZ");
    assert_eq!(mouth.run("NOTIFY jobs, 'plain'").await, "CZ");
    assert_eq!(ear.hear().await, (mouth.process, "jobs".into(), "plain".into()));
    // Once, and also to a session that is idle; folded as by PostgreSQL; nothing before the commit.
    assert_eq!(mouth.run("BEGIN").await, "CZ");
    assert_eq!(mouth.run("SELECT pg_notify('jobs', 'in a block')").await, "TDCZ");
    assert_eq!(
        mouth
            .run("NOTIFY jobs, 'in a block'; NOTIFY jobs; NOTIFY other, 'x'; NOTIFY jobs, 'last'")
            .await,
        "CCCCZ"
    );
    ear.is_quiet().await;
    assert_eq!(mouth.run("COMMIT").await, "CZ");
    assert_eq!(ear.payloads(3).await, ["in a block", "", "last"]);
    // What was rolled back was never notified.
    assert_eq!(mouth.run("BEGIN; NOTIFY jobs, 'rolled back'; ROLLBACK").await, "CCCZ");
    let undone = "BEGIN; NOTIFY jobs, 'kept'; SAVEPOINT s; NOTIFY jobs, 'undone'; ROLLBACK TO s; COMMIT";
    assert_eq!(mouth.run(undone).await, "CCCCCCZ");
    assert_eq!(ear.payloads(1).await, ["kept"]);
    // With parameters, in a pipeline, in a query over rows.
    let notify = [
        parse("", "SELECT pg_notify($1, $2)"),
        bind("", "", &["jobs", "bound"]),
        execute("", 0),
        sync(),
    ];
    assert_eq!(mouth.send(&notify.concat()).await, "12DCZ");
    assert_eq!(
        mouth
            .run("SELECT pg_notify('jobs', 'row ' || g) FROM generate_series(1, 3) AS g")
            .await,
        "TDDDCZ"
    );
    assert_eq!(ear.payloads(4).await, ["bound", "row 1", "row 2", "row 3"]);
    let modes = [
        "READ ONLY",
        "ISOLATION LEVEL REPEATABLE READ",
        "ISOLATION LEVEL SERIALIZABLE",
    ];
    for mode in modes {
        let text = format!("BEGIN {mode}; SELECT 1; NOTIFY jobs, '{mode}'; COMMIT");
        assert_eq!(mouth.run(&text).await, "CTDCCCZ");
    }
    assert_eq!(ear.payloads(3).await, modes);
    mouth.run("SET cloudbft.answers = 'at_commit'").await;
    let text = "BEGIN; SELECT 1; NOTIFY jobs, 'at commit'; COMMIT";
    assert_eq!(mouth.run(text).await, "CTDCCCZ");
    assert_eq!(ear.payloads(1).await, ["at commit"]);
    assert_eq!(
        mouth.run(&format!("NOTIFY jobs, '{}'", "x".repeat(8000))).await,
        "22023"
    );
    assert_eq!(
        mouth.run(&format!("SELECT pg_notify('{}', '')", "x".repeat(64))).await,
        "22023"
    );
    assert_eq!(mouth.run("NOTIFY").await, "42601");
    ear.is_quiet().await;
    assert_eq!(ear.run("UNLISTEN jobs").await, "CZ");
    assert_eq!(mouth.run("NOTIFY jobs, 'too late'").await, "CZ");
    ear.is_quiet().await;
    // No backend goes on listening: the servers' queues are not kept.
    for server in &world.servers {
        let usage = "SELECT pg_notification_queue_usage()";
        let usage: f64 = server.supervise().await.query_one(usage, &[]).await.unwrap().get(0);
        assert!(usage < 0.001, "{usage}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_hears_itself_before_it_is_ready() {
    let world = World::start_voters().await;
    let mut own = Session::open(&world).await;
    assert_eq!(own.run("LISTEN a; LISTEN \"B\"").await, "CCZ");
    assert_eq!(own.run("NOTIFY A, '1'").await, "CAZ");
    assert_eq!(own.run("BEGIN; NOTIFY \"B\", '2'; SELECT 1").await, "CCTDCZ");
    assert_eq!(own.run("COMMIT").await, "CAZ");
    let heard: Vec<_> = own.told.drain(..).collect();
    let process = own.process;
    assert_eq!(
        heard,
        [(process, "a".into(), "1".into()), (process, "B".into(), "2".into())]
    );
    // Not within a transaction, whoever notifies.
    let mut other = Session::open(&world).await;
    assert_eq!(own.run("BEGIN").await, "CZ");
    assert_eq!(other.run("NOTIFY a, 'while a block is open'").await, "CZ");
    own.is_quiet().await;
    assert_eq!(own.run("SELECT 1").await, "TDCZ");
    assert_eq!(own.run("ROLLBACK").await, "CAZ");
    own.told.clear();
    assert_eq!(own.run("SELECT pg_listening_channels()").await, "TDDCZ");
    assert_eq!(own.run("DISCARD ALL").await, "CZ");
    assert_eq!(own.run("SELECT * FROM pg_listening_channels()").await, "TCZ");
    assert_eq!(own.run("NOTIFY a, 'unheard'").await, "CZ");
    own.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listen_counts_from_its_commit_on() {
    let world = World::start_voters().await;
    let (mut ear, mut mouth) = (Session::open(&world).await, Session::open(&world).await);
    assert_eq!(ear.run("BEGIN").await, "CZ");
    assert_eq!(ear.run("LISTEN a").await, "CZ");
    assert_eq!(ear.run("SAVEPOINT s").await, "CZ");
    assert_eq!(ear.run("LISTEN undone; UNLISTEN a").await, "CCZ");
    assert_eq!(ear.run("ROLLBACK TO s").await, "CZ");
    assert_eq!(mouth.run("NOTIFY a, 'before'").await, "CZ");
    assert_eq!(ear.run("SELECT pg_listening_channels()").await, "TCZ");
    assert_eq!(ear.run("COMMIT").await, "CZ");
    ear.is_quiet().await;
    assert_eq!(mouth.run("NOTIFY undone; NOTIFY a, 'after'").await, "CCZ");
    assert_eq!(ear.payloads(1).await, ["after"]);
    assert_eq!(ear.run("BEGIN; LISTEN b; UNLISTEN *; ROLLBACK").await, "CCCCZ");
    assert_eq!(mouth.run("NOTIFY b; NOTIFY a, 'still'").await, "CCZ");
    assert_eq!(ear.payloads(1).await, ["still"]);
    assert_eq!(ear.run("BEGIN").await, "CZ");
    assert_eq!(ear.run("SELECT no_such").await, "42703");
    assert_eq!(ear.run("LISTEN b").await, "25P02");
    assert_eq!(ear.run("ROLLBACK").await, "CZ");
    // By the extended protocol.
    let listen = [
        parse("", "LISTEN c"),
        bind("", "", &[]),
        message(b'D', b"P\0"),
        execute("", 0),
        sync(),
    ];
    assert_eq!(ear.send(&listen.concat()).await, "12nCZ");
    assert_eq!(mouth.run("NOTIFY c, 'extended'").await, "CZ");
    assert_eq!(ear.payloads(1).await, ["extended"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_of_users_notifies_too_and_in_the_order_of_commits() {
    let world = World::start_voters().await;
    let (mut ear, mut mouth) = (Session::open(&world).await, Session::open(&world).await);
    let setup = "CREATE TABLE t (k int PRIMARY KEY, v text);
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_notify('t', new.k || ' ' || new.v); NOTIFY t, 'static'; RETURN new; END $$;
        CREATE TRIGGER tell AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION tell();
        CREATE FUNCTION by_text() RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN EXECUTE format('NOTIFY %I, %L', 't', 'dynamic'); END $$";
    assert_eq!(mouth.run(setup).await, "CCCCZ");
    assert_eq!(ear.run("LISTEN t").await, "CZ");
    assert_eq!(mouth.run("INSERT INTO t VALUES (1, 'one'), (2, 'two')").await, "CZ");
    assert_eq!(ear.payloads(3).await, ["1 one", "static", "2 two"]);
    assert_eq!(mouth.run("INSERT INTO t VALUES (1, 'again')").await, "23505");
    assert_eq!(mouth.run("SELECT by_text()").await, "TDCZ");
    assert_eq!(
        mouth.run("DO $$ BEGIN PERFORM pg_notify('t', 'do'); END $$").await,
        "CZ"
    );
    assert_eq!(ear.payloads(2).await, ["dynamic", "do"]);
    // Each of several sessions, one after the other, hears all in the same order.
    let mut second = Session::open(&world).await;
    assert_eq!(second.run("LISTEN t").await, "CZ");
    let mut mouths = vec![mouth];
    for _ in 0..2 {
        mouths.push(Session::open(&world).await);
    }
    let mut running = Vec::new();
    for (number, mut mouth) in mouths.into_iter().enumerate() {
        running.push(tokio::spawn(async move {
            for turn in 0..8 {
                assert_eq!(mouth.run(&format!("NOTIFY t, '{number} {turn}'")).await, "CZ");
            }
        }));
    }
    for task in running {
        task.await.unwrap();
    }
    let (heard, same) = (ear.payloads(24).await, second.payloads(24).await);
    assert_eq!(heard, same);
    for number in 0..3 {
        let own: Vec<_> = heard
            .iter()
            .filter(|payload| payload.starts_with(&format!("{number} ")))
            .collect();
        let expected: Vec<_> = (0..8).map(|turn| format!("{number} {turn}")).collect();
        assert_eq!(own, expected.iter().collect::<Vec<_>>());
    }
    ear.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_that_lies_or_is_silent_changes_nothing() {
    let world = World::start_voters().await;
    let (mut ear, mut mouth) = (Session::open(&world).await, Session::open(&world).await);
    assert_eq!(ear.run("LISTEN a").await, "CZ");
    world.faults.forger(2);
    for turn in 0..5 {
        assert_eq!(mouth.run(&format!("NOTIFY a, '{turn}'")).await, "CZ");
        assert_eq!(ear.payloads(1).await, [turn.to_string()]);
    }
    world.faults.heal();
    world.faults.mute(3);
    for turn in 5..10 {
        assert_eq!(
            mouth
                .run(&format!("BEGIN; SELECT pg_notify('a', '{turn}'); COMMIT"))
                .await,
            "CTDCCZ"
        );
        assert_eq!(ear.payloads(1).await, [turn.to_string()]);
    }
    ear.is_quiet().await;
}
