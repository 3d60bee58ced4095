//! Object numbers (OIDs) are the same on all servers, whatever one server has numbered by itself (rule ObjectNumbers): three real
//! voters, with a server each.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::{Duration, Instant};

use support::World;
use tokio_postgres::{Client, SimpleQueryMessage};

/// All numbers of what users have made.
const NUMBERS: &str = "SELECT string_agg(format('%s %s %s', class, number, name), ', ' ORDER BY class, name, number) FROM ( \
    SELECT 'class' AS class, oid AS number, relname::text AS name FROM pg_class \
    UNION ALL SELECT 'type', oid, typname FROM pg_type \
    UNION ALL SELECT 'label', oid, enumlabel FROM pg_enum \
    UNION ALL SELECT 'constraint', oid, conname FROM pg_constraint \
    UNION ALL SELECT 'default', oid, adnum::text FROM pg_attrdef \
    UNION ALL SELECT 'function', oid, proname FROM pg_proc \
    UNION ALL SELECT 'trigger', oid, tgname FROM pg_trigger \
    UNION ALL SELECT 'file', relfilenode, relname FROM pg_class) AS o \
    WHERE number >= (SELECT oid FROM pg_class WHERE relname = 'first') \
    AND name NOT LIKE 'pg_toast%'";

async fn run(client: &Client, text: &str) {
    client
        .batch_execute(text)
        .await
        .unwrap_or_else(|error| panic!("{text}: {error}"));
}

async fn rows(client: &Client, text: &str) -> String {
    let messages = client.simple_query(text).await;
    let messages = messages.unwrap_or_else(|error| panic!("{text}: {error}"));
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("null").to_owned()),
        _ => None,
    });
    rows.collect::<Vec<_>>().join(" ")
}

/// Has one server number so many objects that no other has, as what is rolled back there alone, ANALYZE, or a crash does.
async fn leave_out(world: &World, server: usize, count: u32) {
    let text = format!(
        "SELECT count(pg_nextoid('pg_class'::regclass, 'oid', 'pg_class_oid_index'::regclass)) FROM generate_series(1, {count})"
    );
    world.servers[server].supervise().await.query(&text, &[]).await.unwrap();
}

/// The lowest and the highest next number of the servers.
async fn spread(world: &World) -> i64 {
    let mut next = Vec::new();
    for server in &world.servers {
        let text = "SELECT pg_nextoid('pg_class'::regclass, 'oid', 'pg_class_oid_index'::regclass)::bigint";
        next.push(
            server
                .supervise()
                .await
                .query_one(text, &[])
                .await
                .unwrap()
                .get::<_, i64>(0),
        );
    }
    next.iter().max().unwrap() - next.iter().min().unwrap()
}

/// Waits until a relation is on all servers, and gives the numbers, which are equal.
async fn equal_numbers(world: &World, last: &str) -> String {
    wait_for(world, last).await;
    world.everywhere(NUMBERS).await
}

/// The number of a relation, which is the same on all servers.
async fn equal_number(world: &World, relation: &str) -> u32 {
    wait_for(world, relation).await;
    let number = format!("SELECT oid::text FROM pg_class WHERE relname = '{relation}'");
    world.everywhere(&number).await.parse().unwrap()
}

async fn wait_for(world: &World, last: &str) {
    let found = format!("SELECT count(*) FROM pg_class WHERE relname = '{last}'");
    for server in &world.servers {
        let client = server.connect().await;
        let start = Instant::now();
        while client.query_one(&found, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "{last} is not everywhere");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_after_one_server_numbered_by_itself_has_equal_numbers_and_is_read() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    leave_out(&world, 2, 3).await;
    run(
        &client,
        "CREATE TABLE first (id serial PRIMARY KEY, v text DEFAULT 'x')",
    )
    .await;
    for (round, (server, count)) in [(0, 500), (1, 8_192), (2, 16_384)].into_iter().enumerate() {
        leave_out(&world, server, count).await;
        run(
            &client,
            &format!("CREATE TYPE mood_{round} AS ENUM ('sad', 'ok', 'happy')"),
        )
        .await;
        run(
            &client,
            &format!(
                "CREATE TABLE person_{round} (id int PRIMARY KEY, mood mood_{round} NOT NULL DEFAULT 'ok', \
                 friend int REFERENCES person_{round})"
            ),
        )
        .await;
        run(&client, &format!("INSERT INTO person_{round} VALUES (1, 'happy')")).await;
        let row = client
            .query_one(&format!("SELECT mood::text, mood FROM person_{round}"), &[])
            .await
            .unwrap();
        assert_eq!(row.get::<_, &str>(0), "happy");
        assert_eq!(row.columns()[1].type_().name(), format!("mood_{round}"));
        let shown = world.psql(&["-c", &format!("\\d person_{round}")]).await;
        assert!(
            shown.contains(&format!("mood_{round}")) && !shown.contains("ERROR"),
            "{shown}"
        );
        equal_numbers(&world, &format!("person_{round}")).await;
    }
    let dumped = world.run("pg_dump", &["-s", "-n", "public"]).await;
    assert!(
        dumped.contains("CREATE TABLE public.person_2") && !dumped.contains("error"),
        "{dumped}"
    );
}

/// The locks are taken before the numbers are asked for, also where the transaction has begun with less, and where one voter alone answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_comes_to_make_objects_numbers_them_alike() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    run(&client, "CREATE TABLE first (id int PRIMARY KEY, v text)").await;
    let wide =
        "INSERT INTO first SELECT 100, string_agg(md5(i::text), '' ORDER BY i) FROM generate_series(1, 400) AS i";
    for (round, setting) in ["voted", "at_commit"].into_iter().enumerate() {
        run(&client, &format!("SET cloudbft.answers = {setting}")).await;
        for (step, begin) in [
            "BEGIN",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("made_{round}_{step}");
            leave_out(&world, step, 700).await;
            run(
                &client,
                &format!("{begin}; INSERT INTO first VALUES ({round}{step}, 'a'); {wide}"),
            )
            .await;
            run(
                &client,
                &format!("SAVEPOINT s; CREATE TABLE {name}_not (id int); ROLLBACK TO s"),
            )
            .await;
            run(&client, &format!("CREATE TABLE {name} (id int PRIMARY KEY, v text)")).await;
            run(
                &client,
                &format!("DO $$ BEGIN CREATE TABLE {name}_too (id int); END $$"),
            )
            .await;
            run(&client, "DELETE FROM first WHERE id = 100; COMMIT").await;
            equal_numbers(&world, &format!("{name}_too")).await;
        }
    }
    leave_out(&world, 1, 700).await;
    run(&client, "DO $$ BEGIN CREATE TABLE done (id int); END $$").await;
    run(
        &client,
        "BEGIN; CREATE TEMP TABLE mine (id int PRIMARY KEY); CREATE VIEW seen AS SELECT * FROM done; COMMIT",
    )
    .await;
    equal_numbers(&world, "seen").await;
    assert_eq!(rows(&client, "SELECT count(*) FROM first").await, "6");
}

/// What one server has rolled back alone, since the others had not begun it when it was cancelled.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_after_a_statement_was_cancelled_has_equal_numbers() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    run(&client, "CREATE TABLE first (id int PRIMARY KEY, v text)").await;
    run(&client, "BEGIN; CREATE TABLE second (id int); SAVEPOINT s").await;
    let cancel = client.cancel_token();
    let stop = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    });
    let endless = "DO $$ BEGIN CREATE TABLE third (id int); FOR i IN 1..2000000000 LOOP END LOOP; END $$";
    let error = client.batch_execute(endless).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014", "{error}");
    stop.await.unwrap();
    leave_out(&world, 0, 50).await;
    run(&client, "ROLLBACK TO s; CREATE TABLE fourth (id int); COMMIT").await;
    // What was made before the cancelled statement was made again, after that had taken numbers here and there.
    equal_number(&world, "fourth").await;
    assert_eq!(rows(&client, "SELECT count(*) FROM second").await, "0");
}

/// A server that is further ahead than the others are drawn along at once is reached by and by; one that is away is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_far_apart_come_together_by_and_by() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    leave_out(&world, 2, 100_000).await;
    run(&client, "CREATE TABLE first (id int PRIMARY KEY)").await;
    assert!(
        spread(&world).await > 60_000,
        "one server alone draws nobody along so far"
    );
    for table in 0..3 {
        run(&client, &format!("CREATE TABLE table_{table} (id int PRIMARY KEY)")).await;
    }
    run(&client, "CREATE TABLE second (id int PRIMARY KEY)").await;
    assert!(equal_number(&world, "second").await > 100_000);

    // Two servers are ahead: the third follows them, and further at once.
    for server in [0, 1] {
        leave_out(&world, server, 60_000).await;
    }
    run(&client, "CREATE TABLE third (id int PRIMARY KEY)").await;
    assert!(equal_number(&world, "third").await > 160_000);

    // A server that crashes leaves out as many numbers, and cannot say so while it is away.
    world.faults.mute(3);
    leave_out(&world, 2, 8_192).await;
    let start = Instant::now();
    for table in 0..4 {
        run(&client, &format!("CREATE TABLE without_{table} (id int PRIMARY KEY)")).await;
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    world.faults.heal();
    for table in 0..4 {
        equal_number(&world, &format!("without_{table}")).await;
    }
    assert_eq!(rows(&client, "SELECT count(*) FROM without_3").await, "0");
}
