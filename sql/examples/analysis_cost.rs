//! What the analysis of one exchange costs when its text is cached: `cargo run --release -p sql --example analysis_cost`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::expect_used)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sql::analysis::Analyzer;
use sql::operation::{Exchange, SessionContext, StatementText, Step};
use sql::rules::PartitionRules;
use sql::schema::Schema;

const CATALOG: &str = include_str!("../tests/fixtures/catalog.jsonl");
const ROUNDS: u32 = 200_000;

fn extended(text: &str, parameters: &[&str]) -> Exchange {
    let parameters = parameters
        .iter()
        .map(|value| Some(Bytes::copy_from_slice(value.as_bytes())));
    Exchange::Extended {
        statements: vec![StatementText {
            text: text.into(),
            parameter_types: vec![23; parameters.len()],
        }],
        steps: vec![
            Step::Bind {
                portal: String::new(),
                statement: 0,
                parameter_formats: vec![],
                parameters: parameters.collect(),
                result_formats: vec![],
            },
            Step::Execute {
                portal: String::new(),
                max_rows: 0,
            },
        ],
    }
}

fn main() {
    let schema = Schema::parse(CATALOG.lines(), &PartitionRules::tpcc()).unwrap();
    let analyzer = Analyzer::new(Arc::new(schema));
    let context = SessionContext::default();
    let exchanges = [
        (
            "update by bound key",
            extended(
                "UPDATE district SET d_next_o_id = d_next_o_id + 1 WHERE d_id = $1 AND d_w_id = $2 RETURNING d_next_o_id, d_tax",
                &["3", "7"],
            ),
        ),
        (
            "insert with foreign keys",
            extended(
                "INSERT INTO history (h_c_d_id, h_c_w_id, h_c_id, h_d_id, h_w_id, h_date, h_amount, h_data) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                &["1", "9", "1", "1", "7", "1", "1", "x"],
            ),
        ),
        (
            "join by bound key",
            extended(
                "SELECT c_discount, c_last, c_credit, w_tax FROM customer, warehouse WHERE w_id = $1 AND c_w_id = w_id AND c_d_id = $2 AND c_id = $3",
                &["7", "2", "3"],
            ),
        ),
        (
            "simple select",
            Exchange::Simple {
                text: "SELECT i_price, i_name, i_data FROM item WHERE i_id = 77".into(),
            },
        ),
    ];
    for (name, exchange) in &exchanges {
        let start = Instant::now();
        let cold = Analyzer::new(Arc::clone(analyzer.schema()));
        let _ = black_box(cold.exchange(exchange, &context));
        let first = start.elapsed();
        let start = Instant::now();
        for _ in 0..ROUNDS {
            let _ = black_box(analyzer.exchange(black_box(exchange), &context));
        }
        let each = start.elapsed() / ROUNDS;
        println!(
            "{name:26} {:>6} ns cached, {:>6} µs the first time",
            each.as_nanos(),
            first.as_micros()
        );
    }
}
