//! Rows that stand in another order on each server, and statements of which the answer or the error depends on it: three real
//! voters, with a server each.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::{Duration, Instant};

use support::World;
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

/// A cluster with rows 1, 2 and 3 in `source`, of which each server meets another one first, and all of them in `target`.
async fn turned() -> (World, Client) {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute(
            "CREATE TABLE source (id int PRIMARY KEY, v text); CREATE TABLE target (id int PRIMARY KEY, v text); \
             INSERT INTO source VALUES (1, 'a'), (2, 'b'), (3, 'c'); INSERT INTO target TABLE source",
        )
        .await
        .unwrap();
    for (turn, server) in world.servers.iter().enumerate() {
        let connection = server.supervise().await;
        let start = Instant::now();
        while connection
            .query_one("SELECT count(*) FROM target", &[])
            .await
            .map_or(0, |row| row.get::<_, i64>(0))
            < 3
        {
            assert!(start.elapsed() < Duration::from_secs(20), "the rows are not everywhere");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let text = format!(
            "CREATE TABLE kept AS TABLE source; DELETE FROM source; \
             INSERT INTO source SELECT * FROM kept ORDER BY (id + {turn}) % 3; DROP TABLE kept"
        );
        connection.batch_execute(&text).await.unwrap();
    }
    (world, client)
}

async fn failure(client: &Client, text: &str) -> DbError {
    let start = Instant::now();
    let error = client.batch_execute(text).await.unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{text} took {:?}",
        start.elapsed()
    );
    error.as_db_error().unwrap().clone()
}

/// Less than the two seconds after which a set of rows suffices where no f+1 voters agree on the order.
const WITHOUT_FALLBACK: Duration = Duration::from_millis(1900);

const TAKEN: &str = "INSERT INTO target SELECT * FROM source";

fn says_what_all_say(error: &DbError) {
    assert_eq!(error.code().code(), "23505", "{error:?}");
    assert_eq!(
        error.message(),
        "duplicate key value violates unique constraint \"target_pkey\""
    );
    assert_eq!(error.detail(), Some("Each database server met another row first."));
    assert_eq!(error.constraint(), Some("target_pkey"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_names_another_row_on_each_server_is_told_without_the_row() {
    let (world, client) = turned().await;
    for answers in ["voted", "at_commit"] {
        client
            .batch_execute(&format!("SET cloudbft.answers = {answers}"))
            .await
            .unwrap();
        says_what_all_say(&failure(&client, TAKEN).await);
        let words = failure(&client, "SELECT v::int FROM source").await;
        assert_eq!(words.code().code(), "22P02", "{words:?}");
    }
    assert_eq!(world.everywhere("SELECT count(*)::text FROM target").await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_goes_on_behind_such_an_error_and_commits() {
    let (world, client) = turned().await;
    for (round, answers) in ["voted", "at_commit", "voted", "at_commit"].into_iter().enumerate() {
        client
            .batch_execute(&format!("SET cloudbft.answers = {answers}"))
            .await
            .unwrap();
        client
            .batch_execute(&format!(
                "BEGIN; INSERT INTO target VALUES (10{round}, 'x'); SAVEPOINT s"
            ))
            .await
            .unwrap();
        let error = failure(&client, TAKEN).await;
        assert_eq!(error.code().code(), "23505", "{error:?}");
        if answers == "voted" {
            says_what_all_say(&error);
        }
        let start = Instant::now();
        client
            .batch_execute(&format!(
                "ROLLBACK TO s; INSERT INTO target VALUES (20{round}, 'y'); COMMIT"
            ))
            .await
            .unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    let all = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM target";
    wait_for(&world, all, "1 2 3 100 101 102 103 200 201 202 203").await;
}

/// Waits until all servers have the same answer: none has been left behind.
async fn wait_for(world: &World, text: &str, expected: &str) {
    for server in &world.servers {
        let connection = server.supervise().await;
        let start = Instant::now();
        loop {
            // The table itself may not be there yet.
            let found = connection
                .query_one(text, &[])
                .await
                .map(|row| row.get::<_, Option<String>>(0));
            if found.as_ref().is_ok_and(|found| found.as_deref() == Some(expected)) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{found:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_about_rows_in_another_order_are_told() {
    let (world, client) = turned().await;
    client
        .batch_execute(
            "CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE NOTICE 'row %', NEW.id; RETURN NEW; END $$; \
             CREATE TRIGGER say BEFORE UPDATE ON source FOR EACH ROW EXECUTE FUNCTION say()",
        )
        .await
        .unwrap();
    client.batch_execute("UPDATE source SET v = v || '!'").await.unwrap();
    wait_for(&world, "SELECT string_agg(v, ' ' ORDER BY id) FROM source", "a! b! c!").await;
}

/// Each server would answer otherwise, were it not for the order that the primary key gives.
#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_its_order_open_is_answered_in_the_order_of_the_key() {
    let (_world, client) = turned().await;
    client
        .batch_execute("UPDATE source SET v = 'x' WHERE id < 3")
        .await
        .unwrap();
    for (text, expected) in [
        ("SELECT id::text FROM source LIMIT 1", "1"),
        ("SELECT id::text FROM source ORDER BY v DESC LIMIT 1", "1"),
        ("SELECT id::text FROM source ORDER BY v DESC OFFSET 1 LIMIT 1", "2"),
        ("SELECT string_agg(id::text, ' ') FROM source", "1 2 3"),
        ("SELECT string_agg(id::text, ' ' ORDER BY v DESC) FROM source", "1 2 3"),
        ("SELECT array_agg(id)::text FROM source", "{1,2,3}"),
        ("SELECT ARRAY(SELECT id FROM source)::text", "{1,2,3}"),
        (
            "SELECT json_agg(s.id)::text FROM (SELECT id FROM source) AS s",
            "[1, 2, 3]",
        ),
        (
            "SELECT sum((CASE id WHEN 2 THEN 1e16 ELSE 1 END)::float8)::text FROM source",
            "1e+16",
        ),
        (
            "SELECT string_agg(n || ':' || id, ' ' ORDER BY n) FROM (SELECT id, row_number() OVER () AS n FROM source) AS s",
            "1:1 2:2 3:3",
        ),
        ("SELECT DISTINCT ON (v) id::text FROM source WHERE v = 'x'", "1"),
    ] {
        let start = Instant::now();
        let found: String = client.query_one(text, &[]).await.unwrap().get(0);
        assert_eq!(found, expected, "{text}");
        assert!(start.elapsed() < WITHOUT_FALLBACK, "{text} took {:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_in_an_order_left_open_is_written_in_the_order_of_the_key() {
    let (world, client) = turned().await;
    client
        .batch_execute(
            "CREATE TABLE numbered (n serial PRIMARY KEY, id int); \
             INSERT INTO numbered (id) SELECT id FROM source; \
             CREATE TABLE agreed AS SELECT string_agg(v, '') AS v FROM source; \
             UPDATE target SET v = 'taken' WHERE id = (SELECT id FROM source LIMIT 1 FOR UPDATE); \
             INSERT INTO target SELECT 10 + id % 2, v FROM source ON CONFLICT (id) DO NOTHING",
        )
        .await
        .unwrap();
    wait_for(
        &world,
        "SELECT string_agg(n || ':' || id, ' ' ORDER BY n) FROM numbered",
        "1:1 2:2 3:3",
    )
    .await;
    wait_for(&world, "SELECT v FROM agreed", "abc").await;
    let target = "SELECT string_agg(id || v, ' ' ORDER BY id) FROM target";
    wait_for(&world, target, "1taken 2b 3c 10b 11a").await;
}

/// The catalog that voters analyse with is that of before the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_transaction_has_dropped_or_renamed_gives_no_order() {
    let (world, client) = turned().await;
    client
        .batch_execute("BEGIN; ALTER TABLE source RENAME id TO uid")
        .await
        .unwrap();
    client
        .batch_execute("SELECT v FROM source ORDER BY v LIMIT 1; COMMIT; ALTER TABLE source RENAME uid TO id")
        .await
        .unwrap();
    client
        .batch_execute("BEGIN; ALTER TABLE source DROP CONSTRAINT source_pkey")
        .await
        .unwrap();
    let error = failure(&client, "DELETE FROM source WHERE v IN (SELECT v FROM source LIMIT 1)").await;
    assert_eq!(error.code().code(), "BF002", "{error:?}");
    client.batch_execute("ROLLBACK").await.unwrap();
    client
        .batch_execute("BEGIN; CREATE TABLE numbered (n serial PRIMARY KEY, v text); CREATE TABLE kept AS TABLE source")
        .await
        .unwrap();
    let error = failure(&client, "INSERT INTO numbered (v) SELECT v FROM kept").await;
    assert_eq!(error.code().code(), "BF002", "{error:?}");
    client
        .batch_execute("ROLLBACK; BEGIN; CREATE TABLE numbered (n serial PRIMARY KEY, v text)")
        .await
        .unwrap();
    client
        .batch_execute("INSERT INTO numbered (v) SELECT v FROM source; COMMIT")
        .await
        .unwrap();
    wait_for(
        &world,
        "SELECT string_agg(n || v, ' ' ORDER BY n) FROM numbered",
        "1a 2b 3c",
    )
    .await;
}
