//! The trusted counter: the tamper-proof component of each machine (`docs/design.md#security`, rule AdmittedEpochs).
//!
//! A counter signs *unique warrants*: it binds a digest to (its identity, an epoch, a slot, a value) and never
//! gives one (epoch, slot, value) to two digests. It trusts nobody: not the node beside it, not its peers.
//!
//! | file | what |
//! |---|---|
//! | `warrant.rs` | the unique warrant, what exactly is certified, the two traits |
//! | `ed25519.rs` | warrants that anyone with the public key can verify |
//! | `keyed.rs` | warrants by a key shared inside all counters: fast, verified only with a counter |
//! | `software.rs` | the counter itself: epoch, slots, increment before release |
//! | `state.rs` | key and epoch files; a new epoch at each start |
//! | `socket.rs`, `client.rs` | the counter as a process of its own, behind a Unix socket |

mod client;
mod ed25519;
mod keyed;
mod socket;
mod software;
mod state;
mod warrant;

pub use client::CounterClient;
pub use ed25519::Ed25519Verifier;
pub use keyed::KeyedVerifier;
pub use socket::{CONNECTIONS_MAX, serve};
pub use software::{CounterKind, SLOTS_MAX, SoftwareCounter};
pub use state::CounterState;
pub use warrant::{
    Certificate, CounterError, CounterIdentity, TrustedCounter, UniqueWarrant, VerificationError, WarrantVerifier,
};
