//! What the database was told to keep: a file of every New-Order and Payment whose end the terminal knows, and the
//! search for each of them.
//!
//! A New-Order is recognised by its customer and its entry time, which is unique; so an order that was lost, and
//! whose number was given to another, is noticed. A Payment is recognised by a marker in H_DATA.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::Error;
use crate::clock::micros;
use crate::fixed::Money;

/// Violations that are written out; all are counted.
const LISTED_VIOLATIONS_MAX: usize = 20;

/// What one transaction leaves in the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Claim {
    /// A row of the orders table.
    NewOrder {
        warehouse: i32,
        district: i32,
        order: i32,
        customer: i32,
        entry_micros: u64,
    },
    /// A row of the history table.
    Payment {
        warehouse: i32,
        district: i32,
        amount_cents: i64,
        marker: String,
    },
}

impl Claim {
    fn warehouse(&self) -> i32 {
        match self {
            Self::NewOrder { warehouse, .. } | Self::Payment { warehouse, .. } => *warehouse,
        }
    }
}

/// What the server said about a transaction's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// COMMIT was acknowledged: it must be there exactly once.
    Acknowledged,
    /// The connection was lost, or the error leaves it open: it may be there at most once.
    Unknown,
    /// It was rolled back: it must not be there.
    Refused,
}

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    outcome: Outcome,
    #[serde(flatten)]
    claim: Claim,
}

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: Mutex<File>,
}

impl Ledger {
    /// Opens the file; what it holds already is kept.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
        })
    }

    /// Appends one line, without a buffer: a killed process loses nothing that it has noted.
    pub(crate) fn note(&self, outcome: Outcome, claim: Claim) -> Result<(), Error> {
        let mut line = serde_json::to_vec(&Entry { outcome, claim })?;
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line).map_err(|source| Error::File {
            path: self.path.clone(),
            source,
        })
    }
}

/// What became of the transactions in a ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerReport {
    /// Transactions whose COMMIT was acknowledged.
    pub acknowledged: u64,
    /// Transactions whose end the terminal did not learn.
    pub unknown: u64,
    /// Those of them that are in the database.
    pub unknown_found: u64,
    /// Transactions that were rolled back.
    pub refused: u64,
    /// Entries that the database contradicts.
    pub violations: u64,
    /// The first violations, in words.
    pub listed_violations: Vec<String>,
}

impl LedgerReport {
    fn judge(&mut self, entry: &Entry, found: Found) {
        let Found { copies, is_intact } = found;
        let complaint = match entry.outcome {
            Outcome::Acknowledged => {
                self.acknowledged += 1;
                (copies != 1).then(|| format!("acknowledged, but found {copies} times"))
            }
            Outcome::Unknown => {
                self.unknown += 1;
                self.unknown_found += u64::from(copies > 0);
                (copies > 1).then(|| format!("of unknown outcome, but found {copies} times"))
            }
            Outcome::Refused => {
                self.refused += 1;
                (copies > 0).then(|| format!("rolled back, but found {copies} times"))
            }
        };
        let complaint = complaint.or_else(|| (!is_intact).then(|| "found, but with other values".to_owned()));
        if let Some(complaint) = complaint {
            self.violations += 1;
            if self.listed_violations.len() < LISTED_VIOLATIONS_MAX {
                self.listed_violations.push(format!("{complaint}: {:?}", entry.claim));
            }
        }
    }
}

/// What the database holds of one claim.
#[derive(Debug, Clone, Copy)]
struct Found {
    copies: usize,
    is_intact: bool,
}

/// Looks for every entry of the file in the database.
pub(crate) async fn check(client: &Client, path: &Path) -> Result<LedgerReport, Error> {
    let mut by_warehouse: BTreeMap<i32, Vec<Entry>> = BTreeMap::new();
    for entry in read(path)? {
        by_warehouse.entry(entry.claim.warehouse()).or_default().push(entry);
    }
    let mut report = LedgerReport::default();
    for (warehouse, entries) in by_warehouse {
        let content = Content::of(client, warehouse).await?;
        for entry in &entries {
            report.judge(entry, content.find(&entry.claim));
        }
    }
    Ok(report)
}

fn read(path: &Path) -> Result<Vec<Entry>, Error> {
    let unreadable = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut entries = Vec::new();
    for (line, text) in (1..).zip(BufReader::new(file).lines()) {
        let entry = serde_json::from_str(&text.map_err(unreadable)?);
        entries.push(entry.map_err(|source| Error::Malformed {
            path: path.to_owned(),
            line,
            source,
        })?);
    }
    Ok(entries)
}

/// The orders and the payments of one warehouse.
struct Content {
    /// Order numbers by district, customer and entry time.
    orders: HashMap<(i32, i32, u64), Vec<i32>>,
    /// District and amount by marker.
    payments: HashMap<String, Vec<(i32, i64)>>,
}

impl Content {
    async fn of(client: &Client, warehouse: i32) -> Result<Self, Error> {
        let mut content = Self {
            orders: HashMap::new(),
            payments: HashMap::new(),
        };
        let orders = "SELECT o_d_id, o_c_id, o_entry_d, o_id FROM orders WHERE o_w_id = $1";
        for row in client.query(orders, &[&warehouse]).await? {
            let entered: SystemTime = row.try_get(2)?;
            let key = (row.try_get(0)?, row.try_get(1)?, micros(entered));
            content.orders.entry(key).or_default().push(row.try_get(3)?);
        }
        let payments = "SELECT h_data, h_d_id, h_amount FROM history WHERE h_w_id = $1";
        for row in client.query(payments, &[&warehouse]).await? {
            let amount: Money = row.try_get(2)?;
            content
                .payments
                .entry(row.try_get(0)?)
                .or_default()
                .push((row.try_get(1)?, amount.0));
        }
        Ok(content)
    }

    fn find(&self, claim: &Claim) -> Found {
        match claim {
            Claim::NewOrder {
                district,
                order,
                customer,
                entry_micros,
                ..
            } => {
                let orders = self.orders.get(&(*district, *customer, *entry_micros));
                found(orders, order)
            }
            Claim::Payment {
                district,
                amount_cents,
                marker,
                ..
            } => found(self.payments.get(marker), &(*district, *amount_cents)),
        }
    }
}

fn found<T: PartialEq>(rows: Option<&Vec<T>>, expected: &T) -> Found {
    let rows = rows.map(Vec::as_slice).unwrap_or_default();
    Found {
        copies: rows.len(),
        is_intact: rows.iter().all(|row| row == expected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payment(outcome: Outcome) -> Entry {
        let marker = "one".to_owned();
        Entry {
            outcome,
            claim: Claim::Payment {
                warehouse: 1,
                district: 2,
                amount_cents: 3,
                marker,
            },
        }
    }

    fn violations(outcome: Outcome, rows: &[(i32, i64)]) -> u64 {
        let payments = HashMap::from([("one".to_owned(), rows.to_vec())]);
        let content = Content {
            orders: HashMap::new(),
            payments,
        };
        let entry = payment(outcome);
        let mut report = LedgerReport::default();
        report.judge(&entry, content.find(&entry.claim));
        report.violations
    }

    #[test]
    fn each_outcome_allows_only_its_number_of_copies() {
        let row = (2, 3);
        assert_eq!(violations(Outcome::Acknowledged, &[]), 1);
        assert_eq!(violations(Outcome::Acknowledged, &[row]), 0);
        assert_eq!(violations(Outcome::Acknowledged, &[row, row]), 1);
        assert_eq!(violations(Outcome::Unknown, &[]), 0);
        assert_eq!(violations(Outcome::Unknown, &[row]), 0);
        assert_eq!(violations(Outcome::Unknown, &[row, row]), 1);
        assert_eq!(violations(Outcome::Refused, &[]), 0);
        assert_eq!(violations(Outcome::Refused, &[row]), 1);
    }

    #[test]
    fn another_amount_is_a_violation() {
        assert_eq!(violations(Outcome::Acknowledged, &[(2, 4)]), 1);
    }

    #[test]
    fn entries_survive_the_file() {
        let text = serde_json::to_string(&payment(Outcome::Unknown)).unwrap();
        let entry: Entry = serde_json::from_str(&text).unwrap();
        assert_eq!(entry.outcome, Outcome::Unknown);
        assert_eq!(entry.claim, payment(Outcome::Unknown).claim);
    }
}
