//! What end-to-end tests share: a real cluster, started by the `cloudbft` command in a directory of its own.

pub mod cluster;
