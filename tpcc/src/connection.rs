//! Connections. The kit speaks Postgres wire without TLS.

use tokio_postgres::{Client, Config, NoTls};

use crate::Error;

/// Connects; the connection's own task ends when the client is dropped.
pub(crate) async fn connect(dsn: &str) -> Result<Client, Error> {
    let mut config: Config = dsn.parse()?;
    if config.get_application_name().is_none() {
        config.application_name("tpcc");
    }
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        // The client reports the same failure to whoever sends the next statement.
        let _ = connection.await;
    });
    Ok(client)
}
