//! Crate `cluster`.
