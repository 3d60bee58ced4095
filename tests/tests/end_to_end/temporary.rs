//! Temporary tables while machines, the proxy and applications die (rule TemporaryTables).

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, text};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long something may take that needs a second or two.
const WITHIN: Duration = Duration::from_secs(60);

/// Sessions whose objects lie on a server.
const LEFT: &str = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pg\\_cloudbft\\_temp\\_%'";

async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
}

async fn run(client: &Client, statements: &str) {
    let ran = client.batch_execute(statements).await;
    ran.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}

async fn one(client: &Client, query: &str) -> String {
    let messages = client.simple_query(query).await.expect(query);
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.expect("a row").to_owned()
}

/// Waits until so many sessions have objects on every server.
fn wait_left(cluster: &Cluster, sessions: &str) {
    let deadline = Instant::now() + WITHIN;
    for machine in ["m1", "m2", "m3"] {
        while cluster.behind_the_back(machine, LEFT).trim() != sessions {
            let left = cluster.behind_the_back(machine, LEFT);
            assert!(Instant::now() < deadline, "{machine} has {left} instead of {sessions}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn temporary_tables_survive_machines_and_go_with_their_session() {
    let cluster = Cluster::up(&[]);
    cluster.psql("CREATE TABLE kept (id int PRIMARY KEY, v text); INSERT INTO kept VALUES (1, 'permanent');");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = runtime.block_on(async {
        let client = connect(cluster.dsn()).await;
        run(&client, "CREATE TEMP TABLE kept AS SELECT 1 AS id, 'mine' AS v").await;
        run(&client, "CREATE TEMP TABLE counted (n serial PRIMARY KEY, v text)").await;
        run(&client, "CREATE TEMP TABLE emptied (a int) ON COMMIT DELETE ROWS").await;
        client
    });
    let mut expected = 0;
    let mut go_on = |what: &str| {
        expected += 2;
        runtime.block_on(async {
            run(&client, "INSERT INTO counted (v) VALUES ('x')").await;
            run(
                &client,
                "BEGIN; INSERT INTO counted (v) VALUES ('y'); INSERT INTO emptied VALUES (1); COMMIT",
            )
            .await;
            assert_eq!(
                one(&client, "SELECT count(*) FROM counted").await,
                expected.to_string(),
                "{what}"
            );
            assert_eq!(one(&client, "SELECT count(*) FROM emptied").await, "0", "{what}");
            assert_eq!(one(&client, "SELECT v FROM kept").await, "mine", "{what}");
        });
        cluster.wait_all_up(WITHIN);
        cluster.assert_equal();
    };
    go_on("at first");
    cluster.kill_node("m1");
    go_on("without the node of m1");
    cluster.kill_postgres("m2");
    go_on("without the server of m2");
    let output = cluster.command_on_directory("repair", &["--machine", "m3"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    go_on("after a repair of m3");
    // Others see nothing of it, and pg_dump leaves it out.
    assert_eq!(cluster.psql("SELECT v FROM kept;"), "permanent\n");
    let dump = Command::new("pg_dump")
        .args(["-N", "cloudbft", cluster.dsn()])
        .output()
        .expect("pg_dump runs");
    assert!(dump.status.success(), "{}", text(&dump));
    assert!(
        text(&dump).contains("public.kept") && !text(&dump).contains("counted"),
        "{}",
        text(&dump)
    );
    wait_left(&cluster, "1");

    cluster.kill_proxy();
    wait_left(&cluster, "0");
    cluster.wait_all_up(WITHIN);
    cluster.assert_equal();
    let gone = runtime.block_on(client.simple_query("SELECT 1"));
    assert!(gone.is_err(), "its session ended with the proxy");
    assert_eq!(cluster.psql("SELECT v FROM kept;"), "permanent\n");
}

#[test]
fn the_temporary_tables_of_an_application_that_was_killed_are_dropped() {
    let cluster = Cluster::up(&[]);
    let mut psql = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", cluster.dsn()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("psql runs");
    let mut input = psql.stdin.take().expect("its input");
    // One table is committed, and a transaction with another is open.
    input
        .write_all(b"CREATE TEMP TABLE one AS SELECT 1 AS a;\nBEGIN; CREATE TEMP TABLE two (a int);\nINSERT INTO two VALUES (1);\n")
        .and_then(|()| input.flush())
        .expect("written");
    wait_left(&cluster, "1");
    std::thread::sleep(Duration::from_millis(500));
    psql.kill().expect("SIGKILL");
    psql.wait().expect("reaped");
    wait_left(&cluster, "0");
    cluster.psql("CREATE TABLE after (a int);");
    cluster.assert_equal();
}
