//! Crate `ordering`.
