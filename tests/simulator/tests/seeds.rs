//! Seeds that every test run repeats: several hundred drawn ones for each protocol, and those that once failed.

use std::cell::RefCell;
use std::rc::Rc;

use simulator::campaign::{self, campaign};
use simulator::hunt::{MINBFT_CANARIES, hunt, overrides};
use simulator::options::Overrides;
use simulator::protocol::{MinBft, Protocol};
use simulator::regressions;
use simulator::run::run;

/// Seeds of each protocol; `make sim` runs many more.
const SEEDS: u64 = 500;

fn no_violation<P: Protocol>() {
    let summary = campaign::<P>(0..SEEDS, &Overrides::default(), campaign::threads(), 3, |_| {}).unwrap();
    println!("{}: {}", P::NAME, summary.line());
    let failures: Vec<String> = summary
        .failures
        .iter()
        .filter_map(|outcome| {
            Some(format!(
                "{}\n  options: {}",
                outcome.violation.as_ref()?,
                outcome.options
            ))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // What would make the seeds worthless must not go unnoticed.
    assert!(summary.orders > 20 * SEEDS, "{}", summary.line());
    assert!(
        summary.attacked > SEEDS / 2 && summary.demanding > SEEDS / 5,
        "{}",
        summary.line()
    );
    assert!(summary.forged > SEEDS, "{}", summary.line());
}

fn no_regression<P: Protocol>() {
    for options in regressions::options(P::NAME).unwrap() {
        let outcome = run::<P>(&options, None);
        assert_eq!(outcome.violation, None, "{} {options}", P::NAME);
    }
}

#[test]
fn minbft_seeds() {
    no_violation::<MinBft>();
}

#[test]
fn minbft_regressions() {
    no_regression::<MinBft>();
}

#[test]
fn the_checkers_catch_a_broken_trusted_counter_and_accept_a_true_one() {
    for canary in MINBFT_CANARIES {
        let caught = hunt::<MinBft>(canary).unwrap();
        let (_, outcome) = caught.unwrap_or_else(|| panic!("{} within {} seeds", canary.name, canary.seeds_max));
        let violation = outcome.violation.unwrap();
        assert_ne!(violation.property, "no panic", "{violation}");
        assert_ne!(violation.property, "liveness", "{violation}");
        let harmless = canary.options.replace("Broken", "True");
        let control = campaign::<MinBft>(0..50, &overrides(&harmless), campaign::threads(), 1, |_| {}).unwrap();
        assert!(control.failures.is_empty(), "{:?}", control.failures);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3, 4, 5, 6] {
        let events = || {
            let options = campaign::options::<MinBft>(seed, &Overrides::default()).unwrap();
            let lines = Rc::new(RefCell::new(Vec::new()));
            let sink = Rc::clone(&lines);
            run::<MinBft>(
                &options,
                Some(Box::new(move |line| sink.borrow_mut().push(line.to_owned()))),
            );
            lines.take()
        };
        let first = events();
        assert!(first.len() > 100);
        assert!(first == events(), "seed {seed} gave two different event logs");
    }
}
