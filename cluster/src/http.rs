//! A very small HTTP/1.1 responder for `/metrics` and `/status`, on loopback or a scrape network.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The largest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 8 << 10;
/// How long one exchange may take.
const EXCHANGE_MS_MAX: u64 = 5_000;
/// Exchanges at once.
const EXCHANGES_MAX: usize = 16;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The media type.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// Serves GET requests until dropped; `answer` gets the path, and `None` means 404.
pub async fn serve(listener: TcpListener, answer: impl Fn(&str) -> Option<Answer> + Send + Sync + 'static) {
    let answer = Arc::new(answer);
    let exchanges = Arc::new(Semaphore::new(EXCHANGES_MAX));
    loop {
        let Ok(permit) = Arc::clone(&exchanges).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let _ = timeout(Duration::from_millis(EXCHANGE_MS_MAX), exchange(stream, &*answer)).await;
            drop(permit);
        });
    }
}

async fn exchange(mut stream: TcpStream, answer: &(impl Fn(&str) -> Option<Answer> + Sync)) -> io::Result<()> {
    let (reading, mut writing) = stream.split();
    let mut lines = BufReader::new(reading.take(REQUEST_BYTES_MAX)).lines();
    let first = lines.next_line().await?.unwrap_or_default();
    while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let (status, body) = match (method, answer(path)) {
        ("GET", Some(answer)) => ("200 OK", answer),
        ("GET", None) => ("404 Not Found", text("not found\n")),
        _ => ("405 Method Not Allowed", text("only GET\n")),
    };
    let Answer { content_type, body } = body;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    writing.write_all(head.as_bytes()).await?;
    writing.write_all(body.as_bytes()).await?;
    writing.shutdown().await
}

fn text(body: &str) -> Answer {
    Answer {
        content_type: "text/plain; charset=utf-8",
        body: body.to_owned(),
    }
}

/// Fetches a path of a process of the cluster; the body of a 200 answer.
///
/// # Errors
/// When it cannot be reached in time, or answers otherwise.
pub async fn get(address: std::net::SocketAddr, path: &str, time_limit: Duration) -> io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.take(64 << 20).read_to_end(&mut bytes).await?;
        let answer = String::from_utf8(bytes).map_err(io::Error::other)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
            _ => Err(io::Error::other("not a 200 answer")),
        }
    };
    timeout(time_limit, exchange)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_is_answered_and_another_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, |path| (path == "/status").then(|| text("fine"))));
        assert_eq!(get(address, "/status", Duration::from_secs(5)).await.unwrap(), "fine");
        assert!(get(address, "/other", Duration::from_secs(5)).await.is_err());
    }
}
