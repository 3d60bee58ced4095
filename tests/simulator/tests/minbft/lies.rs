//! What single lies and late messages must not do, each found by reading or by the simulator's adversaries.

use crate::Cluster;
use crate::injecting::{Misplacing, Sent, inject_acknowledgement, inject_hello, misplace};
use crate::rules::{changed, live, submit};
use ordering::agreement::{Input, Phase};
use ordering::identifiers::{MachineId, Order, View};
use ordering::minbft::Message;

const M0: MachineId = MachineId(0);
const M1: MachineId = MachineId(1);
const M2: MachineId = MachineId(2);
const M3: MachineId = MachineId(3);

#[test]
fn m0_does_not_go_to_a_view_that_one_machine_acknowledges() {
    let mut cluster = live(51, 1);
    inject_acknowledgement(&mut cluster, M1, M0, View(5));
    assert_eq!(cluster.status(M0).phase, Phase::Live);
    submit(&mut cluster, 5);
    assert!(cluster.run_until(2_000_000, |cluster| cluster.decided.len() == 5));
    assert_eq!(changed(&cluster), [], "no view change was needed");
}

#[test]
fn a_start_takes_no_request_over_for_a_group_that_is_not_in_charge() {
    let mut cluster = live(52, 2);
    misplace(&mut cluster, M0, Misplacing::Both);
    cluster.submit();
    cluster.run(50_000);
    assert_eq!(cluster.decided.len(), 1, "only the group in charge commits");
    cluster.crash_all();
    cluster.start_all();
    assert!(cluster.run_until(5_000_000, Cluster::is_live));
    // Each delivery is checked for its group.
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
    cluster.check();
}

#[test]
fn nobody_collects_hellos_of_machines_that_no_longer_say_hello() {
    let mut cluster = Cluster::new(53, 1, 1);
    // m0 never hears that the view it has started is live.
    cluster.filter = |_, to, message| to != M0 || !matches!(message, Message::Acknowledge(_) | Message::Live(_));
    assert!(cluster.run_until(2_000_000, |cluster| {
        cluster.replicas().all(|id| cluster.status(id).phase == Phase::Live)
    }));
    cluster.run(3_000_000);
    cluster.crash(M1);
    cluster.start(M1);
    for _ in 0..400 {
        cluster.run(1_000);
        let phase = cluster.status(M1).phase;
        assert_ne!(phase, Phase::Starting, "the others are live: no start can succeed");
    }
}

#[test]
fn a_machine_that_gave_a_view_up_after_its_view_change_joins_it_when_it_is_live() {
    let mut cluster = live(54, 1);
    submit(&mut cluster, 5);
    cluster.crash(M0);
    // m3 endorses, and never hears that the view is live.
    cluster.filter = |_, to, message| to != M3 || !matches!(message, Message::AcknowledgeView(_) | Message::Live(_));
    cluster.submit();
    assert!(cluster.run_until(3_000_000, |cluster| changed(cluster) == [M1, M2]));
    assert_eq!(cluster.status(M3).phase, Phase::Changing);
    // It hears that more counters were lost than a view can bear, and prepares for a start.
    inject_hello(&mut cluster, M1, M3, 9, None);
    inject_hello(&mut cluster, M2, M3, 9, None);
    assert_eq!(cluster.status(M3).phase, Phase::Waiting);
    cluster.heal();
    assert!(
        cluster.run_until(3_000_000, |cluster| changed(cluster) == [M1, M2, M3]),
        "{}",
        cluster.describe()
    );
    assert_eq!(cluster.status(M3).view, cluster.status(M1).view);
    submit(&mut cluster, 5);
    assert!(cluster.run_until(5_000_000, Cluster::is_done));
}

#[test]
fn what_is_not_decided_is_not_answered_in_the_form_of_a_vote() {
    let mut cluster = live(55, 1);
    cluster.filter = |_, _, message| !matches!(message, Message::Commit(_));
    let digest = cluster.submit();
    cluster.run(50_000);
    assert_eq!((cluster.status(M1).prepared, cluster.decided.len()), (Order(1), 0));
    let order = Order(1);
    let fetch = Input::FetchRequest {
        from: M2,
        order,
        digest,
    };
    assert_eq!(cluster.ask(M1, fetch.clone()), []);
    cluster.heal();
    assert!(cluster.run_until(2_000_000, Cluster::is_done));
    assert_eq!(cluster.ask(M1, fetch).len(), 1);
}

#[test]
fn what_a_view_change_shows_fits_into_a_message() {
    const BYTES_MAX: usize = 128 << 10;
    let mut cluster = Cluster::tuned(56, 1, 2, |configuration| {
        configuration.message_bytes_max = BYTES_MAX;
        configuration.request_us = 3_000_000;
    });
    let sent = Sent::default();
    cluster.watch = Some(Box::new(sent.clone()));
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    // Nothing becomes stable, so everything must be shown.
    cluster.filter = |_, _, message| !matches!(message, Message::Checkpoint(_) | Message::Stable(_));
    for _ in 0..600 {
        cluster.submit();
        cluster.run(1_000);
    }
    let decided = cluster.decided.len();
    assert!((20..600).contains(&decided), "they wait for a checkpoint: {decided}");
    cluster.crash(M0);
    assert!(cluster.run_until(30_000_000, |cluster| changed(cluster).len() == 3));
    assert!(
        sent.new_views.get() > 0 && sent.largest.get() <= BYTES_MAX,
        "{}",
        sent.largest.get()
    );
    cluster.heal();
    assert!(
        cluster.run_until(60_000_000, Cluster::is_done),
        "{}",
        cluster.describe()
    );
    cluster.check();
}

#[test]
fn batches_that_wait_for_a_checkpoint_go_on_when_it_comes() {
    let mut cluster = Cluster::tuned(57, 1, 2, |configuration| {
        configuration.message_bytes_max = 128 << 10;
        configuration.request_us = 600_000_000;
    });
    assert!(cluster.run_until(2_000_000, Cluster::is_live));
    cluster.filter = |_, _, message| !matches!(message, Message::Checkpoint(_) | Message::Stable(_));
    for _ in 0..600 {
        cluster.submit();
        cluster.run(1_000);
    }
    let decided = cluster.decided.len();
    assert!((20..600).contains(&decided), "they wait for a checkpoint: {decided}");
    let view = cluster.status(M1).view;
    cluster.heal();
    assert!(
        cluster.run_until(60_000_000, Cluster::is_done),
        "{}",
        cluster.describe()
    );
    assert_eq!(cluster.status(M1).view, view, "without a view change");
    cluster.check();
}

/// Else one liar would use up all views, and a view change would never be possible again.
#[test]
fn a_view_that_only_a_liar_mentions_is_not_started() {
    const HIGHEST: View = View((u64::MAX >> 1) - 8);
    let mut cluster = Cluster::new(58, 1, 1);
    // m3 lies to m0 about its view, and hides its true hello.
    cluster.filter = |from, _, message| from != M3 || !matches!(message, Message::Hello(_));
    inject_hello(&mut cluster, M3, M0, 1, Some(HIGHEST));
    cluster.run(2_000_000);
    let views = [M0, M1, M2].map(|machine| cluster.status(machine));
    assert!(
        views.iter().all(|status| status.phase == Phase::Waiting),
        "{}",
        cluster.describe()
    );
    // Once it has been restarted as a correct machine, they start as if it had been silent.
    cluster.crash(M3);
    cluster.heal();
    cluster.start(M3);
    assert!(cluster.run_until(2_000_000, Cluster::is_live), "{}", cluster.describe());
    let view = cluster.status(M1).view;
    assert!(view < View(16));
    submit(&mut cluster, 5);
    cluster.crash(M0);
    cluster.submit();
    assert!(
        cluster.run_until(10_000_000, Cluster::is_done),
        "{}",
        cluster.describe()
    );
    assert!(cluster.status(M1).view > view);
    cluster.check();
}
