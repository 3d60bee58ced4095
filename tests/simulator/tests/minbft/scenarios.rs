//! What must hold, scenario by scenario.

use crate::Cluster;
use ordering::identifiers::{MachineId, Order};

/// Long enough for anything that must end once the network is calm.
const PATIENCE_US: u64 = 20_000_000;

#[test]
fn a_fresh_cluster_starts_and_decides() {
    let mut cluster = Cluster::new(1, 1, 2);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    cluster.submit_for(50);
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
    assert_eq!(cluster.duplicates(), 0);
    assert_eq!(cluster.reports, []);
    assert_eq!(cluster.decided.len(), 50);
}

/// Storms, up to f crashes, then everything goes down and comes back; several hundred seeds.
fn turbulent_life(seed: u64) {
    let faults = if seed.is_multiple_of(3) { 2 } else { 1 };
    let groups = 1 + (seed % 3) as u16;
    let mut cluster = Cluster::new(seed, faults, groups);
    cluster.storm();
    let early = cluster.random(0..400_000);
    cluster.run(early);
    let rounds = cluster.random(1..4);
    for _ in 0..rounds {
        let requests = cluster.random(1..30);
        cluster.submit_for(requests);
        for _ in 0..cluster.random(0..u64::from(faults) + 1) {
            let victim = cluster.random_replica();
            if cluster.is_up(victim)
                && cluster.replicas().filter(|id| !cluster.is_up(*id)).count() < usize::from(faults)
            {
                cluster.crash(victim);
            }
        }
        let requests = cluster.random(1..30);
        cluster.submit_for(requests);
        cluster.check_safety();
        cluster.crash_all();
        cluster.start_all();
        cluster.storm();
    }
    cluster.heal();
    let is_live = cluster.run_until(PATIENCE_US, Cluster::is_live);
    assert!(is_live, "seed {seed}: starts again\n{}", cluster.describe());
    cluster.submit_for(5);
    let is_done = cluster.run_until(PATIENCE_US, Cluster::is_done);
    assert!(is_done, "seed {seed}: decides again\n{}", cluster.describe());
    cluster.check();
    cluster.check_logs();
    assert_eq!(cluster.reports, [], "seed {seed}: nobody is accused wrongly");
}

#[test]
fn turbulent_lives() {
    for seed in 0..150 {
        turbulent_life(seed);
    }
}

#[test]
fn more_turbulent_lives() {
    for seed in 1_000..1_150 {
        turbulent_life(seed);
    }
}

#[test]
fn a_dead_replica_does_not_stall_the_others() {
    for (faults, dead) in [(1, 1), (2, 2)] {
        let mut cluster = Cluster::new(5, faults, 2);
        assert!(cluster.run_until(2_000_000, Cluster::is_live));
        cluster.submit_for(20);
        for id in 1..=dead {
            cluster.crash(MachineId(id));
        }
        let before_us = cluster.now_us();
        cluster.submit_for(100);
        assert!(cluster.run_until(1_000_000, Cluster::is_done));
        assert!(
            cluster.now_us() - before_us < 600_000,
            "nothing waited for a dead replica's timeout"
        );
        cluster.check();
    }
}

#[test]
fn a_replica_that_was_cut_off_catches_up() {
    let mut cluster = Cluster::new(6, 1, 2);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    cluster.submit_for(10);
    cluster.isolate(MachineId(2));
    cluster.submit_for(3_000);
    cluster.heal();
    assert!(cluster.run_until(PATIENCE_US, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
    assert_eq!(cluster.reports, []);
}

#[test]
fn a_machine_that_is_restarted_alone_is_admitted_again() {
    let mut cluster = Cluster::new(7, 1, 2);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    cluster.submit_for(20);
    cluster.crash(MachineId(3));
    cluster.submit_for(20);
    cluster.start(MachineId(3));
    assert!(cluster.run_until(3_000_000, Cluster::is_live));
    assert_eq!(cluster.status(MachineId(3)).primary, MachineId(0), "the primary stays");
    // It takes part: without it there is no quorum now.
    cluster.crash(MachineId(2));
    cluster.submit_for(20);
    assert!(cluster.run_until(3_000_000, Cluster::is_done));
    assert_eq!(cluster.status(MachineId(3)).decided, Order(60));
    cluster.check();
    cluster.check_logs();
    assert_eq!(cluster.reports, []);
}

#[test]
fn an_idle_cluster_is_quiet() {
    let mut cluster = Cluster::new(8, 1, 3);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    cluster.submit_for(10);
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

#[test]
fn one_seed() {
    if let Ok(seed) = std::env::var("SEED") {
        turbulent_life(seed.parse().unwrap());
    }
}

/// Primaries and replicas crash, are cut off and come back, one at a time and together, while clients send.
fn changing_life(seed: u64) {
    println!("seed {seed}");
    let faults = if seed.is_multiple_of(4) { 2 } else { 1 };
    let groups = 1 + (seed % 3) as u16;
    let mut cluster = Cluster::new(seed, faults, groups);
    assert!(cluster.run_until(5_000_000, Cluster::is_live), "seed {seed}");
    cluster.storm();
    for _ in 0..cluster.random(2..7) {
        let requests = cluster.random(1..20);
        cluster.submit_for(requests);
        let victim = match cluster.random(0..3) {
            0 => MachineId(0),
            1 => cluster.leader(),
            _ => cluster.random_replica(),
        };
        match cluster.random(0..3) {
            0 if cluster.is_up(victim) => cluster.crash(victim),
            1 => cluster.isolate(victim),
            _ => cluster.start_all(),
        }
        let requests = cluster.random(1..20);
        cluster.submit_for(requests);
        let pause_us = cluster.random(0..2_000_000);
        cluster.run(pause_us);
        if cluster.random(0..2) == 0 {
            cluster.mend();
        }
        cluster.check_safety();
    }
    cluster.heal();
    cluster.start_all();
    let is_live = cluster.run_until(3 * PATIENCE_US, Cluster::is_live);
    assert!(is_live, "seed {seed}: all take part again\n{}", cluster.describe());
    cluster.submit_for(5);
    let is_done = cluster.run_until(PATIENCE_US, Cluster::is_done);
    assert!(is_done, "seed {seed}: decides again\n{}", cluster.describe());
    cluster.check();
    cluster.check_logs();
    assert_eq!(cluster.reports, [], "seed {seed}: nobody is accused wrongly");
}

#[test]
fn changing_lives() {
    for seed in range_of(10_000..10_150) {
        changing_life(seed);
    }
}

/// Seeds that have found something: machines admitted into a view that was left, second VIEW-CHANGEs to one view.
#[test]
fn changing_lives_that_were_once_wrong() {
    for seed in [30_928, 31_050, 31_310, 33_719] {
        changing_life(seed);
    }
}

/// The seeds of a scenario: `SEEDS=first..end` replaces the default.
fn range_of(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SEEDS") else {
        return default;
    };
    let (first, end) = text.split_once("..").expect("SEEDS=first..end");
    first.parse().unwrap()..end.parse().unwrap()
}
