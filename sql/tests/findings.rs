//! One test for each fault that a review of the analysis found, named after its number there.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use bytes::Bytes;
use common::{analyzer, bound, check, context, describe, simple};
use sql::operation::Exchange;
use sql::statement::StatementClass;

/// COMMIT cannot hide behind a routine of which a parameter has the name "begin".
#[test]
fn a3_begin_atomic_in_a_signature() {
    let text = "create function f(begin atomic) returns int language sql as 'select 1'; commit; select 1";
    let classes: Vec<_> = analyzer()
        .text(text)
        .statements
        .iter()
        .map(|statement| statement.class.clone())
        .collect();
    assert_eq!(classes.len(), 3);
    assert!(matches!(classes[1], StatementClass::TransactionControl(_)));
}

#[test]
fn a6_explain_with_a_quoted_option() {
    check(&[
        (
            "EXPLAIN (\"analyze\", timing off, summary off, costs off) DELETE FROM plain",
            "BF004 rule 32",
        ),
        ("EXPLAIN (\"analyze\") SELECT change_it(1)", "Write {all X}"),
        ("EXPLAIN (costs off) DELETE FROM plain", "Read {all S}"),
    ]);
}

/// Casts, domains, operators and attributes that call functions of users.
#[test]
fn a6_code_without_a_call() {
    check(&[
        ("SELECT 5::measure", "Write {all X}"),
        ("SELECT 5::posint", "Write {all X}"),
        ("SELECT '5'::posint", "Write {all X}"),
        ("SELECT CAST(5 AS public.posint)", "Write {all X}"),
        ("SELECT posint '5'", "Write {all X}"),
        ("SELECT '{5}'::posint[]", "Write {all X}"),
        ("SELECT '(1,2)'::pair", "Write {all X}"),
        ("SELECT touched.touch FROM touched", "Write {all X}"),
        ("SELECT (touched).touch FROM touched", "Write {all X}"),
        ("SELECT 1 ### 2", "Write {all X}"),
        ("SELECT 1 OPERATOR(public.###) 2", "Write {all X}"),
        (
            "SELECT id FROM plain WHERE value NOTNULL AND touch(id)",
            "Write {all X}",
        ),
        (
            "UPDATE warehouse SET w_ytd = (5::measure).v WHERE w_id = 1",
            "Write {all X}",
        ),
        // A domain, an enumeration and an operator of Postgres's own run nothing.
        (
            "SELECT 'x'::label, 'good'::mood, 1 OPERATOR(pg_catalog.+) 2",
            "Read {all S}",
        ),
        ("SELECT 'x'::label, 'good'::mood", "Read {}"),
    ]);
}

/// Names mean other things after `SET search_path` and `SET ROLE`, also within one text.
#[test]
fn a7_search_path_and_role() {
    check(&[
        ("SET search_path = shop; UPDATE plain SET value = 'x'", "Write {all X}"),
        ("SET LOCAL ROLE bob; SELECT * FROM plain", "Read {all S}"),
        (
            "SELECT set_config('search_path', 'shop', true); UPDATE plain SET value = 'x'",
            "Write {all X}",
        ),
        ("RESET ALL; UPDATE plain SET value = 'x'", "Write {all X}"),
        (
            "SET work_mem = '4MB'; UPDATE plain SET value = 'x'",
            "Write {table:public.plain X}",
        ),
    ]);
    let analyzer = analyzer();
    assert!(simple(&analyzer, "SET ROLE bob").expect("passes").renames);
    assert!(!simple(&analyzer, "SET work_mem = '4MB'").expect("passes").renames);
    let exchange = Exchange::Simple {
        text: "UPDATE plain SET value = 'x'".into(),
    };
    let as_role = |role: &str| {
        let mut context = context();
        context.settings = vec![("role".into(), role.into())];
        describe(analyzer.exchange(&exchange, &context))
    };
    assert_eq!(as_role("bob"), "Write {table:public.plain X}");
    // There is a schema "shop", which "$user" means for that role.
    assert_eq!(as_role("shop"), "Write {all X}");
    assert_eq!(as_role("\"shop\""), "Write {all X}");
}

#[test]
fn b2_checks_that_read_the_clock() {
    let analyzer = analyzer();
    for text in [
        "INSERT INTO dated VALUES ('2020-01-01')",
        "UPDATE dated SET d = '2020-01-01'",
        "COPY dated FROM STDIN",
        "SELECT * FROM secured",
    ] {
        assert!(simple(&analyzer, text).expect(text).needs_clock, "{text}");
    }
}

#[test]
fn b4_clock_words_in_other_places() {
    check(&[
        ("INSERT INTO plain (id, at) VALUES (1, E'now')", "0A000 rule 4"),
        ("INSERT INTO plain (id, at) VALUES (1, E'\\x6eow')", "0A000 rule 4"),
        ("INSERT INTO plain (id, at) VALUES (1, $$now$$)", "0A000 rule 4"),
        ("INSERT INTO plain (id, at) SELECT 1, 'now'", "0A000 rule 4"),
        ("UPDATE plain SET at = GREATEST(at, 'now') WHERE id = 1", "0A000 rule 4"),
        (
            "UPDATE plain SET at = COALESCE(at, ('now')) WHERE id = 1",
            "0A000 rule 4",
        ),
        (
            "UPDATE plain SET at = CASE WHEN true THEN 'now' END WHERE id = 1",
            "0A000 rule 4",
        ),
        (
            "DELETE FROM plain WHERE at BETWEEN 'yesterday' AND '2030-01-01'",
            "0A000 rule 4",
        ),
        ("DELETE FROM plain WHERE at IN ('today')", "0A000 rule 4"),
        ("DELETE FROM plain WHERE at IS DISTINCT FROM 'now'", "0A000 rule 4"),
        ("SELECT ARRAY['now']::date[]", "0A000 rule 4"),
        ("SELECT '{now}'::timestamptz[]", "0A000 rule 4"),
        ("SELECT timestamptz E'\\x6eow'", "0A000 rule 4"),
        // Also where the table runs code of users.
        ("INSERT INTO parted VALUES (1, 'now')", "0A000 rule 4"),
    ]);
    let analyzer = analyzer();
    let padded = format!("now{}", " ".repeat(100));
    let insert = "INSERT INTO plain (id, at) VALUES (1, $1)";
    assert_eq!(
        describe(bound(&analyzer, insert, &[], &[Some(&padded)])),
        "0A000 rule 4"
    );
    for (text, expected) in [
        ("SELECT E'now'::timestamp", "'now'"),
        ("SELECT \"timestamptz\" 'now'", "CAST("),
    ] {
        let executable = analyzer.text(text).executable().to_owned();
        assert!(
            executable.contains("cloudbft.moment") && executable.contains(expected),
            "{executable}"
        );
    }
}

/// Postgres would fold the literal to the time at which each server ran the statement.
#[test]
fn b4_clock_words_in_definitions() {
    let analyzer = analyzer();
    let moment = "(cloudbft.moment('now') OPERATOR(pg_catalog.+) '0'::pg_catalog.interval)";
    for (text, expected) in [
        (
            "create table dn(i int, t timestamptz default 'now')",
            format!("create table dn(i int, t timestamptz default {moment})"),
        ),
        (
            "create table dn(t timestamp(3) not null default 'now', v text default 'now')",
            format!("create table dn(t timestamp(3) not null default {moment}, v text default 'now')"),
        ),
        (
            "alter table dn add at date default 'now'",
            format!("alter table dn add at date default {moment}"),
        ),
        (
            "create table dn(date text default 'now')",
            "create table dn(date text default 'now')".to_owned(),
        ),
    ] {
        assert_eq!(analyzer.text(text).executable(), expected);
    }
    check(&[
        ("ALTER TABLE plain ALTER at SET DEFAULT 'now'", "0A000 rule 4"),
        ("ALTER TABLE plain ALTER value SET DEFAULT 'now'", "Ddl {all X}"),
        ("CREATE VIEW v AS SELECT * FROM plain WHERE at > 'now'", "0A000 rule 4"),
        (
            "CREATE VIEW v AS SELECT * FROM plain WHERE at BETWEEN '2020-01-01' AND 'tomorrow'",
            "0A000 rule 4",
        ),
        (
            "CREATE VIEW v AS SELECT * FROM plain WHERE value = 'now'",
            "Ddl {all X}",
        ),
        ("CREATE TABLE x (d date CHECK (d > 'yesterday'))", "0A000 rule 4"),
        ("CREATE TABLE x (d date DEFAULT 'today 12:00')", "0A000 rule 4"),
        ("CREATE TYPE moods AS ENUM ('now', 'later')", "Ddl {all X}"),
    ]);
}

#[test]
fn b6_draws_over_rows() {
    check(&[
        (
            "WITH r AS (SELECT h_c_id AS id, random() AS x FROM history) UPDATE child SET item_id = 1 FROM r WHERE r.id = child.id",
            "BF002 rule 6",
        ),
        ("UPDATE numbered SET id = DEFAULT", "BF002 rule 6"),
        (
            "UPDATE numbered SET id = DEFAULT WHERE id = 1",
            "Write {table:public.numbered X, sequence:public.numbered_id_seq X}",
        ),
        (
            "MERGE INTO plain USING child ON plain.id = child.id WHEN MATCHED THEN UPDATE SET amount = random()",
            "BF002 rule 6",
        ),
        ("UPDATE plain SET amount = random() WHERE value NOTNULL", "BF002 rule 6"),
        (
            "ALTER TABLE plain ALTER amount TYPE float USING random()",
            "BF002 rule 8",
        ),
        ("CREATE TABLE x AS SELECT id, random() FROM plain", "BF002 rule 8"),
    ]);
}

/// Random sources of extensions stand in any schema.
#[test]
fn b7_random_sources_in_any_schema() {
    check(&[
        ("SELECT public.gen_random_bytes(8)", "BF002 rule 7"),
        ("SELECT crypto.gen_salt('bf')", "BF002 rule 7"),
        ("SELECT * FROM normal_rand(5, 1, 2)", "BF002 rule 6"),
    ]);
    let executable = analyzer()
        .text("SELECT public.gen_random_uuid()")
        .executable()
        .to_owned();
    assert_eq!(executable, "SELECT cloudbft.gen_random_uuid()");
    let own = "SELECT cloudbft.uuid_generate_v4()";
    assert_eq!(analyzer().text(own).executable(), own);
}

#[test]
fn b12_system_columns() {
    check(&[
        ("INSERT INTO child (id) SELECT tableoid FROM plain", "0A000 rule 12"),
        (
            "DO $$BEGIN DELETE FROM plain WHERE ctid = '(0,1)'; END$$",
            "0A000 rule 12",
        ),
        ("SELECT tableoid FROM plain", "Read {table:public.plain S}"),
    ]);
}

#[test]
fn b8_columns_that_are_filled_by_each_server() {
    check(&[
        ("ALTER TABLE plain ADD n serial8", "BF002 rule 8"),
        (
            "ALTER TABLE plain ADD n serial CONSTRAINT k PRIMARY KEY",
            "BF002 rule 8",
        ),
        (
            "ALTER TABLE plain ADD n serial, ALTER value DROP NOT NULL",
            "BF002 rule 8",
        ),
        (
            "ALTER TABLE plain ADD n int GENERATED ALWAYS AS IDENTITY",
            "BF002 rule 8",
        ),
        ("ALTER TABLE plain ADD n int DEFAULT change_it(1)", "BF002 rule 8"),
        ("ALTER TABLE plain ADD CONSTRAINT k CHECK (id > 0)", "Ddl {all X}"),
        ("ALTER TABLE plain ADD n int DEFAULT 1", "Ddl {all X}"),
        (
            "ALTER TABLE plain ADD n numeric(4, 2) DEFAULT abs(1) NOT NULL CHECK (n > 0) REFERENCES item (i_id)",
            "Ddl {all X}",
        ),
        ("CREATE TABLE x (n serial PRIMARY KEY)", "Ddl {all X}"),
    ]);
}

/// A cache of numbers belongs to a backend, and which backend of a pool runs a statement differs on every server.
#[test]
fn b9_caches_of_sequences() {
    let analyzer = analyzer();
    for (text, expected) in [
        ("create sequence sc cache 20", "create sequence sc cache 1"),
        (
            "ALTER SEQUENCE sc INCREMENT 2 CACHE 20 CYCLE",
            "ALTER SEQUENCE sc INCREMENT 2 CACHE 1 CYCLE",
        ),
        (
            "CREATE TABLE x (i int GENERATED ALWAYS AS IDENTITY (START 5 CACHE 20))",
            "CREATE TABLE x (i int GENERATED ALWAYS AS IDENTITY (START 5 CACHE 1))",
        ),
        (
            "DO $$BEGIN CREATE SEQUENCE s CACHE 20; END$$",
            "DO $$BEGIN CREATE SEQUENCE s CACHE 1; END$$",
        ),
        (
            "CREATE TABLE x (cache numeric(20), i int)",
            "CREATE TABLE x (cache numeric(20), i int)",
        ),
    ] {
        assert_eq!(analyzer.text(text).executable(), expected);
    }
    // Postgres draws the number of the row, whatever the VALUES say.
    check(&[(
        "INSERT INTO identified OVERRIDING USER VALUE VALUES (7, 'x')",
        "Write {all X}",
    )]);
}

#[test]
fn b16_b19_b20_what_is_stored_by_definitions_and_subqueries() {
    check(&[
        ("CREATE TABLE x AS SELECT * FROM history LIMIT 5", "BF002 rule 16"),
        (
            "CREATE TABLE x AS SELECT * FROM plain ORDER BY id LIMIT 5",
            "Ddl {all X}",
        ),
        ("SELECT * INTO x FROM history LIMIT 5", "BF002 rule 16"),
        (
            "CREATE MATERIALIZED VIEW x AS SELECT * FROM history OFFSET 5 WITH NO DATA",
            "BF002 rule 16",
        ),
        ("CREATE VIEW x AS SELECT * FROM plain LIMIT 5", "Ddl {all X}"),
        (
            "DELETE FROM plain WHERE id IN (SELECT id FROM plain WHERE value NOTNULL OFFSET 3)",
            "BF002 rule 16",
        ),
        (
            "CREATE TABLE x AS SELECT string_agg(h_data, ',') FROM history",
            "BF002 rule 19",
        ),
        (
            "INSERT INTO plain (id, value) SELECT 1, string_agg(value, ',') FROM plain WHERE value NOTNULL",
            "BF002 rule 19",
        ),
        (
            "UPDATE child SET item_id = (SELECT sum(h_amount::float8) FROM history)",
            "BF002 rule 20",
        ),
        (
            "INSERT INTO child (id) VALUES ((SELECT avg(h_amount::float8) FROM history))",
            "BF002 rule 20",
        ),
        (
            "INSERT INTO child (id) SELECT sum(h_c_id::float8) FROM history",
            "BF002 rule 20",
        ),
        (
            "CREATE TABLE x AS SELECT sum(h_amount::float8) FROM history",
            "BF002 rule 20",
        ),
        ("CREATE TABLE x AS SELECT ctid, * FROM plain", "0A000 rule 12"),
    ]);
}

/// A body may write, whoever calls the function.
#[test]
fn b32_bodies_are_inspected_as_writes() {
    check(&[
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN new.pid := pg_backend_pid(); RETURN new; END$$",
            "0A000 rule 32",
        ),
        ("DO $$BEGIN PERFORM pg_sleep(1e9); END$$", "0A000 rule 49"),
        ("DO LANGUAGE plpgsql 'BEGIN PERFORM pg_sleep(1); END'", "0A000 rule 49"),
        ("DO $$BEGIN EXECUTE 'SELECT pg_sleep(1)'; END$$", "0A000 rule 49"),
        ("DO E'begin perform pg_sl\\x65ep(1); end'", "0A000 rule 25"),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN CASE WHEN pg_trigger_depth() > 1 THEN new END; END$$",
            "Ddl {all X}",
        ),
    ]);
    let analyzer = analyzer();
    for (text, expected) in [
        (
            "DO $$BEGIN EXECUTE 'insert into t values (now(), ''x'')'; END$$",
            "DO $$BEGIN EXECUTE 'insert into t values (cloudbft.now(), ''x'')'; END$$",
        ),
        (
            "DO LANGUAGE plpgsql 'begin insert into t values (now()); end'",
            "DO LANGUAGE plpgsql 'begin insert into t values (cloudbft.now()); end'",
        ),
        // No body.
        (
            "COMMENT ON TABLE plain IS $$call now()$$",
            "COMMENT ON TABLE plain IS $$call now()$$",
        ),
    ] {
        assert_eq!(analyzer.text(text).executable(), expected);
    }
}

#[test]
fn b33_settings() {
    check(&[
        ("SET exit_on_error = on", "55P02 rule 33"),
        ("SET exit_on_error = off", "Session {}"),
        ("SET LOCAL gin_fuzzy_search_limit = 10", "55P02 rule 33"),
        ("SELECT set_config('exit_on_error', 'on', false)", "55P02 rule 33"),
        ("ALTER ROLE app SET search_path = shop", "0A000 rule 33"),
        ("ALTER USER app IN DATABASE app SET exit_on_error = on", "0A000 rule 33"),
        ("ALTER ROLE ALL SET exit_on_error = on", "0A000 rule 33"),
        ("ALTER ROLE app PASSWORD 'x'", "Ddl {all X}"),
        (
            "DO $$BEGIN ALTER ROLE app SET search_path = shop; END$$",
            "0A000 rule 33",
        ),
        ("DO $$BEGIN SET exit_on_error = on; END$$", "55P02 rule 33"),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET exit_on_error = on AS 'SELECT 1'",
            "55P02 rule 33",
        ),
    ]);
}

#[test]
fn b35_unlogged() {
    check(&[
        ("ALTER TABLE plain SET UNLOGGED", "0A000 rule 35"),
        ("SELECT * INTO UNLOGGED x FROM plain", "0A000 rule 35"),
        ("SELECT * INTO UNLOGGED TABLE x FROM plain", "0A000 rule 35"),
        ("ALTER TABLE plain SET LOGGED", "Ddl {all X}"),
    ]);
}

/// The order of rows may decide nothing, whatever else the table makes run.
#[test]
fn c1_order_rules_hold_for_every_table() {
    check(&[
        ("UPDATE triggered SET value = random()", "BF002 rule 6"),
        ("UPDATE triggered SET value = random() WHERE id = 1", "Write {all X}"),
        ("DELETE FROM triggered WHERE random() < 0.5", "BF002 rule 6"),
        (
            "INSERT INTO triggered SELECT nextval('counter') FROM history",
            "BF002 rule 6",
        ),
        ("INSERT INTO rich SELECT random() FROM history", "BF002 rule 6"),
        ("INSERT INTO unknown_table SELECT random() FROM history", "BF002 rule 6"),
        ("UPDATE triggered SET value = i.i_name FROM item i", "BF002 rule 17"),
        (
            "INSERT INTO triggered SELECT h_c_id FROM history ON CONFLICT DO NOTHING",
            "BF002 rule 18",
        ),
        ("INSERT INTO triggered VALUES (1, random())", "Write {all X}"),
    ]);
}

/// Which rows a cascade changes depends on the action of each foreign key on the way.
#[test]
fn d_cascades() {
    check(&[
        (
            "UPDATE top SET id = 9 WHERE id = 1",
            "Write {table:public.leaf X, table:public.middle X, row:public.top#[9] X, row:public.top#[1] X, value:public.top(id)#[9] X, value:public.top(id)#[1] X}",
        ),
        // ON DELETE is NO ACTION on both.
        (
            "DELETE FROM top WHERE id = 1",
            "Write {table:public.middle S, row:public.top#[1] X, value:public.top(id)#[1] X}",
        ),
        // The row that the default names is read.
        ("DELETE FROM boss WHERE id = 2", "Write {all X}"),
        // The rows move to the partition of the default.
        ("DELETE FROM account_name WHERE name = 'b'", "Write {all X}"),
    ]);
}

#[test]
fn d_generated_key() {
    check(&[
        ("UPDATE made_of SET id = 25 WHERE w = 0", "Write {all X}"),
        ("INSERT INTO made_of (id) VALUES (25)", "Write {all X}"),
        (
            "DELETE FROM made_of WHERE w = 0",
            "Write {partition:region=0 X, table:public.made_of X}",
        ),
    ]);
}

#[test]
fn d_exclusion_constraints_cross_partitions() {
    check(&[(
        "INSERT INTO booking VALUES (1, '[1,2]')",
        "Write {partition:region=1 X, table:public.booking X}",
    )]);
}

#[test]
fn d_checks_with_operators_and_domains() {
    check(&[
        ("INSERT INTO operated VALUES (1)", "Write {all X}"),
        ("INSERT INTO casts_domain VALUES (1)", "Write {all X}"),
        ("INSERT INTO holds_pair VALUES (1)", "Write {all X}"),
    ]);
}

#[test]
fn d_copy_with_a_condition() {
    check(&[
        ("COPY plain FROM STDIN WHERE change_it(id) > 0", "Write {all X}"),
        ("COPY plain (id) FROM STDIN WHERE id ### 1 > 0", "Write {all X}"),
        (
            "COPY plain (id) FROM STDIN WHERE lower(value) = 'x'",
            "Write {table:public.plain X}",
        ),
    ]);
    let data = Exchange::CopyData {
        data: Bytes::from_static(b"1\n"),
    };
    assert!(!analyzer().exchange(&data, &context()).expect("passes").short);
}
