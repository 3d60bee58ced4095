//! Agreement: messages, MinBFT and the protocols beside it; pure (`docs/protocol.md`).
//!
//! Nothing here knows sockets, clocks, threads, randomness or files. A shell (crate `cluster`) feeds a
//! [`minbft::Machine`] or a [`pbft::Machine`] with inputs and carries out its outputs in order:
//!
//! | output | what the shell does, and what it feeds back |
//! |---|---|
//! | `Persist` | appends the record to the machine's log; after an fsync that covers it: `Persisted(sequence)` |
//! | `Certify` | `create_uw(slot, digest)`, strictly in the order of the outputs; then `Certified` |
//! | `Send` | sends the message over the link; the receiver verifies it ([`directory::Directory`]), then `Message` |
//! | `Deliver` | hands the decided operations to the local voter, and the digests to all others |
//! | `ReadLog` | feeds the reader from the log beside the owner task, and sends what it finds |
//!
//! | file | what |
//! |---|---|
//! | `identifiers.rs`, `message.rs` | the vocabulary shared with proxies and voters |
//! | `agreement.rs` | the interface that every protocol has |
//! | `hosting.rs` | what a shell needs beside it, to host machines of any protocol |
//! | `assignment.rs` | which groups are in charge of which homes, and how that changes |
//! | `configuration.rs` | sizes, limits, timeouts |
//! | `directory.rs`, `verified.rs` | who is who; [`verified::Verified`] can only be made by this crate's verification |
//! | `hashing.rs` | digests, each under a context of its own |
//! | `check.rs` | what the verification of all protocols' messages is made of |
//! | `timers.rs` | when what is due: one table |
//! | `ledger/` | what machines of both protocols keep, say and answer from alike |
//! | `minbft/` | MinBFT with a separate primary and several groups |
//! | `pbft/` | PBFT: 3f+1 replicas, no trusted counter |

// Tables by hash are looked up, never walked: their order differs from one run to the next.
#![deny(clippy::iter_over_hash_type)]

pub mod agreement;
pub mod assignment;
mod check;
pub mod configuration;
pub mod directory;
mod hashing;
pub mod hosting;
pub mod identifiers;
pub mod ledger;
pub mod message;
pub mod minbft;
pub mod pbft;
mod timers;
pub mod verified;
