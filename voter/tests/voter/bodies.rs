//! Transactions whose large parts are kept outside the order.

use std::time::{Duration, Instant};

use ordering::message::{Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{Exchange, Isolation};

use crate::rig::{Rig, Transaction, messages, simple, sqlstate};

const PIECE_BYTES: usize = 1 << 20;

/// A rig with a table, and a transaction that has begun to copy into it.
async fn copying(rig: &mut Rig) -> Transaction {
    rig.run("CREATE TABLE plain (id integer, name text)").await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    let start = Exchange::CopyStart {
        text: "COPY plain FROM STDIN".into(),
    };
    let begin = rig.begin(&mut transaction, Isolation::ReadCommitted, &start).await;
    assert_eq!(sqlstate(&rig.whole(ResultKey::Request(begin)).await), None);
    transaction
}

/// Exactly a piece of rows.
fn piece(number: usize) -> Exchange {
    let row = format!("{number}\t{}\n", "x".repeat(1022 - number.to_string().len()));
    assert_eq!(row.len(), 1024);
    Exchange::CopyData {
        data: row.repeat(PIECE_BYTES / 1024).into(),
    }
}

const END: Exchange = Exchange::CopyEnd { failure: None };

async fn rows(rig: &Rig) -> usize {
    rig.psql("SELECT count(*) FROM plain").await.parse().unwrap()
}

async fn committed(rig: &Rig, commit: u64) -> Vec<(char, Vec<u8>)> {
    messages(&rig.whole(ResultKey::Request(commit)).await)
}

/// Waits until the store is empty.
async fn is_emptied(rig: &Rig) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while rig.bodies.bytes() > 0 {
        assert!(Instant::now() < deadline, "{} bytes are left", rig.bodies.bytes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_many_bodies_commits_and_is_deleted_when_all_databases_have_it() {
    let mut rig = Rig::start().await;
    let mut transaction = copying(&mut rig).await;
    let started = Instant::now();
    for number in 0..50 {
        let stored = rig.store(&transaction, &piece(number)).await;
        assert!(stored.encode().len() < 64, "what is listed is small");
        rig.write(&mut transaction, &stored).await;
    }
    assert!(rig.bodies.bytes() > 50 << 20);
    rig.write(&mut transaction, &END).await;
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, vec![('C', b"COMMIT\0".to_vec())]);
    eprintln!("50 MiB in {:?}", started.elapsed());
    assert_eq!(rows(&rig).await, 50 * 1024);
    rig.wait_until_flushed(commit).await;
    assert!(rig.bodies.bytes() > 50 << 20, "the other databases may need it");
    for machine in [2, 3] {
        rig.bodies.flushed(ordering::identifiers::MachineId(machine), commit);
    }
    is_emptied(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_missing_is_fetched_while_the_statement_waits() {
    let mut rig = Rig::start().await;
    let mut transaction = copying(&mut rig).await;
    let stored = rig.store_elsewhere(&transaction, &piece(1));
    rig.write(&mut transaction, &stored).await;
    rig.write(&mut transaction, &END).await;
    assert!(rig.bodies.bytes() > 0, "the voter's word says that it has it");
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, vec![('C', b"COMMIT\0".to_vec())]);
    assert_eq!(rows(&rig).await, 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_without_the_body_cannot_say_and_runs_it_at_the_commit() {
    let mut rig = Rig::start().await;
    let mut transaction = copying(&mut rig).await;
    let pieces: Vec<_> = (0..3).map(piece).collect();
    for piece in &pieces {
        let stored = rig.store(&transaction, piece).await;
        rig.write(&mut transaction, &stored).await;
    }
    rig.write(&mut transaction, &END).await;
    let words = rig.words(&transaction).await;
    assert_eq!(words.len(), 2);
    // The machine loses its disk with the bodies: after a restart the direct writes are missing too.
    rig.stop_voter().await;
    rig.reopen_bodies(true);
    rig.start_voter();
    rig.wait_until_serving().await;
    let commit = rig.commit_with(&transaction, words).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!rig.has_result(commit), "it waits for the bodies");
    assert_eq!(rig.psql("SELECT 1").await, "1");
    for piece in &pieces {
        rig.store_elsewhere(&transaction, piece);
    }
    assert_eq!(committed(&rig, commit).await, vec![('C', b"COMMIT\0".to_vec())]);
    assert_eq!(rows(&rig).await, 3 * 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_whose_body_does_not_come_is_not_answered_for() {
    let mut rig = Rig::start().await;
    let mut transaction = copying(&mut rig).await;
    let (stored, ..) = Rig::stored(&transaction, &piece(1));
    let key = rig.send_direct(Some(&transaction), &stored, true).await;
    assert_eq!(rig.direct_outcome(key).await, Outcome::Unavailable);
    rig.missed_write(&mut transaction, &stored);
    let abort = rig.abort(&transaction).await;
    assert_eq!(committed(&rig, abort).await, vec![('C', b"ROLLBACK\0".to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_finds_the_bodies_on_the_disk() {
    let mut rig = Rig::start().await;
    let mut transaction = copying(&mut rig).await;
    for number in 0..3 {
        let stored = rig.store(&transaction, &piece(number)).await;
        rig.write(&mut transaction, &stored).await;
    }
    rig.write(&mut transaction, &END).await;
    let words = rig.words(&transaction).await;
    rig.stop_voter().await;
    rig.reopen_bodies(false);
    let commit = rig.commit_with(&transaction, words).await;
    rig.start_voter();
    rig.wait_until_serving().await;
    assert_eq!(committed(&rig, commit).await, vec![('C', b"COMMIT\0".to_vec())]);
    assert_eq!(rows(&rig).await, 3 * 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_deletes_the_bodies() {
    let mut rig = Rig::start().await;
    let mut transaction = copying(&mut rig).await;
    let stored = rig.store(&transaction, &piece(1)).await;
    rig.write(&mut transaction, &stored).await;
    assert!(rig.bodies.bytes() > 0);
    let abort = rig.abort(&transaction).await;
    assert_eq!(committed(&rig, abort).await, vec![('C', b"ROLLBACK\0".to_vec())]);
    is_emptied(&rig).await;
    assert_eq!(rows(&rig).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_words_may_not_name_a_body() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id integer, name text)").await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    let insert = simple("INSERT INTO plain VALUES (1, 'one')");
    let begin = rig.begin(&mut transaction, Isolation::ReadCommitted, &insert).await;
    rig.whole(ResultKey::Request(begin)).await;
    let long = format!("INSERT INTO plain VALUES (2, '{}')", "x".repeat(300_000));
    let (stored, ..) = Rig::stored(&transaction, &simple(&long));
    rig.missed_write(&mut transaction, &stored);
    // Nobody may have the body: no voter waits for it.
    let commit = rig.commit_with(&transaction, Vec::new()).await;
    match rig.result(commit).await.outcome {
        Outcome::Refused { sqlstate, .. } => assert_eq!(sqlstate, "BF007"),
        other => panic!("{other:?}"),
    }
    assert_eq!(rows(&rig).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_statement_runs_from_its_body_also_as_the_first() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id integer, name text)").await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    let long = |id: usize| simple(&format!("INSERT INTO plain VALUES ({id}, '{}')", "x".repeat(300_000)));
    let first = rig.store(&transaction, &long(1)).await;
    let begin = rig.begin(&mut transaction, Isolation::ReadCommitted, &first).await;
    let begun = rig.whole(ResultKey::Request(begin)).await;
    assert_eq!(messages(&begun), vec![('C', b"INSERT 0 1\0".to_vec())]);
    let second = rig.store(&transaction, &long(2)).await;
    rig.extend(&mut transaction, Footprint::everything(), &second).await;
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, vec![('C', b"COMMIT\0".to_vec())]);
    assert_eq!(rig.psql("SELECT sum(length(name)) FROM plain").await, "600000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_checked_like_every_statement_when_it_runs() {
    let mut rig = Rig::start().await;
    let refused = |outcome| match outcome {
        Outcome::Refused { sqlstate, .. } => sqlstate,
        other => panic!("{other:?}"),
    };
    let long = "x".repeat(300_000);
    let mut transaction = rig.new_transaction(Footprint::everything());
    let vacuum = rig.store(&transaction, &simple(&format!("VACUUM /* {long} */"))).await;
    let begin = rig.begin(&mut transaction, Isolation::ReadCommitted, &vacuum).await;
    assert_eq!(refused(rig.result(begin).await.outcome), "BF004");
    let abort = rig.abort(&transaction).await;
    rig.result(abort).await;
    // Less is held than the statement needs.
    let mut narrow = rig.new_transaction(crate::rig::shop(1));
    let create = rig
        .store(
            &narrow,
            &simple(&format!("CREATE TABLE other (id integer) /* {long} */")),
        )
        .await;
    let begin = rig.begin(&mut narrow, Isolation::ReadCommitted, &create).await;
    assert_eq!(refused(rig.result(begin).await.outcome), "BF003");
    let abort = rig.abort(&narrow).await;
    rig.result(abort).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_count_for_the_size_of_a_transaction() {
    let mut rig = Rig::start().await;
    rig.stop_voter().await;
    rig.transaction_bytes_max = 2 << 20;
    rig.start_voter();
    rig.wait_until_serving().await;
    let mut transaction = copying(&mut rig).await;
    let first = rig.store(&transaction, &piece(1)).await;
    rig.write(&mut transaction, &first).await;
    let second = rig.store(&transaction, &piece(2)).await;
    let key = rig.send_direct(Some(&transaction), &second, true).await;
    match rig.direct_outcome(key).await {
        Outcome::Refused { sqlstate, hint, .. } => {
            assert_eq!(sqlstate, "54000");
            assert!(hint.contains("transaction_bytes_max"), "{hint}");
        }
        other => panic!("{other:?}"),
    }
    rig.missed_write(&mut transaction, &second);
    let commit = rig.commit_with(&transaction, Vec::new()).await;
    match rig.result(commit).await.outcome {
        Outcome::Refused { sqlstate, .. } => assert_eq!(sqlstate, "54000"),
        other => panic!("{other:?}"),
    }
}
