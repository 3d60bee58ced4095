//! Connections. The kit speaks Postgres wire without TLS.

use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

use crate::Error;

/// How long to wait for a server that does not answer, unless the connection string says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects; the connection's own task ends when the client is dropped.
pub(crate) async fn connect(dsn: &str) -> Result<Client, Error> {
    let mut config: Config = dsn.parse()?;
    if config.get_application_name().is_none() {
        config.application_name("tpcc");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        // The client reports the same failure to whoever sends the next statement.
        let _ = connection.await;
    });
    Ok(client)
}
