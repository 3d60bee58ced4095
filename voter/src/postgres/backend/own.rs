//! What a voter itself runs in the application's transactions.

/// Statements of the voter's own, prepared when a connection is opened: name and text.
pub(super) const OWN_STATEMENTS: &[(&str, &str)] = &[
    ("begin", "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"),
    ("begin_repeatable", "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE"),
    ("begin_snapshot", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
    ("begin_read_only", "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"),
    ("commit", "COMMIT"),
    ("rollback", "ROLLBACK"),
    ("snapshot", "SELECT 1"),
    (
        "clock",
        "SELECT pg_catalog.set_config('cloudbft.time_us', $1::pg_catalog.text, true), \
         pg_catalog.set_config('cloudbft.seed', $2::pg_catalog.text, true)",
    ),
    (
        "applied",
        "SELECT cloudbft.set_applied($1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.int8, $4::pg_catalog.int8)",
    ),
    (
        "record_sequences",
        "SELECT cloudbft.record_sequences($1::pg_catalog.text, $2::pg_catalog.text[])",
    ),
    (
        "restore_sequences",
        "SELECT cloudbft.restore_sequences($1::pg_catalog.text, $2::pg_catalog.text[])",
    ),
];
