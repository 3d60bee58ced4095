//! What must hold when all voters have executed everything.

use std::collections::{BTreeMap, BTreeSet};

use sql::schema::CATALOG_QUERY;

use crate::honest::{Fate, Record};
use crate::world::{World, machines};

/// One server's tables, by name: the rows as text, sorted.
type Dump = BTreeMap<String, Vec<String>>;

const TABLES: &str = "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
    WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema', 'cloudbft', 'pg_toast') \
    AND relpersistence <> 't' ORDER BY 1";

const RECORDED: &str = "SELECT name || ' ' || last_value || ' ' || is_called FROM cloudbft.sequence ORDER BY 1";

const SEQUENCES: &str = "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
    WHERE relkind = 'S' AND relpersistence <> 't' ORDER BY 1";

/// How many rows of a difference are shown.
const SHOWN_MAX: usize = 6;

async fn column(world: &World, machine: u8, text: &str) -> Vec<String> {
    let rows = world.query(machine, text).await;
    let rows = rows.unwrap_or_else(|error| panic!("m{machine}: {text}: {error:?}"));
    rows.into_iter()
        .map(|row| row.into_iter().next().flatten().unwrap_or_default())
        .collect()
}

async fn dump(world: &World, machine: u8) -> Dump {
    let mut dump = Dump::new();
    let tables = column(world, machine, TABLES).await;
    let sequences = column(world, machine, SEQUENCES).await;
    let of_tables = tables
        .iter()
        .map(|name| format!("SELECT '{name}', t::text FROM {name} t"));
    let of_sequences = sequences
        .iter()
        .map(|name| format!("SELECT 'position of {name}', last_value || ' ' || is_called FROM {name}"));
    let all: Vec<String> = of_tables.chain(of_sequences).collect();
    for name in tables {
        dump.insert(name, Vec::new());
    }
    if !all.is_empty() {
        let rows = world.query(machine, &all.join(" UNION ALL ")).await;
        for row in rows.unwrap_or_else(|error| panic!("m{machine}: {error:?}")) {
            if let [Some(name), Some(text)] = row.as_slice() {
                dump.entry(name.clone()).or_default().push(text.clone());
            }
        }
    }
    dump.insert("recorded sequences".into(), column(world, machine, RECORDED).await);
    dump.insert("catalog".into(), column(world, machine, CATALOG_QUERY).await);
    dump.values_mut().for_each(|rows| rows.sort());
    dump
}

/// Compares the servers, and what the honest clients were told with what is there.
pub async fn check(world: &World, records: &[Record]) {
    let mut dumps = Vec::new();
    for machine in machines() {
        dumps.push((machine, dump(world, machine).await));
    }
    let Some(((_, first), others)) = dumps.split_first() else {
        return;
    };
    for (machine, other) in others {
        compare(world, first, *machine, other);
    }
    ledger(world, first, records);
    items(world, first, records);
}

fn compare(world: &World, first: &Dump, machine: u8, other: &Dump) {
    let names: BTreeSet<&String> = first.keys().chain(other.keys()).collect();
    for name in names {
        let (ours, theirs) = (first.get(name), other.get(name));
        if ours == theirs {
            continue;
        }
        let (ours, theirs) = (ours.cloned().unwrap_or_default(), theirs.cloned().unwrap_or_default());
        let only = |left: &[String], right: &[String]| {
            let mut right: BTreeMap<&String, usize> = right.iter().fold(BTreeMap::new(), |mut counts, row| {
                *counts.entry(row).or_default() += 1;
                counts
            });
            let rows = left.iter().filter(|row| match right.get_mut(row) {
                Some(count) if *count > 0 => {
                    *count -= 1;
                    false
                }
                _ => true,
            });
            rows.take(SHOWN_MAX).cloned().collect::<Vec<_>>().join("; ")
        };
        world.violation(format!(
            "{name} differs: m1 has [{}], m{machine} has [{}]",
            only(&ours, &theirs),
            only(&theirs, &ours)
        ));
    }
}

fn ledger(world: &World, dump: &Dump, records: &[Record]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for row in dump.get("public.ledger").into_iter().flatten() {
        *counts.entry(row.clone()).or_default() += 1;
    }
    for record in records {
        let found: Vec<usize> = record
            .rows
            .iter()
            .map(|(shop, transaction, step)| counts.remove(&format!("({shop},{transaction},{step})")).unwrap_or(0))
            .collect();
        let all = |wanted: usize| found.iter().all(|count| *count == wanted);
        let right = match record.fate {
            Fate::Committed => all(1),
            Fate::Absent => all(0),
            Fate::Unknown => all(0) || all(1),
        };
        if !right {
            world.violation(format!("the ledger has {found:?} of {record:?}"));
        }
    }
    if !counts.is_empty() {
        world.violation(format!("the ledger has rows of nobody: {counts:?}"));
    }
}

fn items(world: &World, dump: &Dump, records: &[Record]) {
    let rows: BTreeSet<&String> = dump.get("public.item").into_iter().flatten().collect();
    for record in records {
        for (note, id) in &record.items {
            let there = rows.contains(&format!("({id},\"{note}\")"));
            let right = match record.fate {
                Fate::Committed => there,
                Fate::Absent => !there,
                Fate::Unknown => true,
            };
            if !right {
                world.violation(format!("item {id} {note:?} is there: {there}; {record:?}"));
            }
        }
    }
}
