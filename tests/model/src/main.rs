//! `model [SECONDS] [agreement|voters]`: explores every scenario of both families, or of one, for that long each (default 600). Exit
//! code 2: a property does not hold.

use std::process::ExitCode;
use std::time::Duration;

use model::{Explored, Scenario, explore, voters, walk};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(600);
    let family = arguments.next();
    let is_wanted = |name: &str| family.as_deref().is_none_or(|wanted| wanted == name);
    let time = Duration::from_secs(seconds);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut holds = true;
    if is_wanted("agreement") {
        holds &= agreement(time, threads);
    }
    if is_wanted("voters") {
        holds &= voters(time, threads);
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

fn agreement(time: Duration, threads: usize) -> bool {
    let mut holds = true;
    for groups in [1, 2] {
        for (requests, timeouts) in [(1, 0), (2, 0), (1, 1)] {
            let scenario = Scenario {
                groups,
                requests,
                timeouts,
                liars: 0,
            };
            let name = format!("minbft {scenario:?}");
            holds &= report(&name, &explore(scenario.minbft(), time, threads));
        }
        for (timeouts, liars) in [(0, 0), (0, 1), (1, 1)] {
            let scenario = Scenario {
                groups,
                requests: 2,
                timeouts,
                liars,
            };
            let name = format!("pbft {scenario:?}");
            holds &= report(&name, &explore(scenario.pbft(), time, threads));
        }
    }
    holds
}

/// What cannot be explored completely in half of the time is walked through at random for the other half.
fn voters(time: Duration, threads: usize) -> bool {
    let mut holds = true;
    for (name, scenario) in voters::Scenario::all() {
        let explored = explore(scenario.voters(), time / 2, threads);
        holds &= report(&format!("voters, {name}"), &explored);
        if !explored.is_complete && explored.violation.is_none() {
            let walked = walk(scenario.voters(), time / 2, threads);
            holds &= report(&format!("voters, {name}, at random"), &walked);
        }
    }
    holds
}

fn report(name: &str, explored: &Explored) -> bool {
    println!("{name}: {explored:?}");
    explored.violation.is_none()
}
