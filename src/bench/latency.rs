//! The latency of single statements: one client, closed loop, autocommit, prepared.

use std::time::{Duration, Instant};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};

use super::Error;

/// Statements before measuring: caches fill, and lazy connections are made.
const WARM_UP_STATEMENTS: u32 = 20;
/// The districts of a warehouse, and as many customers of each as every scale has.
const DISTRICTS: i32 = 10;
const CUSTOMERS: i32 = 300;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OneShot {
    /// One row of one partition is updated, and nothing changed in it.
    Update,
    /// One row is read by its primary key.
    Read,
}

impl OneShot {
    fn text(self) -> &'static str {
        match self {
            Self::Update => "UPDATE warehouse SET w_ytd = w_ytd + 0 WHERE w_id = $1",
            Self::Read => {
                "SELECT c_balance::text, c_data FROM customer WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3"
            }
        }
    }

    async fn run(self, client: &Client, statement: &Statement, turn: i32) -> Result<u64, tokio_postgres::Error> {
        let (district, customer) = (1 + turn % DISTRICTS, 1 + turn.wrapping_mul(7) % CUSTOMERS);
        let by_key: [&(dyn ToSql + Sync); 3] = [&1_i32, &district, &customer];
        match self {
            Self::Update => client.execute(statement, &[&1_i32]).await,
            Self::Read => Ok(client.query(statement, &by_key).await?.len() as u64),
        }
    }
}

/// Runs the statement again and again for `time`; the response times.
pub(crate) async fn closed_loop(dsn: &str, what: OneShot, time: Duration) -> Result<Vec<Duration>, Error> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    // The client reports a failure of the connection to whoever sends the next statement.
    let connection = tokio::spawn(connection);
    let statement = client.prepare(what.text()).await?;
    let mut times = Vec::new();
    let mut begun = Instant::now();
    for turn in 0_u32.. {
        if turn == WARM_UP_STATEMENTS {
            begun = Instant::now();
            times.clear();
        }
        let sent = Instant::now();
        let rows = what.run(&client, &statement, turn.cast_signed() & i32::MAX).await?;
        times.push(sent.elapsed());
        if rows != 1 {
            return Err(Error::Answer(format!(
                "`{}` touched {rows} rows instead of 1",
                what.text()
            )));
        }
        if turn > WARM_UP_STATEMENTS && begun.elapsed() >= time {
            break;
        }
    }
    connection.abort();
    Ok(times)
}
