//! The server killed at any moment, the voter stopped beside it: nothing is lost, nothing runs twice.

use std::time::Duration;

use sql::footprint::Footprint;
use sql::operation::{Isolation, Work};
use voter::VoterState;

use crate::rig::{Rig, simple};

const ADD: &str = "UPDATE counter SET value = value + 1 WHERE id = 1";

async fn with_counter() -> Rig {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE counter (id int PRIMARY KEY, value int); INSERT INTO counter VALUES (1, 0)")
        .await;
    rig
}

async fn order_add(rig: &mut Rig) -> u64 {
    let exchange = simple(ADD).encode();
    rig.order(Footprint::everything(), Work::OneShot { exchange }).await
}

async fn assert_counted(rig: &Rig, wanted: u64) {
    rig.wait_until_serving().await;
    let last = rig.last_order();
    rig.wait_for_state(|state| matches!(state, VoterState::Serving { executed, .. } if executed.0 >= last))
        .await;
    assert_eq!(rig.psql("SELECT value FROM counter").await, wanted.to_string());
}

/// Kills the server while one-shots and a transaction commit, a little later each round; a COMMIT may be done and not
/// answered, or answered and lost with the end of the WAL (`synchronous_commit` is off and the WAL writer sleeps for 10 s).
#[tokio::test(flavor = "multi_thread")]
async fn each_operation_counts_once_whenever_the_server_is_killed() {
    let mut rig = with_counter().await;
    let mut wanted = 0;
    for round in 0..8 {
        let mut transaction = rig.new_transaction(Footprint::everything());
        rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(ADD))
            .await;
        rig.write(&mut transaction, &simple(ADD)).await;
        rig.commit(&transaction).await;
        for one_shot in 0..6 {
            if round % 3 == 1 && one_shot == 3 {
                rig.psql("SET synchronous_commit = on; CREATE TABLE flushed (); DROP TABLE flushed")
                    .await;
            }
            order_add(&mut rig).await;
        }
        wanted += 8;
        tokio::time::sleep(Duration::from_micros(round * 1300)).await;
        let with_voter = round % 2 == 1;
        rig.server.kill();
        if with_voter {
            rig.stop_voter().await;
            rig.forget_results();
        }
        rig.server.restart();
        if with_voter {
            rig.start_voter();
        }
        assert_counted(&rig, wanted).await;
    }
}

/// A commit whose record waits for a lock when the server is killed has not happened.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_killed_at_its_record_runs_again() {
    let mut rig = with_counter().await;
    let mut holder = rig.server.psql_behind(
        "test",
        "BEGIN; LOCK TABLE cloudbft.applied IN EXCLUSIVE MODE; SELECT pg_sleep(60)",
    );
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'cloudbft.applied'::regclass AND granted \
                  AND mode = 'ExclusiveLock'";
    while rig.psql(locked).await != "1" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    order_add(&mut rig).await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'cloudbft.applied'::regclass AND NOT granted";
    while rig.psql(waiting).await != "1" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.server.kill();
    holder.wait().unwrap();
    rig.wait_for_state(|state| matches!(state, VoterState::Down(_))).await;
    rig.server.restart();
    assert_counted(&rig, 1).await;
}

/// Positions that code of an application makes up count for nothing, and it finds nowhere what it would need to record one: not in
/// running queries, prepared statements, functions, or the log of a server that logs every statement.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_position_counts_for_nothing() {
    let mut rig = with_counter().await;
    rig.stop_voter().await;
    rig.psql("ALTER DATABASE test SET log_min_duration_statement = 0").await;
    rig.psql("ALTER DATABASE test SET log_min_messages = 'log'").await;
    rig.start_voter();
    rig.wait_until_serving().await;
    rig.run(ADD).await;
    let token = rig.psql("SELECT value FROM cloudbft.token").await;
    assert!(token.len() >= 32);
    let forged = [
        "SELECT cloudbft.set_applied(NULL, 'everything', 900, 900)",
        "SELECT cloudbft.set_applied('', 'everything', 900, 900)",
        "SELECT cloudbft.set_applied(value, 'everything', 900, 900) FROM cloudbft.token",
        "INSERT INTO cloudbft.applied VALUES ('everything', 900, 900)",
        "UPDATE cloudbft.applied SET granted = 900",
        "SELECT pg_logical_emit_message(true, 'cloudbft', 'everything 900 900')",
        "CREATE OR REPLACE FUNCTION cloudbft.set_applied(token text, home text, granted bigint, \"order\" bigint) \
         RETURNS void LANGUAGE sql AS 'SELECT'",
        "SET LOCAL search_path = public; CREATE FUNCTION public.set_applied(text, text, bigint, bigint) RETURNS void \
         LANGUAGE sql AS 'SELECT'",
    ];
    for text in forged {
        // In pieces, as the voter refuses what it sees before it runs.
        let quoted = text.replace('\'', "''").replace("cloudbft", "cloud' || 'bft");
        rig.run(&format!(
            "DO $$BEGIN EXECUTE '{quoted}'; EXCEPTION WHEN insufficient_privilege THEN NULL; END$$"
        ))
        .await;
    }
    rig.run(ADD).await;
    let last = rig.last_order();
    assert_eq!(
        rig.psql("SELECT home, granted, \"order\" FROM cloudbft.applied").await,
        format!("everything|{last}|0")
    );
    let shows = |from: &str| format!("SELECT count(*) FROM {from} AS x WHERE x::text LIKE '%{token}%'");
    for place in [
        "(SELECT * FROM pg_stat_activity WHERE pid <> pg_backend_pid())",
        "pg_prepared_statements",
        "pg_proc",
    ] {
        assert_eq!(rig.psql(&shows(place)).await, "0", "{place}");
    }
    let log = rig.server.log();
    assert!(log.contains("UPDATE counter"), "the server logs nothing");
    // The test's own queries name it.
    let shown = log
        .lines()
        .find(|line| line.contains(&token) && !line.contains("AS x WHERE"));
    assert_eq!(shown, None);
    rig.server.kill();
    rig.wait_for_state(|state| matches!(state, VoterState::Down(_))).await;
    rig.server.restart();
    assert_counted(&rig, 2).await;
}
