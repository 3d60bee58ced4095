//! The wire protocol byte by byte.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// One message with its type.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A startup packet.
pub fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
    packet.extend_from_slice(&body);
    packet
}

pub fn query(text: &str) -> Vec<u8> {
    message(b'Q', format!("{text}\0").as_bytes())
}

pub fn parse(name: &str, text: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{text}\0\0\0").as_bytes())
}

pub fn bind(portal: &str, statement: &str, parameters: &[&str]) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0\0\0").into_bytes();
    body.extend_from_slice(&(parameters.len() as u16).to_be_bytes());
    for parameter in parameters {
        body.extend_from_slice(&(parameter.len() as u32).to_be_bytes());
        body.extend_from_slice(parameter.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    message(b'B', &body)
}

pub fn execute(portal: &str, max_rows: u32) -> Vec<u8> {
    let mut body = format!("{portal}\0").into_bytes();
    body.extend_from_slice(&max_rows.to_be_bytes());
    message(b'E', &body)
}

pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// Bind without parameters, for results in these formats: one for all columns, or one each.
pub fn bind_formats(portal: &str, statement: &str, formats: &[u16]) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0\0\0\0\0").into_bytes();
    body.extend_from_slice(&(formats.len() as u16).to_be_bytes());
    formats
        .iter()
        .for_each(|format| body.extend_from_slice(&format.to_be_bytes()));
    message(b'B', &body)
}

/// Describe of a statement (`S`) or a portal (`P`).
pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    message(b'D', &[&[kind], name.as_bytes(), &[0]].concat())
}

/// A text by the extended protocol, described both ways.
pub fn extended(text: &str, formats: &[u16]) -> Vec<u8> {
    [
        parse("", text),
        describe(b'S', ""),
        bind_formats("", "", formats),
        describe(b'P', ""),
        execute("", 0),
        sync(),
    ]
    .concat()
}

/// A connection that speaks bytes.
pub struct Raw<S = TcpStream> {
    pub stream: S,
    /// A message that was read too early.
    pub pushed: Option<Answer>,
    /// Answers to Close at the end that belong to nobody.
    pub closes: usize,
    /// The server's process, where it is known.
    pub process: Option<i32>,
}

impl<S> Raw<S> {
    pub fn over(stream: S) -> Self {
        Raw {
            stream,
            pushed: None,
            closes: 0,
            process: None,
        }
    }
}

/// A message from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Answer {
    /// A field of an error or a notice.
    pub fn field(&self, kind: u8) -> Option<String> {
        self.body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&kind))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end_matches('\0').to_owned()
    }
}

impl Raw<UnixStream> {
    /// Connects to a server without a proxy, as `postgres`.
    pub async fn of_server(server: &super::Postgres) -> Self {
        let mut raw = Raw::over(UnixStream::connect(server.socket()).await.unwrap());
        raw.send(&startup(3 << 16, &[("user", "postgres"), ("database", "postgres")]))
            .await;
        raw.until_ready().await;
        raw
    }
}

impl Raw<TcpStream> {
    pub async fn open(address: std::net::SocketAddr) -> Self {
        Raw::over(TcpStream::connect(address).await.unwrap())
    }

    /// Logs in as `postgres`.
    pub async fn login(address: std::net::SocketAddr) -> Self {
        let mut raw = Self::open(address).await;
        raw.send(&startup(3 << 16, &[("user", "postgres"), ("database", "postgres")]))
            .await;
        let answers = raw.until_ready().await;
        assert_eq!(answers.first().map(|answer| answer.tag), Some(b'R'), "{answers:?}");
        raw
    }

    /// The same, with the CancelRequest for the session.
    pub async fn cancellable(address: std::net::SocketAddr) -> (Self, Vec<u8>) {
        let mut raw = Self::open(address).await;
        raw.send(&startup(3 << 16, &[("user", "postgres"), ("database", "postgres")]))
            .await;
        let answers = raw.until_ready().await;
        let key = &answers.iter().find(|answer| answer.tag == b'K').unwrap().body;
        let cancel = [&16_u32.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), key].concat();
        (raw, cancel)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next message; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Answer> {
        if let Some(pushed) = self.pushed.take() {
            return Some(pushed);
        }
        let mut header = [0; 5];
        self.stream.read_exact(&mut header).await.ok()?;
        let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(Answer { tag: header[0], body })
    }

    /// Everything up to ReadyForQuery, or the end.
    pub async fn until_ready(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(answer) = self.next().await {
            let ready = answer.tag == b'Z';
            answers.push(answer);
            if ready {
                break;
            }
        }
        answers
    }

    /// Sends, and gives the types of everything up to ReadyForQuery.
    pub async fn tags(&mut self, bytes: &[u8]) -> String {
        self.send(bytes).await;
        self.until_ready()
            .await
            .iter()
            .map(|answer| answer.tag as char)
            .collect()
    }
}
