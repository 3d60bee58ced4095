//! Production machines in virtual time: loss, duplication, reordering, crashes, and starts from what was durable.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod asking;
mod changes;
mod cluster;
mod events;
mod injecting;
mod lies;
mod rules;
mod scenarios;
