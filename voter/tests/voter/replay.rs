use ordering::message::{Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{Isolation, Work};
use voter::VoterState;

use crate::reads::with_accounts;
use crate::rig::{Rig, shop, shop_shared, simple, tags};

const ADD: &str = "UPDATE counter SET value = value + 1 WHERE id = 1";

async fn with_counter() -> Rig {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE counter (id int PRIMARY KEY, value int); INSERT INTO counter VALUES (1, 0)")
        .await;
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_runs_twice_when_the_server_is_killed() {
    let mut rig = with_counter().await;
    for round in 1..=3 {
        for _ in 0..20 {
            rig.run(ADD).await;
        }
        let mut transaction = rig.new_transaction(Footprint::everything());
        rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(ADD))
            .await;
        rig.write(&mut transaction, &simple(ADD)).await;
        let commit = rig.commit(&transaction).await;
        rig.result(commit).await;
        // Not flushed: synchronous_commit is off and the WAL writer sleeps for 10 s.
        rig.server.kill();
        rig.wait_for_state(|state| matches!(state, VoterState::Down(_))).await;
        rig.server.restart();
        rig.wait_until_serving().await;
        let last = rig.last_order();
        rig.wait_for_state(|state| matches!(state, VoterState::Serving { executed, .. } if executed.0 >= last))
            .await;
        assert_eq!(rig.psql("SELECT value FROM counter").await, (round * 22).to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_voter_resumes_from_its_floor() {
    let mut rig = with_counter().await;
    for _ in 0..5 {
        rig.run(ADD).await;
    }
    rig.wait_until_flushed(rig.last_order()).await;
    rig.stop_voter().await;
    let order = rig
        .order(
            Footprint::everything(),
            Work::OneShot {
                exchange: simple(ADD).encode(),
            },
        )
        .await;
    rig.forget_results();
    rig.start_voter();
    rig.result(order).await;
    assert_eq!(rig.psql("SELECT value FROM counter").await, "6");
    rig.wait_until_serving().await;
    rig.wait_until_flushed(order).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_survives_a_restart_of_the_voter() {
    let mut rig = with_counter().await;
    rig.wait_until_flushed(rig.last_order()).await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    let begin = rig
        .begin(&mut transaction, Isolation::ReadCommitted, &simple(ADD))
        .await;
    rig.write(&mut transaction, &simple(ADD)).await;
    rig.stop_voter().await;
    rig.forget_results();
    rig.start_voter();
    assert!(
        matches!(rig.result(begin).await.outcome, Outcome::Done { .. }),
        "it runs again: the voter is not far behind"
    );
    rig.wait_until_serving().await;
    let commit = rig.commit(&transaction).await;
    assert!(matches!(rig.result(commit).await.outcome, Outcome::Done { .. }));
    assert_eq!(rig.psql("SELECT value FROM counter").await, "2");
}

/// Statements that the voter did not get are not waited for when the end of their transaction is ordered already.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_does_not_wait_for_direct_statements() {
    let mut rig = with_counter().await;
    rig.wait_until_flushed(rig.last_order()).await;
    rig.stop_voter().await;
    let mut last = 0;
    for _ in 0..20 {
        let mut transaction = rig.new_transaction(Footprint::everything());
        rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(ADD))
            .await;
        rig.missed_write(&mut transaction, &simple(ADD));
        rig.extend(&mut transaction, Footprint::everything(), &simple(ADD))
            .await;
        last = rig.commit_with(&transaction, Vec::new()).await;
    }
    rig.start_voter();
    let started = std::time::Instant::now();
    assert!(matches!(rig.result(last).await.outcome, Outcome::Done { .. }));
    // Each would wait 400 ms.
    assert!(
        started.elapsed() < std::time::Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(rig.psql("SELECT value FROM counter").await, "60");
}

/// A certified reader that leaves no position behind runs again after a restart, reads what was written after it, and is
/// no contradiction: it was committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_certified_reader_that_runs_again_reads_later_data_and_was_committed() {
    let mut rig = with_accounts().await;
    // Keeps the floor below what follows.
    let mut open = rig.new_transaction(shop(3));
    let update = |shop: i64| simple(&format!("UPDATE account SET balance = 7 WHERE shop = {shop}"));
    let order = rig.begin(&mut open, Isolation::ReadCommitted, &update(3)).await;
    rig.result(order).await;
    let mut reader = rig.new_transaction(shop_shared(1));
    let sum = simple("SELECT sum(balance) FROM account WHERE shop = 1");
    let order = rig.begin(&mut reader, Isolation::RepeatableRead, &sum).await;
    rig.result(order).await;
    let words = rig.words(&reader).await;
    assert_eq!(words.len(), 2);
    let commit = rig.commit_with(&reader, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    let updated = rig.one_shot(shop(1), &update(1)).await;
    assert_eq!(tags(&updated), "C");
    rig.stop_voter().await;
    rig.forget_results();
    rig.start_voter();
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    rig.wait_until_serving().await;
    let abort = rig.abort(&open).await;
    rig.result(abort).await;
}
