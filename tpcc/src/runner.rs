//! A run: terminals side by side for a time.

use std::future::Future;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Error;
use crate::connection::connect;
use crate::ledger::Ledger;
use crate::options::RunOptions;
use crate::random::{Constants, Random};
use crate::report::Report;
use crate::scale::{DISTRICTS, Scale};
use crate::statistics::Recorder;
use crate::terminal::{Session, Shared, Terminal};
use crate::transaction::InputSource;

/// How long the terminals may take to end their last transactions.
const GRACE: Duration = Duration::from_secs(30);
/// Seconds between progress lines, on a terminal and elsewhere.
const PROGRESS_SECONDS_TERMINAL: u64 = 1;
const PROGRESS_SECONDS_FILE: u64 = 5;
/// The stream of random values of what all terminals share; theirs are their numbers.
const SHARED_STREAM: u64 = u64::MAX - 1;

/// Runs the mix for the time asked for.
///
/// # Errors
/// The server cannot be reached at the start, holds no TPC-C database, or the ledger cannot be written. Errors of
/// single transactions are counted in the report.
pub async fn run(options: &RunOptions) -> Result<Report, Error> {
    run_until(options, std::future::pending()).await
}

/// Like [`run`], but ends early when `stop` is ready.
///
/// # Errors
/// As [`run`].
pub async fn run_until(options: &RunOptions, stop: impl Future<Output = ()> + Send) -> Result<Report, Error> {
    let scale = scale_to_use(options).await?;
    let sessions = open_sessions(options).await?;
    let warm_up = Duration::from_secs(options.warmup_seconds);
    let shared = Arc::new(Shared {
        options: options.clone(),
        recorder: Recorder::new(Instant::now() + warm_up),
        ledger: options.ledger.as_deref().map(Ledger::open).transpose()?,
    });
    let (stopper, stopped) = watch::channel(false);
    let mut terminals = start_terminals(&shared, scale, sessions, &stopped);

    let time = warm_up + Duration::from_secs(options.seconds);
    let ended = tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        () = stop => Ok(()),
        () = show_progress(&shared), if options.progress => Ok(()),
        // A terminal ends early only by a failure of the kit itself.
        Some(ended) = terminals.join_next() => ended.map_err(Error::from).flatten(),
    };
    shared.recorder.close();
    let _ = stopper.send(true);
    ended?;
    let stuck_terminals = join(&mut terminals).await?;

    let mut report = Report {
        warehouses: scale.warehouses,
        terminals: options.terminals,
        protocol: options.protocol,
        think: options.think,
        seed: options.seed,
        stuck_terminals,
        ..Report::default()
    };
    shared.recorder.fill(&mut report);
    Ok(report)
}

async fn scale_to_use(options: &RunOptions) -> Result<Scale, Error> {
    let client = connect(&options.dsn).await?;
    let mut scale = Scale::of_database(&client).await?;
    if let Some(warehouses) = options.warehouses {
        if !(1..=scale.warehouses).contains(&warehouses) {
            let there = scale.warehouses;
            return Err(Error::Options(format!(
                "{warehouses} warehouses asked for, {there} loaded"
            )));
        }
        scale.warehouses = warehouses;
    }
    Ok(scale)
}

async fn open_sessions(options: &RunOptions) -> Result<Vec<Session>, Error> {
    let mut sessions = Vec::new();
    for _ in 0..options.terminals {
        sessions.push(Session::open(&options.dsn, options.protocol).await?);
    }
    Ok(sessions)
}

fn start_terminals(
    shared: &Arc<Shared>,
    scale: Scale,
    sessions: Vec<Session>,
    stopped: &watch::Receiver<bool>,
) -> JoinSet<Result<(), Error>> {
    let seed = shared.options.seed;
    let constants = Constants::for_run(&mut Random::new(seed, SHARED_STREAM));
    let warehouses = scale.warehouses.unsigned_abs().max(1);
    let mut terminals = JoinSet::new();
    for (number, session) in (0_u32..).zip(sessions) {
        let home = number % warehouses + 1;
        let home_district = number / warehouses % DISTRICTS.unsigned_abs() + 1;
        let terminal = Terminal {
            number,
            shared: Arc::clone(shared),
            source: InputSource {
                random: Random::new(seed, u64::from(number)),
                constants,
                scale,
                home: home.cast_signed(),
                home_district: home_district.cast_signed(),
            },
            stop: stopped.clone(),
        };
        terminals.spawn(terminal.work(session));
    }
    terminals
}

/// Waits for the last transactions; counts the terminals that do not come back.
async fn join(terminals: &mut JoinSet<Result<(), Error>>) -> Result<u64, Error> {
    let deadline = tokio::time::Instant::now() + GRACE;
    while let Ok(next) = tokio::time::timeout_at(deadline, terminals.join_next()).await {
        match next {
            Some(ended) => ended??,
            None => return Ok(0),
        }
    }
    let stuck = terminals.len();
    terminals.shutdown().await;
    Ok(u64::try_from(stuck).unwrap_or(u64::MAX))
}

/// Writes a line now and then; never ends.
async fn show_progress(shared: &Shared) {
    let seconds = match std::io::stderr().is_terminal() {
        true => PROGRESS_SECONDS_TERMINAL,
        false => PROGRESS_SECONDS_FILE,
    };
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(seconds));
    ticks.tick().await;
    let mut before = 0;
    loop {
        ticks.tick().await;
        let totals = shared.recorder.totals();
        let rate = (totals.committed - before) / seconds;
        before = totals.committed;
        eprintln!(
            "{:>4} s: {rate} tx/s, {} committed, {} aborts, {} errors",
            begun.elapsed().as_secs(),
            totals.committed,
            totals.aborts,
            totals.errors
        );
    }
}
