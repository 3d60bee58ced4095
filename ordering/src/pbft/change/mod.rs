//! What a view change decides: how the next view begins. How a machine goes through one is in `views/`.

pub(crate) mod outcome;
