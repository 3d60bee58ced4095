//! A few seeds: `make twins` runs more.

use twins::run::{Options, Outcome, run};
use twins::topic::Topics;
use twins::world::Servers;

/// How many seeds each job runs, each of about a second.
const SEEDS: u64 = 34;

/// So many jobs run side by side, each on three servers of its own: seeds mostly wait.
const JOBS: u64 = 3;

async fn job(number: u64) -> Vec<(u64, Outcome)> {
    let servers = tokio::task::spawn_blocking(Servers::start).await.unwrap();
    let options = Options {
        topics: Topics::default(),
        trace: false,
    };
    let mut outcomes = Vec::new();
    for seed in number * SEEDS..(number + 1) * SEEDS {
        outcomes.push((seed, run(&servers, seed, &options).await));
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_clients_do_makes_voters_differ() {
    let mut jobs: tokio::task::JoinSet<_> = (0..JOBS).map(job).collect();
    let (mut violated, mut committed, mut compared) = (Vec::new(), 0, 0);
    while let Some(outcomes) = jobs.join_next().await {
        for (seed, outcome) in outcomes.unwrap() {
            committed += outcome.committed;
            compared += outcome.compared;
            let seen = outcome.violations.into_iter();
            violated.extend(seen.map(|violation| format!("seed {seed}: {violation}")));
        }
    }
    assert!(violated.is_empty(), "{}", violated.join("\n"));
    println!("{committed} transactions committed, {compared} effects compared");
    assert!(compared > 6 * SEEDS * JOBS, "only {compared} effects were compared");
    // Clients that get nothing done violate nothing.
    assert!(
        committed as u64 > 2 * SEEDS * JOBS,
        "only {committed} transactions were committed"
    );
}
