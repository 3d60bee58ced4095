//! Checks whether the database is what TPC-C's transactions can have left behind.

mod conditions;

use std::fmt;

use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::Error;
use crate::connection::connect;
use crate::ledger::{self, LedgerReport};
use crate::options::CheckOptions;
use crate::scale::Scale;
use conditions::{CONDITIONS, Condition};

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Warehouses that were looked at.
    pub warehouses: i32,
    /// The twelve conditions.
    pub conditions: Vec<ConditionReport>,
    /// What became of the transactions in the ledger, if one was given.
    pub ledger: Option<LedgerReport>,
}

/// Whether one condition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionReport {
    /// The last part of its clause: 3.3.2.`number`.
    pub number: u32,
    /// What must hold.
    pub rule: String,
    /// Whether it holds in every warehouse.
    pub passed: bool,
    /// The first row that breaks it.
    pub violation: Option<Violation>,
}

/// A row that breaks a condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The warehouse in which it was found.
    pub warehouse: i32,
    /// Names and values of the row's columns.
    pub row: String,
    /// The query that finds it.
    pub query: String,
}

impl CheckReport {
    /// Whether everything holds.
    pub fn passed(&self) -> bool {
        let ledger_holds = self.ledger.as_ref().is_none_or(|ledger| ledger.violations == 0);
        ledger_holds && self.conditions.iter().all(|condition| condition.passed)
    }

    /// The numbers of the conditions that do not hold.
    pub fn broken_conditions(&self) -> Vec<u32> {
        let broken = self.conditions.iter().filter(|condition| !condition.passed);
        broken.map(|condition| condition.number).collect()
    }
}

/// Checks the twelve conditions of clause 3.3.2, and the ledger if one is given. Nothing else should change the
/// database meanwhile.
///
/// # Errors
/// The server refuses a query, holds no TPC-C database, or the ledger cannot be read.
pub async fn check(options: &CheckOptions) -> Result<CheckReport, Error> {
    let client = connect(&options.dsn).await?;
    let warehouses = Scale::of_database(&client).await?.warehouses;
    let mut conditions = Vec::new();
    for condition in &CONDITIONS {
        conditions.push(check_condition(&client, condition, warehouses).await?);
    }
    let ledger = match &options.ledger {
        Some(path) => Some(ledger::check(&client, path).await?),
        None => None,
    };
    Ok(CheckReport {
        warehouses,
        conditions,
        ledger,
    })
}

async fn check_condition(client: &Client, condition: &Condition, warehouses: i32) -> Result<ConditionReport, Error> {
    let mut violation = None;
    for warehouse in 1..=warehouses {
        let query = query_for(condition, warehouse, warehouses);
        if let Some(row) = first_row(client, &query).await? {
            violation = Some(Violation {
                warehouse,
                row: row_text(&row),
                query,
            });
            break;
        }
    }
    Ok(ConditionReport {
        number: condition.number,
        rule: condition.rule.to_owned(),
        passed: violation.is_none(),
        violation,
    })
}

fn query_for(condition: &Condition, warehouse: i32, warehouses: i32) -> String {
    let all: Vec<String> = (1..=warehouses).map(|number| number.to_string()).collect();
    condition
        .query
        .replace("{w}", &warehouse.to_string())
        .replace("{all}", &all.join(", "))
}

async fn first_row(client: &Client, query: &str) -> Result<Option<SimpleQueryRow>, Error> {
    let messages = client.simple_query(query).await?;
    Ok(messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    }))
}

fn row_text(row: &SimpleQueryRow) -> String {
    let columns = row.columns().iter().enumerate();
    let texts: Vec<String> = columns
        .map(|(index, column)| {
            let value = row.try_get(index).ok().flatten().unwrap_or("null");
            format!("{} = {value}", column.name())
        })
        .collect();
    texts.join(", ")
}

impl fmt::Display for CheckReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "consistency of {} warehouses, clause 3.3.2:", self.warehouses)?;
        for condition in &self.conditions {
            let verdict = if condition.passed { "holds " } else { "BROKEN" };
            writeln!(out, "{:>4} {verdict} {}", condition.number, condition.rule)?;
            if let Some(violation) = &condition.violation {
                writeln!(out, "       warehouse {}: {}", violation.warehouse, violation.row)?;
                writeln!(out, "       found by: {}", violation.query.replace('\n', "\n       "))?;
            }
        }
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        writeln!(
            out,
            "ledger: {} acknowledged, {} of unknown outcome ({} of them found), {} rolled back; {} violations",
            ledger.acknowledged, ledger.unknown, ledger.unknown_found, ledger.refused, ledger.violations
        )?;
        ledger
            .listed_violations
            .iter()
            .try_for_each(|violation| writeln!(out, "       {violation}"))
    }
}
