//! Which exchanges are short, which are plain reads, and which may run code of users.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use bytes::Bytes;
use common::{analyzer, context, simple};
use sql::analysis::{Analyzer, ExchangeAnalysis};
use sql::operation::{Exchange, StatementText, Step};

/// By the extended protocol, on the unnamed portal, with NULL for every parameter.
fn extended(analyzer: &Analyzer, text: &str) -> ExchangeAnalysis {
    let parameters = (1..=20).filter(|number| text.contains(&format!("${number}"))).count();
    executed(analyzer, text, parameters, "", 0).expect(text)
}

fn executed(
    analyzer: &Analyzer,
    text: &str,
    parameters: usize,
    portal: &str,
    max_rows: u32,
) -> Result<ExchangeAnalysis, sql::refusal::Refusal> {
    let exchange = Exchange::Extended {
        statements: vec![StatementText {
            text: text.into(),
            parameter_types: vec![],
        }],
        steps: vec![
            Step::Bind {
                portal: portal.into(),
                statement: 0,
                parameter_formats: vec![],
                parameters: vec![Some(Bytes::from_static(b"1")); parameters],
                result_formats: vec![],
            },
            Step::Execute {
                portal: portal.into(),
                max_rows,
            },
        ],
    };
    analyzer.exchange(&exchange, &context())
}

/// The texts of this project's TPC-C kit (tpcc/src/transaction).
const TPCC: &[&str] = &[
    "SELECT d_next_o_id FROM district WHERE d_w_id = $1 AND d_id = $2",
    "SELECT count(DISTINCT s_i_id) FROM order_line, stock WHERE ol_w_id = $1 AND ol_d_id = $2 AND ol_o_id < $3 AND ol_o_id >= $4 AND s_w_id = $1 AND s_i_id = ol_i_id AND s_quantity < $5",
    "SELECT c_id FROM customer WHERE c_w_id = $1 AND c_d_id = $2 AND c_last = $3 ORDER BY c_first, c_id",
    "UPDATE warehouse SET w_ytd = w_ytd + $2 WHERE w_id = $1",
    "SELECT w_name, w_tax FROM warehouse WHERE w_id = $1",
    "UPDATE district SET d_ytd = d_ytd + $3 WHERE d_w_id = $1 AND d_id = $2",
    "SELECT c_credit, c_first, c_last, c_since, c_discount, c_balance FROM customer WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3 FOR UPDATE",
    "UPDATE customer SET c_balance = c_balance - $4, c_discount = c_discount + $4 WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3",
    "SELECT c_data FROM customer WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3",
    "UPDATE customer SET c_balance = c_balance - $4, c_data = $5 WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3",
    "INSERT INTO history (h_c_id, h_c_d_id, h_c_w_id, h_d_id, h_w_id, h_date, h_amount, h_data) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    "SELECT s_quantity, s_data, s_dist_01 FROM stock WHERE s_w_id = $1 AND s_i_id = $2 FOR UPDATE",
    "SELECT d_next_o_id, d_tax FROM district WHERE d_w_id = $1 AND d_id = $2 FOR UPDATE",
    "UPDATE district SET d_next_o_id = $3 WHERE d_w_id = $1 AND d_id = $2",
    "INSERT INTO orders (o_w_id, o_d_id, o_id, o_c_id, o_entry_d, o_ol_cnt, o_all_local) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    "INSERT INTO new_order (no_w_id, no_d_id, no_o_id) VALUES ($1, $2, $3)",
    "SELECT i_price, i_name, i_data FROM item WHERE i_id = $1",
    "UPDATE stock SET s_quantity = $3, s_ytd = s_ytd + $4, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + $5 WHERE s_w_id = $1 AND s_i_id = $2",
    "INSERT INTO order_line (ol_w_id, ol_d_id, ol_o_id, ol_number, ol_i_id, ol_supply_w_id, ol_quantity, ol_amount, ol_dist_info) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    "SELECT no_o_id FROM new_order WHERE no_w_id = $1 AND no_d_id = $2 ORDER BY no_o_id LIMIT 1",
    "DELETE FROM new_order WHERE no_w_id = $1 AND no_d_id = $2 AND no_o_id = $3",
    "SELECT o_c_id FROM orders WHERE o_w_id = $1 AND o_d_id = $2 AND o_id = $3",
    "UPDATE orders SET o_carrier_id = $4 WHERE o_w_id = $1 AND o_d_id = $2 AND o_id = $3",
    "UPDATE order_line SET ol_delivery_d = $4 WHERE ol_w_id = $1 AND ol_d_id = $2 AND ol_o_id = $3",
    "SELECT sum(ol_amount) FROM order_line WHERE ol_w_id = $1 AND ol_d_id = $2 AND ol_o_id = $3",
    "SELECT o_id, o_entry_d, o_carrier_id FROM orders WHERE o_w_id = $1 AND o_d_id = $2 AND o_c_id = $3 ORDER BY o_id DESC LIMIT 1",
    "SELECT ol_i_id, ol_supply_w_id, ol_quantity, ol_amount, ol_delivery_d FROM order_line WHERE ol_w_id = $1 AND ol_d_id = $2 AND ol_o_id = $3 ORDER BY ol_number",
];

#[test]
fn statements_of_tpcc_are_short() {
    let analyzer = analyzer();
    for text in TPCC {
        let analysis = extended(&analyzer, text);
        assert!(analysis.short && !analysis.foreign_code, "{text}: {analysis:?}");
        let reads = text.starts_with("SELECT") && !text.ends_with("FOR UPDATE");
        assert_eq!(analysis.plain_read, reads, "{text}");
    }
}

/// The texts of pgbench (pgbench.c, builtin scripts), as its simple protocol sends them.
const PGBENCH: &[&str] = &[
    "UPDATE pgbench_accounts SET abalance = abalance + -4321 WHERE aid = 1000;",
    "SELECT abalance FROM pgbench_accounts WHERE aid = 1000;",
    "UPDATE pgbench_tellers SET tbalance = tbalance + 17 WHERE tid = 3;",
    "UPDATE pgbench_branches SET bbalance = bbalance + $1 WHERE bid = $2;",
    "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (3, 1, 1000, 17, CURRENT_TIMESTAMP);",
];

#[test]
fn statements_of_pgbench_are_short() {
    let analyzer = analyzer();
    for text in PGBENCH {
        let analysis = extended(&analyzer, text);
        assert!(analysis.short && !analysis.foreign_code, "{text}: {analysis:?}");
        if !text.contains('$') {
            let analysis = simple(&analyzer, text).expect("passes");
            assert!(analysis.short, "{text}");
            assert_eq!(analysis.plain_read, text.starts_with("SELECT"), "{text}");
        }
    }
}

#[test]
fn short() {
    let analyzer = analyzer();
    for text in [
        "SAVEPOINT a",
        "RELEASE a",
        "ROLLBACK TO a",
        "-- nothing",
        "INSERT INTO plain (id, value) VALUES (1, 'a'), (2, coalesce(NULL, 'b'))",
        "INSERT INTO numbered (value) VALUES ('a') RETURNING id",
        "INSERT INTO stamped (id) VALUES (1) RETURNING *",
        "INSERT INTO plain (id) VALUES (nextval('counter'))",
        "INSERT INTO account VALUES ('b3bb189e-8bf9-4888-9912-ace4e6543002', 'a@b', DEFAULT, 'good') ON CONFLICT (id) DO NOTHING",
        "INSERT INTO warehouse (w_id, w_ytd) VALUES (1, 2) ON CONFLICT (w_id) DO UPDATE SET w_ytd = excluded.w_ytd + warehouse.w_ytd",
        "UPDATE account SET email = lower('A@B'), at = now() WHERE id = 'b3bb189e-8bf9-4888-9912-ace4e6543002'",
        "UPDATE plain SET value = 'x' || 'y', amount = amount * 2 WHERE id IN (1, 2, 3)",
        "UPDATE plain SET value = CASE WHEN amount > 1 THEN 'x' ELSE note END WHERE (id) = (1)",
        "DELETE FROM child WHERE id = ANY (ARRAY[1, 2])",
        "DELETE FROM leaf WHERE id = 1 AND note = 'x'",
        "SELECT value FROM plain WHERE id = 1 FOR UPDATE",
        "SELECT 1",
        "SAVEPOINT a; UPDATE plain SET value = 'x' WHERE id = 1; RELEASE a",
    ] {
        let analysis = simple(&analyzer, text).expect(text);
        assert!(analysis.short && !analysis.foreign_code, "{text}");
    }
}

#[test]
fn not_short() {
    let analyzer = analyzer();
    let many = format!("INSERT INTO plain (id) VALUES {}(0)", "(1), ".repeat(1000));
    let keys = format!("UPDATE plain SET value = 'x' WHERE id IN ({}0)", "1, ".repeat(1000));
    for text in [
        &many,
        &keys,
        "UPDATE plain SET value = 'x'",
        "UPDATE plain SET value = 'x' WHERE value = 'y'",
        "UPDATE plain SET value = 'x' WHERE id > 5",
        "UPDATE plain SET value = 'x' WHERE id = 5 OR id = 6",
        "UPDATE plain SET value = 'x' WHERE id = amount",
        "UPDATE plain SET value = 'x' WHERE id = ANY ('{1,2}')",
        // The 21st repetition fails on a server with less memory.
        "UPDATE plain SET value = value || value WHERE id = 1",
        "UPDATE plain SET value = concat(value, value) WHERE id = 1",
        "UPDATE plain SET value = repeat('x', 1000000) WHERE id = 1",
        "UPDATE plain SET value = format('%s', value) WHERE id = 1",
        "UPDATE plain SET value = replace(value, 'x', value) WHERE id = 1",
        "UPDATE plain SET value = 'x' WHERE id = 1 AND value LIKE '%a'",
        "UPDATE plain SET value = 'x' WHERE id = 1 AND value ~ '(a*)*b'",
        "UPDATE plain SET value = 'x' WHERE id = 1 AND value SIMILAR TO 'a'",
        "UPDATE plain SET value = substring(value from '(a*)*b') WHERE id = 1",
        "UPDATE plain SET value = (SELECT max(value) FROM plain) WHERE id = 1",
        "UPDATE plain SET value = 'x' FROM child WHERE plain.id = 1 AND child.plain_id = plain.id AND false",
        "UPDATE plain SET value = 'x' WHERE id = 1 AND EXISTS (SELECT 1 FROM child)",
        "WITH x AS (SELECT 1) UPDATE plain SET value = 'x' WHERE id = 1",
        // The write cascades, or looks for the rows that reference its row.
        "DELETE FROM plain WHERE id = 1",
        "UPDATE plain SET id = 2 WHERE id = 1",
        "INSERT INTO child SELECT id FROM plain WHERE id = 1",
        "INSERT INTO plain (id) VALUES (generate_series(1, 10))",
        "INSERT INTO plain (id) SELECT generate_series(1, 1000000)",
        // Code of users.
        "INSERT INTO triggered VALUES (1)",
        "UPDATE triggered SET value = 'x' WHERE id = 1",
        "INSERT INTO checked VALUES (1)",
        "INSERT INTO plain (id) VALUES (double_it(1))",
        "INSERT INTO plain (id) VALUES ((1::measure).v)",
        "INSERT INTO plain (id) VALUES (1 ### 2)",
        "DELETE FROM secured WHERE id = 1",
        "DELETE FROM parted WHERE id = 1",
        // Its default and its check are not bounded.
        "INSERT INTO padded (id) VALUES (1)",
        "SELECT value FROM plain",
        "SELECT value FROM plain LIMIT 1",
        "SELECT pg_sleep(1)",
        "SELECT generate_series(1, 10)",
        "SELECT 1 FROM plain a, plain b WHERE a.id = 1 FOR UPDATE",
        "SELECT value FROM plain WHERE id = 1 UNION ALL SELECT value FROM plain",
        "DECLARE c CURSOR FOR SELECT 1",
        "FETCH c",
        "SET work_mem = '4MB'",
        "CREATE TABLE x (i int)",
        "COPY plain FROM STDIN",
        "TRUNCATE plain",
        "DO 'begin end'",
        "VACUUM plain",
        "UPDATE plain SET value = 'x' WHERE id = 1; SELECT value FROM plain",
    ] {
        if let Ok(analysis) = simple(&analyzer, text) {
            assert!(!analysis.short, "{text}");
        }
    }
}

#[test]
fn portals_of_other_exchanges_are_not_short() {
    let analyzer = analyzer();
    let execute = Exchange::Extended {
        statements: vec![],
        steps: vec![Step::Execute {
            portal: String::new(),
            max_rows: 0,
        }],
    };
    assert!(!analyzer.exchange(&execute, &context()).expect("passes").short);
    let end = Exchange::CopyEnd { failure: None };
    assert!(!analyzer.exchange(&end, &context()).expect("passes").short);
}

#[test]
fn plain_reads() {
    let analyzer = analyzer();
    for text in [
        "SELECT 1",
        "SELECT * FROM plain",
        "SELECT now(), random()",
        "SELECT count(*), string_agg(value, ',') FROM plain GROUP BY note HAVING count(*) > 1 ORDER BY 1 LIMIT 3",
        "WITH x AS (SELECT id FROM plain) SELECT * FROM x JOIN child USING (id) WHERE EXISTS (SELECT 1 FROM item)",
        "SELECT p.value, row_number() OVER (ORDER BY p.id) FROM plain p LEFT JOIN child c ON c.plain_id = p.id",
        "SELECT 'good'::mood, '1'::label, 1::text, $$a$$",
        "SELECT * FROM generate_series(1, 3) AS n",
        "SELECT * FROM counted",
        "VALUES (1), (2)",
        "SELECT * FROM triggered",
    ] {
        let analysis = extended(&analyzer, text);
        assert!(analysis.plain_read && !analysis.foreign_code, "{text}: {analysis:?}");
        assert!(simple(&analyzer, text).expect("passes").plain_read, "{text}");
        // By a named portal, or in parts.
        assert!(
            !executed(&analyzer, text, 0, "p", 0).expect("passes").plain_read,
            "{text}"
        );
        assert!(
            !executed(&analyzer, text, 0, "", 1).expect("passes").plain_read,
            "{text}"
        );
        // Together with another.
        assert!(
            !simple(&analyzer, &format!("{text}; SELECT 1"))
                .expect("passes")
                .plain_read
        );
    }
    for text in [
        "SELECT * FROM rich",
        "SELECT * FROM secured",
        "SELECT * FROM checked",
        "SELECT double_it(1)",
        "SELECT change_it(1)",
        "SELECT posint '5'",
        "SELECT 5::posint",
        "SELECT 5::measure",
        "SELECT CAST(5 AS public.pair)",
        "SELECT '{1}'::posint[]",
        "SELECT 1 ### 2",
        "SELECT 1 OPERATOR(public.###) 2",
        "SELECT touched.touch FROM touched",
        "SELECT (touched).touch FROM touched",
        "SELECT * FROM pg_class",
        "SELECT pg_backend_pid()",
        "SELECT relname FROM pg_catalog.pg_class",
        "SELECT id FROM plain WHERE value NOTNULL",
        "SELECT * FROM plain FOR UPDATE",
        "SELECT nextval('counter')",
        "SELECT * FROM unknown_table",
        "EXPLAIN SELECT 1",
        "SHOW work_mem",
        "FETCH c",
        "UPDATE plain SET value = 'x' WHERE id = 1",
        "TABLE plain",
    ] {
        assert!(!simple(&analyzer, text).expect(text).plain_read, "{text}");
    }
}

#[test]
fn foreign_code() {
    let analyzer = analyzer();
    for text in [
        "INSERT INTO child SELECT id FROM plain",
        "UPDATE plain SET value = upper(value) || 'x'",
        "DELETE FROM plain WHERE id = 1",
        "SELECT sum(w_ytd) FROM warehouse",
        "CREATE TABLE x (i int PRIMARY KEY, v text DEFAULT now(), CHECK (i > 0))",
        "DROP TABLE x",
        "COPY plain FROM STDIN",
        "COPY plain TO STDOUT",
        "SET work_mem = '4MB'",
        "SELECT relname FROM pg_class",
        "CLOSE c",
        "DECLARE c CURSOR FOR SELECT 1",
    ] {
        assert!(!simple(&analyzer, text).expect(text).foreign_code, "{text}");
    }
    for text in [
        "DO 'begin end'",
        "CALL f()",
        "SELECT change_it(1)",
        "SELECT double_it(1)",
        "INSERT INTO triggered VALUES (1)",
        "DELETE FROM triggered",
        "COPY triggered FROM STDIN",
        "COPY plain FROM STDIN WHERE change_it(id) > 1",
        "INSERT INTO operated VALUES (1)",
        "INSERT INTO casts_domain VALUES (1)",
        "INSERT INTO holds_pair VALUES (1)",
        "SELECT * FROM rich",
        "COPY rich TO STDOUT",
        "SELECT 5::posint",
        "SELECT id FROM plain WHERE value NOTNULL",
        "CREATE TABLE x AS SELECT change_it(1)",
        "CREATE INDEX i ON plain (change_it(id))",
        "TRUNCATE triggered",
        "MERGE INTO plain USING child ON plain.id = child.id WHEN MATCHED THEN DELETE",
        "FETCH c",
        "COMMIT",
        "EXECUTE p",
        "VACUUM plain",
    ] {
        assert!(simple(&analyzer, text).expect(text).foreign_code, "{text}");
    }
    // Under a search_path of its own, names mean other things.
    let mut context = context();
    context.settings = vec![("search_path".into(), "shop".into())];
    let exchange = Exchange::Simple {
        text: "SELECT * FROM plain".into(),
    };
    let analysis = analyzer.exchange(&exchange, &context).expect("passes");
    assert!(analysis.foreign_code && !analysis.plain_read && !analysis.short);
}
