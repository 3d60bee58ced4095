//! Seeds that every test run repeats: several hundred drawn ones for each protocol, and those that once failed.

use std::cell::RefCell;
use std::rc::Rc;

use simulator::campaign::{self, campaign};
use simulator::hunt::{MINBFT_CANARIES, PBFT_CANARIES, Prey, hunt, overrides};
use simulator::options::Overrides;
use simulator::protocol::{MinBft, Pbft, Protocol};
use simulator::regressions;
use simulator::run::run;
use simulator::soak::{Plan, Soaked, soak};
use simulator::violation::Phase;

/// Seeds of each protocol; `make sim` runs many more.
const SEEDS: u64 = 500;

fn no_violation<P: Protocol>(options: &str) {
    let summary = campaign::<P>(0..SEEDS, &overrides(options), campaign::threads(), 3, |_| {}).unwrap();
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
    assert!(summary.orders > 15 * SEEDS, "{}", summary.line());
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
    no_violation::<MinBft>("");
}

/// Every vote of PBFT has a signature to be verified: less load, so that the test takes about a minute.
#[test]
fn pbft_seeds() {
    no_violation::<Pbft>("requests=10");
}

#[test]
fn minbft_regressions() {
    no_regression::<MinBft>();
}

/// `harmless` turns what is broken into what is borne: then nothing may be found.
fn caught<P: Protocol>(canaries: &[Prey], harmless: impl Fn(&str) -> String) {
    for canary in canaries {
        let caught = hunt::<P>(canary).unwrap();
        let (_, outcome) = caught.unwrap_or_else(|| panic!("{} within {} seeds", canary.name, canary.seeds_max));
        let violation = outcome.violation.unwrap();
        assert_eq!(violation.phase, Phase::Safety, "{violation}");
        assert_ne!(violation.property, "no panic", "{violation}");
        let control = overrides(&harmless(canary.options));
        let control = campaign::<P>(0..30, &control, campaign::threads(), 1, |_| {}).unwrap();
        assert!(control.failures.is_empty(), "{:?}", control.failures);
    }
}

#[test]
fn the_checkers_catch_a_broken_trusted_counter_and_accept_a_true_one() {
    caught::<MinBft>(MINBFT_CANARIES, |options| options.replace("Broken", "True"));
}

#[test]
fn the_checkers_catch_one_liar_too_many_and_accept_one_less() {
    caught::<Pbft>(PBFT_CANARIES, |options| options.replace(",m1:equivocating", ""));
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

/// Logs of some hundred orders; one machine is away for some thousand.
fn short_soak<P: Protocol>() -> Soaked {
    let plan = Plan {
        orders: 8_000,
        orders_per_second: 2_000,
        absence: 2_500,
        restart_every: 1_500,
        log_bytes_max: 400_000,
    };
    soak::<P>(plan, |_| {}).unwrap_or_else(|violation| panic!("{violation}"))
}

#[test]
fn minbft_goes_on_from_a_certified_checkpoint_where_the_logs_no_longer_reach() {
    let soaked = short_soak::<MinBft>();
    assert!(soaked.cuts > 10 && soaked.repairs > 0, "{soaked:?}");
}

#[test]
fn pbft_goes_on_from_a_certified_checkpoint_where_the_logs_no_longer_reach() {
    let soaked = short_soak::<Pbft>();
    assert!(soaked.cuts > 10 && soaked.repairs > 0, "{soaked:?}");
}
