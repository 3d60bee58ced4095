//! Scenarios of PBFT, step by step, on the simulator's cluster: crashes, restarts from what was durable, and machines that
//! lie. Each machine is watched: what it says must stand in its log.

use ordering::configuration::Configuration;
use simulator::protocol::Pbft;
use simulator::scenario::Scenario;

use durable::Votes;

mod adversary;
mod durable;
mod rules;
mod scenarios;
mod verification;
mod view_changes;

/// PBFT's production machines in virtual time.
type Cluster = Scenario<Pbft>;

fn cluster(seed: u64, faults: u8, groups: u16) -> Cluster {
    tuned(seed, faults, groups, |_| {})
}

fn tuned(seed: u64, faults: u8, groups: u16, tune: fn(&mut Configuration)) -> Cluster {
    let mut cluster = Cluster::tuned(seed, faults, groups, tune);
    cluster.watch = Some(Box::new(Votes::new(3 * faults + 1)));
    cluster
}
