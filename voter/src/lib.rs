//! Crate `voter`.
