//! Applications and their sessions, through tokio-postgres and psql, on three real voters with a server each.

mod support;

use std::time::Duration;

use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use support::World;

fn first(messages: &[SimpleQueryMessage]) -> Option<String> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_reads_its_writes() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await
        .unwrap();
    assert_eq!(
        client
            .execute("INSERT INTO t VALUES ($1, $2), (2, 'b')", &[&1, &"a"])
            .await
            .unwrap(),
        2
    );
    let rows = client.query("SELECT id, v FROM t ORDER BY id", &[]).await.unwrap();
    assert_eq!(
        rows.iter().map(|row| row.get::<_, String>(1)).collect::<Vec<_>>(),
        ["a", "b"]
    );
    let statement = client.prepare("SELECT v FROM t WHERE id = $1").await.unwrap();
    for _ in 0..3 {
        assert_eq!(
            client.query_one(&statement, &[&2]).await.unwrap().get::<_, &str>(0),
            "b"
        );
    }
}

/// A driver decodes rows by the description that it got once. So a statement whose columns are others now is refused, as by Postgres.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_statement_keeps_its_columns() {
    let world = World::start_voters().await;
    let (client, other) = (world.connect().await, world.connect().await);
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
        .await
        .unwrap();
    let all = client.prepare("SELECT * FROM t WHERE id = $1").await.unwrap();
    let one = client.prepare("SELECT v FROM t WHERE id = $1").await.unwrap();
    let write = client
        .prepare("UPDATE t SET v = v || '!' WHERE id = $1 RETURNING *")
        .await
        .unwrap();
    client.query_one(&all, &[&1]).await.unwrap();
    other
        .batch_execute("ALTER TABLE t ADD COLUMN w int DEFAULT 7")
        .await
        .unwrap();
    for statement in [&all, &write] {
        let error = client.query(statement, &[&1]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{error}");
        assert_eq!(error.as_db_error().unwrap().routine(), Some("RevalidateCachedQuery"));
    }
    assert_eq!(client.query_one(&one, &[&1]).await.unwrap().get::<_, &str>(0), "a");
    let all = client.prepare("SELECT * FROM t WHERE id = $1").await.unwrap();
    assert_eq!(client.query_one(&all, &[&1]).await.unwrap().get::<_, i32>(2), 7);
    // Columns that come from another place are the same columns; a table that is gone is told as such.
    other
        .batch_execute(
            "DROP TABLE t; CREATE TABLE t (w int, v text, id int PRIMARY KEY); INSERT INTO t VALUES (8, 'b', 1)",
        )
        .await
        .unwrap();
    assert_eq!(client.query_one(&one, &[&1]).await.unwrap().get::<_, &str>(0), "b");
    other.batch_execute("DROP TABLE t").await.unwrap();
    let error = client.query(&one, &[&1]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_TABLE), "{error}");
    client.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_commit_and_roll_back() {
    let world = World::start_voters().await;
    let mut client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
        .await
        .unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute("INSERT INTO t VALUES (1, 10)", &[]).await.unwrap();
    assert_eq!(
        transaction
            .query_one("SELECT v FROM t WHERE id = 1", &[])
            .await
            .unwrap()
            .get::<_, i32>(0),
        10
    );
    transaction.execute("UPDATE t SET v = v + 1", &[]).await.unwrap();
    transaction.commit().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute("DELETE FROM t", &[]).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(
        client.query_one("SELECT v FROM t", &[]).await.unwrap().get::<_, i32>(0),
        11
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_of_a_transaction_need_no_agreement() {
    let world = World::start_voters().await;
    let mut client = world.connect().await;
    client
        .batch_execute("CREATE TABLE warehouse (w_id int PRIMARY KEY, w_ytd int)")
        .await
        .unwrap();
    client
        .batch_execute("INSERT INTO warehouse VALUES (1, 0), (2, 0)")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let update = client
        .prepare("UPDATE warehouse SET w_ytd = w_ytd + 1 WHERE w_id = $1")
        .await
        .unwrap();
    let select = client
        .prepare("SELECT w_ytd FROM warehouse WHERE w_id = $1")
        .await
        .unwrap();
    world.faults.take_seen();
    let transaction = client.transaction().await.unwrap();
    transaction.execute(&update, &[&1]).await.unwrap();
    transaction.query_one(&select, &[&1]).await.unwrap();
    transaction.execute(&update, &[&1]).await.unwrap();
    transaction.execute(&update, &[&2]).await.unwrap();
    transaction.commit().await.unwrap();
    let mut seen = world.faults.take_seen();
    // Words are no agreement, and what is short needs none.
    seen.retain(|kind| *kind != "word");
    assert_eq!(seen, ["begin", "direct", "direct", "extend", "commit"]);
    // A voter that is a few milliseconds behind has a read ordered: on a busy machine, not at the first try.
    let mut seen = Vec::new();
    for _ in 0..20 {
        assert_eq!(client.query_one(&select, &[&1]).await.unwrap().get::<_, i32>(0), 2);
        seen = world.faults.take_seen();
        if seen == ["read"] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(seen, ["read"], "one resource: all voters are asked, nothing is ordered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn savepoints_work_before_and_after_the_first_lock() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .unwrap();
    client
        .batch_execute("BEGIN; SAVEPOINT a; INSERT INTO t VALUES (1); SAVEPOINT b; INSERT INTO t VALUES (2)")
        .await
        .unwrap();
    let error = client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNIQUE_VIOLATION));
    let error = client.batch_execute("SELECT 1").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    client.batch_execute("ROLLBACK TO b").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
    client.batch_execute("RELEASE b").await.unwrap();
    let error = client.batch_execute("ROLLBACK TO b").await.unwrap_err();
    assert_eq!(error.code().map(SqlState::code), Some("3B001"));
    client
        .batch_execute("ROLLBACK TO a; INSERT INTO t VALUES (4); COMMIT")
        .await
        .unwrap();
    let rows = client
        .simple_query("SELECT string_agg(id::text, ',' ORDER BY id) FROM t")
        .await
        .unwrap();
    assert_eq!(first(&rows).as_deref(), Some("4"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_keep_their_state_and_position() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    let error = client.simple_query("SELECT 1 FRM x y").await.unwrap_err();
    let database = error.as_db_error().unwrap();
    assert_eq!(database.code(), &SqlState::SYNTAX_ERROR);
    let error = client.prepare("SELECT nothing_such").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_COLUMN));
    assert_eq!(
        error.as_db_error().unwrap().position(),
        Some(&tokio_postgres::error::ErrorPosition::Original(8))
    );
    // In a part of a text, positions count from the start of the text.
    let error = client
        .simple_query("SET work_mem = '1MB'; SELECT nothing_such")
        .await
        .unwrap_err();
    assert_eq!(
        error.as_db_error().unwrap().position(),
        Some(&tokio_postgres::error::ErrorPosition::Original(30))
    );
    client.simple_query("SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_belong_to_the_session() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    let show = async |name: &str| first(&client.simple_query(&format!("SHOW {name}")).await.unwrap()).unwrap();
    client.batch_execute("SET work_mem = '2048kB'").await.unwrap();
    assert_eq!(show("work_mem").await, "2MB");
    client
        .batch_execute("BEGIN; SET work_mem = '3MB'; SET LOCAL statement_timeout = '5s'")
        .await
        .unwrap();
    assert_eq!(show("work_mem").await, "3MB");
    assert_eq!(show("statement_timeout").await, "5s");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(show("work_mem").await, "2MB");
    client
        .batch_execute("BEGIN; SET search_path TO 'x y', public; CREATE TABLE t (a int); COMMIT")
        .await
        .unwrap();
    assert_eq!(show("search_path").await, "\"x y\", public");
    client.batch_execute("RESET ALL").await.unwrap();
    assert_eq!(show("work_mem").await, "4MB");
    let error = client.batch_execute("SET work_mem = 'much'").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INVALID_PARAMETER_VALUE));
    let error = client.batch_execute("SET no_such_thing = 1").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_OBJECT));
    client.batch_execute("SET cloudbft.reads = 'session'").await.unwrap();
    assert_eq!(show("cloudbft.reads").await, "session");
    client
        .batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        .await
        .unwrap();
    assert_eq!(show("transaction_isolation").await, "serializable");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(show("transaction_isolation").await, "read committed");
    let row = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
    assert!(row.get::<_, i32>(0) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_level_prepared_statements_work() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await
        .unwrap();
    client
        .batch_execute("PREPARE put (int, text) AS INSERT INTO t VALUES ($1, $2)")
        .await
        .unwrap();
    client
        .batch_execute("EXECUTE put(1, 'it''s'); EXECUTE put(2, NULL)")
        .await
        .unwrap();
    client
        .batch_execute("PREPARE got AS SELECT v FROM t WHERE id = $1")
        .await
        .unwrap();
    assert_eq!(
        first(&client.simple_query("EXECUTE got('1')").await.unwrap()).as_deref(),
        Some("it's")
    );
    let error = client.batch_execute("EXECUTE got").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::SYNTAX_ERROR));
    client.batch_execute("DEALLOCATE got").await.unwrap();
    let error = client.batch_execute("EXECUTE got(1)").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INVALID_SQL_STATEMENT_NAME));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_goes_in_and_out() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await
        .unwrap();
    // More than two pieces.
    let lines: String = (0..30_000)
        .map(|line| format!("{line}\t{}\n", "x".repeat(90)))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    let copy = format!("\\copy t FROM '{}'", file.path().display());
    assert_eq!(world.psql(&["-c", &copy]).await, "COPY 30000\n");
    let rows = client.simple_query("SELECT count(*) FROM t").await.unwrap();
    assert_eq!(first(&rows).as_deref(), Some("30000"));
    let out = world
        .psql(&["-c", "COPY (SELECT id FROM t ORDER BY id LIMIT 3) TO STDOUT"])
        .await;
    assert_eq!(out, "0\n1\n2\n");
    // A bad line fails the whole COPY; the session goes on.
    std::fs::write(file.path(), "40000\ty\nx\ty\n").unwrap();
    let out = world.psql(&["-c", &copy, "-Atc", "SELECT count(*) FROM t"]).await;
    assert!(out.contains("invalid input syntax for type integer"), "{out}");
    assert!(out.contains("30000"), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_and_portals_keep_their_place() {
    let world = World::start_voters().await;
    let mut client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t AS SELECT generate_series(1, 10) AS id")
        .await
        .unwrap();
    client
        .batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT id FROM t ORDER BY id")
        .await
        .unwrap();
    let rows = client.simple_query("FETCH 2 FROM c; FETCH 1 FROM c").await.unwrap();
    let ids: Vec<_> = rows
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect();
    assert_eq!(ids, ["1", "2", "3"]);
    client.batch_execute("CLOSE c; COMMIT").await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SELECT id FROM t ORDER BY id", &[]).await.unwrap();
    let mut sizes = Vec::new();
    for _ in 0..4 {
        sizes.push(transaction.query_portal(&portal, 4).await.unwrap().len());
    }
    assert_eq!(sizes, [4, 4, 2, 0]);
    transaction.commit().await.unwrap();
}

/// As PostgreSQL: what means something only within a transaction block fails outside one, and a text of several statements is
/// one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_and_locks_need_a_transaction_block() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t AS SELECT generate_series(1, 3) AS id")
        .await
        .unwrap();
    let declare = "/* a comment */ DECLARE c CURSOR FOR SELECT id FROM t ORDER BY id";
    for (statement, code, message) in [
        (
            declare,
            "25P01",
            "DECLARE CURSOR can only be used in transaction blocks",
        ),
        (
            "LOCK TABLE t",
            "25P01",
            "LOCK TABLE can only be used in transaction blocks",
        ),
        (
            "lock t in share mode",
            "25P01",
            "LOCK TABLE can only be used in transaction blocks",
        ),
        ("FETCH 1 FROM c", "34000", "cursor \"c\" does not exist"),
        ("MOVE c", "34000", "cursor \"c\" does not exist"),
        ("CLOSE c", "34000", "cursor \"c\" does not exist"),
    ] {
        for error in [
            client.batch_execute(statement).await.unwrap_err(),
            client.execute(statement, &[]).await.unwrap_err(),
        ] {
            let error = error.as_db_error().unwrap_or_else(|| panic!("{statement}: {error}"));
            assert_eq!((error.code().code(), error.message()), (code, message), "{statement}");
        }
    }
    client.batch_execute("CLOSE ALL").await.unwrap();
    let rows = client
        .simple_query(&format!("{declare}; FETCH 2 FROM c; LOCK TABLE t"))
        .await
        .unwrap();
    let rows = rows
        .iter()
        .filter(|message| matches!(message, SimpleQueryMessage::Row(_)));
    assert_eq!(rows.count(), 2);
    let error = client.batch_execute("FETCH 1 FROM c").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "34000", "its block has ended");
    client.batch_execute("BEGIN; LOCK TABLE t; COMMIT").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_works() {
    let world = World::start_voters().await;
    let script = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a');";
    assert_eq!(world.psql(&["-q", "-c", script]).await, "");
    assert_eq!(world.psql(&["-Atc", "SELECT * FROM t"]).await, "1|a\n");
    let described = world.psql(&["-c", "\\d t"]).await;
    assert!(described.contains("t_pkey\" PRIMARY KEY"), "{described}");
    let output = world.psql(&["-c", "BEGIN; BEGIN; COMMIT; COMMIT"]).await;
    assert!(
        output.contains("WARNING:  there is already a transaction in progress"),
        "{output}"
    );
    assert!(
        output.contains("WARNING:  there is no transaction in progress"),
        "{output}"
    );
    let output = world.psql(&["-c", "SELECT lo_import('/etc/hosts')"]).await;
    assert!(output.contains("ERROR:"), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_one_transaction() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .unwrap();
    assert!(
        client
            .batch_execute("INSERT INTO t VALUES (1); INSERT INTO t VALUES (1)")
            .await
            .is_err()
    );
    assert!(
        client
            .batch_execute("INSERT INTO t VALUES (2); SET work_mem = '1MB'; SELECT 1/0")
            .await
            .is_err()
    );
    let rows = client.simple_query("SELECT count(*) FROM t").await.unwrap();
    assert_eq!(first(&rows).as_deref(), Some("0"));
    assert_eq!(
        first(&client.simple_query("SHOW work_mem").await.unwrap()).as_deref(),
        Some("4MB")
    );
    // COMMIT inside ends what came before; what follows is another transaction.
    assert!(
        client
            .batch_execute("INSERT INTO t VALUES (3); COMMIT; INSERT INTO t VALUES (4); SELECT 1/0")
            .await
            .is_err()
    );
    let rows = client
        .simple_query("SELECT string_agg(id::text, ',') FROM t")
        .await
        .unwrap();
    assert_eq!(first(&rows).as_deref(), Some("3"));
    // BEGIN inside takes along what came before.
    client
        .batch_execute("INSERT INTO t VALUES (5); BEGIN; INSERT INTO t VALUES (6)")
        .await
        .unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    let rows = client
        .simple_query("SELECT string_agg(id::text, ',') FROM t")
        .await
        .unwrap();
    assert_eq!(first(&rows).as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbench_works_in_all_its_modes() {
    let world = World::start_voters().await;
    let output = world.run("pgbench", &["-i", "-s", "1", "-q"]).await;
    assert!(output.contains("done in"), "{output}");
    for mode in ["simple", "extended", "prepared"] {
        let output = world.run("pgbench", &["-n", "-c", "3", "-t", "10", "-M", mode]).await;
        assert!(
            output.contains("number of transactions actually processed: 30/30"),
            "{mode}: {output}"
        );
    }
    let sums = world
        .psql(&[
            "-Atc",
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches), \
             (SELECT sum(delta) FROM pgbench_history), (SELECT count(*) FROM pgbench_history)",
        ])
        .await;
    let fields: Vec<_> = sums.trim().split('|').collect();
    assert_eq!(
        (fields[0], fields[0], fields[3]),
        (fields[1], fields[2], "90"),
        "{sums}"
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    world
        .everywhere("SELECT md5(string_agg(t::text, ',' ORDER BY aid)) FROM pgbench_accounts t")
        .await;
    world
        .everywhere("SELECT md5(string_agg(t::text, ',' ORDER BY tid, bid, aid, delta, mtime)) FROM pgbench_history t")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolation_is_what_was_asked_for() {
    let world = World::start_voters().await;
    let (one, other) = (world.connect().await, world.connect().await);
    one.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)")
        .await
        .unwrap();
    let read = async |client: &tokio_postgres::Client| first(&client.simple_query("SELECT v FROM t").await.unwrap());
    // A snapshot stays, and holds nobody up.
    one.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await
        .unwrap();
    assert_eq!(read(&one).await.as_deref(), Some("0"));
    other.batch_execute("UPDATE t SET v = 1").await.unwrap();
    assert_eq!(read(&one).await.as_deref(), Some("0"));
    let error = one.batch_execute("UPDATE t SET v = 5").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE));
    one.batch_execute("ROLLBACK").await.unwrap();
    // READ COMMITTED sees what others commit.
    one.batch_execute("BEGIN").await.unwrap();
    assert_eq!(read(&one).await.as_deref(), Some("1"));
    other.batch_execute("UPDATE t SET v = 2").await.unwrap();
    assert_eq!(read(&one).await.as_deref(), Some("2"));
    one.batch_execute("COMMIT").await.unwrap();
    // What SERIALIZABLE has read, nobody changes.
    one.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE").await.unwrap();
    assert_eq!(read(&one).await.as_deref(), Some("2"));
    let update = tokio::spawn(async move { other.batch_execute("UPDATE t SET v = v * 10").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!update.is_finished());
    one.batch_execute("UPDATE t SET v = 3; COMMIT").await.unwrap();
    update.await.unwrap().unwrap();
    assert_eq!(read(&one).await.as_deref(), Some("30"));
    // READ ONLY refuses writes with the database's own error, in blocks and by default.
    let error = one
        .batch_execute("BEGIN READ ONLY; UPDATE t SET v = 0")
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    one.batch_execute("ROLLBACK; SET default_transaction_read_only = on")
        .await
        .unwrap();
    let error = one.batch_execute("UPDATE t SET v = 0").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_dump_works() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('one'), ('two')")
        .await
        .unwrap();
    let dump = world.run("pg_dump", &["--no-sync", "-N", "cloudbft"]).await;
    assert!(
        dump.contains("COPY public.t (id, v) FROM stdin;\n1\tone\n2\ttwo\n"),
        "{dump}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlocks_end_one_of_the_transactions() {
    let world = World::start_voters().await;
    let (one, other) = (world.connect().await, world.connect().await);
    one.batch_execute("CREATE TABLE warehouse (w_id int PRIMARY KEY, w_ytd int)")
        .await
        .unwrap();
    one.batch_execute("INSERT INTO warehouse VALUES (1, 0), (2, 0)")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let update = |id: i32| format!("UPDATE warehouse SET w_ytd = w_ytd + 1 WHERE w_id = {id}");
    one.batch_execute(&format!("BEGIN; {}", update(1))).await.unwrap();
    other
        .batch_execute(&format!("BEGIN; SAVEPOINT s; {}", update(2)))
        .await
        .unwrap();
    let text = update(2);
    let waiting = tokio::spawn(async move {
        one.batch_execute(&text).await.unwrap();
        one.batch_execute("COMMIT").await.unwrap();
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let error = other.batch_execute(&update(1)).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED));
    // The voters have rolled it back as a whole.
    let error = other.batch_execute("ROLLBACK TO s").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    other.batch_execute("ROLLBACK").await.unwrap();
    waiting.await.unwrap();
    let sum = first(&other.simple_query("SELECT sum(w_ytd) FROM warehouse").await.unwrap());
    assert_eq!(sum.as_deref(), Some("2"));
}
