//! What makes the parts a running system: the cluster file, identities, links, the durable log, the node.

pub mod clock;
pub mod file;
pub mod hex;
pub mod identity;
pub mod link;
pub mod log;
pub mod postgres;
pub mod tls;
