//! What is known of functions by name: Postgres's own from a list taken from `pg_proc`, the user's from the catalog.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::schema::Schema;

/// How a function's result may change between calls, as Postgres declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Volatility {
    Immutable,
    Stable,
    Volatile,
}

/// What a call of a function means for footprint and determinism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FunctionKind {
    /// Depends on its arguments and on the session's settings only.
    Plain,
    /// Reads the clock or the seed: the call is replaced.
    Clock,
    /// Reads the catalog, or facts of the server.
    Catalog,
    /// `nextval`, `setval`.
    Sequence,
    /// `currval`, `lastval`.
    SessionSequence,
    /// `set_config`.
    SetConfig,
    /// Works with large objects.
    LargeObject(LargeObjectUse),
    /// `pg_notify`: has an effect when it commits, and touches no data.
    Notify,
    /// May do anything.
    Unknown,
    /// A stable or immutable user function: reads anything.
    ReadsAnything,
}

/// Uses that a function makes of large objects (rule LargeObjects).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LargeObjectUse {
    /// Reads one, and leaves nothing.
    Gets,
    /// Reads or moves an object that the transaction has open.
    Reads,
    /// Opens one: for what, its second argument tells.
    Opens,
    /// Changes one.
    Writes,
}

/// The functions of large objects that a server has, with what they do.
const LARGE_OBJECT: &[(&str, LargeObjectUse)] = &[
    ("lo_close", LargeObjectUse::Reads),
    ("lo_creat", LargeObjectUse::Writes),
    ("lo_create", LargeObjectUse::Writes),
    ("lo_from_bytea", LargeObjectUse::Writes),
    ("lo_get", LargeObjectUse::Gets),
    ("lo_lseek", LargeObjectUse::Reads),
    ("lo_lseek64", LargeObjectUse::Reads),
    ("lo_open", LargeObjectUse::Opens),
    ("lo_put", LargeObjectUse::Writes),
    ("lo_tell", LargeObjectUse::Reads),
    ("lo_tell64", LargeObjectUse::Reads),
    ("lo_truncate", LargeObjectUse::Writes),
    ("lo_truncate64", LargeObjectUse::Writes),
    ("lo_unlink", LargeObjectUse::Writes),
    ("loread", LargeObjectUse::Reads),
    ("lowrite", LargeObjectUse::Writes),
];

/// Whether a function works with large objects.
pub(crate) fn is_of_large_objects(name: &str) -> bool {
    LARGE_OBJECT.iter().any(|(function, _)| *function == name)
}

/// Functions that may number a large object by themselves; they are replaced by functions of schema `cloudbft` of the same name.
pub(crate) const NUMBERS_LARGE_OBJECTS: &[&str] = &["lo_creat", "lo_create", "lo_from_bytea"];

/// The resource for which all large objects stand.
pub(crate) const LARGE_OBJECTS: &str = "pg_catalog.pg_largeobject";

/// Names by volatility, one line each, from `pg_proc` of PostgreSQL 15: the worst of a name's overloads.
const BUILT_IN: &str = include_str!("functions/postgresql_15.txt");

static VOLATILITIES: LazyLock<BTreeMap<&'static str, Volatility>> = LazyLock::new(|| {
    let kinds = [Volatility::Immutable, Volatility::Stable, Volatility::Volatile];
    let lines = BUILT_IN.lines().zip(kinds);
    lines
        .flat_map(|(line, kind)| line.split_ascii_whitespace().map(move |name| (name, kind)))
        .collect()
});

/// Constructs of the grammar that the parser shows as functions.
const GRAMMAR: &[&str] = &[
    "coalesce",
    "nullif",
    "greatest",
    "least",
    "grouping",
    "array",
    "row",
    "overlay",
    "normalize",
    "xmlconcat",
    "xmlelement",
    "xmlforest",
];

/// Stable functions of which the result depends on arguments and replicated settings only.
const STABLE_PLAIN: &[&str] = &[
    "age",
    "array_to_json",
    "array_to_string",
    "concat",
    "concat_ws",
    "convert",
    "convert_from",
    "convert_to",
    "current_database",
    "current_schema",
    "current_schemas",
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_catalog",
    "date",
    "date_part",
    "date_trunc",
    "enum_first",
    "enum_last",
    "enum_range",
    "extract",
    "format",
    "generate_series",
    "json_agg",
    "json_build_array",
    "json_build_object",
    "json_object_agg",
    "json_populate_record",
    "json_populate_recordset",
    "json_to_record",
    "json_to_recordset",
    "json_to_tsvector",
    "jsonb_agg",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_object_agg",
    "jsonb_path_exists_tz",
    "jsonb_path_match_tz",
    "jsonb_path_query_array_tz",
    "jsonb_path_query_first_tz",
    "jsonb_path_query_tz",
    "jsonb_populate_record",
    "jsonb_populate_recordset",
    "jsonb_to_record",
    "jsonb_to_recordset",
    "jsonb_to_tsvector",
    "length",
    "make_timestamptz",
    "money",
    "numeric",
    "overlaps",
    "phraseto_tsquery",
    "plainto_tsquery",
    "quote_literal",
    "quote_nullable",
    "row_to_json",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "timezone",
    "to_char",
    "to_date",
    "to_json",
    "to_jsonb",
    "to_number",
    "to_timestamp",
    "to_tsquery",
    "to_tsvector",
    "ts_headline",
    "websearch_to_tsquery",
];

/// Functions that are replaced by functions of schema `cloudbft` of the same name.
pub(crate) const CLOCK: &[&str] = &[
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "clock_timestamp",
    "timeofday",
    "random",
    "gen_random_uuid",
    "uuid_generate_v4",
];

/// Keywords that are replaced by functions of schema `cloudbft` of the same name.
pub(crate) const CLOCK_KEYWORDS: &[&str] = &[
    "current_timestamp",
    "current_date",
    "current_time",
    "localtime",
    "localtimestamp",
];

/// Functions that give each row another value.
pub(crate) const PER_CALL: &[&str] = &[
    "random",
    "gen_random_uuid",
    "uuid_generate_v4",
    "nextval",
    "lo_creat",
    "lo_create",
    "lo_from_bytea",
];

/// Functions of which the result depends on the order of their input rows.
pub(crate) const ORDER_SENSITIVE: &[&str] = &[
    "array_agg",
    "string_agg",
    "json_agg",
    "jsonb_agg",
    "json_object_agg",
    "jsonb_object_agg",
    "xmlagg",
    "row_number",
    "lag",
    "lead",
    "first_value",
    "last_value",
    "nth_value",
    "ntile",
];

/// Aggregates of which the result depends on the order of floating-point operands.
pub(crate) const SUMS: &[&str] = &[
    "sum",
    "avg",
    "stddev",
    "stddev_pop",
    "stddev_samp",
    "variance",
    "var_pop",
    "var_samp",
    "corr",
    "covar_pop",
    "covar_samp",
    "regr_avgx",
    "regr_avgy",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
];

/// The other aggregates, from `pg_proc` of PostgreSQL 15.
const OTHER_AGGREGATES: &[&str] = &[
    "array_agg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "count",
    "cume_dist",
    "dense_rank",
    "every",
    "json_agg",
    "json_object_agg",
    "jsonb_agg",
    "jsonb_object_agg",
    "max",
    "min",
    "mode",
    "percent_rank",
    "percentile_cont",
    "percentile_disc",
    "range_agg",
    "range_intersect_agg",
    "rank",
    "regr_count",
    "string_agg",
    "xmlagg",
];

/// Whether a function of PostgreSQL's own is an aggregate.
pub(crate) fn is_aggregate(name: &str) -> bool {
    SUMS.contains(&name) || OTHER_AGGREGATES.contains(&name)
}

/// Volatile functions that only tell facts of the server.
fn tells_facts(name: &str) -> bool {
    is_local_fact(name)
        || matches!(
            name,
            "current_query"
                | "pg_partition_ancestors"
                | "pg_partition_tree"
                | "pg_sleep"
                | "pg_sleep_for"
                | "pg_sleep_until"
        )
}

/// Facts of one server, which another does not share (rule LocalFacts): a write must not store them.
pub(crate) fn is_local_fact(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "version",
        "inet_server_addr",
        "inet_server_port",
        "inet_client_addr",
        "inet_client_port",
        "pg_backend_pid",
        "pg_postmaster_start_time",
        "pg_conf_load_time",
        "pg_is_in_recovery",
        "pg_is_wal_replay_paused",
        "pg_blocking_pids",
        "pg_safe_snapshot_blocking_pids",
        "pg_lock_status",
        "pg_jit_available",
        "pg_notification_queue_usage",
        "pg_get_backend_memory_contexts",
        "pg_get_shmem_allocations",
        "pg_isolation_test_session_is_blocked",
        "pg_show_all_file_settings",
        "pg_hba_file_rules",
        "pg_ident_file_mappings",
        "pg_prepared_xact",
        "pg_sequence_last_value",
        "pg_xact_commit_timestamp",
        "pg_relation_filenode",
        "pg_relation_filepath",
        "pg_my_temp_schema",
    ];
    const PREFIXES: &[&str] = &[
        "pg_stat_get_",
        "pg_current_wal",
        "pg_last_",
        "pg_control_",
        "pg_current_log",
    ];
    NAMES.contains(&name)
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || (name.starts_with("pg_") && name.ends_with("_size") && name != "pg_column_size")
}

/// What a call means; `schema_name` is the qualifier, if there is one.
pub(crate) fn kind(schema: &Schema, schema_name: Option<&str>, name: &str) -> FunctionKind {
    let user = schema.function(name);
    match schema_name {
        Some("cloudbft") if !NUMBERS_LARGE_OBJECTS.contains(&name) => return FunctionKind::Clock,
        Some("cloudbft") => return built_in(name),
        Some("pg_catalog") => return built_in(name),
        _ => {}
    }
    match (user, schema_name) {
        (None, None) => built_in(name),
        (None, Some("information_schema")) => FunctionKind::Catalog,
        (None, Some(_)) => FunctionKind::Unknown,
        (Some(user), _) if user.is_plain && matches!(built_in(name), FunctionKind::Plain | FunctionKind::Unknown) => {
            FunctionKind::Plain
        }
        (Some(user), _) if user.volatility < Volatility::Volatile && built_in(name) != FunctionKind::Sequence => {
            FunctionKind::ReadsAnything
        }
        (Some(_), _) => FunctionKind::Unknown,
    }
}

fn built_in(name: &str) -> FunctionKind {
    match name {
        "nextval" | "setval" => return FunctionKind::Sequence,
        "currval" | "lastval" => return FunctionKind::SessionSequence,
        "set_config" => return FunctionKind::SetConfig,
        "pg_notify" => return FunctionKind::Notify,
        _ => {}
    }
    if let Some((_, usage)) = LARGE_OBJECT.iter().find(|(function, _)| *function == name) {
        return FunctionKind::LargeObject(*usage);
    }
    if CLOCK.contains(&name) || CLOCK_KEYWORDS.contains(&name) {
        return FunctionKind::Clock;
    }
    if GRAMMAR.contains(&name) || STABLE_PLAIN.contains(&name) {
        return FunctionKind::Plain;
    }
    match VOLATILITIES.get(name) {
        Some(Volatility::Immutable) => FunctionKind::Plain,
        // These run a query that is given as text.
        Some(_) if name.contains("_to_xml") || name.starts_with("ts_stat") || name.starts_with("ts_rewrite") => {
            FunctionKind::Unknown
        }
        Some(Volatility::Stable) => FunctionKind::Catalog,
        Some(Volatility::Volatile) if tells_facts(name) => FunctionKind::Catalog,
        Some(Volatility::Volatile) | None => FunctionKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_built_in_functions() {
        let schema = Schema::empty();
        let kind = |name| kind(&schema, None, name);
        for name in [
            "sum",
            "lower",
            "to_char",
            "coalesce",
            "count",
            "generate_series",
            "row_number",
            "jsonb_set",
        ] {
            assert_eq!(kind(name), FunctionKind::Plain, "{name}");
        }
        for name in [
            "pg_get_viewdef",
            "obj_description",
            "pg_backend_pid",
            "version",
            "current_setting",
            "pg_table_is_visible",
        ] {
            assert_eq!(kind(name), FunctionKind::Catalog, "{name}");
        }
        for name in [
            "pg_terminate_backend",
            "query_to_xml",
            "no_such_function",
            "pg_advisory_xact_lock",
        ] {
            assert_eq!(kind(name), FunctionKind::Unknown, "{name}");
        }
        assert_eq!(kind("now"), FunctionKind::Clock);
    }
}
