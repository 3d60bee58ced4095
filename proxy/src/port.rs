//! The proxy's side of its links to the nodes: two channels, implemented by the cluster crate over TLS.

use ordering::identifiers::MachineId;
use ordering::message::{ClientMessage, Notifications, Request, ResultMessage, StoreReceipt};
use tokio::sync::mpsc;

/// A set of machines, as a bit mask over machine numbers (a cluster has at most [`MachineSet::CAPACITY`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MachineSet(u64);

impl MachineSet {
    /// Machine numbers from here on cannot be in a set.
    pub const CAPACITY: u8 = 64;

    /// No machine.
    pub const EMPTY: MachineSet = MachineSet(0);

    /// A set of one machine.
    pub fn one(machine: MachineId) -> Self {
        Self(1_u64.checked_shl(u32::from(machine.0)).unwrap_or(0))
    }

    /// Whether the machine is in the set.
    pub fn contains(self, machine: MachineId) -> bool {
        self.0 & Self::one(machine).0 != 0
    }

    /// Adds a machine.
    pub fn insert(&mut self, machine: MachineId) {
        self.0 |= Self::one(machine).0;
    }

    /// Removes a machine.
    pub fn remove(&mut self, machine: MachineId) {
        self.0 &= !Self::one(machine).0;
    }

    /// The machines of both sets.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The machines of this set that are not in the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many machines are in the set.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The set as a bit mask: bit `1 << machine`.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether no machine is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The machines, ascending.
    pub fn iter(self) -> impl Iterator<Item = MachineId> {
        (0..Self::CAPACITY)
            .map(MachineId)
            .filter(move |machine| self.contains(*machine))
    }
}

impl FromIterator<MachineId> for MachineSet {
    fn from_iter<I: IntoIterator<Item = MachineId>>(machines: I) -> Self {
        let mut set = Self::EMPTY;
        machines.into_iter().for_each(|machine| set.insert(machine));
        set
    }
}

/// To whom a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Every node of the cluster (2f+2 machines).
    All,
    /// These machines only.
    Machines(MachineSet),
}

/// What a proxy sends to nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToNode {
    /// A signed request, for the primary and the replicas.
    Request(Request),
    /// A direct statement or a recall, for the voter.
    Client(ClientMessage),
}

/// What a proxy gets from a node's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromNode {
    /// A result from the machine's voter.
    Result(ResultMessage),
    /// What became of a body that the machine was to keep.
    Receipt(StoreReceipt),
    /// What a transaction has notified, as the machine's voter says.
    Notifications(Notifications),
    /// The link to the machine is usable (sent at every connect).
    LinkUp,
    /// The link to the machine is lost; what was sent and not answered may be lost too.
    LinkDown,
}

/// The links to the cluster. Both channels are bounded by who makes them.
///
/// Messages to one machine are delivered in the order sent, or not at all (link down, queue full): loss is allowed
/// and costs latency only. A message that waits for one dead machine must not hold up those for the others.
#[derive(Debug)]
pub struct ClusterPort {
    /// Outgoing messages.
    pub to: mpsc::Sender<(Destination, ToNode)>,
    /// Incoming messages, each from the authenticated peer named.
    pub from: mpsc::Receiver<(MachineId, FromNode)>,
}
