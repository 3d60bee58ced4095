//! Statements that the proxy answers itself, because they concern the session rather than the data.

use sql::names::DEFAULT_PATH;
use sql::operation::Exchange;
use sql::statement::{Listening, Setting, StatementClass};

use super::advisory::advisory_columns;
use super::configs::Bound;
use super::held::Wire;
use super::prepared::Prepared;
use super::routing::Kind;
use super::set::shown_default;
use super::transaction::isolation_name;
use super::{End, Session};
use crate::error::ApplicationError;
use crate::leftovers::DISCARD;
use crate::wire::{Backend, first_error, format_of};

/// The setting that says where names are looked for.
const SEARCH_PATH: &str = "search_path";
/// The OID of `text`, for rows that the proxy makes.
pub(super) const TEXT_OID: u32 = 25;
/// The OID of `int4`.
pub(super) const INT4_OID: u32 = 23;
/// The OID of `bool`.
pub(super) const BOOL_OID: u32 = 16;

/// The answer to such a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// Its rows; the columns are [`special_columns`].
    pub(super) rows: Vec<Vec<Option<String>>>,
    pub(super) tag: String,
}

impl Reply {
    pub(super) fn tag(tag: impl Into<String>) -> Self {
        Self {
            rows: Vec::new(),
            tag: tag.into(),
        }
    }

    /// The answer to a SELECT: one row.
    pub(super) fn row(values: Vec<Option<String>>) -> Self {
        Self {
            rows: vec![values],
            tag: "SELECT 1".into(),
        }
    }
}

/// Whether the proxy answers a statement itself.
pub(super) fn is_special(class: &StatementClass, text: &str) -> bool {
    match class {
        StatementClass::TransactionControl(_)
        | StatementClass::Listening(_)
        | StatementClass::Advisory(_)
        | StatementClass::Prepare { .. }
        | StatementClass::Deallocate(_) => true,
        StatementClass::Setting(Setting::Show(name)) => is_shown_here(name),
        StatementClass::Setting(Setting::ShowAll) => false,
        StatementClass::Setting(_) | StatementClass::CopyFrom => true,
        _ => is_backend_pid(text),
    }
}

/// A column of a result that the proxy makes: its name, type and width.
pub(super) type SpecialColumn = (String, u32, i16);

/// The columns that such a statement returns.
pub(super) fn special_columns(class: &StatementClass, text: &str) -> Vec<SpecialColumn> {
    let of_text = |name: &str| (name.to_owned(), TEXT_OID, -1);
    match class {
        StatementClass::Setting(Setting::Show(name)) => vec![of_text(name)],
        StatementClass::Setting(Setting::SetConfig { .. }) => vec![of_text("set_config")],
        StatementClass::Setting(Setting::Configs(columns)) => {
            columns.iter().map(|column| of_text(&column.name)).collect()
        }
        StatementClass::Advisory(columns) => advisory_columns(columns),
        StatementClass::Listening(Listening::Show) => vec![of_text("pg_listening_channels")],
        _ if is_backend_pid(text) => vec![("pg_backend_pid".into(), INT4_OID, 4)],
        _ => Vec::new(),
    }
}

/// Settings of which only the proxy knows the value.
pub(super) fn is_shown_here(name: &str) -> bool {
    let of_transaction = matches!(
        name,
        "transaction_isolation" | "transaction_read_only" | "transaction_deferrable"
    );
    // The databases put the schema of temporary objects before it.
    of_transaction || name == "session_authorization" || name == SEARCH_PATH || shown_default(name).is_some()
}

/// Exactly `SELECT pg_backend_pid()`: of the servers, each would say something else.
fn is_backend_pid(text: &str) -> bool {
    if text.len() > 60 {
        return false;
    }
    let words: Vec<_> = text.trim().trim_end_matches(';').split_ascii_whitespace().collect();
    words.join(" ").eq_ignore_ascii_case("select pg_backend_pid()")
}

impl Session {
    /// Runs a statement that the proxy answers itself.
    pub(super) async fn run_special(
        &mut self,
        class: &StatementClass,
        text: &str,
        bound: &Bound,
    ) -> Result<Reply, ApplicationError> {
        if let StatementClass::TransactionControl(control) = class {
            return self.transaction_control(control, text).await;
        }
        if self.transaction.as_ref().is_some_and(|transaction| transaction.failed) {
            return Err(ApplicationError::in_failed_transaction());
        }
        let outcome = self.run_special_unfailed(class, text, bound).await;
        if outcome.is_err() {
            self.fail_transaction();
        }
        outcome
    }

    async fn run_special_unfailed(
        &mut self,
        class: &StatementClass,
        text: &str,
        bound: &Bound,
    ) -> Result<Reply, ApplicationError> {
        match class {
            StatementClass::Setting(Setting::Configs(columns)) => self.run_configs(columns, bound).await,
            StatementClass::Setting(setting) => self.run_setting(setting, text).await,
            StatementClass::Listening(listening) => self.listening(listening).await,
            StatementClass::Advisory(columns) => self.run_advisory(columns, bound).await,
            StatementClass::Prepare { name, body } => self.sql_prepare(name, body, text).await,
            StatementClass::Deallocate(name) => self.sql_deallocate(name.as_deref()),
            _ => Ok(Reply::row(vec![Some(self.registered.process.to_string())])),
        }
    }

    async fn run_setting(&mut self, setting: &Setting, text: &str) -> Result<Reply, ApplicationError> {
        match setting {
            Setting::Set { local, name, value } => {
                // One of several statements of a text is in a block, too.
                if *local && self.transaction.is_none() {
                    let warning = "SET LOCAL can only be used in transaction blocks";
                    self.connection.out.error(&ApplicationError::warning("25P01", warning));
                }
                self.change_setting(name, value.clone(), *local, true).await?;
                Ok(Reply::tag("SET"))
            }
            Setting::SetConfig { local, name, value } => {
                let value = self.set_config(name, Some(value.clone()), *local).await?;
                Ok(Reply::row(vec![Some(value)]))
            }
            Setting::Reset(name) => {
                self.change_setting(name, None, false, true).await?;
                Ok(Reply::tag("RESET"))
            }
            Setting::ResetAll => {
                self.reset_all().await?;
                Ok(Reply::tag("RESET"))
            }
            Setting::DiscardAll => {
                if self.transaction.is_some() {
                    let message = "DISCARD ALL cannot run inside a transaction block";
                    return Err(ApplicationError::new("25001", message));
                }
                self.reset_all().await?;
                self.discard_temporary().await?;
                self.unlisten_all();
                self.advisory_unlock_all().await?;
                self.held.clear();
                self.shared
                    .metrics
                    .prepared_statements
                    .decrement(self.statements.len() as f64);
                self.statements.clear();
                self.portals.clear();
                Ok(Reply::tag("DISCARD ALL"))
            }
            Setting::DiscardTemporary => {
                self.discard_temporary().await?;
                Ok(Reply::tag("DISCARD TEMP"))
            }
            Setting::DiscardOther => {
                let words = text.split_ascii_whitespace().take(2).collect::<Vec<_>>().join(" ");
                Ok(Reply::tag(words.trim_end_matches(';').to_ascii_uppercase()))
            }
            Setting::Show(name) => Ok(Reply {
                rows: vec![vec![Some(self.show(name))]],
                tag: "SHOW".into(),
            }),
            Setting::ShowAll | Setting::Configs(_) => Err(ApplicationError::new(
                crate::error::NOT_SUPPORTED,
                "this statement was not expected here",
            )),
        }
    }

    /// Executes a portal of such a statement.
    pub(super) async fn execute_special(
        &mut self,
        prepared: &Prepared,
        formats: &[i16],
        bound: &Bound,
    ) -> Result<(), End> {
        if prepared.class == StatementClass::Empty {
            self.pipeline.insert(Backend::empty_query_response);
            return Ok(());
        }
        self.run_pipeline(false).await?;
        if self.skip_to_sync {
            return Ok(());
        }
        let text = prepared.statement.text.as_str();
        if prepared.class == StatementClass::CopyFrom {
            self.begin_implicitly();
            return match self.copy_from(text).await? {
                Ok(messages) => self.deliver_result(&messages).await,
                Err(error) => self.pipeline_error(&error).await.map(|_| ()),
            };
        }
        if let StatementClass::Cursor(_) = prepared.class {
            return match self.answer_held(&prepared.class, Wire::Extended(formats)).await? {
                Ok(()) => Ok(()),
                Err(error) => self.pipeline_error(&error).await.map(|_| ()),
            };
        }
        match self.run_special(&prepared.class, text, bound).await {
            Ok(reply) => {
                let columns = special_columns(&prepared.class, text);
                for row in reply.rows {
                    let values = row.into_iter().zip(&columns).enumerate();
                    let values = values.map(|(at, (value, (_, oid, _)))| {
                        let value = value?;
                        let is_binary = format_of(formats, at) == 1;
                        match (value.parse::<i32>(), *oid) {
                            (Ok(number), INT4_OID) if is_binary => Some(number.to_be_bytes().to_vec()),
                            (_, BOOL_OID) if is_binary => Some(vec![u8::from(value == "t")]),
                            _ => Some(value.into_bytes()),
                        }
                    });
                    self.connection.out.row(values);
                }
                self.connection.out.command_complete(&reply.tag);
                Ok(())
            }
            Err(error) => self.pipeline_error(&error).await.map(|_| ()),
        }
    }

    /// Drops the session's temporary objects, if it has made any.
    async fn discard_temporary(&mut self) -> Result<(), ApplicationError> {
        if !self.made_temporary {
            return Ok(());
        }
        let exchange = Exchange::Simple { text: DISCARD.into() };
        let result = self.execute_and_gather(&exchange, Kind::Plain).await?;
        if let Some(error) = first_error(&result.messages) {
            return Err(error);
        }
        // In a transaction it may be rolled back.
        self.made_temporary = self.transaction.is_some();
        Ok(())
    }

    /// What SHOW says of a setting that the proxy keeps.
    pub(super) fn show(&self, name: &str) -> String {
        let of_transaction = |of: fn(&super::transaction::Transaction) -> String| self.transaction.as_ref().map(of);
        let set = |name: &str, default: &str| self.settings.get(name).unwrap_or(default).to_owned();
        match name {
            "transaction_isolation" => of_transaction(|transaction| isolation_name(transaction.isolation).into())
                .unwrap_or_else(|| set("default_transaction_isolation", "read committed")),
            "transaction_read_only" => {
                of_transaction(|transaction| if transaction.read_only { "on" } else { "off" }.into())
                    .unwrap_or_else(|| set("default_transaction_read_only", "off"))
            }
            "transaction_deferrable" => set("default_transaction_deferrable", "off"),
            "session_authorization" => self.role.clone(),
            SEARCH_PATH => set(name, DEFAULT_PATH),
            name => set(name, shown_default(name).unwrap_or_default()),
        }
    }
}

/// Describes such a statement, or a portal of it whose columns have these formats.
pub(super) fn describe_special(prepared: &Prepared, formats: &[i16], out: &mut Backend) {
    match special_columns(&prepared.class, &prepared.statement.text).as_slice() {
        [] => out.no_data(),
        columns => out.columns(columns, |at| format_of(formats, at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_question_for_the_process_is_answered_here() {
        assert!(is_backend_pid(" select  PG_backend_pid() ;"));
        assert!(!is_backend_pid("select pg_backend_pid(), 1"));
        assert!(!is_backend_pid("select pg_backend_pid() from t"));
    }
}
