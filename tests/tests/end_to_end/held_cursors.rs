//! Cursors WITH HOLD through a whole cluster (decision 0055): by drivers, by psql, and while machines die.

use std::process::Command;
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, text};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const WITHIN: Duration = Duration::from_secs(60);

async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
}

/// The first columns of the rows that a text returns.
async fn rows(client: &Client, text: &str) -> Vec<String> {
    let messages = client.simple_query(text).await.expect(text);
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    rows.collect()
}

#[test]
fn psycopg_and_psql_use_cursors_that_outlive_their_transactions() {
    let cluster = Cluster::up(&[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/psycopg_held_cursors.py");
    let output = Command::new("/usr/bin/python3")
        .args([script, cluster.dsn()])
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", text(&output));
    let printed = cluster.psql(
        "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT g FROM generate_series(1, 5) g ORDER BY g; MOVE 2 IN c; COMMIT;\n\
         FETCH 2 FROM c;\nFETCH BACKWARD ALL FROM c;\nCLOSE c;",
    );
    let numbers: Vec<_> = printed
        .split_whitespace()
        .filter(|word| word.parse::<u8>().is_ok())
        .collect();
    assert_eq!(numbers.join(" "), "3 4 3 2 1", "{printed}");
    cluster.assert_equal();
}

/// A machine dies between the DECLARE and the COMMIT, and another one after it: the cursor gives its rows all the same.
#[test]
fn a_held_cursor_survives_machines() {
    let cluster = Cluster::up(&[]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = connect(cluster.dsn()).await;
        let made = "CREATE TABLE kept (id int PRIMARY KEY, v text);\
                    INSERT INTO kept SELECT g, repeat('v', 100) FROM generate_series(1, 30000) g";
        client.batch_execute(made).await.expect("made");
        client.batch_execute("BEGIN").await.expect("begins");
        rows(
            &client,
            "DECLARE c CURSOR WITH HOLD FOR SELECT id, v FROM kept ORDER BY id",
        )
        .await;
        rows(&client, "INSERT INTO kept VALUES (0, 'with the cursor')").await;
        assert_eq!(rows(&client, "FETCH 2 FROM c").await, ["1", "2"]);
        cluster.kill_node("m2");
        client.batch_execute("COMMIT").await.expect("commits");
        assert_eq!(rows(&client, "FETCH 2 FROM c").await, ["3", "4"]);
        cluster.wait_all_up(WITHIN);
        cluster.kill_postgres("m1");
        let started = Instant::now();
        let fetched = rows(&client, "FETCH ALL FROM c").await;
        assert_eq!(fetched.len(), 30_000 - 4);
        assert_eq!(fetched.last().map(String::as_str), Some("30000"));
        assert!(started.elapsed() < Duration::from_secs(10), "held rows need no machine");
        assert_eq!(rows(&client, "SELECT count(*) FROM kept").await, ["30001"]);
    });
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
}
