//! Lives of clusters: storms, crashes, restarts, liars; then everything must come to rest.

use crate::adversary::{LIES, corrupt};
use crate::{Cluster, cluster, tuned};
use ordering::configuration::CHECKPOINT_ORDERS;
use ordering::identifiers::{MachineId, Order};

/// Long enough for anything that must end once the network is calm.
pub(crate) const PATIENCE_US: u64 = 120_000_000;

/// Everything that was submitted is decided everywhere, and everything that must hold does.
pub(crate) fn settle(cluster: &mut Cluster, what: &str) {
    let is_done = cluster.run_until(PATIENCE_US, Cluster::is_done);
    assert!(is_done, "{what}: decides\n{}", cluster.describe());
    cluster.check();
    cluster.check_logs();
    cluster.check_accusations(what);
}

#[test]
fn a_fresh_cluster_decides_at_once() {
    for (seed, faults, groups) in [(1, 1, 1), (2, 1, 3), (3, 2, 2)] {
        let mut cluster = cluster(seed, faults, groups);
        cluster.submit_for(50);
        settle(&mut cluster, "fresh");
        assert_eq!(cluster.duplicates(), 0);
        assert_eq!(cluster.decided.len(), 50);
        assert_eq!(cluster.status(MachineId(1)).view.0, 0);
    }
}

/// Storms, partitions, up to f machines that lie or are down, and power cuts of everything.
fn turbulent_life(seed: u64) {
    let faults = if seed.is_multiple_of(3) { 2 } else { 1 };
    let groups = 1 + (seed % 3) as u16;
    let mut cluster = cluster(seed, faults, groups);
    let liars = cluster.random(0..u64::from(faults) + 1);
    for _ in 0..liars {
        // The first primaries matter most.
        let id = MachineId(cluster.random(0..u64::from(2 * faults)) as u8);
        let lie = LIES[cluster.random(0..LIES.len() as u64) as usize];
        corrupt(&mut cluster, id, lie, faults);
    }
    let liars = cluster.machines().filter(|id| cluster.is_liar(*id)).count();
    let spare = usize::from(faults) - liars;
    cluster.storm();
    let loses_unsynced = cluster.random(0..2) == 0;
    cluster.lose_unsynced(loses_unsynced);
    for _ in 0..cluster.random(1..5) {
        let requests = cluster.random(1..30);
        cluster.submit_for(requests);
        match cluster.random(0..5) {
            0 => {
                cluster.crash_all();
                cluster.start_all();
            }
            1 => {
                let victim = cluster.random_machine();
                cluster.isolate(victim);
            }
            2 => cluster.heal(),
            _ => {
                let victim = cluster.random_machine();
                let down = cluster.machines().filter(|id| !cluster.is_up(*id)).count();
                if cluster.is_up(victim) && !cluster.is_liar(victim) && down < spare {
                    cluster.crash(victim);
                } else {
                    cluster.start_all();
                }
            }
        }
        let pause_us = cluster.random(0..1_500_000);
        let requests = cluster.random(1..30);
        cluster.submit_for(requests);
        cluster.run(pause_us);
        cluster.check_safety();
        cluster.storm();
    }
    cluster.heal();
    if cluster.random(0..2) == 0 {
        cluster.start_all();
    }
    cluster.submit_for(5);
    settle(&mut cluster, &format!("seed {seed}"));
}

/// `SEEDS=from..to` runs others.
#[test]
fn turbulent_lives() {
    let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "0..60".to_owned());
    let (from, to) = seeds.split_once("..").unwrap();
    for seed in from.parse().unwrap()..to.parse::<u64>().unwrap() {
        turbulent_life(seed);
    }
}

#[test]
fn dead_replicas_do_not_stall_the_others() {
    for (faults, dead) in [(1, 1), (2, 2)] {
        let mut cluster = cluster(5, faults, 2);
        cluster.submit_for(20);
        for id in 1..=dead {
            cluster.crash(MachineId(id));
        }
        let before_us = cluster.now_us();
        cluster.submit_for(100);
        assert!(cluster.run_until(1_000_000, Cluster::is_done));
        assert!(cluster.now_us() - before_us < 700_000, "nothing waited for a timeout");
        cluster.check();
    }
}

#[test]
fn more_than_f_dead_machines_decide_nothing_and_lose_nothing() {
    let mut cluster = cluster(6, 1, 2);
    cluster.submit_for(20);
    settle(&mut cluster, "before");
    cluster.crash(MachineId(2));
    cluster.crash(MachineId(3));
    cluster.submit_for(20);
    cluster.run(5_000_000);
    assert_eq!(cluster.decided.len(), 20, "2f are no quorum");
    cluster.start_all();
    settle(&mut cluster, "after");
    assert_eq!(cluster.decided.len(), 40);
}

#[test]
fn a_replica_that_was_cut_off_catches_up() {
    for requests in [100, 6 * CHECKPOINT_ORDERS] {
        let mut cluster = cluster(7, 1, 2);
        cluster.submit_for(10);
        cluster.isolate(MachineId(2));
        cluster.submit_for(requests);
        cluster.heal();
        settle(&mut cluster, "cut off");
        let point = cluster.machine(MachineId(2)).history_point();
        assert_eq!(point, cluster.machine(MachineId(1)).history_point());
    }
}

#[test]
fn a_replica_that_was_down_catches_up_and_is_needed() {
    let mut cluster = cluster(8, 1, 2);
    cluster.submit_for(10);
    cluster.crash(MachineId(3));
    cluster.submit_for(3 * CHECKPOINT_ORDERS);
    cluster.start(MachineId(3));
    settle(&mut cluster, "back");
    // Now it makes the quorum.
    cluster.crash(MachineId(2));
    cluster.submit_for(10);
    settle(&mut cluster, "needed");
}

#[test]
fn the_window_is_bounded_and_moves_on() {
    let mut cluster = tuned(9, 1, 1, |configuration| configuration.batch_entries_max = 1);
    cluster.submit_for(1500);
    settle(&mut cluster, "long");
    let status = cluster.status(MachineId(1));
    assert!(status.stable >= Order(1400), "checkpoints become stable: {status:?}");
    assert_eq!((status.bodies, status.bodies_missing), (0, 0));
}

#[test]
fn an_idle_cluster_is_quiet() {
    let mut cluster = cluster(10, 1, 3);
    cluster.submit_for(10);
    cluster.run(3_000_000);
    let before = cluster.sent;
    cluster.run(10_000_000);
    // STATUS once a second from each machine to the three others.
    let sent = cluster.sent - before;
    assert!(sent <= 10 * 4 * 3 + 12, "{sent} messages in ten idle seconds");
}
