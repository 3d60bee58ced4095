//! Crate `tpcc`.
