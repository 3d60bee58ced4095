//! A short exploration of the voters' scenarios, and each fault put back: `make model` explores for as long as one likes.

use std::time::Duration;

use model::voters::{Fault, Lies, Scenario, Table};
use model::{Explored, explore, walk};

const TIME: Duration = Duration::from_secs(6);

/// A fault is found much sooner.
const FAULT_TIME: Duration = Duration::from_secs(120);

fn named(wanted: &str) -> Scenario {
    let mut all = Scenario::all().into_iter();
    all.find(|(name, _)| *name == wanted)
        .expect("there is such a scenario")
        .1
}

fn holds(explored: &Explored) {
    println!("{explored:?}");
    assert_eq!(explored.violation, None);
}

#[test]
fn one_transaction_is_explored_completely() {
    let explored = explore(named("one transaction").voters(), TIME * 4, 2);
    holds(&explored);
    assert!(explored.is_complete && explored.is_decided, "{explored:?}");
}

#[test]
fn scenarios_hold_on_random_walks() {
    for (name, scenario) in Scenario::all().into_iter().skip(1) {
        let explored = walk(scenario.voters(), Duration::from_secs(2), 2);
        println!("{name}");
        holds(&explored);
    }
}

/// A fault violates a property.
fn violates(fault: Fault, scenario: Scenario, property: &'static str) {
    let scenario = Scenario {
        fault: Some(fault),
        ..scenario
    };
    let explored = walk(scenario.voters().only(property), FAULT_TIME, 2);
    println!("{fault:?}: {explored:?}");
    assert!(explored.violation.is_some(), "{fault:?} is not found");
}

#[test]
fn work_that_does_not_wait_for_what_it_conflicts_with_diverges() {
    let scenario = Scenario {
        one_shot: true,
        ..Scenario::default()
    };
    violates(Fault::IgnoresDependencies, scenario, "no divergence");
}

#[test]
fn a_restart_without_positions_commits_twice() {
    // A certified list would contradict its words when it ran again; a one-shot has none.
    let scenario = named("a one-shot behind a transaction, one restart");
    violates(Fault::ForgetsPositions, scenario, "nothing is lost or doubled");
}

#[test]
fn a_floor_below_which_something_is_open_loses_it() {
    let scenario = named("one transaction, one restart");
    violates(Fault::FloorTooEarly, scenario, "nothing is lost or doubled");
}

#[test]
fn one_word_certifies_nothing() {
    let scenario = Scenario {
        lying_voter: false,
        lies: Lies::Lists,
        table: Table::Second,
        ..Scenario::default()
    };
    violates(Fault::OneWordCertifies, scenario, "what commits is the certified list");
}

#[test]
fn what_has_run_is_not_what_commits() {
    let scenario = Scenario {
        lies: Lies::Lists,
        table: Table::Second,
        ..Scenario::default()
    };
    violates(Fault::CommitsWhatRan, scenario, "what commits is the certified list");
}

#[test]
fn locks_span_the_floor() {
    let scenario = named("a one-shot behind a transaction, one restart");
    violates(Fault::ForgetsLocks, scenario, "lock states are equal");
}

#[test]
fn no_timeout_of_one_voter_ends_a_transaction() {
    let scenario = Scenario {
        expiries: 1,
        ..Scenario::default()
    };
    violates(Fault::LocalTimeout, scenario, "lock states are equal");
}

#[test]
fn words_are_checked_before_a_statement_may_run_on() {
    let scenario = named("a statement without end");
    violates(Fault::WordsUnchecked, scenario, "nothing is stuck");
}

#[test]
fn a_begin_that_is_granted_by_what_abandons_it_is_over() {
    let scenario = named("a statement without end");
    violates(Fault::BeginsNeverEnd, scenario, "nothing is stuck");
}
