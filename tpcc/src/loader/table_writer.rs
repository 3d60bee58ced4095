//! Rows on their way into one table: by COPY, or by INSERT statements of several hundred rows.

use std::fmt::Write as _;
use std::pin::Pin;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::SinkExt;
use indicatif::ProgressBar;
use tokio_postgres::{Client, CopyInSink};

use crate::Error;
use crate::clock::timestamp_text;
use crate::fixed::{Money, Rate};
use crate::schema::Table;

/// Bytes of rows that are collected before they are sent by COPY.
const COPY_CHUNK_BYTES: usize = 64 * 1024;
/// Rows in one INSERT statement.
const INSERT_ROWS: u64 = 500;

/// How rows are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// COPY FROM STDIN in text format.
    Copy,
    /// INSERT with literals, one autocommit statement after the other.
    Insert,
}

/// One column's value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Number(i32),
    Text(&'a str),
    Money(Money),
    Rate(Rate),
    Time(SystemTime),
    Null,
}

/// Tries whether the server knows COPY, with no rows.
pub(super) async fn copy_nothing(client: &Client, table: &Table) -> Result<(), tokio_postgres::Error> {
    let sink = client.copy_in::<_, Bytes>(&copy_statement(table)).await?;
    Box::pin(sink).as_mut().finish().await.map(drop)
}

fn copy_statement(table: &Table) -> String {
    format!("COPY {} ({}) FROM STDIN", table.name, table.column_list())
}

/// Writes rows into one table.
pub(super) struct TableWriter<'a> {
    client: &'a Client,
    progress: &'a ProgressBar,
    /// `Some` under COPY.
    copy: Option<Pin<Box<CopyInSink<Bytes>>>>,
    insert_prefix: String,
    buffer: String,
    buffered_rows: u64,
}

impl<'a> TableWriter<'a> {
    /// Begins to write into a table.
    pub(super) async fn begin(
        client: &'a Client,
        transport: Transport,
        table: &Table,
        progress: &'a ProgressBar,
    ) -> Result<Self, Error> {
        let copy = match transport {
            Transport::Copy => Some(Box::pin(client.copy_in(&copy_statement(table)).await?)),
            Transport::Insert => None,
        };
        Ok(Self {
            client,
            progress,
            copy,
            insert_prefix: format!("INSERT INTO {} ({}) VALUES ", table.name, table.column_list()),
            buffer: String::new(),
            buffered_rows: 0,
        })
    }

    /// Adds one row; sends what has been collected when it is enough.
    pub(super) async fn row(&mut self, values: &[Value<'_>]) -> Result<(), Error> {
        self.buffered_rows += 1;
        if self.copy.is_some() {
            append_copy_row(&mut self.buffer, values);
            if self.buffer.len() < COPY_CHUNK_BYTES {
                return Ok(());
            }
        } else {
            self.buffer.push_str(if self.buffered_rows == 1 { "" } else { ", " });
            append_insert_row(&mut self.buffer, values);
            if self.buffered_rows < INSERT_ROWS {
                return Ok(());
            }
        }
        self.send().await
    }

    /// Sends the rest, and waits until the server has taken all of it.
    pub(super) async fn finish(mut self) -> Result<(), Error> {
        if self.buffered_rows > 0 {
            self.send().await?;
        }
        if let Some(mut sink) = self.copy {
            sink.as_mut().finish().await?;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Error> {
        let rows = std::mem::take(&mut self.buffer);
        match &mut self.copy {
            Some(sink) => sink.send(Bytes::from(rows)).await?,
            None => {
                let statement = self.insert_prefix.clone() + &rows;
                self.client.batch_execute(&statement).await?;
            }
        }
        self.progress.inc(self.buffered_rows);
        self.buffered_rows = 0;
        Ok(())
    }
}

/// COPY's text format. The population holds no character that would need a backslash.
fn append_copy_row(buffer: &mut String, values: &[Value<'_>]) {
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            buffer.push('\t');
        }
        match value {
            Value::Text(text) => buffer.push_str(text),
            Value::Time(time) => buffer.push_str(&timestamp_text(*time)),
            Value::Null => buffer.push_str("\\N"),
            number => append_number(buffer, number),
        }
    }
    buffer.push('\n');
}

/// A row of VALUES. The population holds no quotation mark.
fn append_insert_row(buffer: &mut String, values: &[Value<'_>]) {
    for (index, value) in values.iter().enumerate() {
        buffer.push_str(if index > 0 { ", " } else { "(" });
        let _ = match value {
            Value::Text(text) => write!(buffer, "'{text}'"),
            Value::Time(time) => write!(buffer, "'{}'", timestamp_text(*time)),
            Value::Null => write!(buffer, "NULL"),
            number => {
                append_number(buffer, number);
                Ok(())
            }
        };
    }
    buffer.push(')');
}

fn append_number(buffer: &mut String, value: &Value<'_>) {
    let _ = match value {
        Value::Number(number) => write!(buffer, "{number}"),
        Value::Money(money) => write!(buffer, "{money}"),
        Value::Rate(rate) => write!(buffer, "{rate}"),
        Value::Text(_) | Value::Time(_) | Value::Null => Ok(()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed::Fixed;

    const ROW: [Value<'static>; 6] = [
        Value::Number(-7),
        Value::Text("abc"),
        Value::Money(Fixed(-1_000)),
        Value::Rate(Fixed(5_000)),
        Value::Time(SystemTime::UNIX_EPOCH),
        Value::Null,
    ];

    #[test]
    fn rows_are_written_as_copy_reads_them() {
        let mut buffer = String::new();
        append_copy_row(&mut buffer, &ROW);
        assert_eq!(buffer, "-7\tabc\t-10.00\t0.5000\t1970-01-01 00:00:00.000000\t\\N\n");
    }

    #[test]
    fn rows_are_written_as_literals() {
        let mut buffer = String::new();
        append_insert_row(&mut buffer, &ROW);
        assert_eq!(
            buffer,
            "(-7, 'abc', -10.00, 0.5000, '1970-01-01 00:00:00.000000', NULL)"
        );
    }
}
