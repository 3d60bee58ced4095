//! Large objects, on three real voters with a server each (decision 0056, rule LargeObjects).
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::Duration;

use support::raw::{Answer, Raw, message, query};
use support::{Postgres, World};
use tokio::io::{AsyncRead, AsyncWrite};

/// The numbers of all objects.
const NUMBERS: &str = "SELECT coalesce(string_agg(oid::text, ',' ORDER BY oid), '') FROM pg_largeobject_metadata";
/// Numbers, contents, owners and rights of all objects.
const OBJECTS: &str = "SELECT coalesce(string_agg(concat_ws(' ', oid, lomowner::regrole, lomacl, \
    encode(sha256(lo_get(oid)), 'hex')), ',' ORDER BY oid), '') FROM pg_largeobject_metadata";

const LO_CREATE: u32 = 715;
const LO_OPEN: u32 = 952;
const LO_CLOSE: u32 = 953;
const LOREAD: u32 = 954;
const LOWRITE: u32 = 955;
const LO_LSEEK: u32 = 956;
const LO_CREAT: u32 = 957;
const LO_TELL: u32 = 958;
const LO_UNLINK: u32 = 964;
const LO_TRUNCATE: u32 = 1004;
const LO_LSEEK64: u32 = 3170;
const LO_TELL64: u32 = 3171;
const LO_TRUNCATE64: u32 = 3172;
const LO_FROM_BYTEA: u32 = 3457;
const LO_GET: u32 = 3458;
const LO_GET_PART: u32 = 3459;
const LO_PUT: u32 = 3460;

const WRITE: i32 = 0x20000;
const READ: i32 = 0x40000;

/// FunctionCall as libpq sends it: all arguments and the result in binary format.
fn call(function: u32, arguments: &[&[u8]]) -> Vec<u8> {
    let mut body = function.to_be_bytes().to_vec();
    body.extend_from_slice(&[0, 1, 0, 1]);
    body.extend_from_slice(&(arguments.len() as u16).to_be_bytes());
    for argument in arguments {
        body.extend_from_slice(&(argument.len() as u32).to_be_bytes());
        body.extend_from_slice(argument);
    }
    body.extend_from_slice(&[0, 1]);
    message(b'F', &body)
}

fn int(number: i32) -> [u8; 4] {
    number.to_be_bytes()
}

fn long(number: i64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The answer of all servers, once the last one has done what the others have.
async fn everywhere(world: &World, text: &str) -> String {
    for _ in 0..100 {
        let mut answers = std::collections::BTreeSet::new();
        for server in &world.servers {
            let row = server.connect().await.query_one(text, &[]).await;
            answers.insert(row.map_or_else(|error| error.to_string(), |row| row.get(0)));
        }
        if answers.len() == 1 {
            return answers.pop_first().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.everywhere(text).await
}

fn told(answer: &Answer) -> String {
    let body = match answer.tag {
        b'E' => [b'C', b'M', b'D', b'H']
            .map(|kind| answer.field(kind).unwrap_or_default())
            .join("|"),
        b'T' => String::new(),
        _ => format!("{:?}", answer.body),
    };
    format!("{} {body}", answer.tag as char)
}

async fn answers<S: AsyncRead + AsyncWrite + Unpin>(raw: &mut Raw<S>, bytes: &[u8]) -> Vec<String> {
    raw.send(bytes).await;
    raw.until_ready().await.iter().map(told).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn function_calls_are_answered_as_by_postgresql() {
    let world = World::start_voters().await;
    let server = Postgres::start();
    let mut ours = Raw::login(world.address).await;
    let mut theirs = Raw::of_server(&server).await;
    let number = int(5000);
    let script = [
        query("BEGIN"),
        call(LO_CREATE, &[&number]),
        call(LO_OPEN, &[&number, &int(WRITE | READ)]),
        call(LOWRITE, &[&int(0), b"large objects"]),
        call(LO_TELL, &[&int(0)]),
        call(LO_TELL64, &[&int(0)]),
        call(LO_LSEEK, &[&int(0), &int(-7), &int(2)]),
        call(LOREAD, &[&int(0), &int(100)]),
        call(LO_LSEEK64, &[&int(0), &long(1 << 33), &int(0)]),
        call(LO_TRUNCATE, &[&int(0), &int(5)]),
        call(LO_TRUNCATE64, &[&int(0), &long(8)]),
        call(LO_CLOSE, &[&int(0)]),
        query("COMMIT"),
        call(LO_GET, &[&number]),
        call(LO_GET_PART, &[&number, &long(2), &int(3)]),
        call(LO_PUT, &[&number, &long(3), b"XY"]),
        query("SELECT lo_get(5000)"),
        call(LO_FROM_BYTEA, &[&int(5001), b"five"]),
        call(LO_GET, &[&int(5001)]),
        // Reading and seeking move the place at which the next write goes, on every server.
        query("BEGIN"),
        call(LO_OPEN, &[&number, &int(WRITE | READ)]),
        call(LOREAD, &[&int(0), &int(2)]),
        call(LOWRITE, &[&int(0), b"Z"]),
        call(LO_LSEEK, &[&int(0), &int(1), &int(1)]),
        call(LOWRITE, &[&int(0), b"Q"]),
        query("COMMIT"),
        query("SELECT encode(lo_get(5000), 'escape')"),
        // Descriptors end with the transaction, and by ROLLBACK what was written is gone.
        query("BEGIN"),
        call(LO_OPEN, &[&number, &int(READ)]),
        call(LOREAD, &[&int(0), &int(4)]),
        call(LOWRITE, &[&int(0), b"no"]),
        call(LOREAD, &[&int(0), &int(4)]),
        query("ROLLBACK"),
        query("BEGIN"),
        call(LO_OPEN, &[&number, &int(WRITE)]),
        query("SAVEPOINT a"),
        call(LOWRITE, &[&int(0), b"gone"]),
        query("ROLLBACK TO a"),
        call(LO_TELL, &[&int(0)]),
        query("COMMIT"),
        call(LO_TELL, &[&int(0)]),
        call(LO_GET, &[&number]),
        call(LO_CREATE, &[&number]),
        call(LO_UNLINK, &[&number]),
        call(LO_UNLINK, &[&number]),
        call(LO_GET, &[&int(77)]),
        call(LO_UNLINK, &[]),
        query("SELECT 1"),
    ];
    for step in &script {
        let expected = answers(&mut theirs, step).await;
        assert_eq!(
            answers(&mut ours, step).await,
            expected,
            "{}",
            String::from_utf8_lossy(step)
        );
    }
    assert_eq!(everywhere(&world, NUMBERS).await, "5001");
    everywhere(&world, OBJECTS).await;
}

/// Servers draw the same numbers, however far each has counted by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_equal_on_all_servers() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client
        .batch_execute("CREATE TABLE picture (id int PRIMARY KEY, content oid)")
        .await
        .unwrap();
    for (server, drift) in world.servers.iter().zip([0, 7, 100]) {
        let drifts = format!("DO $$BEGIN FOR n IN 1..{drift} LOOP PERFORM lo_unlink(lo_create(0)); END LOOP; END$$");
        server.supervise().await.batch_execute(&drifts).await.unwrap();
    }
    let created: u32 = client.query_one("SELECT lo_create(0)", &[]).await.unwrap().get(0);
    assert!(created >= 16384, "{created}");
    let row = client
        .query_one("SELECT lo_creat(-1), lo_from_bytea(0, '\\x0102')", &[])
        .await
        .unwrap();
    assert_ne!(row.get::<_, u32>(0), row.get::<_, u32>(1));
    client
        .execute(
            "INSERT INTO picture VALUES (1, lo_from_bytea(0, $1))",
            &[&&b"picture"[..]],
        )
        .await
        .unwrap();
    let body = "CREATE FUNCTION make_object() RETURNS oid LANGUAGE plpgsql AS $$BEGIN RETURN pg_catalog.lo_create(0); END$$; SELECT make_object()";
    client.batch_execute(body).await.unwrap();
    let shown = client
        .query_one("SELECT prosrc FROM pg_proc WHERE proname = 'make_object'", &[])
        .await
        .unwrap();
    assert_eq!(shown.get::<_, String>(0), "BEGIN RETURN lo_create(0); END");
    let mut raw = Raw::login(world.address).await;
    assert_eq!(raw.tags(&call(LO_CREAT, &[&int(-1)])).await, "VZ");
    assert_eq!(everywhere(&world, OBJECTS).await.split(',').count(), 6);
    assert_eq!(
        world
            .everywhere("SELECT encode(lo_get(content), 'escape') FROM picture")
            .await,
        "picture"
    );
    client
        .batch_execute("SELECT lo_unlink(content) FROM picture")
        .await
        .unwrap();
    assert_eq!(everywhere(&world, NUMBERS).await.split(',').count(), 5);
    for text in ["SELECT lo_import('/etc/passwd')", "SELECT lo_export(1, '/tmp/x')"] {
        let error = client.batch_execute(text).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{text}");
    }
    let rights = format!(
        "ALTER LARGE OBJECT {created} OWNER TO postgres; COMMENT ON LARGE OBJECT {created} IS 'x'; \
         GRANT SELECT ON LARGE OBJECT {created} TO PUBLIC"
    );
    client.batch_execute(&rights).await.unwrap();
    assert!(everywhere(&world, OBJECTS).await.contains("=r/postgres"));
}

/// psql and pg_dump call the functions by libpq.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_and_pg_dump_move_objects() {
    let world = World::start_voters().await;
    let place = tempfile::tempdir().unwrap();
    let (file, back) = (place.path().join("file"), place.path().join("back"));
    let content: Vec<u8> = (0..300_000_u32).map(|number| (number * 7 % 251) as u8).collect();
    std::fs::write(&file, &content).unwrap();
    let printed = world
        .psql(&["-c", &format!("\\lo_import {} picture", file.display())])
        .await;
    let number = printed
        .trim()
        .strip_prefix("lo_import ")
        .unwrap_or_else(|| panic!("{printed}"))
        .to_owned();
    let exported = world
        .psql(&["-c", &format!("\\lo_export {number} {}", back.display())])
        .await;
    assert_eq!(exported.trim(), "lo_export");
    assert_eq!(std::fs::read(&back).unwrap(), content);
    let dump = world.run("pg_dump", &["--blobs"]).await;
    assert!(
        dump.contains(&format!("lo_create('{number}')")),
        "{}",
        &dump[..dump.len().min(2000)]
    );
    let before = everywhere(&world, OBJECTS).await;
    let unlinked = world.psql(&["-c", &format!("\\lo_unlink {number}")]).await;
    assert_eq!(unlinked.trim(), format!("lo_unlink {number}"));
    let script = place.path().join("dump.sql");
    std::fs::write(&script, dump).unwrap();
    let restored = world.psql(&["-qf", script.to_str().unwrap()]).await;
    assert!(!restored.contains("lo_create: "), "{restored}");
    assert_eq!(everywhere(&world, OBJECTS).await, before, "{restored}");
}

/// A session that writes objects excludes those that work with objects, and nobody else; one that reads excludes no reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_objects_wait_for_each_other_and_nobody_else() {
    let world = World::start_voters().await;
    let setup = world.connect().await;
    setup
        .batch_execute("CREATE TABLE plain (id int PRIMARY KEY, v int); INSERT INTO plain VALUES (1, 0)")
        .await
        .unwrap();
    setup
        .batch_execute("SELECT lo_from_bytea(5000, 'read me')")
        .await
        .unwrap();
    let (mut one, mut other) = (Raw::login(world.address).await, Raw::login(world.address).await);
    for reader in [&mut one, &mut other] {
        assert_eq!(reader.tags(&query("BEGIN")).await, "CZ");
        let open = call(LO_OPEN, &[&int(5000), &int(READ)]);
        let opened = tokio::time::timeout(Duration::from_secs(5), reader.tags(&open));
        assert_eq!(opened.await.expect("readers do not wait for readers"), "VZ");
        assert_eq!(reader.tags(&call(LOREAD, &[&int(0), &int(4)])).await, "VZ");
    }
    assert_eq!(other.tags(&query("ROLLBACK")).await, "CZ");
    other.send(&call(LO_PUT, &[&int(5000), &long(0), b"READ"])).await;
    let waits = tokio::time::timeout(Duration::from_millis(500), other.next()).await;
    assert!(waits.is_err(), "a writer waits for a transaction that reads");
    let update = setup.batch_execute("UPDATE plain SET v = v + 1 WHERE id = 1");
    tokio::time::timeout(Duration::from_secs(5), update)
        .await
        .expect("tables are apart")
        .unwrap();
    assert_eq!(one.tags(&query("COMMIT")).await, "CZ");
    let written: Vec<_> = other.until_ready().await.iter().map(|answer| answer.tag).collect();
    assert_eq!(written, b"VZ");
    assert_eq!(
        everywhere(&world, "SELECT encode(lo_get(5000), 'escape')").await,
        "READ me"
    );
}

/// A call of any other function is refused, and a malformed call ends nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_function_calls_are_refused() {
    let world = World::start_voters().await;
    let mut raw = Raw::login(world.address).await;
    raw.send(&call(1299, &[])).await;
    let answers = raw.until_ready().await;
    assert_eq!(answers[0].field(b'C').as_deref(), Some("0A000"));
    raw.send(&call(LO_UNLINK, &[&int(1), &int(2)])).await;
    assert_eq!(raw.until_ready().await[0].field(b'C').as_deref(), Some("08P01"));
    assert_eq!(raw.tags(&query("SELECT 1")).await, "TDCZ");
}
