//! Databases that come to differ, and what notices it.

use std::time::{Duration, Instant};

use cluster::node::NEEDS_REPAIR;
use serde_json::Value;
use tests::cluster::{Cluster, text};

use crate::crashes::survive_for;
use crate::repair::{repair, wait_for_state};

/// How soon a difference is noticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// How long something may take that needs a second or two.
const WITHIN: Duration = Duration::from_secs(30);

fn effects(cluster: &Cluster, machine: &str) -> Value {
    cluster.machine(machine, "effects")
}

fn count(cluster: &Cluster, machine: &str, field: &str) -> u64 {
    effects(cluster, machine)[field].as_u64().unwrap_or(0)
}

fn wait_until(cluster: &Cluster, what: &str, within: Duration, mut is: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < within, "{what}: {}", cluster.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    started.elapsed()
}

/// Waits until all machines have compared something since they were started, so that what follows is read by all.
fn wait_until_compared(cluster: &Cluster) {
    wait_until(cluster, "nothing is compared", WITHIN, || {
        cluster.psql("CREATE TABLE IF NOT EXISTS warm_up (id int PRIMARY KEY); INSERT INTO warm_up VALUES (1) ON CONFLICT DO NOTHING;");
        ["m1", "m2", "m3"]
            .iter()
            .all(|machine| count(cluster, machine, "agreed") > 0)
    });
}

#[test]
fn a_row_changed_behind_the_back_is_found_when_it_is_touched_and_repaired() {
    let mut cluster = Cluster::up(&[]);
    cluster.set(&[("automatic_repair", "false")]);
    cluster.psql("CREATE TABLE money (id int PRIMARY KEY, amount int); INSERT INTO money SELECT i, 10 FROM generate_series(1, 9) i;");
    wait_until_compared(&cluster);
    cluster.assert_equal();
    cluster.behind_the_back("m2", "UPDATE money SET amount = 1000 WHERE id = 4");
    wait_until(&cluster, "nobody notices the change itself", WITHIN, || {
        effects(&cluster, "m2")["last_unordered"]
            .as_str()
            .is_some_and(|changed| changed.contains("public.money"))
    });
    cluster.psql("UPDATE money SET amount = amount + 1 WHERE id = 4;");
    let found = wait_until(&cluster, "m2 is not out", NOTICED_WITHIN, || {
        cluster.machine("m2", "state") == NEEDS_REPAIR
    });
    println!("found after {} ms", found.as_millis());
    let diverged = effects(&cluster, "m2")["diverged"].to_string();
    assert!(diverged.contains("public.money id=4"), "{diverged}");
    let status = text(&cluster.command_on_directory("status", &[]));
    assert!(
        status.contains("has changed something else than f+1 others: order"),
        "{status}"
    );
    assert!(
        status.contains("cloudbft repair") && status.contains("--machine m2"),
        "{status}"
    );
    assert_eq!(cluster.node_metric(2, "cloudbft_effects_diverged_total"), 1);

    // The service goes on, and the truth is told.
    for _ in 0..10 {
        cluster.psql("UPDATE money SET amount = amount + 1 WHERE id = 4;");
    }
    assert_eq!(cluster.psql("SELECT amount FROM money WHERE id = 4;"), "21\n");
    survive_for_repair(&cluster);
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
    // What is read of the repaired server is compared again.
    let before = count(&cluster, "m2", "agreed");
    wait_until(&cluster, "m2 compares nothing", WITHIN, || {
        cluster.psql("UPDATE money SET amount = amount + 1 WHERE id = 4;");
        count(&cluster, "m2", "agreed") > before
    });
    cluster.assert_effects_agree();
}

/// It stays out when its node is started again, and is repaired while applications write.
fn survive_for_repair(cluster: &Cluster) {
    cluster.kill_node("m2");
    wait_for_state(cluster, "m2", NEEDS_REPAIR);
    survive_for(cluster, 20, |cluster| repair(cluster, "m2"));
}

/// Dynamic SQL over facts that differ: nothing in its text tells, and its answer is the same everywhere.
const FACTS: &str = "
    CREATE TABLE facts (value int); INSERT INTO facts VALUES (1);
    CREATE TABLE kept (id int PRIMARY KEY, value int);
    CREATE FUNCTION keep(wanted int) RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE 'INSERT INTO kept SELECT $1, value FROM facts' USING wanted; RETURN wanted; END $$;";

#[test]
fn a_function_that_computes_something_else_on_each_server_is_noticed_and_nobody_is_believed() {
    let cluster = Cluster::up(&[]);
    cluster.psql(FACTS);
    wait_until_compared(&cluster);
    cluster.assert_equal();
    cluster.behind_the_back("m1", "UPDATE facts SET value = 2");
    cluster.behind_the_back("m2", "UPDATE facts SET value = 3");
    assert_eq!(cluster.psql("SELECT keep(7);"), "7\n");
    for machine in ["m1", "m2", "m3"] {
        let found = wait_until(&cluster, "nobody notices", NOTICED_WITHIN, || {
            count(&cluster, machine, "disputed") == 1
        });
        println!("{machine} noticed after {} ms more", found.as_millis());
        let last = effects(&cluster, machine)["last_disputed"].to_string();
        assert!(last.contains("public.kept id=7"), "{last}");
        assert_eq!(cluster.machine(machine, "state"), "up");
    }
    let status = text(&cluster.command_on_directory("status", &[]));
    assert!(status.contains("NO f+1 DATABASES HAVE CHANGED THE SAME"), "{status}");
    assert_eq!(cluster.command_on_directory("verify", &[]).status.code(), Some(1));
}

#[test]
fn a_function_that_computes_something_else_on_one_server_puts_that_one_out() {
    let cluster = Cluster::up(&[]);
    cluster.psql(FACTS);
    wait_until_compared(&cluster);
    cluster.assert_equal();
    cluster.behind_the_back("m3", "UPDATE facts SET value = 2");
    assert_eq!(cluster.psql("SELECT keep(7);"), "7\n");
    let found = wait_until(&cluster, "m3 is not out", NOTICED_WITHIN, || {
        cluster.machine("m3", "state") == NEEDS_REPAIR
    });
    println!("found after {} ms", found.as_millis());
    assert_eq!(cluster.psql("SELECT value FROM kept;"), "1\n");
    for machine in ["m1", "m2"] {
        assert_eq!(cluster.machine(machine, "state"), "up");
    }
    // It is repaired without being asked.
    let repaired = wait_until(&cluster, "m3 is not repaired", 4 * WITHIN, || {
        cluster.machine("m3", "state") == "up"
    });
    println!("repaired after {} s", repaired.as_secs());
    assert_eq!(cluster.psql("SELECT keep(8);"), "8\n");
    cluster.assert_equal();
    wait_until(&cluster, "m3 compares nothing", WITHIN, || {
        count(&cluster, "m3", "agreed") > 0
    });
    cluster.assert_effects_agree();
}

/// A statement that fails on one server alone, since a row is there.
#[test]
fn a_row_added_behind_the_back_is_found_when_it_is_in_the_way() {
    let cluster = Cluster::up(&[]);
    cluster.psql("CREATE TABLE money (id int PRIMARY KEY, amount int);");
    wait_until_compared(&cluster);
    cluster.assert_equal();
    cluster.behind_the_back("m1", "INSERT INTO money VALUES (5, 1)");
    std::thread::sleep(Duration::from_secs(2));
    cluster.psql("INSERT INTO money VALUES (5, 10);");
    let found = wait_until(&cluster, "m1 is not out", NOTICED_WITHIN, || {
        cluster.machine("m1", "state") == NEEDS_REPAIR
    });
    println!("found after {} ms", found.as_millis());
    assert_eq!(cluster.psql("SELECT amount FROM money;"), "10\n");
}

/// Statements of every shape, none of which makes servers differ.
const SHAPES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TABLE keyed (id int PRIMARY KEY, v text, f float8, t timestamptz DEFAULT now(), m mood, a int[],
        g int GENERATED ALWAYS AS (id * 2) STORED, s serial);
    CREATE TABLE keyless (v int, w text);
    CREATE TABLE wide (id int PRIMARY KEY, big text, v int);
    INSERT INTO keyed (id, v, f, m, a) SELECT i, 'v' || i, random(), 'happy', ARRAY[i, NULL] FROM generate_series(1, 50) i;
    INSERT INTO keyless SELECT i, 'w' FROM generate_series(1, 50) i;
    UPDATE keyless SET w = w || v;
    DELETE FROM keyless WHERE v > 40;
    INSERT INTO wide SELECT i, repeat(md5(i::text), 500), 0 FROM generate_series(1, 5) i;
    UPDATE wide SET v = v + 1;
    BEGIN; INSERT INTO keyless VALUES (100, 'a'); SAVEPOINT s; INSERT INTO keyless VALUES (101, 'b'); ROLLBACK TO s;
    UPDATE keyed SET f = f * 2, m = 'sad' WHERE id < 10; COMMIT;
    BEGIN; DELETE FROM keyed; ROLLBACK;
    CREATE TEMPORARY TABLE scratch (id int) ON COMMIT DELETE ROWS;
    BEGIN; INSERT INTO scratch SELECT 1; INSERT INTO keyless SELECT id, 't' FROM scratch; COMMIT;
    CREATE TABLE made AS SELECT id, v FROM keyed ORDER BY id;
    ALTER TABLE keyed ADD COLUMN later int DEFAULT 7;
    UPDATE keyed SET later = 8 WHERE id = 3;
    COPY keyless FROM STDIN;
1000\tone
1001\ttwo
\\.
    TRUNCATE made, keyless;
    DROP TABLE made;
    VACUUM;
    ";

#[test]
fn statements_of_every_shape_agree() {
    let cluster = Cluster::up(&[]);
    wait_until_compared(&cluster);
    let before = count(&cluster, "m1", "agreed");
    cluster.psql(SHAPES);
    wait_until(&cluster, "not all are compared", WITHIN, || {
        cluster.psql("UPDATE keyed SET f = f + 1 WHERE id = 1;");
        ["m1", "m2", "m3"]
            .iter()
            .all(|machine| count(&cluster, machine, "agreed") > before + 20 && count(&cluster, machine, "open") == 0)
    });
    cluster.assert_effects_agree();
    for machine in 1..=3 {
        for metric in ["mismatches", "unordered", "skipped", "slots_lost"] {
            let counted = cluster.node_metric(machine, &format!("cloudbft_effects_{metric}_total"));
            assert_eq!(counted, 0, "m{machine}: {metric}");
        }
    }
    cluster.assert_equal();
}

/// The comparison is switched off and on again in the cluster file; one that says nothing of it, as an earlier build's, has it on.
#[test]
fn the_comparison_can_be_switched() {
    let mut cluster = Cluster::up(&[]);
    wait_until_compared(&cluster);
    let path = cluster.directory().join("cluster.toml");
    let original = std::fs::read_to_string(&path).expect("a cluster file");
    assert!(original.contains("\n[effects]\n"), "{original}");
    let slots = "SELECT count(*) || ' ' || current_setting('wal_level') FROM pg_replication_slots";
    let started = |cluster: &mut Cluster, text: &str| {
        cluster.stop();
        std::fs::write(&path, text).expect("a cluster file");
        cluster.resume();
        cluster.psql("INSERT INTO warm_up SELECT count(*) + 1 FROM warm_up;");
    };
    let off = original.replace("\ncompare = true\n", "\ncompare = false\n");
    assert_ne!(off, original);
    // At the first start without, the servers still have slots, and do not start but with a log that is fit for them.
    started(&mut cluster, &off);
    assert_eq!(cluster.behind_the_back("m1", slots), "0 logical\n");
    assert_eq!(effects(&cluster, "m1")["state"], "it is switched off");
    started(&mut cluster, &off);
    assert_eq!(cluster.behind_the_back("m1", slots), "0 replica\n");
    let (before, after) = original.split_once("\n[effects]\n").expect("the section");
    let (_, after) = after.split_once("\ncompare = true\n").expect("the setting");
    started(&mut cluster, &format!("{before}\n{after}"));
    wait_until_compared(&cluster);
    assert_eq!(cluster.behind_the_back("m1", slots), "1 logical\n");
    cluster.assert_equal();
    cluster.assert_effects_agree();
}
