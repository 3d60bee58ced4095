//! Crate `trusted-counter`.
