//! `model [SECONDS]`: explores every scenario for that long each (default 600). Exit code 2: a property does not hold.

use std::process::ExitCode;
use std::time::Duration;

use model::{Explored, Scenario, explore};

fn main() -> ExitCode {
    let seconds = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(600);
    let time = Duration::from_secs(seconds);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut holds = true;
    for groups in [1, 2] {
        for (requests, timeouts) in [(1, 0), (2, 0), (1, 1)] {
            let scenario = Scenario {
                groups,
                requests,
                timeouts,
                liars: 0,
            };
            holds &= report("minbft", scenario, &explore(scenario.minbft(), time, threads));
        }
        for (timeouts, liars) in [(0, 0), (0, 1), (1, 1)] {
            let scenario = Scenario {
                groups,
                requests: 2,
                timeouts,
                liars,
            };
            holds &= report("pbft", scenario, &explore(scenario.pbft(), time, threads));
        }
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

fn report(protocol: &str, scenario: Scenario, explored: &Explored) -> bool {
    println!("{protocol} {scenario:?}: {explored:?}");
    explored.violation.is_none()
}
