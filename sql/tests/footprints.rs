//! Which statement touches what.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use bytes::Bytes;
use common::{analyzer, bound, bound_as, check, describe, simple};
use sql::analysis::Analyzer;
use sql::operation::{Exchange, SessionContext};
use sql::rules::{MultiPartition, PartitionRules};
use sql::schema::Schema;

/// Rule LargeObjects: one resource for all of them, whoever works with what is open is listed.
#[test]
fn large_objects() {
    check(&[
        ("SELECT lo_get(5)", "Read {table:pg_catalog.pg_largeobject S}"),
        (
            "SELECT pg_catalog.lo_open(5, 262144)",
            "Write {table:pg_catalog.pg_largeobject S}",
        ),
        (
            "SELECT pg_catalog.lo_open(5, 393216)",
            "Write {table:pg_catalog.pg_largeobject X}",
        ),
        (
            "SELECT loread(0, 10), lo_lseek(0, 1, 0), lo_tell64(0), lo_close(0)",
            "Write {table:pg_catalog.pg_largeobject S}",
        ),
        (
            "SELECT lowrite(0, '\\x00')",
            "Write {table:pg_catalog.pg_largeobject X}",
        ),
        ("SELECT lo_unlink(plain.v::oid) FROM plain WHERE false", "Write {all X}"),
        (
            "SELECT lo_create(0), lo_creat(-1), lo_from_bytea(0, '')",
            "Write {table:pg_catalog.pg_largeobject X}",
        ),
        ("SELECT * FROM lo_get(5)", "Read {table:pg_catalog.pg_largeobject S}"),
    ]);
    let analyzer = analyzer();
    let text = analyzer.text("SELECT lo_create(0), pg_catalog.lo_creat(-1), public.lo_create(1)");
    assert_eq!(
        text.executable(),
        "SELECT cloudbft.lo_create(0), cloudbft.lo_creat(-1), public.lo_create(1)"
    );
}

#[test]
fn keys_in_reads() {
    check(&[
        ("SELECT w_tax FROM warehouse WHERE w_id = 7", "Read {w7 S}"),
        (
            "select w_tax from Warehouse w where W.w_id = 7 and w_name like 'a%'",
            "Read {w7 S}",
        ),
        ("SELECT 1 FROM warehouse WHERE 7 = w_id", "Read {w7 S}"),
        ("SELECT 1 FROM warehouse WHERE (w_id = '7')", "Read {w7 S}"),
        ("SELECT 1 FROM warehouse WHERE w_id = -7", "Read {w-7 S}"),
        ("SELECT 1 FROM warehouse WHERE w_id = 7::int", "Read {w7 S}"),
        (
            "SELECT 1 FROM warehouse WHERE w_id = CAST('7' AS bigint)",
            "Read {w7 S}",
        ),
        (
            "SELECT 1 FROM warehouse WHERE w_id IN (3, 1, 2)",
            "Read {w1 S, w2 S, w3 S}",
        ),
        (
            "SELECT 1 FROM warehouse WHERE w_id = ANY (ARRAY[1, 2])",
            "Read {w1 S, w2 S}",
        ),
        (
            "SELECT 1 FROM stock WHERE (s_i_id, s_w_id) IN ((5, 1), (6, 2))",
            "Read {w1 S, w2 S}",
        ),
        ("SELECT 1 FROM stock WHERE (s_i_id, s_w_id) = (5, 1)", "Read {w1 S}"),
        ("SELECT 1 FROM warehouse WHERE w_id = NULL", "Read {}"),
        ("SELECT i_price FROM item WHERE i_id = 3", "Read {}"),
        ("SELECT 1", "Read {}"),
        ("VALUES (1), (2)", "Read {}"),
        ("SELECT * FROM generate_series(1, 3)", "Read {}"),
        ("SELECT * FROM plain", "Read {table:public.plain S}"),
        ("SELECT * FROM public.plain", "Read {table:public.plain S}"),
        ("SELECT * FROM counted", "Read {table:public.counted S}"),
        ("SELECT last_value FROM counter", "Read {sequence:public.counter S}"),
        (
            "SELECT 1 FROM shop.bill WHERE tenant = 'acme'",
            "Read {partition:tenant='acme' S}",
        ),
        ("TABLE plain", "Read {all S}"),
    ]);
}

#[test]
fn what_is_no_key_in_reads() {
    for condition in [
        "w_id = 7 OR w_name = 'a'",
        "NOT w_id = 7",
        "w_id <> 7",
        "w_id > 7",
        "w_id = 7.0",
        "w_id = 7 + 0",
        "w_id = 99999999999999999999",
        "w_id = E'\\x37'",
        "w_id = (SELECT 7)",
        "(w_id = 7) IS NOT TRUE",
        "w_id = 7 ISNULL",
        "w_id = ANY ('{7}'::int[])",
        "w_id = 7::numeric",
        "w_id NOT IN (7)",
        "w_id = 7 OPERATOR(pg_catalog.=) true",
        "CASE WHEN w_id = 7 THEN true END",
        "x.w_id = 7",
        "true",
    ] {
        let text = format!("SELECT 1 FROM warehouse WHERE {condition}");
        assert_eq!(describe(simple(&analyzer(), &text)), "Read {all S}", "{text}");
    }
}

#[test]
fn names_that_hide_a_table() {
    check(&[
        ("SELECT 1 FROM warehouse w (a, b) WHERE w.w_id = 1", "Read {all S}"),
        (
            "WITH x AS (SELECT * FROM warehouse WHERE w_id = 1) SELECT * FROM x",
            "Read {w1 S}",
        ),
        (
            "WITH x AS (SELECT * FROM warehouse) SELECT * FROM x WHERE w_id = 1",
            "Read {all S}",
        ),
        (
            "WITH warehouse AS (SELECT * FROM warehouse) SELECT * FROM warehouse WHERE w_id = 1",
            "Read {all S}",
        ),
        ("SELECT 1 FROM other.warehouse WHERE w_id = 1", "Read {all S}"),
        ("SELECT 1 FROM \"Warehouse\" WHERE w_id = 1", "Read {all S}"),
        ("SELECT 1 FROM pg_class", "Read {all S}"),
        ("SELECT 1 FROM rich WHERE c_w_id = 1", "Read {all S}"),
        ("SELECT 1 FROM secured", "Read {all S}"),
        ("SELECT 1 FROM parted", "Read {all S}"),
        ("SELECT 1 FROM parted_2026", "Read {all S}"),
        ("SELECT 1 FROM unknown_table", "Read {all S}"),
    ]);
}

#[test]
fn joins_and_subqueries() {
    check(&[
        (
            "SELECT c_discount, w_tax FROM customer, warehouse WHERE w_id = 2 AND c_w_id = w_id AND c_d_id = 1",
            "Read {w2 S}",
        ),
        (
            "SELECT 1 FROM customer JOIN warehouse ON w_id = c_w_id WHERE c_w_id = 2",
            "Read {w2 S}",
        ),
        (
            "SELECT 1 FROM customer c LEFT JOIN orders o ON o.o_w_id = c.c_w_id WHERE c.c_w_id = 2",
            "Read {w2 S}",
        ),
        (
            "SELECT 1 FROM customer c LEFT JOIN orders o ON o.o_w_id = 3 AND c.c_w_id = 2",
            "Read {all S}",
        ),
        (
            "SELECT 1 FROM customer c LEFT JOIN orders o ON o.o_w_id = 3 WHERE c.c_w_id = 2",
            "Read {w2 S, w3 S}",
        ),
        (
            "SELECT 1 FROM customer c RIGHT JOIN orders o ON c.c_w_id = 2 WHERE o.o_w_id = 2",
            "Read {all S}",
        ),
        (
            "SELECT 1 FROM customer c FULL JOIN orders o ON c.c_w_id = 2 AND o.o_w_id = 2",
            "Read {all S}",
        ),
        ("SELECT 1 FROM customer, warehouse WHERE w_id = 2", "Read {all S}"),
        (
            "SELECT 1 FROM customer a JOIN customer b ON a.c_id = b.c_id WHERE a.c_w_id = 2 AND c_w_id = 2",
            "Read {all S}",
        ),
        (
            "SELECT count(DISTINCT s_i_id) FROM order_line, stock WHERE ol_w_id = 1 AND ol_d_id = 2 AND s_w_id = 1 AND s_i_id = ol_i_id",
            "Read {w1 S}",
        ),
        (
            "SELECT 1 FROM warehouse WHERE w_id = 1 AND EXISTS (SELECT 1 FROM stock WHERE s_w_id = 4)",
            "Read {w1 S, w4 S}",
        ),
        (
            "SELECT 1 FROM warehouse WHERE w_id = 1 AND EXISTS (SELECT 1 FROM stock WHERE s_w_id = w_id)",
            "Read {all S}",
        ),
        (
            "SELECT (SELECT max(o_id) FROM orders WHERE o_w_id = 3) FROM item",
            "Read {w3 S}",
        ),
        (
            "SELECT * FROM (SELECT * FROM warehouse WHERE w_id = 1) AS x",
            "Read {w1 S}",
        ),
        (
            "SELECT w_id FROM warehouse WHERE w_id = 1 UNION ALL SELECT s_w_id FROM stock WHERE s_w_id = 2",
            "Read {w1 S, w2 S}",
        ),
        (
            "SELECT 1 FROM (warehouse JOIN stock ON s_w_id = w_id) WHERE w_id = 1",
            "Read {all S}",
        ),
        (
            "SELECT 1 FROM warehouse JOIN plain ON true WHERE w_id = 1",
            "Read {w1 S, table:public.plain S}",
        ),
        ("SELECT 1 FROM warehouse ORDER BY (SELECT 1 FROM plain)", "Read {all S}"),
    ]);
}

#[test]
fn locking_reads_are_exclusive() {
    check(&[
        (
            "SELECT d_next_o_id FROM district WHERE d_w_id = 1 AND d_id = 2 FOR UPDATE",
            "LockingRead {w1 X}",
        ),
        (
            "SELECT 1 FROM district WHERE d_w_id = 1 FOR NO KEY UPDATE",
            "LockingRead {w1 X}",
        ),
        (
            "SELECT 1 FROM district WHERE d_w_id = 1 FOR KEY SHARE",
            "LockingRead {w1 X}",
        ),
        (
            "SELECT 1 FROM district WHERE d_w_id = 1 FOR SHARE SKIP LOCKED",
            "LockingRead {w1 X}",
        ),
        (
            "SELECT 1 FROM district WHERE d_w_id = 1 FOR UPDATE OF district NOWAIT",
            "LockingRead {w1 X}",
        ),
        ("SELECT 1 FROM item WHERE i_id = 1 FOR UPDATE", "LockingRead {all X}"),
        ("SELECT 1 FROM district FOR UPDATE", "LockingRead {all X}"),
        (
            "SELECT no_o_id FROM new_order WHERE no_w_id = 1 AND no_d_id = 2 ORDER BY no_o_id LIMIT 1 FOR UPDATE",
            "LockingRead {w1 X}",
        ),
    ]);
}

#[test]
fn functions() {
    check(&[
        (
            "SELECT lower(w_name), coalesce(w_tax, 0), sum(1) FROM warehouse WHERE w_id = 1",
            "Read {w1 S}",
        ),
        ("SELECT double_it(1)", "Read {all S}"),
        ("SELECT change_it(1)", "Write {all X}"),
        ("SELECT public.change_it(1)", "Write {all X}"),
        ("SELECT no_such(1)", "Write {all X}"),
        ("SELECT * FROM change_it(1)", "Write {all X}"),
        (
            "SELECT 1 FROM warehouse WHERE w_id = 1 AND double_it(w_id) = 2",
            "Read {all S}",
        ),
        ("SELECT change_it(1) FROM warehouse w WHERE w ISNULL", "Write {all X}"),
        ("SELECT version(), pg_backend_pid(), inet_server_addr()", "Read {all S}"),
        ("SELECT pg_advisory_xact_lock(1)", "Session {}"),
        ("SELECT pg_advisory_xact_lock(hashtext('1'))", "Write {all X}"),
        ("SELECT pg_advisory_unlock_all()", "Session {}"),
        (
            "SELECT query_to_xml('delete from plain', true, true, '')",
            "Write {all X}",
        ),
        ("SELECT pg_sleep(1)", "Read {all S}"),
        ("SELECT 'plain'::regclass", "Read {all S}"),
    ]);
}

#[test]
fn parameters() {
    let analyzer = analyzer();
    let read = "SELECT 1 FROM warehouse WHERE w_id = $1";
    let cast = "SELECT 1 FROM warehouse WHERE w_id = $1::int";
    let twice = "SELECT $1 FROM warehouse WHERE w_id = $1";
    let text = "SELECT 1 FROM shop.bill WHERE tenant = $1";
    let insert = "INSERT INTO new_order VALUES ($1, 1, 1)";
    for (statement, declared, value, expected) in [
        (read, 0, Some("7"), "Read {w7 S}"),
        (read, 23, Some("7"), "Read {w7 S}"),
        (read, 20, Some("9007199254740993"), "Read {w9007199254740993 S}"),
        (read, 1700, Some("7"), "Read {w7 S}"),
        (read, 701, Some("7"), "Read {all S}"),
        (read, 25, Some("7"), "Read {all S}"),
        (read, 0, Some("7.0"), "Read {all S}"),
        (read, 0, Some(" 7"), "Read {all S}"),
        (read, 0, Some("99999999999999999999"), "Read {all S}"),
        (read, 0, None, "Read {}"),
        (cast, 25, Some("7"), "Read {w7 S}"),
        (cast, 0, Some("7"), "Read {w7 S}"),
        (twice, 0, Some("7"), "Read {w7 S}"),
        (twice, 0, Some("16777217"), "Read {all S}"),
        (twice, 0, Some("-1"), "Read {all S}"),
        (twice, 23, Some("16777217"), "Read {w16777217 S}"),
        (text, 0, Some("acme"), "Read {partition:tenant='acme' S}"),
        (text, 1042, Some("acme"), "Read {all S}"),
        (text, 25, Some("acme "), "Read {all S}"),
        (insert, 0, Some("7"), "Write {w7 X}"),
        (insert, 0, None, "Write {all X}"),
    ] {
        let found = describe(bound(&analyzer, statement, &[declared], &[value]));
        assert_eq!(found, expected, "{statement} with {value:?} as {declared}");
    }
    assert_eq!(describe(bound(&analyzer, read, &[], &[])), "Read {all S}");
}

#[test]
fn binary_parameters() {
    let analyzer = analyzer();
    let read = "SELECT 1 FROM warehouse WHERE w_id = $1";
    let seven = |length: usize| {
        let bytes = 7_i64.to_be_bytes();
        Some(Bytes::copy_from_slice(&bytes[8 - length..]))
    };
    for (declared, length, expected) in [
        (23, 4, "Read {w7 S}"),
        (20, 8, "Read {w7 S}"),
        (21, 2, "Read {w7 S}"),
        (0, 4, "Read {w7 S}"),
        (23, 8, "Read {all S}"),
        (701, 8, "Read {all S}"),
        (1700, 8, "Read {all S}"),
        (23, 3, "Read {all S}"),
    ] {
        let found = describe(bound_as(&analyzer, read, &[declared], &[1], vec![seven(length)]));
        assert_eq!(found, expected, "{length} bytes as {declared}");
    }
    let found = describe(bound_as(&analyzer, read, &[23], &[2], vec![seven(4)]));
    assert_eq!(found, "Read {all S}", "unknown format");
}

#[test]
fn several_statements_add_up() {
    check(&[
        (
            "BEGIN; UPDATE warehouse SET w_ytd = 1 WHERE w_id = 1; SELECT 1 FROM plain; COMMIT",
            "Write {w1 X, table:public.plain S}",
        ),
        ("", "Nothing {}"),
        ("-- nothing", "Nothing {}"),
        ("SELECT 1; CREATE TABLE t ()", "Ddl {all X}"),
    ]);
}

#[test]
fn another_search_path_widens() {
    let analyzer = analyzer();
    let exchange = Exchange::Simple {
        text: "UPDATE warehouse SET w_ytd = 1 WHERE w_id = 1".into(),
    };
    let mut context = SessionContext {
        settings: vec![("search_path".into(), "shop, public".into())],
        ..common::context()
    };
    assert_eq!(describe(analyzer.exchange(&exchange, &context)), "Write {all X}");
    context.settings = vec![("search_path".into(), "\"$user\", public".into())];
    assert_eq!(describe(analyzer.exchange(&exchange, &context)), "Write {w1 X}");
    context.role = "shop".into();
    assert_eq!(
        describe(analyzer.exchange(&exchange, &context)),
        "Write {all X}",
        "$user is a schema"
    );
}

#[test]
fn the_global_lock_replaces_several_resources() {
    let rules = PartitionRules {
        multi_partition: MultiPartition::Global,
        ..common::rules()
    };
    let schema = Schema::parse(common::CATALOG.lines(), &rules).expect("parses");
    let analyzer = Analyzer::new(std::sync::Arc::new(schema));
    let one = "UPDATE customer SET c_balance = 1 WHERE c_w_id = 1";
    let two = "UPDATE customer SET c_balance = 1 WHERE c_w_id IN (1, 2)";
    let read = "SELECT 1 FROM customer WHERE c_w_id IN (1, 2)";
    assert_eq!(describe(simple(&analyzer, one)), "Write {w1 X}");
    assert_eq!(describe(simple(&analyzer, two)), "Write {all X}");
    assert_eq!(describe(simple(&analyzer, read)), "Read {w1 S, w2 S}");
}

#[test]
fn an_unreadable_catalog_row_is_an_error() {
    assert!(Schema::parse(["{}"].into_iter(), &common::rules()).is_err());
    assert!(Schema::parse(["nonsense"].into_iter(), &common::rules()).is_err());
}

#[test]
fn digests_follow_catalog_and_rules() {
    let digest = |rows: &str, rules: &PartitionRules| Schema::parse(rows.lines(), rules).expect("parses").digest();
    let whole = digest(common::CATALOG, &common::rules());
    assert_eq!(whole, digest(common::CATALOG, &common::rules()));
    assert_ne!(whole, digest(common::CATALOG, &PartitionRules::tpcc()));
    let (_, without_first) = common::CATALOG.split_once('\n').expect("several rows");
    assert_ne!(whole, digest(without_first, &common::rules()));
}
