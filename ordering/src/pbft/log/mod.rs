//! The log: what stands in it, reading it after a restart, answers from it.

pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod recovery;
