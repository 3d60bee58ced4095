//! Databases that went wrong are made anew from others while applications go on.

use std::process::Output;
use std::time::{Duration, Instant};

use cluster::node::NEEDS_REPAIR;
use tests::cluster::{Cluster, text};

use crate::crashes::survive_for;

/// How long something may take that needs a second or two.
const WITHIN: Duration = Duration::from_secs(60);

/// Tables with dead rows where a rolled-back transaction left them: on live voters only, so that the rows after it lie
/// elsewhere there than on the others (finding F11).
const LAYOUTS: &str = "
    CREATE TABLE ho (id int PRIMARY KEY, v text);
    INSERT INTO ho VALUES (1, 'a'), (2, 'b');
    BEGIN; INSERT INTO ho VALUES (100, 'x'); ROLLBACK;
    INSERT INTO ho VALUES (3, 'c');
    DELETE FROM ho WHERE id = 1;
    VACUUM ho;
    INSERT INTO ho VALUES (4, 'd'); INSERT INTO ho VALUES (5, 'e'); INSERT INTO ho VALUES (6, 'f');
    CREATE FUNCTION agg() RETURNS text LANGUAGE plpgsql AS
        $$ DECLARE x text; BEGIN SELECT string_agg(id::text, ',') INTO x FROM ho; RETURN x; END $$;";

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn wait_for_state(cluster: &Cluster, machine: &str, state: &str) {
    let deadline = Instant::now() + WITHIN;
    while cluster.machine(machine, "state") != state {
        assert!(
            Instant::now() < deadline,
            "{machine} is not {state}: {}",
            cluster.status()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(crate) fn repair(cluster: &Cluster, machine: &str) {
    let output = cluster.command_on_directory("repair", &["--machine", machine]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    println!("{}", text(&output));
    assert!(printed(&output).contains("is repaired"), "{}", text(&output));
}

#[test]
fn reading_rows_in_no_order_stops_no_database() {
    let cluster = Cluster::up(&[]);
    cluster.psql(LAYOUTS);
    for _ in 0..6 {
        cluster.psql("SELECT agg(); SELECT left(agg(), 1);");
    }
    let contradictions = |machine| cluster.node_metric(machine, "cloudbft_voter_harmless_contradictions_total");
    let contradictions: u64 = (1..=3).map(contradictions).sum();
    assert!(contradictions > 0, "all rows lie alike");
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
    assert_eq!(cluster.psql("SELECT count(*) FROM ho;"), "5\n");
}

/// The same in transactions that write: each voter whose rows lie otherwise answers otherwise than is certified, and changes the same.
#[test]
fn code_that_reads_rows_in_no_order_and_writes_stops_no_database() {
    let mut cluster = Cluster::up(&[]);
    cluster.set(&[("compare", "true")]);
    cluster.psql(LAYOUTS);
    cluster.psql("CREATE TABLE kept (id int PRIMARY KEY)");
    let doubts =
        |cluster: &Cluster, name: &str| -> u64 { (1..=3).map(|machine| cluster.node_metric(machine, name)).sum() };
    for round in 0..12 {
        let first = 2 * round;
        let second = first + 1;
        cluster.psql(&format!(
            "BEGIN; INSERT INTO kept VALUES ({first}); SELECT agg(); COMMIT; BEGIN; INSERT INTO kept VALUES ({second}); SELECT left(agg(), 1); COMMIT;"
        ));
    }
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
    let began = doubts(&cluster, "cloudbft_voter_doubts_total");
    assert!(began > 0, "all rows lie alike");
    assert_eq!(doubts(&cluster, "cloudbft_voter_doubts_settled_total"), began);
    assert_eq!(doubts(&cluster, "cloudbft_voter_outages_total"), 0);
    assert_eq!(cluster.psql("SELECT count(*) FROM kept;"), "24\n");
}

/// Has the server of m1 answer a write otherwise than the others, until its voter is out of service.
fn contradict(cluster: &Cluster) {
    cluster.psql("CREATE TABLE facts (value int); CREATE TABLE kept (value int); INSERT INTO facts VALUES (1);");
    // The slowest too has the row.
    cluster.assert_equal();
    cluster.behind_the_back("m1", "UPDATE facts SET value = 2");
    let deadline = Instant::now() + WITHIN;
    while cluster.machine("m1", "state") != NEEDS_REPAIR {
        assert!(
            Instant::now() < deadline,
            "m1 does not contradict: {}",
            cluster.status()
        );
        cluster.psql("INSERT INTO kept SELECT value FROM facts RETURNING value;");
    }
}

/// Nobody is asked, and applications write all the time.
#[test]
fn a_database_that_contradicts_is_repaired_by_itself() {
    let cluster = Cluster::up(&[]);
    contradict(&cluster);
    let begin = Instant::now();
    let mut written = 0;
    while cluster.machine("m1", "state") != "up" {
        assert!(
            begin.elapsed() < 2 * WITHIN,
            "m1 is not repaired: {}",
            std::fs::read_to_string(cluster.directory().join("m1/repair.log")).unwrap_or_default()
        );
        cluster.psql("INSERT INTO kept SELECT value FROM facts RETURNING value;");
        written += 1;
    }
    println!(
        "m1 serves {:.1} s after it contradicted; {written} writes",
        begin.elapsed().as_secs_f64()
    );
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
    assert_eq!(cluster.psql("SELECT DISTINCT value FROM kept;"), "1\n");
    assert_eq!(cluster.behind_the_back("m1", "SELECT value FROM facts"), "1\n");
}

/// A contradiction that does not pass, and stays over `down` and `up`: what one server was told behind the cluster's back.
#[test]
fn a_database_that_contradicts_is_repaired_under_load() {
    let mut cluster = Cluster::up(&[]);
    cluster.set(&[("automatic_repair", "false")]);
    contradict(&cluster);
    cluster.stop();
    cluster.resume();
    wait_for_state(&cluster, "m1", NEEDS_REPAIR);
    let status = text(&cluster.command_on_directory("status", &[]));
    assert!(
        status.contains("cloudbft repair --dir") && status.contains("--machine m1"),
        "{status}"
    );
    let verified = cluster.command_on_directory("verify", &[]);
    assert_eq!(verified.status.code(), Some(2), "{}", text(&verified));
    assert!(
        printed(&verified).contains("NOT COMPARED, as not serving: m1"),
        "{}",
        text(&verified)
    );

    survive_for(&cluster, 20, |cluster| repair(cluster, "m1"));
    assert_eq!(cluster.machine("m1", "state"), "up");
    assert_eq!(cluster.psql("SELECT DISTINCT value FROM kept;"), "1\n");
}

/// A difference that contradicts nothing yet: `verify` finds it. Of a database that lies, nothing is copied.
#[test]
fn a_database_that_lost_a_row_is_repaired_and_copied_by_nobody() {
    let cluster = Cluster::up(&[]);
    cluster.psql("CREATE TABLE money (id int PRIMARY KEY, amount int); INSERT INTO money VALUES (1, 10), (2, 20);");
    // The slowest too has the rows.
    cluster.assert_equal();
    cluster.behind_the_back("m3", "DELETE FROM money WHERE id = 2");
    assert_eq!(cluster.command_on_directory("verify", &[]).status.code(), Some(1));
    let none = cluster.command_on_directory("repair", &["--machine", "m1"]);
    assert_eq!(none.status.code(), Some(1), "{}", text(&none));
    assert!(text(&none).contains("none can be trusted"), "{}", text(&none));
    let unknown = cluster.command_on_directory("repair", &["--machine", "m0"]);
    assert!(text(&unknown).contains("m0 has no database"), "{}", text(&unknown));
    repair(&cluster, "m3");
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
    assert_eq!(cluster.behind_the_back("m3", "SELECT sum(amount) FROM money"), "30\n");
    // It serves: with another one away, its answers are needed.
    cluster.psql("INSERT INTO money VALUES (3, 30);");
    cluster.assert_equal();
}
