//! A voter against a real PostgreSQL server.

mod one_shots;
mod reads;
mod replay;
mod rig;
mod server;
mod transactions;
