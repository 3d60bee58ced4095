//! What must hold, one property per file. Checkers see what correct machines and voters do, and what clients
//! signed; never the inside of the protocol.

use ordering::agreement::{MisbehaviourKind, Phase, Status};
use ordering::configuration::Configuration;
use ordering::identifiers::{Digest, GroupId, MachineId, Order};
use ordering::message::{CommitDbEntry, Request};
use ordering::verified::Rejection;

use crate::protocol::{HistoryEnd, Proposal};
use crate::violation::Violation;

mod accusation;
mod agreement;
mod assignment;
mod checkpoint;
mod durability;
mod exactly_once;
mod liveness;
mod memory;
mod order;
mod own_counter;
mod proposal;
#[cfg(test)]
mod tests;
mod validity;

pub use liveness::Liveness;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Observation<'a> {
    /// A client signed a request.
    Signed {
        /// The request.
        request: &'a Request,
        /// Its digest.
        digest: Digest,
    },
    /// A correct machine has decided an operation.
    Delivered {
        /// The machine.
        machine: MachineId,
        /// The group that decided.
        group: GroupId,
        /// The operation, whole.
        entry: &'a CommitDbEntry,
    },
    /// The voter on a correct machine has reached an order.
    Executed {
        /// The machine.
        machine: MachineId,
        /// The order.
        order: Order,
        /// The group that decided it.
        group: GroupId,
        /// The time that was decided for it.
        time_us: u64,
        /// What stands at the order, if it is not nothing.
        request: Option<&'a Request>,
        /// The digest at the order.
        digest: Digest,
        /// Whether the operation had its effect here (not: nothing, refused, or run before).
        has_effect: bool,
    },
    /// A correct machine has restarted: its voter goes on after this order.
    Restarted {
        /// The machine.
        machine: MachineId,
        /// The last order that its database kept.
        executed: Order,
    },
    /// The state of a correct machine after a step.
    Stepped {
        /// The machine.
        machine: MachineId,
        /// Its configuration.
        configuration: &'a Configuration,
        /// Its status.
        status: &'a Status,
        /// How far its history goes.
        history: HistoryEnd,
        /// Bytes of messages that the step has sent, to all receivers together.
        sent_bytes: usize,
    },
    /// A machine, as primary, has sent a batch (again).
    Proposed {
        /// The machine.
        machine: MachineId,
        /// Whether it is the adversary's.
        is_byzantine: bool,
        /// The batch.
        proposal: &'a Proposal,
    },
    /// A correct machine says that another correct machine breaks the rules, or that its own state contradicts itself.
    Accused {
        /// The machine that says so.
        by: MachineId,
        /// The other one.
        machine: MachineId,
        /// What it is said to do.
        kind: MisbehaviourKind,
    },
    /// A correct machine has refused what another correct machine sent.
    Refused {
        /// The machine that refused it.
        by: MachineId,
        /// The other one.
        machine: MachineId,
        /// What was sent.
        kind: &'static str,
        /// Why it was refused.
        rejection: Rejection,
    },
    /// The counter of a correct machine has given it a warrant that does not follow its last one.
    CounterSkipped {
        /// The machine.
        machine: MachineId,
        /// What it does now.
        phase: Phase,
    },
    /// The liveness phase is over: the state of a correct machine that is up.
    Ended {
        /// The machine.
        machine: MachineId,
        /// How far its history goes.
        history: HistoryEnd,
        /// How far its voter is; none: it has no voter.
        executed: Option<Order>,
    },
}

/// One property.
pub trait Checker {
    /// Looks at what happened.
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation>;

    /// In a long run: nothing below this order happens again.
    fn forget_below(&mut self, _order: Order) {}
}

/// All properties but liveness, which the run itself measures.
pub struct Checkers(Vec<Box<dyn Checker>>);

impl Checkers {
    /// The checkers of a cluster; `groups`: how many are in charge at first, and how many there are.
    pub fn new(clients: usize, groups: (u16, u16)) -> Self {
        Checkers(vec![
            Box::new(agreement::Agreement::default()),
            Box::new(order::OrderWithoutGaps::default()),
            Box::new(exactly_once::ExactlyOnce::default()),
            Box::new(validity::Validity::default()),
            Box::new(durability::Durability::default()),
            Box::new(checkpoint::Checkpoint::default()),
            Box::new(memory::BoundedMemory::new(clients)),
            Box::new(proposal::Proposals::default()),
            Box::new(own_counter::OwnCounter),
            Box::new(accusation::Accusations),
            Box::new(assignment::Assignments::new(groups)),
        ])
    }

    /// Shows an observation to every checker.
    pub fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        self.0.iter_mut().try_for_each(|checker| checker.observe(observation))
    }

    /// In a long run: nothing below this order happens again.
    pub fn forget_below(&mut self, order: Order) {
        self.0.iter_mut().for_each(|checker| checker.forget_below(order));
    }
}
