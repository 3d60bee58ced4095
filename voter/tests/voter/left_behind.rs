//! A voter that lacks what the replicas have cut off.

use std::time::Duration;

use ordering::identifiers::Order;
use ordering::message::Outcome;
use voter::VoterState;

use crate::rig::{Rig, simple};

/// A voter that lacks some orders, where logs begin with a later one; the first that it lacks.
async fn lagging() -> (Rig, u64) {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE note (text text)").await;
    let executed = rig.last_order();
    rig.wait_until_flushed(executed).await;
    rig.stop_voter().await;
    for _ in 0..4 {
        rig.order_again(rig.last_order() + 1, "INSERT INTO note VALUES ('x')")
            .await;
    }
    rig.cut_logs(executed + 3);
    rig.forget_results();
    rig.start_voter();
    rig.wait_until_serving().await;
    (rig, executed + 1)
}

/// Long enough for a few of the voter's rounds.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(800)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f_plus_1_logs_that_begin_later_make_a_voter_left_behind() {
    let (mut rig, next) = lagging().await;
    rig.log_begins(1, next + 2).await;
    rig.log_begins(1, next + 3).await;
    rig.log_begins(9, next + 2).await;
    a_while().await;
    assert!(
        matches!(rig.state(), VoterState::Serving { .. }),
        "one replica may lie, and m9 is none"
    );
    rig.log_begins(3, next).await;
    a_while().await;
    assert!(
        matches!(rig.state(), VoterState::Serving { .. }),
        "a log that begins with what we lack can give it"
    );
    rig.log_begins(2, next + 2).await;
    let is_left_behind = |state: &VoterState| *state == VoterState::LeftBehind { next: Order(next) };
    rig.wait_for_state(is_left_behind).await;

    // Whatever comes later, it neither serves nor answers reads from its past.
    rig.order_again(rig.last_order() + 1, "INSERT INTO note VALUES ('y')")
        .await;
    a_while().await;
    assert!(is_left_behind(&rig.state()), "{:?}", rig.state());
    let read = rig.send_direct(None, &simple("SELECT count(*) FROM note"), false).await;
    assert_eq!(rig.direct_outcome(read).await, Outcome::Unavailable);
    assert_eq!(rig.psql("SELECT count(*) FROM note").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_gets_what_it_lacks_after_all_serves_again() {
    let (rig, next) = lagging().await;
    rig.log_begins(1, next + 2).await;
    rig.log_begins(2, next + 2).await;
    rig.wait_for_state(|state| matches!(state, VoterState::LeftBehind { .. }))
        .await;
    rig.cut_logs(1);
    rig.wait_for_state(|state| matches!(state, VoterState::Serving { executed, .. } if executed.0 >= next + 3))
        .await;
}
