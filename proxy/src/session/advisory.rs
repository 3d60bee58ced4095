//! `SELECT pg_advisory_lock(...)` and the like (`docs/decisions/0054`): decided by the voters' lock table, run by no database node.

use std::sync::Arc;
use std::time::Instant;

use sql::operation::{Advisory, AdvisoryKey, advisory_tag};
use sql::statement::{AdvisoryArgument, AdvisoryCall, AdvisoryColumn, StatementClass};

use super::Session;
use super::configs::Bound;
use super::special::{BOOL_OID, INT4_OID, Reply, SpecialColumn, TEXT_OID};
use super::waiting::{Limits, Reason, given_up};
use crate::advisory::Waited;
use crate::client::Failure;
use crate::error::ApplicationError;

/// What an application is told whose locks the voters have given away.
const LOST: &str = "the advisory locks of the session are lost";
/// The OID of `void`.
const VOID_OID: u32 = 2278;
/// The OID of `int8`.
const INT8_OID: u32 = 20;
/// Types that a parameter may be declared with: unspecified, `unknown`, `int8`, `int2` and `int4`.
const KEY_TYPES: [u32; 5] = [0, 705, INT8_OID, 21, INT4_OID];

/// The columns of such a statement.
pub(super) fn advisory_columns(columns: &[AdvisoryColumn]) -> Vec<SpecialColumn> {
    let described = columns.iter().map(|column| {
        let (oid, width) = match column.call.is_boolean() {
            _ if column.as_text => (TEXT_OID, -1),
            true => (BOOL_OID, 1),
            false => (VOID_OID, 4),
        };
        (column.name.clone(), oid, width)
    });
    described.collect()
}

/// The types of its parameters, as PostgreSQL infers them: of each that it has, by number from 1.
pub(super) fn advisory_parameters(columns: &[AdvisoryColumn]) -> Vec<(u16, u32)> {
    let of_column = |column: &AdvisoryColumn| {
        let inferred = if column.key.len() == 1 { INT8_OID } else { INT4_OID };
        let typed = column.key.iter().filter_map(move |argument| match argument {
            AdvisoryArgument::Parameter(number, cast) => Some((*number, cast.unwrap_or(inferred))),
            _ => None,
        });
        typed.collect::<Vec<_>>()
    };
    columns.iter().flat_map(of_column).collect()
}

/// What PostgreSQL says of a parameter that is declared with a type of which there is no such function.
pub(super) fn check_declared(class: &StatementClass, declared: &[u32]) -> Result<(), ApplicationError> {
    match class {
        StatementClass::Advisory(_) if !declared.iter().all(|oid| KEY_TYPES.contains(oid)) => {
            let error = ApplicationError::new("42883", "functions of advisory locks take integers");
            Err(error.hint("Declare the parameters as bigint or int, or leave their types open."))
        }
        _ => Ok(()),
    }
}

impl Session {
    /// Runs the calls from left to right, as PostgreSQL does.
    pub(super) async fn run_advisory(
        &mut self,
        columns: &[AdvisoryColumn],
        bound: &Bound,
    ) -> Result<Reply, ApplicationError> {
        if let Some(transaction) = &mut self.transaction {
            transaction.used = true;
        }
        let mut values = Vec::with_capacity(columns.len());
        for column in columns {
            let key = match column.call {
                AdvisoryCall::UnlockAll => None,
                _ => match key(column, bound)? {
                    Some(key) => Some(key),
                    // The functions are strict.
                    None => {
                        values.push(None);
                        continue;
                    }
                },
            };
            let is_so = self.advisory_call(column.call, key).await?;
            let value = match (column.call.is_boolean(), column.as_text) {
                (false, _) => "",
                (true, true) if is_so => "true",
                (true, true) => "false",
                (true, false) if is_so => "t",
                (true, false) => "f",
            };
            values.push(Some(value.to_owned()));
        }
        Ok(Reply::row(values))
    }

    async fn advisory_call(&mut self, call: AdvisoryCall, key: Option<AdvisoryKey>) -> Result<bool, ApplicationError> {
        match (call, key) {
            (
                AdvisoryCall::Lock {
                    tries,
                    of_transaction,
                    shared,
                },
                Some(key),
            ) => self.advisory_lock(key, tries, of_transaction, shared).await,
            (AdvisoryCall::Unlock { shared }, Some(key)) => {
                let released = self.station.may_hold()
                    && self.advise(Advisory::Unlock { key, shared }).await?.0 == advisory_tag::RELEASED;
                if !released {
                    let mode = if shared { "ShareLock" } else { "ExclusiveLock" };
                    let warning = format!("you don't own a lock of type {mode}");
                    self.connection.out.error(&ApplicationError::warning("01000", warning));
                }
                Ok(released)
            }
            _ => {
                self.advisory_unlock_all().await?;
                Ok(true)
            }
        }
    }

    /// Gives back all locks of the session's own.
    pub(super) async fn advisory_unlock_all(&mut self) -> Result<(), ApplicationError> {
        if self.station.may_hold() {
            self.advise(Advisory::UnlockAll).await?;
        }
        Ok(())
    }

    async fn advise(&mut self, advisory: Advisory) -> Result<(String, u64), ApplicationError> {
        let context = self.context();
        self.station.ask(&self.shared.client, &context.decoded, advisory).await
    }

    async fn advisory_lock(
        &mut self,
        key: AdvisoryKey,
        tries: bool,
        of_transaction: bool,
        shared: bool,
    ) -> Result<bool, ApplicationError> {
        if self.cancel.is_requested() {
            return Err(ApplicationError::cancelled());
        }
        let limits = self.limits(Instant::now());
        let transaction = match of_transaction {
            true => {
                self.begin_implicitly();
                Some(self.begin_for_locks().await.map_err(Failure::into_error)?)
            }
            false => None,
        };
        let lock = Advisory::Lock {
            key,
            shared,
            transaction,
            waits: !tries,
        };
        let (tag, since) = self.advise(lock).await?;
        match tag.as_str() {
            advisory_tag::GRANTED => Ok(true),
            advisory_tag::TAKEN => Ok(false),
            _ => {
                self.wait_for_advisory(since, limits).await?;
                if !of_transaction {
                    self.station.granted();
                }
                Ok(true)
            }
        }
    }

    /// Waits for a lock that was asked for at an order, until the statement is to be given up.
    async fn wait_for_advisory(&mut self, since: u64, limits: Limits) -> Result<(), ApplicationError> {
        let (station, cancel) = (Arc::clone(&self.station), Arc::clone(&self.cancel));
        let mut channel = self.connection.lend();
        let ended = tokio::select! {
            biased;
            waited = station.waited() => Ok(waited),
            reason = given_up(channel.as_mut(), &cancel, limits) => Err(reason),
        };
        self.connection.give_back(channel);
        let reason = match ended {
            Ok(Waited::Granted) => return Ok(()),
            Ok(Waited::Lost) => return Err(ApplicationError::new("57P01", LOST)),
            Err(reason) => reason,
        };
        self.is_gone |= reason == Reason::Gone;
        match self.advise(Advisory::GiveUp { since }).await?.0.as_str() {
            advisory_tag::GIVEN_UP => Err(reason.error()),
            // The lock was granted before.
            _ => Ok(()),
        }
    }
}

/// Why a session ends whose locks the voters have given away.
pub(super) fn lost() -> ApplicationError {
    ApplicationError::fatal("57P01", LOST)
        .detail("The cluster has heard nothing of the proxy for too long, and has ended what its sessions held.")
}

/// The key of a call; `None` if a part of it is NULL.
fn key(column: &AdvisoryColumn, bound: &Bound) -> Result<Option<AdvisoryKey>, ApplicationError> {
    let int = |number: i64| {
        let out_of_range = |_| ApplicationError::new("22003", "integer out of range");
        i32::try_from(number).map_err(out_of_range)
    };
    Ok(match column.key.as_slice() {
        [only] => bound.integer(only)?.map(AdvisoryKey::One),
        [first, second] => match (bound.integer(first)?, bound.integer(second)?) {
            (Some(first), Some(second)) => Some(AdvisoryKey::Two(int(first)?, int(second)?)),
            _ => None,
        },
        _ => None,
    })
}
