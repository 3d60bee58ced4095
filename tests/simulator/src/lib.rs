//! Whole clusters of the production state machines in virtual time, from one seed (`docs/protocol.md`).
//!
//! Every run draws its options from its seed: sizes, load, what the network, the disks, the clocks and the power do,
//! and which machines an adversary has. A *safety phase* with all of that is followed by a *liveness phase*: the
//! network is timely, the correct machines are up, and every request of a correct client must end.
//!
//! | file | what |
//! |---|---|
//! | `options.rs` | what a run does |
//! | `run.rs` | the two phases |
//! | `scenario/` | a cluster that a test has in hand, step by step |
//! | `cluster/` | machines, network, faults, in virtual time |
//! | `clock.rs`, `disk.rs`, `counter.rs`, `voter.rs`, `client.rs` | what a machine stands on, and who uses it |
//! | `adversary.rs` | what Byzantine machines do, for all protocols |
//! | `lies.rs` | how often each lie was told, and whether verification let it pass |
//! | `protocol/` | one adapter for each protocol, with what adversaries do to its messages |
//! | `checkers/` | what must hold, one property per file |
//! | `campaign.rs` | many seeds on all cores |
//! | `fuzz.rs` | arbitrary bytes and arbitrary messages |
//! | `hunt.rs` | what is broken on purpose must be found |
//! | `regressions.rs` | seeds that once failed |

pub mod adversary;
pub mod campaign;
pub mod checkers;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod counter;
pub mod disk;
pub mod fuzz;
pub mod hunt;
pub mod lies;
pub mod options;
pub mod protocol;
pub mod regressions;
pub mod run;
pub mod scenario;
pub mod soak;
pub mod violation;
pub mod voter;
