//! Counters of a run, shared by its terminals.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::report::{ErrorSample, Report, TransactionReport};
use crate::transaction::{Failure, TransactionKind};

/// Unexpected errors that are kept word by word; all are counted.
const ERROR_SAMPLES_MAX: usize = 20;
/// And so many of each SQLSTATE, for an outage repeats one error all the time.
const ERROR_SAMPLES_PER_CODE_MAX: u64 = 5;
/// Longest response time that is told apart.
const RESPONSE_MICROS_MAX: u64 = 3_600_000_000;
/// Significant digits of response times.
const RESPONSE_DIGITS: u8 = 3;

/// How a transaction ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completion {
    Committed,
    /// The one New-Order in a hundred with an unused item.
    RolledBack,
}

/// Collects what the terminals report.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// Successes before this instant belong to the warm-up and do not count.
    measure_from: Instant,
    counters: Mutex<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    kinds: BTreeMap<TransactionKind, KindCounters>,
    aborts: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    error_samples: Vec<ErrorSample>,
    committed_each_second: Vec<u64>,
    unknown_outcomes: u64,
    reconnects: u64,
    statements: u64,
    /// Set at the end: from then on successes do not count.
    measured: Option<Duration>,
}

#[derive(Debug, Default)]
struct KindCounters {
    committed: u64,
    rolled_back: u64,
    failed: u64,
    /// `None` until the first success.
    response_micros: Option<Histogram<u64>>,
}

/// Totals for the progress line.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) committed: u64,
    pub(crate) aborts: u64,
    pub(crate) errors: u64,
}

impl Recorder {
    pub(crate) fn new(measure_from: Instant) -> Self {
        Self {
            measure_from,
            counters: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction ended well; `response` is the time from its first BEGIN on.
    pub(crate) fn completed(&self, kind: TransactionKind, how: Completion, response: Duration) {
        let mut counters = self.lock();
        let Some(elapsed) = Instant::now().checked_duration_since(self.measure_from) else {
            return;
        };
        if counters.measured.is_some() {
            return;
        }
        let of_kind = counters.kinds.entry(kind).or_default();
        of_kind.record(response);
        match how {
            Completion::RolledBack => of_kind.rolled_back += 1,
            Completion::Committed => {
                of_kind.committed += 1;
                counters.count_in_second(elapsed);
            }
        }
    }

    /// A serialization failure or deadlock, after which the transaction may be run again.
    pub(crate) fn aborted(&self, code: &str) {
        if Instant::now() >= self.measure_from {
            *self.lock().aborts.entry(code.to_owned()).or_default() += 1;
        }
    }

    /// A transaction was aborted more often than it may be run again.
    pub(crate) fn gave_up(&self, kind: TransactionKind) {
        self.lock().kinds.entry(kind).or_default().failed += 1;
    }

    /// A transaction met an unexpected error.
    pub(crate) fn failed(&self, kind: TransactionKind, failure: &Failure) {
        self.gave_up(kind);
        self.error(Some(kind), failure.code(), failure.describe());
    }

    /// An unexpected error outside a transaction, or of one that was counted already.
    pub(crate) fn error(&self, kind: Option<TransactionKind>, code: &str, message: String) {
        let second = self.measure_from.elapsed().as_secs();
        let mut counters = self.lock();
        let count = counters.errors.entry(code.to_owned()).or_default();
        *count += 1;
        let is_rare = *count <= ERROR_SAMPLES_PER_CODE_MAX;
        if is_rare && counters.error_samples.len() < ERROR_SAMPLES_MAX {
            counters.error_samples.push(ErrorSample {
                second,
                transaction: kind,
                code: code.to_owned(),
                message,
            });
        }
    }

    /// The outcome of a COMMIT is not known.
    pub(crate) fn unknown_outcome(&self) {
        self.lock().unknown_outcomes += 1;
    }

    /// A terminal has connected again.
    pub(crate) fn reconnected(&self) {
        self.lock().reconnects += 1;
    }

    /// So many statements of one attempt at a transaction were sent.
    pub(crate) fn sent(&self, statements: u64) {
        let mut counters = self.lock();
        if Instant::now() >= self.measure_from && counters.measured.is_none() {
            counters.statements += statements;
        }
    }

    /// Ends the measurement: later successes do not count.
    pub(crate) fn close(&self) {
        let measured = self.measure_from.elapsed();
        self.lock().measured.get_or_insert(measured);
    }

    pub(crate) fn totals(&self) -> Totals {
        let counters = self.lock();
        Totals {
            committed: counters.kinds.values().map(|of_kind| of_kind.committed).sum(),
            aborts: counters.aborts.values().sum(),
            errors: counters.errors.values().sum(),
        }
    }

    /// Fills the measured part of a report.
    pub(crate) fn fill(&self, report: &mut Report) {
        let counters = self.lock();
        let measured = counters.measured.unwrap_or_else(|| self.measure_from.elapsed());
        let seconds = measured.as_secs_f64().max(f64::MIN_POSITIVE);
        report.seconds = seconds;
        report.transactions = TransactionKind::ALL
            .into_iter()
            .map(|kind| match counters.kinds.get(&kind) {
                Some(of_kind) => of_kind.report(kind),
                None => KindCounters::default().report(kind),
            })
            .collect();
        let committed: u64 = report.transactions.iter().map(|line| line.committed).sum();
        let new_orders = counters.kinds.get(&TransactionKind::NewOrder);
        report.transactions_per_second = rate(committed, seconds);
        report.tpm_c = 60.0 * rate(new_orders.map_or(0, |of_kind| of_kind.committed), seconds);
        report.aborts = counters.aborts.clone();
        report.errors = counters.errors.clone();
        report.error_samples = counters.error_samples.clone();
        report.unknown_outcomes = counters.unknown_outcomes;
        report.reconnects = counters.reconnects;
        report.statements = counters.statements;
        let complete_seconds = usize::try_from(measured.as_secs()).unwrap_or(usize::MAX);
        report.committed_each_second = counters.committed_each_second.clone();
        report.committed_each_second.resize(complete_seconds, 0);
    }
}

impl Counters {
    fn count_in_second(&mut self, elapsed: Duration) {
        let second = usize::try_from(elapsed.as_secs()).unwrap_or(usize::MAX);
        if self.committed_each_second.len() <= second {
            self.committed_each_second.resize(second + 1, 0);
        }
        if let Some(count) = self.committed_each_second.get_mut(second) {
            *count += 1;
        }
    }
}

impl KindCounters {
    fn record(&mut self, response: Duration) {
        if self.response_micros.is_none() {
            // The bounds are constants and valid, so this does not fail.
            self.response_micros = Histogram::new_with_bounds(1, RESPONSE_MICROS_MAX, RESPONSE_DIGITS).ok();
        }
        if let Some(histogram) = &mut self.response_micros {
            histogram.saturating_record(u64::try_from(response.as_micros()).unwrap_or(u64::MAX));
        }
    }

    fn report(&self, kind: TransactionKind) -> TransactionReport {
        let histogram = self.response_micros.as_ref();
        let at = |quantile| millis(histogram.map_or(0, |all| all.value_at_quantile(quantile)));
        TransactionReport {
            kind,
            count: self.committed + self.rolled_back + self.failed,
            committed: self.committed,
            rolled_back: self.rolled_back,
            failed: self.failed,
            mean_ms: histogram.map_or(0.0, |all| all.mean() / 1_000.0),
            p50_ms: at(0.50),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: millis(histogram.map_or(0, Histogram::max)),
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

#[allow(clippy::cast_precision_loss)]
fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report_of(recorder: &Recorder) -> Report {
        let mut report = Report::default();
        recorder.fill(&mut report);
        report
    }

    #[test]
    fn percentiles_and_counts_are_those_of_the_transactions() {
        let recorder = Recorder::new(Instant::now());
        for millis in 1..=100 {
            let response = Duration::from_millis(millis);
            recorder.completed(TransactionKind::NewOrder, Completion::Committed, response);
        }
        recorder.completed(TransactionKind::NewOrder, Completion::RolledBack, Duration::ZERO);
        let report = report_of(&recorder);
        let line = &report.transactions[0];
        assert_eq!((line.count, line.committed, line.rolled_back), (101, 100, 1));
        assert!((line.p50_ms - 50.0).abs() < 1.0 && (line.p99_ms - 99.0).abs() < 1.0);
    }

    #[test]
    fn seconds_without_a_commit_are_shown_and_the_last_incomplete_one_is_not() {
        let recorder = Recorder::new(Instant::now() - Duration::from_secs(3));
        recorder.completed(TransactionKind::Payment, Completion::Committed, Duration::ZERO);
        assert_eq!(report_of(&recorder).committed_each_second, [0, 0, 0]);
    }

    #[test]
    fn neither_warm_up_nor_what_ends_late_counts() {
        let second = Duration::from_secs(1);
        let warming_up = Recorder::new(Instant::now() + 60 * second);
        warming_up.completed(TransactionKind::Payment, Completion::Committed, second);
        warming_up.sent(9);
        assert_eq!(warming_up.totals().committed, 0);
        assert_eq!(report_of(&warming_up).statements, 0);

        let recorder = Recorder::new(Instant::now());
        recorder.completed(TransactionKind::Payment, Completion::Committed, second);
        recorder.sent(9);
        recorder.close();
        recorder.completed(TransactionKind::Payment, Completion::Committed, second);
        recorder.sent(9);
        assert_eq!(recorder.totals().committed, 1);
        assert_eq!(report_of(&recorder).statements, 9);
    }
}
