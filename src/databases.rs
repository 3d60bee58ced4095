//! The databases of several machines: read at one state, and compared.

pub(crate) mod contents;
pub(crate) mod members;
pub(crate) mod ranges;
pub(crate) mod tables;
pub(crate) mod vote;
