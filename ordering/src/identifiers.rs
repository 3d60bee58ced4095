//! Names of machines, groups, clients, views and positions.

use borsh::{BorshDeserialize, BorshSerialize};

macro_rules! identifier {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

identifier! {
    /// A machine (failure unit): m0 holds the first primary, m1..m(2f+1) the replicas, voters and database nodes.
    MachineId(u8)
}
identifier! {
    /// A group of replicas.
    GroupId(u16)
}
identifier! {
    /// A client: a proxy identity, as its index in the cluster file.
    ClientId(u32)
}
identifier! {
    /// A view; it is led by candidate `view mod (2f+2)`.
    View(u64)
}
identifier! {
    /// A gap-free position over all groups; the first ordered operation has order 1.
    Order(u64)
}

/// A BLAKE3 hash.
pub type Digest = [u8; 32];

impl Order {
    /// The order after this one.
    pub fn next(self) -> Order {
        Order(self.0 + 1)
    }
}

/// The client under which a machine's node has things ordered itself: its key is the machine's own. Clients of the cluster
/// file count from 0 and never come near these.
pub fn node_client(machine: MachineId) -> ClientId {
    ClientId(NODE_CLIENTS_START + u32::from(machine.0))
}

/// The client under which the administrator of the cluster has changes of the assignment ordered
/// ([`crate::assignment`]).
pub fn administrator() -> ClientId {
    ClientId(NODE_CLIENTS_START - 1)
}

/// The client of machine 0, if it had one.
const NODE_CLIENTS_START: u32 = u32::MAX - 256;
