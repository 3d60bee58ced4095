//! Advisory locks through three real voters on three servers (`docs/decisions/0054`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::Duration;

use support::World;
use support::raw::{Answer, Raw, bind, execute, message, parse, query, sync};

/// How long something may take that comes at once.
const WITHIN: Duration = Duration::from_secs(20);
/// How long to wait for what shall not come.
const QUIET: Duration = Duration::from_millis(1500);

/// A session.
struct Session {
    raw: Raw,
    cancel: Vec<u8>,
}

impl Session {
    async fn open(world: &World) -> Session {
        let (raw, cancel) = Raw::cancellable(world.address).await;
        Session { raw, cancel }
    }

    /// Runs a text: the values of its rows, the messages of warnings, and the SQLSTATE of an error.
    async fn run(&mut self, text: &str) -> String {
        self.begin(text).await;
        self.answer().await
    }

    async fn begin(&mut self, text: &str) {
        self.raw.send(&query(text)).await;
    }

    async fn answer(&mut self) -> String {
        let answers = tokio::time::timeout(WITHIN, self.raw.until_ready()).await;
        words(&answers.expect("an answer"))
    }

    /// The statement waits.
    async fn is_quiet(&mut self) {
        let next = tokio::time::timeout(QUIET, self.raw.next()).await;
        assert!(next.is_err(), "{next:?}");
    }
}

fn words(answers: &[Answer]) -> String {
    let mut words = Vec::new();
    for answer in answers {
        match answer.tag {
            b'D' => words.extend(cells(&answer.body)),
            b'N' => words.push(answer.field(b'M').unwrap()),
            b'E' => words.push(answer.field(b'C').unwrap()),
            _ => {}
        }
    }
    words.join(" ")
}

fn cells(row: &[u8]) -> Vec<String> {
    let (mut cells, mut rest) = (Vec::new(), &row[2..]);
    while !rest.is_empty() {
        let length = i32::from_be_bytes(rest[..4].try_into().unwrap());
        rest = &rest[4..];
        match usize::try_from(length) {
            Ok(length) => {
                cells.push(format!("<{}>", String::from_utf8_lossy(&rest[..length])));
                rest = &rest[length..];
            }
            Err(_) => cells.push("NULL".into()),
        }
    }
    cells
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_wait_for_each_other() {
    let world = World::start_voters().await;
    let (mut one, mut two) = (Session::open(&world).await, Session::open(&world).await);
    assert_eq!(one.run("SELECT pg_advisory_lock(1)").await, "<>");
    assert_eq!(two.run("SELECT pg_try_advisory_lock(1)").await, "<f>");
    assert_eq!(
        two.run("SELECT pg_try_advisory_lock(0, 1), pg_try_advisory_lock(2)::text")
            .await,
        "<t> <true>"
    );
    two.begin("SELECT pg_advisory_lock(1)").await;
    two.is_quiet().await;
    assert_eq!(
        one.run("SELECT pg_advisory_lock(1)").await,
        "<>",
        "its own is not in its way"
    );
    assert_eq!(one.run("SELECT pg_advisory_unlock(1)").await, "<t>");
    two.is_quiet().await;
    assert_eq!(one.run("SELECT pg_advisory_unlock(1)").await, "<t>");
    assert_eq!(two.answer().await, "<>");
    // What is not held.
    let warned = "you don't own a lock of type ExclusiveLock <f>";
    assert_eq!(one.run("SELECT pg_advisory_unlock(1)").await, warned);
    assert_eq!(
        two.run("SELECT pg_advisory_unlock_shared(1)").await,
        "you don't own a lock of type ShareLock <f>"
    );
    assert_eq!(one.run("SELECT pg_advisory_lock(NULL)").await, "NULL");
    // Shared ones.
    assert_eq!(two.run("SELECT pg_advisory_unlock_all()").await, "<>");
    assert_eq!(one.run("SELECT pg_advisory_lock_shared(1)").await, "<>");
    assert_eq!(two.run("SELECT * FROM pg_try_advisory_lock_shared(1)").await, "<t>");
    assert_eq!(two.run("SELECT pg_try_advisory_lock(1)").await, "<f>");
    // Ends of sessions, and of pools' uses of them.
    assert_eq!(two.run("DISCARD ALL").await, "");
    assert_eq!(
        one.run("SELECT pg_advisory_unlock_all(); SELECT pg_advisory_lock(1)")
            .await,
        "<> <>"
    );
    two.begin("SELECT pg_advisory_lock(1)").await;
    two.is_quiet().await;
    one.raw.send(&message(b'X', b"")).await;
    assert_eq!(two.answer().await, "<>");
    drop(two);
    let mut three = Session::open(&world).await;
    assert_eq!(three.run("SELECT pg_advisory_lock(1)").await, "<>");
    // In a function, or where the key is computed, it is refused with a hint.
    assert_eq!(
        three.run("SELECT pg_advisory_lock(1) FROM generate_series(1, 2)").await,
        "BF004"
    );
    assert_eq!(
        three.run("DO $$BEGIN PERFORM pg_advisory_lock(2); END$$").await,
        "BF004"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_see_the_columns_of_postgresql() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    let locked = "SELECT pg_try_advisory_lock($1, $2) AS locked, pg_try_advisory_lock($3)";
    let row = client.query_one(locked, &[&1_i32, &2_i32, &5_i64]).await.unwrap();
    assert_eq!(
        (row.columns()[0].name(), row.get::<_, bool>(0), row.get::<_, bool>(1)),
        ("locked", true, true)
    );
    let other = world.connect().await;
    let statement = other.prepare("SELECT pg_try_advisory_lock($1)").await.unwrap();
    assert!(!other.query_one(&statement, &[&5_i64]).await.unwrap().get::<_, bool>(0));
    assert!(other.query_one(&statement, &[&6_i64]).await.unwrap().get::<_, bool>(0));
    other
        .execute("SELECT pg_advisory_lock($1::bigint)", &[&7_i64])
        .await
        .unwrap();
    let prepared = "PREPARE p AS SELECT pg_advisory_unlock($1); EXECUTE p(7)";
    other.batch_execute(prepared).await.unwrap();
    let free = client.query_one("SELECT pg_try_advisory_lock(7)", &[]).await.unwrap();
    assert!(free.get::<_, bool>(0));
    // By bytes, in texts.
    let mut raw = Session::open(&world).await.raw;
    let describe = message(b'D', b"S\0");
    raw.send(
        &[
            parse("", "SELECT pg_advisory_lock($1)"),
            describe,
            bind("", "", &["8"]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    )
    .await;
    let answers = raw.until_ready().await;
    let parameters = answers.iter().find(|answer| answer.tag == b't').unwrap();
    assert_eq!(parameters.body, [0, 1, 0, 0, 0, 20], "a bigint");
    let columns = answers.iter().find(|answer| answer.tag == b'T').unwrap();
    let expected = [
        &b"\0\x01pg_advisory_lock\0"[..],
        &[0; 6],
        &2278_u32.to_be_bytes(),
        &4_i16.to_be_bytes(),
        &[255; 4],
        &[0; 2],
    ];
    assert_eq!(columns.body, expected.concat());
    assert_eq!(words(&answers), "<>");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_of_transactions_and_of_sessions_exclude_each_other() {
    let world = World::start_voters().await;
    let (mut one, mut two) = (Session::open(&world).await, Session::open(&world).await);
    one.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)")
        .await;
    assert_eq!(one.run("BEGIN; SELECT pg_advisory_xact_lock(1)").await, "<>");
    assert_eq!(
        one.run("SELECT pg_try_advisory_lock(1)").await,
        "<t>",
        "its own session's"
    );
    assert_eq!(one.run("SELECT pg_advisory_unlock(1)").await, "<t>");
    assert_eq!(
        two.run("SELECT pg_try_advisory_lock(1), pg_try_advisory_xact_lock(1)")
            .await,
        "<f> <f>"
    );
    two.begin("SELECT pg_advisory_lock(1)").await;
    one.run("UPDATE t SET v = 1").await;
    two.is_quiet().await;
    one.run("COMMIT").await;
    assert_eq!(two.answer().await, "<>");
    assert_eq!(
        two.run("SELECT v FROM t").await,
        "<1>",
        "what was committed under the lock"
    );
    // The end of a transaction frees at once, whichever it is.
    assert_eq!(two.run("SELECT pg_advisory_unlock_all()").await, "<>");
    for end in ["COMMIT", "ROLLBACK"] {
        assert_eq!(one.run("BEGIN; SELECT pg_advisory_xact_lock(1)").await, "<>");
        assert_eq!(two.run("SELECT pg_try_advisory_lock(1)").await, "<f>");
        one.run(end).await;
        assert_eq!(two.run("SELECT pg_try_advisory_lock(1)").await, "<t>", "after {end}");
        assert_eq!(two.run("SELECT pg_advisory_unlock(1)").await, "<t>");
    }
    // Outside a transaction, a statement is one.
    assert_eq!(one.run("SELECT pg_advisory_xact_lock(1)").await, "<>");
    assert_eq!(two.run("SELECT pg_try_advisory_xact_lock(1)").await, "<t>");
    // A session's lock outlives its transaction, committed or not, and blocks no DDL.
    assert_eq!(one.run("BEGIN; SELECT pg_advisory_lock(1); ROLLBACK").await, "<>");
    assert_eq!(two.run("SELECT pg_try_advisory_lock(1)").await, "<f>");
    assert_eq!(
        two.run("ALTER TABLE t ADD COLUMN w int; CREATE TABLE u (a int)").await,
        ""
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_ends_with_deadlocks_and_time_limits() {
    let world = World::start_voters().await;
    let (mut one, mut two) = (Session::open(&world).await, Session::open(&world).await);
    one.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)")
        .await;
    // Two sessions.
    assert_eq!(one.run("SELECT pg_advisory_lock(1)").await, "<>");
    assert_eq!(two.run("SELECT pg_advisory_lock(2)").await, "<>");
    one.begin("SELECT pg_advisory_lock(2)").await;
    one.is_quiet().await;
    assert_eq!(two.run("SELECT pg_advisory_lock(1)").await, "40P01");
    assert_eq!(two.run("SELECT pg_advisory_unlock(2)").await, "<t>");
    assert_eq!(one.answer().await, "<>");
    // A lock of a session, and one of a table: whoever closes the cycle.
    two.run("BEGIN; UPDATE t SET v = 1").await;
    two.begin("SELECT pg_advisory_lock(1)").await;
    two.is_quiet().await;
    assert_eq!(one.run("UPDATE t SET v = 2").await, "40P01");
    assert_eq!(one.run("SELECT pg_advisory_unlock_all()").await, "<>");
    assert_eq!(two.answer().await, "<>");
    two.run("COMMIT").await;
    // Time limits, and cancels.
    assert_eq!(one.run("SET lock_timeout = '300ms'").await, "");
    assert_eq!(one.run("SELECT pg_advisory_lock(1)").await, "55P03");
    assert_eq!(one.run("RESET lock_timeout; SET statement_timeout = '300ms'").await, "");
    assert_eq!(one.run("SELECT pg_advisory_lock_shared(1)").await, "57014");
    assert_eq!(one.run("RESET statement_timeout").await, "");
    one.begin("SELECT pg_advisory_lock(1)").await;
    one.is_quiet().await;
    Raw::open(world.address).await.send(&one.cancel).await;
    assert_eq!(one.answer().await, "57014");
    // Nobody waits any more, so nobody is granted it.
    assert_eq!(
        two.run("SELECT pg_advisory_unlock(1), pg_try_advisory_lock(1)").await,
        "<t> <t>"
    );
    assert_eq!(one.run("SELECT pg_try_advisory_lock(1)").await, "<f>");
    // An application that leaves while it waits.
    one.begin("SELECT pg_advisory_lock(1)").await;
    one.is_quiet().await;
    drop(one);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(two.run("SELECT pg_advisory_unlock(1)").await, "<t>");
    let mut three = Session::open(&world).await;
    assert_eq!(three.run("SELECT pg_try_advisory_lock(1)").await, "<t>");
}
