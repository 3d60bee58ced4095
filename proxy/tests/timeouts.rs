//! Time limits that applications set, and applications that leave while a statement runs.

mod support;

use std::time::{Duration, Instant};

use support::World;
use support::raw::{Answer, Raw, bind, execute, message, parse, query, sync};

fn sqlstate(answers: &[Answer]) -> String {
    let error = answers.iter().find(|answer| answer.tag == b'E');
    error.and_then(|answer| answer.field(b'C')).unwrap_or_default()
}

async fn with_table(world: &World) -> Raw {
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("CREATE TABLE t (id int PRIMARY KEY, v int)")).await;
    raw.tags(&query("INSERT INTO t VALUES (1, 0), (2, 0)")).await;
    raw
}

fn mute_all(world: &World) {
    [1, 2, 3].into_iter().for_each(|machine| world.faults.mute(machine));
}

/// Waits until the proxy has had a transaction aborted.
async fn aborted(world: &World, limit: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if world.faults.take_seen().contains(&"abort") {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_timeout_ends_what_runs_in_a_transaction() {
    let world = World::start().await;
    let mut raw = with_table(&world).await;
    for statement in ["UPDATE t SET v = 2 WHERE id = 1", "SELECT v FROM t WHERE id = 1"] {
        raw.tags(&query("BEGIN; UPDATE t SET v = 1 WHERE id = 1")).await;
        raw.tags(&query("SET LOCAL statement_timeout = '0.2s'")).await;
        raw.send(&query("SHOW statement_timeout")).await;
        assert!(raw.until_ready().await[1].body.ends_with(b"200ms"));
        world.faults.take_seen();
        mute_all(&world);
        let start = Instant::now();
        raw.send(&query(statement)).await;
        let answers = raw.until_ready().await;
        assert_eq!(sqlstate(&answers), "57014", "{statement}");
        let message = answers[0].field(b'M').unwrap();
        assert_eq!(message, "canceling statement due to statement timeout");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        world.faults.heal();
        assert_eq!(answers.last().unwrap().body, b"E", "the block has failed");
        assert_eq!(raw.tags(&query("ROLLBACK")).await, "CZ");
        assert!(aborted(&world, Duration::from_secs(2)).await);
        assert_eq!(raw.tags(&query("UPDATE t SET v = 0 WHERE id = 1")).await, "CZ");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_ends_a_write_of_a_transaction() {
    let world = World::start().await;
    let mut raw = with_table(&world).await;
    let (mut other, cancel) = Raw::cancellable(world.address).await;
    other.tags(&query("BEGIN; UPDATE t SET v = 1 WHERE id = 1")).await;
    mute_all(&world);
    other.send(&query("UPDATE t SET v = 2 WHERE id = 1")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    Raw::open(world.address).await.send(&cancel).await;
    assert_eq!(sqlstate(&other.until_ready().await), "57014");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    world.faults.heal();
    assert_eq!(other.tags(&query("ROLLBACK")).await, "CZ");
    assert_eq!(raw.tags(&query("UPDATE t SET v = 3 WHERE id = 1")).await, "CZ");
}

/// A client that was busy sends a statement and its cancellation in the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_right_behind_its_statement_counts() {
    let world = World::start().await;
    with_table(&world).await;
    let (mut raw, cancel) = Raw::cancellable(world.address).await;
    mute_all(&world);
    let statement = "SELECT v FROM t WHERE id = 1";
    for _ in 0..30 {
        let mut canceller = Raw::open(world.address).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let start = Instant::now();
        raw.send(&query(statement)).await;
        canceller.send(&cancel).await;
        assert_eq!(sqlstate(&raw.until_ready().await), "57014");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    // The other way round, as threads of one client may do it: what comes before the CancelRequest is taken.
    let mut counted = 0;
    for _ in 0..10 {
        let mut canceller = Raw::open(world.address).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        canceller.send(&cancel).await;
        raw.send(&query(statement)).await;
        let start = Instant::now();
        let again = async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            Raw::open(world.address).await.send(&cancel).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answers = raw.until_ready() => assert_eq!(sqlstate(&answers), "57014"),
            () = again => {}
        }
        counted += u32::from(start.elapsed() < Duration::from_millis(500));
    }
    assert!(counted > 5, "{counted} of 10");
    // Postgres runs an Execute when it comes, be its Sync there or not.
    let start = Instant::now();
    raw.send(&[parse("", statement), bind("", "", &[]), execute("", 0)].concat())
        .await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    Raw::open(world.address).await.send(&cancel).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    raw.send(&sync()).await;
    assert_eq!(sqlstate(&raw.until_ready().await), "57014");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    world.faults.heal();
    assert_eq!(raw.tags(&query(statement)).await, "TDCZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_between_statements_does_nothing() {
    let world = World::start().await;
    with_table(&world).await;
    let (mut raw, cancel) = Raw::cancellable(world.address).await;
    for number in 0..30 {
        let mut canceller = Raw::open(world.address).await;
        canceller.send(&cancel).await;
        assert!(canceller.next().await.is_none());
        assert_eq!(
            raw.tags(&query("SELECT v FROM t WHERE id = 1")).await,
            "TDCZ",
            "{number}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_timeout_ends_the_wait_and_the_statement_never_happens() {
    let world = World::start().await;
    let mut holder = with_table(&world).await;
    let mut waiter = Raw::login(world.address).await;
    holder.tags(&query("BEGIN; UPDATE t SET v = 1 WHERE id = 1")).await;
    waiter.tags(&query("SET lock_timeout = '300ms'")).await;
    let start = Instant::now();
    waiter.send(&query("UPDATE t SET v = 9 WHERE id = 1")).await;
    let answers = waiter.until_ready().await;
    assert_eq!(sqlstate(&answers), "55P03");
    let message = answers[0].field(b'M').unwrap();
    assert_eq!(message, "canceling statement due to lock timeout");
    assert_eq!(answers.last().unwrap().body, b"I");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    // By the extended protocol too.
    let update = [
        parse("", "UPDATE t SET v = 9 WHERE id = 1"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    waiter.send(&update).await;
    assert_eq!(sqlstate(&waiter.until_ready().await), "55P03");
    assert_eq!(holder.tags(&query("COMMIT")).await, "CZ");
    assert_eq!(waiter.tags(&query("UPDATE t SET v = v + 1 WHERE id = 1")).await, "CZ");
    waiter.send(&query("SELECT v FROM t WHERE id = 1")).await;
    assert!(waiter.until_ready().await[1].body.ends_with(b"2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_sessions_end_when_they_asked_for_it() {
    let world = World::start().await;
    let mut raw = with_table(&world).await;
    raw.tags(&query("SET idle_session_timeout = '400ms'")).await;
    // Not while a transaction is open, and not while statements come.
    raw.tags(&query("BEGIN")).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(raw.tags(&query("SELECT 1; COMMIT")).await, "TDCCZ");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(raw.tags(&query("SELECT 1")).await, "TDCZ");
    let end = tokio::time::timeout(Duration::from_secs(3), raw.next()).await;
    let end = end.unwrap().unwrap();
    assert_eq!(end.field(b'C').as_deref(), Some("57P05"));
    assert_eq!(end.field(b'S').as_deref(), Some("FATAL"));
    assert!(raw.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_leaves_while_a_statement_runs_is_noticed_at_once() {
    let world = World::start().await;
    with_table(&world).await;
    for statement in [
        "UPDATE t SET v = 2 WHERE id = 1",
        "SELECT v FROM t WHERE id = 1",
        "UPDATE t SET v = 2 WHERE id = 2",
    ] {
        let mut raw = Raw::login(world.address).await;
        raw.tags(&query("BEGIN; UPDATE t SET v = 1 WHERE id = 1")).await;
        world.faults.take_seen();
        mute_all(&world);
        raw.send(&query(statement)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(raw);
        assert!(aborted(&world, Duration::from_millis(1500)).await, "{statement}");
        world.faults.heal();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_a_statement_runs_is_kept() {
    let world = World::start().await;
    let mut holder = with_table(&world).await;
    let mut waiter = Raw::login(world.address).await;
    holder.tags(&query("BEGIN; UPDATE t SET v = 1 WHERE id = 1")).await;
    waiter.send(&query("UPDATE t SET v = 2 WHERE id = 1")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    // More than is read ahead.
    let long = format!("SELECT length('{}')", "x".repeat(200_000));
    let mut rest = query("SELECT v FROM t WHERE id = 1");
    for _ in 0..10 {
        rest.extend_from_slice(&query(&long));
    }
    rest.extend_from_slice(&message(b'S', b""));
    let (mut reading, mut writing) = tokio::io::split(waiter.stream);
    let sender = tokio::spawn(async move {
        tokio::io::AsyncWriteExt::write_all(&mut writing, &rest).await.unwrap();
        writing
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    holder.tags(&query("COMMIT")).await;
    let mut seen = String::new();
    while !seen.ends_with("ZZ") {
        let mut header = [0; 5];
        tokio::io::AsyncReadExt::read_exact(&mut reading, &mut header)
            .await
            .unwrap();
        let mut body = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4];
        tokio::io::AsyncReadExt::read_exact(&mut reading, &mut body)
            .await
            .unwrap();
        seen.push(header[0] as char);
    }
    assert_eq!(seen, format!("CZ{}Z", "TDCZ".repeat(11)));
    drop(sender.await.unwrap());
}
