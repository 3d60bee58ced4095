//! The rows of all tables, range by range.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Error};

use super::indexes::rest;
use super::pass::{Pass, Stop};
use super::report::LISTED_MAX;
use super::schema::Rows;
use crate::databases::members::close;
use crate::databases::ranges::{Compared, RANGE_ROWS, Range, all_hashes, next_keys};
use crate::databases::tables::{Table, identifier, printable};
use crate::databases::vote::{Verdict, vote};

/// How long snapshots, and with them the definitions of the tables, are held.
const HELD: Duration = Duration::from_secs(1);
const HELD_GENTLE: Duration = Duration::from_millis(250);
/// How often is said how far a table is.
const PROGRESS: Duration = Duration::from_secs(2);
/// Tables that are read in one snapshot at most.
const TABLES_MAX: usize = 16;
/// How often the same table is begun again when somebody changes it.
const AGAIN_MAX: usize = 20;
const AGAIN_PAUSE: Duration = Duration::from_millis(100);
/// Rows of one range that are looked at for what differs.
const SHOWN_ROWS_MAX: i64 = 2 * RANGE_ROWS;
/// Keys that are told of one range.
const KEYS_MAX: usize = 3;

/// How far a pass is.
#[derive(Default)]
struct Place {
    /// The table.
    at: usize,
    /// Everything up to this key is compared.
    after: Option<Vec<String>>,
    /// Counts of the table so far.
    rows: u64,
    ranges: u64,
    differs: u64,
    told: Option<Instant>,
}

/// How a look at some ranges ended.
enum Looked {
    /// The time is over, or the tables are.
    Done,
    /// A member failed: its part in this snapshot is over.
    Broken,
}

impl Pass {
    /// Compares all tables.
    pub(super) async fn tables(&mut self) -> Result<(), Stop> {
        let mut tables = self.schema().await?;
        let mut place = Place::default();
        let mut again = 0;
        while place.at < tables.len() {
            let locked = tables.get(place.at..).unwrap_or_default();
            let locked = locked.get(..TABLES_MAX).unwrap_or(locked).to_vec();
            let began = Instant::now();
            let (at, after) = (place.at, place.after.clone());
            let looked = match self.open(locked.iter()).await? {
                true => self.look(&locked, &mut place).await?,
                false => Looked::Broken,
            };
            close(&self.members).await?;
            let got_on = (at, after) != (place.at, place.after.clone());
            again = if got_on { 0 } else { again + 1 };
            if matches!(looked, Looked::Broken) {
                if again > AGAIN_MAX {
                    let name = tables.get(place.at).map(Table::shown).unwrap_or_default();
                    self.report
                        .not_compared(format!("{name}: it cannot be locked or is changed all the time"));
                    place = Place {
                        at: place.at + 1,
                        ..Place::default()
                    };
                    continue;
                }
                tokio::time::sleep(AGAIN_PAUSE).await;
                // Perhaps there are other tables by now.
                let now = self.schema().await?;
                if now != tables {
                    let last = tables.get(place.at).cloned();
                    let begun = |table: &Table| last.as_ref().is_none_or(|last| table >= last);
                    place = Place {
                        at: now.iter().position(begun).unwrap_or(now.len()),
                        ..Place::default()
                    };
                    tables = now;
                }
            }
            if self.is_urgent() {
                self.convict().await?;
            }
            if self.members.len() < self.needed {
                return Err(Stop::TooFew);
            }
            tokio::time::sleep(rest(began, self.pause)).await;
        }
        Ok(())
    }

    /// Compares what comes next, in the open snapshots, until they have been held for long enough.
    async fn look(&mut self, locked: &[Table], place: &mut Place) -> Result<Looked, Stop> {
        let began = Instant::now();
        let held = if self.pause > 0 { HELD_GENTLE } else { HELD };
        for table in locked {
            loop {
                let (compared, is_last) = if table.key.is_empty() {
                    (all_hashes(&self.members, table, self.needed).await?, true)
                } else {
                    let compared = next_keys(&self.members, table, place.after.clone(), self.needed).await?;
                    let is_last = matches!(compared.range, Range::Keys { up_to: None, .. });
                    (vec![compared], is_last)
                };
                for compared in compared {
                    if let Looked::Broken = self.take(table, compared, place).await? {
                        return Ok(Looked::Broken);
                    }
                }
                if is_last {
                    break;
                }
                if place.told.get_or_insert_with(Instant::now).elapsed() > PROGRESS {
                    place.told = Some(Instant::now());
                    println!("{}: {} rows so far", table.shown(), place.rows);
                }
                if began.elapsed() > held {
                    return Ok(Looked::Done);
                }
            }
            self.report.tables += 1;
            println!(
                "{}: {} rows in {} ranges{}",
                table.shown(),
                place.rows,
                place.ranges,
                if place.differs > 0 { ", which DIFFER" } else { "" }
            );
            *place = Place {
                at: place.at + 1,
                ..Place::default()
            };
            if began.elapsed() > held {
                break;
            }
        }
        Ok(Looked::Done)
    }

    /// Counts what the members said of a range.
    async fn take(&mut self, table: &Table, compared: Compared, place: &mut Place) -> Result<Looked, Stop> {
        let Compared { range, answers } = compared;
        if answers.iter().any(Result::is_err) {
            self.answered(answers)?;
            return Ok(Looked::Broken);
        }
        let answers: Vec<_> = answers.into_iter().map(Result::ok).collect();
        let verdict = vote(&answers, self.needed);
        let rows = answers.iter().flatten().map(|content| content.rows);
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable();
        let rows = rows.get(rows.len() / 2).map_or(0, |rows| rows.unsigned_abs());
        match verdict {
            Verdict::Equal => {}
            Verdict::Disputed => {
                place.differs += 1;
                self.report.dispute(&format!("{}: {rows} rows", table.shown()));
            }
            Verdict::Differ { truth, others } => {
                place.differs += 1;
                for other in others {
                    let what = self.describe(table, &range, truth, other).await;
                    if let Some(member) = self.members.get(other) {
                        self.find(member.id, Some((table, &range)), &what);
                    }
                }
            }
        }
        self.report.ranges += 1;
        self.report.rows += rows;
        place.ranges += 1;
        place.rows += rows;
        if let Range::Keys { up_to: Some(up_to), .. } = range {
            place.after = Some(up_to);
        }
        Ok(Looked::Done)
    }

    /// The rows of a range that differ, in words.
    async fn describe(&self, table: &Table, range: &Range, truth: usize, other: usize) -> String {
        let name = table.shown();
        let (Some(truth), Some(other)) = (self.members.get(truth), self.members.get(other)) else {
            return name;
        };
        let listed = self
            .report
            .differences
            .get(&other.name)
            .map_or(0, |differences| differences.count);
        if table.key.is_empty() || listed >= LISTED_MAX as u64 {
            return format!("{name}: rows");
        }
        let both = (
            rows_of(Arc::clone(&truth.client), table, range).await,
            rows_of(Arc::clone(&other.client), table, range).await,
        );
        let (Ok(right), Ok(wrong)) = both else {
            return format!("{name}: rows");
        };
        let key = |values: &[String]| {
            let pairs = table.key.iter().zip(values);
            let pairs: Vec<_> = pairs.map(|(column, value)| format!("{column}={value}")).collect();
            pairs.join(",")
        };
        let missing = right.keys().filter(|row| !wrong.contains_key(*row));
        let missing = missing.map(|row| format!("{} is missing", key(row)));
        let changed = right
            .iter()
            .filter(|(row, hash)| wrong.get(*row).is_some_and(|other| other != *hash));
        let changed = changed.map(|(row, _)| format!("{} is another", key(row)));
        let added = wrong.keys().filter(|row| !right.contains_key(*row));
        let added = added.map(|row| format!("{} was added", key(row)));
        let all: Vec<_> = changed.chain(missing).chain(added).collect();
        let shown = all.get(..KEYS_MAX).unwrap_or(&all).join(", ");
        let further = match all.len().saturating_sub(KEYS_MAX) {
            0 => String::new(),
            further => format!(" and {further} further rows"),
        };
        printable(&format!("{name} {shown}{further}"))
    }
}

/// The rows of a range with a hash of each.
async fn rows_of(client: Arc<Client>, table: &Table, range: &Range) -> Result<Rows, Error> {
    let columns: Vec<_> = table
        .key
        .iter()
        .map(|column| format!("t.{}", identifier(column)))
        .collect();
    let texts: Vec<_> = columns.iter().map(|column| format!("format('%s', {column})")).collect();
    let query = format!(
        "select array[{}]::text[], md5(textin(record_out(t.*))) from only {} t where {} order by {} limit {SHOWN_ROWS_MAX}",
        texts.join(", "),
        table.quoted(),
        table.condition(range),
        columns.join(", ")
    );
    let rows = client.query(&query, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
