//! Footprints and determinism of SQL statements, and the self-contained operation: pure, no IO.
//!
//! An [`operation::Operation`] is what a proxy signs and replicas order; a [`footprint::Footprint`] says
//! which resources it touches. Proxies and voters derive footprints with the same code (`docs/design.md` and
//! `docs/determinism.md`): [`analysis::Analyzer`], from the text, the bound parameters and the catalog
//! ([`schema::Schema`]).

pub mod analysis;
pub mod determinism;
pub mod footprint;
pub mod names;
pub mod object_numbers;
pub mod operation;
pub mod refusal;
pub mod result;
pub mod rules;
pub mod schema;
pub mod statement;

mod classify;
mod functions;
mod lexer;
mod words;
