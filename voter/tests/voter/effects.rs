//! What a server has changed, as its voter says it; and what comes of a difference.

use std::time::Duration;

use ordering::identifiers::Digest;
use sql::footprint::Footprint;
use sql::operation::Isolation;
use voter::VoterState;

use crate::rig::{Rig, simple, sqlstate};

const NOTHING: Digest = [0; 32];

/// A function and tables of every shape.
const TABLES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TABLE keyed (id int PRIMARY KEY, v text, n numeric, f float8, r real, t timestamptz, m mood, a int[], b bytea,
        g int GENERATED ALWAYS AS (id * 2) STORED, c regclass);
    CREATE TABLE wide (id int PRIMARY KEY, big text, v int);
    CREATE TABLE keyless (v int, w text);
    CREATE TABLE other (id int PRIMARY KEY, v int);
    CREATE TABLE parts (id int, v int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (1000);
    CREATE TABLE total (id int PRIMARY KEY, sum numeric);
    INSERT INTO total VALUES (1, 0);
    CREATE FUNCTION add() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN UPDATE total SET sum = sum + NEW.v; RETURN NULL; END $$;
    CREATE TRIGGER add AFTER UPDATE ON other FOR EACH ROW EXECUTE FUNCTION add();";

/// What is run one by one, each a transaction of its own that changes something.
const STATEMENTS: [&str; 18] = [
    "INSERT INTO keyed VALUES (1, 'it''s', 1.50, 0.1, 0.1, '2001-02-03 04:05:06.789', 'happy', '{1,NULL,3}', '\\x00ff', DEFAULT, 'keyed')",
    "INSERT INTO wide SELECT 1, string_agg(md5(i::text), '' ORDER BY i), 0 FROM generate_series(1, 400) i",
    "UPDATE wide SET v = v + 1 WHERE id = 1",
    "UPDATE wide SET big = left(big, 5000) WHERE id = 1",
    "INSERT INTO keyless SELECT i, 'w' FROM generate_series(1, 5) i",
    "UPDATE keyless SET w = 'x' WHERE v = 3",
    "UPDATE keyless SET w = 'y'",
    "DELETE FROM keyless WHERE v = 5",
    "INSERT INTO other SELECT i, i FROM generate_series(1, 20) i",
    "UPDATE other SET v = v + 1",
    "UPDATE other SET id = id + 100 WHERE id > 15",
    "DELETE FROM other WHERE id < 3",
    "INSERT INTO parts SELECT i, i FROM generate_series(90, 110) i",
    "UPDATE parts SET id = id + 50 WHERE id = 95",
    "INSERT INTO other VALUES (7, 0) ON CONFLICT (id) DO UPDATE SET v = excluded.v + 1000",
    "CREATE TABLE made AS SELECT id FROM other ORDER BY id",
    "ALTER TABLE other ADD COLUMN w int DEFAULT 5",
    "TRUNCATE keyless, made",
];

/// The effects of [`STATEMENTS`].
async fn effects(rig: &mut Rig) -> Vec<Digest> {
    let mut digests = Vec::new();
    for statement in STATEMENTS {
        let result = rig.run(statement).await;
        assert_eq!(sqlstate(&result), None, "{statement}");
        digests.push(rig.effect(rig.last_order()).await);
    }
    digests
}

/// One server numbers its objects otherwise, has dead rows in its tables, and its rows lie in another order.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_hold_the_same_say_the_same_however_their_rows_lie() {
    let (mut one, mut other) = tokio::join!(Rig::start_comparing(), Rig::start_comparing());
    other
        .psql("CREATE TABLE burn (id serial PRIMARY KEY, t text); DROP TABLE burn; CREATE TYPE x AS ENUM ('a'); DROP TYPE x")
        .await;
    for rig in [&mut one, &mut other] {
        rig.run(TABLES).await;
    }
    // Aborted by hand: no transaction that is committed, so nothing is to be compared.
    other
        .psql("BEGIN; INSERT INTO other SELECT i, 0 FROM generate_series(1, 500) i; INSERT INTO keyless VALUES (9, 'z'); ROLLBACK; \
               BEGIN; INSERT INTO wide VALUES (9, repeat('x', 100000), 0); ROLLBACK")
        .await;
    let first = effects(&mut one).await;
    let second = effects(&mut other).await;
    for (statement, (first, second)) in STATEMENTS.iter().zip(first.iter().zip(&second)) {
        assert_eq!(first, second, "{statement}");
        let nothing = statement.starts_with("ALTER");
        assert_eq!(*first == NOTHING, nothing, "{statement}");
    }
    assert_eq!(one.effects().unordered, 0);
    assert_eq!(other.effects().unordered, 0, "{:?}", other.effects());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_or_temporary_has_no_effect_and_savepoints_count_as_far_as_they_stay() {
    let mut rig = Rig::start_comparing().await;
    rig.run(TABLES).await;
    let run = "INSERT INTO other VALUES (1, 1); SAVEPOINT s; INSERT INTO other VALUES (2, 2); ROLLBACK TO s; INSERT INTO other VALUES (3, 3)";
    let mut transaction = rig.new_transaction(Footprint::everything());
    let mut parts = run.split("; ");
    let first = simple(parts.next().unwrap());
    rig.begin(&mut transaction, Isolation::ReadCommitted, &first).await;
    for part in parts {
        rig.write(&mut transaction, &simple(part)).await;
    }
    let with_savepoint = rig.commit(&transaction).await;
    let with_savepoint = rig.effect(with_savepoint).await;
    rig.run("DELETE FROM other").await;
    rig.run("INSERT INTO other VALUES (3, 3), (1, 1)").await;
    assert_eq!(rig.effect(rig.last_order()).await, with_savepoint);
    rig.run("DELETE FROM other WHERE id = 77").await;
    assert_eq!(rig.effect(rig.last_order()).await, NOTHING);
    rig.run("CREATE TEMPORARY TABLE scratch (id int) ON COMMIT DELETE ROWS")
        .await;
    rig.run("INSERT INTO scratch VALUES (1)").await;
    assert_eq!(rig.effect(rig.last_order()).await, NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_changed_something_else_is_out_over_restarts_until_it_is_another() {
    let mut rig = Rig::start_comparing().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, v int)").await;
    rig.run("INSERT INTO plain VALUES (1, 1)").await;
    let order = rig.last_order();
    let own = rig.effect(order).await;
    // One liar, in its own name and as often as it likes.
    for lie in 1..100 {
        rig.tell_effect(3, order, [lie; 32]).await;
    }
    rig.tell_effect(2, order, own).await;
    rig.wait_for_effects(|effects| effects.agreed == 1).await;
    rig.run("UPDATE plain SET v = v + 1").await;
    let order = rig.last_order();
    rig.tell_effect(2, order, [1; 32]).await;
    rig.tell_effect(3, order, [2; 32]).await;
    rig.wait_for_effects(|effects| effects.disputed == 1).await;
    assert!(rig.effects().last_disputed.unwrap().contains("public.plain id=1"));
    assert!(matches!(rig.state(), VoterState::Serving { .. }), "{:?}", rig.state());

    rig.run("UPDATE plain SET v = v + 1").await;
    let wrong = rig.last_order();
    rig.tell_effect(2, wrong, [1; 32]).await;
    rig.tell_effect(3, wrong, [1; 32]).await;
    let is_out = |state: &VoterState| matches!(state, VoterState::Diverged { order, changed } if order.0 == wrong && changed.contains("public.plain id=1"));
    rig.wait_for_state(is_out).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(is_out(&rig.state()), "{:?}", rig.state());
    rig.stop_voter().await;
    rig.start_voter();
    rig.wait_for_state(is_out).await;
    // A copy of another database has no such row.
    rig.psql("DELETE FROM cloudbft.diverged").await;
    rig.wait_until_serving().await;
    rig.run("UPDATE plain SET v = v + 1").await;
    let order = rig.last_order();
    let own = rig.effect(order).await;
    rig.tell_effect(2, order, own).await;
    rig.wait_for_effects(|effects| effects.agreed == 1).await;
}

/// A statement failed here, and not on f+1 others: there is no transaction to be read.
#[tokio::test(flavor = "multi_thread")]
async fn what_had_no_effect_here_and_one_elsewhere_is_found() {
    let mut rig = Rig::start_comparing().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY)").await;
    rig.run("INSERT INTO plain VALUES (1)").await;
    // Two fences have been written.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let failed = rig
        .one_shot(Footprint::everything(), &simple("INSERT INTO plain VALUES (1)"))
        .await;
    assert_eq!(sqlstate(&failed).as_deref(), Some("23505"));
    let order = rig.last_order();
    rig.tell_effect(2, order, [1; 32]).await;
    assert_eq!(rig.effect(order).await, NOTHING);
    rig.tell_effect(3, order, [1; 32]).await;
    rig.wait_for_state(|state| matches!(state, VoterState::Diverged { .. }))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_ordered_is_told() {
    let mut rig = Rig::start_comparing().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, v int)").await;
    rig.psql("INSERT INTO plain VALUES (7, 1)").await;
    rig.run("INSERT INTO plain VALUES (8, 1)").await;
    rig.wait_for_effects(|effects| effects.unordered == 1).await;
    assert!(rig.effects().last_unordered.unwrap().contains("public.plain"));
    assert!(matches!(rig.state(), VoterState::Serving { .. }));
}

/// What was committed while the voter was away is read afterwards; a server that was killed gives what it has kept.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_or_made_up_over_restarts_and_crashes() {
    let mut rig = Rig::start_comparing().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, v int)").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut orders = Vec::new();
    for round in 0..3 {
        for id in 0..5 {
            rig.run(&format!("INSERT INTO plain VALUES ({}, 1)", round * 5 + id))
                .await;
            orders.push(rig.last_order());
        }
        match round {
            0 => {
                rig.stop_voter().await;
                rig.start_voter();
            }
            1 => {
                rig.server.kill();
                rig.wait_for_state(|state| matches!(state, VoterState::Down(_))).await;
                rig.server.restart();
            }
            _ => {}
        }
        rig.wait_until_serving().await;
        rig.run("UPDATE plain SET v = v + 1 WHERE id = 0").await;
        orders.push(rig.last_order());
        for order in orders.iter().copied() {
            let digest = rig.effect(order).await;
            rig.tell_effect(2, order, digest).await;
            rig.tell_effect(3, order, digest).await;
        }
    }
    assert!(matches!(rig.state(), VoterState::Serving { .. }), "{:?}", rig.state());
    assert_eq!(rig.effects().disputed, 0);
}

/// The slot may hold 64 MB here: it is lost while nobody reads it, and made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_lost_is_made_anew() {
    let mut rig = Rig::start_comparing().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, v text)").await;
    let slots = "SELECT count(*), max(wal_status) FROM pg_replication_slots";
    rig.effect(rig.last_order()).await;
    rig.stop_voter().await;
    let fill = "CREATE TABLE filler AS SELECT repeat(md5(i::text), 30) AS v FROM generate_series(1, 200000) i; CHECKPOINT; DROP TABLE filler";
    for part in fill.split("; ") {
        rig.psql(part).await;
    }
    for _ in 0..8 {
        rig.psql("SELECT pg_switch_wal()").await;
        rig.psql("CHECKPOINT").await;
    }
    assert_eq!(rig.psql(slots).await, "1|lost");
    rig.start_voter();
    rig.wait_until_serving().await;
    rig.wait_for_effects(|effects| effects.comparing.is_ok()).await;
    assert_ne!(rig.psql(slots).await, "1|lost");
    rig.run("INSERT INTO plain VALUES (1, 'x')").await;
    assert_ne!(rig.effect(rig.last_order()).await, NOTHING);
    // Without the comparison there is nothing that holds the log.
    rig.stop_voter().await;
    rig.compare_effects = false;
    rig.start_voter();
    rig.wait_until_serving().await;
    assert_eq!(rig.psql(slots).await, "0|");
}
