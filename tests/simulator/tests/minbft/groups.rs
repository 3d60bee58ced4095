//! The number of groups changes at an order (`docs/protocol.md`, rules GroupOfTheOrder and ChangesDivide).

use crate::Cluster;
use ordering::identifiers::{GroupId, MachineId};
use ordering::minbft::{Message, Record};

const M0: MachineId = MachineId(0);
const M1: MachineId = MachineId(1);

/// A cluster of one group, and so many more.
fn live(seed: u64, groups_spare: u16) -> Cluster {
    let mut cluster = Cluster::scalable(seed, 1, 1, groups_spare);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    cluster
}

fn in_charge(cluster: &Cluster, groups: u16) -> bool {
    let mut replicas = cluster.replicas();
    replicas.all(|machine| cluster.status(machine).groups_in_charge == groups)
}

/// Requests whose homes are of different groups, however many there are.
fn submit(cluster: &mut Cluster, first: u64, count: u64) {
    for number in first..first + count {
        cluster.submit_as(0, number, number);
    }
}

#[test]
fn groups_are_added_and_taken_away_while_requests_are_ordered() {
    let mut cluster = live(1, 4);
    for (version, groups) in [(1, 5), (2, 2), (3, 4), (4, 1)] {
        submit(&mut cluster, 100 * version, 20);
        cluster.scale(version, groups);
        submit(&mut cluster, 100 * version + 50, 20);
        assert!(cluster.run_until(2_000_000, Cluster::is_done), "{}", cluster.describe());
        assert!(in_charge(&cluster, groups), "{}", cluster.describe());
    }
    assert!(cluster.status(M1).view.0 == 0, "no primary was suspected");
    let groups: std::collections::BTreeSet<GroupId> = cluster.decided.values().map(|decided| decided.group).collect();
    assert_eq!(groups.len(), 5, "every group has decided something");
    cluster.check();
    cluster.check_accusations("nobody lies");
    cluster.check_logs();
    // Everything is known after a power cut.
    cluster.crash_all();
    cluster.start_all();
    assert!(
        cluster.run_until(10_000_000, Cluster::is_live),
        "{}",
        cluster.describe()
    );
    submit(&mut cluster, 600, 10);
    assert!(cluster.run_until(2_000_000, Cluster::is_done), "{}", cluster.describe());
    assert!(in_charge(&cluster, 1), "{}", cluster.describe());
    cluster.check();
}

#[test]
fn a_change_that_was_asked_for_wrongly_changes_nothing() {
    let mut cluster = live(2, 4);
    cluster.scale(1, 3);
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    let asked = cluster.submitted() - 1;
    // The version that is there, one that is not the next, no groups at all, and more than may ever be.
    for (version, groups) in [(1, 2), (3, 2), (2, 0), (2, 2000)] {
        cluster.scale(version, groups);
        submit(&mut cluster, 10 * u64::from(groups) + version, 1);
        // Each gives up those before it.
        assert!(cluster.run_until(2_000_000, Cluster::is_done), "{}", cluster.describe());
    }
    // And the first one again, as whoever has seen it may send it.
    for machine in cluster.machines() {
        cluster.send_request(asked, machine);
    }
    cluster.run(100_000);
    assert!(in_charge(&cluster, 3));
    assert_eq!(cluster.status(M1).assignment.version, 1);
    cluster.check_accusations("nobody lies");
    // More than there are replicas for: all that there are.
    cluster.scale(2, 100);
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    assert!(in_charge(&cluster, 5));
    cluster.check();
}

/// Rule GroupOfTheOrder.
#[test]
fn a_body_that_comes_after_a_change_belongs_to_the_group_of_its_order() {
    let mut cluster = live(3, 4);
    // m1 has to ask for every body: it follows the PREPARE of the change before it has those of what was ordered earlier.
    cluster.deaf = [M1].into();
    for version in 1..=10 {
        submit(&mut cluster, 100 * version, 8);
        cluster.scale(version, 1 + (version as u16 % 5));
        submit(&mut cluster, 100 * version + 50, 8);
        assert!(cluster.run_until(2_000_000, Cluster::is_done), "{}", cluster.describe());
    }
    cluster.check_accusations("nobody lies");
    cluster.check();
    cluster.check_logs();
}

/// Rule ChangesDivide.
#[test]
fn nothing_behind_a_change_is_committed_before_the_change_is_decided() {
    let mut cluster = live(4, 4);
    submit(&mut cluster, 0, 5);
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    // The first group, which decides the change, does not get on.
    cluster.filter = |_, _, message| !matches!(message, Message::Commit(commit) if commit.group == GroupId(0));
    cluster.scale(1, 5);
    cluster.run(5_000);
    submit(&mut cluster, 100, 10);
    cluster.run(100_000);
    for machine in cluster.correct() {
        let log = cluster.log_of(machine);
        let change = log.iter().find_map(|record| match record {
            Record::Prepare(prepare) if prepare.entries.last().is_some_and(|last| last.group.is_change()) => {
                Some(prepare.warrant.value)
            }
            _ => None,
        });
        let change = change.expect("the change was prepared");
        let commits = log.iter().filter_map(|record| match record {
            Record::Commit { commit, .. } => Some(commit),
            _ => None,
        });
        let behind = commits
            .flat_map(|commit| &commit.batches)
            .filter(|(value, _)| *value > change);
        assert_eq!(behind.count(), 0, "m{machine} commits behind the change");
    }
    // The primary dies with it, and whatever becomes of the change, all agree.
    cluster.crash(M0);
    cluster.heal();
    assert!(
        cluster.run_until(10_000_000, Cluster::is_done),
        "{}",
        cluster.describe()
    );
    assert!(in_charge(&cluster, 5));
    cluster.start_all();
    assert!(
        cluster.run_until(10_000_000, Cluster::is_live),
        "{}",
        cluster.describe()
    );
    submit(&mut cluster, 200, 10);
    assert!(cluster.run_until(2_000_000, Cluster::is_done), "{}", cluster.describe());
    cluster.check();
    cluster.check_logs();
}
