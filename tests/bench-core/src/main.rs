//! Orders per second of the agreement core in one thread, beside the crate `minbft` 1.0.3 driven the same way in the
//! same run: f = 1, all machines, all cryptography of warrants and messages, no network, no disk. `make bench-core`.

mod authenticator;
mod ours;
mod theirs;

use std::time::Instant;

use authenticator::{Authenticator, PAYLOAD_BYTES};

/// Entries of a batch.
const BATCHES: [usize; 3] = [1, 16, 256];
/// Batches whose requests arrive at once, and how many requests at most.
const BATCHES_AT_ONCE: usize = 64;
const REQUESTS_AT_ONCE_MAX: usize = 4_096;
/// Rounds, each of ours and then theirs: `BENCH_CORE_ROUNDS` replaces it.
const ROUNDS: usize = 7;
/// Orders of one round, for batches of one and for larger ones.
const ORDERS: [u64; 2] = [8_192, 32_768];

const NOT_COMPARABLE: &str = "\
What is the same: f = 1, operations of 300 bytes, 16 clients, the requests of 64 batches (at most 4096) at once to every
machine, the same counters and certificates by the same code, a checkpoint every 512 orders, clients' signatures verified
beforehand, messages handed over in memory, every receiver verifies for itself.
What is not: ours has a fourth machine (the primary holds no replica), orders digests of bodies that it matches on each replica,
makes records for a log and waits until they are durable (here at once), keeps decided operations for those that lag, and signs
checkpoints by Ed25519 in either case. A machine takes up to 256 inputs that wait for it in one step, as a node does; theirs takes
one message in one call. Theirs sends whole operations in PREPARE and again in each COMMIT, verifies a
PREPARE again inside each COMMIT, and keeps neither a log nor a record of what it decided.";

fn orders(batch: usize) -> u64 {
    ORDERS[usize::from(batch > 1)]
}

fn at_once(batch: usize) -> usize {
    (batch * BATCHES_AT_ONCE).min(REQUESTS_AT_ONCE_MAX)
}

/// Orders per second.
fn ours(authenticator: Authenticator, batch: usize) -> f64 {
    let mut cluster = ours::Cluster::new(authenticator, batch, orders(batch));
    timed(batch, || cluster.run(at_once(batch)))
}

fn theirs(authenticator: Authenticator, batch: usize) -> f64 {
    let mut cluster = theirs::Cluster::new(authenticator, batch, orders(batch));
    timed(batch, || cluster.run(at_once(batch)))
}

fn timed(batch: usize, run: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    run();
    orders(batch) as f64 / begin.elapsed().as_secs_f64()
}

/// Median, least and most.
fn summary(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[0], values[values.len() - 1]]
}

fn main() {
    let rounds = std::env::var("BENCH_CORE_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    println!(
        "Orders per second, one thread, {PAYLOAD_BYTES} bytes each: median of {rounds} rounds in turn (least to most)"
    );
    println!(
        "{:13} {:>5}  {:>30}  {:>30}  {:>22}",
        "authenticator", "batch", "ours", "minbft 1.0.3", "ratio"
    );
    let mut behind = Vec::new();
    for authenticator in Authenticator::ALL {
        for batch in BATCHES {
            let pairs: Vec<_> = (0..rounds)
                .map(|_| (ours(authenticator, batch), theirs(authenticator, batch)))
                .collect();
            let of_ours = summary(pairs.iter().map(|(ours, _)| *ours).collect());
            let of_theirs = summary(pairs.iter().map(|(_, theirs)| *theirs).collect());
            let ratio = summary(pairs.iter().map(|(ours, theirs)| ours / theirs).collect());
            if ratio[0] < 1.0 {
                behind.push(format!("{} {batch}", authenticator.name()));
            }
            let show = |[median, least, most]: [f64; 3]| format!("{median:.0} ({least:.0} to {most:.0})");
            println!(
                "{:13} {batch:>5}  {:>30}  {:>30}  {:>22}",
                authenticator.name(),
                show(of_ours),
                show(of_theirs),
                format!("{:.2} ({:.2} to {:.2})", ratio[0], ratio[1], ratio[2]),
            );
        }
    }
    println!("\n{NOT_COMPARABLE}");
    if !behind.is_empty() {
        println!("\nOurs is behind with {}.", behind.join(", "));
    }
}
