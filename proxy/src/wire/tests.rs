//! What untrusted bytes can do: nothing but be refused.

use bytes::Bytes;
use proptest::prelude::*;

use super::{Bind, FrameError, FrameReader, Frontend, StartupPacket};

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Reads all messages from a stream that ends.
fn read_all(bytes: &[u8]) -> (Vec<Frontend>, FrameError) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut reader, mut stream) = (FrameReader::default(), bytes);
        reader.authenticated();
        let mut messages = Vec::new();
        loop {
            match reader
                .message(&mut stream)
                .await
                .and_then(|(tag, body)| Frontend::parse(tag, body))
            {
                Ok(message) => messages.push(message),
                Err(error) => return (messages, error),
            }
        }
    })
}

fn bind_body() -> Vec<u8> {
    let mut body = b"portal\0statement\0".to_vec();
    body.extend_from_slice(&[0, 1, 0, 1]);
    body.extend_from_slice(&[0, 2, 0, 0, 0, 3, b'a', b'b', b'c', 0xff, 0xff, 0xff, 0xff]);
    body.extend_from_slice(&[0, 1, 0, 0]);
    body
}

#[test]
fn a_bind_is_read_as_it_was_written() {
    let (messages, end) = read_all(&framed(b'B', &bind_body()));
    let bind = Bind {
        portal: "portal".into(),
        statement: "statement".into(),
        parameter_formats: vec![1],
        parameters: vec![Some(Bytes::from_static(b"abc")), None],
        result_formats: vec![0],
    };
    assert_eq!(messages, [Frontend::Bind(bind)]);
    assert_eq!(end, FrameError::Closed);
}

#[test]
fn a_bind_never_reads_past_its_frame() {
    let body = bind_body();
    // Cut anywhere: malformed, whatever follows in the stream.
    for length in 0..body.len() {
        let mut bytes = framed(b'B', &body[..length]);
        bytes.extend(framed(b'Q', b"SELECT 1\0"));
        let (messages, error) = read_all(&bytes);
        assert!(messages.is_empty(), "{length}: {messages:?}");
        assert!(matches!(error, FrameError::Malformed(_)), "{length}: {error:?}");
    }
    // And not a byte more than what it says.
    let (messages, error) = read_all(&framed(b'B', &[&body[..], b"x"].concat()));
    assert!(messages.is_empty());
    assert!(matches!(error, FrameError::Malformed(_)));
}

#[test]
fn counts_and_lengths_that_lie_are_refused() {
    let names = b"\0\0".to_vec();
    let with = |rest: &[u8]| [&names[..], rest].concat();
    let bodies = [
        // 65535 formats announced, none there.
        with(&[0xff, 0xff]),
        // 32767 parameters announced.
        with(&[0, 0, 0x7f, 0xff]),
        // A parameter of 2 GiB.
        with(&[0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff, 0, 0]),
        // A negative length that is not NULL.
        with(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xfe, 0, 0]),
    ];
    for body in bodies {
        let (messages, error) = read_all(&framed(b'B', &body));
        assert!(
            messages.is_empty() && matches!(error, FrameError::Malformed(_)),
            "{body:?}: {error:?}"
        );
    }
}

#[test]
fn names_must_be_utf8_and_end() {
    let (_, error) = read_all(&framed(b'P', b"na\xffme\0SELECT 1\0\0\0"));
    assert_eq!(error, FrameError::Encoding(0xff));
    let (_, error) = read_all(&framed(b'Q', b"SELECT 1"));
    assert!(matches!(error, FrameError::Malformed(_)));
    let (_, error) = read_all(&framed(b'Q', b"SELECT\0 1\0"));
    assert!(
        matches!(error, FrameError::Malformed(_)),
        "a NUL inside ends the text, and something is left"
    );
}

#[test]
fn lengths_are_limited_before_anything_is_reserved() {
    let (_, error) = read_all(b"Q\x7f\xff\xff\xff");
    assert_eq!(error, FrameError::TooLarge(64 << 20));
    let (_, error) = read_all(b"Q\x00\x00\x00\x03");
    assert!(matches!(error, FrameError::Malformed(_)));
    let (_, error) = read_all(b"Q\xff\xff\xff\xff");
    assert!(matches!(error, FrameError::Malformed(_)));
}

#[test]
fn copy_data_comes_in_pieces_as_it_arrives() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut reader = FrameReader::default();
        reader.authenticated();
        // One message of 1 GiB is announced; the pieces come at once.
        let mut stream: &[u8] = b"d\x40\0\0\x04abc";
        assert_eq!(
            reader.message(&mut stream).await,
            Ok((b'd', Bytes::from_static(b"abc")))
        );
        let mut stream: &[u8] = b"defg";
        assert_eq!(
            reader.message(&mut stream).await,
            Ok((b'd', Bytes::from_static(b"defg")))
        );
        let mut stream: &[u8] = b"";
        let end = FrameError::Connection(std::io::ErrorKind::UnexpectedEof);
        assert_eq!(reader.message(&mut stream).await, Err(end));
    });
    let bytes = [framed(b'd', b"abc"), framed(b'd', b""), framed(b'c', b"")].concat();
    let (messages, end) = read_all(&bytes);
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert_eq!(end, FrameError::Closed);
}

#[test]
fn unknown_messages_are_refused() {
    for tag in [0, b'x', b'Z', 0xff] {
        assert!(matches!(read_all(&framed(tag, b"")).1, FrameError::Malformed(_)));
    }
    for body in [&b""[..], b"X\0", b"S", b"Sname", b"Sname\0x"] {
        assert!(
            matches!(read_all(&framed(b'D', body)).1, FrameError::Malformed(_)),
            "{body:?}"
        );
        assert!(
            matches!(read_all(&framed(b'C', body)).1, FrameError::Malformed(_)),
            "{body:?}"
        );
    }
    assert!(matches!(read_all(&framed(b'S', b"x")).1, FrameError::Malformed(_)));
}

#[test]
fn startup_packets_are_checked() {
    let parse = |bytes: &'static [u8]| StartupPacket::parse(Bytes::from_static(bytes));
    assert_eq!(parse(b"\x04\xd2\x16\x2f"), Ok(StartupPacket::SslRequest));
    assert!(parse(b"\x04\xd2\x16\x2fx").is_err());
    assert!(
        parse(b"\x04\xd2\x16\x2e\0\0\0\x01abc").is_err(),
        "a cancel key of three bytes"
    );
    assert!(matches!(
        parse(b"\x04\xd2\x16\x2e\0\0\0\x01abcd"),
        Ok(StartupPacket::Cancel { process: 1, .. })
    ));
    assert!(matches!(
        parse(b"\0\x02\0\0"),
        Ok(StartupPacket::UnsupportedVersion { major: 2, minor: 0 })
    ));
    assert!(parse(b"\0\x03\0\0user\0a").is_err());
    assert!(parse(b"\0\x03\0\0user\0a\0").is_err());
    assert!(parse(b"\0\x03\0\0user\0a\0\0x").is_err());
    assert!(matches!(
        parse(b"\0\x03\0\x02user\0a\0\0"),
        Ok(StartupPacket::Startup(_))
    ));
}

fn valid_message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-z ';]{0,20}".prop_map(|text| framed(b'Q', format!("{text}\0").as_bytes())),
        "[a-z]{0,5}".prop_map(|name| framed(b'P', format!("{name}\0SELECT $1\0\0\x01\0\0\0\x17").as_bytes())),
        Just(framed(b'B', &bind_body())),
        Just(framed(b'D', b"Sname\0")),
        Just(framed(b'E', b"portal\0\0\0\0\x05")),
        Just(framed(b'C', b"Pportal\0")),
        Just(framed(b'f', b"reason\0")),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|data| framed(b'd', &data)),
        Just(framed(b'S', b"")),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_all(&bytes);
        let _ = StartupPacket::parse(Bytes::from(bytes));
    }

    #[test]
    fn valid_messages_pass(messages in proptest::collection::vec(valid_message(), 0..8)) {
        let (read, end) = read_all(&messages.concat());
        prop_assert_eq!(read.len(), messages.len());
        prop_assert_eq!(end, FrameError::Closed);
    }

    #[test]
    fn mutated_messages_are_survived(
        messages in proptest::collection::vec(valid_message(), 1..6),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = messages.concat();
        for (index, value) in mutations {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let (read, _) = read_all(&bytes);
        // Each message takes at least a header: nothing is read twice.
        prop_assert!(read.len() * 5 <= bytes.len());
    }
}
