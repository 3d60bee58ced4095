//! Scenarios of MinBFT, step by step, on the simulator's cluster: crashes, starts from what was durable, single lies.

use simulator::protocol::MinBft;
use simulator::scenario::Scenario;

mod changes;
mod groups;
mod injecting;
mod lies;
mod rules;
mod scenarios;

/// MinBFT's production machines in virtual time.
type Cluster = Scenario<MinBft>;
