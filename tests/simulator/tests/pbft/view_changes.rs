//! One test for each rule of the view change: it fails when the rule is taken out.

use crate::adversary::{Lie, corrupt, sign_new_view, sign_proposal};
use crate::scenarios::settle;
use crate::{Cluster, cluster};
use ordering::agreement::MisbehaviourKind;
use ordering::identifiers::{GroupId, MachineId, Order, View};
use ordering::ledger::PrepareEntry;
use ordering::pbft::{Batch, Message, Record};

const M0: MachineId = MachineId(0);
const M1: MachineId = MachineId(1);
const M2: MachineId = MachineId(2);
const M3: MachineId = MachineId(3);

#[test]
fn a_dead_primary_is_replaced() {
    for faults in [1, 2] {
        let mut cluster = cluster(40, faults, 2);
        cluster.submit_for(20);
        // One primary after the other.
        for dead in 0..faults {
            cluster.crash(MachineId(dead));
            let before_us = cluster.now_us();
            cluster.submit_for(20);
            assert!(cluster.run_until(3_000_000, Cluster::is_done), "{}", cluster.describe());
            assert!(
                cluster.now_us() - before_us < 1_000_000,
                "service resumes within a second"
            );
        }
        settle(&mut cluster, "replaced");
        assert_eq!(cluster.duplicates(), 0);
        assert_eq!(cluster.status(M3).view, View(u64::from(faults)));
    }
}

#[test]
fn every_primary_can_be_replaced_in_turn() {
    let mut cluster = cluster(41, 1, 2);
    for round in 0..10 {
        let primary = cluster.status(MachineId(3 - round % 4)).primary;
        cluster.crash(primary);
        cluster.submit_for(10);
        settle(&mut cluster, "down");
        cluster.start(primary);
        cluster.submit_for(10);
        settle(&mut cluster, "back");
    }
    assert_eq!(cluster.duplicates(), 0, "no double execution over view changes");
    assert_eq!(cluster.decided.len(), 200);
}

#[test]
fn a_primary_that_was_restarted_resigns() {
    let mut cluster = cluster(42, 1, 2);
    cluster.submit_for(10);
    cluster.crash(M0);
    cluster.start(M0);
    let before_us = cluster.now_us();
    assert!(cluster.run_until(1_000_000, |cluster| cluster.is_live()
        && cluster.status(M1).view == View(1)));
    assert!(cluster.now_us() - before_us < 50_000, "nobody waits for a timeout");
    cluster.submit_for(10);
    settle(&mut cluster, "resigned");
}

#[test]
fn all_machines_restarted_at_once_go_on() {
    let mut cluster = cluster(43, 1, 2);
    cluster.submit_for(30);
    for round in 1..6 {
        cluster.crash_all();
        cluster.start_all();
        let before_us = cluster.now_us();
        cluster.submit_for(10);
        assert!(cluster.run_until(1_000_000, Cluster::is_done));
        assert!(cluster.now_us() - before_us < 300_000, "nobody waits for a timeout");
        settle(&mut cluster, "all");
        assert_eq!(cluster.status(M1).view, View(round));
    }
}

#[test]
fn a_prepared_certificate_survives() {
    // All machines prepare, but no COMMIT gets through except to m3, which decides alone, and goes away.
    let mut cluster = cluster(44, 1, 1);
    cluster.filter = |_, to, message| to == M3 || !matches!(message, Message::Commit(_));
    let digest = cluster.submit();
    assert!(cluster.run_until(300_000, |cluster| cluster.is_decided(&digest)));
    let decided = cluster.decided.clone();
    assert_eq!(cluster.status(M1).decided, Order(0));
    cluster.crash(M3);
    cluster.heal();
    // Every other one is lost too, and comes back from its log.
    for id in [M0, M1, M2] {
        cluster.crash(id);
        cluster.start(id);
    }
    assert!(cluster.run_until(5_000_000, Cluster::is_done), "{}", cluster.describe());
    assert_eq!(cluster.decided, decided, "the same batch at the same order and time");
    assert!(cluster.status(M1).view > View(0));
    cluster.start(M3);
    cluster.submit_for(5);
    settle(&mut cluster, "survives");
}

#[test]
fn view_changes_are_sent_again() {
    let mut cluster = cluster(45, 1, 1);
    cluster.submit_for(5);
    cluster.crash(M0);
    cluster.submit();
    // The first VIEW-CHANGE of everybody gets lost.
    cluster.filter = |_, _, message| !matches!(message, Message::ViewChange(_) | Message::Standing(_));
    cluster.run(1_500_000);
    assert!(!cluster.is_live());
    cluster.heal();
    assert!(cluster.run_until(1_000_000, Cluster::is_done), "{}", cluster.describe());
}

#[test]
fn new_views_are_sent_again() {
    let m6 = MachineId(6);
    let mut cluster = cluster(46, 2, 1);
    cluster.submit_for(5);
    cluster.crash(M0);
    cluster.filter = |_, to, message| to != MachineId(6) || !matches!(message, Message::NewView(_));
    cluster.submit();
    cluster.run(1_500_000);
    assert!(!cluster.is_live());
    cluster.heal();
    // m6 is not left with what checkpoints give it: it takes part.
    let takes_part = |cluster: &Cluster| cluster.is_live() && cluster.status(m6).view == View(1);
    assert!(cluster.run_until(2_000_000, takes_part), "{}", cluster.describe());
    settle(&mut cluster, "again");
}

#[test]
fn a_request_in_a_batch_that_was_given_up_is_ordered_later() {
    // m0's batch reaches m1 only, and nobody else knows its request; then m0 is gone, and the client too.
    let mut cluster = cluster(50, 1, 1);
    cluster.submit_for(5);
    assert!(cluster.run_until(1_000_000, Cluster::is_done));
    cluster.filter = |from, to, message| from != M0 || to == M1 || !matches!(message, Message::PrePrepare(_));
    let digest = cluster.submit();
    cluster.give_up_requests();
    let index = cluster.submitted() - 1;
    cluster.send_request(index, M0);
    cluster.send_request(index, M1);
    cluster.run(10_000);
    assert_eq!(cluster.status(M1).prepared, Order(6), "m1 has accepted the batch");
    cluster.crash(M0);
    cluster.heal();
    cluster.submit();
    assert!(cluster.run_until(3_000_000, Cluster::is_done), "{}", cluster.describe());
    assert!(cluster.is_decided(&digest));
}

#[test]
fn f_plus_1_higher_views_are_joined() {
    // Only m2 and m3 know of the request that m0 does not order; m1 joins them.
    let mut cluster = cluster(47, 1, 1);
    cluster.submit_for(5);
    assert!(cluster.run_until(1_000_000, Cluster::is_done));
    cluster.filter = |from, to, message| {
        let is_given = matches!(message, Message::Forward(_) | Message::GiveRequests(_));
        from != M0 && to != M0 && !is_given
    };
    cluster.submit();
    cluster.give_up_requests();
    let index = cluster.submitted() - 1;
    cluster.send_request(index, M2);
    cluster.send_request(index, M3);
    cluster.run(1_200_000);
    assert!(cluster.status(M1).view > View(0), "{}", cluster.describe());
    cluster.heal();
    settle(&mut cluster, "joined");
}

#[test]
fn one_machine_alone_changes_no_view() {
    let mut cluster = cluster(48, 1, 1);
    cluster.submit_for(5);
    // m3 hears nothing for a while, so that it wants another primary.
    cluster.filter = |_, to, message| to != M3 || matches!(message, Message::ViewChange(_));
    cluster.submit_for(50);
    cluster.run(5_000_000);
    assert_eq!(cluster.status(M1).view, View(0));
    cluster.heal();
    cluster.submit_for(50);
    settle(&mut cluster, "alone");
}

#[test]
fn an_equivocating_primary_is_replaced_and_harmless() {
    for seed in 0..10 {
        let faults = 1 + (seed % 2) as u8;
        let mut cluster = cluster(100 + seed, faults, 2);
        corrupt(&mut cluster, M0, Lie::Equivocate, faults);
        cluster.submit_for(20);
        settle(&mut cluster, "equivocation");
        assert!(cluster.status(M1).view > View(0));
        assert_eq!(cluster.duplicates(), 0);
    }
}

#[test]
fn both_proposals_of_a_primary_prove_that_it_lies() {
    let mut cluster = cluster(120, 1, 1);
    corrupt(&mut cluster, M0, Lie::Equivocate, 1);
    // m1 gets m2's copy as well.
    cluster.submit();
    cluster.run(5_000);
    let other = |id: MachineId, cluster: &Cluster| {
        let status = cluster.status(id);
        (status.view, status.prepared)
    };
    assert_eq!(other(M1, &cluster), (View(0), Order(1)));
    let other = Batch {
        number: 1,
        first: Order(1),
        time_us: 1_700_000_000_000_500,
        entries: vec![PrepareEntry {
            group: GroupId(0),
            digest: [9; 32],
        }],
    };
    let message = sign_proposal(&cluster.keys()[0], View(0), other);
    cluster.transmit(M0, M1, &message);
    cluster.run(1_000);
    assert!(cluster.reports.contains(&(M0, MisbehaviourKind::Contradiction)));
    settle(&mut cluster, "proven");
}

#[test]
fn a_primary_that_gives_requests_to_wrong_groups_is_replaced() {
    let mut cluster = cluster(123, 1, 2);
    corrupt(&mut cluster, M0, Lie::WrongGroup, 1);
    cluster.submit_for(20);
    // At each delivery it is checked that the group is in charge.
    settle(&mut cluster, "wrong group");
    assert!(cluster.reports.contains(&(M0, MisbehaviourKind::WrongPrepare)));
    assert!(cluster.status(M1).view > View(0));
}

#[test]
fn a_bad_batch_of_a_view_that_was_left_accuses_nobody_else() {
    for seed in 0..10 {
        let mut cluster = cluster(130 + seed, 1, 2);
        corrupt(&mut cluster, M0, Lie::WrongGroup, 1);
        // m2 gets the bodies that show it late: it has left view 0 by then, and does not know how view 1 begins.
        cluster.deaf = [M2].into();
        cluster.filter = |_, to, message| to != M2 || !matches!(message, Message::NewView(_));
        cluster.submit_for(3);
        cluster.run(200_000);
        cluster.heal();
        settle(&mut cluster, &format!("seed {seed}"));
    }
}

#[test]
fn a_primary_that_starves_groups_is_replaced() {
    let mut cluster = cluster(121, 1, 3);
    corrupt(&mut cluster, M0, Lie::OneGroup, 1);
    cluster.submit_for(60);
    settle(&mut cluster, "starved");
}

#[test]
fn lies_in_view_changes_lose_nothing() {
    for seed in 0..24 {
        let faults = 1 + (seed % 2) as u8;
        let lie = if seed % 4 < 2 { Lie::Omit } else { Lie::Forge };
        let mut cluster = cluster(200 + seed, faults, 2);
        // The next primary lies; the first one dies.
        corrupt(&mut cluster, M1, lie, faults);
        cluster.submit_for(20);
        if faults == 2 {
            cluster.crash(M0);
        } else {
            cluster.isolate(M0);
        }
        cluster.submit();
        cluster.run(1_500_000);
        cluster.heal();
        cluster.submit_for(10);
        settle(&mut cluster, &format!("{lie:?}, seed {seed}"));
    }
}

#[test]
fn a_new_view_counts_all_view_changes_and_needs_a_quorum() {
    let mut cluster = cluster(122, 1, 1);
    // Everybody prepares, nobody decides.
    cluster.filter = |_, _, message| !matches!(message, Message::Commit(_) | Message::NewView(_));
    let digest = cluster.submit();
    cluster.run(100_000);
    assert!(!cluster.is_decided(&digest));
    // m1 lies: its NEW-VIEW for view 1 has one view change less than a quorum.
    corrupt(&mut cluster, M1, Lie::Silent, 1);
    cluster.crash(M0);
    cluster.run(900_000);
    assert_eq!(cluster.status(M2).view, View(1));
    cluster.heal();
    let key = cluster.keys()[1].clone();
    let message = sign_new_view(&key, View(1), Vec::new());
    cluster.transmit(M1, M2, &message);
    cluster.run(1_000);
    assert!(cluster.rejected.iter().any(|(from, _)| *from == M1));
    assert!(!cluster.is_live(), "it does not begin");
    cluster.start(M0);
    settle(&mut cluster, "quorum");
    assert!(cluster.is_decided(&digest));
}

#[test]
fn a_restart_forgets_no_view_and_no_vote() {
    let mut cluster = cluster(49, 1, 1);
    cluster.submit_for(10);
    cluster.crash(M0);
    cluster.submit_for(10);
    settle(&mut cluster, "view 1");
    cluster.lose_unsynced(true);
    cluster.crash(M2);
    cluster.start(M2);
    cluster.run(10);
    assert_eq!(cluster.status(M2).view, View(1), "from its log");
    assert_eq!(cluster.status(M2).decided, Order(20));
    // One that has left a view does not come back into it.
    cluster.filter = |_, _, message| !matches!(message, Message::NewView(_));
    cluster.crash(M1);
    cluster.submit();
    cluster.run(1_000_000);
    assert_eq!(cluster.status(M2).view, View(2));
    cluster.crash(M2);
    cluster.start(M2);
    cluster.run(10);
    assert_eq!(cluster.status(M2).view, View(2));
    assert!(matches!(
        cluster.log_of(M2).last(),
        Some(Record::ViewChange { view: View(2), .. })
    ));
    cluster.heal();
    cluster.start_all();
    settle(&mut cluster, "restarted");
}
