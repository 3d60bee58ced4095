//! Rows and unique values below their tables.

use super::*;

#[test]
fn rows_of_one_table_do_not_wait_for_each_other() {
    let mut table = LockTable::new(LockLimits::default());
    begin(&mut table, 1, &writes(row(0, 1)), READ_COMMITTED);
    begin(&mut table, 2, &writes(row(0, 2)), READ_COMMITTED);
    table.one_shot(3, &writes(row(0, 3)), 0).unwrap();
    table.one_shot(4, &reads(row(0, 1)), 0).unwrap();
    table.one_shot(5, &writes(table_named(0)), 0).unwrap();
    table.one_shot(6, &reads(table_named(1)), 0).unwrap();
    table.one_shot(7, &writes(row(0, 4)), 0).unwrap();
    assert_eq!(grants(&mut table), vec![(1, 1), (2, 2), (3, 3), (6, 6)]);
    table.end(8, transaction(1));
    assert_eq!(grants(&mut table), vec![(4, 8)], "the table waits for the other row");
    table.end(9, transaction(2));
    assert_eq!(grants(&mut table), vec![(5, 9), (7, 9)]);
}

#[test]
fn rows_in_different_orders_deadlock_only_if_they_are_the_same() {
    let mut table = LockTable::new(LockLimits::default());
    begin(&mut table, 1, &writes(row(0, 1)), READ_COMMITTED);
    begin(&mut table, 2, &writes(row(1, 2)), READ_COMMITTED);
    assert_eq!(table.extend(3, transaction(1), &writes(row(1, 1))).1, Ok(()));
    assert_eq!(table.extend(4, transaction(2), &writes(row(0, 2))).1, Ok(()));
    assert_eq!(grants(&mut table).len(), 4, "different rows");
    assert_eq!(table.extend(5, transaction(1), &writes(row(1, 2))).1, Ok(()));
    let refused = table.extend(6, transaction(2), &writes(row(0, 1))).1;
    assert_eq!(refused, Err(LockRefusal::Deadlock));
    table.end(7, transaction(2));
    assert_eq!(grants(&mut table), vec![(5, 7)]);
}

#[test]
fn a_cycle_through_a_row_and_its_table_is_found() {
    let mut table = LockTable::new(LockLimits::default());
    begin(&mut table, 1, &writes(row(0, 1)), READ_COMMITTED);
    begin(&mut table, 2, &writes(row(1, 1)), READ_COMMITTED);
    assert_eq!(table.extend(3, transaction(1), &reads(table_named(1))).1, Ok(()));
    let refused = table.extend(4, transaction(2), &writes(table_named(0))).1;
    assert_eq!(refused, Err(LockRefusal::Deadlock));
}

#[test]
fn who_frees_unique_values_excludes_who_takes_one() {
    let mut table = LockTable::new(LockLimits::default());
    let mut insert = writes(row(0, 1));
    insert.add(value(0, 1), Mode::Exclusive);
    let mut delete = writes(row(0, 2));
    delete.add(key(0), Mode::Shared);
    let mut other_delete = writes(row(0, 3));
    other_delete.add(key(0), Mode::Shared);
    begin(&mut table, 1, &delete, READ_COMMITTED);
    begin(&mut table, 2, &other_delete, READ_COMMITTED);
    begin(&mut table, 3, &insert, READ_COMMITTED);
    assert_eq!(grants(&mut table), vec![(1, 1), (2, 2)]);
    table.end(4, transaction(1));
    assert_eq!(grants(&mut table), vec![]);
    table.end(5, transaction(2));
    assert_eq!(grants(&mut table), vec![(3, 5)]);
}

#[test]
fn too_many_rows_of_a_transaction_wait_for_the_table() {
    let mut table = LockTable::new(LockLimits::default());
    begin(&mut table, 1, &writes(row(0, 4000)), READ_COMMITTED);
    begin(&mut table, 2, &writes(row(0, 0)), READ_COMMITTED);
    let most = u16::try_from(sql::footprint::ROWS_MAX).unwrap();
    for bucket in 1..most {
        let order = 2 + u64::from(bucket);
        assert_eq!(table.extend(order, transaction(2), &writes(row(0, bucket))).1, Ok(()));
    }
    assert_eq!(grants(&mut table).len(), 1 + usize::from(most));
    assert_eq!(table.extend(1000, transaction(2), &writes(row(0, most))).1, Ok(()));
    assert_eq!(grants(&mut table), vec![], "another one holds a row of it");
    let restored = LockTable::restore(LockLimits::default(), &table.snapshot());
    assert_eq!(restored.snapshot(), table.snapshot());
    table.end(1001, transaction(1));
    assert_eq!(grants(&mut table), vec![(1000, 1001)]);
    assert_eq!(table.held(transaction(2)), Some(&writes(table_named(0))));
    table.one_shot(1002, &reads(row(0, 4001)), 0).unwrap();
    assert_eq!(grants(&mut table), vec![], "the table is held");
}

#[test]
fn a_snapshot_learns_of_rows_written_since_and_remembers_a_bounded_number() {
    let mut table = LockTable::new(LockLimits::default());
    begin(&mut table, 1, &Footprint::empty(), SNAPSHOT);
    table.one_shot(2, &writes(row(0, 1)), 0).unwrap();
    for (order, wanted) in [(3, row(0, 2)), (4, row(0, 1)), (5, table_named(0)), (6, table_named(1))] {
        assert_eq!(table.extend(order, transaction(1), &reads(wanted)).1, Ok(()));
    }
    assert_eq!(written_since(&mut table), vec![4, 5]);
    table.end(7, transaction(1));
    begin(&mut table, 8, &Footprint::empty(), SNAPSHOT);
    for (order, bucket) in (9..).zip(0..10_000_u16) {
        let number = u8::try_from(order % 7).unwrap();
        table.one_shot(order, &writes(row(number, bucket)), 0).unwrap();
    }
    assert!(table.snapshot().written.len() <= 8192);
    grants(&mut table);
    assert_eq!(table.extend(20_000, transaction(8), &reads(row(3, 1))).1, Ok(()));
    assert_eq!(written_since(&mut table), vec![20_000]);
}
