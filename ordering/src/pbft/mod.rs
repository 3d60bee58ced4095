//! PBFT: 3f+1 replicas, no trusted counter (Castro and Liskov, OSDI'99 and TOCS'02; thesis chapter 4;
//! `docs/decisions/0016`).
//!
//! One [`Machine`] is everything that one machine does in the agreement. It votes on whole batches, for all groups.
//!
//! | what | where |
//! |---|---|
//! | which input means what in which phase: the one match on both | `machine.rs`, `phase.rs`; `interface.rs` steps it |
//! | how a machine comes from one phase to another, after a restart too | `views/` |
//! | Live: requests are ordered, accepted, prepared, decided; what is lost is sent again | `live/` |
//! | Changing: how the next view begins | `change/` |
//! | what every phase works on: the ledger, what was accepted, what waits, whether it gets on | `core.rs`, `window.rs`, `waiting.rs`, `bodies.rs`, `pace.rs` |
//! | the decided history: its checkpoints, where the log is cut | `history.rs`, `ledger/` |
//! | the log: what stands in it, reading it after a restart, answers from it | `log/` |
//! | messages, and what of them can be verified without state, by any thread | `wire/` |
//!
//! **Persist before voting.** PREPARE leaves when the batch with its bodies is durable, COMMIT when the certificate
//! is. So a replica that restarts has forgotten nothing that it said, and 2f+1 COMMITs are 2f+1 durable copies.
//!
//! **In order.** Batches are accepted, and COMMITs sent, in the order of their numbers. So orders have no gap from the
//! beginning, and a view change has none to fill.

mod bodies;
mod change;
mod core;
mod history;
mod interface;
mod live;
mod log;
mod machine;
mod pace;
mod phase;
mod views;
mod waiting;
mod window;
mod wire;

pub use log::reader::LogReader;
pub use log::record::{Record, Resume};
pub use log::recovery::Recovery;
pub use machine::Machine;
pub use wire::change::{NewView, RequestViewChange, ViewChange};
pub use wire::message::{FORWARD_MAX, Message, Standing, verify_message};
pub use wire::ordered::{Batch, Certificate, Commit, PrePrepare, Prepare, WINDOW};

use crate::agreement;

/// What a machine is fed.
pub type Input = agreement::Input<Message>;

/// What the shell is to do.
pub type Output = agreement::Output<Message, Record, LogReader>;
