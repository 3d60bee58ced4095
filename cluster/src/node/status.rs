//! What a node says of itself on `GET /status`.

use std::sync::{Arc, Mutex, PoisonError};

use ordering::agreement::{Phase, Status};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use voter::VoterState;

/// The state of a machine that takes part, but whose database lacks what f+1 logs have cut off, or contradicts what f+1
/// voters have certified.
pub const NEEDS_REPAIR: &str = "database needs repair";
/// The state of a machine that takes part, but cannot reach its database.
pub const DATABASE_DOWN: &str = "database down";
/// The state of a machine that has stopped for good, since going on would not be safe.
pub const STOPPED: &str = "stopped";

/// A node's word about itself. Nobody votes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The machine's name.
    pub machine: String,
    /// The process id.
    pub pid: u32,
    /// `up`, or what it waits for.
    pub state: String,
    /// The view it is in.
    pub view: u64,
    /// The last order whose PREPARE it has seen without gap.
    pub prepared: u64,
    /// Everything up to this order is decided and in its log.
    pub decided: u64,
    /// The last stable checkpoint.
    pub stable: u64,
    /// The last decided order of each group.
    pub groups: Vec<(u16, u64)>,
    /// The last order that its voter has executed without gap; none without a serving voter.
    pub executed: Option<u64>,
    /// The last order that is durable in its database.
    pub flushed: Option<u64>,
    /// A digest of what its voter has executed, where that is known.
    pub digest: Option<String>,
    /// Size of its log.
    pub log_bytes: u64,
    /// The first order that can be read from it.
    pub log_first: u64,
}

/// Where the owner task puts its status for others to read.
#[derive(Clone)]
pub(super) struct StatusBoard {
    machine: String,
    agreement: Arc<Mutex<Option<(Status, u64)>>>,
    voter: Option<watch::Receiver<VoterState>>,
}

impl StatusBoard {
    pub(super) fn new(machine: String, voter: Option<watch::Receiver<VoterState>>) -> Self {
        Self {
            machine,
            agreement: Arc::default(),
            voter,
        }
    }

    pub(super) fn set(&self, status: Status, log_bytes: u64) {
        *self.agreement.lock().unwrap_or_else(PoisonError::into_inner) = Some((status, log_bytes));
    }

    /// Whether this machine's voter serves; `None` on a machine without one.
    pub(super) fn voter_serves(&self) -> Option<bool> {
        let voter = self.voter.as_ref()?;
        Some(matches!(*voter.borrow(), VoterState::Serving { .. }))
    }

    pub(super) fn read(&self) -> NodeStatus {
        let mut node = NodeStatus {
            machine: self.machine.clone(),
            pid: std::process::id(),
            ..NodeStatus::default()
        };
        let Some((agreement, log_bytes)) = self.agreement.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
            node.state = String::from("starting");
            return node;
        };
        node.state = String::from(match agreement.phase {
            Phase::Waiting => "waiting",
            Phase::Starting => "starting",
            Phase::Changing => "changing view",
            Phase::Live => "up",
            Phase::Stopped => STOPPED,
        });
        node.view = agreement.view.0;
        node.prepared = agreement.prepared.0;
        node.decided = agreement.decided.0;
        node.stable = agreement.stable.0;
        node.log_first = agreement.log_first.0;
        node.groups = agreement
            .groups
            .iter()
            .map(|(group, order)| (group.0, order.0))
            .collect();
        node.log_bytes = log_bytes;
        match self.voter.as_ref().map(|voter| voter.borrow().clone()) {
            Some(VoterState::Serving { executed, flushed }) => {
                node.executed = Some(executed.0);
                node.flushed = Some(flushed.0);
            }
            Some(VoterState::LeftBehind { .. } | VoterState::Contradicts { .. }) if node.state == "up" => {
                node.state = String::from(NEEDS_REPAIR);
            }
            Some(VoterState::Down(_)) if node.state == "up" => node.state = String::from(DATABASE_DOWN),
            _ => {}
        }
        node
    }
}
