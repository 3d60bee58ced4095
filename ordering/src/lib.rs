//! Agreement: messages, MinBFT and the protocols beside it; pure (DESIGN.md section 4).

pub mod identifiers;
pub mod message;
