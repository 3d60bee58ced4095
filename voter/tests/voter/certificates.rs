//! Words, and what a Commit does with them: certified lists, contradictions, and what cannot be certified.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::message::{DirectKind, Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{Isolation, Word, Work, answers_with_effect, says_nothing_written};
use voter::VoterState;

use crate::hostile::{END_OPEN, assert_serving, begin, count, with_table};
use crate::rig::{Rig, Transaction, simple, tags};

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

/// A voter that joins runs what others have run in one pipeline, also behind a failure in it, and answers none of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_run_is_replayed_without_an_answer() {
    let mut rig = with_table().await;
    for (fails, lives) in [(false, false), (true, false), (true, true)] {
        let id = 10 * (1 + i32::from(fails) + i32::from(lives));
        let insert = |offset: i32| simple(&format!("INSERT INTO plain VALUES ({})", id + offset));
        let mut transaction = rig.new_transaction(Footprint::everything());
        let begin = rig.begin_live(&mut transaction, u64::from(lives), &insert(0)).await;
        let mut replayed = vec![simple("SAVEPOINT s"), insert(1)];
        if fails {
            replayed.extend([insert(1), simple("ROLLBACK TO SAVEPOINT s")]);
        }
        replayed.extend([insert(2), simple("SELECT count(*) FROM plain")]);
        let mut numbers = Vec::new();
        for exchange in &replayed {
            numbers.push(rig.replay(&mut transaction, exchange).await);
        }
        let words = rig.words(&transaction).await;
        assert_eq!(tags(&rig.whole(ResultKey::Request(begin)).await), "C");
        let commit = rig.commit_with(&transaction, words).await;
        assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
        assert!(!numbers.iter().any(|key| rig.has_answer(*key)), "no answers");
        let rows = format!("SELECT count(*) FROM plain WHERE id BETWEEN {id} AND {}", id + 9);
        assert_eq!(rig.psql(&rows).await, if fails { "2" } else { "3" });
    }
    assert_serving(&rig);
}

/// A list that goes out at once is run again one by one where something in it fails, since the server skips what follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_with_a_failure_in_it_runs_to_its_end() {
    let mut rig = with_table().await;
    let (mut transaction, order) = begin(&mut rig, &simple("INSERT INTO plain VALUES (1)")).await;
    rig.result(order).await;
    for (text, answer) in [
        ("SAVEPOINT s", "C"),
        ("INSERT INTO plain VALUES (1)", "E"),
        ("ROLLBACK TO SAVEPOINT s", "C"),
        ("INSERT INTO plain VALUES (2)", "C"),
    ] {
        let answered = rig.write(&mut transaction, &simple(text)).await;
        assert_eq!(tags(&answered), answer, "{text}");
    }
    let words = rig.words(&transaction).await;
    let lost = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    assert_eq!(rig.psql(lost).await, "1");
    let commit = rig.commit_with(&transaction, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    let rows = "SELECT string_agg(id::text, ',' ORDER BY id) FROM plain";
    assert_eq!(rig.psql(rows).await, "1,2");
    assert_serving(&rig);
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
