//! TPC-C through the proxy.

use serde_json::Value;
use tests::cluster::{Cluster, text};

/// Loads small TPC-C, runs it, checks it, and returns the run's report.
pub(crate) fn load_and_run(cluster: &Cluster, warehouses: &str, terminals: &str, seconds: &str) -> Value {
    load(cluster, warehouses);
    let report = run(cluster, warehouses, terminals, seconds);
    check(cluster);
    cluster.assert_effects_agree();
    report
}

pub(crate) fn load(cluster: &Cluster, warehouses: &str) {
    let loaded = cluster.command(&[
        "tpcc",
        "load",
        "--small",
        "--dsn",
        cluster.dsn(),
        "--warehouses",
        warehouses,
    ]);
    assert!(loaded.status.success(), "load: {}", text(&loaded));
}

fn run(cluster: &Cluster, warehouses: &str, terminals: &str, seconds: &str) -> Value {
    let json = cluster.directory().join("report.json");
    let json = json.to_str().expect("a UTF-8 path");
    let arguments = [
        "--warehouses",
        warehouses,
        "--terminals",
        terminals,
        "--seconds",
        seconds,
        "--json",
        json,
    ];
    let run = cluster.command(&[&["tpcc", "run", "--dsn", cluster.dsn()], arguments.as_slice()].concat());
    assert!(run.status.success(), "run: {}", text(&run));
    println!("{}", text(&run));
    let report = serde_json::from_str(&std::fs::read_to_string(json).expect("a report")).expect("JSON");
    assert_no_error(&report);
    report
}

/// Asserts that transactions committed, and that the application saw no error and lost no connection.
pub(crate) fn assert_no_error(report: &Value) {
    assert!(
        report["transactions_per_second"].as_f64().expect("a number") > 0.0,
        "{report}"
    );
    assert_eq!(report["errors"], serde_json::json!({}), "{report}");
    for count in ["unknown_outcomes", "reconnects", "stuck_terminals"] {
        assert_eq!(report[count], 0, "{count}: {report}");
    }
}

pub(crate) fn check(cluster: &Cluster) {
    let checked = cluster.command(&["tpcc", "check", "--dsn", cluster.dsn()]);
    assert!(checked.status.success(), "check: {}", text(&checked));
}

#[test]
fn two_warehouses_with_one_group() {
    let cluster = Cluster::up(&["--groups", "1"]);
    load_and_run(&cluster, "2", "4", "10");
    cluster.assert_equal();
}

#[test]
fn four_warehouses_with_five_groups_and_two_terminals_on_each() {
    let cluster = Cluster::up(&["--groups", "5"]);
    load_and_run(&cluster, "4", "8", "10");
    cluster.assert_equal();
}

#[test]
fn the_global_lock_of_the_thesis_gives_the_same_results() {
    let cluster = Cluster::up(&["--multi-partition", "global"]);
    load_and_run(&cluster, "2", "4", "5");
    cluster.assert_equal();
}
