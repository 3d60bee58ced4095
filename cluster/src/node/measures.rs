//! What the owner task measures beside the agreement, which knows neither clocks nor metrics.

use std::collections::HashMap;
use std::time::Instant;

use metrics::{Gauge, Histogram};
use ordering::agreement::Status;
use ordering::identifiers::{ClientId, View};
use ordering::message::{CommitDb, Request};

/// Requests whose decision is awaited for the histogram of latencies, at most.
const AWAITED_MAX: usize = 4096;

/// The metrics of the agreement. The handles are looked up once, when the recorder is installed.
pub(super) struct Measures {
    arrived: HashMap<(ClientId, u64), Instant>,
    view: Option<View>,
    batch_size: Histogram,
    latency_seconds: Histogram,
    view_number: Gauge,
    order: Gauge,
    pending: Gauge,
    log_first: Gauge,
    checkpoint: Gauge,
    groups: Gauge,
    assignment_version: Gauge,
}

impl Measures {
    pub(super) fn new() -> Self {
        Self {
            arrived: HashMap::new(),
            view: None,
            batch_size: metrics::histogram!("cloudbft_order_batch_size"),
            latency_seconds: metrics::histogram!("cloudbft_order_latency_seconds"),
            view_number: metrics::gauge!("cloudbft_view"),
            order: metrics::gauge!("cloudbft_order"),
            pending: metrics::gauge!("cloudbft_order_pending"),
            log_first: metrics::gauge!("cloudbft_log_first_order"),
            checkpoint: metrics::gauge!("cloudbft_checkpoint_order"),
            groups: metrics::gauge!("cloudbft_groups"),
            assignment_version: metrics::gauge!("cloudbft_assignment_version"),
        }
    }

    /// A request has arrived.
    pub(super) fn requested(&mut self, request: &Request) {
        // What is never decided must not fill the table: a few samples are lost instead.
        if self.arrived.len() >= AWAITED_MAX {
            self.arrived.clear();
        }
        self.arrived
            .entry((request.client, request.number))
            .or_insert_with(Instant::now);
    }

    /// These operations are decided.
    pub(super) fn decided(&mut self, decision: &CommitDb) {
        self.batch_size.record(decision.entries.len() as f64);
        for request in decision.entries.iter().filter_map(|entry| entry.request.as_ref()) {
            if let Some(arrived) = self.arrived.remove(&(request.client, request.number)) {
                self.latency_seconds.record(arrived.elapsed().as_secs_f64());
            }
        }
    }

    /// Sets the gauges of the agreement.
    pub(super) fn set_gauges(&mut self, status: &Status) {
        let view = Some(status.view);
        if std::mem::replace(&mut self.view, view) != view {
            metrics::counter!("cloudbft_view_changes_total").increment(1);
        }
        let pending = status.prepared.0.saturating_sub(status.decided.0);
        self.view_number.set(status.view.0 as f64);
        self.order.set(status.decided.0 as f64);
        self.pending.set(pending as f64);
        self.log_first.set(status.log_first.0 as f64);
        self.checkpoint.set(status.stable.0 as f64);
        self.groups.set(f64::from(status.groups_in_charge));
        self.assignment_version.set(status.assignment.version as f64);
    }
}
