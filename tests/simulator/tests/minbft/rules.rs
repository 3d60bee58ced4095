//! The rules of `docs/protocol.md` that published implementations got wrong, each with the test that fails
//! without it.

use crate::Cluster;
use crate::injecting::inject_commits;
use ordering::agreement::{MisbehaviourKind, Phase};
use ordering::configuration::{CHECKPOINT_ORDERS, replica_slot};
use ordering::identifiers::{GroupId, MachineId, Order};
use ordering::message::REQUEST_WINDOW;
use ordering::minbft::{Message, Record};

const M1: MachineId = MachineId(1);
const M2: MachineId = MachineId(2);
const M3: MachineId = MachineId(3);

pub(crate) fn live(seed: u64, groups: u16) -> Cluster {
    let mut cluster = Cluster::new(seed, 1, groups);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    cluster
}

pub(crate) fn submit(cluster: &mut Cluster, requests: u64) {
    for _ in 0..requests {
        cluster.submit();
        cluster.run(3_000);
    }
}

#[test]
fn rule_1_no_prepare_is_followed_across_a_hole() {
    let mut cluster = live(11, 3);
    // m1 never gets the third batch, whatever its group, and whoever sends it again.
    cluster.filter = |_, to, message| match message {
        Message::Prepare(prepare) => to != M1 || prepare.warrant.value != 3,
        Message::GiveHistory(_) => to != M1,
        _ => true,
    };
    submit(&mut cluster, 20);
    cluster.run(500_000);
    assert_eq!(cluster.status(M1).prepared, Order(2));
    assert_eq!(cluster.status(M2).decided, Order(20), "the others are a quorum");
    assert_eq!(
        cluster.reports,
        [],
        "a hole is waited for, not taken for a fault of the primary"
    );
    cluster.heal();
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
    cluster.check();
}

#[test]
fn rule_1_no_commit_is_followed_across_a_hole() {
    let mut cluster = live(12, 1);
    // m1 never gets m2's third COMMIT: none of the later ones may count either. Of m3 it gets the first three.
    cluster.filter = |from, to, message| match message {
        Message::Commit(commit) if (from, to) == (M2, M1) => commit.warrant.value != 3,
        Message::Commit(commit) if (from, to) == (M3, M1) => commit.warrant.value <= 3,
        Message::GiveHistory(_) => to != M1,
        _ => true,
    };
    submit(&mut cluster, 20);
    cluster.run(100_000);
    assert_eq!(cluster.status(M1).decided, Order(3));
    cluster.heal();
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
    cluster.check();
}

#[test]
fn rule_3_warrants_within_a_view_are_strictly_sequential_and_checkpoints_use_none() {
    let mut cluster = live(13, 2);
    submit(&mut cluster, CHECKPOINT_ORDERS + 50);
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    assert!(cluster.status(M1).stable >= Order(CHECKPOINT_ORDERS));
    for group in [GroupId(0), GroupId(1)] {
        let values: Vec<u64> = cluster
            .log_of(M1)
            .iter()
            .filter_map(|record| match record {
                Record::Commit { commit, .. } if commit.group == group => Some(commit.warrant.value),
                _ => None,
            })
            .collect();
        assert!(values.len() > 100);
        assert!(
            values.iter().copied().eq(1..=values.len() as u64),
            "every warrant is a COMMIT"
        );
    }
}

#[test]
fn rule_3_a_warrant_spent_on_something_else_ends_the_run() {
    let mut cluster = live(14, 1);
    submit(&mut cluster, 5);
    cluster.run(100_000);
    // m2 spends a warrant on what is no COMMIT (as it would to leave the view).
    cluster
        .counter(M2)
        .borrow_mut()
        .create(replica_slot(GroupId(0)), &[1; 32]);
    submit(&mut cluster, 5);
    cluster.run(500_000);
    assert_eq!(cluster.status(M2).phase, Phase::Stopped);
    assert_eq!(cluster.reports, [(M2, MisbehaviourKind::OwnCounter)]);
    assert_eq!(cluster.status(M1).decided, Order(10), "the others are a quorum");
}

#[test]
fn rule_4_nothing_runs_before_everybody_has_acknowledged_the_start() {
    let mut cluster = live(15, 1);
    submit(&mut cluster, 5);
    cluster.crash_all();
    cluster.start_all();
    // m1 does not hear m3's acknowledgement, neither from m3 nor from those who have all of them.
    cluster.filter = |_, to, message| {
        to != M1
            || !matches!(message, Message::Acknowledge(from) if from.machine == M3)
                && !matches!(message, Message::Live(_))
    };
    cluster.run(3_000_000);
    assert_ne!(cluster.status(M1).phase, Phase::Live);
    assert_eq!(cluster.status(M2).phase, Phase::Live);
    // It may come from any live machine.
    cluster.filter = |from, to, _| from != M3 || to != M1;
    cluster.run(1_000_000);
    assert_eq!(cluster.status(M1).phase, Phase::Live);
}

#[test]
fn rule_2_one_replica_decides_nothing() {
    let mut cluster = Cluster::tuned(22, 1, 1, |configuration| configuration.request_us = 60_000_000);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    cluster.filter = |_, to, message| to == M1 || !matches!(message, Message::Prepare(_));
    submit(&mut cluster, 5);
    cluster.run(500_000);
    assert_eq!(
        cluster.status(M1).prepared,
        Order(4),
        "in flight: as many batches as configured"
    );
    assert_eq!(cluster.decided.len(), 0);
}

#[test]
fn rule_6_a_restarted_counter_does_not_count() {
    let mut cluster = live(16, 1);
    cluster.crash(M3);
    // m1 hears nothing of m2 but what its counter certifies in an epoch that nobody has admitted.
    cluster.filter = |from, to, _| from != M2 || to != M1;
    submit(&mut cluster, 3);
    cluster.run(100_000);
    let commits = cluster.log_of(M2).into_iter().filter_map(|record| match record {
        Record::Commit { commit, .. } => Some(commit),
        _ => None,
    });
    let commits: Vec<_> = commits.collect();
    assert!(!commits.is_empty());
    inject_commits(&mut cluster, M2, M1, &commits, 99);
    assert_eq!(cluster.status(M1).decided, Order(0));
    assert!(
        cluster
            .reports
            .iter()
            .all(|report| *report == (M2, MisbehaviourKind::WrongEpoch))
    );
    assert!(!cluster.reports.is_empty());
}

#[test]
fn rule_6_a_start_needs_the_logs_of_all_replicas() {
    let mut cluster = live(17, 1);
    submit(&mut cluster, 5);
    cluster.crash_all();
    for machine in [MachineId(0), M1, M2] {
        cluster.start(machine);
    }
    cluster.run(5_000_000);
    assert!(!cluster.is_live());
    cluster.start(M3);
    assert!(cluster.run_until(5_000_000, Cluster::is_live));
    submit(&mut cluster, 5);
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
    cluster.check();
}

#[test]
fn rule_7_one_client_cannot_fill_a_machine() {
    let mut cluster = Cluster::tuned(18, 1, 1, |configuration| configuration.client_bytes_max = 20_000);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    // The primary never answers, so nothing is ordered.
    cluster.isolate(MachineId(0));
    for _ in 0..REQUEST_WINDOW / 4 {
        cluster.submit();
    }
    cluster.run(50_000);
    let status = cluster.status(M1);
    assert!(status.bodies > 10);
    assert!(
        status.bodies_bytes <= 2 * 20_000,
        "two clients, each within its limit: {}",
        status.bodies_bytes
    );
}

#[test]
fn rule_7_commits_far_ahead_are_not_kept() {
    let mut cluster = live(19, 1);
    // m1 gets no COMMIT of m2 with value 1: those that follow must not pile up.
    cluster.filter = |from, to, message| {
        from != M2 || to != M1 || !matches!(message, Message::Commit(commit) if commit.warrant.value == 1)
    };
    submit(&mut cluster, 400);
    cluster.run(100_000);
    // `check_invariants` bounds the window after each step; m3 makes the quorum.
    assert_eq!(cluster.status(M1).decided, Order(400));
    cluster.heal();
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
}

#[test]
fn rule_8_a_request_that_comes_again_is_ordered_once() {
    let mut cluster = live(20, 2);
    let digests: Vec<_> = (0..20).map(|_| cluster.submit()).collect();
    for round in 0..5 {
        for index in 0..digests.len() {
            for machine in cluster.machines() {
                cluster.send_request(index, machine);
            }
        }
        cluster.run(2_000 + 100_000 * round);
    }
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    assert!(digests.iter().all(|digest| cluster.is_decided(digest)));
    assert_eq!(cluster.duplicates(), 0);
    assert_eq!(cluster.decided.len(), 20);
    assert_eq!(
        cluster.status(M1).bodies,
        0,
        "decided requests do not come back as new ones"
    );
}

#[test]
fn a_body_that_a_replica_lacks_is_fetched() {
    let mut cluster = live(21, 2);
    // Clients reach m0 and m3 only.
    cluster.deaf = [M1, M2].into();
    submit(&mut cluster, 20);
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
}

#[test]
fn commits_are_durable_before_they_are_sent() {
    // What one machine has delivered has f+1 durable copies: losing every unsynced write loses nothing.
    for seed in 0..20 {
        let mut cluster = live(2_000 + seed, 2);
        submit(&mut cluster, 10);
        cluster.submit();
        let instant_us = cluster.random(0..6_000);
        cluster.run(instant_us);
        let before = cluster.decided.len();
        cluster.lose_unsynced(true);
        cluster.crash_all();
        cluster.start_all();
        assert!(cluster.run_until(5_000_000, Cluster::is_live));
        submit(&mut cluster, 2);
        assert!(cluster.run_until(5_000_000, Cluster::is_done));
        assert!(cluster.decided.len() >= before + 2);
        cluster.check();
        cluster.check_logs();
    }
}

#[test]
fn a_leader_that_hears_no_acknowledgement_is_told_that_the_view_has_started() {
    let mut cluster = Cluster::new(23, 1, 1);
    // Every ACKNOWLEDGE to m0 gets lost, until all others are live.
    cluster.filter = |_, to, message| to != MachineId(0) || !matches!(message, Message::Acknowledge(_));
    cluster.run(1_000_000);
    assert_eq!(cluster.status(M1).phase, Phase::Live);
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    submit(&mut cluster, 3);
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
}

#[test]
fn a_primary_that_misses_all_progress_hears_of_it_again() {
    let mut cluster = live(24, 1);
    cluster.filter = |_, to, message| to != MachineId(0) || !matches!(message, Message::Progress(_));
    submit(&mut cluster, 10);
    cluster.run(50_000);
    assert_eq!(cluster.status(MachineId(0)).batches_in_flight, 4);
    cluster.heal();
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    assert_eq!(cluster.decided.len(), 10);
}

/// Who is live in a view above 0.
pub(crate) fn changed(cluster: &Cluster) -> Vec<MachineId> {
    let status = |id: MachineId| cluster.status(id);
    let is_changed = |id: &MachineId| status(*id).phase == Phase::Live && status(*id).view.0 > 0;
    cluster
        .replicas()
        .filter(|id| cluster.is_up(*id))
        .filter(is_changed)
        .collect()
}

#[test]
fn rule_2_a_new_view_needs_view_changes_of_f_plus_1_machines() {
    let mut cluster = live(31, 3);
    submit(&mut cluster, 10);
    cluster.crash(MachineId(0));
    // Nobody hears of another one's VIEW-CHANGE: the candidates have their own only.
    cluster.filter = |_, _, message| !matches!(message, Message::ViewChange(_));
    cluster.submit();
    cluster.run(5_000_000);
    assert_eq!(changed(&cluster), []);
    cluster.heal();
    assert!(cluster.run_until(20_000_000, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
}

#[test]
fn rule_4_a_view_begins_when_f_plus_1_have_acknowledged_how() {
    let mut cluster = live(32, 2);
    submit(&mut cluster, 10);
    cluster.crash(MachineId(0));
    cluster.filter = |_, _, message| !matches!(message, Message::AcknowledgeView(_));
    cluster.submit();
    let has_begun = cluster.run_until(5_000_000, |cluster| !changed(cluster).is_empty());
    assert!(!has_begun, "endorsed by all, but not decided");
    assert_eq!(cluster.decided.len(), 10);
    cluster.heal();
    assert!(cluster.run_until(20_000_000, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
}

#[test]
fn rule_4_nothing_is_acknowledged_before_f_plus_1_have_endorsed_it() {
    let mut cluster = live(33, 2);
    submit(&mut cluster, 10);
    cluster.crash(MachineId(0));
    cluster.filter = |_, _, message| !matches!(message, Message::Endorse(_));
    cluster.submit();
    cluster.run(5_000_000);
    assert_eq!(changed(&cluster), []);
    cluster.heal();
    assert!(cluster.run_until(20_000_000, Cluster::is_done));
    cluster.check();
}

#[test]
fn rule_5_nobody_leaves_a_view_alone() {
    let mut cluster = live(34, 1);
    // m1 hears nothing of what is ordered, and so waits in vain for its clients' requests.
    cluster.filter = |_, to, message| {
        to != M1
            || !matches!(
                message,
                Message::Prepare(_) | Message::GiveHistory(_) | Message::GiveRequests(_)
            )
    };
    submit(&mut cluster, 50);
    cluster.run(5_000_000);
    assert_eq!(changed(&cluster), []);
    assert_eq!(cluster.status(M1).phase, Phase::Live);
    assert_eq!(cluster.status(M2).decided, Order(50));
    cluster.heal();
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
}

#[test]
fn rule_5_a_request_that_the_primary_lacks_is_passed_on_before_it_is_suspected() {
    let mut cluster = live(35, 2);
    cluster.deaf = [MachineId(0)].into();
    for _ in 0..5 {
        cluster.submit();
        assert!(cluster.run_until(2_000_000, Cluster::is_done));
    }
    assert_eq!(changed(&cluster), []);
    cluster.check();
}

#[test]
fn rule_5_a_request_that_the_primary_lacks_is_passed_on_while_others_are_decided() {
    let mut cluster = live(38, 2);
    // The client of the first request reaches m3 only; those of all others reach everybody.
    cluster.deaf = [MachineId(0), M1, M2].into();
    let passed_over = cluster.submit();
    for _ in 0..40 {
        cluster.submit();
        let last = cluster.submitted() - 1;
        cluster.machines().for_each(|to| cluster.send_request(last, to));
        cluster.run(50_000);
    }
    assert!(cluster.is_decided(&passed_over), "within 2 s, while others are decided");
    assert_eq!(changed(&cluster), []);
    cluster.check();
}

#[test]
fn rule_5_a_silent_primary_is_replaced_and_so_is_a_silent_successor() {
    let mut cluster = live(36, 2);
    submit(&mut cluster, 10);
    cluster.crash(MachineId(0));
    // m1 leads view 1 and never says how it begins.
    cluster.filter = |from, _, message| from != M1 || !matches!(message, Message::NewView(_));
    submit(&mut cluster, 5);
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
    assert_eq!(cluster.status(M3).view.0, 2);
    cluster.check();
    cluster.check_logs();
}

#[test]
fn rule_8_requests_survive_a_view_change_and_are_ordered_once() {
    for seed in 0..30 {
        let mut cluster = live(3_000 + seed, 3);
        for _ in 0..30 {
            cluster.submit();
        }
        let instant_us = cluster.random(0..10_000);
        cluster.run(instant_us);
        cluster.crash(MachineId(0));
        submit(&mut cluster, 5);
        assert!(cluster.run_until(5_000_000, Cluster::is_done), "seed {seed}");
        assert_eq!(cluster.duplicates(), 0, "seed {seed}");
        cluster.check();
        cluster.check_logs();
    }
}

#[test]
fn rule_6_a_start_goes_on_from_a_checkpoint_that_only_m0_can_prove() {
    let mut cluster = live(39, 1);
    // Only m0 hears of the checkpoints of others.
    cluster.filter = |_, to, message| to.0 == 0 || !matches!(message, Message::Checkpoint(_) | Message::Stable(_));
    submit(&mut cluster, 20);
    assert!(cluster.run_until(2_000_000, |cluster| {
        cluster.is_done() && cluster.status(MachineId(0)).stable == cluster.status(M3).decided
    }));
    assert_eq!(cluster.status(M3).stable, Order(0));
    for machine in [M1, M2] {
        cluster.crash(machine);
        cluster.start(machine);
    }
    assert!(cluster.run_until(5_000_000, Cluster::is_live));
    submit(&mut cluster, 5);
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
    cluster.check();
}

#[test]
fn rule_6_when_too_many_counters_are_lost_the_live_ones_start_again_with_all() {
    let mut cluster = live(37, 1);
    submit(&mut cluster, 10);
    cluster.crash(M2);
    cluster.crash(M3);
    cluster.start(M2);
    cluster.start(M3);
    assert!(cluster.run_until(10_000_000, Cluster::is_live));
    submit(&mut cluster, 10);
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
    cluster.check();
    cluster.check_logs();
}
