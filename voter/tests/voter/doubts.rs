//! A voter that answered otherwise than f+1 voters have certified commits, says nothing, and compares what it has changed
//! (`docs/decisions/0053`).

use ordering::message::{Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::Work;
use voter::VoterState;

use crate::hostile::{assert_serving, begin, count};
use crate::rig::{Rig, simple, tags};

const INSERT: &str = "INSERT INTO plain SELECT i FROM generate_series(1, 3) i";

async fn start() -> Rig {
    let mut rig = Rig::start_comparing().await;
    rig.run("CREATE TABLE plain (id int PRIMARY KEY, name text)").await;
    rig.effect(rig.last_order()).await;
    rig
}

/// Commits what others have certified with other answers; its order, and its number.
async fn contradict(rig: &mut Rig, statement: &str) -> (u64, u64) {
    let (transaction, order) = begin(rig, &simple(statement)).await;
    rig.result(order).await;
    let words = rig.words_with(&transaction, [9; 32]);
    let commit = rig.commit_with(&transaction, words).await;
    (rig.last_order(), commit)
}

/// The outcome of a read in an order of its own, as this voter tells it.
async fn told(rig: &mut Rig) -> Outcome {
    let exchange = simple("SELECT 1").encode();
    let read = Work::Read {
        transaction: None,
        writes_before: 0,
        exchange,
    };
    let order = rig.order(Footprint::default(), read).await;
    rig.result(order).await.outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_changed_the_same_goes_on_although_it_answered_otherwise() {
    let mut rig = start().await;
    let (order, commit) = contradict(&mut rig, INSERT).await;
    let own = rig.effect(order).await;
    assert_eq!(count(&rig).await, "3");
    assert_eq!(told(&mut rig).await, Outcome::Unavailable);
    // What one liar says counts for nothing.
    rig.tell_effect(3, order, [7; 32]).await;
    assert_eq!(told(&mut rig).await, Outcome::Unavailable);
    rig.tell_effect(2, order, own).await;
    rig.wait_for_effects(|effects| effects.agreed >= 1).await;
    assert_serving(&rig);
    let outcome = told(&mut rig).await;
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_changed_something_else_is_out_of_service() {
    let mut rig = start().await;
    let (order, _) = contradict(&mut rig, INSERT).await;
    rig.effect(order).await;
    rig.tell_effect(2, order, [7; 32]).await;
    rig.tell_effect(3, order, [7; 32]).await;
    rig.wait_for_state(|state| matches!(state, VoterState::Diverged { .. }))
        .await;
}

/// Rows that are equal say nothing of the catalog.
#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_changed_the_catalog_with_other_answers_is_out_of_service() {
    let mut rig = start().await;
    let (order, _) = contradict(&mut rig, "CREATE TABLE made AS SELECT 1 AS i").await;
    let own = rig.effect(order).await;
    rig.tell_effect(2, order, own).await;
    rig.tell_effect(3, order, own).await;
    rig.wait_for_state(|state| matches!(state, VoterState::Diverged { .. }))
        .await;
}

/// The rows are the same, and a sequence stands elsewhere: its place is part of the effect.
#[tokio::test(flavor = "multi_thread")]
async fn where_sequences_stand_is_compared() {
    let (mut one, mut other) = tokio::join!(start(), start());
    let mut effects = Vec::new();
    for (rig, draws) in [(&mut one, 3), (&mut other, 4)] {
        rig.run("CREATE SEQUENCE numbers").await;
        let draw = format!("INSERT INTO plain SELECT count(nextval('numbers')) * 0 FROM generate_series(1, {draws})");
        let (order, _) = contradict(rig, &draw).await;
        effects.push(rig.effect(order).await);
    }
    assert_ne!(effects[0], effects[1]);
}

/// A failed transaction has nothing to commit, whatever f+1 voters have certified.
#[tokio::test(flavor = "multi_thread")]
async fn what_failed_here_is_not_committed_in_doubt() {
    let mut rig = start().await;
    rig.run("INSERT INTO plain VALUES (2)").await;
    contradict(&mut rig, INSERT).await;
    rig.wait_for_state(|state| matches!(state, VoterState::Contradicts { .. }))
        .await;
    assert_eq!(count(&rig).await, "1");
}
