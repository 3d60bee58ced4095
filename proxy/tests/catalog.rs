//! How the proxy keeps its view of the catalog, with three real voters.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use support::World;
use tokio_postgres::Client;

async fn run(client: &Client, text: &str) {
    client
        .batch_execute(text)
        .await
        .unwrap_or_else(|error| panic!("{text}: {error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_ddl_only_the_changes_are_asked_for_and_after_nothing_not_even_those() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    assert_eq!(world.faults.take_catalog_readings(), ["whole"]);
    run(&client, "CREATE TABLE a (id int PRIMARY KEY, v int)").await;
    // The proxy knows the table that its session has just created, and locks this table alone.
    world.faults.take_seen();
    run(&client, "INSERT INTO a VALUES (1, 2)").await;
    assert_eq!(world.faults.take_seen(), ["one-shot"]);
    assert_eq!(world.faults.take_catalog_readings(), ["changes"]);

    for nothing in ["DROP TABLE IF EXISTS nothing", "CREATE TABLE IF NOT EXISTS a (id int)"] {
        run(&client, nothing).await;
        run(&client, "UPDATE a SET v = 3 WHERE id = 1").await;
        assert_eq!(world.faults.take_catalog_readings(), [""; 0], "{nothing}");
    }
    run(
        &client,
        "BEGIN; CREATE TABLE b (id int PRIMARY KEY); ALTER TABLE a ADD COLUMN w int; DROP TABLE IF EXISTS c; COMMIT",
    )
    .await;
    world.faults.take_seen();
    run(&client, "INSERT INTO b VALUES (1)").await;
    run(&client, "UPDATE a SET w = 3 WHERE id = 1").await;
    assert_eq!(world.faults.take_seen(), ["one-shot", "one-shot"]);
    assert_eq!(world.faults.take_catalog_readings(), ["changes"]);
    // A table that is gone is gone for the proxy too, and what was rolled back has never been.
    run(&client, "BEGIN; CREATE TABLE c (id int); ROLLBACK").await;
    run(&client, "DROP TABLE b").await;
    let error = client.batch_execute("INSERT INTO b VALUES (2)").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42P01");
    assert_eq!(world.faults.take_catalog_readings(), ["changes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_do_ddl_at_once_leave_the_proxy_with_what_there_is() {
    let world = World::start_voters().await;
    let mut sessions = tokio::task::JoinSet::new();
    for session in 0..4 {
        let client = world.connect().await;
        sessions.spawn(async move {
            for number in 0..6 {
                run(
                    &client,
                    &format!("CREATE TABLE t_{session}_{number} (id int PRIMARY KEY, v int)"),
                )
                .await;
                run(&client, &format!("INSERT INTO t_{session}_{number} VALUES (1, 1)")).await;
                run(&client, &format!("ALTER TABLE t_{session}_{number} RENAME v TO w")).await;
            }
        });
    }
    while let Some(ended) = sessions.join_next().await {
        ended.unwrap();
    }
    let client = world.connect().await;
    run(&client, "CREATE TABLE last (id int PRIMARY KEY)").await;
    run(&client, "INSERT INTO last VALUES (1)").await;
    world.faults.take_seen();
    for session in 0..4 {
        for number in 0..6 {
            run(&client, &format!("UPDATE t_{session}_{number} SET w = 2 WHERE id = 1")).await;
        }
    }
    assert_eq!(world.faults.take_seen(), ["one-shot"; 24]);
    let readings = world.faults.take_catalog_readings();
    assert_eq!(
        readings.iter().filter(|kind| **kind == "whole").count(),
        1,
        "{readings:?}"
    );
}

/// Voters that remember nothing: the whole catalog is read.
#[tokio::test(flavor = "multi_thread")]
async fn what_voters_do_not_remember_is_read_whole() {
    let world = World::start().await;
    let client = world.connect().await;
    run(&client, "CREATE TABLE a (id int PRIMARY KEY, v int)").await;
    world.faults.take_seen();
    run(&client, "INSERT INTO a VALUES (1, 2)").await;
    assert_eq!(world.faults.take_catalog_readings(), ["whole", "changes", "whole"]);
    assert_eq!(world.faults.take_seen(), ["one-shot"]);
}
