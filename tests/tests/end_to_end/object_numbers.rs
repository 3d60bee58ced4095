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
