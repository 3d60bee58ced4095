//! Objects have the same numbers on all servers, though servers crash (rule ObjectNumbers).

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use tests::cluster::{Cluster, text};

const MACHINES: [&str; 3] = ["m1", "m2", "m3"];

/// What users have made, with its numbers.
const NUMBERS: &str = "SELECT string_agg(format('%s %s', name, number), ', ' ORDER BY name, number) FROM ( \
    SELECT relname::text AS name, oid AS number FROM pg_class WHERE relnamespace = 'public'::regnamespace \
    UNION ALL SELECT typname, oid FROM pg_type WHERE typnamespace = 'public'::regnamespace \
    UNION ALL SELECT enumlabel, oid FROM pg_enum) AS o";

fn make(cluster: &Cluster, round: usize) {
    cluster.psql(&format!(
        "CREATE TYPE mood_{round} AS ENUM ('sad', 'ok');
         CREATE TABLE person_{round} (id serial PRIMARY KEY, mood mood_{round} DEFAULT 'ok', about text);
         INSERT INTO person_{round} (mood) VALUES ('sad');"
    ));
    assert_eq!(cluster.psql(&format!("SELECT mood FROM person_{round};")), "sad\n");
}

#[test]
fn objects_made_while_one_server_after_the_other_crashes_have_equal_numbers() {
    let cluster = Cluster::up(&[]);
    make(&cluster, 0);
    for (round, machine) in (1..).zip(MACHINES) {
        cluster.kill_postgres(machine);
        // The server is down, and will find itself up to 8,192 numbers further on than it was.
        make(&cluster, round);
        cluster.wait_all_up(Duration::from_secs(60));
        make(&cluster, round + 10);
        let shown = cluster.psql(&format!("\\d person_{}\n\\dT+", round + 10));
        assert!(shown.contains(&format!("mood_{}", round + 10)), "{shown}");
    }
    cluster.assert_equal();
    let numbers: BTreeSet<_> = MACHINES.map(|machine| cluster.behind_the_back(machine, NUMBERS)).into();
    assert_eq!(numbers.len(), 1, "{numbers:?}");
    let dumped = Command::new("pg_dump")
        .args(["-n", "public", cluster.dsn()])
        .output()
        .expect("pg_dump");
    assert!(dumped.status.success(), "{}", text(&dumped));
}

/// What cannot be numbered alike is told to the operator.
#[test]
fn a_server_that_numbers_otherwise_is_named() {
    let cluster = Cluster::up(&[]);
    let leave_out = |machine: &str, count: u32| {
        let take = "pg_nextoid('pg_class'::regclass, 'oid', 'pg_class_oid_index'::regclass)";
        let text = format!("SELECT count({take}) FROM generate_series(1, {count})");
        cluster.behind_the_back(machine, &text);
    };
    let told = |command: &str| {
        let output = cluster.command_on_directory(command, &[]);
        assert!(output.status.success(), "{command}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    cluster.psql(
        "CREATE FUNCTION make() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TABLE made_by_code (id int); END $$;",
    );
    assert!(!told("verify").contains("note:") && !told("status").contains("OIDs"));

    // Code of users is not numbered: nobody knows that it makes something.
    leave_out("m1", 100);
    cluster.psql("SELECT make();");
    let noted = told("verify");
    assert!(
        noted.contains("note: m1 numbers") && noted.contains("made_by_code"),
        "{noted}"
    );
    assert!(!told("status").contains("OIDs"));

    // Further ahead than one server draws the others along at once.
    leave_out("m2", 40_000);
    cluster.psql("CREATE TABLE made (id int);");
    let status = told("status");
    assert!(
        status.contains("m2: its database server could not number the objects of 1 transactions (OIDs)"),
        "{status}"
    );
    cluster.psql("CREATE TABLE made_then (id int);");
    let number = "SELECT oid FROM pg_class WHERE relname = 'made_then'";
    let numbers: BTreeSet<_> = MACHINES.map(|machine| cluster.behind_the_back(machine, number)).into();
    assert_eq!(numbers.len(), 1, "{numbers:?}");
}
