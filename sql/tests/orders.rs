//! Orders that statements leave open are closed by primary keys: the text that runs.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{analyzer, check};

/// Each statement, and what runs in its place.
fn becomes(cases: &[(&str, &str)]) {
    let analyzer = analyzer();
    let wrong: Vec<_> = cases
        .iter()
        .filter_map(|(text, expected)| {
            let analysis = analyzer.text(text);
            let found = match analysis.refusal() {
                Some(refusal) => format!("{} rule {}", refusal.sqlstate, refusal.rule),
                None => analysis.executable().to_owned(),
            };
            (found != *expected).then(|| format!("{text}\n    expected {expected}\n    found    {found}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn stays(texts: &[&str]) {
    becomes(&texts.iter().map(|text| (*text, *text)).collect::<Vec<_>>());
}

#[test]
fn queries_of_which_the_order_means_something() {
    becomes(&[
        (
            "SELECT * FROM plain LIMIT 1",
            "SELECT * FROM plain ORDER BY \"plain\".\"id\" LIMIT 1",
        ),
        // A unique key that cannot be NULL does as well; one that can be NULL tells nothing apart.
        (
            "SELECT * FROM coded ORDER BY value LIMIT 1",
            "SELECT * FROM coded ORDER BY value, \"coded\".\"code\" LIMIT 1",
        ),
        (
            "SELECT * FROM only_unique ORDER BY value LIMIT 1",
            "SELECT * FROM only_unique ORDER BY value LIMIT 1",
        ),
        (
            "SELECT * FROM plain AS \"A b\" ORDER BY value DESC NULLS LAST FOR UPDATE",
            "SELECT * FROM plain AS \"A b\" ORDER BY value DESC NULLS LAST, \"A b\".\"id\" FOR UPDATE",
        ),
        (
            "SELECT value AS offset FROM plain ORDER BY 1 OFFSET 2;",
            "SELECT value AS offset FROM plain ORDER BY 1, \"plain\".\"id\" OFFSET 2;",
        ),
        (
            "SELECT c.id FROM child c JOIN plain p ON p.id = c.plain_id ORDER BY p.value LIMIT 3",
            "SELECT c.id FROM child c JOIN plain p ON p.id = c.plain_id ORDER BY p.value, \"c\".\"id\" LIMIT 3",
        ),
        (
            "SELECT c.id FROM child c LEFT JOIN plain p ON p.id = c.plain_id ORDER BY p.value",
            "SELECT c.id FROM child c LEFT JOIN plain p ON p.id = c.plain_id ORDER BY p.value, \"c\".\"id\"",
        ),
        (
            "SELECT c.id FROM plain p LEFT JOIN child c ON p.id = c.plain_id ORDER BY p.value",
            "SELECT c.id FROM plain p LEFT JOIN child c ON p.id = c.plain_id ORDER BY p.value, \"p\".\"id\", \"c\".\"id\"",
        ),
        (
            "SELECT c_id FROM customer WHERE c_w_id = 1 AND c_d_id = 2 AND c_last = 'x' ORDER BY c_first",
            "SELECT c_id FROM customer WHERE c_w_id = 1 AND c_d_id = 2 AND c_last = 'x' ORDER BY c_first, \"customer\".\"c_id\"",
        ),
        (
            "SELECT id, (SELECT i.i_id FROM item i ORDER BY i_name LIMIT 1) FROM plain",
            "SELECT id, (SELECT i.i_id FROM item i ORDER BY i_name, \"i\".\"i_id\" LIMIT 1) FROM plain",
        ),
        (
            "WITH x AS (SELECT * FROM plain LIMIT 3) SELECT * FROM x",
            "WITH x AS (SELECT * FROM plain ORDER BY \"plain\".\"id\" LIMIT 3) SELECT * FROM x",
        ),
        (
            "SELECT value, count(*) FROM plain GROUP BY value ORDER BY count(*) DESC LIMIT 3",
            "SELECT value, count(*) FROM plain GROUP BY value ORDER BY count(*) DESC, value LIMIT 3",
        ),
        (
            "SELECT lower(value), note FROM plain GROUP BY lower(value), note HAVING count(*) > 1 LIMIT 3",
            "SELECT lower(value), note FROM plain GROUP BY lower(value), note HAVING count(*) > 1 ORDER BY lower(value), note LIMIT 3",
        ),
        (
            "SELECT DISTINCT value, note FROM plain ORDER BY note LIMIT 3",
            "SELECT DISTINCT value, note FROM plain ORDER BY note, 1, 2 LIMIT 3",
        ),
        (
            "SELECT DISTINCT ON (value, lower(note)) * FROM plain",
            "SELECT DISTINCT ON (value, lower(note)) * FROM plain ORDER BY value, lower(note), \"plain\".\"id\"",
        ),
        (
            "SELECT DISTINCT ON (value) * FROM plain ORDER BY value, note",
            "SELECT DISTINCT ON (value) * FROM plain ORDER BY value, note, \"plain\".\"id\"",
        ),
        (
            "SELECT id FROM plain UNION SELECT id FROM child ORDER BY 1 LIMIT 2",
            "SELECT id FROM plain UNION SELECT id FROM child ORDER BY 1, 1 LIMIT 2",
        ),
        (
            "DECLARE c CURSOR FOR SELECT * FROM plain ORDER BY value",
            "DECLARE c CURSOR FOR SELECT * FROM plain ORDER BY value, \"plain\".\"id\"",
        ),
        (
            "COPY (SELECT * FROM plain ORDER BY value) TO STDOUT",
            "COPY (SELECT * FROM plain ORDER BY value, \"plain\".\"id\") TO STDOUT",
        ),
    ]);
}

#[test]
fn what_has_an_order_or_needs_none_stays_as_it_is() {
    stays(&[
        "SELECT * FROM plain",
        "SELECT * FROM plain WHERE id = 1 ORDER BY value LIMIT 1",
        "SELECT * FROM plain ORDER BY value, id",
        "SELECT count(*) FROM plain LIMIT 1",
        "SELECT max(id) + 1 FROM plain ORDER BY 1",
        "SELECT 1 FROM plain HAVING count(*) > 0 ORDER BY 1",
        "SELECT p.id FROM plain p JOIN child c ON c.plain_id = p.id ORDER BY c.id",
        "SELECT id FROM plain WHERE EXISTS (SELECT 1 FROM child LIMIT 1)",
        // An order of their own, which SQL does not promise.
        "SELECT * FROM (SELECT * FROM plain ORDER BY id) AS p LIMIT 3",
        "SELECT * FROM generate_series(1, 9) AS g LIMIT 3",
        "SELECT * FROM rich LIMIT 3",
        "VALUES (1), (2) LIMIT 1",
        // Peers mean something.
        "SELECT * FROM plain ORDER BY value FETCH FIRST 3 ROWS WITH TIES",
        "SELECT rank() OVER (ORDER BY value) FROM plain",
        // A table without a key, and what may be an aggregate of users.
        "SELECT * FROM history ORDER BY h_date",
        "SELECT double_it(id) FROM plain LIMIT 2",
        // Equal rows of any type.
        "SELECT id FROM plain UNION ALL SELECT id FROM child LIMIT 2",
        // Definitions keep the words of who wrote them.
        "CREATE VIEW x AS SELECT * FROM plain LIMIT 5",
    ]);
}

#[test]
fn aggregates_and_window_functions() {
    becomes(&[
        (
            "SELECT string_agg(value, ',') FROM plain",
            "SELECT string_agg(value, ',' ORDER BY \"plain\".\"id\") FROM plain",
        ),
        (
            "SELECT note, array_agg(value ORDER BY value) FILTER (WHERE id > 1) FROM plain GROUP BY note",
            "SELECT note, array_agg(value ORDER BY value, \"plain\".\"id\") FILTER (WHERE id > 1) FROM plain GROUP BY note",
        ),
        (
            "SELECT pg_catalog.json_agg(p) FROM plain p",
            "SELECT pg_catalog.json_agg(p ORDER BY \"p\".\"id\") FROM plain p",
        ),
        (
            "SELECT sum(amount), sum(id), avg(amount * 2) FROM plain",
            "SELECT sum(amount ORDER BY \"plain\".\"id\"), sum(id), avg(amount * 2 ORDER BY \"plain\".\"id\") FROM plain",
        ),
        (
            "SELECT row_number() OVER (), ntile(4) OVER (PARTITION BY note ORDER BY value) FROM plain",
            "SELECT row_number() OVER ( ORDER BY \"plain\".\"id\"), ntile(4) OVER (PARTITION BY note ORDER BY value, \"plain\".\"id\") FROM plain",
        ),
        (
            "SELECT row_number() OVER (PARTITION BY note) FROM plain",
            "SELECT row_number() OVER (PARTITION BY note ORDER BY \"plain\".\"id\") FROM plain",
        ),
        (
            "SELECT json_agg(x) FROM (SELECT id FROM plain) AS x",
            "SELECT json_agg(x) FROM (SELECT id FROM plain ORDER BY \"plain\".\"id\") AS x",
        ),
        (
            "SELECT ARRAY(SELECT id FROM plain)",
            "SELECT ARRAY(SELECT id FROM plain ORDER BY \"plain\".\"id\")",
        ),
        (
            "SELECT string_agg((SELECT i_name FROM item WHERE i_id = c.item_id), '') FROM child c",
            "SELECT string_agg((SELECT i_name FROM item WHERE i_id = c.item_id), '' ORDER BY \"c\".\"id\") FROM child c",
        ),
    ]);
    stays(&[
        "SELECT array_agg(DISTINCT value) FROM plain",
        "SELECT string_agg(value, ',') FROM plain WHERE id = 1",
        "SELECT array_agg(g) FROM generate_series(1, 3) AS g",
        "SELECT sum(amount) OVER (ORDER BY value) FROM plain",
        "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY value) FROM plain",
        "SELECT row_number() OVER w FROM plain WINDOW w AS (ORDER BY value)",
    ]);
}

#[test]
fn writes_that_were_refused_for_their_order() {
    becomes(&[
        (
            "DELETE FROM plain WHERE id IN (SELECT id FROM plain ORDER BY value LIMIT 1 FOR UPDATE SKIP LOCKED)",
            "DELETE FROM plain WHERE id IN (SELECT id FROM plain ORDER BY value, \"plain\".\"id\" LIMIT 1 FOR UPDATE SKIP LOCKED)",
        ),
        (
            "INSERT INTO numbered (value) SELECT value FROM plain RETURNING id",
            "INSERT INTO numbered (value) SELECT value FROM plain ORDER BY \"plain\".\"id\" RETURNING id",
        ),
        (
            "INSERT INTO plain (id) SELECT plain_id FROM child ON CONFLICT (id) DO NOTHING",
            "INSERT INTO plain (id) SELECT plain_id FROM child ORDER BY \"child\".\"id\" ON CONFLICT (id) DO NOTHING",
        ),
        // Of a table that is not known, and of one with a trigger, each row may get a number.
        (
            "INSERT INTO unknown_table SELECT id FROM plain",
            "INSERT INTO unknown_table SELECT id FROM plain ORDER BY \"plain\".\"id\"",
        ),
        (
            "INSERT INTO triggered SELECT id FROM plain",
            "INSERT INTO triggered SELECT id FROM plain ORDER BY \"plain\".\"id\"",
        ),
        (
            "INSERT INTO child SELECT id FROM plain",
            "INSERT INTO child SELECT id FROM plain",
        ),
        (
            "CREATE TABLE x AS SELECT * FROM plain LIMIT 5 WITH NO DATA",
            "CREATE TABLE x AS SELECT * FROM plain ORDER BY \"plain\".\"id\" LIMIT 5 WITH NO DATA",
        ),
        (
            "INSERT INTO child (id) SELECT sum(amount) FROM plain",
            "INSERT INTO child (id) SELECT sum(amount ORDER BY \"plain\".\"id\") FROM plain",
        ),
    ]);
    check(&[
        (
            "DELETE FROM child WHERE id IN (SELECT h_c_id FROM history LIMIT 1)",
            "BF002 rule 16",
        ),
        (
            "INSERT INTO numbered (value) SELECT h_data FROM history",
            "BF002 rule 6",
        ),
        (
            "INSERT INTO child (id) SELECT count(x) FROM (SELECT array_agg(id) AS x FROM (SELECT id FROM child) y) z",
            "BF002 rule 19",
        ),
        (
            "INSERT INTO child (id) SELECT sum(h_amount::float8) FROM history AS h",
            "BF002 rule 20",
        ),
        ("UPDATE plain SET amount = random()", "BF002 rule 6"),
    ]);
}

/// Statements of one text, which is one transaction: what an earlier one has changed is not known to a later one.
#[test]
fn what_the_transaction_has_changed_is_not_known() {
    becomes(&[
        (
            "ALTER TABLE plain DROP CONSTRAINT plain_pkey; DELETE FROM plain WHERE value IN (SELECT value FROM plain LIMIT 5)",
            "BF002 rule 16",
        ),
        (
            "CREATE TABLE made (n serial); INSERT INTO made (id) SELECT id FROM plain",
            "CREATE TABLE made (n serial); INSERT INTO made (id) SELECT id FROM plain ORDER BY \"plain\".\"id\"",
        ),
        (
            "DROP TABLE plain; ALTER TABLE made RENAME TO plain; INSERT INTO numbered (value) SELECT value FROM plain",
            "BF002 rule 6",
        ),
        (
            "CREATE TABLE made (n serial, v text); INSERT INTO made (v) SELECT h_data FROM history",
            "BF002 rule 6",
        ),
        (
            "DROP TYPE mood CASCADE; INSERT INTO numbered (value) SELECT value FROM plain",
            "BF002 rule 6",
        ),
        (
            "DO $$BEGIN ALTER TABLE plain DROP CONSTRAINT plain_pkey; END$$; INSERT INTO numbered (value) SELECT value FROM plain",
            "BF002 rule 6",
        ),
    ]);
    stays(&[
        "ALTER TABLE plain RENAME id TO uid; SELECT value FROM plain ORDER BY note LIMIT 1",
        "CREATE TABLE made (id serial, v text); INSERT INTO made (v) VALUES ('a'), ('b')",
    ]);
}

#[test]
fn merge_does_not_number_rows() {
    let merge = |table: &str| {
        format!(
            "MERGE INTO {table} USING plain ON plain.id = -{table}.id WHEN NOT MATCHED THEN INSERT (value) VALUES (plain.value)"
        )
    };
    becomes(&[
        (&merge("numbered"), "BF002 rule 6"),
        (&merge("triggered"), &merge("triggered")),
    ]);
}

/// Some types can be told apart and have no order.
#[test]
fn columns_of_unusual_types_get_no_order() {
    stays(&[
        "SELECT '3'::xid AS x, value FROM plain GROUP BY 1, 2 LIMIT 2",
        "SELECT '3'::xid AS x UNION SELECT '4'::xid LIMIT 2",
        "SELECT DISTINCT relacl FROM pg_class LIMIT 1",
    ]);
}

#[test]
fn parentheses_change_nothing() {
    becomes(&[
        (
            "(SELECT id FROM plain) LIMIT 3",
            "(SELECT id FROM plain ORDER BY \"plain\".\"id\") LIMIT 3",
        ),
        (
            "INSERT INTO numbered (value) (SELECT value FROM plain)",
            "INSERT INTO numbered (value) (SELECT value FROM plain ORDER BY \"plain\".\"id\")",
        ),
    ]);
}

/// Whatever a stranger sends, what runs in its place stays a small multiple of it.
#[test]
fn what_is_added_is_bounded() {
    let analyzer = analyzer();
    let length = |text: &str| analyzer.text(text).executable().len() - text.len();
    let calls = |count: usize| format!("SELECT {} FROM plain", vec!["array_agg(id)"; count].join(", "));
    let each = length(&calls(1));
    assert_eq!(length(&calls(64)), 64 * each);
    assert_eq!(length(&calls(9_000)), 64 * each);
    let sums = format!("SELECT {} FROM plain", vec!["sum(id)"; 9_000].join(", "));
    assert_eq!(length(&sums), 0);
    let sources = |count: usize| {
        let sources: Vec<_> = (0..count).map(|number| format!("plain p{number}")).collect();
        format!("SELECT 1 FROM {} LIMIT 1", sources.join(", "))
    };
    assert_ne!(length(&sources(32)), 0);
    assert_eq!(length(&sources(33)), 0);
    assert_eq!(length(&sources(10_000)), 0);
}
