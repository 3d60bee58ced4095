//! Temporary objects: ordinary ones in a schema of the session's (rule TemporaryTables).

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;

use common::{CATALOG, describe, rules};
use sql::analysis::{Analyzer, ExchangeAnalysis};
use sql::names::{AtCommit, Made};
use sql::operation::{Exchange, SessionContext};
use sql::refusal::Refusal;
use sql::schema::Schema;
use sql::statement::Effect;

/// The session of these tests: its schema is `pg_cloudbft_temp_1_5`.
fn context() -> SessionContext {
    SessionContext {
        client: 1,
        session: 5,
        ..common::context()
    }
}

/// A catalog in which the session has the temporary tables `plain` and `staging`, and a sequence.
fn analyzer() -> Analyzer {
    let plain = CATALOG
        .lines()
        .find(|line| line.contains("\"name\": \"plain\""))
        .expect("it is there");
    let shadowing = plain.replace("\"schema\": \"public\"", "\"schema\": \"pg_cloudbft_temp_1_5\"");
    let other = shadowing.replace("\"name\": \"plain\"", "\"name\": \"staging\"");
    let own = [
        r#"{"name": "pg_cloudbft_temp_1_5", "object": "schema"}"#,
        r#"{"name": "pg_cloudbft_temp_2_9", "object": "schema"}"#,
        r#"{"name": "places", "object": "sequence", "schema": "pg_cloudbft_temp_1_5"}"#,
        &shadowing,
        &other,
    ];
    let rows = CATALOG.lines().chain(own);
    Analyzer::new(Arc::new(Schema::parse(rows, &rules()).expect("a catalog")))
}

fn simple(analyzer: &Analyzer, context: &SessionContext, text: &str) -> Result<ExchangeAnalysis, Refusal> {
    analyzer.exchange(&Exchange::Simple { text: text.into() }, context)
}

fn executable(analyzer: &Analyzer, context: &SessionContext, text: &str) -> String {
    match simple(analyzer, context, text) {
        Ok(analysis) => analysis.texts[0]
            .executable()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        Err(refusal) => format!("{} {}", refusal.sqlstate, refusal.message),
    }
}

fn check(analyzer: &Analyzer, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(executable(analyzer, &context(), text), *expected, "{text}");
    }
}

#[test]
fn what_is_temporary_is_made_in_the_sessions_schema() {
    let created = |name: &str| format!("CREATE {name}");
    let cases = [
        ("CREATE TEMP TABLE t (a int)", "TABLE pg_cloudbft_temp_1_5.t (a int)"),
        (
            "CREATE LOCAL TEMPORARY TABLE IF NOT EXISTS \"T\" ()",
            "TABLE IF NOT EXISTS pg_cloudbft_temp_1_5.\"T\" ()",
        ),
        ("CREATE TABLE pg_temp.t (a int)", "TABLE pg_cloudbft_temp_1_5.t (a int)"),
        (
            "CREATE TEMP TABLE pg_temp.t (a int)",
            "TABLE pg_cloudbft_temp_1_5.t (a int)",
        ),
        (
            "CREATE TEMP TABLE t (LIKE plain)",
            "TABLE pg_cloudbft_temp_1_5.t (LIKE plain)",
        ),
        (
            "CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1",
            "TABLE pg_cloudbft_temp_1_5.t AS SELECT 1",
        ),
        (
            "CREATE TEMP TABLE t (a int) ON COMMIT DELETE ROWS",
            "TABLE pg_cloudbft_temp_1_5.t (a int)",
        ),
        (
            "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
            "OR REPLACE VIEW pg_cloudbft_temp_1_5.v AS SELECT 1",
        ),
        (
            "CREATE TEMP SEQUENCE s CACHE 10",
            "SEQUENCE pg_cloudbft_temp_1_5.s CACHE 1",
        ),
    ];
    let analyzer = Analyzer::new(Arc::new(Schema::empty()));
    for (text, expected) in cases {
        assert_eq!(executable(&analyzer, &context(), text), created(expected), "{text}");
    }
    check(
        &analyzer,
        &[
            (
                "SELECT 1 INTO TEMP TABLE t",
                "SELECT 1 INTO TABLE pg_cloudbft_temp_1_5.t",
            ),
            (
                "WITH x AS (SELECT 1) SELECT * INTO TEMPORARY t FROM x",
                "WITH x AS (SELECT 1) SELECT * INTO pg_cloudbft_temp_1_5.t FROM x",
            ),
            (
                "CREATE TEMP TABLE public.t ()",
                "42P16 cannot create temporary relation in non-temporary schema",
            ),
            (
                "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'select 1'",
                "BF004 only tables, views and sequences can be temporary through the proxy",
            ),
        ],
    );
    let made = |text| {
        let analysis = simple(&analyzer, &context(), text).expect("it can run");
        assert_eq!(
            (analysis.effect, analysis.has_temporary),
            (Effect::Ddl, false),
            "{text}"
        );
        assert!(analysis.footprint == sql::footprint::Footprint::everything());
        analysis.temporary.made
    };
    assert_eq!(
        made("create temp table t () on commit drop"),
        [("t".to_string(), AtCommit::Drop)]
    );
    assert_eq!(
        made("create temp table t (a int) on commit delete rows"),
        [("t".to_string(), AtCommit::Empty)]
    );
    assert_eq!(
        made("select 1 as a into temp \"T\""),
        [("T".to_string(), AtCommit::Keep)]
    );
    assert_eq!(made("create table pg_temp.t()"), [("t".to_string(), AtCommit::Keep)]);
}

#[test]
fn words_that_only_look_temporary_stay() {
    let analyzer = Analyzer::new(Arc::new(Schema::empty()));
    for text in [
        "SELECT temp FROM weather",
        "CREATE TABLE temp (temporary int)",
        "INSERT INTO temp VALUES (1)",
        "SELECT 1 INTO temp FROM x",
        "SELECT 'pg_temp.x', \"pg_temp\" FROM x",
        "SELECT '(create temp table x)'",
    ] {
        assert_eq!(executable(&analyzer, &context(), text), text);
        let analysis = simple(&analyzer, &context(), text).expect("it can run");
        assert!(!analysis.temporary.makes(), "{text}");
    }
}

#[test]
fn what_would_differ_is_refused_in_temporary_tables_too() {
    let analyzer = analyzer();
    let refused = |text| describe(simple(&analyzer, &context(), text));
    assert_eq!(
        refused("CREATE TEMP TABLE x AS SELECT h_c_id FROM history LIMIT 3"),
        "BF002 rule 16"
    );
    assert_eq!(
        refused("SELECT sum(h_amount::float8) INTO TEMP x FROM history"),
        "BF002 rule 20"
    );
    assert_eq!(
        refused("CREATE TEMP TABLE x AS SELECT random() AS r FROM plain"),
        "BF002 rule 8"
    );
}

#[test]
fn names_mean_the_sessions_own_first() {
    let analyzer = analyzer();
    let asked = |context: &SessionContext, text: &str| describe(simple(&analyzer, context, text));
    let own = "table:pg_cloudbft_temp_1_5";
    for (text, expected) in [
        ("SELECT * FROM plain WHERE id = 1", format!("Read {{{own}.plain S}}")),
        (
            "SELECT * FROM public.plain WHERE id = 1",
            common::buckets("Read {row:public.plain#[1] S}"),
        ),
        ("SELECT * FROM pg_temp.plain", format!("Read {{{own}.plain S}}")),
        (
            "SELECT * FROM pg_cloudbft_temp_1_5.plain",
            format!("Read {{{own}.plain S}}"),
        ),
        (
            "UPDATE plain SET value = 'x' WHERE id = 1",
            format!("Write {{{own}.plain X}}"),
        ),
        (
            "INSERT INTO staging (id) VALUES (1)",
            format!("Write {{{own}.staging X}}"),
        ),
        ("DELETE FROM staging", format!("Write {{{own}.staging X}}")),
        ("COPY staging FROM STDIN", format!("Write {{{own}.staging X}}")),
        ("COPY pg_temp.staging TO STDOUT", format!("Read {{{own}.staging S}}")),
        (
            "SELECT nextval('places')",
            "Write {sequence:pg_cloudbft_temp_1_5.places X}".into(),
        ),
        (
            "SELECT nextval('pg_temp.places')",
            "Write {sequence:pg_cloudbft_temp_1_5.places X}".into(),
        ),
        (
            "INSERT INTO warehouse (w_id) SELECT id FROM staging",
            "Write {all X}".into(),
        ),
    ] {
        assert_eq!(asked(&context(), text), expected, "{text}");
    }
    let stranger = SessionContext {
        session: 6,
        ..context()
    };
    assert_eq!(
        asked(&stranger, "SELECT * FROM plain WHERE id = 1"),
        common::buckets("Read {row:public.plain#[1] S}")
    );
    assert_eq!(
        asked(&common::context(), "SELECT * FROM plain WHERE id = 1"),
        common::buckets("Read {row:public.plain#[1] S}")
    );
    // What is kept of one session's texts is not taken for another's.
    assert_eq!(
        asked(&context(), "SELECT * FROM plain WHERE id = 1"),
        format!("Read {{{own}.plain S}}")
    );
    let short = |text| simple(&analyzer, &context(), text).expect("it can run").short;
    assert!(
        short("INSERT INTO staging (id) VALUES (1)"),
        "a write of one row is short there too"
    );
}

#[test]
fn nobody_names_the_objects_of_another_session() {
    let analyzer = analyzer();
    for text in [
        "SELECT * FROM pg_cloudbft_temp_2_9.x",
        "SELECT * FROM \"pg_cloudbft_temp_2_9\".x",
        "DROP SCHEMA pg_cloudbft_temp_2_9 CASCADE",
        "SELECT nextval('pg_cloudbft_temp_2_9.s')",
        "SELECT nextval('\"pg_cloudbft_temp_2_9\".s')",
        "SELECT nextval($$pg_cloudbft_temp_2_9.s$$)",
        "CREATE TEMP VIEW v AS SELECT * FROM pg_cloudbft_temp_2_9.x",
    ] {
        let refused = describe(simple(&analyzer, &context(), text));
        assert_eq!(refused, "0A000 rule 34", "{text}");
    }
    for text in [
        "SELECT 'pg_cloudbft_temp_2_9'",
        "SELECT * FROM pg_temp.x",
        "SELECT * FROM pg_cloudbft_temp_1_5.x",
    ] {
        assert!(simple(&analyzer, &context(), text).is_ok(), "{text}");
    }
}

#[test]
fn permanent_objects_are_made_where_postgres_makes_them() {
    let with_path = |path: &str| SessionContext {
        settings: vec![("search_path".into(), path.into())],
        ..context()
    };
    let analyzer = analyzer();
    check(
        &analyzer,
        &[
            ("CREATE TABLE t (a int)", "CREATE TABLE \"public\".t (a int)"),
            ("CREATE TABLE shop.t (a int)", "CREATE TABLE shop.t (a int)"),
            (
                "CREATE TABLE t AS SELECT id FROM plain",
                "CREATE TABLE \"public\".t AS SELECT id FROM plain",
            ),
            (
                "SELECT id INTO t FROM staging",
                "SELECT id INTO \"public\".t FROM staging",
            ),
            ("CREATE VIEW v AS SELECT 1", "CREATE VIEW \"public\".v AS SELECT 1"),
            (
                "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'select 1'",
                "CREATE OR REPLACE FUNCTION \"public\".f() RETURNS int LANGUAGE sql AS 'select 1'",
            ),
            (
                "CREATE TYPE mood AS ENUM ('a')",
                "CREATE TYPE \"public\".mood AS ENUM ('a')",
            ),
            (
                "CREATE OPERATOR ==> (FUNCTION = f)",
                "CREATE OPERATOR \"public\".==> (FUNCTION = f)",
            ),
            (
                "CREATE EXTENSION IF NOT EXISTS pg_trgm",
                "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA \"public\"",
            ),
            ("CREATE INDEX i ON plain (value)", "CREATE INDEX i ON plain (value)"),
            // PostgreSQL makes a view of temporary tables temporary.
            (
                "CREATE VIEW v AS SELECT * FROM plain",
                "CREATE VIEW pg_cloudbft_temp_1_5.v AS SELECT * FROM plain",
            ),
            (
                "CREATE VIEW v AS SELECT plain.id FROM public.plain",
                "CREATE VIEW \"public\".v AS SELECT plain.id FROM public.plain",
            ),
        ],
    );
    let table = "CREATE TABLE t ()";
    assert_eq!(
        executable(&analyzer, &with_path("nowhere, shop, public"), table),
        "CREATE TABLE \"shop\".t ()"
    );
    let unknown = "BF004 in a session with temporary objects it is not clear in which schema this would be made";
    assert_eq!(executable(&analyzer, &with_path("nowhere"), table), unknown);
    let stranger = SessionContext {
        session: 6,
        ..context()
    };
    assert_eq!(executable(&analyzer, &stranger, table), table);
}

#[test]
fn what_a_transaction_has_made_counts_before_the_catalog_knows_it() {
    let analyzer = Analyzer::new(Arc::new(Schema::parse(CATALOG.lines(), &rules()).expect("a catalog")));
    let ask = |text: &str, made: &Made| {
        let exchange = Exchange::Simple { text: text.into() };
        analyzer.exchange_within(&exchange, &context(), made)
    };
    let mut made = Made::default();
    let order = "DELETE FROM plain WHERE id IN (SELECT id FROM plain ORDER BY id LIMIT 1)";
    assert!(ask(order, &made).is_ok(), "the permanent table has a key");
    let created = ask("CREATE TEMP TABLE plain (id int)", &made).expect("it can run");
    made.add(&created.temporary);
    assert_eq!(
        describe(ask(order, &made)),
        "BF002 rule 16",
        "of the temporary one nothing is known"
    );
    assert_eq!(describe(ask("SELECT * FROM plain", &made)), "Read {all S}");
    // Relations that the transaction has changed are known by name alone.
    assert_eq!(describe(ask("SELECT * FROM public.plain", &made)), "Read {all S}");
    assert_eq!(
        describe(ask("SELECT * FROM public.child", &made)),
        "Read {table:public.child S}"
    );
    let table = ask("CREATE TABLE t ()", &made).expect("it can run");
    assert_eq!(table.texts[0].executable(), "CREATE TABLE \"public\".t ()");
    // One text is read in the same way.
    let text = ask(
        "CREATE TEMP TABLE x (id int); CREATE TABLE t AS SELECT id FROM x",
        &Made::default(),
    )
    .expect("it can run");
    assert!(
        text.texts[0]
            .executable()
            .ends_with("CREATE TABLE \"public\".t AS SELECT id FROM x")
    );
    let path = |text, made: &mut Made| {
        let set = ask(text, made).expect("it can run");
        made.add(&set.temporary);
        let made = ask("CREATE TABLE t ()", made);
        made.map(|analysis| analysis.texts[0].executable().to_owned())
            .unwrap_or_else(|refusal| refusal.sqlstate.into())
    };
    let set = "SELECT pg_catalog.set_config('search_path', 'shop', true)";
    assert_eq!(path(set, &mut made), "CREATE TABLE \"shop\".t ()");
    assert_eq!(
        path("SET LOCAL search_path TO DEFAULT", &mut made),
        "CREATE TABLE \"public\".t ()"
    );
    assert_eq!(
        path("ROLLBACK TO SAVEPOINT s", &mut made),
        "BF004",
        "where is not known"
    );
}

#[test]
fn a_session_sees_its_objects_as_temporary() {
    let analyzer = analyzer();
    check(
        &analyzer,
        &[
            (
                "SELECT current_schema(), pg_catalog.current_schemas(true)",
                "SELECT cloudbft.current_schema(), cloudbft.current_schemas(true)",
            ),
            ("SELECT CURRENT_SCHEMA", "SELECT cloudbft.current_schema()"),
            ("SELECT pg_my_temp_schema()", "SELECT cloudbft.pg_my_temp_schema()"),
            (
                "SELECT c.relpersistence FROM pg_catalog.pg_class c",
                "SELECT cloudbft.relpersistence(c.relpersistence, c.relnamespace) FROM pg_catalog.pg_class c",
            ),
            (
                "SELECT relname FROM pg_class WHERE relpersistence = 't'",
                "SELECT relname FROM pg_class WHERE cloudbft.relpersistence(relpersistence, relnamespace) = 't'",
            ),
            (
                "SELECT x.relpersistence FROM (SELECT c.relpersistence FROM pg_class c) x",
                "SELECT x.relpersistence FROM (SELECT cloudbft.relpersistence(c.relpersistence, c.relnamespace) FROM pg_class c) x",
            ),
            (
                "SELECT to_regclass('pg_temp.x'), 'pg_temp.x'::regclass",
                "SELECT to_regclass('pg_cloudbft_temp_1_5.x'), 'pg_cloudbft_temp_1_5.x'::regclass",
            ),
            ("SELECT length('pg_temp.x')", "SELECT length('pg_temp.x')"),
        ],
    );
    let discard = simple(&analyzer, &context(), "DISCARD TEMP").expect("it can run");
    assert!(discard.temporary.discards && discard.effect == Effect::Ddl && !discard.foreign_code);
}
