//! Statements as a whole: what is refused, what passes, and what needs the clock.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{analyzer, bound, check, describe, simple};

#[test]
fn refused_by_their_keywords() {
    check(&[
        ("CREATE UNLOGGED TABLE t ()", "0A000 rule 35"),
        ("SELECT pg_listening_channels() AS c, 1", "BF004 rule 37"),
        ("SELECT pg_notification_queue_usage()", "BF004 rule 37"),
        ("PREPARE TRANSACTION 'a'", "0A000 rule 40"),
        ("COMMIT PREPARED 'a'", "0A000 rule 40"),
        ("ROLLBACK PREPARED 'a'", "0A000 rule 40"),
        ("CREATE DATABASE d", "0A000 rule 44"),
        ("DROP DATABASE d", "0A000 rule 44"),
        ("CREATE TABLESPACE t LOCATION '/'", "42501 rule 44"),
        ("ALTER SYSTEM SET a = 1", "42501 rule 44"),
        ("LOAD 'x'", "42501 rule 44"),
        ("CREATE EXTENSION dblink", "42501 rule 44"),
        ("CREATE SERVER s FOREIGN DATA WRAPPER w", "42501 rule 45"),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE plpython3u AS 'x'",
            "42501 rule 25",
        ),
        ("DO LANGUAGE plperlu 'x'", "42501 rule 25"),
        ("SET standard_conforming_strings = off", "55P02 rule 50"),
        ("SET jit = on", "55P02 rule 33"),
        ("SET client_encoding = latin1", "55P02 rule 33"),
        ("SET cloudbft.time_us = 1", "42501 rule 33"),
        ("SELECT set_config('cloudbft.seed', 'a', true)", "42501 rule 33"),
        ("EXPLAIN ANALYZE DELETE FROM plain", "BF004 rule 32"),
        ("SELECT 'open", "42601 rule 0"),
    ]);
}

#[test]
fn rule_16_limits_in_writes_need_a_total_order() {
    check(&[
        (
            "DELETE FROM child WHERE id IN (SELECT h_c_id FROM history LIMIT 1)",
            "BF002 rule 16",
        ),
        (
            "DELETE FROM child WHERE id IN (SELECT h_c_id FROM history ORDER BY h_date LIMIT 1)",
            "BF002 rule 16",
        ),
        (
            "DELETE FROM plain WHERE id IN (SELECT id FROM plain ORDER BY value, id LIMIT 1)",
            "Write {table:public.child X, table:public.plain X}",
        ),
        (
            "DELETE FROM plain WHERE id IN (SELECT id FROM plain ORDER BY 1 FETCH FIRST ROW ONLY)",
            "Write {table:public.child X, table:public.plain X}",
        ),
        (
            "UPDATE child SET item_id = 1 WHERE id = (SELECT id FROM child ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)",
            "Write {table:public.child X}",
        ),
        (
            "INSERT INTO child SELECT DISTINCT ON (h_date) h_c_id FROM history ORDER BY h_date",
            "BF002 rule 16",
        ),
        (
            "INSERT INTO child SELECT DISTINCT ON (value) id FROM plain ORDER BY value, id",
            "Write {table:public.child X, table:public.plain S}",
        ),
        (
            "UPDATE child SET item_id = (SELECT max(i_id) FROM item LIMIT 1)",
            "Write {table:public.child X}",
        ),
        (
            "DELETE FROM child WHERE EXISTS (SELECT 1 FROM plain LIMIT 1)",
            "Write {table:public.child X, table:public.plain S}",
        ),
        (
            "INSERT INTO child SELECT plain_id FROM child GROUP BY plain_id ORDER BY plain_id LIMIT 5",
            "Write {table:public.child X, key:public.plain(id) S}",
        ),
        (
            "INSERT INTO child SELECT id FROM plain LIMIT ALL",
            "Write {table:public.child X, table:public.plain S}",
        ),
        // A read without a total order is compared.
        ("SELECT * FROM plain LIMIT 1", "Read {table:public.plain S}"),
    ]);
}

#[test]
fn draws_over_several_rows_are_refused() {
    check(&[
        (
            "INSERT INTO plain (id, amount) VALUES (1, random()), (2, random())",
            "Write {row:public.plain#[2] X, row:public.plain#[1] X, value:public.plain(id)#[2] X, value:public.plain(id)#[1] X}",
        ),
        (
            "INSERT INTO plain (id, amount) SELECT h_c_id, random() FROM history",
            "BF002 rule 6",
        ),
        (
            "INSERT INTO plain (id, amount) SELECT id, random() FROM child ORDER BY id",
            "Write {table:public.child S, table:public.plain X}",
        ),
        (
            "INSERT INTO plain (id, amount) SELECT n, random() FROM generate_series(1, 9) AS n",
            "Write {table:public.plain X}",
        ),
        ("UPDATE plain SET amount = random()", "BF002 rule 6"),
        (
            "UPDATE plain SET amount = random() WHERE id = 1",
            "Write {key:public.plain(note) S, row:public.plain#[1] X}",
        ),
        (
            "INSERT INTO numbered (value) SELECT h_data FROM history",
            "BF002 rule 6",
        ),
        (
            "INSERT INTO numbered (value) SELECT value FROM plain ORDER BY id",
            "Write {table:public.numbered X, table:public.plain S, sequence:public.numbered_id_seq X}",
        ),
        ("INSERT INTO stamped (id) SELECT h_c_id FROM history", "BF002 rule 6"),
        ("CREATE TABLE t AS SELECT id, random() FROM plain", "BF002 rule 8"),
        (
            "ALTER TABLE plain ADD COLUMN u uuid DEFAULT gen_random_uuid()",
            "BF002 rule 8",
        ),
        ("ALTER TABLE plain ADD COLUMN n serial", "BF002 rule 8"),
        ("ALTER TABLE plain ADD COLUMN n int DEFAULT 0", "Ddl {all X}"),
    ]);
}

#[test]
fn aggregates_that_depend_on_order_are_refused_in_writes() {
    check(&[
        (
            "INSERT INTO numbered (id, value) SELECT 1, string_agg(h_data, ',') FROM history",
            "BF002 rule 19",
        ),
        (
            "INSERT INTO checked (id, value) SELECT 1, string_agg(value, ',' ORDER BY id) FROM plain",
            "Write {all X}",
        ),
        (
            "SELECT string_agg(value, ',') FROM plain",
            "Read {table:public.plain S}",
        ),
        (
            "INSERT INTO child (id) SELECT sum(h_amount::float8) FROM history",
            "BF002 rule 20",
        ),
        (
            "INSERT INTO child (id) SELECT sum(id) FROM plain",
            "Write {table:public.child X, table:public.plain S}",
        ),
    ]);
}

#[test]
fn rule_4_date_words_as_values_are_refused() {
    let analyzer = analyzer();
    check(&[
        ("INSERT INTO plain (id, at) VALUES (1, 'now')", "0A000 rule 4"),
        ("UPDATE plain SET at = 'today' WHERE id = 1", "0A000 rule 4"),
        (
            "INSERT INTO plain (id, value) VALUES (1, 'now')",
            "Write {row:public.plain#[1] X, value:public.plain(id)#[1] X}",
        ),
    ]);
    let insert = "INSERT INTO plain (id, at) VALUES ($1, $2)";
    assert_eq!(
        describe(bound(&analyzer, insert, &[], &[Some("1"), Some("now")])),
        "0A000 rule 4"
    );
    assert_eq!(
        describe(bound(&analyzer, insert, &[], &[Some("1"), Some("2026-01-01")])),
        common::buckets("Write {row:public.plain#[1] X, value:public.plain(id)#[1] X}")
    );
    let read = "SELECT $1::text";
    assert_eq!(
        describe(bound(&analyzer, read, &[1114], &[Some("NOW")])),
        "0A000 rule 4"
    );
    assert_eq!(describe(bound(&analyzer, read, &[25], &[Some("now")])), "Read {}");
}

#[test]
fn rule_4_date_words_where_the_column_gives_the_type() {
    check(&[
        (
            "DELETE FROM child WHERE id IN (SELECT id FROM plain WHERE at < 'now')",
            "0A000 rule 4",
        ),
        ("SELECT 1 FROM plain WHERE 'today' <= plain.at", "0A000 rule 4"),
        ("SELECT 1 FROM plain WHERE value = 'now'", "Read {table:public.plain S}"),
        ("SELECT 'today 12:00'::timestamp", "0A000 rule 4"),
        ("SELECT $$now$$::timestamp", "Read {}"),
    ]);
    let read = "SELECT $1::timestamp";
    assert_eq!(describe(bound(&analyzer(), read, &[], &[Some("now")])), "0A000 rule 4");
}

#[test]
fn rules_17_and_18_several_matches() {
    check(&[
        ("UPDATE child SET item_id = i.i_id FROM item i", "BF002 rule 17"),
        (
            "UPDATE child SET item_id = i.i_id FROM item i WHERE i.i_name = 'x'",
            "BF002 rule 17",
        ),
        (
            "UPDATE child SET item_id = i.i_id FROM item i WHERE i.i_id = child.id",
            "Write {table:public.child X}",
        ),
        (
            "UPDATE child SET item_id = i.i_id FROM item i WHERE i.i_id = 5",
            "Write {table:public.child X}",
        ),
        (
            "UPDATE child SET item_id = i.i_id FROM plain p, item i WHERE p.id = plain_id AND i.i_id = p.id",
            "Write {table:public.child X, table:public.plain S}",
        ),
        (
            "UPDATE child SET item_id = i.i_id FROM plain p, item i WHERE i.i_id = p.id",
            "BF002 rule 17",
        ),
        (
            "UPDATE child SET item_id = x.b FROM (VALUES (1, 2)) AS x (a, b) WHERE x.a = id",
            "Write {table:public.child X}",
        ),
        (
            "INSERT INTO child SELECT h_c_id FROM history ON CONFLICT DO NOTHING",
            "BF002 rule 18",
        ),
        (
            "INSERT INTO child SELECT id FROM plain ORDER BY id ON CONFLICT DO NOTHING",
            "Write {table:public.child X, table:public.plain S}",
        ),
        (
            "INSERT INTO child VALUES (1) ON CONFLICT DO NOTHING",
            "Write {row:public.child#[1] X}",
        ),
    ]);
}

#[test]
fn names_that_hide_a_function() {
    check(&[
        ("SELECT U&\"\\006eow\"()", "0A000 rule 50"),
        ("SELECT cloudbft.set_applied('a', 1)", "42501 rule 0"),
        ("SELECT * FROM cloudbft.applied", "Read {all S}"),
        ("DELETE FROM cloudbft.applied", "42501 rule 0"),
    ]);
}

#[test]
fn needs_clock() {
    let analyzer = analyzer();
    for (text, expected) in [
        ("SELECT now()", true),
        ("SELECT 1", false),
        ("UPDATE warehouse SET w_ytd = 1 WHERE w_id = 1", false),
        (
            "INSERT INTO history (h_w_id, h_date) VALUES (1, CURRENT_TIMESTAMP)",
            true,
        ),
        ("INSERT INTO stamped (id) VALUES (1)", true),
        ("INSERT INTO stamped VALUES (1, NULL, NULL)", false),
        ("INSERT INTO triggered VALUES (1)", true),
        ("SELECT double_it(1)", true),
        ("SELECT * FROM rich", true),
        ("SELECT cloudbft.now()", true),
        ("CALL f()", true),
    ] {
        let analysis = simple(&analyzer, text).expect("passes");
        assert_eq!(analysis.needs_clock, expected, "{text}");
    }
    // A default that was made without the proxy.
    assert_eq!(
        describe(simple(&analyzer, "INSERT INTO clocked (id) VALUES (1)")),
        "BF002 rule 8"
    );
    assert_eq!(
        describe(simple(&analyzer, "INSERT INTO clocked VALUES (1, NULL)")),
        common::buckets("Write {row:public.clocked#[1] X}")
    );
}

#[test]
fn executable_texts() {
    let analyzer = analyzer();
    let text = "SELECT now(); -- now()\nINSERT INTO t VALUES ('now()', random())";
    let analysis = analyzer.text(text);
    assert_eq!(
        analysis.executable(),
        "SELECT cloudbft.now(); -- now()\nINSERT INTO t VALUES ('now()', cloudbft.random())"
    );
    assert_eq!(analysis.statements[0].executable, "SELECT cloudbft.now()");
    assert_eq!(
        analysis.statements[1].executable,
        "INSERT INTO t VALUES ('now()', cloudbft.random())"
    );
    assert_eq!(&text[analysis.statements[0].range.clone()], "SELECT now()");
    assert_eq!(analyzer.text("SELECT  1 ;").executable(), "SELECT  1 ;");
}

/// What tools and drivers send by themselves must pass.
#[test]
fn tools_and_drivers_pass() {
    let analyzer = analyzer();
    for text in include_str!("fixtures/tools.sql")
        .split("\n\n")
        .filter(|text| !text.trim().is_empty())
    {
        if let Err(refusal) = simple(&analyzer, text) {
            panic!("{text}\n{refusal}");
        }
    }
}

#[test]
fn catalog_queries_of_tools_are_reads() {
    let analyzer = analyzer();
    for text in include_str!("fixtures/tools.sql")
        .split("\n\n")
        .filter(|text| text.contains("pg_catalog.pg_"))
    {
        assert_eq!(describe(simple(&analyzer, text)), "Read {all S}", "{text}");
    }
}
