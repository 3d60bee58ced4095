//! Transactions on their live voters: words, joining, cancelling, aborting, and what is said of a commit whose result is gone.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::{Duration, Instant};

use proxy::ProxyConfig;
use support::World;
use tokio_postgres::{Client, NoTls};

fn quick(config: &mut ProxyConfig) {
    config.statement_timeout = Duration::from_millis(1500);
}

async fn failure(client: &Client, text: &str) -> (String, String) {
    let error = client.batch_execute(text).await.unwrap_err();
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
    (error.code().code().to_owned(), error.message().to_owned())
}

async fn code(client: &Client, text: &str) -> String {
    failure(client, text).await.0
}

async fn number(client: &Client, text: &str) -> i64 {
    client.query_one(text, &[]).await.unwrap().get(0)
}

async fn with_table(world: &World) -> Client {
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
        .await
        .unwrap();
    world.faults.take_seen();
    world.faults.take_words();
    world.faults.take_live();
    client
}

/// All that the proxy has sent to voters since the last look was ordered reads: no statement went to them directly.
fn assert_ordered(world: &World, what: &str) {
    let seen = world.faults.take_seen();
    let ordered = seen.iter().all(|kind| *kind == "ordered read");
    assert!(!seen.is_empty() && ordered, "{what}: {seen:?}");
}

/// Has the server hold what `text` locks, for the statements behind the proxy to wait for.
async fn blocker(world: &World, text: &str) -> Client {
    let blocker = world.servers[0].connect().await;
    blocker.batch_execute(&format!("BEGIN; {text}")).await.unwrap();
    blocker
}

/// Waits until the server has a statement that waits for a lock.
async fn until_blocked(blocker: &Client) {
    loop {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        if number(blocker, waiting).await > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs a statement that waits on the server, cancels it, and gives its SQLSTATE.
async fn cancelled(client: &Client, blocker: &Client, text: &str) -> String {
    let cancel = async {
        until_blocked(blocker).await;
        client.cancel_token().cancel_query(NoTls).await.unwrap();
    };
    let start = Instant::now();
    let (code, ()) = tokio::join!(code(client, text), cancel);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autocommit_write_commits_on_words() {
    let world = World::start().await;
    let client = with_table(&world).await;
    // The driver asks the voters for the statement's description, before what this test counts.
    let insert = client.prepare("INSERT INTO t SELECT 1, 7 RETURNING v").await.unwrap();
    world.faults.take_seen();
    let row = client.query_one(&insert, &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 7);
    assert_eq!(world.faults.take_seen(), ["begin", "word", "commit"]);
    assert_eq!(world.faults.take_words().iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    let error = code(&client, "INSERT INTO t SELECT 1, 8").await;
    assert_eq!(error, "23505", "an error is the statement's own");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.faults.take_seen(), ["begin", "abort"]);
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_short_needs_no_words() {
    let world = World::start().await;
    let client = with_table(&world).await;
    client.batch_execute("INSERT INTO t VALUES (1, 7)").await.unwrap();
    assert_eq!(world.faults.take_seen(), ["one-shot"]);
    for text in [
        "BEGIN; INSERT INTO t VALUES (2, 7)",
        "UPDATE t SET v = 8 WHERE id = 1",
        "COMMIT",
    ] {
        client.batch_execute(text).await.unwrap();
    }
    assert_eq!(world.faults.take_words(), [Vec::<u8>::new()]);
    for text in ["BEGIN; INSERT INTO t VALUES (3, 7)", "UPDATE t SET v = v + 1", "COMMIT"] {
        client.batch_execute(text).await.unwrap();
    }
    assert_eq!(world.faults.take_words().iter().map(Vec::len).collect::<Vec<_>>(), [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_voters_take_turns_and_are_all_for_snapshots_and_for_everything() {
    let world = World::start().await;
    let client = with_table(&world).await;
    for id in 0..6 {
        client
            .batch_execute(&format!("INSERT INTO t SELECT {id}, 0"))
            .await
            .unwrap();
    }
    let live = world.faults.take_live();
    assert!(live.iter().all(|mask| mask.count_ones() == 2), "{live:?}");
    assert_eq!(live.iter().fold(0, |all, mask| all | mask), 0b1110);
    client.batch_execute("CREATE TABLE u (id int)").await.unwrap();
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM t; COMMIT")
        .await
        .unwrap();
    assert_eq!(world.faults.take_live(), [0b1110, 0b1110]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_voter_that_fails_is_replaced_by_another() {
    let world = World::start().await;
    let mut client = with_table(&world).await;
    let fail: [fn(&World, u8); 3] = [
        |world, machine| world.faults.mute(machine),
        |world, machine| world.faults.lose(machine),
        |world, machine| world.faults.liar(machine),
    ];
    let mut joined = 0;
    for (round, fail) in fail.into_iter().enumerate() {
        for machine in 1..=3_u8 {
            world.faults.heal();
            let id = round as i32 * 10 + i32::from(machine);
            let transaction = client.transaction().await.unwrap();
            let insert = format!("INSERT INTO t VALUES ({id}, 0)");
            transaction.batch_execute(&insert).await.unwrap();
            let update = format!("UPDATE t SET v = v + 1 WHERE id = {id}");
            transaction.batch_execute(&update).await.unwrap();
            transaction.batch_execute(&update).await.unwrap();
            world.faults.take_seen();
            fail(&world, machine);
            transaction.batch_execute(&update).await.unwrap();
            let read = format!("SELECT v FROM t WHERE id = {id}");
            let row = transaction.query_one(&read, &[]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), 3);
            // The voter that joins is sent both writes again.
            joined += usize::from(world.faults.take_seen().len() > 2);
            transaction.commit().await.unwrap();
        }
        world.faults.heal();
        let count = number(&client, "SELECT count(*) FROM t WHERE v = 3").await;
        assert_eq!(count, (round as i64 + 1) * 3);
    }
    assert!(
        joined >= 6,
        "two of three transactions lose one of two live voters: {joined}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_that_a_live_voter_does_not_answer_is_run_by_the_others() {
    let world = World::start().await;
    let client = with_table(&world).await;
    let mut seen = Vec::new();
    for machine in 1..=3_u8 {
        world.faults.heal();
        world.faults.lose(machine);
        for turn in 0..3_u8 {
            client
                .batch_execute(&format!("INSERT INTO t SELECT {machine} * 10 + {turn}, 0"))
                .await
                .unwrap();
        }
        seen.extend(world.faults.take_seen());
    }
    assert!(seen.contains(&"join"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_that_differ_or_are_forged_do_not_count() {
    let world = World::start().await;
    let client = with_table(&world).await;
    for machine in 1..=3_u8 {
        for fail in [support::Faults::liar, support::Faults::forger] {
            client
                .batch_execute("BEGIN; DELETE FROM t; INSERT INTO t VALUES (1, 1)")
                .await
                .unwrap();
            fail(&world.faults, machine);
            client.batch_execute("COMMIT").await.unwrap();
            world.faults.heal();
            let words = world.faults.take_words();
            assert!(
                words.iter().all(|words| words.len() == 2 && !words.contains(&machine)),
                "{words:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferred_constraint_fails_the_commit_and_is_aborted() {
    let world = World::start().await;
    let client = with_table(&world).await;
    client
        .batch_execute("CREATE TABLE child (id int REFERENCES t DEFERRABLE INITIALLY DEFERRED)")
        .await
        .unwrap();
    world.faults.take_seen();
    client.batch_execute("BEGIN; INSERT INTO child SELECT 5").await.unwrap();
    assert_eq!(code(&client, "COMMIT").await, "23503");
    assert_eq!(code(&client, "INSERT INTO child SELECT 5").await, "23503");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let seen = world.faults.take_seen();
    assert_eq!(seen.iter().filter(|kind| **kind == "abort").count(), 2, "{seen:?}");
    assert!(!seen.contains(&"commit"), "{seen:?}");
    assert_eq!(number(&client, "SELECT count(*) FROM child").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_before_a_restart_is_committed() {
    let world = World::start().await;
    let client = with_table(&world).await;
    for restarted in [vec![1, 2], vec![2], vec![1, 2, 3]] {
        world.faults.heal();
        restarted.iter().for_each(|machine| world.faults.restart(*machine));
        client.batch_execute("INSERT INTO t SELECT 1, 1").await.unwrap();
        client.batch_execute("BEGIN; DELETE FROM t; COMMIT").await.unwrap();
    }
    // Fewer than f+1 voters still have the result: what is committed must not be run again.
    let cases = [
        (vec![1, 2, 3], vec![]),
        (vec![1, 2], vec![]),
        (vec![1, 2], vec![3]),
        (vec![1], vec![2]),
    ];
    for (restarted, silent) in cases {
        world.faults.heal();
        restarted.iter().for_each(|machine| world.faults.restart(*machine));
        silent.iter().for_each(|machine| world.faults.mute_at_commit(*machine));
        for text in ["VACUUM t", "DELETE FROM t WHERE id = 1"] {
            let (code, message) = failure(&client, text).await;
            assert_eq!(
                (code.as_str(), message.as_str()),
                ("08007", "the statement is committed, and its result is lost"),
                "{text} {restarted:?} {silent:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_rolled_back_is_said_to_have() {
    let world = World::start().await;
    let client = with_table(&world).await;
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1, 1)")
        .await
        .unwrap();
    world.faults.answer_commit_with(b"ROLLBACK\0");
    assert_eq!(code(&client, "COMMIT").await, "40001");
    world.faults.answer_commit_with(b"ROLLBACK\0");
    assert_eq!(code(&client, "INSERT INTO t SELECT 2, 1").await, "40001");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_begin_is_aborted_unless_it_holds_nothing() {
    let world = World::start().await;
    let client = with_table(&world).await;
    for (sqlstate, aborts) in [("40001", 1), ("53400", 0)] {
        for text in ["INSERT INTO t SELECT 1, 1", "BEGIN; INSERT INTO t SELECT 1, 1"] {
            world.faults.refuse_begin(sqlstate);
            assert_eq!(code(&client, text).await, sqlstate);
            client.batch_execute("ROLLBACK").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            let seen = world.faults.take_seen();
            assert_eq!(
                seen.iter().filter(|kind| **kind == "abort").count(),
                aborts,
                "{sqlstate} {text}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_is_asked_for_until_it_is_acknowledged() {
    let world = World::start_with(quick).await;
    let client = with_table(&world).await;
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1, 1)")
        .await
        .unwrap();
    (1..=3).for_each(|machine| world.faults.mute(machine));
    client.batch_execute("ROLLBACK").await.unwrap();
    tokio::time::sleep(Duration::from_millis(2800)).await;
    let seen = world.faults.take_seen();
    assert!(seen.iter().filter(|kind| **kind == "abort").count() >= 2, "{seen:?}");
    world.faults.heal();
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.faults.take_seen();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.faults.take_seen(), Vec::<&str>::new(), "acknowledged at last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_several_resources_are_ordered_also_inside_transactions() {
    let world = World::start().await;
    let client = with_table(&world).await;
    client
        .batch_execute("CREATE TABLE u (id int); CREATE TABLE w (id int)")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.batch_execute("SELECT 1").await.unwrap();
    world.faults.take_seen();
    let several = "SELECT count(*) FROM u, w";
    client.batch_execute(several).await.unwrap();
    assert_ordered(&world, "outside");
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1, 1)")
        .await
        .unwrap();
    world.faults.take_seen();
    client.batch_execute(several).await.unwrap();
    assert_ordered(&world, "of what it has not written");
    let row = client
        .query_one("SELECT count(*) FROM t, (SELECT count(*) FROM u) x", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 1, "the transaction's own row");
    assert!(
        world.faults.take_seen().contains(&"ordered read"),
        "of what it has written too"
    );
    client.batch_execute("COMMIT").await.unwrap();
    world.faults.take_seen();
    // Each statement of a text would have a snapshot of its own.
    client
        .batch_execute("SELECT count(*) FROM u; SELECT count(*) FROM u")
        .await
        .unwrap();
    assert_ordered(&world, "several statements");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_wrote_nothing_ends_without_a_commit() {
    let world = World::start().await;
    let client = with_table(&world).await;
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t; COMMIT")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let seen = world.faults.take_seen();
    assert_eq!(
        (seen.first(), seen.last()),
        (Some(&"begin"), Some(&"abort")),
        "{seen:?}"
    );
    assert!(!seen.contains(&"commit"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_autocommit_write_is_aborted() {
    let world = World::start().await;
    let client = with_table(&world).await;
    client.batch_execute("INSERT INTO t VALUES (1, 0)").await.unwrap();
    let blocker = blocker(&world, "UPDATE t SET v = 0").await;
    world.faults.take_seen();
    assert_eq!(cancelled(&client, &blocker, "UPDATE t SET v = 1").await, "57014");
    client.batch_execute("SET statement_timeout = '300ms'").await.unwrap();
    assert_eq!(code(&client, "UPDATE t SET v = 2").await, "57014");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = world.faults.take_seen();
    assert!(!seen.contains(&"commit") && seen.contains(&"abort"), "{seen:?}");
    blocker.batch_execute("ROLLBACK").await.unwrap();
    client.batch_execute("UPDATE t SET v = v + 10").await.unwrap();
    assert_eq!(number(&client, "SELECT sum(v) FROM t").await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_goes_on_after_a_cancelled_statement() {
    let world = World::start().await;
    let client = with_table(&world).await;
    client
        .batch_execute("INSERT INTO t VALUES (1, 0), (2, 0); CREATE TABLE u (id int)")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let blocker = blocker(&world, "UPDATE t SET v = 0 WHERE id = 2; LOCK TABLE u").await;
    client
        // What could fail for another row holds the table.
        .batch_execute(
            "BEGIN; UPDATE t SET v = 5 WHERE id = 1 AND v + 1 > 0; UPDATE t SET v = v + 1 WHERE id = 1; SAVEPOINT s",
        )
        .await
        .unwrap();
    // A direct statement, and one that is ordered to extend the locks.
    for (text, cancel) in [
        ("UPDATE t SET v = 9 WHERE id = 2", "cancel direct"),
        ("INSERT INTO u VALUES (1)", "cancel ordered"),
    ] {
        world.faults.take_seen();
        assert_eq!(cancelled(&client, &blocker, text).await, "57014");
        assert_eq!(code(&client, "SELECT 1").await, "25P02");
        client.batch_execute("ROLLBACK TO s").await.unwrap();
        client
            .batch_execute("UPDATE t SET v = v + 1 WHERE id = 1")
            .await
            .unwrap();
        let seen = world.faults.take_seen();
        assert!(seen.contains(&cancel) && !seen.contains(&"abort"), "{seen:?}");
    }
    client.batch_execute("COMMIT").await.unwrap();
    blocker.batch_execute("ROLLBACK").await.unwrap();
    let row = client
        .query_one("SELECT string_agg(v::text, ',' ORDER BY id) FROM t", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "7,0");
}

/// Three real voters, with a table whose rows are partitions of their own.
async fn real() -> (World, Client) {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE warehouse (w_id int PRIMARY KEY, w_ytd int); CREATE TABLE t (id int)")
        .await
        .unwrap();
    client
        .batch_execute("INSERT INTO warehouse VALUES (1, 0), (2, 0)")
        .await
        .unwrap();
    (world, client)
}

async fn settled(world: &World) -> String {
    tokio::time::sleep(Duration::from_millis(500)).await;
    world
        .everywhere("SELECT string_agg(w_ytd::text, ',' ORDER BY w_id) FROM warehouse")
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_voters_join_a_transaction_under_way() {
    let (world, client) = real().await;
    let update = "UPDATE warehouse SET w_ytd = w_ytd + 1 WHERE w_id = 1";
    for machine in 1..=3_u8 {
        client.batch_execute(&format!("BEGIN; {update}")).await.unwrap();
        client.batch_execute(update).await.unwrap();
        world.faults.mute(machine);
        client.batch_execute(update).await.unwrap();
        client
            .batch_execute("UPDATE warehouse SET w_ytd = w_ytd + 1 WHERE w_id = 2")
            .await
            .unwrap();
        let sum = "SELECT w_ytd::bigint FROM warehouse WHERE w_id = 1";
        assert_eq!(number(&client, sum).await, i64::from(machine) * 3);
        client.batch_execute("COMMIT").await.unwrap();
        world.faults.heal();
    }
    assert_eq!(settled(&world).await, "9,3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_voters_go_on_after_a_cancelled_statement() {
    let (world, client) = real().await;
    let other = world.connect().await;
    other
        .batch_execute("BEGIN; UPDATE warehouse SET w_ytd = 100 WHERE w_id = 2")
        .await
        .unwrap();
    let update = "UPDATE warehouse SET w_ytd = w_ytd + 1 WHERE w_id = 1";
    client.batch_execute("SET statement_timeout = '700ms'").await.unwrap();
    client
        .batch_execute(&format!("BEGIN; {update}; SAVEPOINT s; {update}"))
        .await
        .unwrap();
    // One that waits for locks, and one that runs without end.
    for text in [
        "UPDATE warehouse SET w_ytd = 50 WHERE w_id = 2",
        "UPDATE warehouse SET w_ytd = (SELECT sum(x) FROM generate_series(1, 100000000000) x) WHERE w_id = 1",
        "SELECT count(*) FROM generate_series(1, 100000000000)",
    ] {
        let start = Instant::now();
        assert_eq!(code(&client, text).await, "57014", "{text}");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        client.batch_execute("ROLLBACK TO s").await.unwrap();
        client.batch_execute(update).await.unwrap();
    }
    client.batch_execute("COMMIT").await.unwrap();
    other.batch_execute("COMMIT").await.unwrap();
    assert_eq!(settled(&world).await, "2,100");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_voters_stop_a_cancelled_write_that_runs() {
    let (world, client) = real().await;
    client.batch_execute("SET statement_timeout = '300ms'").await.unwrap();
    let endless = "INSERT INTO t SELECT x FROM generate_series(1, 100000000000) x";
    assert_eq!(code(&client, endless).await, "57014");
    client.batch_execute("SET statement_timeout = 0").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, 1);
    // The same as a direct statement of a transaction: it holds everything.
    client.batch_execute("SET statement_timeout = '700ms'").await.unwrap();
    client
        .batch_execute("BEGIN; CREATE TABLE u (id int); SAVEPOINT s")
        .await
        .unwrap();
    assert_eq!(code(&client, endless).await, "57014");
    client
        .batch_execute("ROLLBACK TO s; INSERT INTO u VALUES (7); COMMIT")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let both = "SELECT (SELECT string_agg(id::text, ',') FROM t) || ';' || (SELECT string_agg(id::text, ',') FROM u)";
    assert_eq!(world.everywhere(both).await, "1;7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_voters_say_what_a_deferred_constraint_says() {
    let (world, client) = real().await;
    client
        .batch_execute("CREATE TABLE child (id int REFERENCES warehouse DEFERRABLE INITIALLY DEFERRED)")
        .await
        .unwrap();
    client
        .batch_execute("BEGIN; INSERT INTO child VALUES (5)")
        .await
        .unwrap();
    assert_eq!(code(&client, "COMMIT").await, "23503");
    assert_eq!(code(&client, "INSERT INTO child VALUES (6)").await, "23503");
    client.batch_execute("INSERT INTO child VALUES (1)").await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        world.everywhere("SELECT string_agg(id::text, ',') FROM child").await,
        "1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_at_commit_are_certified_there() {
    let world = World::start().await;
    let client = with_table(&world).await;
    client.batch_execute("INSERT INTO t VALUES (1, 5)").await.unwrap();
    client.batch_execute("SET cloudbft.answers = at_commit").await.unwrap();
    world.faults.take_live();
    world.faults.take_words();
    let update = "UPDATE t SET v = v + 1 WHERE id = 1";
    for _ in 0..3 {
        client.batch_execute("BEGIN").await.unwrap();
        assert!(number(&client, "SELECT v::bigint FROM t").await >= 5);
        client.batch_execute(update).await.unwrap();
        client.batch_execute("COMMIT").await.unwrap();
    }
    let live = world.faults.take_live();
    assert!(live.iter().all(|mask| mask.count_ones() == 1), "{live:?}");
    assert_eq!(
        world.faults.take_words().iter().map(Vec::len).collect::<Vec<_>>(),
        [2, 2, 2]
    );
    assert_eq!(number(&client, "SELECT v::bigint FROM t").await, 8);
    // What one voter invents, the others do not certify, be it the answer to a read or to a write.
    let mut outcomes = Vec::new();
    for text in ["SELECT v FROM t", update] {
        for machine in [1, 1, 1, 2, 2, 2_u8] {
            client
                .batch_execute("BEGIN; UPDATE t SET v = v WHERE id = 1")
                .await
                .unwrap();
            world.faults.liar(machine);
            client.batch_execute(text).await.unwrap();
            world.faults.heal();
            outcomes.push(client.batch_execute("COMMIT").await.is_err());
            client.batch_execute("ROLLBACK").await.unwrap();
        }
    }
    let failed = outcomes.iter().filter(|failed| **failed).count();
    assert_eq!(failed, 4, "one in three has the liar for its voter: {outcomes:?}");
    assert_eq!(number(&client, "SELECT v::bigint FROM t").await, 12);
    // A transaction reads what it has not written as if outside it: f+1 voters answer at once, and COMMIT has nothing to certify.
    world.faults.take_live();
    for machine in 1..=3 {
        world.faults.liar(machine);
        client.batch_execute("BEGIN").await.unwrap();
        assert_eq!(number(&client, "SELECT v::bigint FROM t").await, 12);
        client.batch_execute("COMMIT").await.unwrap();
        world.faults.heal();
    }
    assert!(world.faults.take_live().is_empty());
    client
        .batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT v FROM t; COMMIT")
        .await
        .unwrap();
    assert_eq!(
        world
            .faults
            .take_live()
            .iter()
            .map(|mask| mask.count_ones())
            .sum::<u32>(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_voters_certify_answers_at_commit() {
    let (world, client) = real().await;
    client.batch_execute("SET cloudbft.answers = at_commit").await.unwrap();
    let update = "UPDATE warehouse SET w_ytd = w_ytd + 1 WHERE w_id = 1";
    for turn in 0..3 {
        client.batch_execute("BEGIN").await.unwrap();
        let read = "SELECT w_ytd::bigint FROM warehouse WHERE w_id = 1";
        assert_eq!(number(&client, read).await, turn * 2);
        client.batch_execute(update).await.unwrap();
        client
            .batch_execute("SAVEPOINT s; UPDATE warehouse SET w_ytd = 9 WHERE w_id = 2")
            .await
            .unwrap();
        client.batch_execute("ROLLBACK TO s").await.unwrap();
        client.batch_execute(update).await.unwrap();
        assert_eq!(number(&client, read).await, turn * 2 + 2);
        client.batch_execute("COMMIT").await.unwrap();
    }
    assert_eq!(settled(&world).await, "6,0");
}
