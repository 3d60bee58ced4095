//! Seeds that every test run repeats: several hundred drawn ones for each protocol, and those that once failed.

use std::cell::RefCell;
use std::rc::Rc;

use simulator::campaign::{self, campaign};
use simulator::hunt::{MINBFT_CANARIES, PBFT_CANARIES, Prey, hunt, overrides};
use simulator::lies::Told;
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
    // What the counter or a signature gives away must never pass.
    let complaints = summary.lies.complaints(P::LIES);
    let is_wrong = |complaint: &&String| !complaint.contains("was never told") && !complaint.contains("never passed");
    assert_eq!(complaints.iter().filter(is_wrong).count(), 0, "{complaints:?}");
    let sizes = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)];
    assert!(
        sizes.iter().all(|size| summary.sizes.contains_key(size)),
        "{}",
        summary.sizes_line()
    );
}

/// Lies in view changes that are told, and pass verification, where view changes are many.
const TOLD_IN_CHANGES: &[&str] = &[
    "acknowledges before others have endorsed",
    "acknowledges for some only",
    "checkpoint that never was",
    "endorses for some only",
    "endorses something else",
    "has followed what it has not",
    "new view from other view changes",
    "new view from too few view changes",
    "new view with an old hello",
    "new view with other counter values",
    "view change begins at an earlier view",
    "view change begins at other positions",
    "view change commits what it never sent",
    "view change without a reason",
    "wants a view without need",
    "wants another view",
];

#[test]
fn lies_in_view_changes_are_told_and_borne() {
    let mut told = Told::default();
    for adversary in [
        "m1:lying-view-changes+lying-new-views+lying-checkpoints",
        "m2:lying-view-changes+lying-endorsements+lying-checkpoints",
    ] {
        let options = format!(
            "faults=1 crashes=0 power_cuts=0 primary_cuts=4 corrupted_ms=0 safety_ms=5000 requests=40 \
             operation_bytes_max=16 adversaries={adversary}"
        );
        let summary = campaign::<MinBft>(0..60, &overrides(&options), campaign::threads(), 1, |_| {}).unwrap();
        assert!(summary.failures.is_empty(), "{:?}", summary.failures);
        told.add(&summary.lies);
    }
    let missing: Vec<_> = TOLD_IN_CHANGES.iter().filter(|lie| told.of(lie).passed == 0).collect();
    assert!(missing.is_empty(), "{missing:?} of {told}");
    // What the counter shows to all is told too, and refused.
    for lie in ["view change hides a warrant", "acknowledges what it did not endorse"] {
        assert!(told.of(lie).told > 0 && told.of(lie).passed == 0, "{lie}: {told}");
    }
}

/// Rule AdmittedEpochs: nothing that a counter certifies in another epoch than the admitted one counts.
#[test]
fn restarted_counters_are_borne() {
    let mut told = Told::default();
    for machine in ["m1", "m2"] {
        let options = format!("faults=1 crashes=0 power_cuts=0 adversaries={machine}:restarting-counters");
        let summary = campaign::<MinBft>(0..60, &overrides(&options), campaign::threads(), 1, |_| {}).unwrap();
        assert!(summary.failures.is_empty(), "{:?}", summary.failures);
        told.add(&summary.lies);
    }
    for lie in [
        "commits with a restarted counter",
        "view change without what a restarted counter committed",
    ] {
        assert!(told.of(lie).passed > 0, "{lie}: {told}");
    }
}

/// What hoarders say; the last one only once something has superseded what they keep.
const TOLD_BY_HOARDERS: &[&str] = &[
    "proposes to just enough",
    "resigns with a certificate of its own",
    "view change without what it keeps",
    "wants a view to show what it has kept",
    "view change with what it has kept",
];

#[test]
fn certificates_of_two_views_for_one_number_are_borne() {
    for adversaries in [
        "faults=1 primary_cuts=4 adversaries=m0:hoarding",
        "faults=2 primary_cuts=0 adversaries=m0:hoarding,m1:hoarding",
    ] {
        let options = format!("crashes=0 power_cuts=0 corrupted_ms=0 {adversaries}");
        let summary = campaign::<Pbft>(0..30, &overrides(&options), campaign::threads(), 1, |_| {}).unwrap();
        assert!(summary.failures.is_empty(), "{:?}", summary.failures);
        let told = summary.lies;
        let missing: Vec<_> = TOLD_BY_HOARDERS.iter().filter(|lie| told.of(lie).passed == 0).collect();
        assert!(missing.is_empty(), "{missing:?} of {told}");
    }
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

/// The number of groups is changed several times, rightly and wrongly, while machines crash and lie.
fn groups_change<P: Protocol>(seeds: u64, options: &str) {
    let options = format!("scalings=6 groups_spare=3 {options}");
    let summary = campaign::<P>(0..seeds, &overrides(&options), campaign::threads(), 3, |_| {}).unwrap();
    println!("{}: {}", P::NAME, summary.line());
    let failures = summary.failures.iter();
    let failures: Vec<_> = failures
        .filter_map(|outcome| Some(format!("{}\n{}", outcome.violation.as_ref()?, outcome.options)))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn minbft_groups_change() {
    groups_change::<MinBft>(60, "");
}

#[test]
fn pbft_groups_change() {
    groups_change::<Pbft>(60, "requests=10");
}

#[test]
fn minbft_regressions() {
    no_regression::<MinBft>();
}

#[test]
fn pbft_regressions() {
    no_regression::<Pbft>();
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

#[test]
fn inputs_that_are_taken_together_cost_fewer_messages() {
    fn sent<P: Protocol>(together_us: u64) -> u64 {
        let calm = "faults=1 groups=2 clients=4 byzantine_clients=0 requests=60 batch_entries_max=64 loss_percent=0 \
                    duplication_percent=0 crashes=0 primary_cuts=0 power_cuts=0 partitions=0 slow_disks=0 adversaries=";
        let overrides = overrides(&format!("{calm} together_us={together_us}"));
        let runs = (0..5).map(|seed| run::<P>(&campaign::options::<P>(seed, &overrides).unwrap(), None));
        let sent = runs.map(|outcome| {
            assert_eq!(outcome.violation, None, "{}", outcome.options);
            assert!(outcome.orders >= 240, "{}", outcome.options);
            outcome.counts.sent
        });
        sent.sum()
    }
    for (together, alone) in [
        (sent::<MinBft>(5_000), sent::<MinBft>(0)),
        (sent::<Pbft>(5_000), sent::<Pbft>(0)),
    ] {
        println!("{together} messages together, {alone} alone");
        assert!(5 * together < 4 * alone, "{together} messages together, {alone} alone");
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
