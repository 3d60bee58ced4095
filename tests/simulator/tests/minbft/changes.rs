//! View changes: ways back into a view, and primaries that break the rules.

use crate::Cluster;
use crate::injecting::{Misplacing, misplace};
use crate::rules::{changed, live, submit};
use ordering::agreement::{MisbehaviourKind, Phase};
use ordering::identifiers::{MachineId, View};
use ordering::minbft::Message;

const M0: MachineId = MachineId(0);
const M1: MachineId = MachineId(1);
const M2: MachineId = MachineId(2);
const M3: MachineId = MachineId(3);

#[test]
fn rule_6_a_machine_that_was_admitted_into_a_view_that_was_left_returns_by_it() {
    let mut cluster = live(38, 2);
    submit(&mut cluster, 10);
    cluster.crash(M1);
    cluster.start(M1);
    // The others admit m1's new counter, and m1 does not hear of it.
    cluster.filter = |_, to, _| to != M1;
    let admitted = |cluster: &Cluster| [M2, M3].map(|id| cluster.status(id).view.0) == [4, 4];
    assert!(cluster.run_until(5_000_000, |cluster| admitted(cluster) && changed(cluster) == [M2, M3]));
    // They leave that view, and then one of them is restarted: nobody is live, and only one counter is lost.
    cluster.crash(M0);
    cluster.submit();
    let is_changing = |id: MachineId, cluster: &Cluster| cluster.status(id).phase == Phase::Changing;
    assert!(cluster.run_until(5_000_000, |cluster| is_changing(M2, cluster)
        && is_changing(M3, cluster)));
    cluster.crash(M3);
    cluster.start_all();
    cluster.heal();
    assert!(
        cluster.run_until(20_000_000, Cluster::is_live),
        "{}",
        cluster.describe()
    );
    submit(&mut cluster, 5);
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
    assert_eq!(cluster.reports, []);
}

#[test]
fn rule_3_a_machine_that_abandoned_a_view_makes_no_second_view_change_to_it() {
    let mut cluster = live(39, 1);
    submit(&mut cluster, 10);
    cluster.crash(M0);
    cluster.filter = |_, _, message| !matches!(message, Message::NewView(_));
    cluster.submit();
    let phase = |id: MachineId, cluster: &Cluster| cluster.status(id).phase;
    assert!(cluster.run_until(5_000_000, |cluster| phase(M2, cluster) == Phase::Changing));
    cluster.run(50_000);
    // m2 waits in vain for view 1, and wants view 2; the wishes of the others for view 1 are still fresh.
    cluster.filter = |from, to, _| from != M2 && to != M2;
    cluster.run(800_000);
    for machine in [M1, M3] {
        cluster.crash(machine);
        cluster.start(machine);
    }
    cluster.filter = |_, to, message| to != M2 || matches!(message, Message::Hello(_));
    assert!(cluster.run_until(2_000_000, |cluster| phase(M2, cluster) == Phase::Waiting));
    cluster.run(2_000_000);
    assert_eq!(phase(M2, &cluster), Phase::Waiting, "it starts again with all");
    cluster.check_safety();
    cluster.heal();
    cluster.start_all();
    assert!(cluster.run_until(10_000_000, Cluster::is_live));
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
}

#[test]
fn a_primary_that_gives_requests_to_wrong_groups_is_replaced() {
    // m2 gets the bodies that show it with the PREPARE, or only when it asks for them.
    for deaf in [None, Some(M2)] {
        let mut cluster = live(40, 2);
        cluster.deaf = deaf.into_iter().collect();
        misplace(&mut cluster, M0, Misplacing::Wrong);
        submit(&mut cluster, 10);
        // At each delivery it is checked that the group is in charge.
        assert!(
            cluster.run_until(10_000_000, Cluster::is_done),
            "{}",
            cluster.describe()
        );
        assert_eq!(changed(&cluster), [M1, M2, M3]);
        let is_accused = |report: &(MachineId, MisbehaviourKind)| *report == (M0, MisbehaviourKind::WrongPrepare);
        assert!(!cluster.reports.is_empty() && cluster.reports.iter().all(is_accused));
        cluster.check();
        cluster.check_logs();
    }
}

#[test]
fn a_machine_that_returns_does_not_slow_down_the_change_that_is_needed() {
    let mut cluster = live(71, 1);
    for _ in 0..3 {
        cluster.crash(M3);
        submit(&mut cluster, 3);
        cluster.start(M3);
        cluster.run(50_000);
        assert!(cluster.run_until(5_000_000, Cluster::is_live), "{}", cluster.describe());
        submit(&mut cluster, 3);
    }
    assert!(cluster.status(M1).view >= View(12), "three views were left for it");
    cluster.crash(M0);
    cluster.submit();
    // Its 300 ms would have doubled three times.
    let begin_us = cluster.now_us();
    assert!(cluster.run_until(9_000_000, Cluster::is_done), "{}", cluster.describe());
    let waited_us = cluster.now_us() - begin_us;
    assert!(waited_us < 900_000, "{waited_us}");
    cluster.check();
}
