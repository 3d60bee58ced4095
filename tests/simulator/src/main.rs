//! `simulator [options] [name=value ...]`: runs seeds, or one seed with its event log.
//!
//! Exit code: 0 nothing was violated, 1 wrong usage, 2 a property of the safety phase, 3 liveness.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use simulator::campaign::{self, Summary};
use simulator::fuzz::{self, Fuzzed};
use simulator::hunt::{MINBFT_CANARIES, PBFT_CANARIES, Prey, hunt, hunt_with};
use simulator::options::Overrides;
use simulator::protocol::{MinBft, Pbft, Protocol};
use simulator::run::{Outcome, run};
use simulator::soak::{Plan, Sample, soak};

const USAGE: &str = "\
usage: simulator [--protocol minbft|pbft] [--seeds COUNT] [--from SEED] [--threads COUNT] [name=value ...]
       simulator [--protocol minbft|pbft] --seed SEED [--quiet] [name=value ...]
       simulator [--protocol minbft|pbft] --fuzz SECONDS [--from SEED]
       simulator [--protocol minbft|pbft] --soak ORDERS
       simulator [--protocol minbft|pbft] --within COUNT [name=value ...]
       simulator --hunt

--seeds   runs that many seeds from --from (default 0) on all cores
--seed    runs one seed and prints its options and event log (with --quiet: only what became of it)
--fuzz    arbitrary bytes and arbitrary messages for that long, half of the time each
--soak    one long run: logs are cut, one machine is away for a tenth of it, all are restarted in turn
--within  something must be violated within that many seeds: states in which; for mutants
--hunt    what is broken on purpose must be found: states within how many seeds it was
name=value overrides an option that the seed would draw; the options that a run prints can be given back

exit code: 0 nothing was violated, 1 wrong usage, 2 a property of the safety phase, 3 liveness";

/// Failures after which a campaign ends.
const FAILURES_MAX: usize = 10;

#[derive(Default)]
struct Arguments {
    protocol: Option<String>,
    seed: Option<u64>,
    seeds: Option<u64>,
    from: u64,
    threads: Option<usize>,
    is_quiet: bool,
    is_hunt: bool,
    within: Option<u64>,
    fuzz_seconds: Option<u64>,
    soak_orders: Option<u64>,
    overrides: Overrides,
}

fn parse() -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
        match word.as_str() {
            "--protocol" => arguments.protocol = Some(value()?),
            "--seed" => arguments.seed = Some(number(value()?)?),
            "--seeds" => arguments.seeds = Some(number(value()?)?),
            "--from" => arguments.from = number(value()?)?,
            "--threads" => arguments.threads = usize::try_from(number(value()?)?).ok(),
            "--fuzz" => arguments.fuzz_seconds = Some(number(value()?)?),
            "--soak" => arguments.soak_orders = Some(number(value()?)?),
            "--within" => arguments.within = Some(number(value()?)?),
            "--hunt" => arguments.is_hunt = true,
            "--quiet" => arguments.is_quiet = true,
            _ => match word.split_once('=') {
                Some((name, value)) => arguments.overrides.0.push((name.to_owned(), value.to_owned())),
                None => return Err(format!("{word} is not understood")),
            },
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let result = parse().and_then(|arguments| match arguments.protocol.as_deref() {
        None | Some("minbft") => execute::<MinBft>(&arguments),
        Some("pbft") => execute::<Pbft>(&arguments),
        Some(other) => Err(format!("no protocol is called {other}")),
    });
    match result {
        Ok(code) => code,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            ExitCode::from(1)
        }
    }
}

fn execute<P: Protocol>(arguments: &Arguments) -> Result<ExitCode, String> {
    match arguments.seed {
        _ if arguments.is_hunt => hunt_all(),
        _ if arguments.soak_orders.is_some() => Ok(soak_for::<P>(arguments.soak_orders.unwrap_or(0))),
        _ if arguments.within.is_some() => must_fail::<P>(arguments),
        _ if arguments.fuzz_seconds.is_some() => fuzz_for::<P>(arguments),
        Some(seed) => replay::<P>(seed, arguments),
        None => many::<P>(arguments),
    }
}

fn replay<P: Protocol>(seed: u64, arguments: &Arguments) -> Result<ExitCode, String> {
    let options = campaign::options::<P>(seed, &arguments.overrides)?;
    println!("{} {options}", P::NAME);
    let mut stdout = std::io::BufWriter::new(std::io::stdout());
    let trace = move |line: &str| {
        // A closed pipe only ends the reading of the event log.
        let _ = writeln!(stdout, "{line}");
    };
    let outcome = run::<P>(&options, (!arguments.is_quiet).then(|| Box::new(trace) as _));
    println!(
        "{} orders, {} steps, {} messages sent, rejected {:?}, reports {:?}, liveness demanded: {}, ended {:?} us after healing",
        outcome.orders,
        outcome.counts.steps,
        outcome.counts.sent,
        outcome.counts.rejected,
        outcome.counts.reports,
        outcome.demands_liveness,
        outcome.healed_us
    );
    Ok(exit_code(std::slice::from_ref(&outcome)))
}

/// Fuzzes codec and step in turn until the time is up.
fn fuzz_for<P: Protocol>(arguments: &Arguments) -> Result<ExitCode, String> {
    std::panic::set_hook(Box::new(|_| {}));
    let end = Instant::now() + Duration::from_secs(arguments.fuzz_seconds.unwrap_or(0));
    for (name, target) in [("codec", fuzz::codec::<P> as Target), ("step", fuzz::step::<P>)] {
        let half = (end - Instant::now()) / if name == "codec" { 2 } else { 1 };
        let (until, mut total, mut seed) = (Instant::now() + half, Fuzzed::default(), arguments.from);
        while Instant::now() < until {
            match target(seed) {
                Ok(fuzzed) => {
                    total.inputs += fuzzed.inputs;
                    total.accepted += fuzzed.accepted;
                }
                Err(failure) => {
                    println!("{} {name} seed {seed}: {failure}", P::NAME);
                    return Ok(ExitCode::from(2));
                }
            }
            seed += 1;
        }
        let seeds = seed - arguments.from;
        println!(
            "{} {name}: {seeds} seeds, {} inputs, {} accepted",
            P::NAME,
            total.inputs,
            total.accepted
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// One long run, with a line for each tenth of it.
fn soak_for<P: Protocol>(orders: u64) -> ExitCode {
    let plan = Plan {
        orders,
        orders_per_second: 10_000,
        absence: orders / 10,
        restart_every: orders / 20,
        log_bytes_max: 8 << 20,
    };
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let report = |sample: &Sample| {
        println!(
            "{}: {} orders, {:.0} s, largest log {:.1} MiB, process {:.0} MiB",
            P::NAME,
            sample.orders,
            sample.duration.as_secs_f64(),
            mebibytes(sample.log_bytes as u64),
            mebibytes(sample.memory_bytes)
        );
    };
    match soak::<P>(plan, report) {
        Ok(soaked) => {
            println!(
                "{}: the machine that was away for {} orders had everything after {} ms; logs cut {} times, {} databases repaired",
                P::NAME,
                plan.absence,
                soaked.returned_us / 1000,
                soaked.cuts,
                soaked.repairs
            );
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("VIOLATION {violation}");
            ExitCode::from(violation.phase.exit_code())
        }
    }
}

type Target = fn(u64) -> Result<Fuzzed, String>;

/// Looks for the first seed that violates anything; fails when none does.
fn must_fail<P: Protocol>(arguments: &Arguments) -> Result<ExitCode, String> {
    std::panic::set_hook(Box::new(|_| {}));
    let seeds_max = arguments.within.unwrap_or(0);
    let found = hunt_with::<P>(&arguments.overrides, seeds_max)?;
    let violation = found.and_then(|(seed, outcome)| Some((seed, outcome.violation?.to_string())));
    let Some((seed, violation)) = violation else {
        println!("ESCAPED {seeds_max} seeds");
        return Ok(ExitCode::from(2));
    };
    let (within, first_line) = (seed + 1, violation.lines().next().unwrap_or_default());
    println!("caught within {within} of at most {seeds_max} seeds: {first_line}");
    Ok(ExitCode::SUCCESS)
}

/// Hunts everything that is broken on purpose; fails when anything escapes.
fn hunt_all() -> Result<ExitCode, String> {
    std::panic::set_hook(Box::new(|_| {}));
    let minbft = hunt_each::<MinBft>(MINBFT_CANARIES)?;
    let pbft = hunt_each::<Pbft>(PBFT_CANARIES)?;
    Ok(if minbft && pbft {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

/// Whether everything was caught.
fn hunt_each<P: Protocol>(preys: &[Prey]) -> Result<bool, String> {
    let mut is_caught = true;
    for prey in preys {
        let Some((seed, outcome)) = hunt::<P>(prey)? else {
            is_caught = false;
            println!("{} ESCAPED {} seeds: {}", P::NAME, prey.seeds_max, prey.name);
            continue;
        };
        let violation = outcome.violation.map(|violation| violation.to_string());
        let first_line = violation
            .as_deref()
            .and_then(|text| text.lines().next())
            .unwrap_or_default();
        let (name, within) = (prey.name, seed + 1);
        println!(
            "{} caught within {within} of at most {} seeds: {name}\n    {first_line}",
            P::NAME,
            prey.seeds_max
        );
    }
    Ok(is_caught)
}

fn many<P: Protocol>(arguments: &Arguments) -> Result<ExitCode, String> {
    let seeds = arguments.from..arguments.from + arguments.seeds.unwrap_or(1000);
    let threads = arguments.threads.unwrap_or_else(campaign::threads);
    let is_terminal = std::io::stderr().is_terminal();
    let count = seeds.end - seeds.start;
    let progress = |summary: &Summary| {
        let is_due = summary.runs.is_multiple_of(if is_terminal { 20 } else { 1000 });
        if is_due && summary.runs < count {
            let end = if is_terminal { "\r" } else { "\n" };
            let seconds = summary.duration.as_secs_f64();
            eprint!(
                "{}: {} of {count} seeds, {seconds:.0} s, {} failed{end}",
                P::NAME,
                summary.runs,
                summary.failures.len()
            );
        }
    };
    // A panic is caught and reported with its seed; it need not be printed when it happens.
    std::panic::set_hook(Box::new(|_| {}));
    let summary = campaign::campaign::<P>(seeds, &arguments.overrides, threads, FAILURES_MAX, progress)?;
    println!("{}: {}", P::NAME, summary.line());
    println!("runs: {}", summary.sizes_line());
    println!("lies (told/passed verification): {}", summary.lies);
    for complaint in summary.lies.complaints(P::LIES) {
        println!("note: {complaint}");
    }
    Ok(exit_code(&summary.failures))
}

/// Prints what was violated; the first phase that any run violated decides.
fn exit_code(outcomes: &[Outcome]) -> ExitCode {
    let violations = outcomes
        .iter()
        .filter_map(|outcome| Some((outcome, outcome.violation.as_ref()?)));
    let mut first = None;
    for (outcome, violation) in violations {
        println!("VIOLATION {}\n  options: {}", violation, outcome.options);
        first = first.min(Some(violation.phase)).or(Some(violation.phase));
    }
    first.map_or(ExitCode::SUCCESS, |phase| ExitCode::from(phase.exit_code()))
}
