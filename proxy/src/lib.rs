//! Crate `proxy`.
