//! Temporary tables, views and sequences, on three real voters with a server each (rule TemporaryTables).
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::Duration;

use tokio_postgres::{Client, SimpleQueryMessage};

use support::World;

/// Objects of sessions that lie on the servers, with what the voters keep of them.
const LEFT: &str = "select count(*)::text || ' ' || (select count(*) from cloudbft.temporary) || ' ' \
    || (select count(*) from cloudbft.sequence where name like 'pg\\_cloudbft%') \
    from pg_namespace where nspname like 'pg\\_cloudbft\\_temp\\_%'";

/// The rows of a text's last statement, columns by `|`, or its SQLSTATE with its message.
async fn ask(client: &Client, text: &str) -> String {
    match client.simple_query(text).await {
        Ok(messages) => {
            let mut rows = Vec::new();
            for message in &messages {
                match message {
                    SimpleQueryMessage::Row(row) => {
                        let fields = (0..row.len()).map(|at| row.get(at).unwrap_or("null"));
                        rows.push(fields.collect::<Vec<_>>().join("|"));
                    }
                    SimpleQueryMessage::RowDescription(_) => rows.clear(),
                    _ => {}
                }
            }
            rows.join(" ")
        }
        Err(error) => match error.as_db_error() {
            Some(error) => {
                let message = error.message();
                let schema = message
                    .find("pg_cloudbft_temp_")
                    .filter(|_| message.ends_with(|last: char| last.is_ascii_digit()));
                let message = schema.map_or(message.to_owned(), |at| format!("{}SCHEMA", &message[..at]));
                format!("{} {message}", error.code().code())
            }
            None => format!("{error}"),
        },
    }
}

async fn check(client: &Client, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(ask(client, text).await, *expected, "{text}");
    }
}

/// Waits until nothing of any session is left on any server.
async fn nothing_left(world: &World) {
    for _ in 0..200 {
        let mut left = Vec::new();
        for server in &world.servers {
            let row = server.supervise().await.query_one(LEFT, &[]).await.unwrap();
            left.push(row.get::<_, String>(0));
        }
        if left.iter().all(|left| left == "0 0 0") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("temporary objects are left");
}

/// What is acknowledged is seen by the next read, which is not ordered: also what the voters have to read of the catalog first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_read_after_the_first_temporary_table_sees_it() {
    let world = World::start_voters().await;
    let permanent = world.connect().await;
    let made = "CREATE TABLE shadowed (v text); INSERT INTO shadowed VALUES ('permanent')";
    permanent.batch_execute(made).await.unwrap();
    for _ in 0..10 {
        let client = world.connect().await;
        let cases = [
            ("CREATE TEMP TABLE shadowed AS SELECT 'temporary' AS v", ""),
            ("SELECT v FROM shadowed", "temporary"),
            ("DROP TABLE shadowed", ""),
            ("SELECT v FROM shadowed", "permanent"),
        ];
        check(&client, &cases).await;
    }
}

/// COMMIT looks at deferred constraints before it empties tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_after_deferred_constraints() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    let cases = [
        (
            "CREATE TEMP TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1)",
            "",
        ),
        (
            "CREATE TEMP TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED) ON COMMIT DELETE ROWS",
            "",
        ),
        ("INSERT INTO child VALUES (1)", ""),
        ("BEGIN; INSERT INTO child VALUES (1); COMMIT", ""),
        ("SELECT count(*) FROM child", "0"),
        (
            "INSERT INTO child VALUES (2)",
            "23503 insert or update on table \"child\" violates foreign key constraint \"child_id_fkey\"",
        ),
    ];
    check(&client, &cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_has_tables_of_its_own() {
    let world = World::start_voters().await;
    let (one, other) = (world.connect().await, world.connect().await);
    check(
        &one,
        &[
            (
                "CREATE TABLE plain (id int PRIMARY KEY, v text); INSERT INTO plain VALUES (1, 'p')",
                "",
            ),
            ("CREATE TEMP TABLE t (id int PRIMARY KEY, v text)", ""),
            ("INSERT INTO t VALUES (1, 'a'), (2, 'b')", ""),
            ("SELECT v FROM t ORDER BY id", "a b"),
            ("SELECT v FROM pg_temp.t WHERE id = 2", "b"),
            ("UPDATE t SET v = v || '!' WHERE id = 1", ""),
            ("SELECT string_agg(v, ',' ORDER BY id) FROM t", "a!,b"),
            ("CREATE TEMP TABLE t (id int)", "42P07 relation \"t\" already exists"),
            ("CREATE INDEX t_v ON t (v)", ""),
            ("ALTER TABLE t ADD COLUMN n int DEFAULT 3", ""),
        ],
    )
    .await;
    check(&other, &[("SELECT v FROM t", "42P01 relation \"t\" does not exist")]).await;
    check(
        &one,
        &[
            // The temporary table hides the permanent one of the same name.
            ("CREATE TEMP TABLE plain AS SELECT 7 AS id, 'mine' AS v", ""),
            ("SELECT v FROM plain", "mine"),
            ("SELECT v FROM public.plain", "p"),
            ("INSERT INTO public.plain SELECT * FROM plain", ""),
            ("DROP TABLE plain", ""),
            ("SELECT v FROM plain ORDER BY id", "p mine"),
            ("CREATE TEMP TABLE alike (LIKE plain INCLUDING ALL)", ""),
            (
                "INSERT INTO alike SELECT * FROM plain; INSERT INTO alike VALUES (1, 'x')",
                "23505 duplicate key value violates unique constraint \"alike_pkey\"",
            ),
            ("SELECT v AS gone INTO TEMP picked FROM plain", ""),
            ("SELECT count(*) FROM picked", "2"),
            ("DROP TABLE pg_temp.picked", ""),
            (
                "SELECT count(*) FROM picked",
                "42P01 relation \"picked\" does not exist",
            ),
        ],
    )
    .await;
    check(
        &other,
        &[
            ("SELECT v FROM plain ORDER BY id", "p mine"),
            ("CREATE TEMP TABLE t (mine int)", ""),
            ("INSERT INTO t VALUES (5)", ""),
            ("SELECT mine FROM t", "5"),
        ],
    )
    .await;
    assert_eq!(ask(&one, "SELECT count(*) FROM t").await, "2");
    drop(other);
    drop(one);
    nothing_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_them_at_commit_is_as_they_say() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    check(
        &client,
        &[
            ("CREATE TABLE target (id int PRIMARY KEY, v text)", ""),
            ("BEGIN; CREATE TEMP TABLE staging (LIKE target) ON COMMIT DROP", ""),
            ("INSERT INTO staging VALUES (1, 'one'), (2, 'two')", ""),
            ("INSERT INTO target SELECT * FROM staging; COMMIT", ""),
            ("SELECT count(*) FROM target", "2"),
            ("SELECT * FROM staging", "42P01 relation \"staging\" does not exist"),
            ("CREATE TEMP TABLE today ON COMMIT DROP AS SELECT 1 AS a", ""),
            ("SELECT to_regclass('pg_temp.today') IS NULL", "t"),
            (
                "CREATE TEMP TABLE scratch (id serial, v text) ON COMMIT DELETE ROWS",
                "",
            ),
            ("BEGIN; INSERT INTO scratch (v) VALUES ('x') RETURNING id", "1"),
            ("SELECT count(*) FROM scratch; COMMIT", "1"),
            ("SELECT count(*) FROM scratch", "0"),
            // A statement alone is a transaction, short or not.
            ("INSERT INTO scratch (v) VALUES ('y')", ""),
            ("SELECT count(*) FROM scratch", "0"),
            (
                "CREATE TEMP TABLE keep ON COMMIT PRESERVE ROWS AS SELECT generate_series(1, 3) AS g",
                "",
            ),
            ("SELECT sum(g) FROM pg_temp.keep", "6"),
            (
                "CREATE TABLE public.ordinary () ON COMMIT DROP",
                "42P16 ON COMMIT can only be used on temporary tables",
            ),
        ],
    )
    .await;
    check(
        &client,
        &[
            // What is rolled back was never there.
            ("BEGIN; CREATE TEMP TABLE undone (a int); ROLLBACK", ""),
            ("SELECT * FROM undone", "42P01 relation \"undone\" does not exist"),
            (
                "BEGIN; SAVEPOINT s; CREATE TEMP TABLE undone (a int); INSERT INTO undone VALUES (1)",
                "",
            ),
            ("ROLLBACK TO s", ""),
            (
                "CREATE TEMP TABLE undone (b int); INSERT INTO undone VALUES (2); COMMIT",
                "",
            ),
            ("SELECT b FROM undone", "2"),
            (
                "BEGIN; CREATE TEMP TABLE failed (a int); SELECT 1/0",
                "22012 division by zero",
            ),
            ("COMMIT", ""),
            ("SELECT * FROM failed", "42P01 relation \"failed\" does not exist"),
            ("DISCARD TEMP", ""),
            ("SELECT b FROM undone", "42P01 relation \"undone\" does not exist"),
            ("CREATE TEMP TABLE again AS SELECT 1 AS a", ""),
            ("DISCARD ALL", ""),
            ("SELECT a FROM again", "42P01 relation \"again\" does not exist"),
            ("CREATE TEMP TABLE again AS SELECT 2 AS a; SELECT a FROM again", "2"),
            ("BEGIN; DISCARD TEMP; ROLLBACK; SELECT a FROM again", "2"),
        ],
    )
    .await;
    drop(client);
    nothing_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_work_with_prepared_statements_and_copy() {
    let world = World::start_voters().await;
    let mut client = world.connect().await;
    client
        .batch_execute("CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (1, 'permanent')")
        .await
        .unwrap();
    let select = client.prepare("SELECT v FROM item WHERE id = $1").await.unwrap();
    let value = |rows: Vec<tokio_postgres::Row>| rows[0].get::<_, String>(0);
    assert_eq!(value(client.query(&select, &[&1]).await.unwrap()), "permanent");
    client
        .execute("CREATE TEMPORARY TABLE item (id int PRIMARY KEY, v text)", &[])
        .await
        .unwrap();
    let written = client
        .execute("INSERT INTO item VALUES (1, 'temporary'), (2, 'more')", &[])
        .await
        .unwrap();
    assert_eq!(written, 2);
    assert_eq!(
        value(client.query(&select, &[&1]).await.unwrap()),
        "temporary",
        "the prepared statement sees it"
    );
    let insert = client
        .prepare("INSERT INTO pg_temp.item VALUES ($1, $2)")
        .await
        .unwrap();
    let transaction = client.transaction().await.unwrap();
    assert_eq!(transaction.execute(&insert, &[&3, &"x"]).await.unwrap(), 1);
    transaction.commit().await.unwrap();
    assert_eq!(
        value(client.query("SELECT count(*)::text FROM item", &[]).await.unwrap()),
        "3"
    );
    let portal = client.transaction().await.unwrap();
    let bound = portal.bind("SELECT v FROM item ORDER BY id", &[]).await.unwrap();
    assert_eq!(value(portal.query_portal(&bound, 1).await.unwrap()), "temporary");
    portal.rollback().await.unwrap();
    let out = world
        .psql(&[
            "-At",
            "-c",
            "CREATE TEMP TABLE o (a int)",
            "-c",
            "\\copy o from program 'printf 1\\\\n2\\\\n'",
            "-c",
            "COPY pg_temp.o TO STDOUT",
        ])
        .await;
    assert_eq!(out, "CREATE TABLE\nCOPY 2\n1\n2\n");
    client.execute("DROP TABLE item", &[]).await.unwrap();
    assert_eq!(value(client.query(&select, &[&1]).await.unwrap()), "permanent");
    drop(client);
    nothing_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_and_sequences_can_be_temporary() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    check(
        &client,
        &[
            (
                "CREATE TABLE base (id int PRIMARY KEY, v text); INSERT INTO base VALUES (1, 'b')",
                "",
            ),
            ("CREATE TEMP VIEW v AS SELECT v FROM base", ""),
            ("SELECT v FROM v", "b"),
            ("CREATE TEMP SEQUENCE s START 5", ""),
            ("SELECT nextval('s')", "5"),
            ("SELECT nextval('pg_temp.s')", "6"),
            (
                "CREATE TEMP TABLE t (id int DEFAULT nextval('s'), g int GENERATED ALWAYS AS IDENTITY, x text)",
                "",
            ),
            ("INSERT INTO t (x) VALUES ('a') RETURNING id, g", "7|1"),
            ("BEGIN; INSERT INTO t (x) VALUES ('b') RETURNING id", "8"),
            ("SELECT currval('s'); ROLLBACK", "8"),
            ("INSERT INTO t (x) VALUES ('c') RETURNING id, g", "8|2"),
            // A view of a temporary table is temporary.
            ("CREATE VIEW w AS SELECT x FROM t", ""),
            ("SELECT string_agg(x, '' ORDER BY x) FROM w", "ac"),
            ("SELECT to_regclass('public.w') IS NULL", "t"),
            (
                "CREATE OR REPLACE TEMP VIEW v AS SELECT v FROM base WHERE false; SELECT count(*) FROM v",
                "0",
            ),
            ("DROP VIEW v", ""),
            (
                "CREATE MATERIALIZED VIEW m AS SELECT x FROM t",
                "BF004 a permanent view would read a temporary relation",
            ),
        ],
    )
    .await;
    drop(client);
    nothing_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permanent_objects_stay_permanent_beside_them() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    check(
        &client,
        &[
            ("CREATE SCHEMA shop; CREATE TABLE parent (id int PRIMARY KEY)", ""),
            ("CREATE TEMP TABLE t (id int PRIMARY KEY)", ""),
            (
                "CREATE TABLE kept AS SELECT id FROM t; CREATE VIEW seen AS SELECT id FROM kept",
                "",
            ),
            (
                "CREATE TYPE mood AS ENUM ('good'); CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                "",
            ),
            (
                "BEGIN; CREATE TEMP TABLE u (a int); CREATE TABLE beside (a int); COMMIT",
                "",
            ),
            (
                "SET search_path = shop, public; CREATE TABLE in_shop (a int); SHOW search_path",
                "shop, public",
            ),
            (
                "SELECT current_schema(), current_setting('search_path')",
                "shop|shop, public",
            ),
            (
                "BEGIN; SET LOCAL search_path = public; SELECT count(*) FROM t; COMMIT",
                "0",
            ),
            ("RESET search_path; SHOW search_path", "\"$user\", public"),
            (
                "CREATE TABLE child (id int REFERENCES t)",
                "42P16 constraints on permanent tables may reference only permanent tables",
            ),
            (
                "CREATE TEMP TABLE child (id int REFERENCES parent)",
                "42P16 constraints on temporary tables may reference only temporary tables",
            ),
            ("CREATE TEMP TABLE child (id int REFERENCES t)", ""),
            (
                "INSERT INTO child VALUES (1)",
                "23503 insert or update on table \"child\" violates foreign key constraint \"child_id_fkey\"",
            ),
            (
                "CREATE TEMP TABLE heir () INHERITS (parent)",
                "BF004 cannot inherit from, or to, temporary relations",
            ),
        ],
    )
    .await;
    drop(client);
    nothing_left(&world).await;
    let kept = "select string_agg(relnamespace::regnamespace || '.' || relname, ' ' order by relname) from pg_class \
                where relkind in ('r', 'v') and relnamespace::regnamespace::text in ('public', 'shop')";
    assert_eq!(
        world.everywhere(kept).await,
        "public.beside shop.in_shop public.kept public.parent public.seen"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_of_users_makes_nothing_among_them_and_runs_with_no_more_rights() {
    let world = World::start_voters().await;
    let (one, other) = (world.connect().await, world.connect().await);
    check(
        &one,
        &[
            ("CREATE TABLE log (who text)", ""),
            ("CREATE FUNCTION makes() RETURNS int LANGUAGE plpgsql AS 'BEGIN CREATE TABLE made (a int); RETURN 1; END'", ""),
            ("CREATE FUNCTION who() RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.log VALUES (current_user); RETURN 1; END'", ""),
            ("CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM public.who(); RETURN NULL; END'", ""),
            ("CREATE TEMP TABLE t (a int) ON COMMIT DELETE ROWS", ""),
            ("SELECT makes()", "42501 permission denied for schema SCHEMA"),
            ("CREATE TEMP TABLE x AS SELECT makes() AS a", "BF004 a permanent object would lie among the temporary ones of the session"),
            ("DO 'BEGIN CREATE TEMP TABLE inside (a int); END'", "42501 permission denied to create temporary tables in database \"postgres\""),
            ("CREATE TRIGGER f BEFORE TRUNCATE ON t EXECUTE FUNCTION fires()", "BF004 a temporary table with ON COMMIT DELETE ROWS cannot have a trigger on TRUNCATE"),
            // A table that becomes a view would have its query run at COMMIT.
            ("CREATE RULE \"_RETURN\" AS ON SELECT TO t DO INSTEAD SELECT who() AS a", ""),
            ("BEGIN; SELECT 1; CREATE TABLE other (a int); COMMIT", "1"),
            ("SELECT count(*) FROM log", "0"),
            ("SELECT cloudbft.drop_temporary('', '')", "42501 schema cloudbft belongs to the middleware"),
            ("CREATE TEMP TABLE secret AS SELECT 7 AS a", ""),
        ],
    )
    .await;
    let schema = ask(&one, "SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()").await;
    let refused = "0A000 cannot access temporary tables of other sessions";
    for text in [
        format!("SELECT a FROM {schema}.secret"),
        format!("DROP SCHEMA {schema} CASCADE"),
        format!("SET search_path = {schema}, public"),
        "CREATE SCHEMA pg_cloudbft_temp_0_77".into(),
    ] {
        assert_eq!(ask(&other, &text).await, refused, "{text}");
    }
    let dynamic = format!("DO $$ BEGIN EXECUTE 'DROP SCHEMA ' || '{schema}' || ' CASCADE'; END $$");
    let owned = ask(&other, &dynamic).await;
    assert!(owned.starts_with("42501 must be owner of schema"), "{owned}");
    let dynamic = format!("DO $$ BEGIN EXECUTE 'CREATE TABLE ' || '{schema}' || '.evil (a int)'; END $$");
    let denied = ask(&other, &dynamic).await;
    assert!(denied.starts_with("42501 permission denied for schema"), "{denied}");
    assert_eq!(ask(&one, "SELECT a FROM secret").await, "7");
    drop((one, other));
    nothing_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catalogs_say_that_they_are_temporary() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    let long = "x".repeat(80);
    check(
        &client,
        &[
            ("CREATE TABLE t (a int)", ""),
            ("SELECT pg_my_temp_schema(), current_schema", "0|public"),
            ("CREATE TEMP TABLE t (a int)", ""),
            ("SELECT relpersistence FROM pg_class WHERE relname = 't' ORDER BY 1", "p t"),
            ("SELECT c.relname FROM pg_catalog.pg_class c WHERE c.relpersistence = 't' AND c.relnamespace = pg_my_temp_schema()", "t"),
            ("SELECT pg_table_is_visible('t'::regclass), 't'::regclass = 'pg_temp.t'::regclass, 't'::regclass = 'public.t'::regclass", "t|t|f"),
            ("SELECT current_schema(), current_schemas(false), array_length(current_schemas(true), 1)", "public|{public}|3"),
            ("SHOW search_path", "\"$user\", public"),
            ("SET search_path = pg_temp, public; SHOW search_path", "pg_temp, public"),
            ("SELECT count(*) FROM t; SELECT current_setting('search_path') LIKE '%public'", "t"),
            ("RESET search_path", ""),
            (&format!("CREATE TEMP TABLE {long} (a int); INSERT INTO {long} VALUES (1); SELECT a FROM {long}"), "1"),
        ],
    )
    .await;
    drop(client);
    nothing_left(&world).await;
}
