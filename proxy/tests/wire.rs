//! The wire protocol byte by byte: each item is a weakness of some library or pooler (reference, "Being Postgres on
//! the wire").

mod support;

use std::time::Duration;

use proxy::{Authentication, RoleConfig};
use support::World;
use support::raw::{Answer, Raw, bind, execute, message, parse, query, startup, sync};

fn tags(answers: &[Answer]) -> String {
    answers.iter().map(|answer| answer.tag as char).collect()
}

fn sqlstate(answers: &[Answer]) -> Option<String> {
    answers
        .iter()
        .find(|answer| answer.tag == b'E')
        .and_then(|answer| answer.field(b'C'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_end_the_connection_with_an_error() {
    let world = World::start().await;
    let malformed = [
        message(b'B', b"\0\0\xff\xff"),
        message(b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0"),
        message(b'P', b"\0SELECT 1\0\x7f\xff"),
        message(b'D', b"X\0"),
        message(b'S', b"surplus"),
        message(b'z', b""),
        b"Q\0\0\0\x03".to_vec(),
    ];
    for bytes in malformed {
        let mut raw = Raw::login(world.address).await;
        raw.send(&bytes).await;
        let answers = raw.until_ready().await;
        assert_eq!(sqlstate(&answers).as_deref(), Some("08P01"), "{bytes:?}");
        assert_eq!(answers.last().unwrap().tag, b'E', "the connection is closed");
    }
    let mut raw = Raw::login(world.address).await;
    raw.send(b"Q\x40\0\0\0").await;
    assert_eq!(sqlstate(&raw.until_ready().await).as_deref(), Some("54000"));
    // Text that is not UTF-8 costs the statement, not the connection.
    let mut raw = Raw::login(world.address).await;
    raw.send(&message(b'Q', b"SELECT '\xff'\0")).await;
    let answers = raw.until_ready().await;
    assert_eq!(
        (tags(&answers).as_str(), sqlstate(&answers).as_deref()),
        ("EZ", Some("22021"))
    );
    let bytes = [message(b'P', b"\xff\0SELECT 1\0\0\0"), bind("", "", &[]), sync()].concat();
    assert_eq!(raw.tags(&bytes).await, "EZ");
    assert_eq!(raw.tags(&query("SELECT 1")).await, "TDCZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn startup_is_as_postgres_does_it() {
    let world = World::start().await;
    for code in [80_877_103_u32, 80_877_104] {
        let mut raw = Raw::open(world.address).await;
        raw.send(&[&8_u32.to_be_bytes()[..], &code.to_be_bytes()].concat())
            .await;
        let mut answer = [0];
        tokio::io::AsyncReadExt::read_exact(&mut raw.stream, &mut answer)
            .await
            .unwrap();
        assert_eq!(&answer, b"N");
        raw.send(&startup(3 << 16, &[("user", "postgres")])).await;
        assert_eq!(raw.until_ready().await.last().unwrap().tag, b'Z');
    }
    let mut raw = Raw::open(world.address).await;
    raw.send(&startup(
        3 << 16,
        &[("user", "postgres"), ("application_name", "test"), ("work_mem", "1MB")],
    ))
    .await;
    let answers = raw.until_ready().await;
    let parameters: Vec<String> = answers
        .iter()
        .filter(|answer| answer.tag == b'S')
        .map(Answer::text)
        .collect();
    for expected in [
        "server_encoding\0UTF8",
        "client_encoding\0UTF8",
        "DateStyle\0ISO, MDY",
        "integer_datetimes\0on",
        "standard_conforming_strings\0on",
        "application_name\0test",
        "is_superuser\0off",
        "session_authorization\0postgres",
        "in_hot_standby\0off",
        "default_transaction_read_only\0off",
        "IntervalStyle\0postgres",
    ] {
        assert!(
            parameters.iter().any(|parameter| parameter == expected),
            "{expected}: {parameters:?}"
        );
    }
    assert!(
        parameters
            .iter()
            .any(|parameter| parameter.starts_with("server_version\x0015."))
    );
    // A short cancel key before 3.2, a long one from there on; newer versions are negotiated down.
    let key = |answers: &[Answer]| answers.iter().find(|answer| answer.tag == b'K').unwrap().body.len();
    assert_eq!(key(&answers), 8);
    let mut raw = Raw::open(world.address).await;
    raw.send(&startup(3 << 16 | 2, &[("user", "postgres")])).await;
    assert_eq!(key(&raw.until_ready().await), 36);
    let mut raw = Raw::open(world.address).await;
    raw.send(&startup(3 << 16 | 9999, &[("user", "postgres"), ("_pq_.grease", "1")]))
        .await;
    let answers = raw.until_ready().await;
    let negotiated = answers.iter().find(|answer| answer.tag == b'v').unwrap();
    assert_eq!(
        negotiated.body,
        [&[0, 3, 0, 2, 0, 0, 0, 1][..], b"_pq_.grease\0"].concat()
    );
    for (parameters, expected) in [
        (&[("user", "nobody")][..], "28000"),
        (&[("user", "postgres"), ("database", "nothing")], "3D000"),
        (&[("user", "postgres"), ("replication", "database")], "0A000"),
        (&[("user", "postgres"), ("client_encoding", "LATIN1")], "0A000"),
        (&[("user", "postgres"), ("work_mem", "much")], "22023"),
        (&[("database", "postgres")], "28000"),
    ] {
        let mut raw = Raw::open(world.address).await;
        raw.send(&startup(3 << 16, parameters)).await;
        assert_eq!(
            sqlstate(&raw.until_ready().await).as_deref(),
            Some(expected),
            "{parameters:?}"
        );
    }
    let mut raw = Raw::open(world.address).await;
    raw.send(&startup(2 << 16, &[])).await;
    assert_eq!(sqlstate(&raw.until_ready().await).as_deref(), Some("0A000"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_spelling_of_utf8_is_utf8() {
    let world = World::start().await;
    // The second one, with its quotes, is asyncpg's.
    for spelling in ["UTF8", "'utf-8'", "unicode", "Utf_8", " utf 8 ", "\"UNICODE\"", "auto"] {
        let mut raw = Raw::open(world.address).await;
        raw.send(&startup(
            3 << 16,
            &[("user", "postgres"), ("client_encoding", spelling)],
        ))
        .await;
        let answers = raw.until_ready().await;
        assert_eq!(sqlstate(&answers), None, "{spelling}");
        assert!(
            answers.iter().any(|answer| answer.text() == "client_encoding\0UTF8"),
            "{spelling}"
        );
    }
    let mut raw = Raw::open(world.address).await;
    raw.send(&startup(
        3 << 16,
        &[("user", "postgres"), ("options", "-c client_encoding='utf-8'")],
    ))
    .await;
    assert_eq!(sqlstate(&raw.until_ready().await), None);
    for text in [
        "SET client_encoding TO 'utf-8'",
        "SET client_encoding = UTF8",
        "SET client_encoding = '''utf-8'''",
        "SET NAMES 'Unicode'",
        "SET NAMES 'utf_8'",
        "RESET client_encoding",
        "SET client_encoding TO DEFAULT",
    ] {
        assert_eq!(raw.tags(&query(text)).await, "CZ", "{text}");
    }
    for text in [
        "SELECT set_config('client_encoding', 'utf-8', false)",
        "SHOW client_encoding",
    ] {
        raw.send(&query(text)).await;
        let answers = raw.until_ready().await;
        assert_eq!(tags(&answers), "TDCZ", "{text}");
        assert!(answers[1].body.ends_with(b"UTF8"), "{text}");
    }
    for text in ["SET client_encoding TO 'latin1'", "SET NAMES 'sql_ascii'"] {
        assert_eq!(raw.tags(&query(text)).await, "EZ", "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_comes_without_a_sync() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    for failing in [
        parse("", "SELECT * FROM missing"),
        parse("", "SELECT 1; SELECT 2"),
        bind("", "missing", &[]),
        [parse("", "SELECT 1 / $1::int"), bind("", "", &["0"]), execute("", 0)].concat(),
    ] {
        raw.send(&failing).await;
        let mut last = 0;
        while last != b'E' {
            let answer = tokio::time::timeout(Duration::from_secs(5), raw.next()).await;
            last = answer.expect("the error comes").unwrap().tag;
        }
        raw.send(&sync()).await;
        let end = raw.until_ready().await;
        assert_eq!((tags(&end).as_str(), &end[0].body[..]), ("Z", &b"I"[..]));
    }
    // Without an error nothing is said before Sync.
    raw.send(&[parse("", "SELECT 1"), bind("", "", &[]), execute("", 0)].concat())
        .await;
    let early = tokio::time::timeout(Duration::from_millis(500), raw.next()).await;
    assert!(early.is_err());
    assert_eq!(raw.tags(&sync()).await, "12DCZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parse_that_fails_removes_the_unnamed_statement() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    let run = [bind("", "", &[]), execute("", 0), sync()].concat();
    for failing in ["SELECT FROM WHERE", "SELECT 1; SELECT 2", "SELECT * FROM missing"] {
        assert_eq!(raw.tags(&[parse("", "SELECT 1"), sync()].concat()).await, "1Z");
        assert_eq!(raw.tags(&run).await, "2DCZ");
        assert_eq!(raw.tags(&[parse("", failing), sync()].concat()).await, "EZ");
        raw.send(&run).await;
        let answers = raw.until_ready().await;
        assert_eq!(sqlstate(&answers).as_deref(), Some("26000"), "{failing}");
    }
    // One that is skipped removes nothing, and a Close that is skipped neither.
    assert_eq!(
        raw.tags(&[parse("", "SELECT 1"), parse("s", "SELECT 1"), sync()].concat())
            .await,
        "11Z"
    );
    let close = [message(b'C', b"S\0"), message(b'C', b"Ss\0")].concat();
    let skipped = [
        parse("x", "SELECT * FROM missing"),
        parse("", "SELECT 2, 3"),
        close,
        sync(),
    ]
    .concat();
    assert_eq!(raw.tags(&skipped).await, "EZ");
    assert_eq!(raw.tags(&run).await, "2DCZ");
    assert_eq!(
        raw.tags(&[bind("", "s", &[]), execute("", 0), sync()].concat()).await,
        "2DCZ"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_local_holds_for_the_rest_of_a_text() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    raw.send(&query("SET LOCAL lock_timeout = '2s'; SHOW lock_timeout"))
        .await;
    let answers = raw.until_ready().await;
    assert_eq!(tags(&answers), "CTDCZ", "no warning");
    assert!(answers[2].body.ends_with(b"2s"));
    assert_eq!(raw.tags(&query("SET LOCAL lock_timeout = '2s'")).await, "NCZ");
    raw.send(&query("SHOW lock_timeout")).await;
    assert!(raw.until_ready().await[1].body.ends_with(b"\x010"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asyncpg_works() {
    let world = World::start().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clients/asyncpg_transaction.py");
    let dsn = format!("postgresql://postgres@{}/postgres", world.address);
    assert_eq!(world.run("/usr/bin/python3", &[script, &dsn]).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_are_answered_in_order() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("CREATE TABLE t (id int PRIMARY KEY)")).await;
    let insert = |id: &str| [bind("", "s", &[id]), execute("", 0)].concat();
    let prepare = parse("s", "INSERT INTO t VALUES ($1)");
    let bytes = [prepare.clone(), insert("1"), insert("2"), sync(), insert("3"), sync()].concat();
    raw.send(&bytes).await;
    assert_eq!(tags(&raw.until_ready().await), "12C2CZ");
    assert_eq!(tags(&raw.until_ready().await), "2CZ");
    // An error skips to Sync, and undoes the whole implicit transaction.
    assert_eq!(
        raw.tags(&[insert("4"), insert("4"), insert("5"), sync()].concat())
            .await,
        "2C2EZ"
    );
    let answers = raw.tags(&query("SELECT count(*) FROM t")).await;
    assert_eq!(answers, "TDCZ");
    // Flush: answers come without Sync; the transaction ends at Sync.
    raw.send(&[insert("6"), message(b'H', b"")].concat()).await;
    assert_eq!(
        (raw.next().await.unwrap().tag, raw.next().await.unwrap().tag),
        (b'2', b'C')
    );
    assert_eq!(raw.tags(&[insert("6"), sync()].concat()).await, "2EZ");
    raw.send(&query("SELECT count(*) FROM t")).await;
    let answers = raw.until_ready().await;
    assert_eq!(answers[1].body[6..], *b"3");
    // A name that exists, one that does not, and what a failed pipeline prepared.
    assert_eq!(raw.tags(&[prepare, sync()].concat()).await, "EZ");
    assert_eq!(raw.tags(&[bind("", "no", &[]), sync()].concat()).await, "EZ");
    let failing = [parse("p", "SELECT nothing"), parse("q", "SELECT 1"), sync()].concat();
    assert_eq!(raw.tags(&failing).await, "EZ");
    assert_eq!(raw.tags(&[parse("q", "SELECT 1"), sync()].concat()).await, "1Z");
    // Close in the middle of a pipeline, an empty statement, transaction control between statements.
    let close = message(b'C', b"Sq\0");
    let bytes = [
        bind("", "q", &[]),
        close,
        execute("", 0),
        parse("", ""),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    assert_eq!(raw.tags(&bytes.concat()).await, "23DC12IZ");
    let begin = [parse("", "BEGIN"), bind("", "", &[]), execute("", 0)].concat();
    let rollback = [parse("", "ROLLBACK"), bind("", "", &[]), execute("", 0)].concat();
    assert_eq!(
        raw.tags(&[begin, insert("7"), rollback, sync()].concat()).await,
        "12C2C12CZ"
    );
    assert_eq!(raw.tags(&query("INSERT INTO t VALUES (7)")).await, "CZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portals_suspend_and_end_with_their_transaction() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("CREATE TABLE t AS SELECT generate_series(1, 5) AS id"))
        .await;
    raw.tags(&query("BEGIN")).await;
    let open = [
        parse("", "SELECT id FROM t"),
        bind("p", "", &[]),
        execute("p", 2),
        sync(),
    ]
    .concat();
    assert_eq!(raw.tags(&open).await, "12DDsZ");
    assert_eq!(raw.tags(&[execute("p", 2), sync()].concat()).await, "DDsZ");
    assert_eq!(raw.tags(&[execute("p", 0), sync()].concat()).await, "DCZ");
    assert_eq!(raw.tags(&query("COMMIT")).await, "CZ");
    raw.send(&[execute("p", 0), sync()].concat()).await;
    assert_eq!(sqlstate(&raw.until_ready().await).as_deref(), Some("34000"));
    // Without a transaction, a portal ends at Sync.
    assert_eq!(raw.tags(&open).await, "12DDsZ");
    assert_eq!(raw.tags(&[execute("p", 2), sync()].concat()).await, "EZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_follows_the_protocol() {
    let world = World::start().await;
    let mut raw = Raw::login(world.address).await;
    raw.tags(&query("CREATE TABLE t (id int)")).await;
    let start = query("COPY t FROM STDIN");
    raw.send(&start).await;
    assert_eq!(raw.next().await.unwrap().tag, b'G');
    // Rows may be split anywhere; Sync and Flush mean nothing here.
    let bytes = [
        message(b'd', b"1\n2"),
        sync(),
        message(b'd', b"2\n"),
        message(b'H', b""),
        message(b'c', b""),
    ]
    .concat();
    raw.send(&bytes).await;
    let answers = raw.until_ready().await;
    assert_eq!(answers[0].text(), "COPY 2");
    raw.send(&start).await;
    raw.next().await;
    raw.send(&[message(b'd', b"3\n"), message(b'f', b"enough\0")].concat())
        .await;
    let answers = raw.until_ready().await;
    assert_eq!(
        (tags(&answers).as_str(), sqlstate(&answers).as_deref()),
        ("EZ", Some("57014"))
    );
    assert!(answers[0].field(b'M').unwrap().contains("enough"));
    raw.send(&start).await;
    raw.next().await;
    raw.send(&query("SELECT 1")).await;
    assert_eq!(sqlstate(&raw.until_ready().await).as_deref(), Some("08P01"));
    // What is left over from a COPY is ignored.
    assert_eq!(
        raw.tags(&[message(b'd', b"9\n"), message(b'c', b""), query("SELECT 1")].concat())
            .await,
        "TDCZ"
    );
    // In a text, and by the extended protocol.
    raw.send(&query(
        "INSERT INTO t VALUES (4); COPY t FROM STDIN; SELECT count(*) FROM t",
    ))
    .await;
    assert_eq!(
        (raw.next().await.unwrap().tag, raw.next().await.unwrap().tag),
        (b'C', b'G')
    );
    assert_eq!(
        raw.tags(&[message(b'd', b"5\n"), message(b'c', b"")].concat()).await,
        "CTDCZ"
    );
    raw.send(
        &[
            parse("", "COPY t FROM STDIN"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    )
    .await;
    assert_eq!(raw.next().await.unwrap().tag, b'1');
    assert_eq!(raw.next().await.unwrap().tag, b'2');
    assert_eq!(raw.next().await.unwrap().tag, b'G');
    assert_eq!(
        raw.tags(&[message(b'd', b"6\n"), message(b'c', b""), sync()].concat())
            .await,
        "CZ"
    );
    assert_eq!(raw.tags(&query("COPY t TO STDOUT")).await, "HdddddcCZ");
    // A function call of what is not for it is refused, and costs nothing else.
    assert_eq!(raw.tags(&message(b'F', b"\0\0\x05\x13\0\0\0\0\0\0")).await, "EZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_is_cancelled_with_the_right_key_only() {
    let world = World::start().await;
    let mut raw = Raw::open(world.address).await;
    raw.send(&startup(3 << 16, &[("user", "postgres")])).await;
    let answers = raw.until_ready().await;
    let key = answers.iter().find(|answer| answer.tag == b'K').unwrap().body.clone();
    let cancel = |key: &[u8]| [&16_u32.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), key].concat();
    // Nobody answers: the read waits.
    [1, 2, 3].into_iter().for_each(|machine| world.faults.mute(machine));
    raw.send(&query("SELECT 1")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut wrong = key.clone();
    wrong[7] ^= 1;
    Raw::open(world.address).await.send(&cancel(&wrong)).await;
    let early = tokio::time::timeout(Duration::from_millis(300), raw.next()).await;
    assert!(early.is_err(), "the wrong key cancels nothing");
    Raw::open(world.address).await.send(&cancel(&key)).await;
    assert_eq!(sqlstate(&raw.until_ready().await).as_deref(), Some("57014"));
    world.faults.heal();
    assert_eq!(raw.tags(&query("SELECT 1")).await, "TDCZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_checked() {
    let world = World::start_with(|config| {
        config.authentication = Authentication::ScramSha256;
        let verifier = postgres_protocol::password::scram_sha_256(b"right");
        config.roles = vec![RoleConfig {
            name: "postgres".into(),
            verifier: Some(verifier),
        }];
    })
    .await;
    let client = world.try_connect("password=right").await.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
    let error = world.try_connect("password=wrong").await.err().unwrap();
    assert_eq!(error.code().map(|code| code.code()), Some("28P01"));
    // Nothing but the password may come now, and not much of it.
    for bytes in [
        query("SELECT 1"),
        b"p\x10\0\0\0".to_vec(),
        message(b'p', b"SCRAM-SHA-256\0\0\0\xff\xffn,,"),
    ] {
        let mut raw = Raw::open(world.address).await;
        raw.send(&startup(3 << 16, &[("user", "nobody")])).await;
        assert_eq!(raw.next().await.unwrap().tag, b'R');
        raw.send(&bytes).await;
        assert_eq!(raw.next().await.unwrap().tag, b'E');
        assert!(raw.next().await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_offered_when_configured() {
    use std::sync::Arc;
    use tokio_rustls::rustls;
    let certified = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let world = World::start_with(|config| {
        config.tls = Some(Arc::new(server));
        config.tls_required = true;
    })
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // As libpq does with sslnegotiation=direct, where it insists on the answer.
    client.alpn_protocols = vec![b"postgresql".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    for direct in [false, true] {
        let mut raw = Raw::open(world.address).await;
        if !direct {
            raw.send(&[&8_u32.to_be_bytes()[..], &80_877_103_u32.to_be_bytes()].concat())
                .await;
            let mut answer = [0];
            tokio::io::AsyncReadExt::read_exact(&mut raw.stream, &mut answer)
                .await
                .unwrap();
            assert_eq!(&answer, b"S");
        }
        let stream = connector.connect(name.clone(), raw.stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"postgresql"[..]));
        let mut raw = Raw::over(stream);
        raw.send(&startup(3 << 16, &[("user", "postgres")])).await;
        assert_eq!(raw.until_ready().await.last().unwrap().tag, b'Z');
        assert_eq!(raw.tags(&query("SELECT 1")).await, "TDCZ");
    }
    let mut raw = Raw::open(world.address).await;
    raw.send(&startup(3 << 16, &[("user", "postgres")])).await;
    assert_eq!(sqlstate(&raw.until_ready().await).as_deref(), Some("28000"));
}
