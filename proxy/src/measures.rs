//! The proxy's metrics (facade `metrics`; names in docs, prefix `cloudbft_`). Labels are bounded.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
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
    pub(crate) fn new() -> Self {
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
