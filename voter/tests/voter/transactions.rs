use ordering::message::{Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{Exchange, Isolation, Work};

use crate::reads::with_accounts;
use crate::rig::{Rig, messages, shop, simple, sqlstate, tags};

const INSERT: &str = "INSERT INTO plain VALUES (1)";

async fn with_table() -> Rig {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, name text)").await;
    rig
}

async fn committed(rig: &Rig, order: u64) -> String {
    let result = rig.whole(ResultKey::Request(order)).await;
    assert_eq!(result.status, b'I');
    String::from_utf8_lossy(&messages(&result).last().unwrap().1)
        .trim_end_matches('\0')
        .to_owned()
}

/// A primary has some hundreds of operations in flight: many applications begin in the same moment.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_decided_in_one_burst_runs() {
    let mut rig = with_accounts().await;
    rig.stop_voter().await;
    let mut transactions = Vec::new();
    for id in 0..60 {
        // One-shots beside the transactions, of which only so many may be open.
        rig.order(
            Footprint::empty(),
            Work::OneShot {
                exchange: simple("SELECT 1").encode(),
            },
        )
        .await;
        let mut transaction = rig.new_transaction(shop(id + 10));
        let update = simple(&format!("UPDATE account SET balance = 1 WHERE shop = {}", id + 10));
        let order = rig.begin(&mut transaction, Isolation::ReadCommitted, &update).await;
        transactions.push((transaction, order));
    }
    rig.start_voter();
    rig.wait_until_serving().await;
    for (transaction, order) in &transactions {
        assert_eq!(tags(&rig.whole(ResultKey::Request(*order)).await), "C");
        rig.abort(transaction).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_commits_what_it_wrote() {
    let mut rig = with_table().await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    let begin = rig
        .begin(&mut transaction, Isolation::ReadCommitted, &simple(INSERT))
        .await;
    let begun = rig.whole(ResultKey::Request(begin)).await;
    assert_eq!((tags(&begun).as_str(), begun.status), ("C", b'T'));
    let written = rig
        .write(&mut transaction, &simple("INSERT INTO plain VALUES (2)"))
        .await;
    assert_eq!((tags(&written).as_str(), written.status), ("C", b'T'));
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "0");
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, "COMMIT");
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "2");
    assert_eq!(
        rig.psql("SELECT granted, \"order\" FROM cloudbft.applied").await,
        format!("{commit}|0")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_missed_writes_runs_the_list_at_commit() {
    let mut rig = with_table().await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(INSERT))
        .await;
    rig.missed_write(&mut transaction, &simple("INSERT INTO plain VALUES (2, 'missed')"));
    let update = simple("UPDATE plain SET name = 'late' WHERE id = 2");
    let late = rig.send_direct(Some(&transaction), &update, true).await;
    rig.missed_write(&mut transaction, &update);
    assert_eq!(rig.direct_outcome(late).await, Outcome::Unavailable);
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, "COMMIT");
    assert_eq!(rig.psql("SELECT name FROM plain WHERE id = 2").await, "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_lists_other_writes_gets_what_it_lists() {
    let mut rig = with_table().await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(INSERT))
        .await;
    rig.write(&mut transaction, &simple("INSERT INTO plain VALUES (2)"))
        .await;
    transaction.writes.pop();
    rig.missed_write(&mut transaction, &simple("INSERT INTO plain VALUES (3)"));
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, "COMMIT");
    assert_eq!(
        rig.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM plain")
            .await,
        "1,3"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_arrive_out_of_order_run_in_order() {
    let mut rig = with_table().await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(INSERT))
        .await;
    let first = simple("UPDATE plain SET name = 'a'");
    let second = simple("UPDATE plain SET name = name || 'b'");
    let before = (transaction.count, transaction.chain);
    rig.missed_write(&mut transaction, &first);
    let late = rig.send_direct(Some(&transaction), &second, true).await;
    let after = (transaction.count, transaction.chain);
    (transaction.count, transaction.chain) = before;
    let early = rig.send_direct(Some(&transaction), &first, true).await;
    (transaction.count, transaction.chain) = after;
    rig.missed_write(&mut transaction, &second);
    assert_eq!(tags(&rig.whole(late).await), "C");
    let _ = early;
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, "COMMIT");
    assert_eq!(rig.psql("SELECT name FROM plain").await, "ab");
}

/// A voter that is late (here: its Commit before takes long) must not stay late by running everything twice.
#[tokio::test(flavor = "multi_thread")]
async fn statements_that_arrive_while_the_begin_waits_run_after_it() {
    let mut rig = with_accounts().await;
    rig.run("INSERT INTO account SELECT 7, i, 100 FROM generate_series(1, 200000) i")
        .await;
    rig.wait_until_serving().await;
    let update = |balance: &str, id: u32| {
        let text = format!("UPDATE account SET balance = {balance} WHERE shop = 7 AND id = {id}");
        simple(&text)
    };
    let mut before = rig.new_transaction(shop(7));
    rig.begin(&mut before, Isolation::ReadCommitted, &update("1", 1)).await;
    rig.missed_write(
        &mut before,
        &simple("UPDATE account SET balance = balance + 1 WHERE shop = 7"),
    );
    let mut transaction = rig.new_transaction(shop(7));
    let begin = rig
        .begin(&mut transaction, Isolation::ReadCommitted, &update("balance + 1", 2))
        .await;
    let committed_before = rig.commit(&before).await;
    let written = rig
        .send_direct(Some(&transaction), &update("balance + 1", 3), true)
        .await;
    rig.missed_write(&mut transaction, &update("balance + 1", 3));
    assert_eq!(committed(&rig, committed_before).await, "COMMIT");
    assert_eq!(rig.whole(ResultKey::Request(begin)).await.status, b'T');
    assert_eq!(tags(&rig.whole(written).await), "C");
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, "COMMIT");
    let balances = "SELECT string_agg(balance::text, ',' ORDER BY id) FROM account WHERE shop = 7 AND id <= 3";
    assert_eq!(rig.psql(balances).await, "2,102,102");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_transaction_rolls_back_whatever_ends_it() {
    let mut rig = with_table().await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(INSERT))
        .await;
    let failed = rig.write(&mut transaction, &simple(INSERT)).await;
    assert_eq!((sqlstate(&failed).as_deref(), failed.status), (Some("23505"), b'E'));
    let after = rig
        .write(&mut transaction, &simple("INSERT INTO plain VALUES (2)"))
        .await;
    assert_eq!(sqlstate(&after).as_deref(), Some("25P02"));
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, "ROLLBACK");
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_undoes_and_lets_the_next_one_in() {
    let mut rig = with_table().await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    let mut other = rig.new_transaction(Footprint::everything());
    rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(INSERT))
        .await;
    let waits = rig.begin(&mut other, Isolation::ReadCommitted, &simple(INSERT)).await;
    let abort = rig.abort(&transaction).await;
    assert_eq!(committed(&rig, abort).await, "ROLLBACK");
    let begun = rig.whole(ResultKey::Request(waits)).await;
    assert_eq!(begun.status, b'T');
    let commit = rig.commit(&other).await;
    assert_eq!(committed(&rig, commit).await, "COMMIT");
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_runs_in_pieces() {
    let mut rig = with_table().await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    let start = Exchange::CopyStart {
        text: "COPY plain FROM STDIN".into(),
    };
    let begin = rig.begin(&mut transaction, Isolation::ReadCommitted, &start).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(begin)).await), "G");
    for piece in ["1\ton", "e\n2\ttwo\n"] {
        let data = Exchange::CopyData {
            data: piece.as_bytes().to_vec().into(),
        };
        rig.extend(&mut transaction, Footprint::everything(), &data).await;
    }
    let end = rig
        .extend(
            &mut transaction,
            Footprint::everything(),
            &Exchange::CopyEnd { failure: None },
        )
        .await;
    let copied = rig.whole(ResultKey::Request(end)).await;
    assert_eq!(messages(&copied), vec![('C', b"COPY 2\0".to_vec())]);
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, "COMMIT");
    assert_eq!(
        rig.psql("SELECT string_agg(name, ',' ORDER BY id) FROM plain").await,
        "one,two"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_are_writes_like_any_other() {
    let mut rig = with_table().await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(INSERT))
        .await;
    for text in ["SAVEPOINT s", INSERT, "ROLLBACK TO s", "INSERT INTO plain VALUES (3)"] {
        rig.write(&mut transaction, &simple(text)).await;
    }
    let commit = rig.commit(&transaction).await;
    assert_eq!(committed(&rig, commit).await, "COMMIT");
    assert_eq!(
        rig.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM plain")
            .await,
        "1,3"
    );
}
