//! Machines, nodes and database servers that die under load.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use tests::cluster::{Cluster, text};

use crate::tpcc;

/// TPC-C in the background, with a ledger of what was acknowledged.
pub(crate) struct Load {
    pub(crate) child: Child,
    pub(crate) ledger: String,
    report: String,
}

impl Load {
    pub(crate) fn start(cluster: &Cluster, seconds: &str) -> Load {
        let file = |name: &str| {
            cluster
                .directory()
                .join(name)
                .to_str()
                .expect("a UTF-8 path")
                .to_string()
        };
        let (ledger, report) = (file("ledger"), file("report.json"));
        let child = Command::new(tests::cluster::binary())
            .args([
                "tpcc",
                "run",
                "--dsn",
                cluster.dsn(),
                "--warehouses",
                "2",
                "--terminals",
                "4",
            ])
            .args(["--seconds", seconds, "--ledger", &ledger, "--json", &report])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tpcc starts");
        Load { child, ledger, report }
    }
}

/// Asserts the twelve conditions, and that everything acknowledged is there exactly once.
pub(crate) fn check_ledger(cluster: &Cluster, ledger: &str) {
    let checked = cluster.command(&["tpcc", "check", "--dsn", cluster.dsn(), "--ledger", ledger]);
    assert!(checked.status.success(), "{}", text(&checked));
    println!("{}", text(&checked));
}

fn survive(hurt: impl FnOnce(&Cluster)) {
    survive_on(&Cluster::up(&[]), hurt);
}

pub(crate) fn survive_on(cluster: &Cluster, hurt: impl FnOnce(&Cluster)) {
    survive_for(cluster, 15, hurt);
}

pub(crate) fn survive_for(cluster: &Cluster, seconds: u64, hurt: impl FnOnce(&Cluster)) {
    tpcc::load(cluster, "2");
    let load = Load::start(cluster, &seconds.to_string());
    std::thread::sleep(Duration::from_secs(4));
    hurt(cluster);
    let ended = load.child.wait_with_output().expect("tpcc ends");
    assert!(ended.status.success(), "the application saw an error: {}", text(&ended));
    println!("{}", text(&ended));
    let report = std::fs::read_to_string(&load.report).expect("a report");
    tpcc::assert_no_error(&serde_json::from_str(&report).expect("JSON"));
    check_ledger(cluster, &load.ledger);
    cluster.assert_equal();
    cluster.assert_effects_agree();
}

#[test]
fn applications_do_not_notice_that_a_node_was_killed() {
    for machine in ["m1", "m2", "m3"] {
        survive(|cluster| cluster.kill_node(machine));
    }
}

#[test]
fn applications_do_not_notice_that_a_database_server_was_killed() {
    survive(|cluster| cluster.kill_postgres("m2"));
}

/// A transaction that needs the primary: its BEGIN is ordered.
const ORDERED: &str = "begin isolation level serializable; select count(*) from warehouse; commit;";

/// How often the primary is killed: `CLOUDBFT_PRIMARY_KILLS` replaces it.
fn primary_kills() -> u64 {
    std::env::var("CLOUDBFT_PRIMARY_KILLS").map_or(2, |kills| kills.parse().expect("a number"))
}

#[test]
fn a_primary_that_was_killed_is_replaced_and_comes_back() {
    let seconds = 10 + 8 * primary_kills();
    survive_for(&Cluster::up(&[]), seconds, |cluster| {
        // m0, and then whoever leads; `up` starts each again while the others run.
        for _ in 0..primary_kills() {
            let (primary, view) = (cluster.primary(), cluster.view());
            let killed = Instant::now();
            cluster.kill_node(&primary);
            cluster.psql(ORDERED);
            println!("{primary} killed: an answer after {} ms", killed.elapsed().as_millis());
            assert!(killed.elapsed() < Duration::from_secs(10), "service resumes");
            cluster.wait_all_up(Duration::from_secs(30));
            assert!(cluster.view() > view, "the view has changed");
        }
    });
}

#[test]
fn a_primary_that_was_paused_is_replaced_and_joins_the_others() {
    survive(|cluster| {
        let (primary, view) = (cluster.primary(), cluster.view());
        let pid = cluster.node_pid(&primary);
        kill(pid, Signal::SIGSTOP).expect("the node is paused");
        let paused = Instant::now();
        cluster.psql(ORDERED);
        println!("{primary} paused: an answer after {} ms", paused.elapsed().as_millis());
        assert!(paused.elapsed() < Duration::from_secs(10), "service resumes");
        kill(pid, Signal::SIGCONT).expect("the node goes on");
        cluster.wait_all_up(Duration::from_secs(30));
        assert!(cluster.view() > view, "the view has changed");
    });
}

#[test]
fn nothing_acknowledged_is_lost_when_all_machines_are_killed_at_once() {
    let mut cluster = Cluster::up(&[]);
    tpcc::load(&cluster, "2");
    for _ in 0..2 {
        let mut load = Load::start(&cluster, "60");
        std::thread::sleep(Duration::from_secs(5));
        cluster.kill_everything();
        load.child.kill().ok();
        load.child.wait().ok();
        cluster.resume();
        check_ledger(&cluster, &load.ledger);
        cluster.assert_equal();
        cluster.assert_effects_agree();
    }
}
