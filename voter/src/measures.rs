//! What a voter's metrics mean, for whoever reads `/metrics`. Labels are bounded.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram};

/// Counters without labels: they stand at zero before the first event, so that a rate sees that one too.
const COUNTERS: [(&str, &str); 22] = [
    (
        "cloudbft_voter_outages_total",
        "How often this machine's voter went out of service.",
    ),
    (
        "cloudbft_voter_commit_failures_total",
        "Commits that the server could not run at an attempt; the voter tries again, or goes out of service.",
    ),
    (
        "cloudbft_voter_commit_reruns_total",
        "Commits for which the voter ran the transaction's list, because it had not run it live.",
    ),
    (
        "cloudbft_voter_harmless_contradictions_total",
        "Transactions that wrote nothing, in which this database answered otherwise than f+1 voters certified.",
    ),
    (
        "cloudbft_voter_object_numbers_missed_total",
        "Transactions of which this machine's server could not number the objects as the others do: it is ahead, or far behind.",
    ),
    (
        "cloudbft_voter_abandoned_transactions_total",
        "Open transactions that were aborted in order because their client was silent or they were open for too long.",
    ),
    (
        "cloudbft_voter_results_without_room_total",
        "Results that were refused because the disk space for large results is used up.",
    ),
    (
        "cloudbft_voter_doubts_total",
        "Transactions that this machine's database answered otherwise than f+1 voters had certified, and committed all the same: their \
         effects were compared before it answered again.",
    ),
    (
        "cloudbft_voter_doubts_settled_total",
        "Those of them whose effects were equal.",
    ),
    (
        "cloudbft_effects_agreed_total",
        "Orders at which this machine's database has changed the same as f+1 databases have.",
    ),
    (
        "cloudbft_effects_diverged_total",
        "Orders at which this machine's database has changed something else than f+1 others have: it went out of service.",
    ),
    (
        "cloudbft_effects_disputed_total",
        "Orders at which no f+1 databases have changed the same: nobody knows which one is right.",
    ),
    (
        "cloudbft_effects_skipped_total",
        "Orders whose changes this machine could not compare: it forgot them before it heard enough of others, or a primary key was \
         altered meanwhile.",
    ),
    (
        "cloudbft_effects_unordered_total",
        "Transactions that changed tables of this machine's database and that nobody ordered.",
    ),
    (
        "cloudbft_effects_bulk_total",
        "Transactions with so many changes that only their numbers were compared.",
    ),
    (
        "cloudbft_effects_slots_made_total",
        "How often this machine's voter made the replication slot from which it reads what its database changes.",
    ),
    (
        "cloudbft_effects_slots_lost_total",
        "How often the server threw away changes before this machine's voter had read them, or could not give them.",
    ),
    (
        "cloudbft_bodies_missed_total",
        "Stored bodies (COPY data, long texts) that were not here yet when a list needed them.",
    ),
    (
        "cloudbft_bodies_fetched_total",
        "Stored bodies that were asked of another machine.",
    ),
    (
        "cloudbft_bodies_refused_total",
        "Stored bodies that were refused: more than one transaction may write, or no room on the disk.",
    ),
    (
        "cloudbft_voter_notifications_total",
        "Notifications that this machine's voter told proxies of.",
    ),
    (
        "cloudbft_voter_notifications_dropped_total",
        "Notifications that were dropped because one transaction sent more than is told of one.",
    ),
];

/// Describes every metric of this crate. A recorder must be installed.
pub(crate) fn describe() {
    for (name, help) in COUNTERS {
        describe_counter!(name, help);
        counter!(name).increment(0);
    }
    describe_counter!(
        "cloudbft_voter_operations_total",
        "Ordered operations that this machine's voter was fed, by class."
    );
    describe_counter!(
        "cloudbft_voter_catalog_reads_total",
        "Readings of the catalog after an operation that may have changed it, by kind: changed (only what was changed) or whole."
    );
    describe_counter!(
        "cloudbft_votes_total",
        "Entries of replicas' COMMIT-DB messages that this machine's voter counted, by replica (its machine's number) and result."
    );
    describe_counter!(
        "cloudbft_effects_mismatches_total",
        "Orders at which another machine's database has changed something else than this one's, by that machine's number."
    );
    describe_gauge!(
        "cloudbft_effects_comparing",
        "1 while this machine's voter reads what its database changes, 0 while it cannot."
    );
    describe_gauge!(
        "cloudbft_effects_open_orders",
        "Orders whose changes this machine's voter has not compared with f others yet."
    );
    describe_gauge!(
        "cloudbft_scrub_ended_seconds",
        Unit::Seconds,
        "When the last comparison of all contents that this machine's database took part in ended, in seconds since 1970; 0: none has."
    );
    describe_gauge!(
        "cloudbft_scrub_ranges",
        "Ranges of rows that the last comparison of all contents compared on all databases."
    );
    describe_gauge!(
        "cloudbft_scrub_differences",
        "What the last comparison of all contents found to differ, on whatever machine."
    );
    describe_gauge!(
        "cloudbft_voter_flushed_order",
        "The order up to which this machine's database has everything on its disk."
    );
    describe_gauge!(
        "cloudbft_voter_waiting_operations",
        "Operations that wait for locks at this machine's voter."
    );
    describe_gauge!(
        "cloudbft_voter_unfinished_operations",
        "Operations in the lock table of this machine's voter that are not finished."
    );
    describe_gauge!(
        "cloudbft_voter_open_transactions",
        "Transactions that are open at this machine's voter."
    );
    describe_histogram!(
        "cloudbft_voter_execution_duration_seconds",
        Unit::Seconds,
        "How long the voter took for a stage of execution, its server's time included."
    );
    describe_gauge!(
        "cloudbft_bodies_bytes",
        Unit::Bytes,
        "Bytes of stored bodies (COPY data, long texts) that are kept on this machine's disk."
    );
    describe_gauge!(
        "cloudbft_bodies_transactions",
        "Transactions of which stored bodies are kept on this machine's disk."
    );
}
