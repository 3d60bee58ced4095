//! The metrics endpoint: what a process counts, in Prometheus's text form.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::file::ClusterFile;
use crate::http::Answer;

/// How often histograms are drained, so that they hold bounded memory when nobody scrapes.
const UPKEEP_MS: u64 = 5_000;
/// Buckets of durations, in seconds: 50 µs to 30 s.
const SECONDS_BUCKETS: [f64; 19] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5,
    1.0, 5.0, 30.0,
];
/// Buckets of sizes (batches, queues).
const SIZE_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// Clock ticks per second in /proc, on every Linux that is.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes per page in /proc/self/statm, where the machine does not say otherwise.
const PAGE_BYTES: f64 = 4096.0;

/// Installs the process-wide recorder, and describes what this crate counts. Must be called within a Tokio runtime.
///
/// # Errors
/// When a recorder is installed already.
pub fn install(file: &ClusterFile, role: &str) -> Result<Metrics, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix(String::from("_seconds")), &SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix(String::from("_size")), &SIZE_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix(String::from("_depth")), &SIZE_BUCKETS)?
        .install_recorder()?;
    describe();
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("CLOUDBFT_COMMIT").unwrap_or("unknown");
    gauge!("cloudbft_build_info", "version" => version, "commit" => commit, "role" => role.to_owned()).set(1.0);
    gauge!("cloudbft_config_info", "hash" => file.hash()).set(1.0);
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(UPKEEP_MS)).await;
            upkeep.run_upkeep();
        }
    });
    Ok(Metrics { handle })
}

/// The handle that renders.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// The answer to `GET /metrics`.
    pub fn answer(&self) -> Answer {
        record_process();
        Answer {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: self.handle.render(),
        }
    }
}

fn describe() {
    describe_gauge!(
        "cloudbft_build_info",
        "Version and commit of this process; the value is 1."
    );
    describe_gauge!(
        "cloudbft_config_info",
        "Digest of the cluster file that this process runs with; the value is 1."
    );
    describe_gauge!("cloudbft_peer_up", "Whether the link to a peer is up (1) or down (0).");
    describe_histogram!(
        "cloudbft_peer_rtt_seconds",
        Unit::Seconds,
        "Round trip to a peer over its link."
    );
    describe_counter!(
        "cloudbft_link_received_bytes_total",
        Unit::Bytes,
        "Bytes received on all links."
    );
    describe_counter!(
        "cloudbft_link_sent_bytes_total",
        Unit::Bytes,
        "Bytes sent on all links."
    );
    describe_counter!(
        "cloudbft_link_dropped_total",
        "Frames dropped because a peer is slow or away."
    );
    describe_counter!(
        "cloudbft_link_refused_total",
        "Connections refused before or during the TLS handshake."
    );
    // It stands at zero before the first event, so that a rate sees that one too.
    counter!("cloudbft_link_refused_total").increment(0);
    describe_gauge!(
        "cloudbft_link_queue_bytes",
        Unit::Bytes,
        "Bytes that wait to be sent to a peer."
    );
    describe_counter!(
        "cloudbft_invalid_messages_total",
        "Messages rejected as a peer's fault, by peer and reason."
    );
    describe_counter!(
        "cloudbft_divergences_total",
        "Answers of a voter that differ from the agreed ones."
    );
    describe_histogram!(
        "cloudbft_log_fsync_duration_seconds",
        Unit::Seconds,
        "One write and fdatasync of the log."
    );
    describe_gauge!("cloudbft_log_bytes", Unit::Bytes, "Size of the durable log.");
    describe_gauge!(
        "cloudbft_view",
        "The current view; it is led by candidate view mod (2f+2)."
    );
    describe_counter!("cloudbft_view_changes_total", "Views entered since the start.");
    describe_gauge!("cloudbft_order", "The last order that this node knows to be decided.");
    describe_gauge!(
        "cloudbft_order_pending",
        "Orders proposed and not yet decided, as this node knows."
    );
    describe_gauge!(
        "cloudbft_log_first_order",
        "The first order that this node's log still holds."
    );
    describe_gauge!(
        "cloudbft_checkpoint_order",
        "The order of the last stable checkpoint that this node knows."
    );
    describe_gauge!(
        "cloudbft_groups",
        "Groups that are in charge of partitions, as this node knows."
    );
    describe_gauge!(
        "cloudbft_assignment_version",
        "How often the number of groups was changed, as this node knows."
    );
    describe_histogram!("cloudbft_order_batch_size", "Entries per batch.");
    describe_histogram!(
        "cloudbft_order_latency_seconds",
        Unit::Seconds,
        "From a request's arrival to its decision."
    );
    describe_histogram!(
        "cloudbft_signature_verify_duration_seconds",
        Unit::Seconds,
        "Verification of one message's signatures."
    );
    describe_gauge!(
        "cloudbft_voter_up",
        "Whether this machine's voter serves (1) or not (0)."
    );
    describe_gauge!(
        "cloudbft_voter_executed_order",
        "The last order that this machine's voter executed without gap."
    );
    describe_gauge!(
        "cloudbft_voter_lag_entries",
        "Decided orders that this machine's voter has yet to execute."
    );
    describe_counter!(
        "cloudbft_voter_input_dropped_total",
        "Messages to the voter dropped because its queue is full."
    );
    describe_counter!("process_cpu_seconds_total", Unit::Seconds, "User and system CPU time.");
    describe_gauge!("process_resident_memory_bytes", Unit::Bytes, "Resident memory.");
    describe_gauge!("process_open_fds", "Open file descriptors.");
    describe_gauge!("process_threads", "Threads.");
}

/// Reads CPU time, memory, descriptors and threads from /proc.
fn record_process() {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field (the name) is in parentheses and may hold spaces.
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let seconds = (field(11) + field(12)) / TICKS_PER_SECOND;
    // The exporter's counters are integers; whole seconds are enough for rates over minutes.
    counter!("process_cpu_seconds_total").absolute(seconds as u64);
    gauge!("process_threads").set(field(17));
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<f64>().ok())
        .unwrap_or(0.0);
    gauge!("process_resident_memory_bytes").set(pages * PAGE_BYTES);
    let descriptors = std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0);
    gauge!("process_open_fds").set(descriptors as f64);
}
