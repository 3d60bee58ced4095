//! `twins [options]`: runs seeds, or one seed with a trace of what happened.
//!
//! Exit code: 0 nothing was violated, 1 something was, 2 wrong usage.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};
use twins::run::{Options, run};
use twins::topic::{Topic, Topics};
use twins::world::Servers;

/// Progress is told each time so many seeds have run.
const PROGRESS_SEEDS: u64 = 50;

const USAGE: &str = "\
usage: twins [--seeds COUNT] [--from SEED] [--jobs COUNT] [--failures COUNT] [--only TOPIC,...] [--without TOPIC,...]
       twins --seed SEED [--only ...] [--without ...]
       twins --within COUNT [...]

--seeds     runs that many seeds from --from (default 0)
--seed      runs one seed and prints what happens
--jobs      so many at once, each on three servers of its own (default 1)
--failures  ends after so many seeds that violate something (default 10)
--within    something must be violated within that many seeds: for faults that are put back
--only      seeds bring up these topics and no others
--without   seeds do not bring up these topics
";

struct Arguments {
    seed: Option<u64>,
    seeds: u64,
    from: u64,
    jobs: u64,
    failures: u64,
    within: bool,
    options: Options,
}

fn parse() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        seed: None,
        seeds: 100,
        from: 0,
        jobs: 1,
        failures: 10,
        within: false,
        options: Options {
            topics: Topics::default(),
            trace: false,
        },
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
        let topics = |text: String| text.split(',').map(str::parse::<Topic>).collect::<Result<Vec<_>, _>>();
        match word.as_str() {
            "--seed" => arguments.seed = Some(number(value()?)?),
            "--seeds" => arguments.seeds = number(value()?)?,
            "--from" => arguments.from = number(value()?)?,
            "--jobs" => arguments.jobs = number(value()?)?.max(1),
            "--failures" => arguments.failures = number(value()?)?.max(1),
            "--within" => {
                arguments.seeds = number(value()?)?;
                arguments.within = true;
                arguments.failures = 1;
            }
            "--only" => arguments.options.topics = Topics::only(topics(value()?)?),
            "--without" => {
                for topic in topics(value()?)? {
                    arguments.options.topics.remove(topic);
                }
            }
            _ => return Err(format!("{word} is not understood")),
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let mut arguments = match parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let topics: Vec<_> = Topic::ALL.iter().map(|topic| topic.name()).collect();
            eprintln!("{error}\n{USAGE}\ntopics: {}", topics.join(" "));
            return ExitCode::from(2);
        }
    };
    if let Some(seed) = arguments.seed {
        arguments.from = seed;
        arguments.seeds = 1;
        arguments.options.trace = true;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let failures = runtime.block_on(async {
        let mut end = signal(SignalKind::terminate()).unwrap();
        tokio::select! {
            failures = campaign(&arguments) => Some(failures),
            _ = end.recv() => None,
            _ = tokio::signal::ctrl_c() => None,
        }
    });
    match failures {
        None => ExitCode::from(1),
        Some(failures) => ExitCode::from(u8::from((failures > 0) != arguments.within)),
    }
}

/// Runs the seeds; how many violated something.
async fn campaign(arguments: &Arguments) -> u64 {
    let started = Instant::now();
    let next = Arc::new(AtomicU64::new(arguments.from));
    let failures = Arc::new(AtomicU64::new(0));
    let fates: Arc<[AtomicU64; 3]> = Arc::default();
    let ran: Arc<AtomicU64> = Arc::default();
    let from = arguments.from;
    let end = from + arguments.seeds;
    let mut jobs = tokio::task::JoinSet::new();
    for _ in 0..arguments.jobs {
        let (next, failures, options) = (Arc::clone(&next), Arc::clone(&failures), arguments.options.clone());
        let (fates, ran) = (Arc::clone(&fates), Arc::clone(&ran));
        let failures_max = arguments.failures;
        jobs.spawn(async move {
            let servers = tokio::task::spawn_blocking(Servers::start).await.unwrap();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end || failures.load(Ordering::Relaxed) >= failures_max {
                    return;
                }
                let outcome = run(&servers, seed, &options).await;
                let counts = [outcome.committed, outcome.absent, outcome.unknown];
                for (fate, count) in fates.iter().zip(counts) {
                    fate.fetch_add(count as u64, Ordering::Relaxed);
                }
                let ran = ran.fetch_add(1, Ordering::Relaxed) + 1;
                if ran.is_multiple_of(PROGRESS_SEEDS) {
                    let seconds = started.elapsed().as_secs();
                    eprintln!("{ran} of {} seeds in {seconds} s", end - from);
                }
                let violations = outcome.violations;
                if violations.is_empty() {
                    continue;
                }
                failures.fetch_add(1, Ordering::Relaxed);
                println!("seed {seed} (again: twins --seed {seed}):");
                violations.iter().for_each(|violation| println!("  {violation}"));
            }
        });
    }
    while let Some(done) = jobs.join_next().await {
        done.unwrap();
    }
    let failures = failures.load(Ordering::Relaxed);
    let ran = ran.load(Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    let [committed, absent, unknown] = [0, 1, 2].map(|at: usize| fates[at].load(Ordering::Relaxed));
    println!("honest transactions: {committed} committed, {absent} not, {unknown} unknown");
    println!(
        "{failures} of {ran} seeds violate something ({:.2} s each)",
        seconds / ran.max(1) as f64
    );
    failures
}
