//! What a node says of itself on `GET /status`.

use std::sync::{Arc, Mutex, PoisonError};

use ordering::agreement::{Phase, Status};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use voter::{EffectsReport, VoterState};

/// The state of a machine that takes part, but whose database lacks what f+1 logs have cut off, or contradicts what f+1
/// voters have certified.
pub const NEEDS_REPAIR: &str = "database needs repair";
/// The state of a machine that takes part, but cannot reach its database.
pub const DATABASE_DOWN: &str = "database down";
/// The state of a machine that has stopped for good, since going on would not be safe.
pub const STOPPED: &str = "stopped";

/// The findings of a voter that compares its database's changes with those of others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectsStatus {
    /// `compared`, or why not.
    pub state: String,
    /// Orders at which the database has changed the same as f+1 databases have, since the node started.
    pub agreed: u64,
    /// Orders that have not been compared with f others yet.
    pub open: u64,
    /// The database has changed something else at an order than f+1 others have: which, and what it had changed.
    pub diverged: Option<String>,
    /// Orders at which no f+1 databases have changed the same, since the node started, and the last of them.
    pub disputed: u64,
    /// The last of them.
    pub last_disputed: Option<String>,
    /// Transactions that changed the database and that nobody ordered, since the node started.
    pub unordered: u64,
    /// The tables and rows that the last unordered transaction changed.
    pub last_unordered: Option<String>,
}

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
    /// How many groups are in charge of partitions; 0: an earlier build, which does not say.
    #[serde(default)]
    pub groups_in_charge: u16,
    /// How often that was changed.
    #[serde(default)]
    pub assignment_version: u64,
    /// The order of the last change.
    #[serde(default)]
    pub assignment_since: u64,
    /// The last order that its voter has executed without gap; none without a serving voter.
    pub executed: Option<u64>,
    /// The last order that is durable in its database.
    pub flushed: Option<u64>,
    /// A digest of what its voter has executed, where that is known.
    pub digest: Option<String>,
    /// The findings of the machine's voter, which compares its database's changes with those of the others; none without a voter.
    #[serde(default)]
    pub effects: Option<EffectsStatus>,
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
    voter: Option<(watch::Receiver<VoterState>, watch::Receiver<EffectsReport>)>,
}

impl StatusBoard {
    pub(super) fn new(
        machine: String,
        voter: Option<(watch::Receiver<VoterState>, watch::Receiver<EffectsReport>)>,
    ) -> Self {
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
        let (voter, _) = self.voter.as_ref()?;
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
        node.groups_in_charge = agreement.groups_in_charge;
        node.assignment_version = agreement.assignment.version;
        node.assignment_since = agreement.assignment.since.0;
        node.log_bytes = log_bytes;
        let Some((voter, effects)) = &self.voter else {
            return node;
        };
        let voter = voter.borrow().clone();
        node.effects = Some(effects_status(&effects.borrow(), &voter));
        match voter {
            VoterState::Serving { executed, flushed } => {
                node.executed = Some(executed.0);
                node.flushed = Some(flushed.0);
            }
            VoterState::LeftBehind { .. } | VoterState::Contradicts { .. } | VoterState::Diverged { .. }
                if node.state == "up" =>
            {
                node.state = String::from(NEEDS_REPAIR);
            }
            VoterState::Down(_) if node.state == "up" => node.state = String::from(DATABASE_DOWN),
            _ => {}
        }
        node
    }
}

fn effects_status(report: &EffectsReport, voter: &VoterState) -> EffectsStatus {
    let state = match &report.comparing {
        Ok(()) => String::from("compared"),
        Err(reason) => reason.clone(),
    };
    let diverged = match voter {
        VoterState::Diverged { order, changed } => Some(format!("order {}: {changed}", order.0)),
        _ => None,
    };
    EffectsStatus {
        state,
        agreed: report.agreed,
        open: report.open,
        diverged,
        disputed: report.disputed,
        last_disputed: report.last_disputed.clone(),
        unordered: report.unordered,
        last_unordered: report.last_unordered.clone(),
    }
}
