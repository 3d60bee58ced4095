//! The same under PBFT: 3f+1 replicas without trusted counters, and a primary that is replaced.

use std::time::{Duration, Instant};

use tests::cluster::Cluster;

use crate::crashes::{Load, check_ledger, survive_on};
use crate::tpcc;

const OPTIONS: [&str; 4] = ["--agreement", "pbft", "--groups", "2"];

#[test]
fn applications_do_not_notice_that_the_primary_was_killed() {
    let cluster = Cluster::up(&OPTIONS);
    assert_eq!(cluster.status()["primary"], "m0");
    survive_on(&cluster, |cluster| cluster.kill_node("m0"));
    // On a busy machine the next primary may be taken for a slow one, too.
    assert_ne!(cluster.status()["primary"], "m0");
}

#[test]
fn applications_do_not_notice_that_a_replica_was_killed() {
    survive_on(&Cluster::up(&OPTIONS), |cluster| cluster.kill_node("m2"));
}

#[test]
fn everything_goes_on_after_all_machines_were_killed_at_once() {
    let mut cluster = Cluster::up(&OPTIONS);
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
    }
    // The machine without a database keeps up too.
    let order = |name: &str| cluster.machine(name, "last_order").as_u64().expect("an order");
    let (goal, begin) = (order("m1"), Instant::now());
    while order("m0") < goal {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "m0 is at {}, m1 was at {goal}",
            order("m0")
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
