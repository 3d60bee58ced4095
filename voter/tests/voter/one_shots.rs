use bytes::Bytes;
use ordering::message::{DirectKind, Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{Isolation, Work};

use crate::rig::{Rig, extended, messages, simple, sqlstate, tags};

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_runs_and_records_its_position() {
    let mut rig = Rig::start().await;
    let created = rig.run("CREATE TABLE plain (id int PRIMARY KEY, name text)").await;
    assert_eq!((tags(&created).as_str(), created.status), ("C", b'T'));
    let insert = simple("INSERT INTO plain VALUES (1, 'one'), (2, 'two') RETURNING id");
    let inserted = rig.one_shot(Footprint::everything(), &insert).await;
    let order = rig.last_order();
    assert_eq!(tags(&inserted), "TDDC");
    assert_eq!(messages(&inserted).last().unwrap().1, b"INSERT 0 2\0");
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "2");
    assert_eq!(
        rig.psql("SELECT home, granted, \"order\" FROM cloudbft.applied").await,
        format!("everything|{order}|{order}")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_in_the_extended_protocol_answers_as_the_server_would() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, name text)").await;
    let insert = extended("INSERT INTO plain VALUES ($1, $2) RETURNING name", &["1", "one"]);
    let first = rig.one_shot(Footprint::everything(), &insert).await;
    assert_eq!(tags(&first), "12TDC");
    let other = extended("INSERT INTO plain VALUES ($1, $2) RETURNING name", &["2", "two"]);
    let second = rig.one_shot(Footprint::everything(), &other).await;
    assert_eq!(
        tags(&second),
        "12TDC",
        "a statement that is prepared already answers its Parse"
    );
    assert_eq!(
        rig.psql("SELECT string_agg(name, ',' ORDER BY id) FROM plain").await,
        "one,two"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_a_result_and_nothing_stays() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY)").await;
    rig.run("INSERT INTO plain VALUES (1)").await;
    for exchange in [
        simple("INSERT INTO plain VALUES (2); INSERT INTO plain VALUES (1)"),
        extended("INSERT INTO plain VALUES (1)", &[]),
    ] {
        let failed = rig.one_shot(Footprint::everything(), &exchange).await;
        assert_eq!(sqlstate(&failed).as_deref(), Some("23505"));
        assert_eq!(failed.status, b'I');
    }
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "1");
    rig.run("INSERT INTO plain VALUES (2)").await;
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferred_constraint_fails_before_the_word() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        .await;
    let mut transaction = rig.new_transaction(Footprint::everything());
    let insert = simple("INSERT INTO plain VALUES (1), (1)");
    rig.begin(&mut transaction, Isolation::ReadCommitted, &insert).await;
    let word = rig.send_place(Some(&transaction), Bytes::new(), DirectKind::Word).await;
    assert_eq!(sqlstate(&rig.whole(word).await).as_deref(), Some("23505"), "no word");
    let commit = rig.commit_with(&transaction, Vec::new()).await;
    let failed = rig.whole(ResultKey::Request(commit)).await;
    assert_eq!(sqlstate(&failed).as_deref(), Some("23505"));
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_table_is_used_as_it_is_now() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY)").await;
    let insert = extended("INSERT INTO plain VALUES (1) RETURNING *", &[]);
    assert_eq!(tags(&rig.one_shot(Footprint::everything(), &insert).await), "12TDC");
    rig.run("ALTER TABLE plain ADD name text DEFAULT 'x'; DELETE FROM plain")
        .await;
    let again = rig.one_shot(Footprint::everything(), &insert).await;
    assert_eq!(tags(&again), "12TDC", "no plan of the old table stays");
    assert_eq!(messages(&again)[2].1[..2], [0, 2], "two columns");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_applied_and_taken_back() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (zone text, style text)").await;
    let note = "INSERT INTO plain VALUES (current_setting('timezone'), current_setting('search_path'))";
    rig.settings = vec![
        ("TimeZone".into(), "Europe/Berlin".into()),
        ("search_path".into(), "public, pg_catalog".into()),
    ];
    rig.run(note).await;
    rig.settings = Vec::new();
    rig.run(note).await;
    assert_eq!(
        rig.psql("SELECT string_agg(zone || '/' || style, ';' ORDER BY ctid) FROM plain")
            .await,
        "Europe/Berlin/public, pg_catalog;UTC/\"$user\", public"
    );
    rig.settings = vec![("TimeZone".into(), "no such zone".into())];
    let failed = rig.run(note).await;
    assert_eq!(sqlstate(&failed).as_deref(), Some("22023"));
    rig.settings = vec![("jit".into(), "on".into())];
    let order = rig
        .order(
            Footprint::everything(),
            Work::OneShot {
                exchange: simple(note).encode(),
            },
        )
        .await;
    match rig.result(order).await.outcome {
        Outcome::Refused { sqlstate, .. } => assert_eq!(sqlstate, "55P02"),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.psql("SELECT count(*) FROM plain").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_cannot_touch_the_bookkeeping() {
    let mut rig = Rig::start().await;
    for text in [
        "SELECT * FROM cloudbft.token",
        "UPDATE cloudbft.applied SET granted = 0",
        "SELECT cloudbft.set_applied('guess', 'x', 1, 1)",
    ] {
        let exchange = simple(text).encode();
        let order = rig.order(Footprint::everything(), Work::OneShot { exchange }).await;
        match rig.result(order).await.outcome {
            Outcome::Done { .. } => {
                let result = rig.whole(ResultKey::Request(order)).await;
                assert_eq!(sqlstate(&result).as_deref(), Some("42501"), "{text}");
            }
            Outcome::Refused { .. } => {}
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_request_does_nothing() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id int)").await;
    rig.order_again(900, "INSERT INTO plain VALUES (1)").await;
    rig.result(900).await;
    rig.order_again(900, "INSERT INTO plain VALUES (1)").await;
    rig.run("INSERT INTO plain VALUES (9)").await;
    assert_eq!(
        rig.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM plain")
            .await,
        "1,9"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_is_not_burnt_by_what_fails() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id serial PRIMARY KEY, name text UNIQUE)")
        .await;
    rig.run("INSERT INTO plain (name) VALUES ('a')").await;
    rig.run("INSERT INTO plain (name) VALUES ('a')").await;
    rig.run("INSERT INTO plain (name) VALUES ('b')").await;
    assert_eq!(
        rig.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM plain")
            .await,
        "1,2"
    );
}
