//! Parameters whose declared type is not that of the column beside them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use support::World;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// What a statement with one float8 parameter does, and what the row is afterwards.
async fn outcome(client: &Client, text: &str, value: f64) -> String {
    let statement = match client.prepare_typed(text, &[Type::FLOAT8]).await {
        Ok(statement) => statement,
        Err(error) => {
            return format!(
                "prepare: {:?}",
                error.as_db_error().map(|error| error.message().to_owned())
            );
        }
    };
    let ran = match client.query(&statement, &[&value]).await {
        Ok(rows) => format!("{} rows", rows.len()),
        Err(error) => format!(
            "{:?}",
            error.as_db_error().map(|error| (
                error.code().code().to_owned(),
                error.message().to_owned(),
                error.hint().map(str::to_owned)
            ))
        ),
    };
    let rows = client
        .query(
            "SELECT k::text, n::text, i::text FROM t UNION ALL \
        SELECT w_id::text, w_ytd::text, '' FROM warehouse ORDER BY 1, 2",
            &[],
        )
        .await
        .unwrap();
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            (0..3)
                .map(|at| row.get::<_, Option<String>>(at).unwrap_or_default())
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    format!("{ran}: {}", rows.join(", "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_float_parameter_beside_a_numeric_column_is_as_in_postgres() {
    let world = World::start_voters().await;
    let setup = "CREATE TABLE t (k numeric PRIMARY KEY, n numeric, i int); INSERT INTO t VALUES (1, 1.10, 1), (2, 2.20, 2); \
                 CREATE TABLE warehouse (w_id int PRIMARY KEY, w_ytd numeric(12,2)); INSERT INTO warehouse VALUES (1, 1), (2, 2)";
    let ours = world.connect().await;
    let plain_server = support::Postgres::start();
    let plain = plain_server.connect().await;
    ours.batch_execute(setup).await.unwrap();
    plain.batch_execute(setup).await.unwrap();
    for (text, value) in [
        ("UPDATE t SET n = n + $1", 0.3),
        ("UPDATE t SET n = n + $1 WHERE k = 1", 1e20),
        ("UPDATE t SET n = $1 WHERE k = 2", 0.1),
        ("UPDATE t SET n = n + 1 WHERE k = $1", 2.0),
        ("UPDATE t SET i = i + $1 WHERE k = $1", 1.0),
        ("SELECT n FROM t WHERE k = $1", 1.0),
        ("SELECT n FROM t WHERE n > $1 ORDER BY k", 2.0),
        ("DELETE FROM t WHERE k = $1", 3.0),
        ("INSERT INTO t VALUES ($1, $1, $1)", 7.5),
        // Of a table that is divided by this column.
        ("UPDATE warehouse SET w_ytd = w_ytd + $1 WHERE w_id = $1", 2.0),
        ("UPDATE warehouse SET w_ytd = w_ytd + $1 WHERE w_id = 1", 2.005),
        ("INSERT INTO warehouse VALUES ($1, $1)", 3.5),
        ("SELECT w_ytd FROM warehouse WHERE w_id = $1", 2.0),
        ("SELECT w_ytd FROM warehouse WHERE w_id = $1", 2.5),
        ("UPDATE t SET n = n / $1", 0.0),
        ("UPDATE t SET n = round(n * $1, 2)", 1.5),
    ] {
        assert_eq!(
            outcome(&ours, text, value).await,
            outcome(&plain, text, value).await,
            "{text}"
        );
        println!("{text}: ok");
    }
}
