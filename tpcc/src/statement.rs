//! Statements of the transactions: prepared with binary values, or texts with literals, as the protocol asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio_postgres::types::{FromSql, ToSql};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::Error;
use crate::clock::timestamp_text;
use crate::connection::connect;
use crate::fixed::Fixed;
use crate::options::Protocol;
use crate::transaction::Failure;

/// A connection of one terminal, which counts what it sends.
#[derive(Debug)]
pub(crate) struct Connection {
    client: Client,
    protocol: Protocol,
    /// Statements sent since they were last taken.
    sent: AtomicU64,
}

/// A statement with `$1`, `$2`, ... in it.
#[derive(Debug)]
pub(crate) enum Statement {
    Prepared(tokio_postgres::Statement),
    Text(String),
}

/// What stands for a `$n`.
pub(crate) trait Parameter: ToSql + Sync {
    /// As a literal of SQL.
    fn literal(&self) -> String;
}

/// What a column of a result is read as.
pub(crate) trait Value<'a>: FromSql<'a> {
    /// From the text that Postgres gives for it.
    fn from_text(text: &'a str) -> Option<Self>;
}

/// A row of a result.
#[derive(Debug)]
pub(crate) enum Row {
    Binary(tokio_postgres::Row),
    Text(SimpleQueryRow),
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(dsn: &str, protocol: Protocol) -> Result<Self, Error> {
        Ok(Self {
            client: connect(dsn).await?,
            protocol,
            sent: AtomicU64::new(0),
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// How many statements were sent since this was last asked. Preparing them does not count.
    pub(crate) fn take_sent(&self) -> u64 {
        self.sent.swap(0, Ordering::Relaxed)
    }

    pub(crate) async fn prepare(&self, text: &str) -> Result<Statement, tokio_postgres::Error> {
        match self.protocol {
            Protocol::Prepared => self.client.prepare(text).await.map(Statement::Prepared),
            Protocol::Simple => Ok(Statement::Text(text.to_owned())),
        }
    }

    /// Runs a statement that has neither parameters nor a result.
    pub(crate) async fn batch_execute(&self, text: &str) -> Result<(), tokio_postgres::Error> {
        self.count();
        self.client.batch_execute(text).await
    }

    /// Runs a statement; how many rows it changed.
    pub(crate) async fn execute(
        &self,
        statement: &Statement,
        parameters: &[&dyn Parameter],
    ) -> Result<u64, tokio_postgres::Error> {
        self.count();
        match statement {
            Statement::Prepared(statement) => self.client.execute(statement, &as_values(parameters)).await,
            Statement::Text(text) => {
                let messages = self.client.simple_query(&with_literals(text, parameters)).await?;
                Ok(messages.iter().map(rows_changed).sum())
            }
        }
    }

    /// Runs a statement; its rows.
    pub(crate) async fn query(
        &self,
        statement: &Statement,
        parameters: &[&dyn Parameter],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.count();
        match statement {
            Statement::Prepared(statement) => {
                let rows = self.client.query(statement, &as_values(parameters)).await?;
                Ok(rows.into_iter().map(Row::Binary).collect())
            }
            Statement::Text(text) => {
                let messages = self.client.simple_query(&with_literals(text, parameters)).await?;
                Ok(messages.into_iter().filter_map(text_row).collect())
            }
        }
    }

    /// Runs a statement that gives one row at most.
    pub(crate) async fn query_opt(
        &self,
        statement: &Statement,
        parameters: &[&dyn Parameter],
    ) -> Result<Option<Row>, tokio_postgres::Error> {
        Ok(self.query(statement, parameters).await?.into_iter().next())
    }

    fn count(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }
}

impl Row {
    /// The value of a column, counted from 0.
    pub(crate) fn try_get<'a, V: Value<'a>>(&'a self, column: usize) -> Result<V, Failure> {
        match self {
            Self::Binary(row) => Ok(row.try_get(column)?),
            Self::Text(row) => {
                let text = row.try_get(column)?;
                text.and_then(V::from_text).ok_or(Failure::Malformed)
            }
        }
    }
}

fn as_values<'a>(parameters: &[&'a dyn Parameter]) -> Vec<&'a (dyn ToSql + Sync)> {
    parameters.iter().map(|parameter| *parameter as _).collect()
}

fn rows_changed(message: &SimpleQueryMessage) -> u64 {
    match message {
        SimpleQueryMessage::CommandComplete(rows) => *rows,
        _ => 0,
    }
}

fn text_row(message: SimpleQueryMessage) -> Option<Row> {
    match message {
        SimpleQueryMessage::Row(row) => Some(Row::Text(row)),
        _ => None,
    }
}

/// The text with literals in place of `$1`, `$2`, ...; our statements have no other `$`.
fn with_literals(text: &str, parameters: &[&dyn Parameter]) -> String {
    let mut pieces = text.split('$');
    let mut whole = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let digits = piece
            .find(|character: char| !character.is_ascii_digit())
            .unwrap_or(piece.len());
        let (number, rest) = piece.split_at(digits);
        let index = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        match index.and_then(|index| parameters.get(index)) {
            Some(parameter) => whole.push_str(&parameter.literal()),
            // The server says what is wrong with it.
            None => whole.push_str(&format!("${number}")),
        }
        whole.push_str(rest);
    }
    whole
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Parameter for i32 {
    fn literal(&self) -> String {
        self.to_string()
    }
}

impl<const SCALE: u32> Parameter for Fixed<SCALE> {
    fn literal(&self) -> String {
        self.to_string()
    }
}

impl Parameter for &str {
    fn literal(&self) -> String {
        quoted(self)
    }
}

impl Parameter for String {
    fn literal(&self) -> String {
        quoted(self)
    }
}

impl Parameter for SystemTime {
    fn literal(&self) -> String {
        quoted(&timestamp_text(*self))
    }
}

impl Value<'_> for i32 {
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value<'_> for i64 {
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl<const SCALE: u32> Value<'_> for Fixed<SCALE> {
    fn from_text(text: &str) -> Option<Self> {
        Self::parse(text)
    }
}

impl<'a> Value<'a> for &'a str {
    fn from_text(text: &'a str) -> Option<Self> {
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_stand_where_the_parameters_stood() {
        let text = with_literals(
            "UPDATE t SET a = a - $4, b = $10 WHERE c = $1 AND d IN ($2, $3) AND e = $1",
            &[
                &7,
                &-1,
                &"it's",
                &Fixed::<2>(-5),
                &0,
                &0,
                &0,
                &0,
                &0,
                &String::from("x"),
            ],
        );
        assert_eq!(
            text,
            "UPDATE t SET a = a - -0.05, b = 'x' WHERE c = 7 AND d IN (-1, 'it''s') AND e = 7"
        );
        assert_eq!(with_literals("SELECT $2", &[&1]), "SELECT $2", "the server refuses it");
        let leap_day = crate::clock::from_micros(1_709_210_096_000_007);
        assert_eq!(with_literals("$1", &[&leap_day]), "'2024-02-29 12:34:56.000007'");
    }
}
