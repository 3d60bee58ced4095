//! SET and RESET: the value is validated by the voters' databases, and kept by the proxy.

use sql::operation::{Exchange, Isolation, SessionContext};

use super::Session;
use super::handshake::is_utf8;
use super::routing::Kind;
use super::settings::{ANSWERS, READS, REPORTED, Settings, parse_milliseconds, reported_name, show_milliseconds};
use super::tokens::{quote_identifier, quote_literal};
use super::transaction::{DEFERRED_MAX, Deferred};
use crate::error::{ApplicationError, NOT_SUPPORTED};
use crate::wire::{first_error, read_rows};

/// The longest application name, in bytes (Postgres's NAMEDATALEN - 1).
const APPLICATION_NAME_BYTES_MAX: usize = 63;
/// Settings that one session may have set, at most.
const SETTINGS_MAX: usize = 1000;
/// The longest value of a setting, in bytes.
const VALUE_BYTES_MAX: usize = 64 << 10;

impl Session {
    /// SET, SET LOCAL, RESET (`None`): validates, keeps and (if `report`) reports the setting. Gives the value in force, as
    /// PostgreSQL writes it, if it had to be asked for.
    pub(super) async fn change_setting(
        &mut self,
        name: &str,
        value: Option<String>,
        local: bool,
        report: bool,
    ) -> Result<Option<String>, ApplicationError> {
        let value = value.or_else(|| self.startup_settings.get(name).map(str::to_owned));
        if value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX)
            || self.settings.names().count() >= SETTINGS_MAX
        {
            return Err(ApplicationError::new("54000", "too many or too large settings"));
        }
        let before = self.reported_value_of(name);
        let mut shown = None;
        match own_setting(name, value.as_deref(), &self.role)? {
            Own::No => shown = self.change_database_setting(name, value, local).await?,
            Own::Ignored => {}
            Own::Value(value) => self.keep_setting(name, Some(value), local),
            Own::Default => self.keep_setting(name, None, local),
            Own::Isolation(isolation) => self.set_transaction_isolation(isolation)?,
            Own::ReadOnly(read_only) => self.set_transaction_read_only(read_only)?,
        }
        if report {
            self.report_change(name, before);
        }
        Ok(shown)
    }

    /// A setting of the database: the voters' databases say whether the value is valid, and how it is written.
    async fn change_database_setting(
        &mut self,
        name: &str,
        value: Option<String>,
        local: bool,
    ) -> Result<Option<String>, ApplicationError> {
        let in_block = self.transaction.is_some();
        let begun = self.begun().is_some();
        // Inside a transaction the backend gets it too, and only until the end: the proxy keeps what shall stay.
        let text = match &value {
            Some(value) => {
                format!(
                    "SELECT pg_catalog.set_config({}, {}, true)",
                    quote_literal(name),
                    quote_literal(value)
                )
            }
            None if begun => format!("SET LOCAL {} TO DEFAULT", quote_name(name)),
            None => format!("SHOW {}", quote_name(name)),
        };
        let exchange = Exchange::Simple { text };
        // To show a setting is a read; to try one is not.
        let kind = match (begun, &value) {
            (true, _) => Kind::Stateful,
            (false, Some(_)) => Kind::Apart,
            (false, None) => Kind::Plain,
        };
        let result = self.execute_and_gather(&exchange, kind).await?;
        if let Some(error) = first_error(&result.messages) {
            return Err(error);
        }
        if in_block && !begun && value.is_some() {
            self.defer(&exchange)?;
        } else if in_block && !begun {
            self.defer(&Exchange::Simple {
                text: format!("SET LOCAL {} TO DEFAULT", quote_name(name)),
            })?;
        }
        let canonical = read_rows(&result.messages).and_then(|rows| rows.into_iter().next()?.into_iter().next()?);
        let value = value.map(|value| canonical.clone().unwrap_or(value));
        if !local || in_block {
            self.keep_setting(name, value, local);
        }
        Ok(canonical)
    }

    /// Has an exchange run at the Begin of the transaction.
    pub(super) fn defer(&mut self, exchange: &Exchange) -> Result<(), ApplicationError> {
        let waiting = self
            .transaction
            .as_ref()
            .map_or(0, |transaction| transaction.deferred.len());
        if waiting >= DEFERRED_MAX {
            return Err(ApplicationError::new(
                "54000",
                "too many settings and savepoints before the first statement",
            ));
        }
        let deferred = self.deferred(exchange);
        if let Some(transaction) = &mut self.transaction {
            transaction.deferred.push(deferred);
        }
        Ok(())
    }

    /// The exchange as a Begin takes it along.
    pub(super) fn deferred(&self, exchange: &Exchange) -> Deferred {
        let context = SessionContext::default();
        let analysis = self.catalog.current().analyzer.exchange(exchange, &context);
        Deferred {
            encoded: exchange.encode(),
            short: analysis.is_ok_and(|analysis| analysis.short),
        }
    }

    fn keep_setting(&mut self, name: &str, value: Option<String>, local: bool) {
        match value {
            Some(value) if local && self.transaction.is_some() => self.settings.set_local(name, value),
            _ if local => {}
            value => self.settings.set(name, value),
        }
        self.context = None;
    }

    /// RESET ALL.
    pub(super) async fn reset_all(&mut self) -> Result<(), ApplicationError> {
        let names: Vec<String> = self.settings.names().map(str::to_owned).collect();
        if self.transaction.is_some() {
            for name in names {
                self.change_setting(&name, None, false, true).await?;
            }
            return Ok(());
        }
        self.adopt_settings(self.startup_settings.clone());
        Ok(())
    }

    /// Puts other settings in force, and reports what changes.
    pub(super) fn adopt_settings(&mut self, settings: Settings) {
        if self.settings == settings {
            return;
        }
        let before = REPORTED.map(|name| (name, self.reported_value(name)));
        self.settings = settings;
        self.context = None;
        for (name, value) in before {
            self.report_change(name, Some(value));
        }
    }

    /// The value of a reported setting.
    pub(super) fn reported_value(&self, name: &str) -> String {
        let lower = name.to_ascii_lowercase();
        match lower.as_str() {
            "client_encoding" => return "UTF8".into(),
            "in_hot_standby" => return "off".into(),
            _ => {}
        }
        let set = self.settings.get(&lower).map(str::to_owned);
        set.or_else(|| self.defaults.get(name).cloned()).unwrap_or_default()
    }

    fn reported_value_of(&self, name: &str) -> Option<String> {
        reported_name(name).map(|name| self.reported_value(name))
    }

    fn report_change(&mut self, name: &str, before: Option<String>) {
        if let (Some(name), Some(before)) = (reported_name(name), before) {
            let now = self.reported_value(name);
            if now != before {
                self.connection.out.parameter_status(name, &now);
            }
        }
    }

    fn set_transaction_isolation(&mut self, isolation: Isolation) -> Result<(), ApplicationError> {
        let modes = sql::statement::TransactionModes {
            isolation: Some(isolation),
            ..Default::default()
        };
        self.set_transaction(modes)
    }

    fn set_transaction_read_only(&mut self, read_only: bool) -> Result<(), ApplicationError> {
        let modes = sql::statement::TransactionModes {
            read_only: Some(read_only),
            ..Default::default()
        };
        self.set_transaction(modes)
    }
}

/// Settings that the proxy itself acts on.
enum Own {
    No,
    Ignored,
    Default,
    Value(String),
    Isolation(Isolation),
    ReadOnly(bool),
}

fn own_setting(name: &str, value: Option<&str>, role: &str) -> Result<Own, ApplicationError> {
    match (name, value) {
        (_, None) if name.starts_with("transaction_") => Ok(Own::Ignored),
        (_, None) if shown_default(name).is_some() => Ok(Own::Default),
        (READS, Some(value)) => match value.to_ascii_lowercase().as_str() {
            value @ ("linearizable" | "session") => Ok(Own::Value(value.to_owned())),
            _ => Err(invalid_value(name, value).hint("Available values: linearizable, session.")),
        },
        (ANSWERS, Some(value)) => match value.to_ascii_lowercase().as_str() {
            value @ ("voted" | "at_commit") => Ok(Own::Value(value.to_owned())),
            _ => Err(invalid_value(name, value).hint("Available values: voted, at_commit.")),
        },
        ("client_encoding", Some(value)) if is_utf8(value) => Ok(Own::Ignored),
        ("client_encoding", Some(value)) => Err(ApplicationError::new(
            "0A000",
            format!("client_encoding \"{value}\" is not supported through the proxy"),
        )
        .hint("Use client_encoding UTF8.")),
        ("default_transaction_isolation", Some(value)) => {
            let isolation = parse_isolation(value).ok_or_else(|| invalid_value(name, value))?;
            Ok(Own::Value(super::transaction::isolation_name(isolation).into()))
        }
        ("transaction_isolation", Some(value)) => parse_isolation(value)
            .map(Own::Isolation)
            .ok_or_else(|| invalid_value(name, value)),
        ("transaction_read_only", Some(value)) => Ok(Own::ReadOnly(super::transaction::is_on(value))),
        ("transaction_deferrable" | "default_transaction_deferrable", _) => Ok(Own::Ignored),
        ("default_transaction_read_only", Some(value)) => Ok(Own::Value(
            if super::transaction::is_on(value) { "on" } else { "off" }.to_owned(),
        )),
        (_, Some(value)) if is_time_limit(name) => {
            let milliseconds = parse_milliseconds(value).ok_or_else(|| invalid_value(name, value))?;
            Ok(Own::Value(show_milliseconds(milliseconds)))
        }
        // Durability does not rest on the servers' own logs.
        ("synchronous_commit", Some(value)) => match value.to_ascii_lowercase().as_str() {
            value @ ("on" | "off" | "local" | "remote_write" | "remote_apply") => Ok(Own::Value(value.to_owned())),
            _ => Err(invalid_value(name, value)),
        },
        ("session_authorization", Some(value)) if value == role || value.eq_ignore_ascii_case("default") => {
            Ok(Own::Ignored)
        }
        ("session_replication_role", Some(value)) if value.eq_ignore_ascii_case("origin") => Ok(Own::Ignored),
        ("session_authorization" | "session_replication_role", Some(_)) => Err(ApplicationError::new(
            NOT_SUPPORTED,
            format!("{name} cannot be changed through the proxy"),
        )
        .hint("Log in as the other role, or use SET ROLE.")),
        // Pinned by the voters. The analyser lets only those values pass that change nothing.
        (
            "array_nulls"
            | "backslash_quote"
            | "jit"
            | "lc_messages"
            | "max_parallel_workers_per_gather"
            | "standard_conforming_strings"
            | "synchronize_seqscans"
            | "transform_null_equals",
            _,
        ) => Ok(Own::Ignored),
        ("application_name", Some(value)) => {
            let name: String = value
                .chars()
                .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
                .collect();
            Ok(Own::Value(name.chars().take(APPLICATION_NAME_BYTES_MAX).collect()))
        }
        _ => Ok(Own::No),
    }
}

/// Time limits that the proxy keeps.
fn is_time_limit(name: &str) -> bool {
    matches!(
        name,
        "statement_timeout" | "lock_timeout" | "idle_in_transaction_session_timeout" | "idle_session_timeout"
    )
}

/// What SHOW says of a setting of the proxy's own that is not set.
pub(super) fn shown_default(name: &str) -> Option<&'static str> {
    match name {
        ANSWERS => Some("voted"),
        READS => Some("linearizable"),
        "application_name" => Some(""),
        "client_encoding" => Some("UTF8"),
        "default_transaction_isolation" => Some("read committed"),
        "default_transaction_read_only" | "default_transaction_deferrable" => Some("off"),
        "synchronous_commit" => Some("on"),
        _ if is_time_limit(name) => Some("0"),
        _ => None,
    }
}

fn parse_isolation(value: &str) -> Option<Isolation> {
    match value.to_ascii_lowercase().as_str() {
        "read committed" | "read uncommitted" => Some(Isolation::ReadCommitted),
        "repeatable read" => Some(Isolation::RepeatableRead),
        "serializable" => Some(Isolation::Serializable),
        _ => None,
    }
}

fn invalid_value(name: &str, value: &str) -> ApplicationError {
    ApplicationError::new("22023", format!("invalid value for parameter \"{name}\": \"{value}\""))
}

/// A setting's name, which may have a prefix: each part quoted.
fn quote_name(name: &str) -> String {
    name.split('.').map(quote_identifier).collect::<Vec<_>>().join(".")
}
