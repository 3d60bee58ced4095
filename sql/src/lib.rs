//! Footprints and determinism of SQL statements, and the self-contained operation: pure, no IO.
//!
//! An [`operation::Operation`] is what a proxy signs and replicas order; a [`footprint::Footprint`] says
//! which resources it touches. Proxies and voters derive footprints with the same code (DESIGN.md, 5 to 7).

pub mod footprint;
pub mod operation;
pub mod rules;
pub mod result;
