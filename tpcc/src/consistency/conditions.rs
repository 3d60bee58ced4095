//! The twelve conditions of clause 3.3.2, each as a query for the first row that breaks it.
//!
//! Sums per customer are made over all movements at once instead of by joins: the planner misjudges those badly.
//! `{w}` stands for a warehouse and `{all}` for the list of all of them: every table is asked for by its warehouse.

/// One condition.
#[derive(Debug)]
pub(super) struct Condition {
    /// The last part of its clause: 3.3.2.`number`.
    pub(super) number: u32,
    /// What must hold.
    pub(super) rule: &'static str,
    /// Returns nothing if the condition holds, and else the first offending row.
    pub(super) query: &'static str,
}

pub(super) static CONDITIONS: [Condition; 12] = [
    Condition {
        number: 1,
        rule: "W_YTD = sum(D_YTD)",
        query: "\
SELECT w_id, w_ytd, sum_d_ytd FROM warehouse
CROSS JOIN (SELECT sum(d_ytd) AS sum_d_ytd FROM district WHERE d_w_id = {w}) AS districts
WHERE w_id = {w} AND w_ytd IS DISTINCT FROM sum_d_ytd",
    },
    Condition {
        number: 2,
        rule: "D_NEXT_O_ID - 1 = max(O_ID) = max(NO_O_ID)",
        query: "\
SELECT d_w_id, d_id, d_next_o_id, max_o_id, max_no_o_id FROM district
LEFT JOIN (SELECT o_d_id, max(o_id) AS max_o_id FROM orders WHERE o_w_id = {w} GROUP BY o_d_id)
  AS last_orders ON o_d_id = d_id
LEFT JOIN (SELECT no_d_id, max(no_o_id) AS max_no_o_id FROM new_order WHERE no_w_id = {w} GROUP BY no_d_id)
  AS last_new_orders ON no_d_id = d_id
WHERE d_w_id = {w} AND (d_next_o_id - 1 IS DISTINCT FROM max_o_id OR d_next_o_id - 1 <> max_no_o_id)
ORDER BY d_id LIMIT 1",
    },
    Condition {
        number: 3,
        rule: "max(NO_O_ID) - min(NO_O_ID) + 1 = number of NEW-ORDER rows",
        query: "\
SELECT no_d_id, min(no_o_id), max(no_o_id), count(*) FROM new_order WHERE no_w_id = {w}
GROUP BY no_d_id HAVING max(no_o_id) - min(no_o_id) + 1 <> count(*)
ORDER BY no_d_id LIMIT 1",
    },
    Condition {
        number: 4,
        rule: "sum(O_OL_CNT) = number of ORDER-LINE rows",
        query: "\
SELECT o_d_id, sum_o_ol_cnt, ol_d_id, order_lines
FROM (SELECT o_d_id, sum(o_ol_cnt) AS sum_o_ol_cnt FROM orders WHERE o_w_id = {w} GROUP BY o_d_id)
  AS announced
FULL JOIN (SELECT ol_d_id, count(*) AS order_lines FROM order_line WHERE ol_w_id = {w} GROUP BY ol_d_id)
  AS present ON ol_d_id = o_d_id
WHERE sum_o_ol_cnt IS DISTINCT FROM order_lines
ORDER BY o_d_id, ol_d_id LIMIT 1",
    },
    Condition {
        number: 5,
        rule: "O_CARRIER_ID is null if and only if there is a NEW-ORDER row",
        query: "\
SELECT o_d_id, o_id, o_carrier_id, no_o_id FROM orders
LEFT JOIN new_order ON no_w_id = {w} AND no_d_id = o_d_id AND no_o_id = o_id
WHERE o_w_id = {w} AND (o_carrier_id IS NULL) <> (no_o_id IS NOT NULL)
ORDER BY o_d_id, o_id LIMIT 1",
    },
    Condition {
        number: 6,
        rule: "O_OL_CNT = number of the order's ORDER-LINE rows",
        query: "\
SELECT o_d_id, o_id, o_ol_cnt, order_lines FROM orders
LEFT JOIN (SELECT ol_d_id, ol_o_id, count(*) AS order_lines FROM order_line
  WHERE ol_w_id = {w} GROUP BY ol_d_id, ol_o_id) AS present ON ol_d_id = o_d_id AND ol_o_id = o_id
WHERE o_w_id = {w} AND o_ol_cnt IS DISTINCT FROM order_lines
ORDER BY o_d_id, o_id LIMIT 1",
    },
    Condition {
        number: 7,
        rule: "OL_DELIVERY_D is null if and only if the order's O_CARRIER_ID is null",
        query: "\
SELECT ol_d_id, ol_o_id, ol_number, ol_delivery_d, o_carrier_id FROM order_line
JOIN orders ON o_w_id = {w} AND o_d_id = ol_d_id AND o_id = ol_o_id
WHERE ol_w_id = {w} AND (ol_delivery_d IS NULL) <> (o_carrier_id IS NULL)
ORDER BY ol_d_id, ol_o_id, ol_number LIMIT 1",
    },
    Condition {
        number: 8,
        rule: "W_YTD = sum(H_AMOUNT)",
        query: "\
SELECT w_id, w_ytd, sum_h_amount FROM warehouse
CROSS JOIN (SELECT sum(h_amount) AS sum_h_amount FROM history WHERE h_w_id = {w}) AS payments
WHERE w_id = {w} AND w_ytd IS DISTINCT FROM sum_h_amount",
    },
    Condition {
        number: 9,
        rule: "D_YTD = sum(H_AMOUNT)",
        query: "\
SELECT d_id, d_ytd, sum_h_amount FROM district
LEFT JOIN (SELECT h_d_id, sum(h_amount) AS sum_h_amount FROM history WHERE h_w_id = {w} GROUP BY h_d_id)
  AS payments ON h_d_id = d_id
WHERE d_w_id = {w} AND d_ytd IS DISTINCT FROM sum_h_amount
ORDER BY d_id LIMIT 1",
    },
    Condition {
        number: 10,
        rule: "C_BALANCE = sum(OL_AMOUNT of delivered lines) - sum(H_AMOUNT)",
        query: "\
SELECT c_d_id, c_id, sum(balance) AS c_balance, sum(delivered) AS sum_ol_amount, sum(paid) AS sum_h_amount
FROM (SELECT c_d_id, c_id, c_balance AS balance, 0 AS delivered, 0 AS paid FROM customer
  WHERE c_w_id = {w}
  UNION ALL SELECT o_d_id, o_c_id, 0, ol_amount, 0 FROM orders
  JOIN order_line ON ol_w_id = {w} AND ol_d_id = o_d_id AND ol_o_id = o_id
  WHERE o_w_id = {w} AND ol_delivery_d IS NOT NULL
  UNION ALL SELECT h_c_d_id, h_c_id, 0, 0, h_amount FROM history
  WHERE h_w_id IN ({all}) AND h_c_w_id = {w}) AS movements
GROUP BY c_d_id, c_id HAVING sum(balance) <> sum(delivered) - sum(paid)
ORDER BY c_d_id, c_id LIMIT 1",
    },
    Condition {
        number: 11,
        // By the letter this holds only for a database that was just loaded: every later delivery removes one
        // NEW-ORDER row. Each of them is counted at its customer, so that is added here, and it holds always.
        rule: "ORDER rows - NEW-ORDER rows - sum(C_DELIVERY_CNT) = 2100 (7/10 of the district's customers)",
        query: "\
SELECT c_d_id, customers, deliveries, order_rows, new_order_rows
FROM (SELECT c_d_id, count(*) AS customers, sum(c_delivery_cnt) AS deliveries FROM customer
  WHERE c_w_id = {w} GROUP BY c_d_id) AS customers_of
LEFT JOIN (SELECT o_d_id, count(*) AS order_rows FROM orders WHERE o_w_id = {w} GROUP BY o_d_id)
  AS orders_of ON o_d_id = c_d_id
LEFT JOIN (SELECT no_d_id, count(*) AS new_order_rows FROM new_order WHERE no_w_id = {w} GROUP BY no_d_id)
  AS new_orders_of ON no_d_id = c_d_id
WHERE coalesce(order_rows, 0) - coalesce(new_order_rows, 0) - deliveries <> customers / 10 * 7
ORDER BY c_d_id LIMIT 1",
    },
    Condition {
        number: 12,
        rule: "C_BALANCE + C_YTD_PAYMENT = sum(OL_AMOUNT of delivered lines)",
        query: "\
SELECT c_d_id, c_id, sum(account) AS c_balance_and_c_ytd_payment, sum(delivered) AS sum_ol_amount
FROM (SELECT c_d_id, c_id, c_balance + c_ytd_payment AS account, 0 AS delivered FROM customer
  WHERE c_w_id = {w}
  UNION ALL SELECT o_d_id, o_c_id, 0, ol_amount FROM orders
  JOIN order_line ON ol_w_id = {w} AND ol_d_id = o_d_id AND ol_o_id = o_id
  WHERE o_w_id = {w} AND ol_delivery_d IS NOT NULL) AS movements
GROUP BY c_d_id, c_id HAVING sum(account) <> sum(delivered)
ORDER BY c_d_id, c_id LIMIT 1",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::TABLES;

    /// Words of a query that are table names, each of which needs an equality on its warehouse.
    #[test]
    fn every_table_is_asked_for_by_its_warehouse() {
        for condition in &CONDITIONS {
            let words: Vec<&str> = condition.query.split_whitespace().collect();
            let mut tables = 0;
            for table in TABLES {
                let is_read = words
                    .windows(2)
                    .any(|pair| matches!(pair, ["FROM" | "JOIN", name] if *name == table.name));
                if is_read {
                    tables += 1;
                    let key = table
                        .columns
                        .iter()
                        .map(|(name, _)| *name)
                        .find(|name| name.ends_with("_w_id") && name.matches('_').count() == 2 || *name == "w_id");
                    let key = key.unwrap();
                    let is_named = condition.query.contains(&format!("{key} = {{w}}"))
                        || condition.query.contains(&format!("{key} IN ({{all}})"));
                    assert!(is_named, "3.3.2.{}: {}", condition.number, table.name);
                }
            }
            assert!(tables > 0, "3.3.2.{}", condition.number);
        }
    }

    #[test]
    fn conditions_are_numbered_as_in_the_specification() {
        let numbers: Vec<u32> = CONDITIONS.iter().map(|condition| condition.number).collect();
        assert_eq!(numbers, (1..=12).collect::<Vec<u32>>());
    }
}
