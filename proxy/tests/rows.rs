//! Rows are locked, not tables: sessions on three real voters with a server each (`docs/decisions/0046`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use std::future::Future;
use std::time::Duration;

use sql::rules::PartitionRules;
use support::World;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// Longer than anything takes that does not wait for a lock, also on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Long enough to see that something waits.
const WAITS: Duration = Duration::from_millis(700);

async fn at_once<T>(what: impl Future<Output = Result<T, tokio_postgres::Error>>) -> T {
    tokio::time::timeout(AT_ONCE, what)
        .await
        .expect("waits for nobody")
        .unwrap()
}

async fn run(client: &Client, text: &str) {
    at_once(client.batch_execute(text)).await;
}

/// Starts a statement that must wait.
async fn waiting(client: Client, text: &'static str) -> tokio::task::JoinHandle<Result<Client, tokio_postgres::Error>> {
    let task = tokio::spawn(async move {
        client.batch_execute(text).await?;
        Ok(client)
    });
    tokio::time::sleep(WAITS).await;
    assert!(!task.is_finished(), "{text} does not wait");
    task
}

/// Three voters that lock rows.
async fn start() -> World {
    World::start_voters_with(PartitionRules {
        lock_rows: true,
        ..PartitionRules::tpcc()
    })
    .await
}

async fn with_tables(world: &World) -> Client {
    let client = world.connect().await;
    run(&client, "CREATE TABLE a (id int PRIMARY KEY, v int)").await;
    run(&client, "CREATE TABLE b (id int PRIMARY KEY, v int)").await;
    run(&client, "INSERT INTO a VALUES (1, 0), (2, 0), (3, 0)").await;
    run(&client, "INSERT INTO b VALUES (1, 0), (2, 0), (3, 0)").await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_writers_of_the_same_row_wait() {
    let world = start().await;
    let one = with_tables(&world).await;
    let (other, third) = (world.connect().await, world.connect().await);
    // Different rows, in different orders of the tables.
    run(&one, "BEGIN; UPDATE a SET v = v + 1 WHERE id = 1").await;
    run(&other, "BEGIN; UPDATE b SET v = v + 1 WHERE id = 2").await;
    run(&one, "UPDATE b SET v = v + 1 WHERE id = 1").await;
    run(&other, "UPDATE a SET v = v + 1 WHERE id = 2").await;
    run(&third, "UPDATE a SET v = v + 1 WHERE id = 3").await;
    run(&third, "INSERT INTO a VALUES (4, 1)").await;
    run(&other, "COMMIT").await;
    // The same row, and the table, wait.
    let same = waiting(other, "UPDATE a SET v = v + 10 WHERE id = 1").await;
    let all = waiting(third, "UPDATE a SET v = v + 100").await;
    run(&one, "COMMIT").await;
    at_once(async { same.await.unwrap() }).await;
    at_once(async { all.await.unwrap() }).await;
    let rows = "SELECT string_agg(id || ':' || v, ' ' ORDER BY id) FROM a";
    assert_eq!(world.everywhere(rows).await, "1:111 2:101 3:101 4:101");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_rows_in_different_orders_deadlock() {
    let world = start().await;
    let one = with_tables(&world).await;
    let other = world.connect().await;
    run(&one, "BEGIN; SELECT v FROM a WHERE id = 1 FOR UPDATE").await;
    run(&other, "BEGIN; UPDATE a SET v = 1 WHERE id = 2").await;
    let first = waiting(one, "UPDATE a SET v = 1 WHERE id = 2").await;
    let error = at_once(async {
        Ok(other
            .batch_execute("UPDATE a SET v = 2 WHERE id = 1")
            .await
            .unwrap_err())
    })
    .await;
    assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED));
    run(&other, "ROLLBACK").await;
    let one = at_once(async { first.await.unwrap() }).await;
    run(&one, "COMMIT").await;
    assert_eq!(
        world
            .everywhere("SELECT string_agg(v::text, ' ' ORDER BY id) FROM a")
            .await,
        "0 1 0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_values_are_taken_one_after_the_other() {
    let world = start().await;
    let one = world.connect().await;
    run(
        &one,
        "CREATE TABLE member (id int PRIMARY KEY, email text UNIQUE, note text)",
    )
    .await;
    run(&one, "INSERT INTO member VALUES (1, 'a'), (2, 'b')").await;
    let other = world.connect().await;
    run(&one, "BEGIN; INSERT INTO member VALUES (3, 'c')").await;
    run(&other, "INSERT INTO member VALUES (4, 'd')").await;
    let same = waiting(other, "INSERT INTO member VALUES (5, 'c')").await;
    run(&one, "COMMIT").await;
    let error = same.await.unwrap().err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::UNIQUE_VIOLATION));
    // What is given free can be taken, and only then.
    let other = world.connect().await;
    run(&one, "BEGIN; DELETE FROM member WHERE id = 1").await;
    let freed = waiting(other, "INSERT INTO member VALUES (6, 'a')").await;
    run(&one, "COMMIT").await;
    let other = at_once(async { freed.await.unwrap() }).await;
    // In PostgreSQL the same value is waited for, whatever of its row is changed: so the lock table must see it.
    run(&one, "BEGIN; UPDATE member SET note = 'n' WHERE id = 2").await;
    let waits = waiting(other, "INSERT INTO member VALUES (7, 'b')").await;
    run(&one, "COMMIT").await;
    let error = waits.await.unwrap().err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::UNIQUE_VIOLATION));
    let members = "SELECT string_agg(id || email, ' ' ORDER BY id) FROM member";
    assert_eq!(world.everywhere(members).await, "2b 3c 4d 6a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reads_or_references_rows_waits_for_them() {
    let world = start().await;
    let one = with_tables(&world).await;
    run(&one, "CREATE TABLE child (id int PRIMARY KEY, a_id int REFERENCES a)").await;
    run(&one, "CREATE TABLE total (v int)").await;
    let (other, third) = (world.connect().await, world.connect().await);
    run(&one, "BEGIN; UPDATE a SET v = 7 WHERE id = 1").await;
    run(&other, "INSERT INTO child VALUES (1, 2)").await;
    run(&one, "DELETE FROM a WHERE id = 3").await;
    let sum = waiting(third, "INSERT INTO total SELECT sum(v)::int FROM a").await;
    let orphan = waiting(other, "INSERT INTO child VALUES (2, 3)").await;
    run(&one, "COMMIT").await;
    at_once(async { sum.await.unwrap() }).await;
    let error = orphan.await.unwrap().err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::FOREIGN_KEY_VIOLATION));
    assert_eq!(
        world.everywhere("SELECT string_agg(v::text, ' ') FROM total").await,
        "7"
    );
}

/// Transfers between two accounts, crosswise: each session changes one account and writes an entry that references the other one. PostgreSQL lets
/// them pass each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_are_referenced_while_their_balances_change() {
    let world = start().await;
    let one = world.connect().await;
    run(
        &one,
        "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, owner text UNIQUE)",
    )
    .await;
    run(
        &one,
        "CREATE TABLE entry (id int PRIMARY KEY, account_id int REFERENCES account ON DELETE CASCADE, amount int)",
    )
    .await;
    run(
        &one,
        "INSERT INTO account VALUES (1, 100, 'a'), (2, 100, 'b'), (3, 100, 'c')",
    )
    .await;
    let other = world.connect().await;
    run(&one, "BEGIN; UPDATE account SET balance = balance - 5 WHERE id = 1").await;
    run(&other, "BEGIN; UPDATE account SET balance = balance - 7 WHERE id = 2").await;
    run(&one, "INSERT INTO entry VALUES (1, 2, 5)").await;
    run(&other, "INSERT INTO entry VALUES (2, 1, 7)").await;
    run(&one, "COMMIT").await;
    run(&other, "COMMIT").await;
    // A snapshot that is older than the change does not matter to who references the row.
    run(
        &other,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM entry WHERE id = 9",
    )
    .await;
    run(&one, "UPDATE account SET balance = 0 WHERE id = 3").await;
    run(&other, "INSERT INTO entry VALUES (3, 3, 1); COMMIT").await;
    // As in PostgreSQL, a reference waits for a session that has locked the row or changed any unique key of it.
    for change in [
        "SELECT balance FROM account WHERE id = 1 FOR UPDATE",
        "UPDATE account SET owner = 'd' WHERE id = 1",
        "DELETE FROM account WHERE id = 1",
    ] {
        let other = world.connect().await;
        run(&one, &format!("BEGIN; {change}")).await;
        let waits = waiting(other, "INSERT INTO entry VALUES (4, 1, 1)").await;
        // The wait is the lock table's: no server knows of it.
        let hidden = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        for server in &world.servers {
            let row = at_once(async { server.supervise().await.query_one(hidden, &[]).await }).await;
            assert_eq!(row.get::<_, i64>(0), 0, "{change}");
        }
        run(&one, "ROLLBACK").await;
        let other = at_once(async { waits.await.unwrap() }).await;
        run(&other, "DELETE FROM entry WHERE id = 4").await;
    }
    // A reference waits for a session that makes the row, too: on no server is the row missing.
    let other = world.connect().await;
    run(&one, "BEGIN; INSERT INTO account VALUES (4, 0, 'e')").await;
    let waits = waiting(other, "INSERT INTO entry VALUES (5, 4, 1)").await;
    run(&one, "COMMIT").await;
    at_once(async { waits.await.unwrap() }).await;
    let entries = "SELECT string_agg(format('%s:%s:%s', e.id, account_id, balance), ' ' ORDER BY e.id) \
                   FROM entry e JOIN account a ON a.id = account_id";
    assert_eq!(world.everywhere(entries).await, "1:2:93 2:1:95 3:3:0 5:4:0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_read_from_all_voters_and_a_table_in_order() {
    let world = start().await;
    let client = with_tables(&world).await;
    let seen = |world: &World| -> Vec<&'static str> { world.faults.take_seen() };
    let one = client.prepare("SELECT v FROM a WHERE id = $1").await.unwrap();
    let all = client.prepare("SELECT sum(v) FROM a").await.unwrap();
    let two = client.prepare("SELECT v FROM a WHERE id IN (1, 2)").await.unwrap();
    let mut rows = Vec::new();
    for _ in 0..20 {
        // A voter that is a few milliseconds behind has a read ordered.
        tokio::time::sleep(Duration::from_millis(100)).await;
        seen(&world);
        at_once(client.query_one(&one, &[&1])).await;
        rows = seen(&world);
        if rows == ["read"] {
            break;
        }
    }
    assert_eq!(rows, ["read"]);
    at_once(client.query_one(&all, &[])).await;
    assert_eq!(
        seen(&world),
        ["ordered read"],
        "voters may have states of a table that never were"
    );
    at_once(client.query(&two, &[])).await;
    assert_eq!(seen(&world), ["ordered read"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_leave_equal_databases() {
    let world = start().await;
    let client = with_tables(&world).await;
    run(&client, "CREATE TABLE log (v int)").await;
    let sessions: Vec<_> = (0..4_u64).map(transfers).collect();
    let mut tasks = Vec::new();
    for texts in sessions {
        let client = world.connect().await;
        tasks.push(tokio::spawn(async move {
            let mut moved = 0;
            for (text, value) in texts {
                match client.batch_execute(&text).await {
                    Ok(()) => moved += value,
                    Err(error) => {
                        assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{text}");
                        client.batch_execute("ROLLBACK").await.unwrap();
                    }
                }
            }
            moved
        }));
    }
    let mut moved = 0;
    for task in tasks {
        moved += task.await.unwrap();
    }
    let sums = "SELECT concat_ws(' ', (SELECT sum(v) FROM a), (SELECT sum(v) FROM b), (SELECT sum(v) FROM log))";
    run(&client, "SELECT 1").await;
    let deadline = tokio::time::Instant::now() + AT_ONCE;
    // The slowest voter may not have committed all.
    while tokio::time::Instant::now() < deadline {
        let mut answers = Vec::new();
        for server in &world.servers {
            let row = server.connect().await.query_one(sums, &[]).await.unwrap();
            answers.push(row.get::<_, String>(0));
        }
        if answers.iter().all(|answer| *answer == answers[0]) {
            break;
        }
    }
    assert_eq!(world.everywhere(sums).await, format!("{moved} {moved} {moved}"));
    for table in ["a", "b", "log"] {
        let rows = format!("SELECT md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM {table} t");
        world.everywhere(&rows).await;
    }
}

/// Transactions that write one row of each table, in either order, and a row that nobody can name.
fn transfers(seed: u64) -> Vec<(String, i64)> {
    let mut state = seed + 1;
    let mut draw = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut transaction = || {
        let (a, b, value) = (1 + draw(3), 1 + draw(3), 1 + draw(99));
        let a = format!("UPDATE a SET v = v + {value} WHERE id = {a}");
        let b = format!("UPDATE b SET v = v + {value} WHERE id = {b}");
        let (first, second) = if draw(2) == 0 { (a, b) } else { (b, a) };
        let text = format!("BEGIN; {first}; INSERT INTO log VALUES ({value}); {second}; COMMIT");
        (text, i64::try_from(value).unwrap())
    };
    (0..15).map(|_| transaction()).collect()
}

/// Rows that were written in parallel stand in another order on each server, which decides in which order a unique key is checked: no
/// voter may be lost by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_rows_in_any_order_are_not_computed() {
    let world = start().await;
    let one = with_tables(&world).await;
    let other = world.connect().await;
    run(&one, "CREATE TABLE later (id int UNIQUE DEFERRABLE)").await;
    run(
        &one,
        "BEGIN; INSERT INTO a VALUES (12, 0); INSERT INTO later VALUES (2)",
    )
    .await;
    run(&other, "INSERT INTO a VALUES (11, 0)").await;
    run(&one, "COMMIT").await;
    run(&one, "INSERT INTO later VALUES (1)").await;
    let error = one.batch_execute("UPDATE a SET id = id + 1").await.unwrap_err();
    assert_eq!(error.code().map(SqlState::code), Some("BF002"), "{error}");
    run(&one, "UPDATE a SET id = 13 WHERE id = 12; UPDATE later SET id = id + 1").await;
    let all = "SELECT string_agg(id::text, ',' ORDER BY id) FROM ";
    assert_eq!(world.everywhere(&format!("{all} a")).await, "1,2,3,11,13");
    assert_eq!(world.everywhere(&format!("{all} later")).await, "2,3");
}
