use ordering::message::{Outcome, ResultKey};
use sql::footprint::{Footprint, Mode, Resource};
use sql::operation::{Exchange, Isolation, Step, Work};

use crate::rig::{Rig, Transaction, extended, messages, shop, shop_shared, simple, sqlstate, tags};

pub(crate) async fn with_accounts() -> Rig {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE account (shop int, id int, balance int, PRIMARY KEY (shop, id))")
        .await;
    rig.run("INSERT INTO account SELECT s, i, 100 FROM generate_series(1, 3) s, generate_series(1, 5) i")
        .await;
    rig
}

async fn read(rig: &mut Rig, transaction: Option<&Transaction>, text: &str) -> Vec<String> {
    let key = rig.send_direct(transaction, &simple(text), false).await;
    values(&rig.whole(key).await)
}

/// First columns of all rows.
fn values(result: &sql::operation::ExchangeResult) -> Vec<String> {
    let rows = messages(result).into_iter().filter(|(tag, _)| *tag == 'D');
    rows.map(|(_, body)| {
        let length = u32::from_be_bytes(body[2..6].try_into().unwrap()) as usize;
        String::from_utf8(body[6..6 + length].to_vec()).unwrap()
    })
    .collect()
}

fn refusal(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Refused { sqlstate, .. } => sqlstate,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_read_reads_and_cannot_write() {
    let mut rig = with_accounts().await;
    assert_eq!(
        read(&mut rig, None, "SELECT balance FROM account WHERE shop = 1 AND id = 2").await,
        ["100"]
    );
    let key = rig
        .send_direct(None, &simple("UPDATE account SET balance = 0 WHERE shop = 1"), false)
        .await;
    assert!(matches!(rig.direct_outcome(key).await, Outcome::Refused { .. }));
    assert_eq!(rig.psql("SELECT sum(balance) FROM account").await, "1500");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_declares_too_little_is_refused() {
    let mut rig = with_accounts().await;
    let exchange = simple("UPDATE account SET balance = 0 WHERE shop = 2").encode();
    let order = rig.order(shop(1), Work::OneShot { exchange }).await;
    assert_eq!(refusal(&rig.result(order).await.outcome), "BF003");
    let mut transaction = rig.new_transaction(shop(1));
    let begin = simple("UPDATE account SET balance = 1 WHERE shop = 1");
    rig.begin(&mut transaction, Isolation::ReadCommitted, &begin).await;
    let outside = simple("UPDATE account SET balance = 0 WHERE shop = 2");
    let key = rig.send_direct(Some(&transaction), &outside, true).await;
    assert_eq!(refusal(&rig.direct_outcome(key).await), "BF003");
    rig.missed_write(&mut transaction, &outside);
    let commit = rig.commit(&transaction).await;
    assert_eq!(
        refusal(&rig.result(commit).await.outcome),
        "BF003",
        "nor can the Commit list it"
    );
    assert_eq!(rig.psql("SELECT sum(balance) FROM account").await, "1500");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_run_beside_each_other_and_one_waits_for_a_transaction() {
    let mut rig = with_accounts().await;
    let mut transaction = rig.new_transaction(shop(1));
    let update = simple("UPDATE account SET balance = balance + 1 WHERE shop = 1 AND id = 1");
    rig.begin(&mut transaction, Isolation::ReadCommitted, &update).await;
    let exchange = update.encode();
    let waits = rig.order(shop(1), Work::OneShot { exchange }).await;
    let other = extended("UPDATE account SET balance = $1 WHERE shop = $2", &["7", "2"]);
    assert_eq!(tags(&rig.one_shot(shop(2), &other).await), "12nC");
    rig.commit(&transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(waits)).await), "C");
    assert_eq!(
        rig.psql("SELECT balance FROM account WHERE shop = 1 AND id = 1").await,
        "102"
    );
    assert_eq!(
        rig.psql("SELECT granted - \"order\" FROM cloudbft.applied WHERE home = 'partition:shop=1'")
            .await,
        "2",
        "granted by the Commit two orders later"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_read_sees_its_place_and_does_not_wait_for_transactions() {
    let mut rig = with_accounts().await;
    let mut transaction = rig.new_transaction(shop(1));
    let update = simple("UPDATE account SET balance = 0 WHERE shop = 1");
    rig.begin(&mut transaction, Isolation::ReadCommitted, &update).await;
    let exchange = simple("SELECT sum(balance) FROM account WHERE shop IN (1, 2)").encode();
    let mut footprint = shop_shared(1);
    footprint.extend(&shop_shared(2));
    let work = Work::Read {
        transaction: None,
        writes_before: 0,
        exchange,
    };
    let before = rig.order(footprint.clone(), work.clone()).await;
    assert_eq!(values(&rig.whole(ResultKey::Request(before)).await), ["1000"]);
    rig.commit(&transaction).await;
    let after = rig.order(footprint, work).await;
    assert_eq!(values(&rig.whole(ResultKey::Request(after)).await), ["500"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeatable_read_transaction_keeps_the_snapshot_of_its_begin() {
    let mut rig = with_accounts().await;
    let mut transaction = rig.new_transaction(Footprint::empty());
    let text = "SELECT sum(balance) FROM account";
    let begin = rig.begin_snapshot(&mut transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(begin)).await), "C");
    assert_eq!(read(&mut rig, Some(&transaction), text).await, ["1500"]);
    rig.one_shot(shop(2), &simple("UPDATE account SET balance = 0 WHERE shop = 2"))
        .await;
    assert_eq!(read(&mut rig, Some(&transaction), text).await, ["1500"]);
    assert_eq!(read(&mut rig, None, text).await, ["1000"]);
    let commit = rig.commit(&transaction).await;
    assert!(matches!(rig.result(commit).await.outcome, Outcome::Done { .. }));
}

/// A read that fails behind a savepoint costs the transaction nothing: it keeps its snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_survives_a_read_that_failed() {
    let mut rig = with_accounts().await;
    let mut transaction = rig.new_transaction(Footprint::empty());
    rig.begin_snapshot(&mut transaction).await;
    let text = "SELECT sum(balance) FROM account";
    assert_eq!(read(&mut rig, Some(&transaction), text).await, ["1500"]);
    rig.write(&mut transaction, &simple("SAVEPOINT s")).await;
    for _ in 0..2 {
        let divide = simple("SELECT 1 / (balance - balance) FROM account");
        let key = rig.send_direct(Some(&transaction), &divide, false).await;
        let failed = rig.whole(key).await;
        assert_eq!((sqlstate(&failed).as_deref(), failed.status), (Some("22012"), b'E'));
        rig.one_shot(
            shop(2),
            &simple("UPDATE account SET balance = balance + 1 WHERE shop = 2"),
        )
        .await;
        let back = rig.write(&mut transaction, &simple("ROLLBACK TO SAVEPOINT s")).await;
        assert_eq!((tags(&back).as_str(), back.status), ("C", b'T'));
        assert_eq!(read(&mut rig, Some(&transaction), text).await, ["1500"]);
    }
    let words = rig.words(&transaction).await;
    let commit = rig.commit_with(&transaction, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_in_a_transaction_see_its_writes() {
    let mut rig = with_accounts().await;
    let mut transaction = rig.new_transaction(shop(1));
    let update = simple("UPDATE account SET balance = 5 WHERE shop = 1 AND id = 1");
    rig.begin(&mut transaction, Isolation::ReadCommitted, &update).await;
    let text = "SELECT balance FROM account WHERE shop = 1 AND id = 1";
    assert_eq!(read(&mut rig, Some(&transaction), text).await, ["5"]);
    let work = Work::Read {
        transaction: Some(transaction.id),
        writes_before: transaction.count,
        exchange: simple(text).encode(),
    };
    let ordered = rig.order(shop_shared(1), work).await;
    assert_eq!(values(&rig.whole(ResultKey::Request(ordered)).await), ["5"]);
    let mut wider = shop(1);
    wider.extend(&shop(2));
    let extend = simple("UPDATE account SET balance = 6 WHERE shop = 2 AND id = 1");
    let order = rig.extend(&mut transaction, wider, &extend).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(order)).await), "C");
    rig.commit(&transaction).await;
    rig.run("SELECT 1").await;
    assert_eq!(rig.psql("SELECT sum(balance) FROM account").await, "1311");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_read_does_not_hurt_the_commit() {
    let mut rig = with_accounts().await;
    let mut transaction = rig.new_transaction(shop(1));
    let update = simple("UPDATE account SET balance = 5 WHERE shop = 1 AND id = 1");
    rig.begin(&mut transaction, Isolation::ReadCommitted, &update).await;
    let divide = simple("SELECT 1 / (balance - 5) FROM account WHERE shop = 1 AND id = 1");
    let key = rig.send_direct(Some(&transaction), &divide, false).await;
    let failed = rig.whole(key).await;
    assert_eq!((sqlstate(&failed).as_deref(), failed.status), (Some("22012"), b'E'));
    // Others did not run that read: for them the transaction is healthy, and its Commit commits.
    let commit = rig.commit(&transaction).await;
    assert_eq!(
        messages(&rig.whole(ResultKey::Request(commit)).await),
        vec![('C', b"COMMIT\0".to_vec())]
    );
    assert_eq!(
        rig.psql("SELECT balance FROM account WHERE shop = 1 AND id = 1").await,
        "5"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_aborts_the_transaction_that_closes_the_cycle() {
    let mut rig = with_accounts().await;
    let update = |shop: i64| simple(&format!("UPDATE account SET balance = balance + 1 WHERE shop = {shop}"));
    let (mut one, mut two) = (rig.new_transaction(shop(1)), rig.new_transaction(shop(2)));
    rig.begin(&mut one, Isolation::ReadCommitted, &update(1)).await;
    rig.begin(&mut two, Isolation::ReadCommitted, &update(2)).await;
    let waits = rig.extend(&mut one, shop(2), &update(2)).await;
    let closes = rig.extend(&mut two, shop(1), &update(1)).await;
    assert_eq!(refusal(&rig.result(closes).await.outcome), "40P01");
    let late = rig.abort(&two).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(late)).await), "C");
    assert_eq!(tags(&rig.whole(ResultKey::Request(waits)).await), "C");
    let commit = rig.commit(&one).await;
    assert!(matches!(rig.result(commit).await.outcome, Outcome::Done { .. }));
    let late = rig.commit(&two).await;
    assert_eq!(refusal(&rig.result(late).await.outcome), "25P01");
    assert_eq!(rig.psql("SELECT sum(balance) FROM account").await, "1510");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_rows_enters_one_digest_only() {
    let mut rig = with_accounts().await;
    let ordered = |direction: &str| format!("SELECT id FROM account WHERE shop = 1 ORDER BY id {direction}");
    let (up, down) = (simple(&ordered("ASC")), simple(&ordered("DESC")));
    let up = rig.send_direct(None, &up, false).await;
    let down = rig.send_direct(None, &down, false).await;
    match (rig.direct_outcome(up).await, rig.direct_outcome(down).await) {
        (
            Outcome::Done {
                sequence: first,
                multiset: one,
                ..
            },
            Outcome::Done {
                sequence: second,
                multiset: other,
                ..
            },
        ) => {
            assert_ne!(first, second);
            assert_eq!(one, other);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_is_read_in_pieces_within_a_transaction() {
    let mut rig = with_accounts().await;
    let mut transaction = rig.new_transaction(shop(1));
    let update = simple("UPDATE account SET balance = 5 WHERE shop = 1 AND id = 1");
    rig.begin(&mut transaction, Isolation::ReadCommitted, &update).await;
    let Exchange::Extended { statements, .. } = extended("SELECT id FROM account WHERE shop = 1 ORDER BY id", &[])
    else {
        unreachable!()
    };
    let portal = String::from("p");
    let bind = Step::Bind {
        portal: portal.clone(),
        statement: 0,
        parameter_formats: Vec::new(),
        parameters: Vec::new(),
        result_formats: Vec::new(),
    };
    let fetch = |max_rows| Step::Execute {
        portal: portal.clone(),
        max_rows,
    };
    let open = Exchange::Extended {
        statements,
        steps: vec![bind, fetch(2)],
    };
    let first = rig.write(&mut transaction, &open).await;
    assert_eq!(tags(&first), "2DDs");
    let rest = Exchange::Extended {
        statements: Vec::new(),
        steps: vec![fetch(0)],
    };
    let second = rig.write(&mut transaction, &rest).await;
    assert_eq!(
        (tags(&second).as_str(), values(&second)),
        ("DDDC", vec!["3".into(), "4".into(), "5".into()])
    );
    let commit = rig.commit(&transaction).await;
    assert!(matches!(rig.result(commit).await.outcome, Outcome::Done { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_out_is_a_result() {
    let mut rig = with_accounts().await;
    let text = "COPY (SELECT id FROM account WHERE shop = 1 ORDER BY id) TO STDOUT";
    let work = Work::Read {
        transaction: None,
        writes_before: 0,
        exchange: simple(text).encode(),
    };
    let everything = Footprint::of(Resource::Everything, Mode::Shared);
    let order = rig.order(everything, work).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(order)).await), "HdddddcC");
}
