//! What a voter itself runs in the application's transactions.
//!
//! Nothing of it is named: code of applications can define and drop prepared statements, and would otherwise put its own
//! in their place. All of it is simple Queries; what has secret arguments is a call of a function
//! ([`crate::postgres::functions`]).

/// READ COMMITTED, for SERIALIZABLE too: locks make it so.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// REPEATABLE READ with its snapshot.
pub(super) const BEGIN_REPEATABLE: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; SELECT 1";

/// READ ONLY with its snapshot.
pub(super) const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1";

/// For what has locked nothing exclusively, and so must write nothing.
pub(super) const BEGIN_READ_ONLY: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";

pub(super) const COMMIT: &str = "COMMIT";

pub(super) const ROLLBACK: &str = "ROLLBACK";

/// Before a read that is not known to be harmless: it cannot write.
pub(super) const GUARD: &str = "SAVEPOINT cloudbft_guard; SET LOCAL transaction_read_only = on";

/// After such a read.
pub(super) const UNGUARD: &str = "ROLLBACK TO SAVEPOINT cloudbft_guard; RELEASE SAVEPOINT cloudbft_guard";

/// What would run at COMMIT runs now.
pub(super) const CONSTRAINTS: &str = "SET CONSTRAINTS ALL IMMEDIATE";

/// A cursor runs code when it is closed by COMMIT.
pub(super) const CLOSE_ALL: &str = "CLOSE ALL";

/// How much higher [`Functions::command`](crate::postgres::functions::Functions::command) answers the next time when nothing
/// has written between: what it writes and deletes itself.
pub(super) const COMMANDS_OF_ITS_OWN: u64 = 2;

/// No later transaction on this backend sees `currval` of an earlier one.
pub(super) const DISCARD_SEQUENCES: &str = "DISCARD SEQUENCES";

/// What was committed does not get lost with the server, so that it is not run again.
pub(super) const DURABLE: &str = "SET LOCAL synchronous_commit = on";

/// Code that is not ours can set limits; none may end a statement of the voter's own. The voter itself sets none.
pub(super) const UNLIMITED: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; \
    SET LOCAL idle_in_transaction_session_timeout = 0";

/// Puts a schema of temporary objects at the beginning of the transaction's search path, unless it is there.
pub(super) fn path_first(schema: &str) -> String {
    let schema = super::settings::literal(schema);
    format!(
        "SELECT pg_catalog.set_config('search_path', CASE WHEN pg_catalog.starts_with(p.path, {schema}) THEN p.path \
         WHEN p.path OPERATOR(pg_catalog.=) '' THEN {schema} ELSE pg_catalog.concat({schema}, ', ', p.path) END, true) \
         FROM (SELECT pg_catalog.current_setting('search_path')) AS p (path)"
    )
}

/// Sets again, for the rest of the transaction, what tells how texts are read and which tables names mean.
pub(super) fn meaning(settings: &[(String, String)]) -> String {
    let value = |wanted: &str, default: &str| {
        let found = settings.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        super::settings::literal(found.map_or(default, |(_, value)| value))
    };
    let (path, role) = (value("search_path", "\"$user\", public"), value("role", "none"));
    format!(
        "SET LOCAL standard_conforming_strings = on; SELECT pg_catalog.set_config('role', {role}, true), \
         pg_catalog.set_config('search_path', {path}, true)"
    )
}
