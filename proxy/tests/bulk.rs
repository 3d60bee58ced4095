//! COPY and long statements, whose data the machines keep outside the order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ordering::message::Kept;
use support::World;
use support::raw::{Answer, Raw, message, query};
use tokio::net::TcpStream;

/// A mebibyte of rows.
fn rows(first: usize) -> Vec<u8> {
    let rows = (first..first + 1024).map(|number| format!("{number:08}{}\n", "x".repeat(1015)));
    rows.collect::<String>().into_bytes()
}

async fn copying(world: &World) -> Raw<TcpStream> {
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("CREATE TABLE t (v text)")).await;
    raw.send(&query("COPY t FROM STDIN")).await;
    assert_eq!(raw.next().await.unwrap().tag, b'G');
    world.faults.take_seen();
    raw
}

async fn ended(raw: &mut Raw<TcpStream>) -> Answer {
    raw.send(&message(b'c', b"")).await;
    raw.until_ready().await.swap_remove(0)
}

/// Waits until every database says this: one that was not live runs what is committed a little later.
async fn eventually(world: &World, text: &str, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    for server in &world.servers {
        let client = server.connect().await;
        loop {
            let answer: Option<String> = client.query_one(text, &[]).await.unwrap().get(0);
            if answer.as_deref() == Some(expected) {
                break;
            }
            assert!(Instant::now() < deadline, "{answer:?} is not {expected}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What this process has in memory, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_200_mib_needs_no_more_memory_than_a_small_one() {
    let world = World::start_voters().await;
    let mut raw = copying(&world).await;
    for piece in 0..8 {
        raw.send(&message(b'd', &rows(piece * 1024))).await;
    }
    let (peak, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let before = resident();
    let watching = std::thread::spawn({
        let (peak, over) = (Arc::clone(&peak), Arc::clone(&over));
        move || {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let started = Instant::now();
    for piece in 8..200 {
        raw.send(&message(b'd', &rows(piece * 1024))).await;
    }
    assert_eq!(ended(&mut raw).await.text(), "COPY 204800");
    let seen = world.faults.take_seen();
    over.store(true, Ordering::Relaxed);
    watching.join().unwrap();
    let grown = peak.load(Ordering::Relaxed).saturating_sub(before);
    eprintln!("{:?}, {} MiB more than before", started.elapsed(), grown >> 20);
    assert!(seen.iter().filter(|kind| **kind == "store").count() >= 200);
    assert!(grown < 100 << 20, "{} MiB", grown >> 20);
    eventually(&world, "SELECT count(*)::text FROM t", "204800").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_gets_no_bodies_fetches_them_for_the_commit() {
    let world = World::start_voters().await;
    let mut raw = copying(&world).await;
    world.faults.mute(3);
    for piece in 0..4 {
        raw.send(&message(b'd', &rows(piece * 1024))).await;
    }
    assert_eq!(ended(&mut raw).await.text(), "COPY 4096");
    eventually(&world, "SELECT count(*)::text FROM t", "4096").await;
    assert!(world.faults.take_seen().contains(&"fetch body"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_statement_is_kept_outside_the_order() {
    let world = World::start_voters().await;
    let client = world.connect().await;
    client.batch_execute("CREATE TABLE t (id int, v text)").await.unwrap();
    world.faults.take_seen();
    let long = "x".repeat(400_000);
    client.execute("INSERT INTO t VALUES (1, $1)", &[&long]).await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    let inserted = client.execute("INSERT INTO t VALUES (2, $1)", &[&long]).await;
    assert_eq!(inserted.unwrap(), 1);
    let updated = client.execute("UPDATE t SET v = v || $1 WHERE id = 2", &[&long]).await;
    assert_eq!(updated.unwrap(), 1);
    client.batch_execute("COMMIT").await.unwrap();
    let stores = world.faults.take_seen();
    assert_eq!(stores.iter().filter(|kind| **kind == "store").count(), 3);
    let lengths = "SELECT string_agg(length(v)::text, ',' ORDER BY id) FROM t";
    eventually(&world, lengths, "400000,800000").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_machine_without_room_does_no_harm_and_two_do() {
    let world = World::start().await;
    let mut raw = copying(&world).await;
    world.faults.refuse_bodies(&[2], Kept::NoRoom);
    raw.send(&message(b'd', &rows(0))).await;
    assert_eq!(ended(&mut raw).await.text(), "COPY 1024");
    for (kept, sqlstate, hint) in [
        (Kept::NoRoom, "53100", "bodies_bytes_max"),
        (Kept::TooLarge, "54000", "transaction_bytes_max"),
    ] {
        world.faults.refuse_bodies(&[2, 3], kept);
        raw.send(&query("COPY t FROM STDIN")).await;
        assert_eq!(raw.next().await.unwrap().tag, b'G');
        raw.send(&message(b'd', &rows(0))).await;
        let error = ended(&mut raw).await;
        assert_eq!(error.field(b'C').as_deref(), Some(sqlstate));
        assert!(error.field(b'H').unwrap().contains(hint), "{error:?}");
    }
    world.faults.refuse_bodies(&[], Kept::NoRoom);
    raw.send(&query("SELECT count(*) FROM t")).await;
    assert!(raw.until_ready().await[1].body.ends_with(b"1024"));
}
