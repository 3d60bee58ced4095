//! How far others say that they have followed everybody's counters, beside their checkpoints.

use std::collections::{BTreeMap, VecDeque};

use crate::identifiers::{MachineId, Order, View};
use crate::minbft::wire::checkpoint::FollowedStatement;

/// Statements of one machine that are remembered.
const STATEMENTS_PER_MACHINE: usize = 4;

/// The last statements of each machine about how far it has followed counters.
#[derive(Debug, Default)]
pub(crate) struct FollowedStatements(BTreeMap<MachineId, VecDeque<FollowedStatement>>);

impl FollowedStatements {
    /// Takes what a machine says of the counters that it follows.
    pub(crate) fn hear(&mut self, statement: FollowedStatement) {
        let known = self.0.entry(statement.followed.machine).or_default();
        known.push_back(statement);
        if known.len() > STATEMENTS_PER_MACHINE {
            known.pop_front();
        }
    }

    /// The last statement of each machine that speaks of no order above this one, and of no view above that one.
    pub(crate) fn up_to(&self, order: Order, view: View) -> Vec<FollowedStatement> {
        let fits =
            |statement: &&FollowedStatement| statement.followed.order <= order && statement.followed.view <= view;
        let last = |known: &VecDeque<FollowedStatement>| known.iter().rev().find(fits).cloned();
        self.0.values().filter_map(last).collect()
    }
}
