//! Voters that lie, are silent, or differ; and the proxy's own limits.

mod support;

use std::time::{Duration, Instant};

use proxy::ProxyConfig;
use support::World;
use support::raw::{Raw, query};

fn quick(config: &mut ProxyConfig) {
    config.statement_timeout = Duration::from_millis(1500);
    config.transaction_timeout = Duration::from_millis(700);
}

async fn code(client: &tokio_postgres::Client, text: &str) -> Option<String> {
    client
        .batch_execute(text)
        .await
        .err()
        .and_then(|error| error.code().map(|code| code.code().to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_liar_is_outvoted() {
    let world = World::start().await;
    let mut client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
        .await
        .unwrap();
    for machine in 1..=3 {
        world.faults.heal();
        world.faults.liar(machine);
        let transaction = client.transaction().await.unwrap();
        transaction
            .execute("INSERT INTO t VALUES ($1, 7)", &[&i32::from(machine)])
            .await
            .unwrap();
        for _ in 0..3 {
            let row = transaction
                .query_one("SELECT v FROM t WHERE id = $1", &[&i32::from(machine)])
                .await
                .unwrap();
            assert_eq!(row.get::<_, i32>(0), 7);
        }
        transaction.commit().await.unwrap();
        for _ in 0..3 {
            let row = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), i64::from(machine));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_result_is_asked_for_again() {
    let world = World::start().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .unwrap();
    for machine in 1..=3 {
        world.faults.heal();
        world.faults.forger(machine);
        for id in 0..3 {
            let id = i32::from(machine) * 10 + id;
            let row = client
                .query_one("INSERT INTO t VALUES ($1) RETURNING id", &[&id])
                .await
                .unwrap();
            assert_eq!(row.get::<_, i32>(0), id);
            let row = client.query_one("SELECT max(id) FROM t", &[]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_voter_costs_little() {
    let world = World::start().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .unwrap();
    world.faults.mute(2);
    let start = Instant::now();
    for id in 0..20 {
        client.execute("INSERT INTO t VALUES ($1)", &[&id]).await.unwrap();
        client.query_one("SELECT max(id) FROM t", &[]).await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_the_application_is_told() {
    let world = World::start_with(quick).await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .unwrap();
    [1, 2].into_iter().for_each(|machine| world.faults.mute(machine));
    assert_eq!(code(&client, "SELECT * FROM t").await.as_deref(), Some("BF005"));
    // Without words nothing is ordered to commit: the insertion is known to have no effect.
    assert_eq!(
        code(&client, "INSERT INTO t VALUES (1)").await.as_deref(),
        Some("BF005")
    );
    world.faults.heal();
    [1, 2]
        .into_iter()
        .for_each(|machine| world.faults.mute_at_commit(machine));
    assert_eq!(
        code(&client, "INSERT INTO t VALUES (2)").await.as_deref(),
        Some("08007")
    );
    client.batch_execute("BEGIN; INSERT INTO t VALUES (3)").await.unwrap();
    assert_eq!(code(&client, "COMMIT").await.as_deref(), Some("08007"));
    assert_eq!(code(&client, "VACUUM t").await.as_deref(), Some("08007"));
    world.faults.heal();
    client.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_transaction_is_aborted() {
    let world = World::start_with(quick).await;
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("CREATE TABLE t (id int PRIMARY KEY)")).await;
    raw.tags(&query("BEGIN; INSERT INTO t VALUES (1)")).await;
    world.faults.take_seen();
    let end = raw.next().await.unwrap();
    assert_eq!(end.field(b'C').as_deref(), Some("25P03"));
    assert!(raw.next().await.is_none());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.faults.take_seen(), ["abort"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_application_leaves_nothing_open() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("CREATE TABLE t (id int PRIMARY KEY)")).await;
    raw.tags(&query("BEGIN; INSERT INTO t VALUES (1)")).await;
    drop(raw);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.faults.take_seen().last(), Some(&"abort"));
    let client = world.connect().await;
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_room_for_so_many_connections() {
    let world = World::start_with(|config| config.connections_max = 2).await;
    let first = world.connect().await;
    let _second = world.connect().await;
    let error = world.try_connect("").await.err().unwrap();
    assert_eq!(error.code().map(|code| code.code()), Some("53300"));
    drop(first);
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.connect().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_lets_transactions_end() {
    let mut world = World::start().await;
    let mut idle = Raw::login(world.address).await;
    let mut busy = Raw::login(world.address).await;
    busy.tags(&query("CREATE TABLE t (id int PRIMARY KEY)")).await;
    busy.tags(&query("BEGIN; INSERT INTO t VALUES (1)")).await;
    world.stop();
    assert_eq!(idle.next().await.unwrap().field(b'C').as_deref(), Some("57P01"));
    assert_eq!(busy.tags(&query("COMMIT")).await, "CZ");
    assert_eq!(busy.next().await.unwrap().field(b'C').as_deref(), Some("57P01"));
    let direct = world.servers[0].connect().await;
    assert_eq!(
        direct
            .query_one("SELECT count(*) FROM t", &[])
            .await
            .unwrap()
            .get::<_, i64>(0),
        1
    );
    tokio::time::timeout(Duration::from_secs(5), &mut world.proxy)
        .await
        .unwrap()
        .unwrap();
}
