//! A few seeds: `make twins` runs more.

use twins::run::{Options, run};
use twins::topic::Topics;
use twins::world::Servers;

/// How many seeds, each of about a second.
const SEEDS: u64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_clients_do_makes_voters_differ() {
    let servers = tokio::task::spawn_blocking(Servers::start).await.unwrap();
    let options = Options {
        topics: Topics::default(),
        words: true,
        trace: false,
    };
    let mut violated = Vec::new();
    let mut committed = 0;
    for seed in 0..SEEDS {
        let outcome = run(&servers, seed, &options).await;
        committed += outcome.committed;
        violated.extend(
            outcome
                .violations
                .into_iter()
                .map(|violation| format!("seed {seed}: {violation}")),
        );
    }
    assert!(violated.is_empty(), "{}", violated.join("\n"));
    // Clients that get nothing done violate nothing.
    assert!(
        committed > 2 * SEEDS as usize,
        "only {committed} transactions were committed"
    );
}
