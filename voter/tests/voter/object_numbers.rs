//! Object numbers (OIDs) that a client lists (rule ObjectNumbers).

use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::message::{CHAIN_START, DirectKind, Outcome, ResultKey, chain};
use sql::footprint::Footprint;
use sql::object_numbers::{after, ahead};
use sql::operation::{Exchange, ExchangeResult, Isolation, answers_with_effect};

use crate::hostile::assert_serving;
use crate::rig::{Rig, Transaction, shop, simple, tags};

/// Numbers that one transaction may make a server leave out.
const LEFT_OUT_MAX: i64 = 65_536;

async fn begun(rig: &mut Rig, footprint: Footprint) -> Transaction {
    let mut transaction = rig.new_transaction(footprint);
    let order = rig.begin(&mut transaction, Isolation::ReadCommitted, &simple("")).await;
    rig.result(order).await;
    transaction
}

/// What the voter says that its server has given last.
async fn number(rig: &mut Rig, transaction: &Transaction) -> u32 {
    let place = rig
        .send_place(Some(transaction), Bytes::new(), DirectKind::ObjectNumber)
        .await;
    match rig.direct_outcome(place).await {
        Outcome::ObjectNumber { number } => number,
        other => panic!("no number: {other:?}"),
    }
}

async fn list_numbers(rig: &mut Rig, transaction: &mut Transaction, next: u32) {
    let listed = rig.write(transaction, &Exchange::ObjectNumbers { next }).await;
    assert_eq!(
        (tags(&listed).as_str(), listed.status),
        ("", b'T'),
        "alike by all voters"
    );
}

async fn numbered(rig: &Rig, table: &str) -> u32 {
    let text = format!("SELECT oid FROM pg_class WHERE relname = '{table}'");
    rig.psql(&text).await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_numbered_from_what_is_listed() {
    let mut rig = Rig::start().await;
    let mut transaction = begun(&mut rig, Footprint::everything()).await;
    let next = number(&mut rig, &transaction).await + 5_000;
    list_numbers(&mut rig, &mut transaction, next).await;
    rig.write(&mut transaction, &simple("CREATE TABLE plain (id int)"))
        .await;
    let commit = rig.commit(&transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(numbered(&rig, "plain").await, next);
}

/// A voter that has run nothing runs the list at the Commit: its server begins at the number that those began at which ran live.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_runs_late_numbers_as_it_did_elsewhere() {
    let mut rig = Rig::start().await;
    let asking = begun(&mut rig, Footprint::everything()).await;
    let next = number(&mut rig, &asking).await + 20_000;
    rig.abort(&asking).await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    rig.begin_live(&mut transaction, 0, &simple("")).await;
    rig.missed_write(&mut transaction, &simple("CREATE TABLE before (id int)"));
    rig.missed_write(&mut transaction, &Exchange::ObjectNumbers { next });
    rig.missed_write(&mut transaction, &simple("CREATE TABLE plain (id int)"));
    let created = b"C\0\0\0\x11CREATE TABLE\0";
    let answers = [&b"I\0\0\0\x04"[..], created, b"", created]
        .iter()
        .fold(CHAIN_START, |link, messages| {
            let result = ExchangeResult {
                messages: Bytes::copy_from_slice(messages),
                status: b'T',
            };
            chain(&link, &result.digests().unwrap().multiset)
        });
    let words = rig.words_with(&transaction, answers_with_effect(answers, true));
    let commit = rig.commit_with(&transaction, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(numbered(&rig, "plain").await, next);
    assert!(numbered(&rig, "before").await < next);
}

/// A client may list any number: its transaction makes a server leave out so many numbers, however often, and runs on.
#[tokio::test(flavor = "multi_thread")]
async fn no_client_makes_a_server_leave_out_more_than_so_many_numbers() {
    let mut rig = Rig::start().await;
    let mut transaction = begun(&mut rig, Footprint::everything()).await;
    let first = number(&mut rig, &transaction).await;
    let started = Instant::now();
    for next in [
        0,
        u32::MAX,
        first,
        after(first, 1 << 30),
        after(first, 1 << 31),
        after(first, 3 << 30),
    ] {
        list_numbers(&mut rig, &mut transaction, next).await;
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let last = number(&mut rig, &transaction).await;
    let left_out = ahead(last, first);
    assert!((LEFT_OUT_MAX..LEFT_OUT_MAX + 20).contains(&left_out), "{left_out}");
    rig.write(&mut transaction, &simple("CREATE TABLE plain (id int)"))
        .await;
    let commit = rig.commit(&transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_serving(&rig);
}

/// What numbers objects has everything for itself, and is listed.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_for_those_who_hold_everything() {
    let mut rig = Rig::start().await;
    let numbers = Exchange::ObjectNumbers { next: 1_000_000 };
    let one_shot = sql::operation::Work::OneShot {
        exchange: numbers.encode(),
    };
    let order = rig.order(Footprint::everything(), one_shot).await;
    assert!(matches!(rig.result(order).await.outcome, Outcome::Refused { .. }));

    let transaction = begun(&mut rig, shop(1)).await;
    let place = rig
        .send_place(Some(&transaction), Bytes::new(), DirectKind::ObjectNumber)
        .await;
    assert_eq!(rig.direct_outcome(place).await, Outcome::Unavailable);
    for write in [true, false] {
        let direct = rig.send_direct(Some(&transaction), &numbers, write).await;
        assert!(
            matches!(rig.direct_outcome(direct).await, Outcome::Refused { .. }),
            "{write}"
        );
    }
    rig.abort(&transaction).await;

    let transaction = begun(&mut rig, Footprint::everything()).await;
    assert!(number(&mut rig, &transaction).await < 1_000_000);
    assert_serving(&rig);
}
