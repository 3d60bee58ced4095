//! What the owner task measures beside the agreement, which knows neither clocks nor metrics.

use std::collections::HashMap;
use std::time::Instant;

use ordering::agreement::Status;
use ordering::identifiers::{ClientId, View};
use ordering::message::{CommitDb, Request};

/// Requests whose decision is awaited for the histogram of latencies, at most.
const AWAITED_MAX: usize = 4096;

/// What is measured.
#[derive(Debug, Default)]
pub(super) struct Measures {
    arrived: HashMap<(ClientId, u64), Instant>,
    view: Option<View>,
}

impl Measures {
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
        metrics::histogram!("cloudbft_order_batch_size").record(decision.entries.len() as f64);
        for request in decision.entries.iter().filter_map(|entry| entry.request.as_ref()) {
            if let Some(arrived) = self.arrived.remove(&(request.client, request.number)) {
                metrics::histogram!("cloudbft_order_latency_seconds").record(arrived.elapsed().as_secs_f64());
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
        metrics::gauge!("cloudbft_view").set(status.view.0 as f64);
        metrics::gauge!("cloudbft_order").set(status.decided.0 as f64);
        metrics::gauge!("cloudbft_order_pending").set(pending as f64);
        metrics::gauge!("cloudbft_log_first_order").set(status.log_first.0 as f64);
        metrics::gauge!("cloudbft_checkpoint_order").set(status.stable.0 as f64);
    }
}
