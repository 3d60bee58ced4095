//! Properties: nothing panics or takes long, and a narrow footprint is the key that was put in.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::{analyzer, bound, simple};
use proptest::prelude::*;
use sql::footprint::{Footprint, Mode, PartitionKey, PartitionValue, Resource};

const LONGEST: Duration = Duration::from_secs(5);

fn warehouse(key: i64) -> Resource {
    Resource::Partition(PartitionKey {
        family: "warehouse".into(),
        value: PartitionValue::Integer(key),
    })
}

fn pieces() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "SELECT",
        "FROM",
        "warehouse",
        "WHERE",
        "w_id",
        "=",
        "1",
        "$1",
        "(",
        ")",
        "'a'",
        "'",
        "\"",
        "--",
        "/*",
        "*/",
        "\n",
        ",",
        "INSERT INTO",
        "VALUES",
        "UPDATE",
        "SET",
        "DELETE",
        "AND",
        "OR",
        "NOT",
        "IN",
        "now()",
        "CURRENT_DATE",
        "$$",
        "E'",
        "\\",
        "BEGIN",
        "ATOMIC",
        "END",
        "CREATE FUNCTION",
        ";",
        "::",
        "timestamp 'now'",
        "AS",
        "WITH",
        "LIMIT",
        "ORDER BY",
        "COPY",
        "age(",
        "é",
        "\u{0}",
        "U&\"",
        "[",
        "]",
        "JOIN",
        "ON",
        "LEFT",
        "stock",
        "s_w_id",
        "FOR UPDATE",
        "-",
        "+",
        ".",
        "..",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_texts_are_analysed(text in ".{0,200}") {
        let analyzer = analyzer_once();
        let analysis = analyzer.text(&text);
        prop_assert!(!analysis.statements.is_empty());
    }

    #[test]
    fn shuffled_sql_is_analysed(text in pieces()) {
        let analyzer = analyzer_once();
        let start = Instant::now();
        let analysis = analyzer.text(&text);
        prop_assert!(start.elapsed() < LONGEST);
        for statement in &analysis.statements {
            prop_assert!(text.get(statement.range.clone()).is_some());
        }
    }

    /// Of a text that was not parsed nothing is proven; what is proven to be short or plain runs no code of users.
    #[test]
    fn short_and_plain_imply_no_foreign_code(text in pieces()) {
        let analyzer = analyzer_once();
        for statement in &analyzer.text(&text).statements {
            prop_assert!(!(statement.foreign_code && (statement.short || statement.plain_read)), "{}", text);
        }
        if let Ok(analysis) = simple(analyzer, &text) {
            prop_assert!(!(analysis.foreign_code && (analysis.short || analysis.plain_read)), "{}", text);
        }
        // The parser is known not to read it.
        let unparsed = format!("SELECT 1 FROM warehouse WHERE w_id NOTNULL AND ({text})");
        if let Ok(analysis) = simple(analyzer, &unparsed)
            && analyzer.text(&unparsed).statements.len() == 1
            && !text.contains("--")
            && !text.contains("/*")
        {
            prop_assert!(analysis.foreign_code && !analysis.short && !analysis.plain_read, "{}", unparsed);
        }
    }

    #[test]
    fn a_narrow_footprint_is_the_key(key in any::<i32>(), other in any::<i32>(), shape in 0..10_usize) {
        let analyzer = analyzer_once();
        let (key, other) = (i64::from(key), i64::from(other));
        let (text, mode) = match shape {
            0 => (format!("SELECT * FROM stock WHERE s_i_id = {other} AND s_w_id = {key}"), Mode::Shared),
            1 => (format!("UPDATE district SET d_next_o_id = {other} WHERE d_w_id = {key} AND d_id = {other}"), Mode::Exclusive),
            2 => (format!("INSERT INTO orders (o_id, o_w_id) VALUES ({other}, {key})"), Mode::Exclusive),
            3 => (format!("DELETE FROM new_order WHERE no_w_id = {key} AND no_o_id IN ({other}, 2)"), Mode::Exclusive),
            4 => (format!("SELECT 1 FROM customer, warehouse WHERE w_id = c_w_id AND c_w_id = {key} AND c_id > {other}"), Mode::Shared),
            5 => (format!("SELECT 1 FROM district WHERE d_w_id = {key} AND d_id <> {other} FOR UPDATE"), Mode::Exclusive),
            6 => (format!("WITH x AS (SELECT {other} AS y) SELECT * FROM x, stock WHERE s_w_id = '{key}' AND s_i_id = y"), Mode::Shared),
            7 => (format!("INSERT INTO new_order SELECT {key}, o_d_id, {other} FROM orders WHERE o_w_id = {key}"), Mode::Exclusive),
            8 => (format!("SELECT 1 FROM orders o LEFT JOIN order_line l ON l.ol_w_id = o.o_w_id WHERE o.o_w_id = {key} AND o_id = {other}"), Mode::Shared),
            _ => (format!("INSERT INTO warehouse VALUES ({key}) ON CONFLICT (w_id) DO UPDATE SET w_ytd = {other}"), Mode::Exclusive),
        };
        let analysis = simple(analyzer, &text).expect("passes");
        prop_assert_eq!(analysis.footprint, Footprint::of(warehouse(key), mode), "{}", text);
    }

    #[test]
    fn a_bound_key_is_the_key(key in any::<i64>()) {
        let text = "UPDATE warehouse SET w_ytd = w_ytd + $2 WHERE w_id = $1";
        let analysis = bound(analyzer_once(), text, &[20, 0], &[Some(&key.to_string()), Some("1")]).expect("passes");
        prop_assert_eq!(analysis.footprint, Footprint::of(warehouse(key), Mode::Exclusive));
    }

    /// Whatever is put around the condition: the footprint covers the key's partition when the key is compared.
    #[test]
    fn mutated_conditions_never_lose_the_key(condition in pieces()) {
        let text = format!("UPDATE warehouse SET w_ytd = 1 WHERE w_id = 5 OR {condition}");
        let analysis = analyzer_once().text(&text);
        // With an OR at the top no narrow footprint may come out of the first statement.
        if let Ok(found) = simple(analyzer_once(), &text)
            && analysis.statements.len() == 1
            && !condition.contains("--")
            && !condition.contains("/*")
            && !condition.trim().is_empty()
        {
            prop_assert!(found.footprint.covers(&Footprint::of(warehouse(6), Mode::Exclusive)), "{}: {}", text, found.footprint);
        }
    }
}

fn analyzer_once() -> &'static sql::analysis::Analyzer {
    static ANALYZER: std::sync::OnceLock<sql::analysis::Analyzer> = std::sync::OnceLock::new();
    ANALYZER.get_or_init(analyzer)
}

#[test]
fn hostile_texts_end_soon() {
    let analyzer = analyzer();
    let nested =
        |open: &str, close: &str, times: usize| format!("SELECT {}1{}", open.repeat(times), close.repeat(times));
    let texts = [
        nested("(", ")", 100_000),
        nested("(", ")", 2_000),
        nested("(SELECT ", ")", 10_000),
        nested("CASE WHEN true THEN ", " END", 5_000),
        nested("NOT ", "", 50_000),
        nested("- ", "", 50_000),
        nested("f(", ")", 5_000),
        nested("ARRAY[", "]", 5_000),
        format!(
            "SELECT 1 FROM warehouse WHERE {} true",
            "w_id = w_id AND ".repeat(10_000)
        ),
        format!("SELECT 1 FROM warehouse WHERE w_id IN ({} 1)", "1, ".repeat(20_000)),
        format!("SELECT {} 1", "1 + ".repeat(20_000)),
        format!("SELECT 1 FROM {} warehouse", "warehouse, ".repeat(5_000)),
        format!("INSERT INTO new_order VALUES {} (1, 1, 1)", "(1, 2, 3), ".repeat(5_000)),
        format!("SELECT 1 {}", "UNION ALL SELECT 1 ".repeat(5_000)),
        "age(".repeat(50_000),
        "/*".repeat(100_000),
        "'".repeat(100_001),
        "$a$".repeat(50_001),
        ";".repeat(100_000),
        "SELECT 1;".repeat(9_000),
        "'now' ".repeat(50_000),
    ];
    for text in texts {
        let start = Instant::now();
        let _ = analyzer.text(&text);
        let took = start.elapsed();
        assert!(took < LONGEST, "{} took {took:?}", &text[..40]);
    }
}

#[test]
fn the_cache_is_bounded() {
    let analyzer = analyzer();
    for number in 0..20_000 {
        let _ = analyzer.text(&format!("SELECT {number}"));
    }
    let first = analyzer.text("SELECT 0");
    assert!(std::sync::Arc::ptr_eq(&first, &analyzer.text("SELECT 0")));
}
