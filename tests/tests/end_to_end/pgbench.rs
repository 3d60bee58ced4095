//! pgbench through the proxy, in its three protocol modes.

use std::process::Command;

use tests::cluster::{Cluster, text};

/// Seconds of each mode in the short version; `CLOUDBFT_PGBENCH_SECONDS` makes it longer.
fn seconds() -> String {
    std::env::var("CLOUDBFT_PGBENCH_SECONDS").unwrap_or_else(|_| "3".into())
}

#[test]
fn pgbench_runs_in_every_mode_and_its_sums_agree() {
    let cluster = Cluster::up(&[]);
    let initialised = Command::new("pgbench")
        .args(["-i", "-s", "2", cluster.dsn()])
        .output()
        .expect("pgbench runs");
    assert!(initialised.status.success(), "{}", text(&initialised));
    for mode in ["simple", "extended", "prepared"] {
        let run = Command::new("pgbench")
            .args(["-n", "-c", "4", "-T", &seconds(), "-M", mode, cluster.dsn()])
            .output()
            .expect("pgbench runs");
        assert!(run.status.success(), "{mode}: {}", text(&run));
        let report = text(&run);
        assert!(
            report.contains("number of failed transactions: 0 (0.000%)"),
            "{mode}: {report}"
        );
        println!("{mode}: {report}");
    }
    let sums = cluster.psql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
                (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history);",
    );
    let mut sums: Vec<&str> = sums.trim().split('|').collect();
    assert_eq!(sums.len(), 4);
    sums.dedup();
    assert_eq!(sums.len(), 1, "the four sums differ: {sums:?}");
    cluster.assert_equal();
}
