//! The Postgres wire front and the client side of the agreement (`docs/design.md`): the thesis's client
//! plugin. Applications connect to a [`Proxy`] as to a PostgreSQL server; it answers what a majority decided.

mod advisory;
mod cancels;
mod catalog;
mod client;
mod config;
mod error;
mod leftovers;
mod measures;
mod notifications;
mod port;
mod proxy;
mod scram;
mod session;
mod shared;
mod strangers;
mod wire;

pub use config::{Authentication, ProxyConfig, RoleConfig};
pub use port::{ClusterPort, Destination, FromNode, MachineSet, ToNode};
pub use proxy::{Proxy, ProxyError};
