use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sql::footprint::{Footprint, Mode, PartitionKey, PartitionValue, Resource};
use sql::operation::TransactionId;

use super::*;

mod advisory;
mod properties;
mod rows;

const READ_COMMITTED: BeginKind = BeginKind { snapshot: false };

const SNAPSHOT: BeginKind = BeginKind { snapshot: true };

fn partition(value: i64) -> Resource {
    Resource::Partition(PartitionKey {
        family: "warehouse".into(),
        value: PartitionValue::Integer(value),
    })
}

fn name(table: u8) -> String {
    format!("public.t{table}")
}

fn table_named(table: u8) -> Resource {
    Resource::Table(name(table))
}

fn row(table: u8, bucket: u16) -> Resource {
    let table = name(table);
    Resource::Row { table, bucket }
}

fn key(table: u8) -> Resource {
    let (table, key) = (name(table), "email".into());
    Resource::Key { table, key }
}

fn value(table: u8, bucket: u16) -> Resource {
    let (table, key) = (name(table), "email".into());
    Resource::Value { table, key, bucket }
}

fn writes(resource: Resource) -> Footprint {
    Footprint::of(resource, Mode::Exclusive)
}

fn reads(resource: Resource) -> Footprint {
    Footprint::of(resource, Mode::Shared)
}

fn begin(table: &mut LockTable, order: u64, footprint: &Footprint, kind: BeginKind) {
    table.begin(order, transaction(order), footprint, kind, 0).unwrap();
}

fn exclusive(values: &[i64]) -> Footprint {
    let mut footprint = Footprint::empty();
    for value in values {
        footprint.add(partition(*value), Mode::Exclusive);
    }
    footprint
}

fn shared(value: i64) -> Footprint {
    Footprint::of(partition(value), Mode::Shared)
}

fn transaction(number: u64) -> TransactionId {
    TransactionId {
        client: 1,
        session: 1,
        number,
    }
}

fn grants(table: &mut LockTable) -> Vec<(u64, u64)> {
    std::iter::from_fn(|| table.next_grant())
        .map(|grant| (grant.order, grant.granted))
        .collect()
}

#[test]
fn a_one_shot_waits_for_a_transaction_and_is_granted_by_its_end() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(2, &exclusive(&[1]), 0).unwrap();
    table.one_shot(3, &exclusive(&[2]), 0).unwrap();
    assert_eq!(grants(&mut table), vec![(1, 1), (3, 3)]);
    table.end(4, transaction(1));
    assert_eq!(grants(&mut table), vec![(2, 4)]);
}

#[test]
fn what_conflicts_with_something_that_waits_does_not_overtake_it() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(2, &exclusive(&[1, 2]), 0).unwrap();
    table.one_shot(3, &exclusive(&[2]), 0).unwrap();
    table.one_shot(4, &Footprint::everything(), 0).unwrap();
    table.one_shot(5, &exclusive(&[7]), 0).unwrap();
    assert_eq!(grants(&mut table), vec![(1, 1)]);
    table.end(6, transaction(1));
    assert_eq!(grants(&mut table), vec![(2, 6), (3, 6), (4, 6), (5, 6)]);
}

#[test]
fn the_end_of_a_transaction_waits_for_its_ordered_reads() {
    let mut table = LockTable::new(LockLimits::default());
    let within = |number| Node::Within {
        transaction: transaction(number),
        snapshot: false,
    };
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    assert!(table.run(1, within(1), &exclusive(&[1])));
    assert!(table.run(2, Node::OneShot, &exclusive(&[2])));
    let read = Node::Read {
        transaction: Some(transaction(1)),
    };
    assert!(!table.run(3, read, &shared(2)), "the one-shot is not through");
    let end = Node::End {
        transaction: transaction(1),
    };
    assert!(table.finished(1).is_empty());
    assert!(!table.run(4, end, &exclusive(&[1])), "the read needs the transaction");
    assert_eq!(table.finished(2), vec![3]);
    assert_eq!(table.finished(3), vec![4]);
}

#[test]
fn an_extend_overtakes_what_waits_and_a_cycle_is_refused() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table
        .begin(2, transaction(2), &exclusive(&[2]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(3, &exclusive(&[1, 3]), 0).unwrap();
    table.extend(4, transaction(1), &exclusive(&[3])).1.unwrap();
    assert_eq!(grants(&mut table), vec![(1, 1), (2, 2), (4, 4)]);
    table.extend(5, transaction(1), &exclusive(&[2])).1.unwrap();
    assert_eq!(
        table.extend(7, transaction(2), &exclusive(&[1])).1,
        Err(LockRefusal::Deadlock)
    );
    assert_eq!(grants(&mut table), vec![], "a refusal changes no lock");
    table.end(7, transaction(2));
    assert_eq!(grants(&mut table), vec![(5, 7)]);
    table.end(8, transaction(1));
    assert_eq!(grants(&mut table), vec![(3, 8)]);
}

#[test]
fn an_extend_takes_the_place_of_an_earlier_one_that_waits() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table
        .begin(2, transaction(2), &exclusive(&[2]), READ_COMMITTED, 0)
        .unwrap();
    assert_eq!(table.extend(3, transaction(1), &exclusive(&[2])), (None, Ok(())));
    table.one_shot(4, &exclusive(&[2, 5]), 0).unwrap();
    assert_eq!(table.extend(5, transaction(1), &exclusive(&[3])), (Some(3), Ok(())));
    assert_eq!(grants(&mut table), vec![(1, 1), (2, 2), (5, 5)]);
    table.end(6, transaction(2));
    assert_eq!(grants(&mut table), vec![(4, 6)], "the first Extend waits no more");
}

fn written_since(table: &mut LockTable) -> Vec<u64> {
    let grants = std::iter::from_fn(|| table.next_grant());
    grants
        .filter(|grant| grant.written_since)
        .map(|grant| grant.order)
        .collect()
}

#[test]
fn a_transaction_with_a_snapshot_learns_what_was_written_since() {
    let mut table = LockTable::new(LockLimits::default());
    table.one_shot(1, &exclusive(&[1]), 0).unwrap();
    table
        .begin(2, transaction(1), &Footprint::empty(), SNAPSHOT, 0)
        .unwrap();
    table
        .begin(3, transaction(2), &exclusive(&[2]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(4, &exclusive(&[3]), 0).unwrap();
    table.end(5, transaction(2));
    table.extend(6, transaction(1), &exclusive(&[1])).1.unwrap();
    assert_eq!(
        written_since(&mut table),
        Vec::<u64>::new(),
        "written before the snapshot"
    );
    table.extend(7, transaction(1), &shared(2)).1.unwrap();
    assert_eq!(written_since(&mut table), vec![7]);
    let mut table = LockTable::restore(LockLimits::default(), &table.snapshot());
    table.extend(8, transaction(1), &shared(3)).1.unwrap();
    assert_eq!(written_since(&mut table), vec![8], "a restart forgets nothing");
    table.extend(9, transaction(1), &exclusive(&[4])).1.unwrap();
    assert_eq!(written_since(&mut table), Vec::<u64>::new());
    table.end(10, transaction(1));
    assert!(
        table.snapshot().written.is_empty(),
        "nothing is kept without a snapshot"
    );
}

#[test]
fn two_readers_that_both_want_to_write_deadlock() {
    let mut table = LockTable::new(LockLimits::default());
    table.begin(1, transaction(1), &shared(1), READ_COMMITTED, 0).unwrap();
    table.begin(2, transaction(2), &shared(1), READ_COMMITTED, 0).unwrap();
    table.extend(3, transaction(1), &exclusive(&[1])).1.unwrap();
    assert_eq!(
        table.extend(4, transaction(2), &exclusive(&[1])).1,
        Err(LockRefusal::Deadlock)
    );
}

#[test]
fn an_abort_cancels_a_begin_and_an_extend_that_wait() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table
        .begin(2, transaction(2), &exclusive(&[1, 2]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(3, &exclusive(&[2]), 0).unwrap();
    grants(&mut table);
    assert_eq!(table.end(4, transaction(2)).cancelled, Some(2));
    assert_eq!(grants(&mut table), vec![(3, 4)]);
    table
        .begin(5, transaction(3), &exclusive(&[3]), READ_COMMITTED, 0)
        .unwrap();
    table.extend(6, transaction(3), &exclusive(&[1])).1.unwrap();
    let ended = table.end(7, transaction(3));
    assert_eq!((ended.cancelled, ended.held), (Some(6), Some(exclusive(&[3]))));
}

#[test]
fn a_one_shot_that_waits_is_taken_back_and_lets_others_run() {
    let mut table = LockTable::new(LockLimits::default());
    table.begin(1, transaction(1), &shared(1), READ_COMMITTED, 0).unwrap();
    table.one_shot(2, &exclusive(&[1, 2]), 0).unwrap();
    table.one_shot(3, &shared(1), 0).unwrap();
    table
        .begin(4, transaction(2), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    assert_eq!(grants(&mut table), vec![(1, 1)]);
    let mut restored = LockTable::restore(LockLimits::default(), &table.snapshot());
    assert!(!table.cancel(5, 4), "a Begin is ended by its Abort");
    assert!(table.cancel(6, 2));
    assert!(restored.cancel(6, 2));
    assert_eq!(restored.snapshot(), table.snapshot());
    assert_eq!(grants(&mut table), vec![(3, 6)], "what only waited for it runs");
    assert!(!table.cancel(7, 2));
    assert!(!table.cancel(8, 3), "what was granted runs");
    assert_eq!(table.waiting(), 1);
}

#[test]
fn a_read_waits_for_what_was_granted_and_what_follows_waits_for_its_snapshot() {
    let mut table = LockTable::new(LockLimits::default());
    assert!(table.run(1, Node::OneShot, &exclusive(&[1])));
    assert!(!table.run(2, Node::Read { transaction: None }, &shared(1)));
    assert!(!table.run(3, Node::OneShot, &exclusive(&[1])));
    assert!(table.run(4, Node::OneShot, &exclusive(&[2])));
    assert_eq!(table.finished(1), vec![2]);
    assert_eq!(table.snapshot_open(2), vec![3]);
    assert!(table.finished(2).is_empty());
}

#[test]
fn a_snapshot_of_a_transaction_is_taken_between_all_others() {
    let mut table = LockTable::new(LockLimits::default());
    let within = Node::Within {
        transaction: transaction(1),
        snapshot: true,
    };
    assert!(table.run(1, Node::OneShot, &exclusive(&[1])));
    assert!(!table.run(2, within, &exclusive(&[2])));
    assert!(!table.run(3, Node::OneShot, &exclusive(&[5])));
    assert_eq!(table.finished(1), vec![2]);
    assert_eq!(table.snapshot_open(2), vec![3]);
}

/// Abandoned transactions are found by their names, and this one is a session's.
#[test]
fn no_transaction_has_the_number_that_names_its_session() {
    let mut table = LockTable::new(LockLimits::default());
    let session = TransactionId::of_session(transaction(1).session_id());
    assert_eq!(
        table.begin(1, session, &exclusive(&[1]), READ_COMMITTED, 0),
        Err(LockRefusal::TransactionExists)
    );
}

#[test]
fn the_limits_refuse() {
    let limits = LockLimits {
        transactions_max: 1,
        waiting_max: 1,
        waiting_bytes_max: 10,
    };
    let mut table = LockTable::new(limits);
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    assert_eq!(
        table.begin(2, transaction(2), &exclusive(&[2]), READ_COMMITTED, 0),
        Err(LockRefusal::TooManyOpen(1))
    );
    assert_eq!(
        table.begin(3, transaction(1), &exclusive(&[2]), READ_COMMITTED, 0),
        Err(LockRefusal::TransactionExists)
    );
    assert_eq!(table.one_shot(4, &exclusive(&[1]), 11), Err(LockRefusal::TooMany));
    table.one_shot(5, &exclusive(&[1]), 10).unwrap();
    assert_eq!(table.one_shot(6, &exclusive(&[1]), 0), Err(LockRefusal::TooMany));
}
