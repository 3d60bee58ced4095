//! Which rows and unique values a statement locks, and where it locks the table (`docs/decisions/0046`).

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use bytes::Bytes;
use common::{analyzer, bound, bound_as, buckets, check, context, describe, simple};
use proptest::prelude::*;
use sql::analysis::Analyzer;
use sql::footprint::{Footprint, Mode, Resource};
use sql::operation::{Exchange, SessionContext};
use sql::rules::PartitionRules;
use sql::schema::Schema;

const UUID: &str = "0b7d8e4c-0000-4000-8000-00000000000A";
const DIGITS: &str = "0b7d8e4c00004000800000000000000a";

/// A statement that references a row waits for transactions that insert or delete that row, change a unique key of it or lock it, as in PostgreSQL,
/// and not for those that change other columns of it.
#[test]
fn rows_are_referenced_while_other_columns_of_them_change() {
    let referencing = "INSERT INTO child VALUES (1, 2, 3)";
    let analyzer = analyzer();
    let footprint = |text: &str| simple(&analyzer, text).expect("no refusal").footprint;
    let excludes = |text: &str| {
        let (one, other) = (footprint(text), footprint(referencing));
        let meets = |(resource, mode): &(Resource, Mode)| {
            let is_other = |(name, with): &(Resource, Mode)| {
                name == resource && (*mode == Mode::Exclusive || *with == Mode::Exclusive)
            };
            other.entries().iter().any(is_other)
        };
        one.entries().iter().any(meets)
    };
    for text in [
        "UPDATE plain SET value = 'x' WHERE id = 2",
        "UPDATE plain SET amount = amount + 1 WHERE id IN (2, 3)",
        "UPDATE plain SET note = 'x' WHERE id = 5",
        "SELECT note FROM plain WHERE id = 3 FOR UPDATE",
        "DELETE FROM holder WHERE id = 2",
    ] {
        assert!(!excludes(text), "{text}: {}", footprint(text));
    }
    for text in [
        // A unique key of the row, which is not the one that is referenced.
        "UPDATE plain SET note = 'x' WHERE id = 2",
        "SELECT note FROM plain WHERE id = 2 FOR UPDATE",
        "INSERT INTO plain (id, note) VALUES (2, 'x')",
        "INSERT INTO plain (id, note) VALUES (2, 'x') ON CONFLICT (id) DO UPDATE SET value = 'y'",
        "UPDATE plain SET id = 2 WHERE id = 7",
    ] {
        assert!(excludes(text), "{text}: {}", footprint(text));
    }
}

/// Without `lock_rows` tables are locked, and nothing else: all servers write a table in one order.
#[test]
fn tables_are_locked_unless_rows_are() {
    let rules = PartitionRules {
        lock_rows: false,
        ..common::rules()
    };
    let schema = Schema::parse(common::CATALOG.lines(), &rules).expect("parses");
    let analyzer = Analyzer::new(std::sync::Arc::new(schema));
    for (text, expected) in [
        (
            "UPDATE pgbench_accounts SET abalance = 1 WHERE aid = 7",
            "Write {table:public.pgbench_accounts X}",
        ),
        (
            "INSERT INTO pgbench_history VALUES (1, 1, 1, 1)",
            "Write {table:public.pgbench_history X}",
        ),
        (
            "INSERT INTO child VALUES (1, 2)",
            "Write {table:public.child X, table:public.plain S}",
        ),
        (
            "UPDATE plain SET note = 'x' WHERE id = 1",
            "Write {table:public.plain X}",
        ),
        (
            "INSERT INTO plain (id, note) VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET value = 'y'",
            "Write {table:public.plain X}",
        ),
        ("SELECT value FROM plain WHERE id = 1", "Read {table:public.plain S}"),
    ] {
        let analysis = simple(&analyzer, text).expect("no refusal");
        assert!(
            analysis.footprint.entries().len() > 1 || analysis.footprint.is_serial(false),
            "{text}"
        );
        assert!(!analysis.footprint.is_serial(true), "{text}");
        assert_eq!(describe(Ok(analysis)), expected, "{text}");
    }
}

/// A server checks a unique key row by row, in the order in which it finds them: that may be another one on each server.
#[test]
fn keys_are_not_computed_over_rows_in_any_order() {
    let rows_locked = analyzer();
    let tables_locked = {
        let rules = PartitionRules {
            lock_rows: false,
            ..common::rules()
        };
        Analyzer::new(std::sync::Arc::new(
            Schema::parse(common::CATALOG.lines(), &rules).expect("parses"),
        ))
    };
    for (text, with_rows, with_tables) in [
        ("UPDATE top SET id = id + 1", true, false),
        ("UPDATE plain SET note = note || 'x' WHERE id > 5", true, false),
        ("UPDATE warehouse SET w_id = w_id + 1", true, true),
        ("UPDATE orders SET o_id = o_id + 1 WHERE o_w_id IN (1, 2)", true, true),
        ("UPDATE orders SET o_id = o_id + 1 WHERE o_w_id = 1", false, false),
        ("UPDATE top SET id = id + 1 WHERE id = 1", false, false),
        ("UPDATE plain SET note = 'x' WHERE id > 5", false, false),
        ("UPDATE plain SET value = value || 'x'", false, false),
    ] {
        for (analyzer, is_refused) in [(&rows_locked, with_rows), (&tables_locked, with_tables)] {
            let found = describe(simple(analyzer, text));
            assert_eq!(found == "BF002 rule 23", is_refused, "{text}: {found}");
        }
    }
}

/// PostgreSQL may compare columns of rows that another condition excludes, and casting one to the type of the other may fail.
#[test]
fn columns_that_are_compared_with_columns_lock_the_table() {
    for condition in [
        "value = note AND id = 1",
        "(value) = (note) AND id = 1",
        "(value, id) = (note, 1) AND id = 1",
        "amount BETWEEN amount AND 5 AND id = 1",
        "amount IN (1, amount) AND id = 1",
        "value IS DISTINCT FROM note AND id = 1",
    ] {
        let text = format!("UPDATE plain SET value = 'x' WHERE {condition}");
        let found = describe(simple(&analyzer(), &text));
        assert!(found.contains("table:public.plain X"), "{text}: {found}");
    }
}

#[test]
fn rows_are_named_by_their_primary_key() {
    check(&[
        (
            "SELECT abalance FROM pgbench_accounts WHERE aid = 7",
            "Read {row:public.pgbench_accounts#[7] S}",
        ),
        (
            "UPDATE pgbench_accounts SET abalance = abalance + 5 WHERE aid = 7",
            "Write {row:public.pgbench_accounts#[7] X}",
        ),
        (
            "DELETE FROM pgbench_tellers WHERE tid = 7 AND tbalance >= -1 AND bid IS NOT NULL",
            "Write {row:public.pgbench_tellers#[7] X}",
        ),
        (
            "INSERT INTO pgbench_branches VALUES (7, 0)",
            "Write {row:public.pgbench_branches#[7] X}",
        ),
        (
            "SELECT * FROM pgbench_branches WHERE bid = 7 FOR UPDATE",
            "LockingRead {row:public.pgbench_branches#[7] X}",
        ),
        (
            "SELECT 1 FROM place WHERE a = 1 AND b = 'x'",
            "Read {row:public.place#[1,'x'] S}",
        ),
        (
            "UPDATE place SET c = 1 WHERE b = 'x' AND a = 1",
            "Write {row:public.place#[1,'x'] X}",
        ),
        (
            "SELECT 1 FROM only_unique WHERE code = 'x'",
            "Read {row:public.only_unique#['x'] S}",
        ),
        (
            "SELECT 1 FROM other_key WHERE id = 1",
            "Read {row:public.other_key#[1] S}",
        ),
        (
            "SELECT 1 FROM other_key WHERE name = 'x'",
            "Read {table:public.other_key S}",
        ),
        (
            "SELECT 1 FROM pgbench_branches WHERE bid = NULL",
            "Read {table:public.pgbench_branches S}",
        ),
    ]);
}

#[test]
fn an_update_of_a_key_locks_both() {
    // `place` is referenced: whose rows refer to it is looked for.
    check(&[
        (
            "UPDATE pgbench_branches SET bid = 9 WHERE bid = 7",
            "Write {row:public.pgbench_branches#[7] X, row:public.pgbench_branches#[9] X}",
        ),
        (
            "UPDATE pgbench_branches SET bid = bid + 1 WHERE bid = 7",
            "Write {table:public.pgbench_branches X}",
        ),
    ]);
    let moved = simple(&analyzer(), "UPDATE place SET b = 'y' WHERE b = 'x' AND a = 1")
        .expect("runs")
        .footprint;
    for row in [
        "row:public.place#[1,'x'] exclusive",
        "row:public.place#[1,'y'] exclusive",
        "table:public.refers shared",
    ] {
        assert!(moved.to_string().contains(&buckets(row)), "{moved}");
    }
}

#[test]
fn what_may_depend_on_other_rows_locks_the_table() {
    let conditions = [
        "aid > 7",
        "aid = 7 OR bid = 1",
        "aid = 7 AND 1 / abalance > 0",
        "aid = 7 AND abalance + 1 > 0",
        "aid = 7 AND filler::int = 1",
        "aid = 7 AND EXISTS (SELECT 1 FROM pgbench_tellers)",
        "aid = 7 AND length(filler) > 1",
        "aid = 7.0",
        "NOT aid = 7",
    ];
    for condition in conditions {
        let text = format!("UPDATE pgbench_accounts SET abalance = 0 WHERE {condition}");
        let found = describe(simple(&analyzer(), &text));
        assert!(found.contains("table:public.pgbench_accounts X"), "{text}: {found}");
    }
    for condition in [
        "aid = 7 AND abalance > 1",
        "aid = 7 AND (bid IN (1, 2) OR NOT abalance = 1)",
        "aid = '7'::int AND filler IS NULL",
    ] {
        let text = format!("UPDATE pgbench_accounts SET abalance = 0 WHERE {condition}");
        let found = describe(simple(&analyzer(), &text));
        assert_eq!(found, buckets("Write {row:public.pgbench_accounts#[7] X}"), "{text}");
    }
    check(&[
        (
            "UPDATE pgbench_accounts SET abalance = (SELECT max(abalance) FROM pgbench_accounts) WHERE aid = 7",
            "Write {table:public.pgbench_accounts S, row:public.pgbench_accounts#[7] X}",
        ),
        (
            "INSERT INTO pgbench_branches SELECT 7",
            "Write {table:public.pgbench_branches X}",
        ),
    ]);
}

#[test]
fn unique_values_exclude_each_other() {
    let insert = format!("INSERT INTO member VALUES ('{UUID}', 'x', 'n')");
    let row = format!("row:public.member#[u{DIGITS}] X");
    let expect = |text: &str, expected: String| {
        assert_eq!(describe(simple(&analyzer(), text)), buckets(&expected), "{text}");
    };
    expect(&insert, format!("Write {{{row}, value:public.member(email)#['x'] X}}"));
    expect(
        &format!("INSERT INTO member (id) VALUES ('{UUID}')"),
        format!("Write {{{row}}}"),
    );
    // Who frees a value does not know it, and who leaves it alone is waited for in Postgres by who takes it.
    for change in ["DELETE FROM member WHERE", "UPDATE member SET note = 'n' WHERE"] {
        expect(
            &format!("{change} id = '{UUID}'"),
            format!("Write {{key:public.member(email) S, {row}}}"),
        );
    }
    expect(
        &format!("UPDATE member SET email = 'y' WHERE id = '{UUID}'"),
        format!("Write {{key:public.member(email) X, {row}}}"),
    );
    expect(
        "SELECT 1 FROM member WHERE email = 'x'",
        "Read {table:public.member S}".into(),
    );
    check(&[
        (
            "INSERT INTO member VALUES ('0b7d8e4c', 'x')",
            "Write {table:public.member X}",
        ),
        (
            "INSERT INTO member (id, email) SELECT id, email FROM member",
            "Write {table:public.member X}",
        ),
    ]);
}

#[test]
fn unique_constraints_of_other_kinds_lock_the_table() {
    check(&[
        (
            "INSERT INTO deferred_key VALUES (1, 2)",
            "Write {table:public.deferred_key X}",
        ),
        (
            "UPDATE deferred_key SET value = 1 WHERE id = 1",
            "Write {table:public.deferred_key X}",
        ),
        (
            "INSERT INTO partly_unique VALUES (1, 2)",
            "Write {table:public.partly_unique X}",
        ),
        (
            "UPDATE partly_unique SET value = 1 WHERE id = 1",
            "Write {table:public.partly_unique X}",
        ),
        (
            "DELETE FROM partly_unique WHERE id = 1",
            "Write {row:public.partly_unique#[1] X}",
        ),
        ("INSERT INTO one_null VALUES (1)", "Write {table:public.one_null X}"),
        (
            "UPDATE one_null SET value = 1 WHERE id = 1",
            "Write {row:public.one_null#[1] X}",
        ),
        (
            "INSERT INTO any_case VALUES (1, 'a', 'b')",
            "Write {table:public.any_case X}",
        ),
        (
            "UPDATE any_case SET code = 'B' WHERE id = 1",
            "Write {table:public.any_case X}",
        ),
        (
            "UPDATE any_case SET value = 1 WHERE id = 1",
            "Write {row:public.any_case#[1] X}",
        ),
        (
            "INSERT INTO other_key VALUES ('x', 1.0, 1)",
            "Write {table:public.other_key X}",
        ),
        (
            "INSERT INTO account (id, email) VALUES ('0b7d8e4c-0000-4000-8000-00000000000a', 'x')",
            "Write {table:public.account X}",
        ),
        // Nobody can name a row of a table without keys.
        (
            "UPDATE pgbench_history SET delta = 0 WHERE tid = 1",
            "Write {table:public.pgbench_history X}",
        ),
    ]);
}

#[test]
fn conflicts_are_with_the_row_of_the_same_key() {
    check(&[
        (
            "INSERT INTO pgbench_branches VALUES (7, 1) ON CONFLICT (bid) DO UPDATE SET bbalance = excluded.bbalance",
            "Write {row:public.pgbench_branches#[7] X}",
        ),
        (
            "INSERT INTO pgbench_branches VALUES (7, 1) ON CONFLICT DO NOTHING",
            "Write {row:public.pgbench_branches#[7] X}",
        ),
        (
            "INSERT INTO pgbench_branches VALUES (7, 1) ON CONFLICT (bid) DO UPDATE SET bid = excluded.bid",
            "Write {table:public.pgbench_branches X}",
        ),
        (
            "INSERT INTO only_unique VALUES ('x', 1) ON CONFLICT (code) DO UPDATE SET value = 2",
            "Write {row:public.only_unique#['x'] X}",
        ),
    ]);
    let insert = format!("INSERT INTO member VALUES ('{UUID}', 'x') ON CONFLICT (email) DO UPDATE SET note = 'n'");
    assert_eq!(describe(simple(&analyzer(), &insert)), "Write {table:public.member X}");
    let insert = format!("INSERT INTO member VALUES ('{UUID}', 'x') ON CONFLICT (id) DO UPDATE SET note = 'n'");
    let found = simple(&analyzer(), &insert).expect("runs").footprint;
    assert!(
        !found.covers(&Footprint::of(Resource::Table("public.member".into()), Mode::Shared)),
        "{found}"
    );
}

#[test]
fn foreign_keys_read_the_row_that_they_name() {
    check(&[
        (
            "INSERT INTO refers VALUES (1, 'x', 2)",
            "Write {row:public.refers#[1] X, value:public.place(a,b)#[2,'x'] S}",
        ),
        (
            "INSERT INTO refers VALUES (1, NULL, 2)",
            "Write {row:public.refers#[1] X}",
        ),
        (
            "INSERT INTO refers VALUES (1, lower('X'), 2)",
            "Write {key:public.place(a,b) S, row:public.refers#[1] X}",
        ),
        (
            "UPDATE refers SET place_b = 'x' WHERE id = 1",
            "Write {key:public.place(a,b) S, row:public.refers#[1] X}",
        ),
        (
            "UPDATE refers SET place_b = 'x', place_a = 2 WHERE id = 1",
            "Write {row:public.refers#[1] X, value:public.place(a,b)#[2,'x'] S}",
        ),
    ]);
}

#[test]
fn bound_parameters_name_rows() {
    let analyzer = analyzer();
    let update = "UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2";
    let row = buckets("Write {row:public.pgbench_accounts#[7] X}");
    assert_eq!(describe(bound(&analyzer, update, &[], &[Some("5"), Some("7")])), row);
    assert_eq!(
        describe(bound(&analyzer, update, &[23, 20], &[Some("5"), Some("7")])),
        row
    );
    let seven = |length: usize| Some(Bytes::copy_from_slice(&7_i64.to_be_bytes()[8 - length..]));
    assert_eq!(
        describe(bound_as(&analyzer, update, &[23, 23], &[1], vec![seven(4), seven(4)])),
        row
    );
    let table = "Write {table:public.pgbench_accounts X}";
    assert_eq!(
        describe(bound(&analyzer, update, &[23, 701], &[Some("5"), Some("7")])),
        table,
        "a float"
    );
    assert_eq!(
        describe(bound(&analyzer, update, &[23, 23], &[Some("5"), None])),
        table,
        "NULL"
    );
    let read = "SELECT note FROM member WHERE id = $1";
    let row = buckets(&format!("Read {{row:public.member#[u{DIGITS}] S}}"));
    assert_eq!(describe(bound(&analyzer, read, &[], &[Some(UUID)])), row);
    let bytes: Vec<u8> = (0..16)
        .map(|at| u8::from_str_radix(&DIGITS[at * 2..at * 2 + 2], 16).expect("digits"))
        .collect();
    assert_eq!(
        describe(bound_as(&analyzer, read, &[2950], &[1], vec![Some(bytes.into())])),
        row
    );
    let odd = Some("{0b7d8e4c-0000-4000-8000-00000000000a}");
    assert_eq!(
        describe(bound(&analyzer, read, &[], &[odd])),
        "Read {table:public.member S}"
    );
}

#[test]
fn many_rows_are_the_table() {
    let list = |count: usize| {
        (0..count)
            .map(|number| number.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let delete = |count: usize| format!("DELETE FROM pgbench_tellers WHERE tid IN ({})", list(count));
    let few = simple(&analyzer(), &delete(200)).expect("runs").footprint;
    assert!(few.entries().len() > 100, "{few}");
    assert_eq!(
        describe(simple(&analyzer(), &delete(900))),
        "Write {table:public.pgbench_tellers X}"
    );
    let values: Vec<_> = (0..900).map(|number| format!("({number})")).collect();
    let insert = format!("INSERT INTO pgbench_tellers VALUES {}", values.join(", "));
    assert_eq!(
        describe(simple(&analyzer(), &insert)),
        "Write {table:public.pgbench_tellers X}"
    );
}

#[test]
fn new_rows_without_a_key_are_their_sessions() {
    let of = |session: u64, text: &str| {
        let context = SessionContext { session, ..context() };
        analyzer()
            .exchange(&Exchange::Simple { text: text.into() }, &context)
            .expect("runs")
            .footprint
    };
    let (one, other) = (
        "INSERT INTO pgbench_history VALUES (1, 2, 3)",
        "INSERT INTO pgbench_history VALUES (4, 5, 6)",
    );
    assert_eq!(of(1, one), of(1, other));
    assert!(!of(1, one).overlaps(&of(2, one)));
    let whole = Footprint::of(Resource::Table("public.pgbench_history".into()), Mode::Shared);
    assert!(of(1, one).overlaps(&whole), "who reads the table waits");
    assert!(!of(1, one).covers(&whole));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// However a value is written, it names the same row.
    #[test]
    fn one_value_has_one_row(key in any::<i32>(), length in 0_usize..4) {
        let analyzer = analyzer();
        let expected = format!("Read {{row:public.pgbench_accounts#[{key}] S}}");
        let expected = buckets(&expected);
        let read = |condition: &str| format!("SELECT bid FROM pgbench_accounts WHERE {condition}");
        let zeros = "0".repeat(length);
        let sign = if key < 0 { "-" } else { "" };
        let digits = key.unsigned_abs();
        for condition in [
            format!("aid = {key}"), format!("'{key}' = aid"), format!("aid IN ({sign}{zeros}{digits})"), format!("(aid) = CAST({key} AS bigint)"),
        ] {
            prop_assert_eq!(describe(simple(&analyzer, &read(&condition))), expected.clone(), "{}", condition);
        }
        let text = format!("{sign}{zeros}{digits}");
        for declared in [0, 21, 23, 20, 1700] {
            prop_assert_eq!(describe(bound(&analyzer, &read("aid = $1"), &[declared], &[Some(&text)])), expected.clone());
        }
        let binary = Some(Bytes::copy_from_slice(&key.to_be_bytes()));
        prop_assert_eq!(describe(bound_as(&analyzer, &read("aid = $1"), &[23], &[1], vec![binary])), expected);
    }

    /// Two statements that write one row, by whatever values of columns, cannot run together.
    #[test]
    fn writers_of_one_row_exclude_each_other(a in 0_i32..4, b in "[ab]", other_a in 0_i32..4, other_b in "[ab]") {
        let analyzer = analyzer();
        let one = simple(&analyzer, &format!("DELETE FROM place WHERE b = '{b}' AND a IN ({a}, {other_a})")).expect("runs");
        let insert = simple(&analyzer, &format!("INSERT INTO place (b, a) VALUES ('{other_b}', {other_a})")).expect("runs");
        let overlap = one.footprint.overlaps(&insert.footprint);
        prop_assert!(overlap || b != other_b);
    }
}
