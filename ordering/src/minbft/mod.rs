//! MinBFT with a separate primary and several groups (`docs/protocol.md`).
//!
//! One [`Machine`] is everything that one machine does in the agreement: its primary candidate, and (except on m0)
//! its replica of every group. It follows the PREPARE stream once for all groups.
//!
//! | what | where |
//! |---|---|
//! | which input means what in which phase: the one match on both | `machine.rs`, `phase.rs`; `interface.rs` steps it |
//! | how a machine comes from one phase to another | `views/` |
//! | Live: requests are ordered, followed, committed, decided; what is lost is repaired | `live/` |
//! | Changing: a primary is suspected, a view is left, the next one is agreed on | `change/` |
//! | Starting: fresh, or after all machines were down (rule AllLogsAtStart) | `start/` |
//! | how a view begins is taken over, after a start and after a change | `adoption.rs` |
//! | what every phase works on: the ledger, the own counter, what is known of earlier views | `core.rs`, `counter.rs`, `followed.rs` |
//! | the log: what stands in it, reading it after a restart, answers from it | `log/` |
//! | messages, and what of them can be verified without state, by any thread | `wire/` |
//!
//! **Persist before COMMIT.** A replica sends COMMIT only when the PREPARE, its COMMIT and the bodies are durable.
//! So f+1 COMMITs are f+1 durable copies, and the decision needs no fsync of its own.
//!
//! **View change.** A view is left in one place, `leave_view`, and entered in one place, `enter_view`, with an outcome
//! that a start or a view change has decided.

mod adoption;
mod change;
mod core;
mod counter;
mod followed;
mod interface;
mod live;
mod log;
mod machine;
mod phase;
mod start;
mod views;
mod wire;

pub use change::outcome::compute_change;
pub use log::provenance::{Fetched, ViewBase};
pub use log::reader::LogReader;
pub use log::record::{Record, Resume};
pub use log::recovery::Recovery;
pub use machine::Machine;
pub use wire::admission::Admission;
pub use wire::change::{NewView, RequestViewChange, RunItem, RunStart, ViewChange};
pub use wire::checkpoint::{Followed, FollowedStatement};
pub use wire::message::{Message, Progress, Standing, verify_message};
pub use wire::ordered::{Commit, Prepare};
pub use wire::outcome::{
    Acknowledgement, CertifiedOutcome, Endorsement, LiveProof, Outcome, OutcomeEntry, Proof, ViewAcknowledgement,
};
pub use wire::start::{Collect, Hello, Report, Start};

use crate::agreement;

/// What a machine is fed.
pub type Input = agreement::Input<Message>;

/// What the shell is to do.
pub type Output = agreement::Output<Message, Record, LogReader>;
