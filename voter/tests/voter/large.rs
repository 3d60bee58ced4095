//! Results that are larger than what travels at once.

use ordering::message::{CHUNK_BYTES, Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{Isolation, Work};
use sql::result::{chunk_digest, digests};

use crate::rig::{Rig, simple, tags};

/// About 1 KiB a row.
fn rows(count: usize) -> String {
    format!("SELECT i, repeat(md5(i::text), 31) FROM generate_series(1, {count}) i")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_result_is_kept_in_chunks_until_it_is_released() {
    let mut rig = Rig::start().await;
    rig.stay_alive();
    for text in [rows(100_000), format!("COPY ({}) TO STDOUT", rows(100_000))] {
        let key = rig.send_direct(None, &simple(&text), true).await;
        let Outcome::Large {
            sequence,
            multiset,
            status,
            chunks,
        } = rig.direct_outcome(key).await
        else {
            panic!("{text} is not large");
        };
        assert!((95..=100).contains(&chunks.len()), "{} chunks", chunks.len());
        let whole = rig.whole(key).await;
        assert!(whole.messages.len() > 95 << 20);
        assert!(
            rig.spool.bytes_used() == whole.messages.len() as u64,
            "hashes of rows are gone"
        );
        let digests = digests(&whole.messages, status).unwrap();
        assert_eq!((digests.sequence, digests.multiset), (sequence, multiset));
        let first = rig.chunk(key, 0).await.unwrap();
        assert_eq!(chunk_digest(&first), chunks[0]);
        assert!(first.len() > CHUNK_BYTES && first.len() < CHUNK_BYTES + 2000);
        assert_eq!(rig.chunk(key, chunks.len() as u32).await, None);
        rig.release(key).await;
        assert_eq!(rig.chunk(key, 0).await, None);
        assert_eq!(rig.spool.bytes_used(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_many_rows_ends_the_last_chunk() {
    let mut rig = Rig::start().await;
    let text = "SELECT repeat('x', 1000), 1 / (i - 5000) FROM generate_series(1, 6000) i";
    let key = rig.send_direct(None, &simple(text), true).await;
    let whole = rig.whole(key).await;
    let tags = tags(&whole);
    assert!(
        tags.starts_with("TDD") && tags.ends_with("DE"),
        "{} messages",
        tags.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_answered_much_commits_on_words() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, filler text)").await;
    let insert = "INSERT INTO plain SELECT i, repeat('y', 1000) FROM generate_series(1, 3000) i RETURNING *";
    let mut transaction = rig.new_transaction(Footprint::everything());
    let begin = simple(insert);
    let order = rig.begin(&mut transaction, Isolation::ReadCommitted, &begin).await;
    assert!(matches!(rig.result(order).await.outcome, Outcome::Large { .. }));
    // The list runs again where its backend cannot be trusted: the answers are the same.
    let order = rig.commit(&transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(order)).await), "C");
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "3000");
}

/// What a voter refuses with, and the limit that its hint names.
fn refused(outcome: &Outcome) -> (&str, &str) {
    let Outcome::Refused { sqlstate, hint, .. } = outcome else {
        panic!("{outcome:?} is not refused");
    };
    let limit = "results_bytes_max";
    assert!(hint.contains(limit), "{hint}");
    (sqlstate, limit)
}

/// What was being written when it was given up goes a moment later.
async fn until_nothing_is_kept(rig: &Rig) {
    let started = std::time::Instant::now();
    while rig.spool.bytes_used() > 0 {
        assert!(started.elapsed() < std::time::Duration::from_secs(2));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Rows without end.
const ENDLESS: &str = "SELECT repeat('x', 1000) FROM generate_series(1, 100000) a, generate_series(1, 100000) b";

#[tokio::test(flavor = "multi_thread")]
async fn a_read_ends_where_its_result_becomes_too_large() {
    let mut rig = Rig::start().await;
    rig.stop_voter().await;
    rig.result_bytes_max = 3 << 20;
    rig.start_voter();
    rig.wait_until_serving().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY)").await;
    let started = std::time::Instant::now();
    let key = rig.send_direct(None, &simple(ENDLESS), true).await;
    assert_eq!(refused(&rig.direct_outcome(key).await).0, "54000");
    let work = Work::Read {
        transaction: None,
        writes_before: 0,
        exchange: simple(ENDLESS).encode(),
    };
    let order = rig.order(Footprint::everything(), work).await;
    assert_eq!(refused(&rig.result(order).await.outcome).0, "54000");
    let mut transaction = rig.new_transaction(Footprint::everything());
    let insert = simple("INSERT INTO plain VALUES (1)");
    rig.begin(&mut transaction, Isolation::ReadCommitted, &insert).await;
    let key = rig.send_direct(Some(&transaction), &simple(ENDLESS), false).await;
    assert_eq!(refused(&rig.direct_outcome(key).await).0, "54000");
    // The transaction goes on, on another backend.
    let key = rig
        .send_direct(Some(&transaction), &simple("SELECT id FROM plain"), false)
        .await;
    assert_eq!(tags(&rig.whole(key).await), "TDC");
    rig.commit(&transaction).await;
    rig.run("SELECT 1").await;
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "1");
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
    let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%generate_series%'";
    assert_eq!(rig.psql(running).await, "1", "only this one");
    until_nothing_is_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reads_of_a_client_that_is_silent_end() {
    let mut rig = Rig::start().await;
    let key = rig.send_direct(None, &simple(ENDLESS), true).await;
    assert!(matches!(rig.direct_outcome(key).await, Outcome::Unavailable));
    until_nothing_is_kept(&rig).await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%generate_series%'";
    assert_eq!(rig.psql(running).await, "1", "only this one");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_a_voter_refuses_a_read_and_goes_on() {
    let mut rig = Rig::start().await;
    rig.stop_voter().await;
    rig.spool = spool::SpoolDirectory::new(std::env::temp_dir(), 5 << 20);
    rig.start_voter();
    rig.wait_until_serving().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, filler text)").await;
    rig.run("INSERT INTO plain SELECT i, repeat('y', 1000) FROM generate_series(1, 10000) i")
        .await;
    let key = rig.send_direct(None, &simple("SELECT * FROM plain"), true).await;
    assert_eq!(refused(&rig.direct_outcome(key).await), ("53100", "results_bytes_max"));
    assert_eq!(rig.spool.bytes_used(), 0);
    let exchange = simple("UPDATE plain SET id = -id WHERE id = 7").encode();
    let order = rig.order(Footprint::everything(), Work::OneShot { exchange }).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(order)).await), "C");
    let key = rig
        .send_direct(None, &simple("SELECT * FROM plain LIMIT 3000"), true)
        .await;
    assert!(matches!(rig.direct_outcome(key).await, Outcome::Large { .. }));
}
