//! Changes past the voters are found by comparing all contents, and repaired unattended, while applications write.

use std::os::unix::fs::FileExt;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::node::{DATABASE_DOWN, NEEDS_REPAIR};
use tests::cluster::{Cluster, text};

use crate::repair::wait_for_state;

/// How long something may take that needs a second or two.
const WITHIN: Duration = Duration::from_secs(90);

/// Tables with keys of several kinds, without one, and with code behind them; one of several ranges.
const TABLES: &str = "
    CREATE TABLE money (id int PRIMARY KEY, amount int, note text UNIQUE);
    INSERT INTO money SELECT i, 10, 'n' || i FROM generate_series(1, 9999) i;
    CREATE TABLE pairs (a text, b timestamptz, v numeric, PRIMARY KEY (a, b));
    INSERT INTO pairs SELECT 'it''s ' || i % 3, '2020-01-01'::timestamptz + i * interval '1 h', i / 7.0 FROM generate_series(1, 5000) i;
    CREATE TABLE heap (v text, w float8);
    INSERT INTO heap SELECT 'v' || i % 7, i / 3.0 FROM generate_series(1, 6000) i;
    CREATE INDEX heap_w ON heap (w);
    CREATE TABLE counters (id int PRIMARY KEY, n int);
    INSERT INTO counters VALUES (1, 0);
    CREATE SEQUENCE numbers;
    CREATE FUNCTION is_fine(v int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN v < 100; END $$;
    CREATE TABLE checked (id int PRIMARY KEY, v int CHECK (is_fine(v)));
    INSERT INTO checked VALUES (1, 1), (2, 2);";

fn scrub(cluster: &Cluster) -> Output {
    let output = cluster.command_on_directory("scrub", &[]);
    println!("{}", text(&output));
    output
}

/// Runs something while an application counts, and checks that it counts right and meets no error.
fn under_load<T>(cluster: &Cluster, action: impl FnOnce() -> T) -> T {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let first: u64 = cluster
                .psql("SELECT n FROM counters;")
                .trim()
                .parse()
                .expect("a number");
            let mut count = first;
            while !ended.load(Ordering::Relaxed) {
                count += 1;
                let told = cluster
                    .psql("UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n; SELECT nextval('numbers') > 0;");
                assert_eq!(told, format!("{count}\nt\n"));
            }
            count - first
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
        ended.store(true, Ordering::Relaxed);
        let counted = counting
            .join()
            .expect("an application meets no error and no wrong value");
        println!("the application wrote {counted} times meanwhile");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Scrubs once: the machine is found, goes out of service, and is repaired by itself; returns what the repair said.
fn found_and_repaired(cluster: &Cluster, machine: &str, expected: &str) -> String {
    under_load(cluster, || {
        let output = scrub(cluster);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let found = format!("{machine} DIFFERS: {expected}");
        assert!(text(&output).contains(&found), "not {found}: {}", text(&output));
        for other in ["m1", "m2", "m3"].iter().filter(|other| **other != machine) {
            assert!(
                !text(&output).contains(&format!("{other} DIFFERS")),
                "{}",
                text(&output)
            );
        }
        let began = Instant::now();
        let status = text(&cluster.command_on_directory("status", &[]));
        assert!(
            status.contains(&format!("{machine}: differed from f+1 others")),
            "{status}"
        );
        let state = || cluster.machine(machine, "state");
        let mut was_out = false;
        while state() != "up" || !was_out {
            was_out |= state() == NEEDS_REPAIR;
            let log = log(cluster, machine);
            was_out |= log.contains("is repaired");
            assert!(
                began.elapsed() < WITHIN,
                "{machine} is not repaired: {}\n{log}",
                cluster.status()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        println!(
            "{machine} serves {:.1} s after it was found",
            began.elapsed().as_secs_f64()
        );
    });
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
    let output = scrub(cluster);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    log(cluster, machine)
}

fn log(cluster: &Cluster, machine: &str) -> String {
    std::fs::read_to_string(cluster.directory().join(machine).join("repair.log")).unwrap_or_default()
}

fn assert_by_rows(log: &str) {
    assert!(log.contains("each range of its rows held what f+1 others did"), "{log}");
    assert!(!log.contains("copying the database"), "{log}");
}

fn assert_whole(log: &str, why: &str) {
    assert!(log.contains(&format!("where they differ: {why}")), "not {why}: {log}");
    assert!(log.contains("copying the database"), "{log}");
}

#[test]
fn rows_that_were_changed_deleted_or_added_are_found_and_replaced() {
    let cluster = Cluster::up(&[]);
    cluster.psql(TABLES);
    let clean = under_load(&cluster, || scrub(&cluster));
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean));
    assert!(
        text(&clean).contains("public.money: 9999 rows in 3 ranges\n"),
        "{}",
        text(&clean)
    );

    cluster.behind_the_back("m1", "UPDATE money SET amount = 1000 WHERE id = 4321");
    assert_by_rows(&found_and_repaired(&cluster, "m1", "public.money id=4321 is another"));
    cluster.behind_the_back("m2", "DELETE FROM pairs WHERE v = 1000 / 7.0");
    assert_by_rows(&found_and_repaired(
        &cluster,
        "m2",
        "public.pairs a=it's 1,b=2020-02-11 16:00:00+00 is missing",
    ));
    cluster.behind_the_back("m3", "INSERT INTO heap VALUES ('v1', 7)");
    assert_by_rows(&found_and_repaired(&cluster, "m3", "public.heap: rows"));

    // Repaired servers serve, with another one away, and compare effects again.
    cluster.assert_effects_agree();
    assert_eq!(
        cluster.behind_the_back("m1", "SELECT amount FROM money WHERE id = 4321"),
        "10\n"
    );
    let ended = cluster.node_metric(1, "cloudbft_scrub_ended_seconds");
    assert!(
        ended > 0
            || cluster.status()["scrub"]["ranges"]
                .as_u64()
                .is_some_and(|ranges| ranges > 5)
    );
}

#[test]
fn a_sequence_that_was_moved_and_tables_and_indexes_that_are_gone_are_found_and_mended() {
    let cluster = Cluster::up(&[]);
    cluster.psql(TABLES);
    cluster.psql("CREATE SEQUENCE still; SELECT nextval('still');");
    cluster.assert_equal();
    cluster.behind_the_back("m1", "SELECT setval('still', 777)");
    assert_by_rows(&found_and_repaired(
        &cluster,
        "m1",
        "sequence public.still: it was moved to 777",
    ));
    assert_eq!(cluster.psql("SELECT nextval('still');"), "2\n");
    cluster.behind_the_back("m2", "DROP TABLE pairs");
    let log = found_and_repaired(&cluster, "m2", "the definitions: it lacks column public.pairs");
    assert_whole(&log, "its definitions of tables, functions or other objects differ");
    cluster.behind_the_back("m3", "DROP INDEX heap_w");
    let log = found_and_repaired(&cluster, "m3", "the definitions: it lacks index CREATE INDEX heap_w");
    assert_whole(&log, "its definitions of tables, functions or other objects differ");
}

/// A function of users, which would run as superuser, and be anything.
#[test]
fn rows_whose_writing_runs_code_of_users_are_not_replaced() {
    let cluster = Cluster::up(&[]);
    cluster.psql(TABLES);
    cluster.assert_equal();
    cluster.behind_the_back("m3", "DELETE FROM checked WHERE id = 2");
    let log = found_and_repaired(&cluster, "m3", "public.checked id=2 is missing");
    assert_whole(&log, "code of users would run when rows of public.checked are written");
}

#[test]
fn a_broken_index_and_a_broken_page_are_found_and_the_database_is_copied() {
    let cluster = Cluster::up(&[]);
    cluster.psql(TABLES);
    cluster.assert_equal();
    // The same row again, which the index does not know.
    let ready = |is: bool| format!("UPDATE pg_index SET indisready = {is} WHERE indexrelid = 'heap_w'::regclass");
    cluster.behind_the_back("m1", &ready(false));
    cluster.behind_the_back("m1", "DELETE FROM heap WHERE w = 9; INSERT INTO heap VALUES ('v6', 9)");
    cluster.behind_the_back("m1", &ready(true));
    let log = found_and_repaired(&cluster, "m1", "index public.heap_w: ");
    assert_whole(&log, "index public.heap_w: ");

    let directory = cluster.directory().join("m2/database/data");
    let file = cluster.behind_the_back("m2", "CHECKPOINT; SELECT pg_relation_filepath('pairs')");
    cluster.kill_postgres("m2");
    let file = std::fs::File::options()
        .write(true)
        .open(directory.join(file.trim()))
        .expect("a table's file");
    file.write_all_at(b"no row", 3 * 8192 + 4000).expect("written");
    wait_for_state(&cluster, "m2", DATABASE_DOWN);
    cluster.wait_all_up(WITHIN);
    let log = found_and_repaired(&cluster, "m2", "it cannot be read: ");
    assert!(log.contains("copying the database"), "{log}");
}

/// With f = 2: a machine whose rows differ from f others' is copied from by nobody, whatever it lacks itself.
#[test]
fn a_database_that_differs_is_no_source() {
    let mut cluster = Cluster::up(&["--faults", "2"]);
    cluster.set(&[("automatic_repair", "false")]);
    cluster.psql(TABLES);
    cluster.assert_equal();
    cluster.behind_the_back("m1", "UPDATE money SET amount = 1 WHERE id = 5");
    cluster.behind_the_back(
        "m3",
        "UPDATE money SET amount = 2 WHERE id = 5; DELETE FROM money WHERE id = 9000",
    );
    under_load(&cluster, || {
        let repaired = cluster.command_on_directory("repair", &["--machine", "m3"]);
        println!("{}", text(&repaired));
        assert_eq!(repaired.status.code(), Some(0), "{}", text(&repaired));
        assert_by_rows(&text(&repaired));
    });
    let money = "SELECT sum(amount), count(*) FROM money";
    assert_eq!(cluster.behind_the_back("m3", money), "99990|9999\n");
    assert_eq!(cluster.behind_the_back("m1", money), "99981|9999\n");
    let verified = cluster.command_on_directory("verify", &[]);
    assert!(text(&verified).contains("DIFFERS on m1\n"), "{}", text(&verified));
}

/// Whenever a repair is killed, the database is out of service as before, or repaired.
#[test]
fn a_repair_that_is_killed_leaves_the_database_as_it_was_or_repaired() {
    let mut cluster = Cluster::up(&[]);
    cluster.set(&[("automatic_repair", "false")]);
    cluster.psql(TABLES);
    cluster.assert_equal();
    cluster.behind_the_back(
        "m2",
        "UPDATE money SET amount = 1000 WHERE id % 1000 = 1; DELETE FROM heap",
    );
    under_load(&cluster, || {
        assert_eq!(scrub(&cluster).status.code(), Some(1));
        let (mut killed, mut delay, mut is_repaired) = (0, Duration::from_millis(100), false);
        loop {
            let mut repair = cluster.start("repair", &["--machine", "m2"]);
            let began = Instant::now();
            let mut ended = None;
            while began.elapsed() < delay && ended.is_none() {
                std::thread::sleep(Duration::from_millis(10));
                ended = repair.try_wait().expect("waitable");
            }
            if let Some(status) = ended {
                assert!(status.success(), "{status}");
                break;
            }
            repair.kill().expect("SIGKILL");
            repair.wait().expect("reaped");
            killed += 1;
            // The server notices that nobody is there any more.
            std::thread::sleep(Duration::from_millis(500));
            // A repair that is begun again takes the machine out of service again.
            is_repaired |= cluster.behind_the_back("m2", "SELECT count(*) FROM cloudbft.diverged") == "0\n";
            let rows = if is_repaired { "6000\n" } else { "0\n" };
            assert_eq!(cluster.behind_the_back("m2", "SELECT count(*) FROM heap"), rows);
            delay += Duration::from_millis(150);
        }
        println!("killed {killed} times");
        assert!(killed > 3);
    });
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
    cluster.assert_effects_agree();
}

/// The order up to which a voter has forgotten which rows were written.
fn forgotten(cluster: &Cluster, machine: &str) -> u64 {
    let said = cluster.behind_the_back(machine, "SELECT coalesce(max(forgotten), 0) FROM cloudbft.floor");
    said.trim().parse().expect("an order")
}

/// A voter forgets at its start which rows were written last, up to where all is over. Another voter, which was out of service longer, would
/// need to know it.
#[test]
fn a_database_that_was_out_while_others_were_restarted_is_copied_whole() {
    let mut cluster = Cluster::up(&[]);
    cluster.set(&[("automatic_repair", "false")]);
    cluster.psql(TABLES);
    cluster.assert_equal();
    cluster.behind_the_back("m1", "UPDATE money SET amount = 1 WHERE id = 5");
    assert_eq!(scrub(&cluster).status.code(), Some(1));
    for machine in ["m2", "m3"] {
        for id in 10..20 {
            cluster.psql(&format!("UPDATE money SET amount = amount + 1 WHERE id = {id}"));
        }
        // Until it is written down that these are over.
        std::thread::sleep(Duration::from_secs(3));
        let before = forgotten(&cluster, machine);
        cluster.kill_node(machine);
        let killed = Instant::now();
        while forgotten(&cluster, machine) == before || cluster.machine(machine, "state") != "up" {
            assert!(
                killed.elapsed() < WITHIN,
                "{machine} has forgotten nothing: {}",
                cluster.status()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let repaired = cluster.command_on_directory("repair", &["--machine", "m1"]);
    assert_eq!(repaired.status.code(), Some(0), "{}", text(&repaired));
    assert_whole(
        &text(&repaired),
        "the others have forgotten positions that its voter would need",
    );
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
    let output = scrub(&cluster);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

/// Nobody knows who is right: all go on.
#[test]
fn where_no_majority_holds_the_same_nothing_is_done() {
    let cluster = Cluster::up(&[]);
    cluster.psql(TABLES);
    cluster.assert_equal();
    for (machine, amount) in [("m1", 1), ("m2", 2)] {
        cluster.behind_the_back(machine, &format!("UPDATE money SET amount = {amount} WHERE id = 5"));
    }
    let output = scrub(&cluster);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("NO f+1 DATABASES HOLD THE SAME: public.money"),
        "{}",
        text(&output)
    );
    for machine in ["m1", "m2", "m3"] {
        assert_eq!(cluster.machine(machine, "state"), "up");
    }
}

/// `up` does it by itself.
#[test]
fn contents_are_compared_unasked() {
    let mut cluster = Cluster::up(&[]);
    cluster.set(&[("scrub_interval_seconds", "2")]);
    cluster.psql(TABLES);
    cluster.assert_equal();
    cluster.behind_the_back("m2", "UPDATE money SET amount = 1000 WHERE id = 4321");
    let began = Instant::now();
    while !log(&cluster, "m2").contains("is repaired") {
        assert!(began.elapsed() < WITHIN, "m2 is not repaired: {}", cluster.status());
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("found and repaired after {:.1} s", began.elapsed().as_secs_f64());
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
}
