//! What kind of statement each is.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::analyzer;
use sql::operation::Isolation;
use sql::statement::{
    ConfigArgument, ConfigCall, ConfigColumn, Cursor, Direction, Holding, Setting, StatementClass, TransactionControl,
    TransactionModes,
};

fn class(text: &str) -> StatementClass {
    let analysis = analyzer().text(text);
    assert_eq!(analysis.statements.len(), 1, "{text}");
    analysis.statements[0].class.clone()
}

fn control(text: &str) -> TransactionControl {
    match class(text) {
        StatementClass::TransactionControl(control) => control,
        other => panic!("{text}: {other:?}"),
    }
}

fn setting(text: &str) -> Setting {
    match class(text) {
        StatementClass::Setting(setting) => setting,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn transaction_control_in_all_its_forms() {
    use TransactionControl::*;
    let plain = TransactionModes::default();
    for text in [
        "BEGIN",
        "begin work",
        "BEGIN TRANSACTION",
        "START TRANSACTION",
        "BEGIN -- x\n;",
    ] {
        assert_eq!(control(text), Begin(plain), "{text}");
    }
    for (text, isolation) in [
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", Isolation::Serializable),
        ("BEGIN WORK ISOLATION LEVEL REPEATABLE READ", Isolation::RepeatableRead),
        (
            "START TRANSACTION ISOLATION LEVEL READ COMMITTED",
            Isolation::ReadCommitted,
        ),
        (
            "BEGIN TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
            Isolation::ReadCommitted,
        ),
    ] {
        let expected = TransactionModes {
            isolation: Some(isolation),
            ..plain
        };
        assert_eq!(control(text), Begin(expected), "{text}");
    }
    let all = TransactionModes {
        isolation: Some(Isolation::Serializable),
        read_only: Some(true),
        deferrable: Some(true),
    };
    assert_eq!(
        control("BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY DEFERRABLE"),
        Begin(all)
    );
    assert_eq!(
        control("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY, DEFERRABLE"),
        SetTransaction(all)
    );
    assert_eq!(
        control("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE"),
        SetSessionCharacteristics(all)
    );
    for (text, expected) in [
        ("COMMIT", Commit { chain: false }),
        ("END TRANSACTION", Commit { chain: false }),
        ("COMMIT WORK AND CHAIN", Commit { chain: true }),
        ("COMMIT AND NO CHAIN", Commit { chain: false }),
        ("ROLLBACK", Rollback { chain: false }),
        ("ABORT WORK", Rollback { chain: false }),
        ("ROLLBACK AND CHAIN", Rollback { chain: true }),
        ("SAVEPOINT A", Savepoint("a".into())),
        ("SAVEPOINT \"A\"", Savepoint("A".into())),
        ("RELEASE a", Release("a".into())),
        ("RELEASE SAVEPOINT a", Release("a".into())),
        ("ROLLBACK TO a", RollbackTo("a".into())),
        ("ROLLBACK WORK TO SAVEPOINT a", RollbackTo("a".into())),
    ] {
        assert_eq!(control(text), expected, "{text}");
    }
}

#[test]
fn what_is_no_transaction_control_is_left_to_postgres() {
    for text in ["BEGIN nonsense", "COMMIT AND", "SAVEPOINT", "ROLLBACK TO"] {
        assert_eq!(class(text), StatementClass::Write, "{text}");
    }
}

#[test]
fn settings() {
    let set = |local, name: &str, value: Option<&str>| Setting::Set {
        local,
        name: name.into(),
        value: value.map(str::to_owned),
    };
    for (text, expected) in [
        ("SET a = 1", set(false, "a", Some("1"))),
        ("SET A TO 'x''y'", set(false, "a", Some("x'y"))),
        ("SET SESSION a = on", set(false, "a", Some("on"))),
        ("SET LOCAL a = -1.5", set(true, "a", Some("-1.5"))),
        ("SET a TO DEFAULT", set(false, "a", None)),
        (
            "SET search_path TO a, \"B\", 'c d'",
            set(false, "search_path", Some("a, \"B\", \"c d\"")),
        ),
        ("SET datestyle = ISO, MDY", set(false, "datestyle", Some("iso, mdy"))),
        (
            "SET TIME ZONE 'Europe/Berlin'",
            set(false, "timezone", Some("Europe/Berlin")),
        ),
        ("SET TIME ZONE LOCAL", set(false, "timezone", None)),
        ("SET NAMES 'UTF8'", set(false, "client_encoding", Some("UTF8"))),
        ("SET ROLE bob", set(false, "role", Some("bob"))),
        ("SET LOCAL ROLE none", set(true, "role", Some("none"))),
        ("SET SCHEMA 'x'", set(false, "search_path", Some("x"))),
        (
            "SET SESSION AUTHORIZATION bob",
            set(false, "session_authorization", Some("bob")),
        ),
        (
            "SET cloudbft.reads = 'session'",
            set(false, "cloudbft.reads", Some("session")),
        ),
        ("RESET a", Setting::Reset("a".into())),
        ("RESET TIME ZONE", Setting::Reset("timezone".into())),
        ("RESET ALL", Setting::ResetAll),
        ("DISCARD ALL", Setting::DiscardAll),
        ("DISCARD PLANS", Setting::DiscardOther),
        ("SHOW a", Setting::Show("a".into())),
        (
            "SHOW TRANSACTION ISOLATION LEVEL",
            Setting::Show("transaction_isolation".into()),
        ),
        ("SHOW ALL", Setting::ShowAll),
        (
            "SELECT pg_catalog.set_config('search_path', '', false)",
            Setting::SetConfig {
                local: false,
                name: "search_path".into(),
                value: String::new(),
            },
        ),
    ] {
        assert_eq!(setting(text), expected, "{text}");
    }
    assert_eq!(class("SET CONSTRAINTS ALL DEFERRED"), StatementClass::Write);
}

#[test]
fn lists_of_calls_about_settings() {
    let literal = |text: &str| ConfigArgument::Literal(text.into());
    let column = |name: &str, call| ConfigColumn {
        name: name.into(),
        call,
    };
    let set = |name, value, local| ConfigCall::Set { name, value, local };
    let text = "select set_config('A.b', $1, true), pg_catalog.set_config($2::text, NULL, $3) x, current_setting('jit') AS \"Cur\"";
    let expected = vec![
        column(
            "set_config",
            set(literal("A.b"), ConfigArgument::Parameter(1), literal("true")),
        ),
        column(
            "x",
            set(
                ConfigArgument::Parameter(2),
                ConfigArgument::Null,
                ConfigArgument::Parameter(3),
            ),
        ),
        column(
            "Cur",
            ConfigCall::Show {
                name: literal("jit"),
                may_lack: literal("false"),
            },
        ),
    ];
    assert_eq!(class(text), StatementClass::Setting(Setting::Configs(expected)));
    let refused = |text: &str| match class(text) {
        StatementClass::Refused(refusal) => refusal.sqlstate,
        class => panic!("{text}: {class:?}"),
    };
    for text in [
        "SELECT set_config('jit', 'on', false)",
        "SELECT current_setting('jit'), set_config('JIT', 'on', false)",
        "SELECT set_config('standard_conforming_strings', 'off', $1)",
    ] {
        assert_eq!(refused(text), "55P02", "{text}");
    }
    for text in [
        "SELECT set_config('a.b', v, false) FROM plain",
        "SELECT set_config('a.b', 'x' || $1, false)",
        "SELECT set_config('a.b', 'x', false), 1",
        "SELECT set_config('a.b', E'\\x41', false)",
        "SELECT set_config(((((('a.b'))))), 'x', false)",
    ] {
        assert_eq!(refused(text), "BF004", "{text}");
    }
    assert_eq!(class("SELECT current_setting('jit')"), StatementClass::Read);
}

#[test]
fn other_classes() {
    let declared = |name: &str, holding| {
        StatementClass::Cursor(Cursor::Declare {
            name: name.into(),
            holding,
        })
    };
    let held = |scrolls, binary| Some(Holding { scrolls, binary });
    for (text, expected) in [
        ("", StatementClass::Empty),
        ("/* x */ ;", StatementClass::Empty),
        ("(SELECT 1) UNION (SELECT 2)", StatementClass::Read),
        ("DECLARE C CURSOR FOR SELECT * FROM plain", declared("c", None)),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", declared("c", None)),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            declared("c", held(true, false)),
        ),
        (
            "DECLARE \"C\" BINARY INSENSITIVE NO SCROLL CURSOR WITH HOLD FOR TABLE plain",
            declared("C", held(false, true)),
        ),
        // Postgres refuses these.
        (
            "DECLARE c SCROLL NO SCROLL CURSOR WITH HOLD FOR SELECT 1",
            declared("c", held(false, false)),
        ),
        ("DECLARE c CURSOR WITH HOLD SELECT 1", declared("c", None)),
        (
            "FETCH 5 FROM c",
            StatementClass::Cursor(Cursor::Fetch {
                name: "c".into(),
                direction: Some(Direction::Forward(Some(5))),
            }),
        ),
        (
            "MOVE BACKWARD ALL IN c",
            StatementClass::Cursor(Cursor::Move {
                name: "c".into(),
                direction: Some(Direction::Backward(None)),
            }),
        ),
        ("CLOSE c", StatementClass::Cursor(Cursor::Close(Some("c".into())))),
        ("CLOSE ALL", StatementClass::Cursor(Cursor::Close(None))),
        ("EXECUTE q (1)", StatementClass::Execute { name: "q".into() }),
        ("DEALLOCATE PREPARE q", StatementClass::Deallocate(Some("q".into()))),
        ("DEALLOCATE ALL", StatementClass::Deallocate(None)),
        (
            "VACUUM (ANALYZE) plain",
            StatementClass::Maintenance {
                outside_transaction: true,
            },
        ),
        (
            "ANALYZE",
            StatementClass::Maintenance {
                outside_transaction: false,
            },
        ),
        (
            "REINDEX TABLE plain",
            StatementClass::Maintenance {
                outside_transaction: false,
            },
        ),
        (
            "REINDEX DATABASE d",
            StatementClass::Maintenance {
                outside_transaction: true,
            },
        ),
        ("CREATE TABLE t (a int)", StatementClass::Ddl),
        ("ALTER TABLE t ADD PRIMARY KEY (a)", StatementClass::Ddl),
        ("GRANT SELECT ON t TO bob", StatementClass::Ddl),
        ("SELECT 1 INTO t", StatementClass::Ddl),
        ("EXPLAIN SELECT 1", StatementClass::Read),
        ("EXPLAIN ANALYZE SELECT 1", StatementClass::Write),
        ("COPY plain FROM STDIN", StatementClass::CopyFrom),
        ("COPY plain TO STDOUT", StatementClass::CopyTo),
        ("LOCK TABLE plain", StatementClass::Write),
    ] {
        assert_eq!(class(text), expected, "{text}");
    }
    let prepared = StatementClass::Prepare {
        name: "q".into(),
        body: "SELECT $1".into(),
    };
    assert_eq!(class("PREPARE q (int) AS SELECT $1"), prepared);
}

/// Before these run, all servers are brought to number objects alike (rule ObjectNumbers). Nothing else pays for that.
#[test]
fn what_makes_objects_is_numbered_and_nothing_else() {
    let numbers = |text: &str| {
        let exchange = sql::operation::Exchange::Simple { text: text.into() };
        let analysis = analyzer().exchange(&exchange, &sql::operation::SessionContext::default());
        analysis.expect(text).numbers_objects
    };
    for text in [
        "CREATE TABLE made (id int)",
        "CREATE TYPE made AS ENUM ('a')",
        "CREATE TEMP TABLE made (id int)",
        "SELECT 1 AS a INTO made",
        "ALTER TYPE made ADD VALUE 'b'",
        "CREATE INDEX ON item (i_name)",
        "INSERT INTO item VALUES (1); ALTER TABLE item ADD c int",
        "DO $$BEGIN CREATE TABLE made (id int); END$$",
    ] {
        assert!(numbers(text), "{text}");
    }
    for text in [
        "",
        "SELECT 1",
        "INSERT INTO item VALUES (1)",
        "TRUNCATE item",
        "DROP TABLE IF EXISTS made",
        "COMMENT ON TABLE item IS 'x'",
        "GRANT SELECT ON item TO PUBLIC",
        "VACUUM",
        "SET search_path = public",
    ] {
        assert!(!numbers(text), "{text}");
    }
}
