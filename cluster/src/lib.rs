//! What makes the parts a running system: the cluster file, identities, links, the durable log, the node.

pub mod clock;
pub mod counter;
pub mod file;
pub mod front;
pub mod hex;
pub mod http;
pub mod identity;
mod incarnation;
pub mod link;
pub mod log;
pub mod metrics;
pub mod node;
pub mod postgres;
mod private;
pub mod tls;
mod warrants;
