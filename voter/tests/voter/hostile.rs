//! Statements that try to stop the voter, to lose what is acknowledged, or to make servers differ (each was seen to).

use std::time::{Duration, Instant};

use ordering::message::{Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{Exchange, Isolation, StatementText, Step};
use voter::VoterState;

use crate::reads::with_accounts;
use crate::rig::{Rig, Transaction, shop, simple, sqlstate, tags};

pub(crate) const END_OPEN: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'";

pub(crate) async fn with_table() -> Rig {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, name text)").await;
    rig
}

pub(crate) async fn begin(rig: &mut Rig, exchange: &Exchange) -> (Transaction, u64) {
    let mut transaction = rig.new_transaction(Footprint::everything());
    let order = rig.begin(&mut transaction, Isolation::ReadCommitted, exchange).await;
    (transaction, order)
}

pub(crate) async fn count(rig: &Rig) -> String {
    rig.psql("SELECT count(*) FROM plain").await
}

pub(crate) fn assert_serving(rig: &Rig) {
    assert!(matches!(rig.state(), VoterState::Serving { .. }), "{:?}", rig.state());
}

/// findings: A1, C2. An error that is every server's is a result.
#[tokio::test(flavor = "multi_thread")]
async fn an_internal_error_is_a_result_and_stops_nobody() {
    let mut rig = with_table().await;
    let poison = rig
        .run("INSERT INTO plain SELECT 1, to_tsvector(0::regconfig, 'x')::text")
        .await;
    assert_eq!(sqlstate(&poison).as_deref(), Some("XX000"));
    rig.run("INSERT INTO plain VALUES (1)").await;
    assert_eq!(count(&rig).await, "1");
    assert_serving(&rig);
}

/// A Bind that does not fit, from a driver's own tests.
#[tokio::test(flavor = "multi_thread")]
async fn a_bind_with_too_many_result_formats_is_a_result() {
    let mut rig = with_table().await;
    let wrong = Exchange::Extended {
        statements: vec![StatementText {
            text: "INSERT INTO plain VALUES (1) RETURNING id".into(),
            parameter_types: Vec::new(),
        }],
        steps: vec![
            Step::Parse { statement: 0 },
            Step::Bind {
                portal: String::new(),
                statement: 0,
                parameter_formats: Vec::new(),
                parameters: Vec::new(),
                result_formats: vec![0, 0, 0],
            },
            Step::Execute {
                portal: String::new(),
                max_rows: 0,
            },
        ],
    };
    let failed = rig.one_shot(Footprint::everything(), &wrong).await;
    assert_eq!(sqlstate(&failed).as_deref(), Some("08P01"));
    assert_serving(&rig);
}

/// findings: A2. Own statements have no names that an application could take.
#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_of_an_application_replace_none_of_the_voters() {
    let mut rig = with_table().await;
    for name in ["commit", "begin", "applied", "rollback", "clock", "s1"] {
        let text = format!("DO $$BEGIN EXECUTE 'PREPARE \"{name}\" AS SELECT 1'; END$$");
        rig.run(&text).await;
    }
    for id in 1..=3 {
        let insert = simple(&format!("INSERT INTO plain VALUES ({id})"));
        assert_eq!(tags(&rig.one_shot(Footprint::everything(), &insert).await), "C");
    }
    assert_eq!(count(&rig).await, "3");
}

/// findings: A5. A temporary table of one session hides no table of another.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_ran_foreign_code_serves_nobody_else() {
    let mut rig = with_table().await;
    rig.run("INSERT INTO plain VALUES (1, 'real')").await;
    rig.run("DO $$BEGIN EXECUTE 'CREATE TABLE pg_temp.plain AS TABLE plain'; EXCEPTION WHEN OTHERS THEN NULL; END$$")
        .await;
    rig.run("DO $$BEGIN PERFORM set_config('search_path', 'pg_catalog', false); END$$")
        .await;
    for _ in 0..4 {
        let update = simple("UPDATE plain SET name = 'changed' WHERE id = 1");
        assert_eq!(tags(&rig.one_shot(Footprint::everything(), &update).await), "C");
    }
    assert_eq!(rig.psql("SELECT name FROM public.plain").await, "changed");
}

/// findings: A1 (client). What a Commit does not list has no effect, whatever it was sent as.
#[tokio::test(flavor = "multi_thread")]
async fn only_reads_run_unlisted() {
    let mut rig = with_table().await;
    let (mut transaction, _) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1, 'a')")).await;
    let portal = Exchange::Extended {
        statements: vec![StatementText {
            text: "UPDATE plain SET name = 'unlisted'".into(),
            parameter_types: Vec::new(),
        }],
        steps: vec![
            Step::Parse { statement: 0 },
            Step::Bind {
                portal: "p".into(),
                statement: 0,
                parameter_formats: Vec::new(),
                parameters: Vec::new(),
                result_formats: Vec::new(),
            },
        ],
    };
    rig.write(&mut transaction, &simple("SAVEPOINT s")).await;
    rig.write(&mut transaction, &portal).await;
    let execute = Exchange::Extended {
        statements: Vec::new(),
        steps: vec![Step::Execute {
            portal: "p".into(),
            max_rows: 0,
        }],
    };
    for exchange in [
        simple("ROLLBACK TO SAVEPOINT s"),
        simple("SET LOCAL TimeZone = 'Asia/Tokyo'"),
        simple("UPDATE plain SET name = 'unlisted'"),
        simple("FETCH 1 FROM c"),
        execute,
    ] {
        let key = rig.send_direct(Some(&transaction), &exchange, false).await;
        let outcome = rig.direct_outcome(key).await;
        assert!(matches!(outcome, Outcome::Refused { .. }), "{exchange:?}: {outcome:?}");
    }
    let commit = rig.commit(&transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(rig.psql("SELECT id, name FROM plain").await, "1|a");
}

/// findings: A6 and A7. A read that writes is refused by the server, and nothing of the transaction is lost by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_writes_is_stopped_by_its_guard() {
    let mut rig = with_table().await;
    rig.run(
        "CREATE FUNCTION sneaky() RETURNS int LANGUAGE plpgsql STABLE AS \
         $$BEGIN EXECUTE 'INSERT INTO plain VALUES (99)'; RETURN 1; END$$; \
         CREATE FUNCTION drawn() RETURNS int LANGUAGE plpgsql STABLE AS \
         $$BEGIN EXECUTE 'UPDATE plain SET name = ''x'''; RETURN 1; END$$",
    )
    .await;
    let (mut transaction, _) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1, 'a')")).await;
    for text in ["SELECT sneaky()", "SELECT drawn()"] {
        let key = rig.send_direct(Some(&transaction), &simple(text), false).await;
        match rig.direct_outcome(key).await {
            Outcome::Done { .. } => assert!(sqlstate(&rig.whole(key).await).is_some(), "{text}"),
            Outcome::Refused { .. } => {}
            other => panic!("{text}: {other:?}"),
        }
    }
    rig.write(&mut transaction, &simple("INSERT INTO plain VALUES (2, 'b')"))
        .await;
    let commit = rig.commit(&transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(
        rig.psql("SELECT string_agg(id || name, ',' ORDER BY id) FROM plain")
            .await,
        "1a,2b"
    );
}

/// A function that ends its own backend, or raises what speaks of the server, loses a run and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_backend_costs_its_transaction_only() {
    let mut rig = with_table().await;
    for text in [
        "DO $$BEGIN EXECUTE 'SELECT pg_terminate_backend(pg_backend_pid())'; END$$",
        "DO $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '58000'; END$$",
        "DO $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '53100'; END$$",
        "DO $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'XX000'; END$$",
    ] {
        let exchange = simple(text);
        if rig.run_refused(&exchange).await {
            continue;
        }
        let (transaction, order) = begin(&mut rig, &exchange).await;
        rig.result(order).await;
        let abort = rig.abort(&transaction).await;
        rig.result(abort).await;
        assert_serving(&rig);
    }
    rig.run("INSERT INTO plain VALUES (1)").await;
    assert_eq!(count(&rig).await, "1");
}

/// findings: A3. A transaction that reads a snapshot does not write from data that was changed since.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_writer_is_refused_what_was_written_since() {
    let mut rig = with_accounts().await;
    let mut transaction = rig.new_transaction(Footprint::empty());
    let order = rig.begin_snapshot(&mut transaction).await;
    rig.result(order).await;
    let update = |shop: i64| simple(&format!("UPDATE account SET balance = balance + 1 WHERE shop = {shop}"));
    assert_eq!(tags(&rig.one_shot(shop(1), &update(1)).await), "C");
    let other = rig.extend(&mut transaction, shop(2), &update(2)).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(other)).await), "C");
    let extend = rig.extend(&mut transaction, shop(1), &update(1)).await;
    let Outcome::Refused { sqlstate, .. } = rig.result(extend).await.outcome else {
        panic!("not refused");
    };
    assert_eq!(sqlstate, "40001");
    let abort = rig.abort(&transaction).await;
    rig.result(abort).await;
}

/// findings: A6 of seam. A COMMIT that fails burns no value of a sequence.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_commit_sets_sequences_back() {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE t (id serial PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        .await;
    let twice = simple("INSERT INTO t (u) VALUES (1), (1)");
    let (transaction, order) = begin(&mut rig, &twice).await;
    rig.result(order).await;
    let commit = rig.commit_with(&transaction, Vec::new()).await;
    rig.result(commit).await;
    rig.run("INSERT INTO t (u) VALUES (5)").await;
    assert_eq!(rig.psql("SELECT id, u FROM t").await, "1|5");
}

/// findings: B1. A voter reads nothing outside the order before it has caught up with what it ordered after its start.
#[tokio::test(flavor = "multi_thread")]
async fn direct_reads_wait_for_a_no_op_of_the_voters_own() {
    let mut rig = with_table().await;
    rig.stop_voter().await;
    rig.hold_own_orders(true);
    rig.start_voter();
    rig.wait_until_serving().await;
    let read = rig
        .send_direct(None, &simple("SELECT count(*) FROM plain"), false)
        .await;
    assert_eq!(rig.direct_outcome(read).await, Outcome::Unavailable);
    rig.hold_own_orders(false);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let read = rig
            .send_direct(None, &simple("SELECT count(*) FROM plain"), false)
            .await;
        if matches!(rig.direct_outcome(read).await, Outcome::Done { .. }) {
            break;
        }
        assert!(Instant::now() < deadline, "it never catches up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A read that nobody waits for any more is stopped, and holds no backend.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_was_given_up_is_stopped() {
    let mut rig = with_table().await;
    let endless = simple("SELECT count(*) FROM generate_series(1, 100000000000)");
    let read = rig.send_direct(None, &endless, false).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while rig.psql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series%' AND state = 'active' AND pid <> pg_backend_pid()").await != "1" {
        assert!(Instant::now() < deadline, "it does not run");
    }
    rig.give_up(read).await;
    let started = Instant::now();
    assert_eq!(rig.direct_outcome(read).await, Outcome::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_serving(&rig);
}

/// One that is nearly over may end, since a new backend costs more: of every read of some milliseconds somebody is slowest.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_was_given_up_may_end_soon() {
    let mut rig = with_table().await;
    let some_milliseconds = simple("SELECT count(*) FROM generate_series(1, 200000)");
    for _ in 0..100 {
        let read = rig.send_direct(None, &some_milliseconds, false).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        rig.give_up(read).await;
        let started = Instant::now();
        let outcome = rig.direct_outcome(read).await;
        let went_on = started.elapsed() > Duration::from_millis(5);
        if went_on && matches!(outcome, Outcome::Done { .. }) {
            return;
        }
    }
    panic!("it is stopped at once");
}

/// findings: A7. Code that changes the search path changes nothing for the statements after it.
#[tokio::test(flavor = "multi_thread")]
async fn what_names_mean_is_the_operations_alone() {
    let mut rig = with_table().await;
    rig.psql(
        "CREATE SCHEMA other; CREATE TABLE other.plain (id int PRIMARY KEY, name text); \
         INSERT INTO other.plain VALUES (1, 'other'); \
         GRANT ALL ON SCHEMA other TO PUBLIC; GRANT ALL ON other.plain TO PUBLIC",
    )
    .await;
    rig.run("INSERT INTO public.plain VALUES (1, 'public')").await;
    let shadow = simple("DO $$BEGIN PERFORM set_config('search_path', 'other', false); END$$");
    let (mut transaction, order) = begin(&mut rig, &shadow).await;
    rig.result(order).await;
    rig.write(
        &mut transaction,
        &simple("UPDATE plain SET name = 'changed' WHERE id = 1"),
    )
    .await;
    let commit = rig.commit(&transaction).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(rig.psql("SELECT name FROM other.plain").await, "other");
    assert_eq!(rig.psql("SELECT name FROM public.plain").await, "changed");
}

/// After code of users, ROLLBACK TO ends a failure as it does otherwise, live as where the list runs at the Commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_ends_a_failure_after_foreign_code() {
    let mut rig = with_table().await;
    let code = simple("DO $$BEGIN INSERT INTO plain VALUES (1); END$$");
    let (mut transaction, order) = begin(&mut rig, &code).await;
    rig.result(order).await;
    for (text, answer) in [
        ("SAVEPOINT s", "C"),
        ("INSERT INTO plain VALUES (1)", "E"),
        ("ROLLBACK TO SAVEPOINT s", "C"),
        ("INSERT INTO plain VALUES (2)", "C"),
    ] {
        assert_eq!(
            tags(&rig.write(&mut transaction, &simple(text)).await),
            answer,
            "{text}"
        );
    }
    let words = rig.words(&transaction).await;
    rig.psql(END_OPEN).await;
    let commit = rig.commit_with(&transaction, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(count(&rig).await, "2");
    assert_serving(&rig);
}

/// A time limit that code sets for its backend ends none of the voter's own statements.
#[tokio::test(flavor = "multi_thread")]
async fn time_limits_of_code_do_not_end_the_voters_statements() {
    let mut rig = with_table().await;
    // What the voter records of them takes longer than the limit.
    rig.psql("DO $$BEGIN FOR i IN 1..3000 LOOP EXECUTE format('CREATE SEQUENCE s%s', i); END LOOP; END$$")
        .await;
    let limits = "DO $$BEGIN EXECUTE 'SET LOCAL statement_' || 'timeout = 50'; INSERT INTO plain VALUES (1); END$$";
    let (transaction, order) = begin(&mut rig, &simple(limits)).await;
    rig.result(order).await;
    let words = rig.words(&transaction).await;
    assert_eq!(words.len(), 2);
    let commit = rig.commit_with(&transaction, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_serving(&rig);
}
