//! The rows that the proxy keeps of cursors WITH HOLD, and how many: on three real voters with a server each (decision 0055).
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::Duration;

use support::World;
use support::raw::{Answer, Raw, extended, query};

const TABLE: &str =
    "CREATE TABLE held (id int PRIMARY KEY, v text); INSERT INTO held SELECT g, 'v' || g FROM generate_series(1, 7) g";

/// A format that the proxy does not make is refused, and the cursor stays where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_format_that_is_not_kept_is_refused() {
    let world = World::start_voters().await;
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("DECLARE c CURSOR WITH HOLD FOR SELECT 1.5 AS n")).await;
    raw.send(&extended("FETCH c", &[1])).await;
    let answers = raw.until_ready().await;
    let error = answers.iter().find(|answer| answer.tag == b'E').unwrap();
    assert_eq!(error.field(b'C').as_deref(), Some("0A000"));
    assert!(error.field(b'H').unwrap().contains("text format"), "{answers:?}");
    assert_eq!(raw.tags(&query("FETCH c")).await, "TDCZ");
}

/// The rows are those of the cursor's transaction, whatever is committed later, and whoever dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_are_those_of_the_transaction() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("BEGIN; INSERT INTO held VALUES (8, 'mine')")).await;
    raw.tags(&query(
        "DECLARE c CURSOR WITH HOLD FOR SELECT id FROM held ORDER BY id DESC",
    ))
    .await;
    raw.tags(&query("INSERT INTO held VALUES (9, 'too late')")).await;
    assert_eq!(raw.tags(&query("COMMIT")).await, "CZ");
    client.batch_execute("DELETE FROM held; DROP TABLE held").await.unwrap();
    raw.send(&query("FETCH ALL FROM c")).await;
    let rows: Vec<_> = raw
        .until_ready()
        .await
        .into_iter()
        .filter(|answer| answer.tag == b'D')
        .collect();
    assert_eq!(rows.len(), 8);
    assert!(rows[0].body.ends_with(b"8"), "{rows:?}");
}

fn error_of(answers: &[Answer]) -> (String, String) {
    let error = answers.iter().find(|answer| answer.tag == b'E').unwrap();
    (error.field(b'C').unwrap(), error.field(b'H').unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_cursors_are_bounded_in_number_and_bytes() {
    let world = World::start_voters_and(|config| {
        config.held_cursors_max = 3;
        config.held_bytes_max = 100_000;
    })
    .await;
    world
        .connect()
        .await
        .batch_execute("CREATE TABLE noted (n int)")
        .await
        .unwrap();
    let mut raw = Raw::login(world.address).await;
    for name in ["a", "b", "c"] {
        assert_eq!(
            raw.tags(&query(&format!("DECLARE {name} CURSOR WITH HOLD FOR SELECT 1")))
                .await,
            "CZ"
        );
    }
    raw.send(&query("DECLARE d CURSOR WITH HOLD FOR SELECT 1")).await;
    let (sqlstate, hint) = error_of(&raw.until_ready().await);
    assert_eq!(sqlstate, "53400");
    assert!(hint.contains("CLOSE"), "{hint}");
    assert_eq!(
        raw.tags(&query("CLOSE a; DECLARE d CURSOR WITH HOLD FOR SELECT 1; FETCH d"))
            .await,
        "CCTDCZ"
    );
    assert_eq!(raw.tags(&query("CLOSE ALL")).await, "CZ");
    // Too many rows: the COMMIT says so and has no effect, and what was held before still is.
    assert_eq!(
        raw.tags(&query("DECLARE few CURSOR WITH HOLD FOR SELECT 1")).await,
        "CZ"
    );
    raw.tags(&query("BEGIN; INSERT INTO noted VALUES (1)")).await;
    raw.tags(&query(
        "DECLARE many CURSOR WITH HOLD FOR SELECT repeat('x', 1000) FROM generate_series(1, 200)",
    ))
    .await;
    raw.send(&query("COMMIT")).await;
    let answers = raw.until_ready().await;
    assert_eq!(error_of(&answers).0, "53400");
    assert_eq!(answers.last().unwrap().body, b"I");
    assert_eq!(raw.tags(&query("FETCH few; SELECT * FROM noted")).await, "TDCTCZ");
    assert_eq!(raw.tags(&query("FETCH many")).await, "EZ");
}

/// A large result goes through a file: in both directions, and in pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_result_is_kept_in_a_file() {
    let world = World::start_voters().await;
    let mut raw = Raw::login(world.address).await;
    let rows = 20_000_usize;
    let declare = format!(
        "DECLARE c CURSOR WITH HOLD FOR SELECT g, repeat('x', 300) FROM generate_series(1, {rows}) g ORDER BY g"
    );
    assert_eq!(raw.tags(&query(&declare)).await, "CZ");
    let numbers = |answers: Vec<Answer>| -> Vec<usize> {
        let rows = answers.into_iter().filter(|answer| answer.tag == b'D');
        rows.map(|row| {
            let length = u32::from_be_bytes(row.body[2..6].try_into().unwrap()) as usize;
            String::from_utf8_lossy(&row.body[6..6 + length]).parse().unwrap()
        })
        .collect()
    };
    let mut expected = 1;
    while expected <= rows {
        raw.send(&query("FETCH 777 FROM c")).await;
        let fetched = numbers(raw.until_ready().await);
        let end = (expected + 777).min(rows + 1);
        assert_eq!(fetched, (expected..end).collect::<Vec<_>>());
        expected = end;
    }
    raw.send(&query("MOVE 1 IN c; FETCH BACKWARD ALL FROM c")).await;
    assert_eq!(numbers(raw.until_ready().await), (1..=rows).rev().collect::<Vec<_>>());
    raw.send(&query("FETCH ABSOLUTE 12345 FROM c")).await;
    assert_eq!(numbers(raw.until_ready().await), [12345]);
    raw.send(&extended("FETCH ALL FROM c", &[1, 0])).await;
    let answers = tokio::time::timeout(Duration::from_secs(20), raw.until_ready())
        .await
        .unwrap();
    let binary: Vec<_> = answers.iter().filter(|answer| answer.tag == b'D').collect();
    assert_eq!(binary.len(), rows - 12345);
    assert_eq!(binary[0].body[6..10], 12346_i32.to_be_bytes());
}

/// Nothing is left of a held cursor in the backends of the database nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_are_left_without_cursors() {
    let world = World::start_voters().await;
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("DECLARE c CURSOR WITH HOLD FOR SELECT 1")).await;
    raw.tags(&query("BEGIN; DECLARE d CURSOR WITH HOLD FOR SELECT 2; COMMIT"))
        .await;
    for _ in 0..5 {
        raw.send(&query("SELECT count(*) FROM pg_cursors WHERE name <> ''"))
            .await;
        let answers = raw.until_ready().await;
        let row = answers.iter().find(|answer| answer.tag == b'D').unwrap();
        assert!(row.body.ends_with(b"0"), "{row:?}");
    }
}
