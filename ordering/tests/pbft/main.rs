//! PBFT's production machines in virtual time: loss, duplication, reordering, crashes and restarts from what was
//! durable, and machines that lie.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod adversary;
mod checks;
mod cluster;
mod events;
mod rules;
mod scenarios;
mod verification;
mod view_changes;
