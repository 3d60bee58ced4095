//! The error that an application gets for a statement that cannot run: the same on every voter.

use std::borrow::Cow;
use std::fmt;

/// A statement nondeterministic in a way that cannot be repaired (`docs/determinism.md`).
pub const NONDETERMINISTIC: &str = "BF002";
/// A statement that does not work through the proxy.
pub const NOT_SUPPORTED: &str = "BF004";
/// A feature that Postgres has and a replicated database cannot have.
pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
/// Something that reaches outside the database.
pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// A setting that is pinned on every database node.
pub const CANNOT_CHANGE_PARAMETER: &str = "55P02";
/// What Postgres would not parse either.
pub const SYNTAX_ERROR: &str = "42601";
/// A limit of the middleware.
pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";

/// Why a statement is refused before it runs anywhere: the fields of the ErrorResponse (severity ERROR).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// SQLSTATE, five characters.
    pub sqlstate: &'static str,
    /// The primary message.
    pub message: String,
    /// DETAIL: names the rule (row of `docs/determinism.md`).
    pub detail: String,
    /// HINT: how to rewrite the statement.
    pub hint: Cow<'static, str>,
    /// The rule's number, for metrics; 0 when no row of the table applies.
    pub rule: u8,
}

impl Refusal {
    /// A refusal by rule `rule` of the determinism table.
    pub fn new(
        sqlstate: &'static str,
        rule: u8,
        message: impl Into<String>,
        hint: impl Into<Cow<'static, str>>,
    ) -> Self {
        let detail = match rule {
            0 => String::from("CloudBFT refused the statement before it ran on any database node."),
            rule => format!("CloudBFT determinism rule {rule}: refused before it ran on any database node."),
        };
        Self {
            sqlstate,
            message: message.into(),
            detail,
            hint: hint.into(),
            rule,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.sqlstate, self.message)
    }
}

impl std::error::Error for Refusal {}
