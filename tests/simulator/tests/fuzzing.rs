//! A short run of each fuzzing target, with fixed seeds; `make fuzz` runs them for as long as one likes.

use simulator::fuzz::{self, Fuzzed};
use simulator::protocol::{MinBft, Pbft, Protocol};

fn total(seeds: u64, target: fn(u64) -> Result<Fuzzed, String>) -> Fuzzed {
    let mut total = Fuzzed::default();
    for seed in 0..seeds {
        let fuzzed = target(seed).unwrap();
        total.inputs += fuzzed.inputs;
        total.accepted += fuzzed.accepted;
    }
    total
}

fn codec<P: Protocol>() {
    let total = total(200, fuzz::codec::<P>);
    assert!(total.inputs > 20_000 && total.accepted > 100, "{total:?}");
}

fn step<P: Protocol>() {
    let total = total(100, fuzz::step::<P>);
    assert!(total.inputs > 3_000 && total.accepted > 1_000, "{total:?}");
}

#[test]
fn minbft_codec() {
    codec::<MinBft>();
}

#[test]
fn minbft_step() {
    step::<MinBft>();
}

#[test]
fn pbft_codec() {
    codec::<Pbft>();
}

#[test]
fn pbft_step() {
    step::<Pbft>();
}
