//! `cloudbft scale`: the number of groups changes while applications run.

use std::time::Duration;

use serde_json::Value;
use tests::cluster::{Cluster, text};

use crate::crashes::{Load, check_ledger};
use crate::tpcc;

/// How long everybody may take to know of a change: a machine without a database hears of it with the next checkpoint.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);

/// Has the number of groups changed; how long that took, in milliseconds, as the command says.
fn scale(cluster: &Cluster, groups: &str) -> u64 {
    let output = cluster.command_on_directory("scale", &["--groups", groups]);
    assert!(output.status.success(), "scale to {groups}: {}", text(&output));
    println!("{}", text(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let milliseconds = said.split("after ").nth(1).and_then(|rest| rest.split(' ').next());
    milliseconds.expect("a time").parse().expect("a number")
}

fn assert_assignment(cluster: &Cluster, version: u64, groups: u64) -> Value {
    let status = cluster.status();
    assert_eq!(status["assignment"]["version"], version, "{status}");
    assert_eq!(status["assignment"]["groups"], groups, "{status}");
    assert_eq!(status["groups"].as_array().expect("groups").len() as u64, groups);
    status
}

fn refused(cluster: &Cluster, groups: &str, because: &str) {
    let output = cluster.command_on_directory("scale", &["--groups", groups]);
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(because), "{}", text(&output));
}

fn changes_under_load(options: &[&str]) {
    let mut cluster = Cluster::up(options);
    tpcc::load(&cluster, "2");
    assert_assignment(&cluster, 0, 1);
    let load = Load::start(&cluster, "20");
    std::thread::sleep(Duration::from_secs(3));
    let up = scale(&cluster, "5");
    assert_assignment(&cluster, 1, 5);
    std::thread::sleep(Duration::from_secs(2));
    // One is missing while the groups become fewer, and learns of it when it is back.
    cluster.kill_node("m2");
    let down = scale(&cluster, "2");
    assert_assignment(&cluster, 2, 2);
    println!("1 -> 5 groups took {up} ms, 5 -> 2 groups {down} ms");
    let ended = load.child.wait_with_output().expect("tpcc ends");
    assert!(ended.status.success(), "the application saw an error: {}", text(&ended));
    println!("{}", text(&ended));
    let report = std::fs::read_to_string(cluster.directory().join("report.json")).expect("a report");
    tpcc::assert_no_error(&serde_json::from_str(&report).expect("JSON"));
    check_ledger(&cluster, &load.ledger);
    cluster.wait_all_up(Duration::from_secs(60));
    cluster.assert_equal();
    cluster.assert_effects_agree();
    for machine in 1..=3 {
        assert_eq!(cluster.node_metric(machine, "cloudbft_groups "), 2, "m{machine}");
        assert_eq!(
            cluster.node_metric(machine, "cloudbft_assignment_version "),
            2,
            "m{machine}"
        );
    }
    // What was ordered wins over the cluster file, after everything was killed too.
    for _ in 0..2 {
        cluster.kill_everything();
        cluster.resume();
        assert_assignment(&cluster, 2, 2);
        check_ledger(&cluster, &load.ledger);
    }
    let known = std::time::Instant::now();
    scale(&cluster, "3");
    assert_assignment(&cluster, 3, 3);
    cluster.psql("create table after_all (id integer primary key); insert into after_all values (1);");
    while cluster.node_metric(0, "cloudbft_assignment_version ") != 3 {
        assert!(known.elapsed() < KNOWN_WITHIN, "m0 does not hear of the change");
        std::thread::sleep(Duration::from_millis(200));
    }
    cluster.assert_equal();
    // A change takes as long as a few decisions do; the test's machine may be slow.
    assert!(up < 5_000 && down < 5_000, "{up} ms, {down} ms");
}

#[test]
fn applications_do_not_notice_that_the_number_of_groups_changes() {
    changes_under_load(&["--groups", "1"]);
}

#[test]
fn applications_do_not_notice_that_the_number_of_groups_changes_under_pbft() {
    changes_under_load(&["--groups", "1", "--agreement", "pbft"]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let mut cluster = Cluster::up(&["--groups", "2"]);
    refused(&cluster, "0", "--groups must be 1 to 8");
    refused(&cluster, "9", "--groups must be 1 to 8");
    let same = cluster.command_on_directory("scale", &["--groups", "2"]);
    assert!(
        same.status.success() && text(&same).contains("2 groups are in charge already"),
        "{}",
        text(&same)
    );
    // Without the administrator's key nothing is changed.
    let key = cluster.directory().join("administrator/identity.pem");
    let kept = key.with_extension("kept");
    std::fs::rename(&key, &kept).expect("a key");
    std::fs::copy(cluster.directory().join("proxy/identity.pem"), &key).expect("a copy");
    refused(&cluster, "3", "is not the key that the cluster file lists");
    std::fs::remove_file(&key).expect("a key");
    refused(&cluster, "3", "identity.pem");
    std::fs::rename(&kept, &key).expect("a key");
    cluster.stop();
    refused(&cluster, "3", "the cluster does not run");
    // A cluster of an earlier build keeps its number of groups.
    let path = cluster.directory().join("cluster.toml");
    let text = std::fs::read_to_string(&path).expect("a cluster file");
    let older = text.split("[administrator]").next().expect("the rest").to_owned();
    std::fs::write(&path, older).expect("a cluster file");
    refused(&cluster, "3", "has no [administrator]");
}
