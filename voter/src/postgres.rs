//! The voter's side of PostgreSQL: the raw backend protocol over a Unix socket, pooled backends, bookkeeping.
//!
//! The server is not trusted to keep to the protocol: sizes are checked, and an unexpected message ends the connection.

pub mod backend;
pub mod bootstrap;
pub mod capture;
pub mod catalog;
pub mod connection;
pub mod functions;
pub mod notified;
pub mod object_numbers;
pub mod pool;
pub mod prepared;
pub mod script;
pub mod settings;
pub mod written;

/// Why a backend cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The socket failed or was closed.
    #[error("the connection to the database server is lost: {0}")]
    Lost(#[from] std::io::Error),
    /// The server broke the protocol.
    #[error("the database server broke the protocol: {0}")]
    Protocol(String),
    /// The server refused something of the voter's own.
    #[error("the database server answered {sqlstate}: {message}")]
    Server {
        /// SQLSTATE.
        sqlstate: String,
        /// The primary message.
        message: String,
    },
    /// The server is not one that the voter may serve.
    #[error("the database server is not fit to serve: {0}")]
    Unfit(String),
    /// The database has changed something else than f+1 others have.
    #[error(
        "its database has changed something else than f+1 others have at order {order} ({shown}): it has to be repaired"
    )]
    Diverged {
        /// The order.
        order: u64,
        /// What it had changed.
        shown: String,
    },
    /// The database answers otherwise than f+1 voters have certified.
    #[error("its database answers otherwise than f+1 voters have certified at order {0}: it has to be repaired")]
    Contradicts(u64),
}

impl PostgresError {
    /// A protocol violation.
    pub fn protocol(what: impl Into<String>) -> Self {
        PostgresError::Protocol(what.into())
    }
}
