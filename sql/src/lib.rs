//! Crate `sql`.
