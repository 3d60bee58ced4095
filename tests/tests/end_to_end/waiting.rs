//! Statements that wait for another session's locks: what ends the wait, and what is left of them.

use std::time::{Duration, Instant};

use tests::cluster::Cluster;
use tokio_postgres::{Client, NoTls};

async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
}

/// How a statement failed, and how long it took.
async fn failure(client: &Client, statement: &str) -> (String, Duration) {
    let started = Instant::now();
    let error = client.batch_execute(statement).await.expect_err(statement);
    let code = error.code().map(|code| code.code().to_owned());
    (code.unwrap_or_default(), started.elapsed())
}

const UPDATE: &str = "UPDATE account SET balance = balance + 1 WHERE id = 1";

/// findings of the review: F4.
#[test]
fn a_short_statement_that_waits_is_taken_back_by_time_limits_and_cancellation() {
    let cluster = Cluster::up(&[]);
    cluster.psql("CREATE TABLE account (id int PRIMARY KEY, balance int); INSERT INTO account VALUES (1, 0);");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(waits_end(cluster.dsn()));
    assert_eq!(cluster.psql("SELECT balance FROM account;"), "102\n");
    cluster.assert_equal();
}

async fn waits_end(dsn: &str) {
    let (holder, waiter) = (connect(dsn).await, connect(dsn).await);
    holder
        .batch_execute("BEGIN; UPDATE account SET balance = balance + 100 WHERE id = 1")
        .await
        .expect("the first update");
    for (limit, expected) in [("statement_timeout", "57014"), ("lock_timeout", "55P03")] {
        let set = |value| format!("SET {limit} = '{value}'");
        waiter.batch_execute(&set("1s")).await.expect("sets");
        let (code, took) = failure(&waiter, UPDATE).await;
        assert_eq!(code, expected, "{limit}");
        assert!(
            took > Duration::from_millis(900) && took < Duration::from_secs(4),
            "{took:?}"
        );
        waiter.batch_execute(&set("0")).await.expect("sets");
    }
    let token = waiter.cancel_token();
    let cancelling = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        token.cancel_query(NoTls).await.expect("a cancel request");
    };
    let ((code, took), ()) = tokio::join!(failure(&waiter, UPDATE), cancelling);
    assert_eq!(code, "57014");
    assert!(took < Duration::from_secs(4), "{took:?}");
    let waiting = async {
        waiter
            .batch_execute(UPDATE)
            .await
            .expect("an update that gets its turn")
    };
    let committing = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        holder.batch_execute("COMMIT").await.expect("a commit");
    };
    tokio::join!(waiting, committing);
    waiter.batch_execute(UPDATE).await.expect("another update");
}
