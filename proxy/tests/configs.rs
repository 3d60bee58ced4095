//! Settings that are changed by a query, and statements of SQL's PREPARE whose columns change.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use support::World;
use support::raw::{Raw, bind, execute, message, parse, query, sync};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, SimpleQueryMessage};

/// The first row of a simple query, as text.
async fn row(client: &Client, text: &str) -> Vec<Option<String>> {
    let messages = client
        .simple_query(text)
        .await
        .unwrap_or_else(|error| panic!("{text}: {error:?}"));
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
        _ => None,
    });
    row.unwrap_or_default()
}

async fn names(client: &Client, text: &str) -> Vec<String> {
    let statement = client.prepare(text).await.unwrap();
    statement
        .columns()
        .iter()
        .map(|column| format!("{} {}", column.name(), column.type_()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_config_is_answered_as_by_postgres() {
    let world = World::start().await;
    let (ours, plain) = (world.connect().await, world.servers[0].connect().await);
    plain.batch_execute("SET jit = off").await.unwrap();
    for text in [
        // What asyncpg asks before it looks at the types of a database.
        "SELECT current_setting('jit') AS cur, set_config('jit', 'off', false) AS new",
        "SELECT set_config('jit', 'false', false)",
        "SELECT set_config('work_mem', '8192', false), current_setting('work_mem')",
        "SELECT current_setting('work_mem') before, pg_catalog.set_config('work_mem', '1MB', false) \"Now\", \
         current_setting('no.such', true)",
        "SELECT set_config('work_mem', NULL, false)",
        "SELECT set_config('request.jwt.claims', '{\"a\": 1}', false), set_config('request.method', 'GET', false)",
        "SELECT current_setting('request.jwt.claims'), set_config('Search_Path', 'public', false)",
        "SELECT set_config('application_name', 'x', false), current_setting('application_name')",
        "SELECT set_config('statement_timeout', '90 s', false), current_setting('statement_timeout')",
        "SELECT set_config('statement_timeout', '0', false)",
        "SELECT set_config('request.local', 'x', true)",
        "SELECT current_setting('request.method', true), set_config('a.b', CAST('y' AS text), 'false')",
        "SELECT set_config('transaction_isolation', 'read committed', true)",
    ] {
        assert_eq!(row(&ours, text).await, row(&plain, text).await, "{text}");
        assert_eq!(names(&ours, text).await, names(&plain, text).await, "{text}");
    }
    for text in [
        "SELECT set_config(NULL, 'x', false), 'x'",
        "SELECT set_config('no_such_setting', 'x', false), set_config('a.b', 'c', false)",
        "SELECT set_config('work_mem', 'much', false), set_config('a.b', 'c', false)",
        "SELECT set_config('a.b', 'c', false), current_setting('no.such')",
    ] {
        let (ours, plain) = (ours.simple_query(text).await, plain.simple_query(text).await);
        let code = |outcome: Result<Vec<SimpleQueryMessage>, tokio_postgres::Error>| {
            outcome.map(|_| ()).unwrap_err().code().unwrap().code().to_owned()
        };
        match text.contains("'x'") && text.contains("NULL") {
            // Not such a list: refused as before.
            true => assert_eq!(code(ours), "BF004"),
            false => assert_eq!(code(ours), code(plain), "{text}"),
        }
    }
    // Pinned as for SET, also when the value comes as a parameter.
    let error = ours
        .simple_query("SELECT set_config('jit', 'on', false)")
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "55P02");
    let error = ours
        .query_one("SELECT set_config('jit', $1, false)", &[&"on"])
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "55P02");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_config_takes_parameters() {
    let world = World::start().await;
    let mut client = world.connect().await;
    let text = "select set_config('request.jwt.claims', $1, true), set_config($2, $3, $4)";
    let parameters: [&(dyn ToSql + Sync); 4] = [&"{\"sub\": \"ada's\"}", &"Request.Path", &"/items", &false];
    let transaction = client.transaction().await.unwrap();
    let statement = transaction.prepare(text).await.unwrap();
    let types: Vec<&str> = statement.params().iter().map(|of| of.name()).collect();
    assert_eq!(types, ["text", "text", "text", "bool"]);
    let answer = transaction.query_one(&statement, &parameters).await.unwrap();
    assert_eq!((answer.get(0), answer.get(1)), ("{\"sub\": \"ada's\"}", "/items"));
    let seen = "SELECT current_setting('request.jwt.claims', true) || current_setting('request.path', true)";
    let both = transaction.query_one(seen, &[]).await.unwrap();
    assert_eq!(both.get::<_, Option<&str>>(0), Some("{\"sub\": \"ada's\"}/items"));
    transaction.commit().await.unwrap();
    let left = "SELECT coalesce(current_setting('request.jwt.claims', true), '') || coalesce(current_setting('request.path', true), '')";
    assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, &str>(0), "/items");
    // A NULL takes the setting back to its default.
    client
        .query_one("SELECT set_config('request.path', $1, false)", &[&None::<&str>])
        .await
        .unwrap();
    assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, &str>(0), "");
    // What is rolled back is undone.
    let transaction = client.transaction().await.unwrap();
    transaction.query_one(text, &parameters).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, &str>(0), "");
    // By SQL's PREPARE, which a driver's EXECUTE or a simple query runs.
    client
        .batch_execute("PREPARE setter(text) AS SELECT set_config('request.path', $1, false)")
        .await
        .unwrap();
    assert_eq!(
        row(&client, "EXECUTE setter('/prepared')").await,
        [Some("/prepared".to_owned())]
    );
    assert_eq!(
        client.query_one(left, &[]).await.unwrap().get::<_, &str>(0),
        "/prepared"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_of_set_config_that_do_not_fit_are_errors() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    let text = "SELECT set_config('a.b', $1, $2)";
    let steps = |parameters: &[&str]| [parse("", text), bind("", "", parameters), execute("", 0), sync()].concat();
    assert_eq!(raw.tags(&steps(&["x", "true"])).await, "12DCZ");
    assert_eq!(raw.tags(&steps(&["x", "maybe"])).await, "12EZ");
    assert_eq!(raw.tags(&steps(&["x"])).await, "1EZ");
    let large = "x".repeat(300 << 10);
    assert_eq!(raw.tags(&steps(&[&large, "true"])).await, "1EZ");
    // Portals that nobody executes keep little.
    let value = "x".repeat(200 << 10);
    let mut bytes = parse("s", text);
    for portal in 0..8 {
        bytes.extend(bind(&format!("p{portal}"), "s", &[&value, "true"]));
    }
    bytes.extend(sync());
    assert_eq!(raw.tags(&bytes).await, "122222EZ");
    // There are no parameters in a simple query.
    assert_eq!(raw.tags(&query(text)).await, "EZ");
    let binary = [
        b"\0\0\0\x01\0\x01\0\x02\0\0\0\x01x\0\0\0\x01\x02\0\0".as_slice(),
        b"\0\0\0\x01\0\x01\0\x02\0\0\0\x01x\0\0\0\x02\x02\x02\0\0",
    ];
    for (body, expected) in binary.into_iter().zip(["12DCZ", "12EZ"]) {
        let bytes = [parse("", text), message(b'B', body), execute("", 0), sync()].concat();
        assert_eq!(raw.tags(&bytes).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_of_prepare_keeps_its_columns_or_fails() {
    let world = World::start().await;
    let client = world.connect().await;
    client
        .batch_execute(
            "CREATE TABLE t (k int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one');
             PREPARE everything AS SELECT * FROM t;
             PREPARE one(int) AS SELECT * FROM t WHERE k = $1;
             PREPARE named AS SELECT k FROM t",
        )
        .await
        .unwrap();
    assert_eq!(row(&client, "EXECUTE everything").await.len(), 2);
    assert_eq!(row(&client, "EXECUTE one(1)").await.len(), 2);
    client.batch_execute("ALTER TABLE t ADD COLUMN w int").await.unwrap();
    for text in ["EXECUTE everything", "EXECUTE one(1)"] {
        let error = client.simple_query(text).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(
            (error.code().code(), error.message(), error.routine()),
            (
                "0A000",
                "cached plan must not change result type",
                Some("RevalidateCachedQuery")
            ),
            "{text}"
        );
        let error = client.prepare(text).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "0A000");
    }
    assert_eq!(row(&client, "EXECUTE named").await.len(), 1);
    client
        .batch_execute("DEALLOCATE everything; PREPARE everything AS SELECT * FROM t")
        .await
        .unwrap();
    assert_eq!(row(&client, "EXECUTE everything").await.len(), 3);
    // What cannot run is found by PREPARE, with declared types too.
    for text in [
        "PREPARE wrong AS SELECT no_such FROM t",
        "PREPARE wrong(int) AS SELECT no_such FROM t WHERE k = $1",
    ] {
        client.batch_execute(text).await.unwrap_err();
    }
}
