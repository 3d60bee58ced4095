//! BEGIN, COMMIT, ROLLBACK, savepoints and transaction modes.

use sql::operation::Exchange;
use sql::statement::{TransactionControl, TransactionModes};

use super::Session;
use super::routing::Kind;
use super::special::Reply;
use super::transaction::{SAVEPOINTS_MAX, Savepoint, Transaction, isolation_name};
use crate::client::Failure;
use crate::error::ApplicationError;
use crate::measures::TransactionEnd;
use crate::wire::first_error;

impl Session {
    /// Runs a transaction control statement.
    pub(super) async fn transaction_control(
        &mut self,
        control: &TransactionControl,
        text: &str,
    ) -> Result<Reply, ApplicationError> {
        let failed = self.transaction.as_ref().is_some_and(|transaction| transaction.failed);
        let ends = matches!(
            control,
            TransactionControl::Commit { .. } | TransactionControl::Rollback { .. } | TransactionControl::RollbackTo(_)
        );
        if failed && !ends {
            return Err(ApplicationError::in_failed_transaction());
        }
        let outcome = self.transaction_control_unfailed(control, text).await;
        if outcome.is_err() {
            self.fail_transaction();
        }
        outcome
    }

    async fn transaction_control_unfailed(
        &mut self,
        control: &TransactionControl,
        text: &str,
    ) -> Result<Reply, ApplicationError> {
        match control {
            TransactionControl::Begin(modes) => self.begin_block(*modes, text),
            TransactionControl::Commit { chain } => self.commit_block(*chain).await,
            TransactionControl::Rollback { chain } => self.rollback_block(*chain),
            TransactionControl::Savepoint(name) => self.savepoint(name, text).await,
            TransactionControl::Release(name) => self.release(name, text).await,
            TransactionControl::RollbackTo(name) => self.rollback_to(name, text).await,
            TransactionControl::SetTransaction(modes) => {
                if self
                    .transaction
                    .as_ref()
                    .is_none_or(|transaction| !transaction.explicit)
                {
                    self.warn("25P01", "SET TRANSACTION can only be used in transaction blocks");
                    return Ok(Reply::tag("SET"));
                }
                self.set_transaction(*modes)?;
                Ok(Reply::tag("SET"))
            }
            TransactionControl::SetSessionCharacteristics(modes) => {
                self.set_session_characteristics(*modes).await?;
                Ok(Reply::tag("SET"))
            }
        }
    }

    fn warn(&mut self, sqlstate: &'static str, message: &'static str) {
        self.connection.out.error(&ApplicationError::warning(sqlstate, message));
    }

    fn begin_block(&mut self, modes: TransactionModes, text: &str) -> Result<Reply, ApplicationError> {
        let first = text.split_ascii_whitespace().next().unwrap_or_default();
        let tag = if first.eq_ignore_ascii_case("start") {
            "START TRANSACTION"
        } else {
            "BEGIN"
        };
        match &mut self.transaction {
            Some(transaction) if transaction.explicit => {
                self.warn("25001", "there is already a transaction in progress");
            }
            // The implicit block of a text or a pipeline becomes a regular one.
            Some(transaction) => transaction.explicit = true,
            None => self.transaction = Some(Transaction::new(true, modes, &self.settings)),
        }
        if self.transaction.as_ref().is_some_and(|transaction| !transaction.used) {
            self.set_transaction(modes)?;
        }
        Ok(Reply::tag(tag))
    }

    /// Starts the implicit block of a text or a pipeline, unless a block is open.
    pub(super) fn begin_implicitly(&mut self) {
        if self.transaction.is_none() {
            self.transaction = Some(Transaction::new(false, TransactionModes::default(), &self.settings));
        }
    }

    pub(super) fn set_transaction(&mut self, modes: TransactionModes) -> Result<(), ApplicationError> {
        let Some(transaction) = &mut self.transaction else {
            return Ok(());
        };
        if let Some(isolation) = modes.isolation.filter(|isolation| *isolation != transaction.isolation) {
            if transaction.used || transaction.begun.is_some() {
                let message = "SET TRANSACTION ISOLATION LEVEL must be called before any query";
                return Err(ApplicationError::new("25001", message));
            }
            transaction.isolation = isolation;
        }
        if let Some(read_only) = modes.read_only.filter(|read_only| *read_only != transaction.read_only) {
            if transaction.used || transaction.begun.is_some() {
                let message = "transaction read-write mode must be set before any query";
                return Err(ApplicationError::new("25001", message));
            }
            transaction.read_only = read_only;
        }
        Ok(())
    }

    async fn set_session_characteristics(&mut self, modes: TransactionModes) -> Result<(), ApplicationError> {
        if let Some(isolation) = modes.isolation {
            let value = Some(isolation_name(isolation).to_owned());
            self.change_setting("default_transaction_isolation", value, false, true)
                .await?;
        }
        if let Some(read_only) = modes.read_only {
            let value = Some(if read_only { "on" } else { "off" }.to_owned());
            self.change_setting("default_transaction_read_only", value, false, true)
                .await?;
        }
        Ok(())
    }

    async fn commit_block(&mut self, chain: bool) -> Result<Reply, ApplicationError> {
        let Some(transaction) = &self.transaction else {
            if chain {
                return Err(ApplicationError::new(
                    "25P01",
                    "COMMIT AND CHAIN can only be used in transaction blocks",
                ));
            }
            self.warn("25P01", "there is no transaction in progress");
            return Ok(Reply::tag("COMMIT"));
        };
        let modes = transaction.modes();
        if !transaction.explicit {
            if chain {
                return Err(ApplicationError::new(
                    "25P01",
                    "COMMIT AND CHAIN can only be used in transaction blocks",
                ));
            }
            self.warn("25P01", "there is no transaction in progress");
        }
        let tag = if self.commit().await? { "COMMIT" } else { "ROLLBACK" };
        self.chain(chain, modes);
        Ok(Reply::tag(tag))
    }

    fn rollback_block(&mut self, chain: bool) -> Result<Reply, ApplicationError> {
        let explicit = self
            .transaction
            .as_ref()
            .is_some_and(|transaction| transaction.explicit);
        if !explicit {
            if chain {
                return Err(ApplicationError::new(
                    "25P01",
                    "ROLLBACK AND CHAIN can only be used in transaction blocks",
                ));
            }
            self.warn("25P01", "there is no transaction in progress");
        }
        let modes = self.transaction.as_ref().map(Transaction::modes).unwrap_or_default();
        self.rollback();
        self.chain(chain, modes);
        Ok(Reply::tag("ROLLBACK"))
    }

    fn chain(&mut self, chain: bool, modes: TransactionModes) {
        if chain {
            self.transaction = Some(Transaction::new(true, modes, &self.settings));
        }
    }

    /// Commits the open transaction; `false` when it had failed and was rolled back.
    pub(super) async fn commit(&mut self) -> Result<bool, ApplicationError> {
        if self.transaction.as_ref().is_none_or(|transaction| transaction.failed) {
            self.rollback();
            return Ok(false);
        }
        let kept = match self.keep_cursors().await {
            Ok(kept) => kept,
            Err(error) => {
                self.rollback();
                return Err(error);
            }
        };
        let Some(mut transaction) = self.transaction.take() else {
            return Ok(false);
        };
        self.portals.clear();
        let Some(begun) = transaction.begun.take() else {
            self.committed(&transaction);
            return Ok(true);
        };
        let advisory = begun.advisory;
        let finished = self.finish(begun, transaction.catalog_changed).await;
        if advisory {
            self.shared.advisory.moved();
        }
        match finished {
            Ok(notices) => {
                self.connection.out.raw(&notices);
                self.committed(&transaction);
                self.hold(kept);
                Ok(true)
            }
            Err(failure) => {
                let end = match failure {
                    Failure::OutcomeUnknown => TransactionEnd::Unknown,
                    _ => TransactionEnd::Failed,
                };
                self.rolled_back(&transaction, end);
                Err(failure.into_error())
            }
        }
    }

    fn committed(&mut self, transaction: &Transaction) {
        self.end_listening(Some(transaction));
        self.shared.metrics.transaction(TransactionEnd::Committed);
        let mut settings = self.settings.clone();
        settings.end_transaction();
        self.adopt_settings(settings);
    }

    fn rolled_back(&mut self, transaction: &Transaction, end: TransactionEnd) {
        self.shared.metrics.transaction(end);
        self.end_listening(None);
        self.portals.clear();
        self.adopt_settings(transaction.settings_before.clone());
    }

    /// Rolls the open transaction back, if there is one.
    pub(super) fn rollback(&mut self) {
        let Some(mut transaction) = self.transaction.take() else {
            return;
        };
        if let Some(begun) = transaction.begun.take() {
            let advisory = begun.advisory;
            let ending = self.abort_later(begun);
            self.ending = advisory.then_some(ending);
        }
        self.rolled_back(&transaction, TransactionEnd::RolledBack);
    }

    /// The session ends: nobody will commit what is open.
    pub(super) fn abandon_transaction(&mut self) {
        self.rollback();
    }

    async fn savepoint(&mut self, name: &str, text: &str) -> Result<Reply, ApplicationError> {
        let transaction = self.explicit_block("SAVEPOINT")?;
        if transaction.savepoints.len() >= SAVEPOINTS_MAX {
            return Err(ApplicationError::new("54000", "too many savepoints"));
        }
        self.divide(text).await?;
        let settings = self.settings.clone();
        if let Some(transaction) = &mut self.transaction {
            let listening = transaction.listening.len();
            transaction.savepoints.push(Savepoint {
                name: name.to_owned(),
                settings,
                listening,
            });
        }
        Ok(Reply::tag("SAVEPOINT"))
    }

    async fn release(&mut self, name: &str, text: &str) -> Result<Reply, ApplicationError> {
        let at = self
            .explicit_block("RELEASE SAVEPOINT")?
            .savepoint(name)
            .ok_or_else(|| no_savepoint(name))?;
        self.divide(text).await?;
        if let Some(transaction) = &mut self.transaction {
            transaction.savepoints.truncate(at);
            transaction.holdables.released(at);
        }
        Ok(Reply::tag("RELEASE"))
    }

    async fn rollback_to(&mut self, name: &str, text: &str) -> Result<Reply, ApplicationError> {
        let transaction = self.explicit_block("ROLLBACK TO SAVEPOINT")?;
        let at = transaction.savepoint(name).ok_or_else(|| no_savepoint(name))?;
        if transaction.doomed {
            return Err(ApplicationError::in_failed_transaction()
                .detail("The transaction was rolled back as a whole; its savepoints are gone.")
                .hint("Run the transaction again."));
        }
        transaction.failed = false;
        transaction.savepoints.truncate(at + 1);
        transaction.holdables.rolled_back_to(at);
        let savepoint = transaction.savepoints.last();
        let settings = savepoint.map(|savepoint| savepoint.settings.clone());
        let listening = savepoint.map_or(0, |savepoint| savepoint.listening);
        transaction.listening.truncate(listening);
        self.divide(text).await?;
        self.adopt_settings(settings.unwrap_or_default());
        Ok(Reply::tag("ROLLBACK"))
    }

    fn explicit_block(&mut self, command: &str) -> Result<&mut Transaction, ApplicationError> {
        self.transaction
            .as_mut()
            .filter(|transaction| transaction.explicit)
            .ok_or_else(|| ApplicationError::new("25P01", format!("{command} can only be used in transaction blocks")))
    }

    /// Runs a savepoint statement on the voters: now, or at the Begin.
    async fn divide(&mut self, text: &str) -> Result<(), ApplicationError> {
        let exchange = Exchange::Simple { text: text.to_owned() };
        if self.begun().is_none() {
            return self.defer(&exchange);
        }
        let result = self.execute_and_gather(&exchange, Kind::Stateful).await?;
        first_error(&result.messages).map_or(Ok(()), Err)
    }
}

fn no_savepoint(name: &str) -> ApplicationError {
    ApplicationError::new("3B001", format!("savepoint \"{name}\" does not exist"))
}
