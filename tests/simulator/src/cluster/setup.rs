//! What a cluster is made of: keys, configurations and clocks.

use ed25519_dalek::SigningKey;
use ordering::configuration::{Configuration, Faults};
use ordering::directory::{Directory, MachineEntry};
use ordering::identifiers::{ClientId, MachineId, administrator};
use rand::{Rng, RngExt};

use crate::clock::Clock;
use crate::counter;
use crate::options::Options;
use crate::protocol::Protocol;

/// A directory with the machines' keys, for tests of verification alone.
pub fn test_directory<P: Protocol>(options: &Options, rng: &mut impl Rng) -> (Directory, Vec<SigningKey>) {
    let mut key = || {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        SigningKey::from_bytes(&bytes)
    };
    let keys: Vec<SigningKey> = (0..P::machines(Faults(options.faults))).map(|_| key()).collect();
    (directory(options, &keys, &[]), keys)
}

pub(super) fn directory(options: &Options, keys: &[SigningKey], client_keys: &[SigningKey]) -> Directory {
    let machines = u8::try_from(keys.len()).expect("few machines");
    let entry = |machine: u8| MachineEntry {
        key: keys[usize::from(machine)].verifying_key(),
        counter: counter::identity(machine),
    };
    Directory {
        faults: Faults(options.faults),
        groups: options.groups_in_all(),
        machines: (0..machines)
            .map(|machine| (MachineId(machine), entry(machine)))
            .collect(),
        clients: client_keys
            .iter()
            .zip(0..)
            .map(|(key, id)| (ClientId(id), key.verifying_key()))
            .chain((options.scalings > 0).then(|| (administrator(), administrator_key(options).verifying_key())))
            .collect(),
        verifier: counter::verifier(machines),
    }
}

/// The administrator's key: of the seed, and not drawn, so that a run without changes draws what it always did.
pub(super) fn administrator_key(options: &Options) -> SigningKey {
    SigningKey::from_bytes(blake3::hash(&options.seed.to_le_bytes()).as_bytes())
}

pub(super) fn configuration<P: Protocol>(options: &Options, number: u8) -> Configuration {
    let mut configuration = P::configuration(MachineId(number), Faults(options.faults), options.groups_in_all());
    configuration.groups_at_first = options.groups;
    configuration.batch_entries_max = options.batch_entries_max;
    configuration.log_bytes_max = options.log_bytes_max;
    configuration.cut_bytes = options.cut_bytes;
    // Memory must not give what the log gives no longer.
    let log_bytes_max = usize::try_from(options.log_bytes_max).unwrap_or(usize::MAX);
    configuration.tail_bytes_max = configuration.tail_bytes_max.min(log_bytes_max);
    if !options.behaviours(MachineId(number)).is_empty() {
        // A liar that says that its log does not go back.
        (configuration.log_bytes_max, configuration.cut_bytes) = (0, 1);
    }
    #[cfg(feature = "mutants")]
    if let Ok(name) = std::env::var("MUTANT") {
        configuration.mutant = ordering::configuration::Mutant::from_name(&name);
        assert!(configuration.mutant.is_some(), "no mutant {name}");
    }
    configuration
}

/// The machines that each correct client reaches, as bits.
pub(super) fn draw_reached<P: Protocol>(options: &Options, rng: &mut impl Rng) -> Vec<u64> {
    let mut reached = vec![u64::MAX; options.clients as usize];
    let replicas: Vec<MachineId> = P::configuration(MachineId(0), Faults(options.faults), options.groups)
        .replica_machines()
        .filter(|machine| options.behaviours(*machine).is_empty())
        .collect();
    let busy = usize::from(options.busy_client && options.clients > 1);
    let few = reached.len() - busy;
    for bits in reached.iter_mut().take(few).filter(|_| options.clients_reach > 0) {
        let mut correct = replicas.clone();
        while correct.len() > usize::from(options.clients_reach) {
            correct.swap_remove(rng.random_range(0..correct.len()));
        }
        *bits = correct.iter().map(|machine| 1 << machine.0).sum();
    }
    reached
}

pub(super) fn draw_clock(options: &Options, rng: &mut impl Rng) -> Clock {
    let offset_us = i64::try_from(options.clock_offset_max_ms * 1000).unwrap_or(0);
    let rate_ppm = i64::try_from(options.clock_rate_max_ppm).unwrap_or(0);
    Clock {
        origin_us: rng.random_range(0..1_000_000),
        rate_ppm: rng.random_range(-rate_ppm..=rate_ppm),
        offset_us: rng.random_range(-offset_us..=offset_us),
    }
}
