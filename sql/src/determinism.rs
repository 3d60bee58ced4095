//! What makes the same statement differ on independent servers, and what is done about it (DESIGN.md section 7).

/// Creates the schema `cloudbft` and its functions: they read the settings `cloudbft.time_us` (microseconds since
/// 1970, UTC) and `cloudbft.seed` (hexadecimal), which a voter sets for a statement that needs the clock.
///
/// Run as superuser; may be run again.
pub const FUNCTIONS_SQL: &str = include_str!("determinism/functions.sql");
