//! The proxy's metrics (facade `metrics`; names in docs, prefix `cloudbft_`). Labels are bounded.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use ordering::identifiers::MachineId;
use sql::statement::Effect;

/// Kinds of exchanges, for labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryClass {
    /// Answered by the proxy.
    Local,
    Read,
    Write,
    Ddl,
    Session,
}

const CLASSES: [(QueryClass, &str); 5] = [
    (QueryClass::Local, "local"),
    (QueryClass::Read, "read"),
    (QueryClass::Write, "write"),
    (QueryClass::Ddl, "ddl"),
    (QueryClass::Session, "session"),
];

impl From<Effect> for QueryClass {
    fn from(effect: Effect) -> Self {
        match effect {
            Effect::Nothing | Effect::Session => QueryClass::Session,
            Effect::Read => QueryClass::Read,
            Effect::LockingRead | Effect::Write => QueryClass::Write,
            Effect::Ddl | Effect::Maintenance => QueryClass::Ddl,
        }
    }
}

/// Stages of an exchange, for labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Deriving its footprint.
    Analyse,
    /// An ordered request, until it is voted.
    Order,
    /// A direct statement, until it is voted.
    Direct,
}

/// Handles of the metrics that are touched often.
pub(crate) struct Measures {
    queries: Vec<(QueryClass, Counter, Counter, Histogram)>,
    stages: [Histogram; 3],
    committed: Counter,
    rolled_back: Counter,
    failed: Counter,
    unknown: Counter,
    pub(crate) connections: Gauge,
    pub(crate) prepared_statements: Gauge,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransactionEnd {
    Committed,
    RolledBack,
    Failed,
    Unknown,
}

impl Measures {
    /// The metrics at zero, and what each of this crate means. A recorder must be installed.
    pub(crate) fn new() -> Self {
        describe();
        let query = |(class, name): (QueryClass, &'static str)| {
            (
                class,
                counter!("cloudbft_queries_total", "class" => name, "protocol" => "simple"),
                counter!("cloudbft_queries_total", "class" => name, "protocol" => "extended"),
                histogram!("cloudbft_query_duration_seconds", "class" => name),
            )
        };
        let stage = |name: &'static str| histogram!("cloudbft_stage_duration_seconds", "stage" => name);
        let outcome = |name: &'static str| counter!("cloudbft_transactions_total", "outcome" => name);
        Self {
            queries: CLASSES.map(query).into(),
            stages: [stage("analyse"), stage("order"), stage("direct")],
            committed: outcome("committed"),
            rolled_back: outcome("rolled_back"),
            failed: outcome("failed"),
            unknown: outcome("unknown"),
            connections: gauge!("cloudbft_client_connections", "state" => "open"),
            prepared_statements: gauge!("cloudbft_prepared_statements"),
        }
    }

    pub(crate) fn query(&self, class: QueryClass, extended: bool, duration: Duration) {
        if let Some((_, simple_count, extended_count, time)) = self.queries.iter().find(|(found, ..)| *found == class) {
            if extended {
                extended_count.increment(1)
            } else {
                simple_count.increment(1)
            }
            time.record(duration.as_secs_f64());
        }
    }

    pub(crate) fn stage(&self, stage: Stage, duration: Duration) {
        let [analyse, order, direct] = &self.stages;
        let histogram = match stage {
            Stage::Analyse => analyse,
            Stage::Order => order,
            Stage::Direct => direct,
        };
        histogram.record(duration.as_secs_f64());
    }

    pub(crate) fn transaction(&self, end: TransactionEnd) {
        match end {
            TransactionEnd::Committed => self.committed.increment(1),
            TransactionEnd::RolledBack => self.rolled_back.increment(1),
            TransactionEnd::Failed => self.failed.increment(1),
            TransactionEnd::Unknown => self.unknown.increment(1),
        }
    }

    /// An error that goes to an application. The label is the SQLSTATE's class, if it looks like one.
    pub(crate) fn error(&self, sqlstate: &str) {
        let class = sqlstate
            .get(..2)
            .filter(|class| class.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        counter!("cloudbft_errors_total", "sqlstate_class" => class.unwrap_or("??").to_owned()).increment(1);
    }

    /// A statement that was refused before it ran.
    pub(crate) fn refused(&self, rule: u8, sqlstate: &'static str) {
        counter!("cloudbft_refused_total", "rule" => rule.to_string(), "sqlstate" => sqlstate).increment(1);
    }
}

/// A voter's message that no correct voter sends.
pub(crate) fn invalid(voter: MachineId, reason: &'static str) {
    counter!("cloudbft_invalid_messages_total", "peer" => format!("m{}", voter.0), "reason" => reason).increment(1);
}

/// Counters without labels: they stand at zero before the first event, so that a rate sees that one too.
const COUNTERS: [(&str, &str); 5] = [
    (
        "cloudbft_retransmissions_total",
        "Requests and stored bodies that were sent again because no answer came in time.",
    ),
    (
        "cloudbft_recalls_total",
        "Results that were asked of one more voter, because it sent their digest only.",
    ),
    (
        "cloudbft_joins_total",
        "How often further voters were made to run an open transaction live.",
    ),
    (
        "cloudbft_large_results_total",
        "Results above 1 MiB, which come in chunks.",
    ),
    (
        "cloudbft_result_chunks_total",
        "Chunks of large results that were read.",
    ),
];

fn describe() {
    for (name, help) in COUNTERS {
        describe_counter!(name, help);
        counter!(name).increment(0);
    }
    describe_counter!(
        "cloudbft_received_bytes_total",
        Unit::Bytes,
        "Bytes received from applications."
    );
    describe_counter!("cloudbft_sent_bytes_total", Unit::Bytes, "Bytes sent to applications.");
    describe_counter!(
        "cloudbft_queries_total",
        "Exchanges with applications, by class and protocol."
    );
    describe_histogram!(
        "cloudbft_query_duration_seconds",
        Unit::Seconds,
        "From an exchange's arrival to its answer, by class."
    );
    describe_histogram!(
        "cloudbft_stage_duration_seconds",
        Unit::Seconds,
        "Stages of an exchange: deriving its footprint, an ordered request until it is voted, a direct statement until it is voted."
    );
    describe_counter!("cloudbft_transactions_total", "Transactions that ended, by outcome.");
    describe_gauge!("cloudbft_client_connections", "Connections of applications.");
    describe_gauge!(
        "cloudbft_client_connections_max",
        "Connections of applications that are allowed."
    );
    describe_gauge!(
        "cloudbft_prepared_statements",
        "Prepared statements of all connections."
    );
    describe_counter!(
        "cloudbft_errors_total",
        "Errors that went to applications, by the first two characters of their SQLSTATE."
    );
    describe_counter!(
        "cloudbft_refused_total",
        "Statements that were refused before they ran, by determinism rule and SQLSTATE."
    );
    describe_counter!(
        "cloudbft_notifications_dropped_total",
        "Notifications that were dropped, by reason: session (it did not take them in time, or a transaction sent too many), \
         unconfirmed (f+1 voters did not say so) or no_room (a voter told of too much that others do not confirm)."
    );
}
