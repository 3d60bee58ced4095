//! Limits of what one application, or a stranger, can make the proxy hold.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use proxy::{Authentication, RoleConfig};
use support::World;
use support::raw::{Answer, Raw, bind, execute, message, parse, query, startup, sync};
use tokio::io::AsyncWriteExt;

fn sqlstate(answers: &[Answer]) -> String {
    let error = answers.iter().find(|answer| answer.tag == b'E');
    error.and_then(|answer| answer.field(b'C')).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_without_a_sync_are_answered_before_they_pile_up() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    let close = message(b'C', b"S\0");
    raw.send(&close.repeat(20_000)).await;
    let first = tokio::time::timeout(Duration::from_secs(5), raw.next()).await;
    assert_eq!(first.expect("answers come without Sync").unwrap().tag, b'3');
    // A text that each Parse replaces is not kept for ever either.
    let text = format!("COMMIT /* {} */", "x".repeat(1 << 20));
    raw.send(&parse("", &text).repeat(20)).await;
    let mut parsed = 0;
    while parsed < 10 {
        let next = tokio::time::timeout(Duration::from_secs(5), raw.next()).await;
        parsed += usize::from(next.expect("answers come without Sync").unwrap().tag == b'1');
    }
    raw.send(&sync()).await;
    raw.until_ready().await;
    // And an error takes back only what came after what was answered.
    assert_eq!(raw.tags(&[parse("s", "SELECT 1"), sync()].concat()).await, "1Z");
    assert_eq!(
        raw.tags(&[bind("", "s", &[]), execute("", 0), sync()].concat()).await,
        "2DCZ"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_of_a_session_are_bounded_in_bytes() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    let text = format!("COMMIT /* {} */", "x".repeat(4 << 20));
    let mut kept = 0;
    let refused = loop {
        raw.send(&[parse(&format!("s{kept}"), &text), sync()].concat()).await;
        let answers = raw.until_ready().await;
        match answers[0].tag {
            b'1' => kept += 1,
            _ => break answers,
        }
        assert!(kept < 20, "{kept} statements of 4 MiB are kept");
    };
    assert_eq!(sqlstate(&refused), "54000");
    assert_eq!(kept, 15);
    // Nothing else is lost, and room comes back.
    assert_eq!(
        raw.tags(&[bind("", "s3", &[]), execute("", 0), sync()].concat()).await,
        "2NCZ"
    );
    assert_eq!(raw.tags(&[message(b'C', b"Ss3\0"), sync()].concat()).await, "3Z");
    assert_eq!(raw.tags(&[parse("again", &text), sync()].concat()).await, "1Z");
    assert_eq!(raw.tags(&query("DEALLOCATE ALL")).await, "CZ");
    for name in 0..15 {
        let bytes = [parse(&format!("s{name}"), &text), sync()].concat();
        assert_eq!(raw.tags(&bytes).await, "1Z");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_say_nothing_do_not_shut_out_others() {
    let world = World::start_with(|config| config.connections_max = 5).await;
    let mut strangers = Vec::new();
    for _ in 0..400 {
        strangers.push(Raw::open(world.address).await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let client = tokio::time::timeout(Duration::from_secs(5), world.try_connect("")).await;
    let client = client.unwrap().unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_is_taken_only_by_who_has_logged_in() {
    let world = World::start_with(|config| {
        config.connections_max = 1;
        config.authentication = Authentication::ScramSha256;
        config.roles = vec![RoleConfig {
            name: "postgres".into(),
            verifier: Some(postgres_protocol::password::scram_sha_256(b"right")),
        }];
    })
    .await;
    let mut stranger = Raw::open(world.address).await;
    stranger.send(&startup(3 << 16, &[("user", "postgres")])).await;
    assert_eq!(stranger.next().await.unwrap().tag, b'R');
    let client = world.try_connect("password=right").await.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
    let error = world.try_connect("password=right").await.err().unwrap();
    assert_eq!(error.code().map(|code| code.code()), Some("53300"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bind_that_does_not_fit_costs_the_statement_only() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    assert_eq!(
        raw.tags(&[parse("s", "SELECT $1::int, $2::int"), parse("b", "BEGIN"), sync()].concat())
            .await,
        "11Z"
    );
    let custom = |statement: &str, rest: &[u8]| message(b'B', &[format!("\0{statement}\0").as_bytes(), rest].concat());
    let cases = [
        (
            bind("", "s", &["1"]),
            "08P01",
            "bind message supplies 1 parameters, but prepared statement \"s\" requires 2",
        ),
        (
            bind("", "s", &["1", "2", "3"]),
            "08P01",
            "bind message supplies 3 parameters, but prepared statement \"s\" requires 2",
        ),
        (
            bind("", "b", &["1"]),
            "08P01",
            "bind message supplies 1 parameters, but prepared statement \"b\" requires 0",
        ),
        // Three formats of two parameters.
        (
            custom(
                "s",
                &[
                    0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
                ],
            ),
            "08P01",
            "bind message has 3 parameter formats but 2 parameters",
        ),
        (
            custom("b", &[0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0]),
            "08P01",
            "bind message has 3 result formats but query has 0 columns",
        ),
        (
            custom("b", &[0, 0, 0, 0, 0, 1, 0, 7]),
            "22023",
            "unsupported format code: 7",
        ),
    ];
    for (bytes, code, text) in cases {
        raw.send(&[bytes, execute("", 0), sync()].concat()).await;
        let answers = raw.until_ready().await;
        assert_eq!(sqlstate(&answers), code, "{text}");
        assert_eq!(answers[0].field(b'M').as_deref(), Some(text));
        assert_eq!(answers[0].field(b'S').as_deref(), Some("ERROR"));
        assert_eq!(answers.last().unwrap().tag, b'Z');
    }
    assert_eq!(
        raw.tags(&[bind("", "s", &["1", "2"]), execute("", 0), sync()].concat())
            .await,
        "2DCZ"
    );
    // The unnamed statement is called so.
    raw.send(&[parse("", "SELECT $1::int"), bind("", "", &[]), sync()].concat())
        .await;
    let answers = raw.until_ready().await;
    let error = answers.iter().find(|answer| answer.tag == b'E').unwrap();
    assert_eq!(
        error.field(b'M').as_deref(),
        Some("bind message supplies 0 parameters, but prepared statement \"\" requires 1")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_data_passes_through_in_pieces_however_large_a_message_is() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("CREATE TABLE t (v text)")).await;
    raw.send(&query("COPY t FROM STDIN")).await;
    assert_eq!(raw.next().await.unwrap().tag, b'G');
    // One message of 70 MiB: larger than any other message may be.
    let line = [vec![b'x'; (1 << 20) - 1], b"\n".to_vec()].concat();
    let mut header = vec![b'd'];
    header.extend_from_slice(&(70 * (1_u32 << 20) + 4).to_be_bytes());
    raw.stream.write_all(&header).await.unwrap();
    world.faults.take_seen();
    for count in 0..70 {
        raw.stream.write_all(&line).await.unwrap();
        if count == 40 {
            // The first pieces are on their way long before the message ends.
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(world.faults.take_seen().len() >= 20);
        }
    }
    assert_eq!(raw.tags(&message(b'c', b"")).await, "CZ");
    raw.send(&query("SELECT count(*) FROM t")).await;
    assert!(raw.until_ready().await[1].body.ends_with(b"70"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_startup_packet_that_trickles_in_is_not_waited_for() {
    let world = World::start().await;
    let mut raw = Raw::open(world.address).await;
    let start = std::time::Instant::now();
    for byte in startup(3 << 16, &[("user", "postgres")]) {
        // The end shows as an error of writing, or of reading.
        if raw.stream.write_all(&[byte]).await.is_err() {
            break;
        }
        let read = tokio::time::timeout(Duration::from_secs(1), raw.next()).await;
        if read.is_ok() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "the proxy still waits");
    }
    assert!(start.elapsed() > Duration::from_secs(5), "{:?}", start.elapsed());
}

/// The salt and the iterations that a role's SCRAM exchange begins with.
async fn salt_of(world: &World, role: &str) -> String {
    let mut raw = Raw::open(world.address).await;
    raw.send(&startup(3 << 16, &[("user", role)])).await;
    raw.next().await.unwrap();
    let first = b"n,,n=,r=abc";
    let mut body = b"SCRAM-SHA-256\0".to_vec();
    body.extend_from_slice(&(first.len() as u32).to_be_bytes());
    body.extend_from_slice(first);
    raw.send(&message(b'p', &body)).await;
    let text = raw.next().await.unwrap().text();
    text.split_once(",s=").unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_tell_which_roles_exist() {
    let verifier = "SCRAM-SHA-256$9000:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\
                    $AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let start = || {
        World::start_with(|config| {
            config.authentication = Authentication::ScramSha256;
            config.roles = vec![RoleConfig {
                name: "postgres".into(),
                verifier: Some(verifier.into()),
            }];
        })
    };
    let world = start().await;
    let real = salt_of(&world, "postgres").await;
    let made_up = salt_of(&world, "nobody").await;
    assert_eq!(made_up.len(), real.len());
    assert!(made_up.ends_with(",i=9000"), "{made_up}");
    assert_ne!(made_up, real);
    assert_eq!(made_up, salt_of(&world, "nobody").await);
    assert_eq!(made_up, salt_of(&start().await, "nobody").await, "after a restart");
}
