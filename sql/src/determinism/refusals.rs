//! What cannot be made deterministic, by its tokens.

use super::{Pass, Purpose, splices};
use crate::analysis::clock_word_refusal;
use crate::functions;
use crate::lexer::TokenKind;
use crate::refusal::{
    CANNOT_CHANGE_PARAMETER, FEATURE_NOT_SUPPORTED, INSUFFICIENT_PRIVILEGE, NONDETERMINISTIC, NOT_SUPPORTED, Refusal,
};

/// Functions of schema `cloudbft` that applications may call.
const OWN_FUNCTIONS: [&str; 18] = [
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "clock_timestamp",
    "timeofday",
    "current_timestamp",
    "current_date",
    "current_time",
    "localtime",
    "localtimestamp",
    "age",
    "random",
    "gen_random_uuid",
    "uuid_generate_v4",
    "moment",
    "lo_creat",
    "lo_create",
    "lo_from_bytea",
];

/// The refusal of what stands at the present token.
pub(super) fn refusal(pass: &Pass<'_>, purpose: Purpose) -> Option<Refusal> {
    let token = pass.token(0)?;
    match token.kind {
        TokenKind::Word | TokenKind::QuotedIdentifier => {}
        TokenKind::String | TokenKind::EscapeString | TokenKind::DollarString(_) => {
            return splices::is_unclear_moment(pass).then(clock_word_refusal);
        }
        TokenKind::UnicodeIdentifier => return Some(escaped_identifier()),
        _ => return None,
    }
    if let Some(name) = pass.calls() {
        return called(&name, purpose).or_else(|| defined_with_large_object(pass, &name, purpose));
    }
    // Of an extension, so in any schema.
    if pass.is_punctuation(1, b'(')
        && let Some(refusal) = pass.name(0).and_then(|name| random_source(&name))
    {
        return Some(refusal);
    }
    word(pass, purpose)
}

fn called(name: &str, purpose: Purpose) -> Option<Refusal> {
    if purpose != Purpose::Read {
        if functions::is_local_fact(name) {
            return Some(local_fact(name));
        }
        if name.starts_with("pg_sleep") {
            return Some(Refusal::new(
                FEATURE_NOT_SUPPORTED,
                49,
                format!("{name}() is not supported in a statement that writes: all others would wait"),
                "Sleep in the application.",
            ));
        }
    }
    transaction_ids(name)
        .or_else(|| random_source(name))
        .or_else(|| outside(name))
        .or_else(|| session_bound(name))
}

/// Functions of large objects in what is not seen where it runs: defaults, checks, views, policies, conditions of triggers. Bodies of
/// functions run under Everything.
fn defined_with_large_object(pass: &Pass<'_>, name: &str, purpose: Purpose) -> Option<Refusal> {
    let is_named = ["function", "routine"].iter().any(|word| pass.is_word(-1, word));
    let mut first = pass.tokens.iter().take(4);
    let defines_code = first.any(|token| {
        let words = ["do", "function", "procedure"];
        words.iter().any(|word| token.is_word(pass.text, word))
    });
    let refused = purpose == Purpose::Definition && !is_named && !defines_code;
    (refused && functions::is_of_large_objects(name)).then(|| {
        Refusal::new(
            NOT_SUPPORTED,
            39,
            format!("{name}() is not supported in a definition: statements that use the definition do not show that they work with large objects"),
            "Call it in the statements themselves, or in a function.",
        )
    })
}

fn local_fact(name: &str) -> Refusal {
    Refusal::new(
        FEATURE_NOT_SUPPORTED,
        32,
        format!("{name}() tells a fact of one server: a statement that writes cannot use it"),
        "Read it first, and send its value as a parameter.",
    )
}

fn transaction_ids(name: &str) -> Option<Refusal> {
    const NAMES: [&str; 12] = [
        "txid_current",
        "txid_current_if_assigned",
        "txid_current_snapshot",
        "txid_status",
        "txid_snapshot_xmin",
        "txid_snapshot_xmax",
        "pg_current_xact_id",
        "pg_current_xact_id_if_assigned",
        "pg_current_snapshot",
        "pg_xact_status",
        "pg_export_snapshot",
        "pg_last_committed_xact",
    ];
    NAMES.contains(&name).then(|| {
        Refusal::new(
            FEATURE_NOT_SUPPORTED,
            11,
            format!("{name}() reads a counter that each server counts for itself"),
            "Use a sequence or a version column.",
        )
    })
}

fn random_source(name: &str) -> Option<Refusal> {
    const NAMES: [&str; 13] = [
        "setseed",
        "normal_rand",
        "random_normal",
        "uuidv4",
        "uuidv7",
        "uuid_generate_v1",
        "uuid_generate_v1mc",
        "gen_random_bytes",
        "gen_salt",
        "pgp_sym_encrypt",
        "pgp_sym_encrypt_bytea",
        "pgp_pub_encrypt",
        "pgp_pub_encrypt_bytea",
    ];
    let rule = if matches!(name, "setseed" | "random_normal" | "normal_rand") {
        6
    } else {
        7
    };
    NAMES.contains(&name).then(|| {
        Refusal::new(
            NONDETERMINISTIC,
            rule,
            format!("{name}() draws from each server's own random source"),
            "Use random() or gen_random_uuid(), or send the value as a parameter.",
        )
    })
}

fn outside(name: &str) -> Option<Refusal> {
    const NAMES: [&str; 40] = [
        "lo_import",
        "lo_export",
        "pg_read_file",
        "pg_read_binary_file",
        "pg_read_file_old",
        "pg_stat_file",
        "pg_ls_dir",
        "pg_ls_logdir",
        "pg_ls_waldir",
        "pg_ls_tmpdir",
        "pg_ls_archive_statusdir",
        "pg_ls_logicalmapdir",
        "pg_ls_logicalsnapdir",
        "pg_ls_replslotdir",
        "pg_file_write",
        "pg_file_sync",
        "pg_file_rename",
        "pg_file_unlink",
        "pg_terminate_backend",
        "pg_cancel_backend",
        "pg_reload_conf",
        "pg_rotate_logfile",
        "pg_rotate_logfile_old",
        "pg_promote",
        "pg_switch_wal",
        "pg_create_restore_point",
        "pg_backup_start",
        "pg_backup_stop",
        "pg_wal_replay_pause",
        "pg_wal_replay_resume",
        "pg_logical_emit_message",
        "pg_import_system_collations",
        "pg_nextoid",
        "pg_log_backend_memory_contexts",
        "pg_extension_config_dump",
        "pg_stop_making_pinned_objects",
        "currtid2",
        "pg_stat_reset",
        "pg_stat_reset_shared",
        "http_get",
    ];
    const PREFIXES: [&str; 8] = [
        "dblink",
        "binary_upgrade_",
        "pg_replication_",
        "pg_create_logical_",
        "pg_create_physical_",
        "pg_copy_",
        "pg_drop_replication_",
        "pg_logical_slot_",
    ];
    let is_outside = NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    is_outside.then(|| {
        Refusal::new(
            INSUFFICIENT_PRIVILEGE,
            45,
            format!("{name}() reaches outside the database, where servers differ"),
            "Connect to one database node for its administration.",
        )
    })
}

fn session_bound(name: &str) -> Option<Refusal> {
    const ADVISORY: [&str; 7] = [
        "pg_advisory_lock",
        "pg_advisory_lock_shared",
        "pg_try_advisory_lock",
        "pg_try_advisory_lock_shared",
        "pg_advisory_unlock",
        "pg_advisory_unlock_shared",
        "pg_advisory_unlock_all",
    ];
    if ADVISORY.contains(&name) {
        return Some(Refusal::new(
            NOT_SUPPORTED,
            36,
            format!(
                "{name}() is not supported inside of other queries and functions, nor of computed keys: no database node holds the advisory locks of sessions"
            ),
            format!("Call it by itself, of numbers or parameters: SELECT {name}(...)."),
        ));
    }
    // Answered by the proxy where it stands alone: the servers know of no channel.
    ["pg_listening_channels", "pg_notification_queue_usage"]
        .contains(&name)
        .then(|| {
            Refusal::new(
                NOT_SUPPORTED,
                37,
                format!("{name}() is not supported inside of other queries: no database node knows it"),
                "Run SELECT pg_listening_channels() by itself.",
            )
        })
}

fn word(pass: &Pass<'_>, purpose: Purpose) -> Option<Refusal> {
    let name = pass.name(0)?;
    match name.as_ref() {
        "tablesample" if pass.token(0)?.kind == TokenKind::Word && !pass.is_punctuation(-1, b'.') => {
            Some(Refusal::new(
                FEATURE_NOT_SUPPORTED,
                43,
                "TABLESAMPLE depends on where each server stores its rows",
                "Select rows by a hash of their key instead.",
            ))
        }
        "ctid" | "xmin" | "xmax" | "cmin" | "cmax" | "tableoid" if purpose == Purpose::Write && !is_xmax_test(pass) => {
            let rule = if matches!(name.as_ref(), "ctid" | "tableoid") {
                12
            } else {
                11
            };
            Some(Refusal::new(
                FEATURE_NOT_SUPPORTED,
                rule,
                format!("system column {name} differs on every server: a statement that writes cannot use it"),
                "Use the primary key.",
            ))
        }
        "alter" if purpose != Purpose::Read && is_role_setting(pass) => Some(Refusal::new(
            FEATURE_NOT_SUPPORTED,
            33,
            "settings of a role or database are not supported: connections that are open already would not have them",
            "Use SET in the session, or the options of the connection string.",
        )),
        "exit_on_error" | "gin_fuzzy_search_limit" | "idle_session_timeout"
            if purpose != Purpose::Read && ["set", "local", "session"].iter().any(|word| pass.is_word(-1, word)) =>
        {
            Some(Refusal::new(
                CANNOT_CHANGE_PARAMETER,
                33,
                format!("parameter \"{name}\" is pinned on every database node"),
                "Leave it at its default.",
            ))
        }
        "cloudbft" if is_intrusion(pass, purpose) => Some(Refusal::new(
            INSUFFICIENT_PRIVILEGE,
            0,
            "schema cloudbft belongs to the middleware",
            "Leave it alone.",
        )),
        _ => None,
    }
}

/// `ALTER ROLE | USER | DATABASE ... SET ...`, to the end of the statement.
fn is_role_setting(pass: &Pass<'_>) -> bool {
    let is_role = ["role", "user", "database"].iter().any(|word| pass.is_word(1, word));
    let rest = pass.tokens.get(pass.at..).unwrap_or_default();
    let mut own = rest.iter().take_while(|token| !token.is_punctuation(b';'));
    is_role && own.any(|token| token.is_word(pass.text, "set"))
}

/// The refusal of a function's body that is written with escapes.
pub(super) fn escaped_body() -> Refusal {
    Refusal::new(
        FEATURE_NOT_SUPPORTED,
        25,
        "the body of a function or of DO cannot be a string with backslash escapes",
        "Write it in dollar quotes: $$ ... $$.",
    )
}

/// `xmax = 0`: whether ON CONFLICT inserted; the same on every server.
fn is_xmax_test(pass: &Pass<'_>) -> bool {
    pass.is_word(0, "xmax")
        && (pass.is_operator(1, "=") || pass.is_operator(1, "<>"))
        && pass.token(2).is_some_and(|token| token.source(pass.text) == "0")
}

/// Whether something else of schema `cloudbft` is named than the functions for applications. Reading its tables is
/// left to the privileges of the database.
fn is_intrusion(pass: &Pass<'_>, purpose: Purpose) -> bool {
    let is_schema = (pass.is_punctuation(1, b'.') && !pass.is_punctuation(-1, b'.')) || pass.is_word(-1, "schema");
    let is_call = pass.is_punctuation(1, b'.') && pass.is_punctuation(3, b'(');
    let is_own =
        pass.is_punctuation(1, b'.') && pass.name(2).is_some_and(|name| OWN_FUNCTIONS.contains(&name.as_ref()));
    is_schema && !is_own && (is_call || purpose != Purpose::Read)
}

/// `U&"..."` can spell any name so that it is not recognised.
fn escaped_identifier() -> Refusal {
    Refusal::new(
        FEATURE_NOT_SUPPORTED,
        50,
        "identifiers with Unicode escapes are not supported",
        "Write the identifier in UTF-8, in double quotes.",
    )
}
