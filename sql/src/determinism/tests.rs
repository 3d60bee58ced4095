use super::*;

fn spliced(text: &str, purpose: Purpose) -> String {
    let tokens = tokenize(text).expect("lexes");
    let findings = inspect(text, &tokens, purpose);
    assert_eq!(findings.refusal, None, "{text}");
    apply(text, 0..text.len(), &findings.splices)
}

fn refused(text: &str, purpose: Purpose) -> Option<(&'static str, u8)> {
    let tokens = tokenize(text).expect("lexes");
    let refusal = inspect(text, &tokens, purpose).refusal?;
    assert!(refusal.detail.contains("CloudBFT") && !refusal.hint.is_empty());
    Some((refusal.sqlstate, refusal.rule))
}

#[test]
fn rules_1_to_3_clocks_are_replaced() {
    for (text, expected) in [
        ("select now()", "select cloudbft.now()"),
        ("select NOW ( )", "select cloudbft.now ( )"),
        ("select pg_catalog.now()", "select cloudbft.now()"),
        ("select \"now\"()", "select cloudbft.now()"),
        (
            "select transaction_timestamp(), statement_timestamp(), clock_timestamp(), timeofday()",
            "select cloudbft.transaction_timestamp(), cloudbft.statement_timestamp(), cloudbft.clock_timestamp(), cloudbft.timeofday()",
        ),
        ("select CURRENT_TIMESTAMP", "select cloudbft.\"current_timestamp\"()"),
        (
            "select current_timestamp(3), current_date",
            "select CAST(cloudbft.\"current_timestamp\"() AS pg_catalog.timestamptz(3)), cloudbft.\"current_date\"()",
        ),
        (
            "select current_time, localtime(0), localtimestamp",
            "select cloudbft.\"current_time\"(), CAST(cloudbft.\"localtime\"() AS pg_catalog.time(0)), cloudbft.\"localtimestamp\"()",
        ),
        (
            "insert into t values (CURRENT_TIMESTAMP)",
            "insert into t values (cloudbft.\"current_timestamp\"())",
        ),
    ] {
        assert_eq!(spliced(text, Purpose::Read), expected);
    }
}

#[test]
fn columns_that_each_server_fills_by_itself_are_those_of_a_new_table() {
    for (text, expected) in [
        (
            "select c.relpages, relfrozenxid as f, pg_class.reltuples::bigint from pg_class c order by c.relpages",
            "select cloudbft.relpages(c.relpages), cloudbft.relfrozenxid(relfrozenxid) as f, \
             cloudbft.reltuples(pg_class.reltuples)::bigint from pg_class c order by cloudbft.relpages(c.relpages)",
        ),
        (
            "select pg_catalog.pg_database.\"datminmxid\" from pg_catalog.pg_database",
            "select cloudbft.datminmxid(pg_catalog.pg_database.\"datminmxid\") from pg_catalog.pg_database",
        ),
        ("select relpages from t", "select relpages from t"),
        (
            "select oid as relpages from pg_class",
            "select oid as relpages from pg_class",
        ),
        ("select relpages(1) from pg_class", "select relpages(1) from pg_class"),
    ] {
        assert_eq!(spliced(text, Purpose::Read), expected);
        let tokens = tokenize(text).expect("lexes");
        assert!(!inspect(text, &tokens, Purpose::Read).needs_clock, "{text}");
    }
}

#[test]
fn what_only_looks_like_a_clock_stays() {
    for text in [
        "select now from t",
        "select t.now from t",
        "select other.now()",
        "select 'now()', $$now()$$ -- now()",
        "select \"current_date\" from t",
        "select 1 as current_date",
        "insert into now (a) values (1)",
        "select t.current_date from t",
        "select age(a, b)",
        "select random from t",
        "select 'today'",
        "select 'today'::text",
        "select currentdate, nowhere()",
    ] {
        assert_eq!(spliced(text, Purpose::Read), text);
    }
}

#[test]
fn rule_4_date_words_are_replaced_where_the_text_has_their_type() {
    let moment = |word: &str| format!("(cloudbft.moment('{word}') OPERATOR(pg_catalog.+) '0'::pg_catalog.interval)");
    for (text, expected) in [
        (
            "select 'now'::timestamp",
            format!("select {}::timestamp", moment("now")),
        ),
        (
            "select ' Today '::pg_catalog.date",
            format!("select {}::pg_catalog.date", moment("today")),
        ),
        (
            "select cast('tomorrow' as date)",
            format!("select cast({} as date)", moment("tomorrow")),
        ),
        (
            "select date 'yesterday'",
            format!("select CAST({} AS date)", moment("yesterday")),
        ),
        (
            "select timestamp(3) with time zone 'now'",
            format!("select CAST({} AS timestamp(3) with time zone)", moment("now")),
        ),
    ] {
        assert_eq!(spliced(text, Purpose::Read), expected);
    }
}

#[test]
fn rule_5_age_with_one_argument_is_replaced() {
    assert_eq!(spliced("select age(a)", Purpose::Read), "select cloudbft.age(a)");
    assert_eq!(
        spliced("select age(f(a, b))", Purpose::Read),
        "select cloudbft.age(f(a, b))"
    );
    assert_eq!(spliced("select age(a, b)", Purpose::Read), "select age(a, b)");
}

#[test]
fn rules_6_and_7_random_sources_are_replaced_or_refused() {
    assert_eq!(
        spliced("select random(), gen_random_uuid()", Purpose::Write),
        "select cloudbft.random(), cloudbft.gen_random_uuid()"
    );
    assert_eq!(
        spliced("select public.uuid_generate_v4()", Purpose::Write),
        "select cloudbft.uuid_generate_v4()"
    );
    assert_eq!(refused("select setseed(0.5)", Purpose::Read), Some(("BF002", 6)));
    assert_eq!(refused("select gen_random_bytes(8)", Purpose::Read), Some(("BF002", 7)));
}

#[test]
fn rule_8_defaults_and_bodies_are_replaced() {
    assert_eq!(
        spliced(
            "create table t (a timestamptz default now(), b date default current_date)",
            Purpose::Definition
        ),
        "create table t (a timestamptz default cloudbft.now(), b date default cloudbft.\"current_date\"())"
    );
    assert_eq!(
        spliced(
            "create function f() returns timestamptz language sql as $$ select now() $$",
            Purpose::Definition
        ),
        "create function f() returns timestamptz language sql as $$ select cloudbft.now() $$"
    );
    assert_eq!(
        spliced(
            "create function f() returns date language sql as 'select ''now''::date'",
            Purpose::Definition
        ),
        "create function f() returns date language sql as 'select (cloudbft.moment(''now'') OPERATOR(pg_catalog.+) ''0''::pg_catalog.interval)::date'",
    );
    assert_eq!(
        spliced("do $x$ begin perform random(); end $x$", Purpose::Definition),
        "do $x$ begin perform cloudbft.random(); end $x$"
    );
    assert!(reads_clock("cloudbft.now()") && !is_nondeterministic("cloudbft.now()"));
    assert!(is_nondeterministic("now()") && is_nondeterministic("CURRENT_TIMESTAMP"));
    assert!(!reads_clock("0") && !is_nondeterministic("nextval('a'::regclass)"));
    assert!(draws("cloudbft.gen_random_uuid()") && !draws("cloudbft.now()"));
}

#[test]
fn rules_11_and_12_local_counters_are_refused_in_writes() {
    assert_eq!(refused("select txid_current()", Purpose::Read), Some(("0A000", 11)));
    assert_eq!(
        refused("delete from t where xmin = 1", Purpose::Write),
        Some(("0A000", 11))
    );
    assert_eq!(
        refused(
            "delete from t where ctid in (select ctid from t limit 1)",
            Purpose::Write
        ),
        Some(("0A000", 12))
    );
    assert_eq!(refused("select ctid from t", Purpose::Read), None);
    assert_eq!(
        refused(
            "insert into t values (1) on conflict do nothing returning (xmax = 0) as inserted",
            Purpose::Write
        ),
        None
    );
}

#[test]
fn other_rules_of_functions() {
    for (text, purpose, expected) in [
        ("insert into t values (pg_backend_pid())", Purpose::Write, ("0A000", 32)),
        ("insert into t values (pg_sleep(1))", Purpose::Write, ("0A000", 49)),
        (
            "insert into t values (pg_relation_size('t'))",
            Purpose::Write,
            ("0A000", 32),
        ),
        ("select pg_advisory_lock(1)", Purpose::Read, ("BF004", 36)),
        ("select pg_try_advisory_lock(1)", Purpose::Read, ("BF004", 36)),
        (
            "select count(*) from pg_listening_channels()",
            Purpose::Read,
            ("BF004", 37),
        ),
        ("select lo_import('a')", Purpose::Read, ("42501", 45)),
        ("create view v as select lo_get(1)", Purpose::Definition, ("BF004", 39)),
        (
            "alter table t alter c set default pg_catalog.lo_create(0)",
            Purpose::Definition,
            ("BF004", 39),
        ),
        ("select * from t tablesample system (1)", Purpose::Read, ("0A000", 43)),
        ("select pg_read_file('a')", Purpose::Read, ("42501", 45)),
        (
            "select * from dblink('a', 'b') as x (a int)",
            Purpose::Read,
            ("42501", 45),
        ),
        (
            "select pg_catalog.pg_terminate_backend(1)",
            Purpose::Read,
            ("42501", 45),
        ),
        ("insert into cloudbft.applied values (1)", Purpose::Write, ("42501", 0)),
        ("drop schema cloudbft", Purpose::Definition, ("42501", 0)),
    ] {
        assert_eq!(refused(text, purpose), Some(expected), "{text}");
    }
    for text in [
        "select version(), pg_backend_pid(), pg_sleep(1)",
        "select pg_advisory_xact_lock(1)",
        "select cloudbft.now()",
    ] {
        assert_eq!(refused(text, Purpose::Read), None, "{text}");
    }
}

#[test]
fn rule_44_concurrently_is_left_out() {
    assert_eq!(
        spliced("create index concurrently i on t (a)", Purpose::Definition),
        "create index  i on t (a)"
    );
    assert_eq!(
        spliced("drop index concurrently i", Purpose::Definition),
        "drop index  i"
    );
    assert_eq!(
        spliced("refresh materialized view concurrently v", Purpose::Definition),
        "refresh materialized view concurrently v"
    );
}
