//! Assignments: all correct machines agree at which order each version of the assignment begins, and how many groups it puts in
//! charge; each order was decided by the group that is in charge under the version in force there.

use std::collections::BTreeMap;

use ordering::assignment::Assignment;
use ordering::identifiers::{GroupId, MachineId, Order};
use ordering::message::Request;

use super::{Checker, Observation};
use crate::violation::Violation;
use crate::voter::deciding;

/// What the history says, and what machines have said.
pub(super) struct Assignments {
    /// How many groups are in charge at first, and how many there are.
    groups: (u16, u16),
    /// The last order that a voter has executed, without gap.
    executed: Order,
    /// The assignment after it.
    assignment: Assignment,
    /// Each version, as it was first said, and by whom.
    said: BTreeMap<u64, (Assignment, Option<MachineId>)>,
}

impl Assignments {
    pub(super) fn new(groups: (u16, u16)) -> Self {
        Assignments {
            groups,
            executed: Order(0),
            assignment: Assignment::FIRST,
            said: BTreeMap::new(),
        }
    }

    fn say(&mut self, assignment: Assignment, by: Option<MachineId>) -> Result<(), Violation> {
        let known = *self.said.entry(assignment.version).or_insert((assignment, by));
        if known.0 == assignment {
            return Ok(());
        }
        let description = format!("{known:?} differs from {assignment:?} of {by:?} (none: what voters have executed)");
        Err(Violation::safety("assignments", description))
    }

    fn execute(&mut self, order: Order, group: GroupId, request: &Request) -> Result<(), Violation> {
        let expected = deciding(&self.assignment, self.groups, request);
        if group != expected {
            let description = format!(
                "order {order} was decided by group {group}, and {expected} is in charge under {:?}",
                self.assignment
            );
            return Err(Violation::safety("assignments", description));
        }
        let next = self.assignment.after(order, request);
        if next != self.assignment {
            self.assignment = next;
            self.say(next, None)?;
        }
        Ok(())
    }
}

impl Checker for Assignments {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        match observation {
            Observation::Executed {
                order, group, request, ..
            } if *order == self.executed.next() => {
                self.executed = *order;
                match request {
                    Some(request) => self.execute(*order, *group, request),
                    None => Ok(()),
                }
            }
            // A machine without history tells what it orders by, which may never be decided.
            Observation::Stepped {
                machine,
                configuration,
                status,
                ..
            } if configuration.has_replicas() => self.say(status.assignment, Some(*machine)),
            _ => Ok(()),
        }
    }
}
