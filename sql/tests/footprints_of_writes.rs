//! Which write touches what.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{analyzer, check, simple};

#[test]
fn writes() {
    check(&[
        ("UPDATE warehouse SET w_ytd = w_ytd + 1 WHERE w_id = 3", "Write {w3 X}"),
        (
            "UPDATE ONLY warehouse AS x SET w_ytd = 1 WHERE x.w_id = 3",
            "Write {w3 X}",
        ),
        ("UPDATE warehouse SET w_ytd = 1", "Write {all X}"),
        ("UPDATE warehouse SET w_id = 4 WHERE w_id = 3", "Write {all X}"),
        (
            "UPDATE customer SET c_balance = 1 WHERE c_w_id = 5 AND c_d_id = 1 AND c_id = 2 RETURNING c_balance",
            "Write {w5 X}",
        ),
        (
            "UPDATE stock SET s_quantity = o.o_ol_cnt FROM orders o WHERE s_w_id = 1 AND o.o_w_id = 2 AND o.o_d_id = 1 AND o.o_id = s_i_id",
            "Write {w1 X, w2 S}",
        ),
        (
            "DELETE FROM new_order WHERE no_w_id = 1 AND no_d_id = 2 AND no_o_id = 3",
            "Write {w1 X}",
        ),
        (
            "DELETE FROM new_order USING plain WHERE no_w_id = 1 AND no_o_id = id",
            "Write {w1 X, table:public.plain S}",
        ),
        (
            "DELETE FROM new_order WHERE no_w_id = 1 AND no_o_id = (SELECT min(o_id) FROM orders WHERE o_w_id = 2)",
            "Write {w1 X, w2 S}",
        ),
        (
            "INSERT INTO new_order (no_o_id, no_d_id, no_w_id) VALUES (1, 2, 3)",
            "Write {w3 X}",
        ),
        ("INSERT INTO new_order VALUES (3, 2, 1)", "Write {w3 X}"),
        (
            "INSERT INTO new_order VALUES (3, 2, 1), (4, 2, 1)",
            "Write {w3 X, w4 X}",
        ),
        ("INSERT INTO new_order (no_o_id) VALUES (1)", "Write {all X}"),
        ("INSERT INTO new_order VALUES (DEFAULT, 2, 1)", "Write {all X}"),
        ("INSERT INTO new_order VALUES (NULL, 2, 1)", "Write {all X}"),
        ("INSERT INTO new_order VALUES (3.4, 2, 1)", "Write {all X}"),
        ("INSERT INTO new_order DEFAULT VALUES", "Write {all X}"),
        (
            "INSERT INTO new_order SELECT 1, o_d_id, o_id FROM orders WHERE o_w_id = 2",
            "Write {w1 X, w2 S}",
        ),
        (
            "INSERT INTO new_order SELECT o_w_id, o_d_id, o_id FROM orders WHERE o_w_id = 2",
            "Write {w2 X}",
        ),
        (
            "INSERT INTO new_order SELECT o_w_id, o_d_id, o_id FROM orders",
            "Write {all X}",
        ),
        (
            "INSERT INTO new_order SELECT * FROM new_order WHERE no_w_id = 2",
            "Write {all X}",
        ),
        (
            "INSERT INTO warehouse VALUES (1) ON CONFLICT DO NOTHING",
            "Write {w1 X}",
        ),
        (
            "INSERT INTO warehouse (w_id, w_ytd) VALUES (1, 2) ON CONFLICT (w_id) DO UPDATE SET w_ytd = excluded.w_ytd",
            "Write {w1 X}",
        ),
        (
            "INSERT INTO warehouse (w_id) VALUES (1) ON CONFLICT (w_id) DO UPDATE SET w_id = 2",
            "Write {all X}",
        ),
        ("INSERT INTO item VALUES (1)", "Write {all X}"),
        (
            "MERGE INTO plain USING child ON plain.id = child.id WHEN MATCHED THEN DELETE",
            "Write {all X}",
        ),
        (
            "INSERT INTO shop.bill VALUES ('acme', 1)",
            "Write {partition:tenant='acme' X}",
        ),
        ("INSERT INTO shop.bill VALUES ('acme ', 1)", "Write {all X}"),
        (
            "WITH gone AS (DELETE FROM new_order WHERE no_w_id = 1 RETURNING *) SELECT * FROM gone",
            "Write {w1 X}",
        ),
        (
            "WITH x AS (SELECT 1) INSERT INTO new_order VALUES (1, 1, 1)",
            "Write {w1 X}",
        ),
        ("TRUNCATE plain", "Write {all X}"),
        ("CALL something(1)", "Write {all X}"),
        ("DO $$ BEGIN END $$", "Write {all X}"),
        ("some nonsense", "Write {all X}"),
    ]);
}

#[test]
fn constraints_widen_writes() {
    check(&[
        // The payment's row belongs to warehouse 1, its customer to warehouse 9.
        (
            "INSERT INTO history (h_c_id, h_c_d_id, h_c_w_id, h_d_id, h_w_id, h_amount) VALUES (1, 2, 9, 3, 1, 10)",
            "Write {w1 X, w9 S}",
        ),
        ("INSERT INTO order_line VALUES (1, 2, 3, 4, 5, 8)", "Write {w1 X, w8 S}"),
        (
            "UPDATE order_line SET ol_delivery_d = NULL WHERE ol_w_id = 1",
            "Write {w1 X}",
        ),
        ("DELETE FROM customer WHERE c_w_id = 1", "Write {all S, w1 X}"),
        ("DELETE FROM orders WHERE o_w_id = 1", "Write {w1 X}"),
        (
            "INSERT INTO child VALUES (1, 2, 3)",
            "Write {row:public.child#[1] X, value:public.plain(id)#[2] S}",
        ),
        ("INSERT INTO child (id) VALUES (1)", "Write {row:public.child#[1] X}"),
        (
            "UPDATE child SET item_id = 1 WHERE id = 1",
            "Write {row:public.child#[1] X}",
        ),
        (
            "DELETE FROM plain WHERE id = 1",
            "Write {table:public.child X, key:public.plain(note) S, row:public.plain#[1] X, value:public.plain(id)#[1] X}",
        ),
        (
            "UPDATE plain SET value = 'x' WHERE id = 1",
            "Write {key:public.plain(note) S, row:public.plain#[1] X}",
        ),
        (
            "UPDATE plain SET id = 2 WHERE id = 1",
            "Write {table:public.child S, key:public.plain(note) S, row:public.plain#[2] X, row:public.plain#[1] X, value:public.plain(id)#[2] X, value:public.plain(id)#[1] X}",
        ),
        ("INSERT INTO triggered VALUES (1)", "Write {all X}"),
        ("INSERT INTO checked VALUES (1, 'x')", "Write {all X}"),
        ("INSERT INTO rich (c_w_id) VALUES (1)", "Write {all X}"),
        ("INSERT INTO secured VALUES (1)", "Write {all X}"),
        ("INSERT INTO parted VALUES (1)", "Write {all X}"),
        // A primary key without the partition key: writers of the table take turns.
        (
            "INSERT INTO tenant_bill (tenant, amount) VALUES ('a', 1)",
            "Write {partition:tenant='a' X, table:public.tenant_bill X, sequence:public.tenant_bill_id_seq X}",
        ),
        (
            "UPDATE tenant_bill SET amount = 1 WHERE tenant = 'a' AND id = 1",
            "Write {partition:tenant='a' X}",
        ),
        (
            "DELETE FROM tenant_bill WHERE tenant = 'a'",
            "Write {partition:tenant='a' X, table:public.tenant_bill X}",
        ),
    ]);
}

#[test]
fn sequences() {
    check(&[
        (
            "INSERT INTO numbered (value) VALUES ('x')",
            "Write {table:public.numbered X, sequence:public.numbered_id_seq X}",
        ),
        (
            "INSERT INTO numbered (id, value) VALUES (DEFAULT, 'x')",
            "Write {table:public.numbered X, sequence:public.numbered_id_seq X}",
        ),
        (
            "INSERT INTO numbered (id, value) VALUES (1, 'x')",
            "Write {row:public.numbered#[1] X}",
        ),
        (
            "INSERT INTO identified (value) VALUES ('x')",
            "Write {table:public.identified X, sequence:public.identified_id_seq X}",
        ),
        (
            "INSERT INTO identified OVERRIDING SYSTEM VALUE VALUES (1, 'x')",
            "Write {row:public.identified#[1] X}",
        ),
        ("SELECT nextval('counter')", "Write {sequence:public.counter X}"),
        (
            "SELECT nextval('public.counter'::regclass)",
            "Write {sequence:public.counter X}",
        ),
        ("SELECT setval('counter', 5)", "Write {sequence:public.counter X}"),
        ("SELECT nextval($$counter$$)", "Write {sequence:public.counter X}"),
        ("SELECT nextval('unknown')", "Write {all X}"),
    ]);
    let analysis = simple(&analyzer(), "SELECT currval('counter')").expect("passes");
    assert!(analysis.needs_transaction);
}

#[test]
fn copy() {
    check(&[
        ("COPY plain FROM STDIN", "Write {table:public.plain X}"),
        (
            "COPY public.plain (id, value) FROM STDIN WITH (FORMAT csv)",
            "Write {table:public.plain X}",
        ),
        (
            "COPY numbered (value) FROM STDIN",
            "Write {table:public.numbered X, sequence:public.numbered_id_seq X}",
        ),
        ("COPY numbered FROM STDIN", "Write {table:public.numbered X}"),
        ("COPY warehouse FROM STDIN", "Write {all X}"),
        ("COPY triggered FROM STDIN", "Write {all X}"),
        ("copy plain from stdin with (freeze on)", "Write {table:public.plain X}"),
        ("COPY plain TO STDOUT", "Read {table:public.plain S}"),
        ("COPY warehouse TO STDOUT (FORMAT binary)", "Read {all S}"),
        ("COPY (SELECT * FROM warehouse WHERE w_id = 1) TO STDOUT", "Read {w1 S}"),
        (
            "COPY (DELETE FROM new_order WHERE no_w_id = 1 RETURNING *) TO STDOUT",
            "Write {w1 X}",
        ),
        ("COPY plain FROM '/etc/passwd'", "42501 rule 45"),
        ("COPY plain TO PROGRAM 'cat'", "42501 rule 45"),
    ]);
}
