//! What can stop the kit as a whole. Errors of single transactions are counted in the report instead.

use std::path::PathBuf;

/// Why a load, a run or a check could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused a statement, or the connection failed.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// A file (ledger or JSON report) could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file in question.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file holds something that is not ours.
    #[error("{}, line {line}: {source}", path.display())]
    Malformed {
        /// The file in question.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A report could not be turned into JSON.
    #[error("report as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The database does not hold what `load` makes.
    #[error("{0}")]
    Database(String),
    /// Options that cannot be served.
    #[error("{0}")]
    Options(String),
    /// A task of the kit ended by itself: a defect of the kit.
    #[error("a task of the kit failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The whole of what the server said, with SQLSTATE, detail and hint.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    let Some(refusal) = error.as_db_error() else {
        return match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
    };
    let mut text = format!(
        "{} {}: {}",
        refusal.severity(),
        refusal.code().code(),
        refusal.message()
    );
    if let Some(detail) = refusal.detail() {
        text.push_str(&format!(" Detail: {detail}"));
    }
    if let Some(hint) = refusal.hint() {
        text.push_str(&format!(" Hint: {hint}"));
    }
    text
}
