//! What must hold, scenario by scenario. (The crate `simulator` runs whole lives drawn from seeds.)

use crate::cluster::Cluster;
use ordering::agreement::{Agreement, Phase};
use ordering::identifiers::{MachineId, Order};

/// Long enough for anything that must end once the network is calm.
const PATIENCE_US: u64 = 20_000_000;

fn submit_for(cluster: &mut Cluster, requests: u64) {
    for _ in 0..requests {
        cluster.submit();
        let pause_us = cluster.random(0..3_000);
        cluster.run(pause_us);
    }
}

#[test]
fn a_fresh_cluster_starts_and_decides() {
    let mut cluster = Cluster::new(1, 1, 2);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    submit_for(&mut cluster, 50);
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
    assert_eq!(cluster.duplicates(), 0);
    assert_eq!(cluster.reports, []);
    assert_eq!(cluster.decided.len(), 50);
}

#[test]
fn a_dead_replica_does_not_stall_the_others() {
    for (faults, dead) in [(1, 1), (2, 2)] {
        let mut cluster = Cluster::new(5, faults, 2);
        assert!(cluster.run_until(2_000_000, Cluster::is_live));
        submit_for(&mut cluster, 20);
        for id in 1..=dead {
            cluster.crash(MachineId(id));
        }
        let before_us = cluster.now_us;
        submit_for(&mut cluster, 100);
        assert!(cluster.run_until(1_000_000, Cluster::is_done));
        assert!(
            cluster.now_us - before_us < 600_000,
            "nothing waited for a dead replica's timeout"
        );
        cluster.check();
    }
}

#[test]
fn a_replica_that_was_cut_off_catches_up() {
    let mut cluster = Cluster::new(6, 1, 2);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    submit_for(&mut cluster, 10);
    cluster.isolate(MachineId(2));
    submit_for(&mut cluster, 3_000);
    cluster.heal();
    assert!(cluster.run_until(PATIENCE_US, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
    assert_eq!(cluster.reports, []);
}

#[test]
fn a_machine_that_is_restarted_alone_stays_out_and_harms_nobody() {
    let mut cluster = Cluster::new(7, 1, 2);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    submit_for(&mut cluster, 20);
    cluster.crash(MachineId(3));
    cluster.start(MachineId(3));
    submit_for(&mut cluster, 20);
    cluster.run(2_000_000);
    assert_ne!(cluster.machine(MachineId(3)).status().phase, Phase::Live);
    assert_eq!(cluster.machine(MachineId(1)).status().decided, Order(40));
    assert_eq!(cluster.machine(MachineId(2)).status().decided, Order(40));
    cluster.check();
    // When all go down, it is back, and fetches what it lacks.
    cluster.crash_all();
    cluster.start_all();
    assert!(cluster.run_until(PATIENCE_US, Cluster::is_live));
    submit_for(&mut cluster, 5);
    assert!(cluster.run_until(PATIENCE_US, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
}

#[test]
fn an_idle_cluster_is_quiet() {
    let mut cluster = Cluster::new(8, 1, 3);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    submit_for(&mut cluster, 10);
    cluster.run(3_000_000);
    let before = cluster.sent;
    cluster.run(10_000_000);
    // STATUS once a second from each of three replicas to the three others.
    assert!(
        cluster.sent - before <= 10 * 3 * 3 * 2,
        "{} messages in ten idle seconds",
        cluster.sent - before
    );
}
