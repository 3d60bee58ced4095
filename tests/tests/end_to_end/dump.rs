//! A plain `pg_dump` of the database, as a user types it.

use std::io::Write;
use std::process::{Command, Stdio};

use tests::cluster::{Cluster, text};

const SETUP: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TABLE item (id bigserial PRIMARY KEY, m mood DEFAULT 'ok', at timestamptz DEFAULT now(), d date DEFAULT CURRENT_DATE,
        u uuid DEFAULT gen_random_uuid(), r float8 DEFAULT random(), c timestamp DEFAULT CURRENT_TIMESTAMP(3),
        w timestamptz DEFAULT 'today', CHECK (at <= now() + interval '1 day'));
    CREATE VIEW recent AS SELECT id, now() AS n, localtime, current_timestamp FROM item;
    CREATE FUNCTION later() RETURNS timestamptz LANGUAGE sql AS 'SELECT now() + interval ''1 day''';
    CREATE FUNCTION stamped() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN new.at := clock_timestamp(); RETURN new; END $$;
    CREATE TRIGGER stamp BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION stamped();
    INSERT INTO item (m) VALUES ('sad'), ('ok');
    CREATE TEMP TABLE passing (a int);";

/// What pg_dump writes, but for the token that each run draws.
fn dump(cluster: &Cluster) -> String {
    let output = Command::new("pg_dump")
        .args(["-d", cluster.dsn()])
        .output()
        .expect("pg_dump");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output));
    let written = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = written.lines().filter(|line| !line.contains("restrict "));
    lines.map(|line| format!("{line}\n")).collect()
}

fn restore(arguments: &[&str], dump: &str) {
    let mut psql = Command::new("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql");
    psql.stdin
        .take()
        .expect("a pipe")
        .write_all(dump.as_bytes())
        .expect("psql reads");
    let output = psql.wait_with_output().expect("psql ends");
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
}

#[test]
fn a_plain_pg_dump_holds_nothing_of_ours_and_can_be_restored_anywhere() {
    let cluster = Cluster::up(&[]);
    cluster.psql(SETUP);
    let dumped = dump(&cluster);
    assert!(!dumped.contains("cloudbft"), "{dumped}");
    for written in [
        "at timestamp with time zone DEFAULT now()",
        "d date DEFAULT CURRENT_DATE",
        "w timestamp with time zone DEFAULT date_trunc('day'::text, now())",
        "new.at := clock_timestamp()",
        "SELECT now() + interval '1 day'",
        "CHECK ((at <= (now() + '1 day'::interval)))",
        "LOCALTIME AS \"localtime\"",
    ] {
        assert!(dumped.contains(written), "{written}: {dumped}");
    }
    let described = cluster.psql("\\d item");
    assert!(described.contains("at|timestamp with time zone|||now()"), "{described}");

    // Through the proxy into a new cluster, which gives the same dump then.
    drop(cluster);
    let other = Cluster::up(&[]);
    restore(&["-d", other.dsn()], &dumped);
    let again = dump(&other);
    let differing: Vec<_> = again
        .lines()
        .zip(dumped.lines())
        .filter(|(after, before)| after != before)
        .collect();
    assert!(differing.is_empty() && again.len() == dumped.len(), "{differing:?}");
    other.psql("INSERT INTO item (m) VALUES ('ok');");
    assert_eq!(other.psql("SELECT count(*) FROM item WHERE at <= later();"), "3\n");
    other.assert_equal();

    // Into a database that knows nothing of the middleware, whatever server it is on.
    other.behind_the_back("m1", "CREATE DATABASE plain");
    let field = |name: &str| match other.machine("m1", name) {
        serde_json::Value::String(text) => text,
        value => value.to_string(),
    };
    let (directory, port) = (field("postgres_socket_dir"), field("postgres_port"));
    let plain = ["-h", &directory, "-p", &port, "-U", "cloudbft_admin", "-d", "plain"];
    restore(&plain, &dumped);
    restore(
        &plain,
        "INSERT INTO item (m) VALUES ('sad'); SELECT 1 / count(*) FROM recent;",
    );
}
