//! Fuzzing, with fixed seeds in the tests and as many as time allows by `make fuzz`.
//!
//! - *Codec*: encodings of arbitrary messages with bytes altered, cut or added. Decoding and verification must end
//!   without a panic, and what decodes must be exactly what was encoded (no two encodings of one message).
//! - *Step*: a correct machine among machines that all send arbitrary messages with right signatures and warrants of
//!   broken counters. It must not panic, break its own invariants, or grow; agreement it cannot keep.

use std::panic::{AssertUnwindSafe, catch_unwind};

use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::SigningKey;
use ordering::configuration::Faults;
use ordering::identifiers::{GroupId, MachineId};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::adversary::{Conspiracy, Seen, Tools};
use crate::campaign;
use crate::cluster::test_directory;
use crate::counter::{Counter, Trust};
use crate::options::{Options, Overrides};
use crate::protocol::Protocol;
use crate::run::run;

/// Messages that one seed of the codec target makes.
const MESSAGES: usize = 60;

/// What only a machine's own fault can violate, whatever all others do.
const OWN_PROPERTIES: &[&str] = &["no panic", "bounded memory", "authenticity", "progress"];

/// What the seeds of a target have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fuzzed {
    /// Byte strings that were decoded, or inputs that were fed.
    pub inputs: u64,
    /// Those that got through: decoded, or accepted by verification.
    pub accepted: u64,
}

/// One seed of the codec target.
pub fn codec<P: Protocol>(seed: u64) -> Result<Fuzzed, String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut fuzzed = Fuzzed::default();
    let options = campaign::options::<P>(seed, &Overrides::default())?;
    let (directory, keys) = test_directory::<P>(&options, &mut rng);
    for _ in 0..MESSAGES {
        let from = rng.random_range(0..P::machines(Faults(options.faults)));
        let key = &keys[usize::from(from)];
        let message = arbitrary_message::<P>(&options, from, key, &mut rng);
        let mut bytes = borsh::to_vec(&message).map_err(|error| error.to_string())?;
        check_decoding::<P::Message>(&bytes, &mut fuzzed)?;
        mutate(&mut bytes, &mut rng);
        let Some(decoded) = check_decoding::<P::Message>(&bytes, &mut fuzzed)? else {
            continue;
        };
        let verified = catch_unwind(AssertUnwindSafe(|| P::verify(MachineId(from), decoded, &directory)));
        fuzzed.accepted += u64::from(
            verified
                .map_err(|_| format!("verification panics: seed {seed}"))?
                .is_ok(),
        );
    }
    for _ in 0..MESSAGES {
        let mut bytes = vec![0; rng.random_range(0..300)];
        rng.fill_bytes(&mut bytes);
        check_decoding::<P::Message>(&bytes, &mut fuzzed)?;
        check_decoding::<P::Record>(&bytes, &mut fuzzed)?;
    }
    Ok(fuzzed)
}

fn arbitrary_message<P: Protocol>(options: &Options, from: u8, key: &SigningKey, rng: &mut ChaCha8Rng) -> P::Message {
    let mut counter = Counter::new(from, 1, Trust::Broken);
    let seen = [Seen {
        digest: [7; 32],
        group: GroupId(0),
    }];
    let nothing_heard = [];
    P::arbitrary(
        &nothing_heard,
        &mut Tools {
            machine: MachineId(from),
            faults: options.faults,
            groups: options.groups,
            changes_groups: false,
            machines: P::machines(Faults(options.faults)),
            key,
            counter: &mut counter,
            seen: &seen,
            conspiracy: &mut Conspiracy::default(),
            told: &mut Vec::new(),
            rng,
        },
    )
}

/// What decodes encodes to the same bytes.
fn check_decoding<M: BorshSerialize + BorshDeserialize>(
    bytes: &[u8],
    fuzzed: &mut Fuzzed,
) -> Result<Option<M>, String> {
    fuzzed.inputs += 1;
    let decoded = catch_unwind(|| borsh::from_slice::<M>(bytes).ok());
    let decoded = decoded.map_err(|_| format!("decoding panics: {bytes:02x?}"))?;
    let Some(message) = decoded else { return Ok(None) };
    match borsh::to_vec(&message) {
        Ok(again) if again == bytes => Ok(Some(message)),
        _ => Err(format!("two encodings of one message: {bytes:02x?}")),
    }
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..4) {
        let place = rng.random_range(0..=bytes.len());
        match rng.random_range(0..5) {
            0 => bytes.truncate(place),
            1 => bytes.insert(place, rng.random()),
            2 if place + 4 <= bytes.len() => bytes[place..place + 4].fill(0xff),
            3 if place < bytes.len() => drop(bytes.remove(place)),
            _ => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 1 << rng.random_range(0..8);
                }
            }
        }
    }
}

/// One seed of the step target.
pub fn step<P: Protocol>(seed: u64) -> Result<Fuzzed, String> {
    let mut options = campaign::options::<P>(seed, &Overrides::default())?;
    let machines = P::machines(Faults(options.faults));
    let victim = u8::try_from(seed % u64::from(machines)).unwrap_or(0);
    options.counters = Trust::Broken;
    options.safety_ms = options.safety_ms.min(1_500);
    options.adversaries = (0..machines)
        .filter(|machine| *machine != victim)
        .map(|machine| (MachineId(machine), vec![crate::adversary::Behaviour::Arbitrary]))
        .collect();
    let outcome = run::<P>(&options, None);
    match outcome.violation {
        Some(violation) if OWN_PROPERTIES.contains(&violation.property) => {
            Err(format!("{violation}\n  options: {options}"))
        }
        _ => Ok(Fuzzed {
            inputs: outcome.counts.arbitrary,
            accepted: outcome
                .counts
                .arbitrary
                .saturating_sub(outcome.counts.rejected.values().sum()),
        }),
    }
}
