//! A time-boxed exploration of each scenario; `make model` explores for as long as one likes.

use std::time::Duration;

use model::{Explored, Scenario, explore};

const TIME: Duration = Duration::from_secs(10);

fn scenario(groups: u16, requests: u64, timeouts: u8, liars: u8) -> Scenario {
    Scenario {
        groups,
        requests,
        timeouts,
        liars,
    }
}

fn holds(explored: &Explored, states_min: usize) {
    println!("{explored:?}");
    assert_eq!(explored.violation, None);
    assert!(explored.is_decided, "{explored:?}");
    assert!(explored.states >= states_min || explored.is_complete, "{explored:?}");
}

#[test]
fn minbft_with_one_batch_is_explored_completely() {
    let explored = explore(scenario(1, 1, 0, 0).minbft(), TIME * 6, 2);
    holds(&explored, 1);
    assert!(explored.is_complete, "{explored:?}");
}

#[test]
fn minbft_with_two_groups() {
    holds(&explore(scenario(2, 2, 0, 0).minbft(), TIME, 2), 1_000);
}

#[test]
fn minbft_with_two_views() {
    holds(&explore(scenario(1, 1, 1, 0).minbft(), TIME, 2), 1_000);
}

#[test]
fn pbft_with_an_equivocating_primary_and_two_views() {
    holds(&explore(scenario(1, 2, 1, 1).pbft(), TIME, 2), 1_000);
}

#[test]
fn two_liars_with_broken_counters_break_agreement_and_the_model_shows_it() {
    let explored = explore(scenario(1, 2, 0, 2).minbft(), TIME * 3, 2);
    assert!(
        explored
            .violation
            .is_some_and(|violation| violation.starts_with("agreement"))
    );
}

#[test]
fn two_liars_of_four_break_pbft_and_the_model_shows_it() {
    let explored = explore(scenario(1, 2, 0, 2).pbft(), TIME * 3, 2);
    assert!(
        explored
            .violation
            .is_some_and(|violation| violation.starts_with("agreement"))
    );
}
