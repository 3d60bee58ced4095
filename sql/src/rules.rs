//! Partition rules: which column of which table holds the partition key (`docs/design.md`).

use serde::{Deserialize, Serialize};

/// The schema of rules that name no schema.
const DEFAULT_SCHEMA: &str = "public";

/// What the cluster file says about partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionRules {
    /// The partition families; a table belongs to at most one (the first that names it).
    #[serde(default)]
    pub families: Vec<Family>,
    /// Tables (`name` or `schema.name`) that are read under any lock and written under `Everything`.
    #[serde(default)]
    pub reference_tables: Vec<String>,
    /// What a footprint of more than one resource locks.
    #[serde(default)]
    pub multi_partition: MultiPartition,
    /// Whether rows and unique values of tables without a rule are locked, where a statement names them, and not the tables
    /// (`docs/decisions/0046`). New clusters do so; a file that does not say it is of an earlier build, which locked tables.
    #[serde(default)]
    pub lock_rows: bool,
}

/// Tables whose rows are divided by the same key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// The name that [`crate::footprint::PartitionKey::family`] carries.
    pub name: String,
    /// Pairs of table (`name`, which means `public.name`, or `schema.name`) and key column.
    pub tables: Vec<(String, String)>,
}

/// What a footprint of more than one resource locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MultiPartition {
    /// Exactly what is touched.
    #[default]
    Footprint,
    /// Everything: the thesis's global lock.
    Global,
}

impl PartitionRules {
    /// The rules for TPC-C: every table by its warehouse, `item` as reference table.
    pub fn tpcc() -> Self {
        let tables = [
            ("warehouse", "w_id"),
            ("district", "d_w_id"),
            ("customer", "c_w_id"),
            ("history", "h_w_id"),
            ("new_order", "no_w_id"),
            ("new_orders", "no_w_id"),
            ("orders", "o_w_id"),
            ("oorder", "o_w_id"),
            ("order_line", "ol_w_id"),
            ("stock", "s_w_id"),
        ];
        Self {
            families: vec![Family {
                name: "warehouse".into(),
                tables: tables.map(|(table, column)| (table.into(), column.into())).to_vec(),
            }],
            reference_tables: vec!["item".into()],
            multi_partition: MultiPartition::Footprint,
            lock_rows: true,
        }
    }

    /// The family (its index) and key column of a table.
    pub fn key_of(&self, schema: &str, table: &str) -> Option<(usize, &str)> {
        self.families.iter().enumerate().find_map(|(index, family)| {
            let mut tables = family.tables.iter();
            tables
                .find(|(name, _)| names(name, schema, table))
                .map(|(_, column)| (index, column.as_str()))
        })
    }

    /// Whether a table is a reference table.
    pub fn is_reference(&self, schema: &str, table: &str) -> bool {
        self.reference_tables.iter().any(|name| names(name, schema, table))
    }
}

fn names(rule: &str, schema: &str, table: &str) -> bool {
    match rule.split_once('.') {
        Some((rule_schema, rule_table)) => rule_schema == schema && rule_table == table,
        None => schema == DEFAULT_SCHEMA && rule == table,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_without_schema_means_public() {
        let rules = PartitionRules::tpcc();
        assert_eq!(rules.key_of("public", "stock"), Some((0, "s_w_id")));
        assert_eq!(rules.key_of("other", "stock"), None);
        assert!(rules.is_reference("public", "item"));
        assert!(!rules.is_reference("public", "stock"));
    }

    #[test]
    fn a_rule_with_schema_means_that_schema() {
        let rules = PartitionRules {
            families: vec![Family {
                name: "tenant".into(),
                tables: vec![("shop.bill".into(), "tenant".into())],
            }],
            ..PartitionRules::default()
        };
        assert_eq!(rules.key_of("shop", "bill"), Some((0, "tenant")));
        assert_eq!(rules.key_of("public", "bill"), None);
    }
}
