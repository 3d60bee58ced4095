//! One connection: startup, framing, reading while writing.

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;

use super::PostgresError;
use super::capture::error_fields;
use crate::config::PostgresConfig;

/// The name by which a voter's connections are found.
pub const APPLICATION_NAME: &str = "cloudbft-voter";

/// Settings at connection start that make independent servers answer alike
/// (`docs/determinism.md#settings-that-are-pinned`), and their values as `SHOW` prints them.
///
/// What comes with the start of a connection counts more than what `ALTER ROLE ... SET` and `ALTER DATABASE ... SET`
/// say, and `RESET` goes back to it. So a setting that is here is the same in every backend, whenever it was opened.
/// All of them may be set by any role (but what a superuser alone may set, only a superuser can have attached to a
/// role; see [`super::bootstrap`]), and all are known to every version that is supported: a server refuses a connection
/// that starts with a setting that it does not know. Settings that only cost time (`work_mem`, costs of the planner)
/// are the server's.
pub const PINNED_SETTINGS: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("search_path", "\"$user\", public"),
    ("role", "none"),
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
    ("synchronize_seqscans", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("exit_on_error", "off"),
    ("local_preload_libraries", ""),
    ("standard_conforming_strings", "on"),
    ("escape_string_warning", "on"),
    ("backslash_quote", "safe_encoding"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("row_security", "on"),
    ("check_function_bodies", "on"),
    ("gin_fuzzy_search_limit", "0"),
    ("client_min_messages", "notice"),
    ("quote_all_identifiers", "off"),
    ("default_tablespace", ""),
    ("default_table_access_method", "heap"),
    ("temp_tablespaces", ""),
    ("default_text_search_config", "pg_catalog.english"),
    ("TimeZone", "UTC"),
    ("timezone_abbreviations", "Default"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("xmlbinary", "base64"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    ("lc_numeric", "C"),
    ("lc_time", "C"),
    ("plpgsql.check_asserts", "on"),
    ("plpgsql.extra_errors", "none"),
    ("plpgsql.extra_warnings", "none"),
    ("plpgsql.print_strict_params", "off"),
    // Which plan is taken decides in which order rows come.
    ("enable_async_append", "on"),
    ("enable_bitmapscan", "on"),
    ("enable_gathermerge", "on"),
    ("enable_hashagg", "on"),
    ("enable_hashjoin", "on"),
    ("enable_incremental_sort", "on"),
    ("enable_indexonlyscan", "on"),
    ("enable_indexscan", "on"),
    ("enable_material", "on"),
    ("enable_memoize", "on"),
    ("enable_mergejoin", "on"),
    ("enable_nestloop", "on"),
    ("enable_parallel_append", "on"),
    ("enable_parallel_hash", "on"),
    ("enable_partition_pruning", "on"),
    ("enable_partitionwise_aggregate", "off"),
    ("enable_partitionwise_join", "off"),
    ("enable_seqscan", "on"),
    ("enable_sort", "on"),
    ("enable_tidscan", "on"),
];

/// One message of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub tag: u8,
    /// The whole message with its header; empty when it was larger than the connection's limit and skipped.
    pub frame: Bytes,
}

impl Message {
    /// What follows the header.
    pub fn body(&self) -> &[u8] {
        self.frame.get(HEADER_BYTES..).unwrap_or_default()
    }
}

/// Type and length.
pub const HEADER_BYTES: usize = 5;

/// The largest message Postgres can send.
const POSTGRES_MESSAGE_BYTES_MAX: usize = 0x4000_0000;

const READ_BUFFER_BYTES: usize = 16 << 10;

/// A connection after startup.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    incoming: BytesMut,
    outgoing: BytesMut,
    message_bytes_max: usize,
    /// Bytes of an oversized message that are still to be thrown away.
    skip: usize,
    /// The number of the server's process for this connection.
    process: i32,
}

impl Connection {
    /// Connects, logs in (without a password) and waits until the server is ready. `extra` settings count more than
    /// [`PINNED_SETTINGS`].
    ///
    /// # Errors
    /// When the server is not there, refuses, or asks for a password.
    pub async fn open(
        config: &PostgresConfig,
        role: &str,
        extra: &[(&str, &str)],
        message_bytes_max: usize,
    ) -> Result<Self, PostgresError> {
        let path = config.socket_directory.join(format!(".s.PGSQL.{}", config.port));
        let stream = UnixStream::connect(path).await?;
        let mut connection = Self {
            stream,
            incoming: BytesMut::with_capacity(READ_BUFFER_BYTES),
            outgoing: BytesMut::new(),
            message_bytes_max,
            skip: 0,
            process: 0,
        };
        let mut parameters = vec![
            ("user", role),
            ("database", config.database.as_str()),
            ("application_name", APPLICATION_NAME),
        ];
        parameters.extend(PINNED_SETTINGS.iter().copied());
        parameters.extend(extra.iter().copied());
        frontend::startup_message(parameters, &mut connection.outgoing)?;
        connection.log_in().await?;
        Ok(connection)
    }

    async fn log_in(&mut self) -> Result<(), PostgresError> {
        loop {
            let message = self.message().await?;
            match message.tag {
                b'R' if message.body() == [0, 0, 0, 0] => {}
                b'R' => return Err(PostgresError::Unfit("it asks the voter's role for a password".into())),
                b'E' => return Err(error_fields(message.body()).into()),
                b'Z' => return Ok(()),
                b'K' => {
                    let number = message
                        .body()
                        .first_chunk::<4>()
                        .map(|bytes| i32::from_be_bytes(*bytes));
                    self.process = number.unwrap_or_default();
                }
                b'S' | b'N' => {}
                other => return Err(PostgresError::protocol(format!("type {other} during startup"))),
            }
        }
    }

    /// The number of the server's process for this connection.
    pub fn process(&self) -> i32 {
        self.process
    }

    /// Where messages to the server are put; they are written while [`Connection::message`] waits.
    pub fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// The next message. Writes what is outgoing meanwhile, so that a large pipeline cannot block both sides.
    ///
    /// # Errors
    /// When the connection is lost or the server breaks the protocol.
    pub async fn message(&mut self) -> Result<Message, PostgresError> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(message);
            }
            if self.outgoing.is_empty() {
                self.read_more().await?;
            } else if self.is_write_blocked().await? {
                self.read_some()?;
            }
        }
    }

    /// Writes everything that is outgoing, and keeps what comes in meanwhile.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn flush(&mut self) -> Result<(), PostgresError> {
        while !self.outgoing.is_empty() {
            if self.is_write_blocked().await? && self.incoming.len() < self.message_bytes_max {
                self.read_some()?;
            }
        }
        Ok(())
    }

    /// Writes what the server takes. True if it takes nothing, when it does again or has something to be read.
    async fn is_write_blocked(&mut self) -> Result<bool, PostgresError> {
        match self.stream.try_write(&self.outgoing) {
            Ok(written) => {
                self.outgoing.advance(written);
                Ok(false)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.stream.ready(Interest::READABLE | Interest::WRITABLE).await?;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for bytes of the server. A read that does not fill the buffer tells the runtime that there is no more, so that the
    /// next one waits without asking the kernel in vain.
    async fn read_more(&mut self) -> Result<(), PostgresError> {
        self.incoming.reserve(READ_BUFFER_BYTES);
        match self.stream.read_buf(&mut self.incoming).await? {
            0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }

    fn read_some(&mut self) -> Result<(), PostgresError> {
        self.incoming.reserve(READ_BUFFER_BYTES);
        match self.stream.try_read_buf(&mut self.incoming) {
            Ok(0) => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn take_message(&mut self) -> Result<Option<Message>, PostgresError> {
        if self.skip > 0 {
            let skipped = self.skip.min(self.incoming.len());
            self.incoming.advance(skipped);
            self.skip -= skipped;
        }
        let Some((tag, rest)) = self.incoming.split_first() else {
            return Ok(None);
        };
        let (tag, Some(length)) = (*tag, rest.first_chunk::<4>()) else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if !(4..=POSTGRES_MESSAGE_BYTES_MAX).contains(&length) {
            return Err(PostgresError::protocol(format!("a message of {length} bytes")));
        }
        let total = length + 1;
        if total > self.message_bytes_max {
            let here = total.min(self.incoming.len());
            self.incoming.advance(here);
            self.skip = total - here;
            let frame = Bytes::new();
            return Ok(Some(Message { tag, frame }));
        }
        if self.incoming.len() < total {
            self.incoming.reserve(total - self.incoming.len());
            return Ok(None);
        }
        let frame = self.incoming.split_to(total).freeze();
        Ok(Some(Message { tag, frame }))
    }
}
