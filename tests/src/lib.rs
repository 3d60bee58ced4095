//! End-to-end tests on real processes: the harness. Nothing imports this crate.

pub mod cluster;
pub mod network;
mod slot;
