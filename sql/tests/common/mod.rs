//! The fixture's catalog, and short ways to ask about a statement.
#![allow(dead_code, clippy::expect_used)]

use std::sync::Arc;

use bytes::Bytes;
use sql::analysis::{Analyzer, ExchangeAnalysis};
use sql::operation::{Exchange, SessionContext, StatementText, Step};
use sql::refusal::Refusal;
use sql::rules::{Family, PartitionRules};
use sql::schema::Schema;

pub(crate) const CATALOG: &str = include_str!("../fixtures/catalog.jsonl");

pub(crate) fn rules() -> PartitionRules {
    let mut rules = PartitionRules {
        lock_rows: true,
        ..PartitionRules::tpcc()
    };
    rules.families.push(Family {
        name: "tenant".into(),
        tables: vec![
            ("shop.bill".into(), "tenant".into()),
            ("tenant_bill".into(), "tenant".into()),
            ("account_name".into(), "name".into()),
            ("moves".into(), "tenant".into()),
        ],
    });
    rules.families.push(Family {
        name: "region".into(),
        tables: vec![("made_of".into(), "w".into()), ("booking".into(), "s_w_id".into())],
    });
    rules
}

pub(crate) fn analyzer() -> Analyzer {
    let schema = Schema::parse(CATALOG.lines(), &rules()).expect("the fixture is a catalog");
    Analyzer::new(Arc::new(schema))
}

pub(crate) fn context() -> SessionContext {
    SessionContext {
        role: "app".into(),
        database: "app".into(),
        ..SessionContext::default()
    }
}

pub(crate) fn simple(analyzer: &Analyzer, text: &str) -> Result<ExchangeAnalysis, Refusal> {
    analyzer.exchange(&Exchange::Simple { text: text.into() }, &context())
}

/// One extended statement with parameters in text format (`None` = NULL), of declared types.
pub(crate) fn bound(
    analyzer: &Analyzer,
    text: &str,
    types: &[u32],
    values: &[Option<&str>],
) -> Result<ExchangeAnalysis, Refusal> {
    let values = values
        .iter()
        .map(|value| value.map(|value| Bytes::copy_from_slice(value.as_bytes())));
    bound_as(analyzer, text, types, &[], values.collect())
}

pub(crate) fn bound_as(
    analyzer: &Analyzer,
    text: &str,
    types: &[u32],
    formats: &[i16],
    parameters: Vec<Option<Bytes>>,
) -> Result<ExchangeAnalysis, Refusal> {
    let exchange = Exchange::Extended {
        statements: vec![StatementText {
            text: text.into(),
            parameter_types: types.to_vec(),
        }],
        steps: vec![
            Step::Parse { statement: 0 },
            Step::Bind {
                portal: String::new(),
                statement: 0,
                parameter_formats: formats.to_vec(),
                parameters,
                result_formats: vec![],
            },
            Step::Execute {
                portal: String::new(),
                max_rows: 0,
            },
        ],
    };
    analyzer.exchange(&exchange, &context())
}

/// `Effect {footprint}`, or the SQLSTATE and rule of the refusal.
pub(crate) fn describe(result: Result<ExchangeAnalysis, Refusal>) -> String {
    match result {
        Ok(analysis) => {
            let footprint = analysis.footprint.to_string().replace("partition:warehouse=", "w");
            let footprint = footprint
                .replace(" shared", " S")
                .replace(" exclusive", " X")
                .replace("everything", "all");
            format!("{:?} {footprint}", analysis.effect)
        }
        Err(refusal) => format!("{} rule {}", refusal.sqlstate, refusal.rule),
    }
}

/// Compares a table of statements and expectations, and shows all differences at once.
pub(crate) fn check(cases: &[(&str, &str)]) {
    let analyzer = analyzer();
    let wrong: Vec<_> = cases
        .iter()
        .filter_map(|(text, expected)| {
            let found = describe(simple(&analyzer, text));
            let expected = buckets(expected);
            (found != expected).then(|| format!("{text}\n    expected {expected}\n    found    {found}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Replaces keys in brackets by their buckets: `#[7]`, `#['x']`, `#[u0123...]`, `#[7,'x']`.
pub(crate) fn buckets(expected: &str) -> String {
    let mut parts = expected.split("#[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (key, rest) = part.split_once(']').expect("a closing bracket");
        let mut canonical = Vec::new();
        for value in key.split(',') {
            let (tag, value) = match (value.strip_prefix('\''), value.strip_prefix('u')) {
                (Some(text), _) => (b't', text.trim_end_matches('\'')),
                (_, Some(uuid)) => (b'u', uuid),
                _ => (b'i', value),
            };
            canonical.push(tag);
            if tag == b'i' {
                canonical.extend(value.parse::<i64>().expect("a number").to_le_bytes());
            } else {
                canonical.extend((value.len() as u64).to_le_bytes());
                canonical.extend(value.as_bytes());
            }
        }
        text.push_str(&format!("#{}{rest}", sql::footprint::bucket(&canonical)));
    }
    text
}
