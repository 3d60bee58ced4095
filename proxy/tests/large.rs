//! Results that are larger than memory shall hold, on three real voters with a server each.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use support::World;
use support::raw::{Raw, query};
use tokio::sync::RwLock;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Held alone by the test that measures the memory of the process.
static PROCESS: RwLock<()> = RwLock::const_new(());

/// The same rows of about 1 KiB on all servers, in this order on each.
async fn with_rows(rows: u32, orders: [&str; 3]) -> (World, Client) {
    let world = World::start_voters().await;
    let client = world.connect().await;
    let create = "CREATE TABLE t (id int, filler text)";
    client.batch_execute(create).await.unwrap();
    for (server, order) in world.servers.iter().zip(orders) {
        let insert = format!(
            "INSERT INTO t SELECT i, repeat(md5(i::text), 31) FROM generate_series(1, {rows}) i ORDER BY {order}"
        );
        let server = server.connect().await;
        // The statement is over when two of them have run it.
        while server
            .query_one("SELECT to_regclass('t')::text", &[])
            .await
            .unwrap()
            .get::<_, Option<String>>(0)
            .is_none()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.batch_execute(&insert).await.unwrap();
    }
    world.faults.take_seen();
    (world, client)
}

const SAME: [&str; 3] = ["i"; 3];

/// A table that voters cannot read alike without ORDER BY.
const DIFFERING: [&str; 3] = ["i", "i DESC", "i % 1000, i"];

/// A digest of all that psql prints, and how many lines it has.
async fn printed(world: &World, text: &str) -> (String, String) {
    let command = format!(
        "psql -X -q -v ON_ERROR_STOP=1 -c \"{text}\" | sort | tee >(wc -l >&2) | md5sum; exit ${{PIPESTATUS[0]}}"
    );
    let output = tokio::process::Command::new("bash")
        .args(["-c", &command])
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", world.address.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    (text(output.stdout), text(output.stderr))
}

/// What COPY prints of these rows.
async fn expected(world: &World, rows: u32) -> (String, String) {
    let digest = format!(
        "SELECT md5(string_agg(line || E'\\n', '' ORDER BY line COLLATE \"C\")) FROM (SELECT i || E'\\t' || \
         repeat(md5(i::text), 31) AS line FROM generate_series(1, {rows}) i) lines"
    );
    let row = world.servers[0].connect().await.query_one(&digest, &[]).await.unwrap();
    (format!("{}  -", row.get::<_, String>(0)), rows.to_string())
}

/// The most memory that this process has used since [`forget_peak`], in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

async fn until_released(world: &World) {
    let start = Instant::now();
    while world.faults.spool.bytes_used() > 0 {
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{} bytes are kept",
            world.faults.spool.bytes_used()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn count(seen: &[&str], kind: &str) -> usize {
    seen.iter().filter(|seen| **seen == kind).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_out_of_200_mib_needs_little_memory() {
    let _process = PROCESS.write().await;
    let (world, client) = with_rows(200_000, SAME).await;
    forget_peak();
    let before = peak();
    assert_eq!(
        printed(&world, "COPY t TO STDOUT").await,
        expected(&world, 200_000).await
    );
    let needed = peak() - before;
    // Three voters and the proxy.
    assert!(needed < 100 << 20, "{} MiB", needed >> 20);
    let seen = world.faults.take_seen();
    assert!((190..=200).contains(&count(&seen, "chunk")), "each chunk came once");
    until_released(&world).await;
    let row = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 200_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_in_another_order_on_each_server_are_released_when_all_are_verified() {
    let _process = PROCESS.read().await;
    let (world, _client) = with_rows(20_000, DIFFERING).await;
    let copied = printed(&world, "COPY t TO STDOUT").await;
    assert_eq!(copied, expected(&world, 20_000).await);
    until_released(&world).await;
    for machine in 1..=3 {
        world.faults.forger(machine);
        let copied = printed(&world, "COPY t TO STDOUT").await;
        assert_eq!(copied, expected(&world, 20_000).await, "m{machine} lies");
        world.faults.heal();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_voters_chunk_is_refused() {
    let _process = PROCESS.read().await;
    let (world, _client) = with_rows(10_000, SAME).await;
    for machine in 1..=3 {
        world.faults.forger(machine);
        // Which voter is asked is drawn: each statement is repeated until it was the one that lies.
        for text in ["COPY t TO STDOUT", "COPY (SELECT * FROM t ORDER BY id) TO STDOUT"] {
            let start = Instant::now();
            while count(&world.faults.take_seen(), "forged chunk") == 0 {
                assert!(start.elapsed() < Duration::from_secs(60), "m{machine} was never asked");
                assert_eq!(
                    printed(&world, text).await,
                    expected(&world, 10_000).await,
                    "m{machine} lies"
                );
            }
        }
        world.faults.heal();
    }
    // Nobody is left who tells the truth: the application gets an error, and no false byte.
    (1..=3).for_each(|machine| world.faults.forger(machine));
    let (_, error) = printed(&world, "COPY t TO STDOUT").await;
    assert!(error.contains("not kept any more"), "{error}");
    world.faults.heal();
    until_released(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_around_the_size_of_a_chunk_are_whole() {
    let _process = PROCESS.read().await;
    let world = World::start_voters().await;
    let client = world.connect().await;
    let chunk = 1_usize << 20;
    for bytes in (chunk - 70..chunk + 5).chain([2 * chunk - 60, 2 * chunk, 3 * chunk, 20 * chunk]) {
        let text = format!("SELECT repeat('x', {bytes})");
        let row = client.query_one(&text, &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0).len(), bytes);
    }
    // In several statements and rows, and by the simple protocol.
    let text = "SELECT repeat('a', 600000); SELECT repeat('b', 400000 + i) FROM generate_series(1, 7) i; SELECT 'end'";
    let messages = client.simple_query(text).await.unwrap();
    let rows: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap().len()),
            _ => None,
        })
        .collect();
    assert_eq!(
        rows,
        [
            600_000, 400_001, 400_002, 400_003, 400_004, 400_005, 400_006, 400_007, 3
        ]
    );
    let error = client.simple_query("SELECT repeat('x', 30000000)").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "54000");
    until_released(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_results_of_the_extended_protocol_and_of_transactions() {
    let _process = PROCESS.read().await;
    let (world, mut client) = with_rows(5_000, SAME).await;
    let statement = client.prepare("SELECT id, filler FROM t WHERE id <= $1").await.unwrap();
    let rows = client.query(&statement, &[&5000]).await.unwrap();
    assert_eq!(rows.len(), 5000);
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let begin = format!("BEGIN ISOLATION LEVEL {isolation}");
        client.batch_execute(&begin).await.unwrap();
        assert_eq!(client.query(&statement, &[&4000]).await.unwrap().len(), 4000);
        client.batch_execute("COMMIT").await.unwrap();
    }
    // The application sees one voter's answers, which f+1 certify at COMMIT.
    client
        .batch_execute("SET cloudbft.answers = 'at_commit'")
        .await
        .unwrap();
    let transaction = client.transaction().await.unwrap();
    let update = "UPDATE t SET id = id + 10000 RETURNING id, filler";
    assert_eq!(transaction.query(update, &[]).await.unwrap().len(), 5000);
    transaction.commit().await.unwrap();
    client.batch_execute("RESET cloudbft.answers").await.unwrap();
    assert_eq!(client.query(update, &[]).await.unwrap().len(), 5000);
    let sum = "SELECT sum(id)::bigint - 5000 * 20000 FROM t";
    let row = client.query_one(sum, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 5000 * 5001 / 2);
    until_released(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_after_many_rows_is_the_databases_own() {
    let _process = PROCESS.read().await;
    let (world, client) = with_rows(3_000, SAME).await;
    let failing = "SELECT id, filler, 1 / (id - 2900) FROM t";
    let error = client.simple_query(failing).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    let error = client.query(failing, &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    client.batch_execute("BEGIN; SELECT 1").await.unwrap();
    client.query(failing, &[]).await.unwrap_err();
    let error = client.batch_execute("SELECT 1").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25P02");
    client.batch_execute("ROLLBACK").await.unwrap();
    until_released(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_and_a_disconnect_end_the_release() {
    let _process = PROCESS.read().await;
    let (world, client) = with_rows(60_000, SAME).await;
    let started = async {
        while count(&world.faults.take_seen(), "chunk") == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Instant::now()
    };
    let cancel = async {
        let started = started.await;
        client.cancel_token().cancel_query(NoTls).await.unwrap();
        started
    };
    let (outcome, started) = tokio::join!(client.simple_query("SELECT * FROM t"), cancel);
    assert_eq!(outcome.unwrap_err().code().unwrap().code(), "57014");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    until_released(&world).await;
    assert_eq!(client.query("SELECT 1", &[]).await.unwrap().len(), 1);
    // An application that takes nothing, and goes.
    let mut raw = Raw::login(world.address).await;
    raw.send(&query("SELECT * FROM t")).await;
    while count(&world.faults.take_seen(), "chunk") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(world.faults.spool.bytes_used() > 0);
    drop(raw);
    let gone = Instant::now();
    until_released(&world).await;
    assert!(gone.elapsed() < Duration::from_secs(1));
}

/// How the application gives up a statement.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Cancels,
    HasALimit,
    Goes,
}

/// Waits until no server runs anything for an application.
async fn until_idle(world: &World, after: &str) {
    let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ 'FROM t a'";
    let start = Instant::now();
    for server in &world.servers {
        let server = server.supervise().await;
        while server.query_one(running, &[]).await.unwrap().get::<_, i64>(0) > 1 {
            assert!(start.elapsed() < Duration::from_secs(1), "a server goes on: {after}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_without_end_is_given_up_while_it_is_kept() {
    let _process = PROCESS.read().await;
    let (world, _client) = with_rows(10_000, SAME).await;
    for block in ["", "BEGIN; UPDATE t SET id = id WHERE id = 1"] {
        for how in [Leaves::Cancels, Leaves::HasALimit, Leaves::Goes] {
            let (mut raw, cancel) = Raw::cancellable(world.address).await;
            raw.tags(&query(block)).await;
            if matches!(how, Leaves::HasALimit) {
                raw.tags(&query("SET statement_timeout = '1s'")).await;
            }
            raw.send(&query("SELECT a.*, b.* FROM t a, t b")).await;
            let start = Instant::now();
            while world.faults.spool.bytes_used() < 4 << 20 {
                assert!(start.elapsed() < Duration::from_secs(5), "nothing is kept");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            match how {
                Leaves::Cancels => Raw::open(world.address).await.send(&cancel).await,
                Leaves::HasALimit => tokio::time::sleep_until((start + Duration::from_secs(1)).into()).await,
                Leaves::Goes => {}
            }
            let given_up = Instant::now();
            if matches!(how, Leaves::Goes) {
                drop(raw);
            } else {
                let answers = raw.until_ready().await;
                let error = answers.iter().find(|answer| answer.tag == b'E').unwrap();
                assert_eq!(error.field(b'C').as_deref(), Some("57014"), "{how:?}");
                raw.tags(&query("ROLLBACK")).await;
            }
            until_idle(&world, &format!("{how:?} in {block:?}")).await;
            until_released(&world).await;
            let took = given_up.elapsed();
            assert!(took < Duration::from_millis(1500), "{how:?} in {block:?}: {took:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_timeout_counts_until_the_whole_result_is_sent() {
    let _process = PROCESS.read().await;
    let (world, _client) = with_rows(60_000, SAME).await;
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("SET statement_timeout = '5s'")).await;
    raw.send(&query("SELECT * FROM t")).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let answers = raw.until_ready().await;
    let error = answers.iter().find(|answer| answer.tag == b'E').unwrap();
    assert_eq!(error.field(b'C').as_deref(), Some("57014"));
    assert!(error.field(b'M').unwrap().contains("statement timeout"));
    assert!(answers.len() > 1000, "it came too late to begin");
    until_released(&world).await;
    assert_eq!(raw.tags(&query("SELECT 1")).await, "TDCZ");
}

/// Notices of deferred triggers come with COMMIT, all of them, in a transaction block as in autocommit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_with_many_notices_delivers_all() {
    let _process = PROCESS.read().await;
    let world = World::start_voters().await;
    let client = world.connect().await;
    for text in [
        "CREATE TABLE noisy (id int PRIMARY KEY)",
        "CREATE FUNCTION noise() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN RAISE NOTICE '% %', NEW.id, repeat('x', 100000); RETURN NULL; END$$",
        "CREATE CONSTRAINT TRIGGER noise AFTER INSERT ON noisy DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION noise()",
    ] {
        client.batch_execute(text).await.unwrap();
    }
    let insert = |from: u32| format!("INSERT INTO noisy SELECT i FROM generate_series({from}, {from} + 24) i");
    let block = world.psql(&["-c", "BEGIN", "-c", &insert(1), "-c", "COMMIT"]).await;
    assert_eq!(block.matches("NOTICE:").count(), 25, "{} bytes", block.len());
    assert!(block.contains("COMMIT"));
    let alone = world.psql(&["-c", &insert(100)]).await;
    assert_eq!(alone.matches("NOTICE:").count(), 25, "{} bytes", alone.len());
    let count = client.query_one("SELECT count(*) FROM noisy", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 50);
    until_released(&world).await;
}

/// COPY out runs once on each server, also when one is late: it is not asked directly first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_out_runs_once() {
    let _process = PROCESS.read().await;
    let (world, _client) = with_rows(2_000, SAME).await;
    let late = world.servers[2].connect().await;
    late.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    for text in ["COPY t TO STDOUT", "COPY (SELECT * FROM t ORDER BY id) TO STDOUT"] {
        assert_eq!(printed(&world, text).await, expected(&world, 2_000).await);
    }
    late.batch_execute("ROLLBACK").await.unwrap();
    let seen = world.faults.take_seen();
    assert_eq!((count(&seen, "read"), count(&seen, "ordered read")), (0, 2), "{seen:?}");
    until_released(&world).await;
}
