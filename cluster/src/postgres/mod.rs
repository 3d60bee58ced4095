//! The PostgreSQL servers that `cloudbft up` owns: one per machine, reached over a Unix socket only.

mod binaries;
mod server;

use std::path::PathBuf;

pub use binaries::Binaries;
pub use server::{DatabaseServer, ServerOptions};

/// The superuser of the servers that `up` makes; voters keep their books with it.
pub const SUPERUSER: &str = "cloudbft_admin";

/// Why a database server cannot be managed.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// There is no PostgreSQL.
    #[error("no PostgreSQL 15 or newer found in /usr/lib/postgresql/*/bin or PATH: install the package `postgresql`")]
    NotFound,
    /// PostgreSQL refuses to run as root, and there is nobody else to run it as.
    #[error("PostgreSQL refuses to run as root and there is no user `postgres`: run cloudbft as another user")]
    NoUser,
    /// A file or process operation failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A program of PostgreSQL failed.
    #[error("{program} failed: {message}")]
    Program {
        /// The program.
        program: String,
        /// The end of what it said.
        message: String,
    },
    /// The server does not come up.
    #[error("the database server in {directory} is not ready; the end of {log} is:\n{last}")]
    NotReady {
        /// The data directory.
        directory: PathBuf,
        /// The server's log.
        log: PathBuf,
        /// Its last lines.
        last: String,
    },
    /// SQL that sets the database up failed.
    #[error("setting up the database failed: {0}")]
    Setup(#[from] tokio_postgres::Error),
}

impl PostgresError {
    fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> PostgresError {
        let what = what.into();
        move |source| PostgresError::System { what, source }
    }
}

#[cfg(test)]
mod tests;
