//! A voter against a real PostgreSQL server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod bodies;
mod catalog;
mod certificates;
mod crash;
mod deferred;
mod doubts;
mod effects;
mod ends;
mod hostile;
mod large;
mod left_behind;
mod notifications;
mod object_numbers;
mod one_shots;
mod reads;
mod replay;
mod rig;
mod server;
mod transactions;
