//! The voter: counts the replicas' decisions, locks and runs the operations in order on its PostgreSQL server, and
//! answers proxies and replicas (`docs/design.md`).
//!
//! Pure: vote counting, the lock table, the table of transactions, how a transaction ends, what survived, floors; `tests/model`
//! runs them without the rest. With IO: the Postgres backends and the owner task.

mod audience;
pub mod bodies;
pub mod catalog_log;
pub mod client_window;
pub mod config;
mod doubts;
mod effects;
pub mod ending;
mod executor;
pub mod floors;
pub mod listeners;
pub mod lock_table;
mod measures;
pub mod outcome;
mod owner;
pub mod postgres;
mod reads;
mod reporter;
pub mod results;
mod slot;
pub mod survived;
pub mod transactions;
pub mod vote;
pub mod voter;
pub mod work;

pub use bodies::{BodyLimits, BodyStore};
pub use config::{PostgresConfig, VoterConfig, VoterLimits};
pub use effects::EffectsReport;
pub use voter::{Voter, VoterHandle, VoterInput, VoterOutput, VoterState};
