//! Twins for clients: three real voters on three real servers under one fake order, with honest and lying clients whose
//! scripts are drawn from a seed. After each seed the databases are compared, and every acknowledgement against them.

#![allow(clippy::module_name_repetitions)]

pub mod answer;
pub mod checker;
pub mod honest;
pub mod liar;
pub mod menu;
pub mod network;
pub mod run;
pub mod server;
pub mod session;
pub mod topic;
pub mod turns;
pub mod world;
