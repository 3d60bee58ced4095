//! Statements that try to stop the voter, to lose what is acknowledged, or to make servers differ (each was seen to).

use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::message::{DirectKind, Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{Exchange, Isolation, StatementText, Step, Word, Work, answers_with_effect, says_nothing_written};
use voter::VoterState;

use crate::reads::with_accounts;
use crate::rig::{Rig, Transaction, shop, simple, sqlstate, tags};

async fn with_table() -> Rig {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, name text)").await;
    rig
}

async fn begin(rig: &mut Rig, exchange: &Exchange) -> (Transaction, u64) {
    let mut transaction = rig.new_transaction(Footprint::everything());
    let order = rig.begin(&mut transaction, Isolation::ReadCommitted, exchange).await;
    (transaction, order)
}

async fn count(rig: &Rig) -> String {
    rig.psql("SELECT count(*) FROM plain").await
}

fn assert_serving(rig: &Rig) {
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

/// A one-shot is short, or it is refused before it runs.
#[tokio::test(flavor = "multi_thread")]
async fn what_its_shape_does_not_bound_is_no_one_shot() {
    let mut rig = with_table().await;
    for text in [
        "DO $$BEGIN LOOP NULL; END LOOP; END$$",
        "INSERT INTO plain SELECT i FROM generate_series(1, 100000000) i",
        "UPDATE plain SET name = name || name",
        "DELETE FROM plain WHERE name ~ '(a*)*b'",
    ] {
        let exchange = simple(text).encode();
        let order = rig.order(Footprint::everything(), Work::OneShot { exchange }).await;
        let Outcome::Refused { sqlstate, .. } = rig.result(order).await.outcome else {
            panic!("{text} ran");
        };
        assert_eq!(sqlstate, "BF006", "{text}");
    }
}

/// A Commit of more than what is short needs the words of f+1 voters; what a client makes up is no word.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_valid_words_has_no_effect() {
    let mut rig = with_table().await;
    let forged = |answers: u8| Word {
        machine: 2,
        answers: [answers; 32],
        signature: [7; 64],
    };
    for words in [
        vec![],
        vec![forged(1)],
        vec![
            forged(1),
            Word {
                machine: 3,
                ..forged(1)
            },
        ],
    ] {
        let insert = simple("INSERT INTO plain SELECT i FROM generate_series(1, 3) i");
        let (transaction, order) = begin(&mut rig, &insert).await;
        rig.result(order).await;
        let commit = rig.commit_with(&transaction, words).await;
        let Outcome::Refused { sqlstate, .. } = rig.result(commit).await.outcome else {
            panic!("committed");
        };
        assert_eq!(sqlstate, "BF007");
    }
    assert_eq!(count(&rig).await, "0");
}

/// A voter that lost its transaction after f+1 words runs the certified list again and commits the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_certified_commit_runs_the_list_where_the_transaction_is_gone() {
    let mut rig = with_table().await;
    rig.run("CREATE SEQUENCE numbers").await;
    let insert = simple("INSERT INTO plain SELECT nextval('numbers') FROM generate_series(1, 3) i");
    let (transaction, order) = begin(&mut rig, &insert).await;
    rig.result(order).await;
    let words = rig.words(&transaction).await;
    assert_eq!(words.len(), 2);
    rig.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
        .await;
    let commit = rig.commit_with(&transaction, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(
        rig.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM plain")
            .await,
        "1,2,3"
    );
}

/// A voter does not commit what it answers otherwise than f+1 voters have certified.
#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_contradicts_a_certificate_does_not_commit_it() {
    let mut rig = with_table().await;
    let insert = simple("INSERT INTO plain SELECT i FROM generate_series(1, 3) i");
    let (transaction, order) = begin(&mut rig, &insert).await;
    rig.result(order).await;
    let words = rig.words_with(&transaction, [9; 32]);
    rig.commit_with(&transaction, words).await;
    rig.wait_for_state(|state| matches!(state, VoterState::Contradicts { .. }))
        .await;
    assert_eq!(count(&rig).await, "0");
}

/// What f+1 voters have certified, where the answers are those of another table.
async fn certified_from_facts(rig: &mut Rig) -> (Transaction, Vec<Word>) {
    rig.run("CREATE TABLE facts (value int)").await;
    rig.run("INSERT INTO facts VALUES (1)").await;
    let insert = simple("INSERT INTO plain SELECT value FROM facts RETURNING id");
    let (transaction, order) = begin(rig, &insert).await;
    rig.result(order).await;
    let words = rig.words(&transaction).await;
    assert_eq!(words.len(), 2);
    (transaction, words)
}

const END_OPEN: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'";

/// Ordinary code can make databases answer differently that hold the same (aggregates without an order). Where f+1 voters say
/// that nothing was written, a voter that answers otherwise, or writes, has no effect, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_contradiction_in_what_wrote_nothing_stops_nobody() {
    let mut rig = with_table().await;
    rig.run("CREATE SEQUENCE numbers").await;
    rig.run("INSERT INTO plain VALUES (7)").await;
    let drawing = "CREATE FUNCTION drawn() RETURNS bigint LANGUAGE plpgsql AS $$BEGIN RETURN nextval('numbers'); END$$";
    rig.run(drawing).await;
    for statement in [
        "SELECT string_agg(id::text, ',') FROM plain, generate_series(1, 3)",
        "INSERT INTO plain SELECT i FROM generate_series(1, 3) i",
        "SELECT drawn()",
    ] {
        for live in [true, false] {
            let mut transaction = rig.new_transaction(Footprint::everything());
            if live {
                let order = rig
                    .begin(&mut transaction, Isolation::ReadCommitted, &simple(statement))
                    .await;
                rig.result(order).await;
            } else {
                rig.begin_live(&mut transaction, 0, &simple(statement)).await;
            }
            let words = rig.words_with(&transaction, answers_with_effect([9; 32], false));
            let commit = rig.commit_with(&transaction, words).await;
            let committed = rig.whole(ResultKey::Request(commit)).await;
            assert_eq!(tags(&committed), "C", "{statement}");
            assert_serving(&rig);
            let position = format!("SELECT count(*) FROM cloudbft.applied WHERE granted = {commit}");
            assert_eq!(rig.psql(&position).await, "1", "{statement}");
        }
    }
    assert_eq!(rig.psql("SELECT id FROM plain").await, "7");
    assert_eq!(rig.psql("SELECT is_called FROM numbers").await, "f");
}

/// A voter's word says whether anything may have been written; code of users has no say in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_word_says_whether_anything_was_written() {
    let mut rig = with_table().await;
    rig.run("CREATE SEQUENCE numbers").await;
    rig.run("INSERT INTO plain VALUES (7)").await;
    let code = |body: &str| format!("DO $$BEGIN {body} END$$");
    let lost = "BEGIN INSERT INTO plain VALUES (8); RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;";
    let caught = "BEGIN PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN NULL; END;";
    for (statement, nothing) in [
        ("SELECT count(*) FROM plain, generate_series(1, 3)".to_owned(), true),
        (code("PERFORM count(*) FROM plain;"), true),
        (code(caught), true),
        (code("PERFORM set_config('search_path', 'elsewhere', true);"), true),
        (
            "INSERT INTO plain SELECT i FROM generate_series(1, 3) i".to_owned(),
            false,
        ),
        (code("UPDATE plain SET name = 'x';"), false),
        (code("PERFORM FROM plain FOR UPDATE;"), false),
        (code(lost), false),
        // The first value writes to the log, the next ones do not.
        (code("PERFORM nextval('numbers');"), false),
        (code("PERFORM nextval('numbers');"), false),
    ] {
        let (transaction, order) = begin(&mut rig, &simple(&statement)).await;
        rig.result(order).await;
        let words = rig.words(&transaction).await;
        assert_eq!(words.len(), 2, "{statement}");
        assert_eq!(says_nothing_written(&words[0].answers), nothing, "{statement}");
        let commit = rig.commit_with(&transaction, words).await;
        assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C", "{statement}");
    }
    assert_serving(&rig);
}

/// A contradiction puts a voter down for as long as it lasts: whatever made its database answer otherwise may pass.
#[tokio::test(flavor = "multi_thread")]
async fn a_contradiction_that_passes_needs_no_repair() {
    let mut rig = with_table().await;
    let (transaction, words) = certified_from_facts(&mut rig).await;
    rig.psql(END_OPEN).await;
    rig.psql("UPDATE facts SET value = 2").await;
    let commit = rig.commit_with(&transaction, words).await;
    rig.wait_for_state(|state| matches!(state, VoterState::Contradicts { .. }))
        .await;
    assert_eq!(count(&rig).await, "0");
    rig.psql("UPDATE facts SET value = 1").await;
    rig.wait_for_state(|state| matches!(state, VoterState::Serving { .. }))
        .await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(rig.psql("SELECT id FROM plain").await, "1");
}

/// A voter that loses its backend while it runs a certified list runs it again: no contradiction, and nothing to repair.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_lost_on_its_way_runs_again() {
    let mut rig = with_table().await;
    let slow = simple("INSERT INTO plain SELECT count(*) FROM generate_series(1, 3000000)");
    let (transaction, order) = begin(&mut rig, &slow).await;
    rig.result(order).await;
    let words = rig.words(&transaction).await;
    rig.psql(END_OPEN).await;
    let commit = rig.commit_with(&transaction, words).await;
    let running = "FROM pg_stat_activity WHERE query LIKE 'INSERT INTO plain%' AND state = 'active'";
    let deadline = Instant::now() + Duration::from_secs(20);
    while rig.psql(&format!("SELECT pg_terminate_backend(pid) {running}")).await != "t" {
        assert!(Instant::now() < deadline, "the list does not run");
    }
    while !rig.has_result(commit) {
        assert_serving(&rig);
        assert!(Instant::now() < deadline, "it does not run again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(rig.psql("SELECT id FROM plain").await, "3000000");
    assert_serving(&rig);
}

/// A server that does not come to the end of a COMMIT has its backend ended, and the transaction is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_stuck_is_tried_again() {
    let mut rig = with_table().await;
    let (transaction, order) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1)")).await;
    rig.result(order).await;
    let words = rig.words(&transaction).await;
    let mut holder = rig.server.psql_behind(
        "test",
        "BEGIN; LOCK TABLE cloudbft.applied IN EXCLUSIVE MODE; SELECT pg_sleep(8)",
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    let commit = rig.commit_with(&transaction, words).await;
    let stuck = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let mut processes = Vec::new();
    while holder.try_wait().unwrap().is_none() {
        let process = rig.psql(stuck).await;
        if !process.is_empty() && !processes.contains(&process) {
            processes.push(process);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(processes.len() >= 2, "stuck for ever in {processes:?}");
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
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

/// A lazy voter runs nothing until it is joined, or until the Commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_voter_is_silent_and_runs_the_list_at_the_commit() {
    let mut rig = with_table().await;
    for join in [false, true] {
        let id = i32::from(join) * 10;
        let mut transaction = rig.new_transaction(Footprint::everything());
        let insert = simple(&format!("INSERT INTO plain VALUES ({})", id + 1));
        let begin = rig.begin_live(&mut transaction, 0, &insert).await;
        let extend = simple(&format!("INSERT INTO plain VALUES ({})", id + 2));
        let extend = rig.extend(&mut transaction, Footprint::everything(), &extend).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!rig.has_result(begin) && !rig.has_result(extend), "it is lazy");
        if join {
            rig.send_place(Some(&transaction), Bytes::new(), DirectKind::Join).await;
            assert_eq!(tags(&rig.whole(ResultKey::Request(begin)).await), "C");
            assert_eq!(tags(&rig.whole(ResultKey::Request(extend)).await), "C");
            rig.write(&mut transaction, &simple("INSERT INTO plain VALUES (13)"))
                .await;
        }
        let commit = rig.commit_with(&transaction, Vec::new()).await;
        assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    }
    assert_eq!(
        rig.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM plain")
            .await,
        "1,2,11,12,13"
    );
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

/// A client that commits, with words of its own making, what does not end: it is stopped, and what waits goes on.
#[tokio::test(flavor = "multi_thread")]
async fn forged_words_keep_no_endless_statement_running() {
    let mut rig = with_table().await;
    let endless = simple("DO $$BEGIN LOOP NULL; END LOOP; END$$");
    let (transaction, _) = begin(&mut rig, &endless).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let forged = Word {
        machine: 2,
        answers: [1; 32],
        signature: [7; 64],
    };
    let commit = rig.commit_with(&transaction, vec![forged]).await;
    let Outcome::Refused { sqlstate, .. } = rig.result(commit).await.outcome else {
        panic!("committed");
    };
    assert_eq!(sqlstate, "BF007");
    rig.run("INSERT INTO plain VALUES (1)").await;
    assert_eq!(count(&rig).await, "1");
}
