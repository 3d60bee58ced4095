//! Drivers that applications use, unchanged.

use std::process::Command;

use tests::cluster::{Cluster, text};
use tokio_postgres::NoTls;

#[test]
fn psycopg_runs_a_transaction_with_prepared_statements_and_binary_parameters() {
    runs_in_python(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/psycopg_transaction.py"));
}

#[test]
fn asyncpg_runs_a_transaction_with_prepared_statements_and_binary_parameters() {
    runs_in_python(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/asyncpg_transaction.py"));
}

fn runs_in_python(script: &str) {
    let cluster = Cluster::up(&[]);
    let output = Command::new("/usr/bin/python3")
        .args([script, cluster.dsn()])
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", text(&output));
    cluster.assert_equal();
}

#[test]
fn tokio_postgres_runs_a_transaction_with_prepared_statements_and_binary_parameters() {
    let cluster = Cluster::up(&[]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(transaction(cluster.dsn()));
    cluster.assert_equal();
}

async fn transaction(dsn: &str) {
    let (mut client, connection) = tokio_postgres::connect(dsn, NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
        .batch_execute("CREATE TABLE item_sold (id int8 PRIMARY KEY, what text, count int4)")
        .await
        .expect("DDL");
    let insert = client
        .prepare("INSERT INTO item_sold VALUES ($1, $2, $3)")
        .await
        .expect("prepares");
    let transaction = client.transaction().await.expect("begins");
    for id in 0..20_i64 {
        transaction
            .execute(&insert, &[&id, &format!("thing {id}"), &7_i32])
            .await
            .expect("inserts");
    }
    let portal = transaction
        .bind("SELECT id FROM item_sold ORDER BY id", &[])
        .await
        .expect("binds");
    let first = transaction.query_portal(&portal, 12).await.expect("the first rows");
    let rest = transaction.query_portal(&portal, 0).await.expect("the other rows");
    assert_eq!((first.len(), rest.len()), (12, 8));
    transaction.commit().await.expect("commits");

    let row = client
        .query_one("SELECT sum(count), max(what) FROM item_sold WHERE id >= $1", &[&10_i64])
        .await;
    let row = row.expect("reads");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (70, "thing 19"));

    let transaction = client.transaction().await.expect("begins");
    let error = transaction
        .execute(&insert, &[&3_i64, &"again", &1_i32])
        .await
        .expect_err("a duplicate key");
    assert_eq!(error.code().map(|code| code.code()), Some("23505"));
    let error = transaction
        .query_one("SELECT 1", &[])
        .await
        .expect_err("a failed transaction");
    assert_eq!(error.code().map(|code| code.code()), Some("25P02"));
    transaction.rollback().await.expect("rolls back");
    assert_eq!(
        client
            .query_one("SELECT count(*) FROM item_sold", &[])
            .await
            .expect("reads")
            .get::<_, i64>(0),
        20
    );
}
