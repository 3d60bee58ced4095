//! The changes of this voter's server as they are committed: a logical replication slot, read over the replication protocol.
//!
//! The plugin is `test_decoding`, which comes with PostgreSQL. It needs no publication: with `pgoutput` one for all tables
//! would make UPDATE and DELETE of tables without a key fail for the application.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use postgres_protocol::message::frontend;

use crate::config::PostgresConfig;
use crate::postgres::PostgresError;
use crate::postgres::bootstrap::columns;
use crate::postgres::capture::error_fields;
use crate::postgres::connection::Connection;
use crate::postgres::settings::literal;

/// The name by which the connection is found.
const APPLICATION_NAME: &str = "cloudbft-effects";

/// The longest line that is read, in bytes. Of a longer one only counts that it was there.
const LINE_BYTES_MAX: usize = 8 << 20;

/// What was read is read again after a crash of the node if it is younger than this: by then it has been compared.
const RETAINED: Duration = Duration::from_secs(10);

/// The shortest time between two messages to the server about what was read. It ends the connection after 60 s without any.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of an XLogData's header: where it begins and ends, and the server's time.
const DATA_HEADER_BYTES: usize = 24;

/// What comes.
#[derive(Debug)]
pub(crate) enum Event {
    /// A line of the plugin.
    Line(Bytes),
    /// A line that is too long.
    TooLong,
    /// Nothing to be compared.
    Nothing,
}

/// How a slot was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// As it was left: what is read follows what was read.
    Kept,
    /// There was none.
    Made,
    /// The server had thrown away what it still had to give.
    Lost,
}

/// A connection that gives changes.
pub(crate) struct Stream {
    connection: Connection,
    /// The server's identifier.
    pub(crate) system: String,
    /// Everything before has been read.
    read: u64,
    /// Everything before need not be given again.
    confirmed: u64,
    /// Positions that were read, with the time.
    recent: VecDeque<(Instant, u64)>,
    told: Instant,
    /// The server waits for an answer, as it does before it stops.
    is_asked: bool,
}

/// The slot of a database: slots are the server's, and two databases of one server may have voters.
pub(crate) fn slot_name(database: &str) -> String {
    let hash = blake3::hash(database.as_bytes()).to_hex();
    format!("cloudbft_effects_{}", hash.get(..8).unwrap_or_default())
}

/// The statement that removes a database's slot, so that it holds nothing.
pub(crate) fn drop_slot(database: &str) -> String {
    let name = literal(&slot_name(database));
    format!(
        "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
         WHERE slot_name = {name} AND NOT active"
    )
}

impl Stream {
    /// Connects, makes the slot if it is not there, and begins to read. `renew`: the slot is made anew in any case.
    ///
    /// # Errors
    /// When the server is not there or cannot give its changes.
    pub(crate) async fn open(
        postgres: &PostgresConfig,
        superuser: &str,
        renew: bool,
    ) -> Result<(Self, Slot), PostgresError> {
        let extra = [
            ("replication", "database"),
            ("application_name", APPLICATION_NAME),
            // Names are written with their schemas but for those of PostgreSQL.
            ("search_path", "pg_catalog"),
        ];
        let connection = Connection::open(postgres, superuser, &extra, LINE_BYTES_MAX).await?;
        let mut stream = Self {
            connection,
            system: String::new(),
            read: 0,
            confirmed: 0,
            recent: VecDeque::new(),
            told: Instant::now(),
            is_asked: false,
        };
        let level = stream.value("SELECT pg_catalog.current_setting('wal_level')").await?;
        if level != "logical" {
            return Err(PostgresError::Unfit(format!(
                "wal_level is {level}, and must be logical for effects to be compared: restart the server (`cloudbft down`, \
                 `cloudbft up`)"
            )));
        }
        stream.system = stream.value("IDENTIFY_SYSTEM").await?;
        let slot = stream.prepare_slot(&postgres.database, renew).await?;
        stream.start(&postgres.database).await?;
        Ok((stream, slot))
    }

    async fn prepare_slot(&mut self, database: &str, renew: bool) -> Result<Slot, PostgresError> {
        let name = slot_name(database);
        let found = self
            .rows(&format!(
                "SELECT coalesce(active_pid, 0), coalesce(wal_status, ''), \
                 pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
                literal(&name)
            ))
            .await?;
        let found = found.first().map(Vec::as_slice);
        let slot = match found {
            Some([Some(process), ..]) if process != "0" => {
                return Err(PostgresError::Unfit(
                    "the connection that read its changes before has not ended".into(),
                ));
            }
            Some([_, Some(status), ..]) if status != "lost" && !renew => return Ok(Slot::Kept),
            Some(_) => {
                self.rows(&drop_slot(database)).await?;
                Slot::Lost
            }
            None => Slot::Made,
        };
        self.rows(&format!(
            "CREATE_REPLICATION_SLOT {name} LOGICAL test_decoding NOEXPORT_SNAPSHOT"
        ))
        .await?;
        Ok(slot)
    }

    async fn start(&mut self, database: &str) -> Result<(), PostgresError> {
        let name = slot_name(database);
        let start = format!(
            "START_REPLICATION SLOT {name} LOGICAL 0/0 (\"include-xids\" '0', \"skip-empty-xacts\" '1', \"include-timestamp\" '0')"
        );
        frontend::query(&start, self.connection.outgoing())?;
        loop {
            let message = self.connection.message().await?;
            match message.tag {
                b'W' => return Ok(()),
                b'E' => return Err(error_fields(message.body()).into()),
                b'N' | b'S' => {}
                other => return Err(PostgresError::protocol(format!("type {other} where changes begin"))),
            }
        }
    }

    /// The first value of the first row.
    async fn value(&mut self, text: &str) -> Result<String, PostgresError> {
        let rows = self.rows(text).await?;
        let value = rows.into_iter().flatten().next().flatten();
        value.ok_or_else(|| PostgresError::protocol("no value where one was asked for"))
    }

    async fn rows(&mut self, text: &str) -> Result<Vec<Vec<Option<String>>>, PostgresError> {
        frontend::query(text, self.connection.outgoing())?;
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            let message = self.connection.message().await?;
            match message.tag {
                b'D' => rows.push(columns(message.body()).ok_or_else(|| PostgresError::protocol("a malformed row"))?),
                b'E' if error.is_none() => error = Some(error_fields(message.body())),
                b'Z' => break,
                _ => {}
            }
        }
        error.map_or(Ok(rows), |error| Err(error.into()))
    }

    /// What comes next. May be dropped while it waits.
    ///
    /// # Errors
    /// When the connection is lost, or the server cannot go on.
    pub(crate) async fn next(&mut self) -> Result<Event, PostgresError> {
        let message = self.connection.message().await?;
        match message.tag {
            b'd' if message.frame.is_empty() => return Ok(Event::TooLong),
            b'd' => {}
            b'E' => return Err(error_fields(message.body()).into()),
            b'N' | b'S' => return Ok(Event::Nothing),
            b'c' => return Err(PostgresError::protocol("the server ends its changes")),
            other => return Err(PostgresError::protocol(format!("type {other} among changes"))),
        }
        let mut body = message.frame.slice(message.frame.len() - message.body().len()..);
        let malformed = || PostgresError::protocol("a malformed message among changes");
        match body.split_first() {
            Some((b'w', mut rest)) if rest.len() >= DATA_HEADER_BYTES => {
                // At a COMMIT: the end of the transaction.
                self.read = self.read.max(rest.get_u64());
                body.advance(1 + DATA_HEADER_BYTES);
                Ok(Event::Line(body))
            }
            Some((b'k', mut rest)) if rest.len() >= 17 => {
                let end = rest.get_u64();
                rest.advance(8);
                self.is_asked |= rest.get_u8() != 0;
                self.read = self.read.max(end);
                Ok(Event::Nothing)
            }
            _ => Err(malformed()),
        }
    }

    /// Tells the server what need not be given again. `between`: no transaction is half read.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) async fn confirm(&mut self, now: Instant, between: bool) -> Result<(), PostgresError> {
        if !self.is_asked && now.duration_since(self.told) < CONFIRM_INTERVAL {
            return Ok(());
        }
        if between && self.recent.back().is_none_or(|(_, read)| *read < self.read) {
            self.recent.push_back((now, self.read));
        }
        while let Some((at, read)) = self.recent.front()
            && (self.is_asked || now.duration_since(*at) >= RETAINED)
        {
            self.confirmed = *read;
            self.recent.pop_front();
        }
        (self.told, self.is_asked) = (now, false);
        let outgoing = self.connection.outgoing();
        let mut body = Vec::with_capacity(34);
        body.put_u8(b'r');
        body.put_u64(self.read);
        body.put_u64(self.confirmed);
        body.put_u64(self.confirmed);
        body.put_i64(0);
        body.put_u8(0);
        frontend::CopyData::new(body.as_slice())?.write(outgoing);
        self.connection.flush().await
    }
}
