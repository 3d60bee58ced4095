//! One test for each rule of the normal case: it fails when the rule is taken out.

use crate::scenarios::settle;
use crate::{Cluster, cluster, tuned};
use ordering::identifiers::{MachineId, Order};
use ordering::pbft::{Message, Record};

const M1: MachineId = MachineId(1);
const M2: MachineId = MachineId(2);
const M3: MachineId = MachineId(3);

#[test]
fn quorum_f_plus_1_or_2f_votes_decide_nothing() {
    // Two of four correct machines and their primary's silence towards the others: 2f votes of each kind.
    for (faults, alive) in [(1, 2), (2, 3), (2, 4)] {
        let mut cluster = cluster(30, faults, 1);
        for id in alive..3 * faults + 1 {
            cluster.crash(MachineId(id));
        }
        cluster.submit_for(5);
        cluster.run(3_000_000);
        assert_eq!(cluster.decided.len(), 0, "{alive} of {} decide", 3 * faults + 1);
    }
}

#[test]
fn quorum_certificates_need_2f_plus_1_prepares() {
    // m3 hears no PREPARE of m2, and m1's get lost too: it has its own and m0's, and must not commit.
    let mut cluster = cluster(31, 1, 1);
    cluster.filter = |from, to, message| {
        let is_prepare = matches!(message, Message::Prepare(_));
        !(to == M3 && is_prepare && (from == M1 || from == M2))
    };
    cluster.submit_for(5);
    cluster.run(60_000);
    let log = cluster.log_of(M3);
    assert!(log.iter().any(|record| matches!(record, Record::Accepted { .. })));
    assert!(!log.iter().any(|record| matches!(record, Record::Prepared { .. })));
    assert_eq!(cluster.status(M3).decided, Order(0));
    cluster.heal();
    settle(&mut cluster, "healed");
}

#[test]
fn quorum_decisions_need_2f_plus_1_commits() {
    // m3 hears only m0's COMMITs: with its own, 2f.
    let mut cluster = cluster(32, 1, 1);
    cluster.filter = |from, to, message| {
        let is_commit = matches!(message, Message::Commit(_));
        !(to == M3 && is_commit && (from == M1 || from == M2))
    };
    cluster.submit_for(5);
    cluster.run(60_000);
    assert!(cluster.status(M1).decided >= Order(1));
    assert_eq!(cluster.status(M3).decided, Order(0));
    cluster.heal();
    settle(&mut cluster, "healed");
}

#[test]
fn checkpoints_need_2f_plus_1_signatures() {
    let mut cluster = cluster(33, 1, 1);
    cluster.filter = |from, to, message| {
        let is_checkpoint = matches!(message, Message::Checkpoint(_) | Message::Stable(_));
        !(to == M3 && is_checkpoint && (from != MachineId(0) || matches!(message, Message::Stable(_))))
    };
    cluster.submit_for(20);
    cluster.run(400_000);
    assert_eq!(cluster.status(M1).stable, Order(20));
    assert_eq!(cluster.status(M3).stable, Order(0), "m0's and its own are f+1");
    cluster.heal();
    settle(&mut cluster, "healed");
}

#[test]
fn what_was_said_is_durable() {
    // What any machine has delivered has survived on enough machines: losing every unsynced write loses nothing.
    for seed in 0..40 {
        let mut cluster = cluster(2_000 + seed, 1, 2);
        cluster.submit_for(10);
        cluster.submit();
        let instant_us = cluster.random(0..8_000);
        cluster.run(instant_us);
        let before = cluster.decided.len();
        cluster.lose_unsynced(true);
        cluster.crash_all();
        cluster.start_all();
        cluster.submit_for(2);
        settle(&mut cluster, &format!("seed {seed}"));
        assert!(cluster.decided.len() >= before + 2);
    }
}

#[test]
fn votes_leave_only_when_they_are_durable() {
    // Every PREPARE and COMMIT that m1 has sent stands in the log that a crash leaves.
    let mut cluster = cluster(34, 1, 1);
    cluster.lose_unsynced(true);
    cluster.deaf = [M1].into();
    cluster.submit_for(30);
    cluster.crash(M1);
    let log = cluster.log_of(M1);
    let prepared = log.iter().filter(|record| matches!(record, Record::Prepared { .. }));
    let delivered = cluster.delivered(M1);
    assert!(delivered > 0 && prepared.count() > 0);
    let accepted: u64 = log
        .iter()
        .map(|record| match record {
            Record::Accepted { batch, requests, .. } => {
                assert_eq!(batch.entries.len(), requests.len(), "with all bodies");
                batch.last().0
            }
            _ => 0,
        })
        .max()
        .unwrap();
    assert!(accepted >= delivered as u64);
}

#[test]
fn a_request_that_comes_again_is_ordered_once() {
    let mut cluster = cluster(20, 1, 2);
    let digests: Vec<_> = (0..20).map(|_| cluster.submit()).collect();
    for round in 0..5 {
        for index in 0..digests.len() {
            for machine in cluster.machines() {
                cluster.send_request(index, machine);
            }
        }
        cluster.run(2_000 + 100_000 * round);
    }
    settle(&mut cluster, "again");
    assert!(digests.iter().all(|digest| cluster.is_decided(digest)));
    assert_eq!(cluster.duplicates(), 0);
    assert_eq!(cluster.decided.len(), 20);
    assert_eq!(cluster.status(M1).bodies, 0, "decided requests do not come back");
}

#[test]
fn a_request_that_was_decided_long_ago_is_not_ordered_again() {
    // Nothing of it is in memory but the client table; after a restart, that of the log.
    for restarts in [false, true] {
        let mut cluster = tuned(24, 1, 2, |configuration| configuration.tail_bytes_max = 0);
        cluster.submit_for(20);
        settle(&mut cluster, "before");
        cluster.run(1_000_000);
        cluster.submit_for(10);
        settle(&mut cluster, "after");
        if restarts {
            cluster.crash_all();
            cluster.start_all();
            assert!(cluster.run_until(1_000_000, Cluster::is_live));
        }
        for index in 0..20 {
            for machine in cluster.machines() {
                cluster.send_request(index, machine);
            }
        }
        cluster.run(1_000_000);
        assert_eq!(cluster.decided.len(), 30);
        assert_eq!(cluster.status(M1).bodies, 0);
    }
}

#[test]
fn a_client_with_two_bodies_for_one_number_deposes_nobody() {
    let mut cluster = cluster(21, 1, 1);
    cluster.submit_as(0, 7, 1);
    cluster.submit_as(0, 7, 1);
    cluster.give_up_requests();
    for (index, machine) in [(0, 0), (0, 1), (1, 2), (1, 3), (0, 2), (0, 3), (1, 0)] {
        cluster.send_request(index, MachineId(machine));
        cluster.run(100);
    }
    cluster.run(5_000_000);
    assert_eq!(cluster.status(M1).view.0, 0, "one body is decided, the other forgotten");
    assert_eq!(cluster.status(M1).bodies, 0);
    cluster.check_safety();
}

#[test]
fn a_body_that_a_replica_lacks_is_fetched() {
    let mut cluster = cluster(22, 1, 2);
    // Clients reach m0 and m3 only.
    cluster.deaf = [M1, M2].into();
    cluster.submit_for(20);
    settle(&mut cluster, "fetched");
    assert_eq!(cluster.status(M1).view.0, 0);
}

#[test]
fn a_request_that_the_primary_lacks_is_forwarded() {
    let mut cluster = cluster(23, 1, 2);
    cluster.deaf = [MachineId(0)].into();
    cluster.submit_for(5);
    settle(&mut cluster, "forwarded");
    assert_eq!(cluster.status(M1).view.0, 0, "and the primary stays");
}

#[test]
fn a_request_that_the_primary_lacks_is_forwarded_again() {
    // Its client reaches m3 only, and what m3 forwards gets lost for a while.
    let mut cluster = cluster(24, 1, 2);
    cluster.deaf = [MachineId(0), M1, M2].into();
    cluster.filter = |_, _, message| !matches!(message, Message::Forward(_));
    cluster.submit_for(5);
    cluster.run(2_000_000);
    assert_eq!(cluster.decided.len(), 0);
    cluster.filter = |_, _, _| true;
    settle(&mut cluster, "forwarded again");
}
