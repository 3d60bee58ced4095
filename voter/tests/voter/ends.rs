//! How transactions and statements end that their client does not commit: aborted, abandoned, cancelled, taken back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::message::{DirectKind, Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::Work;
use voter::VoterState;

use crate::hostile::{assert_serving, begin, count, with_table};
use crate::rig::{simple, tags};

/// findings: A1, C2. What never ends is ended by an ordered Abort, and what waits for it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_statement_ends_with_its_abort() {
    let mut rig = with_table().await;
    let endless = simple(
        "DO $$BEGIN LOOP BEGIN PERFORM pg_sleep(100); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END$$",
    );
    let endless = match rig.run_refused(&endless).await {
        // pg_sleep is refused in bodies; a plain loop does as well.
        true => simple("DO $$BEGIN LOOP NULL; END LOOP; END$$"),
        false => endless,
    };
    let (transaction, _) = begin(&mut rig, &endless).await;
    let insert = simple("INSERT INTO plain VALUES (1)").encode();
    let behind = rig
        .order(Footprint::everything(), Work::OneShot { exchange: insert })
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    let abort = rig.abort(&transaction).await;
    rig.result(abort).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(behind)).await), "C");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(count(&rig).await, "1");
    assert_serving(&rig);
}

/// findings: C1. What f+1 nodes have abandoned ends, whatever it runs, and its locks are free.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_end_at_the_order_at_which_enough_nodes_abandon_them() {
    let mut rig = with_table().await;
    let (transaction, _) = begin(&mut rig, &simple("DO $$BEGIN LOOP NULL; END LOOP; END$$")).await;
    let insert = simple("INSERT INTO plain VALUES (1)").encode();
    let behind = rig
        .order(Footprint::everything(), Work::OneShot { exchange: insert })
        .await;
    rig.abandon(2, &transaction).await;
    rig.abandon(2, &transaction).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!rig.has_result(behind), "one node's word ends nothing");
    rig.abandon(3, &transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(behind)).await), "C");
    assert_eq!(count(&rig).await, "1");
}

/// The first of two transactions that are abandoned at one order gives its locks to the second, whose Begin is granted and over at
/// once (found by `tests/model`: that Begin was never over, so the voter did not count as having executed anything after it).
#[tokio::test(flavor = "multi_thread")]
async fn a_begin_that_is_granted_by_the_order_that_abandons_it_is_over() {
    let mut rig = with_table().await;
    let (first, order) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1)")).await;
    rig.result(order).await;
    let (second, behind) = begin(&mut rig, &simple("INSERT INTO plain VALUES (2)")).await;
    rig.abandon_all(2, &[&first, &second]).await;
    rig.abandon_all(3, &[&first, &second]).await;
    let refused = rig.result(behind).await;
    assert!(
        matches!(&refused.outcome, Outcome::Refused { sqlstate, .. } if sqlstate == "25P02"),
        "{refused:?}"
    );
    let last = rig.last_order();
    rig.wait_for_state(|state| matches!(state, VoterState::Serving { executed, .. } if executed.0 >= last))
        .await;
    assert_eq!(count(&rig).await, "0");
}

/// A one-shot that waits for locks is taken back at an order; what runs, and what another client asked for, is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_that_waits_is_taken_back() {
    let mut rig = with_table().await;
    let (holds, order) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1)")).await;
    rig.result(order).await;
    let insert = simple("INSERT INTO plain VALUES (2)").encode();
    let waits = rig
        .order(Footprint::everything(), Work::OneShot { exchange: insert })
        .await;
    let cancel = rig.order(Footprint::empty(), Work::Cancel { request: waits }).await;
    assert!(matches!(
        rig.result(waits).await.outcome,
        Outcome::Refused { sqlstate, .. } if sqlstate == "57014"
    ));
    assert_eq!(tags(&rig.whole(ResultKey::Request(cancel)).await), "C");
    let commit = rig.commit(&holds).await;
    rig.result(commit).await;
    rig.run("INSERT INTO plain VALUES (3)").await;
    let ran = rig.last_order();
    let late = rig.order(Footprint::empty(), Work::Cancel { request: ran }).await;
    rig.result(late).await;
    assert_eq!(rig.psql("SELECT id FROM plain ORDER BY id").await, "1\n3");
}

/// A client that says nothing has its transactions abandoned by this voter's node too.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_clients_transactions_are_abandoned() {
    let mut rig = with_table().await;
    let (transaction, order) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1)")).await;
    rig.result(order).await;
    rig.abandon(2, &transaction).await;
    // The rig's client is silent from here on; the rig's limit is two seconds.
    let insert = simple("INSERT INTO plain VALUES (2)").encode();
    let behind = rig
        .order(Footprint::everything(), Work::OneShot { exchange: insert })
        .await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(behind)).await), "C");
    assert_eq!(rig.psql("SELECT id FROM plain").await, "2");
}

/// A statement that is cancelled is not listed; the transaction goes on from its savepoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_statement_leaves_the_transaction_as_it_was() {
    let mut rig = with_table().await;
    let (mut transaction, _) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1)")).await;
    rig.write(&mut transaction, &simple("SAVEPOINT s")).await;
    let large = simple("INSERT INTO plain SELECT i, 'x' FROM generate_series(10, 100000000) i");
    let running = rig.send_direct(Some(&transaction), &large, true).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    rig.send_place(Some(&transaction), Bytes::new(), DirectKind::Cancel { request: 0 })
        .await;
    assert_eq!(rig.direct_outcome(running).await, Outcome::Unavailable);
    let back = rig.write(&mut transaction, &simple("ROLLBACK TO SAVEPOINT s")).await;
    assert_eq!(tags(&back), "C");
    rig.write(&mut transaction, &simple("INSERT INTO plain VALUES (2)"))
        .await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let commit = rig.commit(&transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(
        rig.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM plain")
            .await,
        "1,2"
    );
}

/// What is said to have run elsewhere, and never ends here, ends with the client's cancel or the transaction's end.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_replayed_can_be_cancelled() {
    let mut rig = with_table().await;
    let endless = simple("INSERT INTO plain SELECT i, 'x' FROM generate_series(10, 100000000) i");
    for cancels in [true, false] {
        let (mut transaction, order) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1)")).await;
        rig.result(order).await;
        let before = transaction.clone();
        rig.replay(&mut transaction, &simple("SAVEPOINT s")).await;
        rig.replay(&mut transaction, &endless).await;
        rig.send_place(Some(&transaction), Bytes::new(), DirectKind::Word).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let started = Instant::now();
        if cancels {
            rig.send_place(Some(&before), Bytes::new(), DirectKind::Cancel { request: 0 })
                .await;
            transaction = before;
            let next = rig
                .write(&mut transaction, &simple("INSERT INTO plain VALUES (2)"))
                .await;
            assert_eq!(tags(&next), "C");
        }
        rig.abort(&transaction).await;
        rig.run("DELETE FROM plain").await;
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
}

/// An Extend that was cancelled while it waited for its locks does not run when it gets them.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_extend_never_runs() {
    let mut rig = with_table().await;
    rig.run("CREATE TABLE other (id int PRIMARY KEY)").await;
    let (transaction, order) = begin(&mut rig, &simple("INSERT INTO other VALUES (1)")).await;
    rig.result(order).await;
    let mut waiting = rig.new_transaction(Footprint::empty());
    rig.begin_snapshot(&mut waiting).await;
    let before = (waiting.count, waiting.chain, waiting.writes.clone());
    let extend = rig
        .extend(
            &mut waiting,
            Footprint::everything(),
            &simple("INSERT INTO plain VALUES (7)"),
        )
        .await;
    (waiting.count, waiting.chain, waiting.writes) = before;
    rig.send_place(Some(&waiting), Bytes::new(), DirectKind::Cancel { request: extend })
        .await;
    let commit = rig.commit(&transaction).await;
    rig.result(commit).await;
    let commit = rig.commit(&waiting).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(count(&rig).await, "0");
}

/// A proxy that was killed and is back at once says that it lives; what it had open before has nobody.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_an_earlier_start_of_their_client_are_abandoned() {
    let mut rig = with_table().await;
    let (transaction, order) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1)")).await;
    rig.result(order).await;
    rig.abandon(2, &transaction).await;
    let started = Instant::now();
    let number = (1 << 32) | 7;
    rig.order_again(number, "INSERT INTO plain VALUES (2)").await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(number)).await), "C");
    assert!(
        started.elapsed() < Duration::from_millis(1500),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(rig.psql("SELECT id FROM plain").await, "2");
}
